import runtime.openmp  # noqa: F401  before torch

# isort: split
import os

import torch

# Parallel test processes share the cores: waiting threads that spin would take them from each other.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
