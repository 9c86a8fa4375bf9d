"""Counts the bytes of matrices that a piece of code makes."""

import weakref
from collections.abc import Iterable

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Peak(TorchDispatchMode):
    """The most bytes (`most`) that matrices made in this context have at one time, without the memory of `known`."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.most = 0
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._made: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        made = [each for each in (result if isinstance(result, list | tuple) else [result]) if type(each) is Tensor]
        self._made += [weakref.ref(each) for each in made if each.ndim > 1]
        self._made = [each for each in self._made if each() is not None]
        storages = [each.untyped_storage() for each in (each() for each in self._made) if each is not None]
        sizes = {each.data_ptr(): each.nbytes() for each in storages if each.data_ptr() not in self._known}
        self.most = max(self.most, sum(sizes.values()))
        return result
