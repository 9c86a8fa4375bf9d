"""What AlphaDecay is to do, written once more from its definition in plain numpy and loops; nothing here calls it."""

import numpy as np
import torch

BASE, LOW, HIGH = 0.1, 2 / 3, 3.0


def block_names(depth):
    """The matrices of `recipes.block_model` that take part: all but stem and head."""
    return [f"blocks.{block}.{leaf}" for block in range(depth) for leaf in ("proj", "fc1", "fc2")]


def eigenvalues(weight, groups=1):
    """Squared singular values, ascending; a convolution's of each group and kernel position, halved and pooled."""
    array = weight.detach().numpy()
    array = array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
    if array.ndim == 2:
        return np.sort(np.linalg.svd(array, compute_uv=False) ** 2)
    found = [
        0.5 * np.linalg.svd(part[:, :, i, j], compute_uv=False) ** 2
        for part in np.split(array, groups)
        for i in range(array.shape[2])
        for j in range(array.shape[3])
    ]
    return np.sort(np.concatenate(found))


def alpha_of(weight, groups=1):
    """1 + k / sum(log(x / xmin)) over the k eigenvalues of the upper half, xmin being the smallest of them."""
    spectrum = eigenvalues(weight, groups)
    tail = spectrum[len(spectrum) // 2 :]
    return 1 + len(tail) / np.log(tail / tail[0]).sum()


def linear(scores, low=LOW, high=HIGH):
    """The smallest score gets `low`, the largest `high`, those between in proportion."""
    least, most = min(scores.values()), max(scores.values())
    return {name: low + (high - low) * (score - least) / (most - least) for name, score in scores.items()}


def multipliers(model, names):
    """Those of the named modules, ranked among each other by their weights as they are now."""
    return linear({name: alpha_of(model.get_submodule(name).weight) for name in names})


def own_groups(model, names):
    """One group for each named weight, in the order of the names, and one for all other parameters."""
    alone = [model.get_submodule(name).weight for name in names]
    others = [p for p in model.parameters() if not any(p is each for each in alone)]
    return [{"params": [p]} for p in alone] + ([{"params": others}] if others else [])


def write_decays(optimizer, by_name, base=BASE):
    """Into the groups of `own_groups`, whose names were those of this mapping, in its order."""
    values = list(by_name.values())
    for number, group in enumerate(optimizer.param_groups):
        group["weight_decay"] = base * (values[number] if number < len(values) else 1.0)


def decay_on(optimizer, parameter):
    """The weight_decay under which an optimizer holds a parameter."""
    return next(g["weight_decay"] for g in optimizer.param_groups if any(p is parameter for p in g["params"]))


def batch(seed, rows=8, width=60):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def backward(model, seed):
    """The gradient of a batch that depends on the seed alone, in place of what was there."""
    model.zero_grad()
    loss = model(batch(seed)).square().mean()
    loss.backward()
    return loss


def take_steps(model, optimizer, steps):
    """Optimizer steps; the batch depends on the step alone."""
    for step in steps:
        backward(model, step)
        optimizer.step()


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation (arXiv 2010.01412): a step of another optimizer, with gradients from uphill.

    The weights go rho x g / |g| uphill, |g| being the norm of all gradients; there a second gradient is taken, with
    which the other optimizer steps from where the weights were.
    """

    def __init__(self, params, base_optimizer, rho=0.05, **options):
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base_optimizer(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups
        self.defaults.update(self.base_optimizer.defaults)

    def held(self):
        return [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        norm = torch.stack([p.grad.norm() for _, p in self.held()]).norm()
        for group, p in self.held():
            self.state[p]["old_p"] = p.detach().clone()
            p.add_(group["rho"] * p.grad / (norm + 1e-12))
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad=False):
        for _, p in self.held():
            p.copy_(self.state[p]["old_p"])
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is not None
        self.first_step(zero_grad=True)
        with torch.enable_grad():
            closure()
        self.second_step()

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.base_optimizer.param_groups = self.param_groups
