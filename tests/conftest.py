import runtime.openmp  # noqa: F401  before torch

# isort: split
import os
import signal

import torch

# Parallel test processes share the cores: waiting threads that spin would take them from each other.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)

# A shell starts what runs in its background with SIGINT ignored, and the processes of tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
