"""Which weight matrices a schedule adapts: found when it is attached, and again when model or groups have changed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from alphadecay.groups import Group
from alphadecay.matrices import Matrix, find_matrices, unwrap
from alphadecay.sharing import is_sharded
from alphadecay.splitting import has_scheduler, label_added_groups, label_replaced, note_old_groups, split_groups

ELSEWHERE = "not in this optimizer"
UNDECAYED = "not decayed: its static multiplier is 0"
RANKINGS = ("optimizer", "model")


class Membership:
    """The matrices of a model, and the optimizer group that holds each.

    Args:
        model: The model that the optimizer trains, wrapped or not.
        optimizer: Its groups are split where needed.
        selection: `exclude`, `include` and `min_eigenvalues` of `find_matrices`.
        ranking: "optimizer": skip matrices that the optimizer does not hold; "model": measure and score them too.

    Attributes:
        matrices: Every weight matrix of the model; skipped ones have a reason.
        adapted: Names of adapted matrices, and of those among them that are in no group of the optimizer, sorted.
        elsewhere: Names of matrices that `find_matrices` adapts and that are in no group of the optimizer.

    Raises:
        ValueError: For what `find_matrices` or `split_groups` refuse, or if no matrix can be adapted, now or later.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, selection: Mapping[str, Any], ranking: str = "optimizer"
    ) -> None:
        if ranking not in RANKINGS:
            raise ValueError(f"ranking={ranking!r} is unknown; choose from {', '.join(RANKINGS)}")
        self.model, self.optimizer, self.selection, self.ranking = model, optimizer, dict(selection), ranking
        self._homes: dict[str, tuple[nn.Module, str] | None] = {}
        matrices = find_matrices(model, **self.selection)
        if not any(m.may_be_adapted for m in matrices):
            listed = "; ".join(f"{m.name}: {m.reason}" for m in matrices[:5]) or "it has no weight matrix"
            raise ValueError(f"no weight matrix of {type(model).__name__} can be adapted ({listed})")
        count = len(optimizer.param_groups)
        origins = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        note_old_groups(optimizer.param_groups)
        split_groups(optimizer, matrices)
        self._rates = _Rates(optimizer, origins, count)
        self._note(matrices)

    def _note(self, matrices: Sequence[Matrix]) -> None:
        """Set `matrices` and `elsewhere`, and remember groups and weights, which `changed` compares."""
        groups = self.optimizer.param_groups
        held = {id(p) for group in groups for p in group["params"]}
        sharded = {group["decay_name"] for group in groups if any(is_sharded(p) for p in group["params"])}
        for m in matrices:
            if id(m.weight) in held:
                self._homes[m.name] = m.place
        # FSDP2 temporarily replaces the sharded weight, which the optimizer holds, by the whole weight.
        own = [m for m in matrices if id(m.weight) in held or (m.name in sharded and self._is_home(m))]
        grouped = {m.name for m in own} & ({group["decay_name"] for group in groups} | _members(groups))
        self.elsewhere = {m.name for m in matrices if not m.reason} - grouped
        skipped = self.elsewhere if self.ranking == "optimizer" else set()
        statics = self.statics
        undecayed = {m.name for m in matrices if not (m.reason or statics.get(m.name, 1.0))} - skipped
        reasons = dict.fromkeys(undecayed, UNDECAYED)
        reasons |= {m.name: self._why_elsewhere(m) for m in matrices if m.name in skipped}
        self.matrices = [replace(m, reason=reasons.get(m.name, m.reason)) for m in matrices]
        self.adapted = sorted(m.name for m in self.matrices if not m.reason), sorted(self.elsewhere)
        self._slots, self._links = _slots(unwrap(self.model))
        self._sizes = [len(group["params"]) for group in groups]

    @property
    def statics(self) -> dict[str, float]:
        """The static multiplier of each module that has its own group or shares one."""
        groups = self.optimizer.param_groups
        return {
            name: group["static_multiplier"]
            for group in groups
            for name in (group["decay_name"], *group.get("decay_members", ()))
        }

    def _is_home(self, matrix: Matrix) -> bool:
        """Whether the matrix is in the module in which the optimizer's weight of that name was."""
        home = self._homes.get(matrix.name)
        return home is not None and matrix.place is not None and home[0] is matrix.place[0]

    def _why_elsewhere(self, matrix: Matrix) -> str:
        """Why a matrix has no group of its own in the optimizer."""
        for group in self.optimizer.param_groups:
            if any(p is matrix.weight for p in group["params"]):
                return f"in {group['decay_name']}, which cannot be split under a learning-rate scheduler"
        return ELSEWHERE

    def changed(self) -> bool:
        """Whether groups were added or removed, or a weight was frozen, unfrozen, initialised, pruned or replaced."""
        groups = self.optimizer.param_groups
        if [len(group["params"]) for group in groups] != self._sizes:
            return True
        if any("decay_group" not in group for group in groups):
            return True
        if any(children.get(name) is not child for children, name, child in self._links):
            return True
        return any(
            slots.get(name) is not weight or weight.requires_grad != trained or type(weight) is not kind
            for slots, name, weight, trained, kind in self._slots
        )

    def update(self) -> None:
        """Find the matrices again and label new groups."""
        groups = self.optimizer.param_groups
        steps = max(group.get("decay_step", 0) for group in groups)
        matrices = find_matrices(self.model, **self.selection)
        note_old_groups(groups)
        label_replaced(groups, self.model)
        if has_scheduler(self.optimizer):
            label_added_groups(self.optimizer, matrices)
        else:
            split_groups(self.optimizer, matrices)
        for group in groups:
            group["decay_step"] = steps
        self._note(matrices)

    def rate_set_alone(self) -> str:
        """A warning if the learning rate of only one part of a split group was changed since the last call, else ""."""
        return self._rates.set_alone(self.optimizer.param_groups)

    def notes(self) -> dict[str, str]:
        """Why a module's decay does not follow from its score, by module name."""
        notes = dict.fromkeys(self.elsewhere if self.ranking == "model" else (), f"{ELSEWHERE}, but in its ranking")
        for group in self.optimizer.param_groups:
            for name in group.get("decay_members", ()):
                notes[name] = (
                    f"has the mean decay of {group['decay_name']}, which was added under a learning-rate scheduler"
                )
        return notes


