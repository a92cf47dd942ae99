"""A GPU that is none, so that its branches run everywhere."""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode


class PretendGpu(TorchFunctionMode):
    """Tensors say that they are on a GPU, and stay where they are: its paths run without one."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return torch.device("cuda")
        if func is torch.Tensor.to and isinstance(args[1], torch.device):
            args = (args[0], torch.device("cpu"), *args[2:])
        if func is torch.Tensor.pin_memory:
            return args[0]
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
        return func(*args, **kwargs)
