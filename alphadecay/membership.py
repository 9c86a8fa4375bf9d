"""Which weight matrices an optimizer steers: found when it is attached, and again when model or groups have changed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from alphadecay.groups import Group, has_scheduler, label_added_groups, split_groups
from alphadecay.matrices import Matrix, find_matrices, unwrap
from alphadecay.sharing import is_sharded

ELSEWHERE = "not in this optimizer"
RANKINGS = ("optimizer", "model")


class Membership:
    """The matrices of a model, and the group of an optimizer that holds each.

    Args:
        model: The model the optimizer trains, wrapped or not.
        optimizer: Its groups are split where needed.
        selection: `exclude`, `include` and `min_eigenvalues` of `find_matrices`.
        ranking: "optimizer": matrices that it does not hold take no part; "model": they are measured and ranked too.

    Attributes:
        matrices: Every weight matrix of the model, those that stay out with the reason.
        elsewhere: Names of those that take part and are in no group of the optimizer.

    Raises:
        ValueError: As `find_matrices` and `split_groups`, or if none takes part or ever can.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, selection: Mapping[str, Any], ranking: str = "optimizer"
    ) -> None:
        if ranking not in RANKINGS:
            raise ValueError(f"ranking={ranking!r} is unknown; choose from {', '.join(RANKINGS)}")
        self.model, self.optimizer, self.selection, self.ranking = model, optimizer, dict(selection), ranking
        self._homes: dict[str, tuple[nn.Module, str] | None] = {}
        matrices = find_matrices(model, **self.selection)
        if not any(m.may_take_part for m in matrices):
            listed = "; ".join(f"{m.name}: {m.reason}" for m in matrices[:5]) or "it has no weight matrix"
            raise ValueError(f"no weight matrix of {type(model).__name__} takes part ({listed})")
        split_groups(optimizer, matrices)
        self._note(matrices)

    def _note(self, matrices: Sequence[Matrix]) -> None:
        groups = self.optimizer.param_groups
        held = {id(p) for group in groups for p in group["params"]}
        sharded = {group["decay_name"] for group in groups if any(is_sharded(p) for p in group["params"])}
        for m in matrices:
            if id(m.weight) in held:
                self._homes[m.name] = m.place
        # FSDP2 puts the whole weight in the place of the sharded one that the optimizer holds.
        ours = [m for m in matrices if id(m.weight) in held or (m.name in sharded and self._is_home(m))]
        labels = {group["decay_name"] for group in groups}
        placed = {m.name for m in ours} & (labels | _members(groups))
        self.elsewhere = {m.name for m in matrices if not m.reason} - placed
        out = self.elsewhere if self.ranking == "optimizer" else set()
        self.matrices = [replace(m, reason=self._why_elsewhere(m)) if m.name in out else m for m in matrices]
        self._places = [(m, m.place, m.weight.requires_grad, type(m.weight)) for m in ours if m.name in placed]
        self._links = _links(unwrap(self.model), {id(m.place[0]) for m in ours if m.place})
        self._sizes = [len(group["params"]) for group in groups]

    def _is_home(self, matrix: Matrix) -> bool:
        home = self._homes.get(matrix.name)
        return home is not None and matrix.place is not None and home[0] is matrix.place[0]

    def _why_elsewhere(self, matrix: Matrix) -> str:
        for group in self.optimizer.param_groups:
            if any(p is matrix.weight for p in group["params"]):
                return f"in {group['decay_name']}, which cannot be split under a learning-rate scheduler"
        return ELSEWHERE

    def changed(self) -> bool:
        """Whether groups came or went, or a weight was frozen, unfrozen, initialised, pruned or replaced."""
        groups = self.optimizer.param_groups
        if [len(group["params"]) for group in groups] != self._sizes:
            return True
        if any("decay_name" not in group for group in groups):
            return True
        if any(children.get(name) is not child for children, name, child in self._links):
            return True
        return any(
            place is not None
            and place[0]._parameters.get(place[1]) is not m.weight
            or m.weight.requires_grad != trained
            or type(m.weight) is not kind
            for m, place, trained, kind in self._places
        )

    def update(self) -> bool:
        """Find the matrices again and give new groups their place; returns whether other ones take part than before."""
        before = {m.name for m in self.matrices if not m.reason}
        steps = max(group.get("decay_step", 0) for group in self.optimizer.param_groups)
        matrices = find_matrices(self.model, **self.selection)
        if has_scheduler(self.optimizer):
            label_added_groups(self.optimizer, matrices)
        else:
            split_groups(self.optimizer, matrices)
        for group in self.optimizer.param_groups:
            group["decay_step"] = steps
        self._note(matrices)
        return {m.name for m in self.matrices if not m.reason} != before

    def multiplier_of(self, group: Group, multipliers: Mapping[str, float]) -> float:
        """The multiplier of a group: its module's, or the mean of those that share it, weighted by parameters."""
        members = group.get("decay_members")
        if not members or group["decay_name"] in multipliers:
            return multipliers.get(group["decay_as"] if "decay_as" in group else group["decay_name"], 1.0)
        sizes = {m.name: m.weight.numel() for m in self.matrices if m.name in members and not m.reason}
        total = sum(sizes.values())
        return sum(size * multipliers.get(name, 1.0) for name, size in sizes.items()) / total if total else 1.0

    def notes(self) -> dict[str, str]:
        """Why modules have another decay than their score says, by name."""
        notes = dict.fromkeys(self.elsewhere if self.ranking == "model" else (), f"{ELSEWHERE}, but in its ranking")
        for group in self.optimizer.param_groups:
            for name in group.get("decay_members", ()):
                notes[name] = (
                    f"has the mean decay of {group['decay_name']}, which was added under a learning-rate scheduler"
                )
        return notes


def _members(groups: Iterable[Group]) -> set[str]:
    return {name for group in groups for name in group.get("decay_members", ())}


def _links(module: nn.Module, watched: set[int]) -> list[tuple[Mapping[str, nn.Module | None], str, nn.Module]]:
    """The places of modules in their parents on the ways down to those that are watched, by id."""
    links = []
    for name, child in module.named_children():
        below = _links(child, watched)
        if below or id(child) in watched:
            links += [(module._modules, name, child), *below]
    return links


def shared_multipliers(groups: Iterable[Group]) -> dict[str, float]:
    """The multipliers of modules that share a group, by name."""
    return {name: group["decay_multiplier"] for group in groups for name in group.get("decay_members", ())}