def _members(groups: Iterable[Group]) -> set[str]:
    """Names of the modules that share a group."""
    return {name for group in groups for name in group.get("decay_members", ())}


class _Rates:
    """Tracks learning rates of split groups, to warn when a training loop sets only one of them."""

    def __init__(self, optimizer: Optimizer, origins: Mapping[int, int], count: int) -> None:
        groups = optimizer.param_groups
        parts: list[list[str]] = [[] for _ in range(count)]
        for group in groups:
            if group["params"]:
                parts[origins[id(group["params"][0])]].append(group["decay_name"])
        self._parts = [names for names in parts if len(names) > 1]
        self._last = self._of(groups)

    @staticmethod
    def _of(groups: Sequence[Group]) -> dict[str, Any]:
        """Learning rates by group name, without those that are tensors."""
        return {group["decay_name"]: lr for group in groups if not isinstance(lr := group.get("lr"), Tensor)}

    def set_alone(self, groups: Sequence[Group]) -> str:
        """See `Membership.rate_set_alone`."""
        last, now = self._last, self._of(groups)
        if now == last:
            return ""
        self._last = now
        for first, *others in self._parts:
            if first not in last or first not in now or now[first] == last[first]:
                continue
            if all(last.get(name) == now.get(name) == last[first] for name in others):
                return (
                    f"the learning rate of only group {first} was set to {now[first]}, and {len(others)} other groups "
                    f"keep {last[first]}: these groups were one and have been split, so set the rate in every group"
                )
        return ""


Slot = tuple[Mapping[str, Any], str, nn.Parameter, bool, type]
Link = tuple[Mapping[str, Any], str, nn.Module]


def _slots(module: nn.Module) -> tuple[list[Slot], list[Link]]:
    """Where weights are in their modules, with their current values; and where these modules are in their parents."""
    slots: list[Slot] = [
        (module._parameters, name, p, p.requires_grad, type(p))
        for name, p in module._parameters.items()
        if p is not None and (is_lazy(p) or p.ndim >= 2)
    ]
    links: list[Link] = []
    for name, child in module.named_children():
        slots_below, links_below = _slots(child)
        if slots_below:
            slots += slots_below
            links += [(module._modules, name, child), *links_below]
    return slots, links
