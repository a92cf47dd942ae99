"""Parts of transformer blocks, computed the fastest way that each device has.

CLIP's and SAM's own modules hold the weights; these functions run them. The number format of a
product is that of its weights: activations are cast to it, sums and norms stay in float32.

Shapes: B images, R side of a square input, h x w pixels of a patch, G patches along a side,
D width, C and E channels of a layer's input and output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["linear", "mlp", "patch_tokens", "quick_gelu_", "set_product_dtype"]

_LEAST_ROWS = 128
"""Rows that a product of float32 on a CPU is filled up to: few rows are always summed in another
order than many, so that a result would depend more on what it is computed with."""

_MLP_ROWS = 1024
"""Rows that go through an MLP at once on a CPU, so that its wide middle stays in the cache."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a linear layer.

    On a CPU, float32 products go through oneDNN, as the 1 x 1 convolution that they are: MKL, which
    torch takes otherwise, is as fast on one core but not on two
    (docs/performance.md).

    Args:
        x: any float type, (..., C).
        weight: (E, C); decides the number format.
        bias: (E,).

    Returns:
        (..., E), of the weight's type.
    """
    x = x.to(weight.dtype)
    rows = x.shape[:-1].numel()
    if x.device.type != "cpu" or weight.dtype is not torch.float32 or not rows * len(weight):
        return F.linear(x, weight, bias)
    rows_NC = x.reshape(rows, x.shape[-1])
    if rows < _LEAST_ROWS:
        rows_NC = F.pad(rows_NC, (0, 0, 0, _LEAST_ROWS - rows))
    # Channels last in memory, as torch recognises it: neither input nor output is copied.
    columns_1CN1 = rows_NC.reshape(1, len(rows_NC), 1, rows_NC.shape[1]).permute(0, 3, 1, 2)
    out_1EN1 = F.conv2d(columns_1CN1, weight[:, :, None, None], bias)
    return out_1EN1.permute(0, 2, 3, 1)[0, :rows, 0].reshape(*x.shape[:-1], len(weight))


def mlp(
    x: Tensor, up: nn.Linear, activation_: Callable[[Tensor], Tensor], down: nn.Linear
) -> Tensor:
    """Apply two linear layers with an activation between them.

    Args:
        x: (..., C).
        up: from C to the width of the middle.
        activation_: of what the first layer gives, which it may overwrite.
        down: from the middle back to C.

    Returns:
        (..., C), of the weights' type.
    """
    rows_NC = x.reshape(-1, x.shape[-1])
    chunk = _MLP_ROWS if x.device.type == "cpu" else max(len(rows_NC), 1)
    parts = [
        linear(activation_(linear(part_NC, up.weight, up.bias)), down.weight, down.bias)
        for part_NC in rows_NC.split(chunk)
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(x.shape)


def quick_gelu_(x: Tensor) -> Tensor:
    """Apply CLIP's activation x * sigmoid(1.702 x) in place: the sigmoid linear unit, scaled."""
    return F.silu(x.mul_(1.702), inplace=True).div_(1.702)


def patch_tokens(images_B3RR: Tensor, kernel_D3hw: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a convolution whose stride is its side, as a linear layer on patches.

    Args:
        images_B3RR: (B, 3, R, R), R a multiple of h = w.
        kernel_D3hw: (D, 3, h, w).
        bias: (D,).

    Returns:
        (B, G, G, D), of the kernel's type.
    """
    patch = kernel_D3hw.shape[-1]
    patches = images_B3RR.unflatten(2, (-1, patch)).unflatten(4, (-1, patch))
    rows_BGGC = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)
    return linear(rows_BGGC, kernel_D3hw.flatten(1), bias)


def set_product_dtype(layers: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """Store the weights of linear and attention layers in the number format of their products."""
    for layer in layers:
        if isinstance(layer, nn.Linear | nn.MultiheadAttention):
            layer.to(dtype)
