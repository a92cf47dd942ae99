"""Which operations make a host wait for its GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["RecordOperations"]

_AWAITED = {
    "_local_scalar_dense",
    "is_nonzero",
    "nonzero",
    "nonzero_static",
    "masked_select",
    "unique_consecutive",
    "unique_dim",
    "_unique",
    "_unique2",
    "equal",
    "repeat_interleave",
}
"""Operations of which a host must await the result, as it decides a value, a shape or a branch."""


class RecordOperations(TorchDispatchMode):
    """Names of all operations, and of those for whose results a host would wait for its GPU.

    On a CPU nobody waits; it shows where one would.

    Attributes:
        names: of all operations, in order.
        waiting: of those for which a host waits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.waiting: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # asks a fake tensor, and computes nothing
            return func(*args, **kwargs)
        with self:
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        name = func.overloadpacket.__name__
        self.names.append(name)
        by_mask = name in ("index", "index_put", "index_put_") and any(
            part is not None and part.dtype in (torch.bool, torch.uint8) for part in args[1]
        )
        if name in _AWAITED or by_mask:
            self.waiting.append(name)
        return func(*args, **kwargs)
