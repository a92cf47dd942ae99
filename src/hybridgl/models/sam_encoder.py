"""Image encoder of SAM: a vision transformer with windows and relative positions.

segment_anything's module holds the weights; here its forward pass never holds the attention of a
whole image, and computes nothing for the padding of windows.

Source: Kirillov et al., "Segment Anything" (ICCV 2023), appendix A; relative positions of Li et
al., "MViTv2" (CVPR 2022).
Shapes: B images or windows, R side of the input, G patches along a side, T = G * G tokens, D width,
h heads, d head width, C channels of the embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hybridgl.models.transformer import linear, mlp, patch_tokens

__all__ = ["encode", "encoder_block", "relative_attention"]

_CACHED_SCORES = 2**22
"""Attention scores that a CPU works on at once: 16 MB, so that they stay in its cache."""

_BIAS_SCORES = 2**28
"""Biases that a GPU holds at once: 1 GB in float32, which is one image of ViT-H."""


def encoder_block(block: Any, x_BGGD: Tensor) -> Tensor:
    """Run a block of the encoder.

    Args:
        block: segment_anything's ``Block``.
        x_BGGD: float32, (B, G, G, D).
    """
    x_BGGD = x_BGGD + _attention(block, block.norm1(x_BGGD))
    x_BGGD += mlp(block.norm2(x_BGGD), block.mlp.lin1, block.mlp.act, block.mlp.lin2)
    return x_BGGD


def encode(
    encoder: Any,
    images_B3RR: Tensor,
    run_block: Callable[[Any, Tensor], Tensor] = encoder_block,
) -> Tensor:
    """Embed images.

    Args:
        encoder: segment_anything's ``ImageEncoderViT`` as its registry builds it, with relative
            positions; the weights of its linear layers decide the number format of the products.
        images_B3RR: normalised and padded, float32, (B, 3, R, R).
        run_block: ``encoder_block``, or what torch has compiled of it, one block for all.

    Returns:
        float32, (B, C, G, G).
    """
    projection = encoder.patch_embed.proj
    x_BGGD = patch_tokens(images_B3RR, projection.weight, projection.bias)
    if encoder.pos_embed is not None:
        x_BGGD = x_BGGD + encoder.pos_embed
    for block in encoder.blocks:
        x_BGGD = run_block(block, x_BGGD)
    narrow, norm, smooth, last_norm = encoder.neck
    x_BGGC = linear(x_BGGD, narrow.weight.flatten(1))
    x_BCGG = norm(x_BGGC.permute(0, 3, 1, 2))
    # As a product of 3 x 3 neighbourhoods: cuDNN rounds convolutions to ten bits by default.
    neighbourhoods = F.unfold(x_BCGG, smooth.kernel_size, padding=1).transpose(1, 2)
    x_BTC = linear(neighbourhoods, smooth.weight.flatten(1))
    embedded_BCGG: Tensor = last_norm(x_BTC.transpose(1, 2).unflatten(2, x_BCGG.shape[2:]))
    return embedded_BCGG


def _attention(block: Any, normed_BGGD: Tensor) -> Tensor:
    """Compute what a block's attention adds, (B, G, G, D)."""
    attention, window = block.attn, block.window_size
    size, grid = len(normed_BGGD), normed_BGGD.shape[1]
    qkv_BGG3 = linear(normed_BGGD, attention.qkv.weight)
    side = grid
    if window:
        # The padding of windows is 0 before the layer, so that all it gets is the bias.
        qkv_BGG3 = _to_windows(qkv_BGG3, window)
        side = window
    qkv_BGG3 = qkv_BGG3 + attention.qkv.bias
    q, k, v = qkv_BGG3.flatten(1, 2).unflatten(-1, (3, attention.num_heads, -1)).unbind(dim=2)
    attended_BhTd = relative_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        _relative(attention.rel_pos_h, side),
        _relative(attention.rel_pos_w, side),
    )
    merged_BGGD = attended_BhTd.transpose(1, 2).flatten(2).unflatten(1, (side, side))
    if window:
        merged_BGGD = _from_windows(merged_BGGD, size, grid)
    return linear(merged_BGGD, attention.proj.weight, attention.proj.bias)


def relative_attention(
    q_BhTd: Tensor, k_BhTd: Tensor, v_BhTd: Tensor, rows_GGd: Tensor, columns_GGd: Tensor
) -> Tensor:
    """Apply attention whose scores depend on the distance of query and key, by row and column.

    Args:
        q_BhTd: queries, row by row.
        k_BhTd: keys.
        v_BhTd: values.
        rows_GGd: embedding of the distance of a query's row and a key's row.
        columns_GGd: likewise for columns.

    Returns:
        (B, h, T, d).
    """
    _, heads, tokens, _ = q_BhTd.shape
    side = len(rows_GGd)
    q_BhGGd = q_BhTd.unflatten(2, (side, side))
    by_row_BhGGG = torch.einsum("bnijd,ikd->bnijk", q_BhGGd, rows_GGd.to(q_BhTd.dtype))
    by_column_BhGGG = torch.einsum("bnijd,jkd->bnijk", q_BhGGd, columns_GGd.to(q_BhTd.dtype))

    if q_BhTd.device.type != "cpu":
        return _attend_with_bias(q_BhTd, k_BhTd, v_BhTd, by_row_BhGGG, by_column_BhGGG)
    if heads * tokens * tokens <= _CACHED_SCORES:
        return _attend_window_by_window(q_BhTd, k_BhTd, v_BhTd, by_row_BhGGG, by_column_BhGGG)
    return _attend_head_by_head(q_BhTd, k_BhTd, v_BhTd, by_row_BhGGG, by_column_BhGGG)


def _attend_with_bias(
    q_BhTd: Tensor, k_BhTd: Tensor, v_BhTd: Tensor, by_row_BhGGG: Tensor, by_column_BhGGG: Tensor
) -> Tensor:
    """Use a fused kernel of a GPU that takes a mask, for as many images as their biases fit.

    Flash attention takes none, and cuDNN's form plans each shape for long.
    """
    size, heads, tokens, _ = q_BhTd.shape
    # Laid out in their order: otherwise the sum, a hundred times as large, would be copied.
    by_row_BhGGG, by_column_BhGGG = by_row_BhGGG.contiguous(), by_column_BhGGG.contiguous()
    at_once = max(_BIAS_SCORES // (heads * tokens * tokens), 1)
    parts = []
    for start in range(0, size, at_once):
        some = slice(start, start + at_once)
        bias = by_row_BhGGG[some, ..., None] + by_column_BhGGG[some, ..., None, :]
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            parts.append(
                F.scaled_dot_product_attention(
                    q_BhTd[some],
                    k_BhTd[some],
                    v_BhTd[some],
                    attn_mask=bias.flatten(4).flatten(2, 3),
                )
            )
        del bias  # before the next one is made
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attend_window_by_window(
    q_BhTd: Tensor, k_BhTd: Tensor, v_BhTd: Tensor, by_row_BhGGG: Tensor, by_column_BhGGG: Tensor
) -> Tensor:
    """Work on all heads of a window at once, on a CPU."""
    attended_BhTd = torch.empty_like(v_BhTd, memory_format=torch.contiguous_format)
    scaled_BhTd = q_BhTd * q_BhTd.shape[-1] ** -0.5
    keys_BhdT, values_BhTd = k_BhTd.contiguous().transpose(2, 3), v_BhTd.contiguous()
    for one, q_hTd in enumerate(scaled_BhTd):
        scores_hGGT = (q_hTd @ keys_BhdT[one]).unflatten(1, by_row_BhGGG.shape[2:4])
        _add_positions(scores_hGGT, by_row_BhGGG[one], by_column_BhGGG[one])
        attended_BhTd[one] = scores_hGGT.flatten(1, 2).softmax(dim=-1) @ values_BhTd[one]
    return attended_BhTd


def _attend_head_by_head(
    q_BhTd: Tensor, k_BhTd: Tensor, v_BhTd: Tensor, by_row_BhGGG: Tensor, by_column_BhGGG: Tensor
) -> Tensor:
    """Work on some rows of a head at once, where its scores would not fit in a CPU's cache."""
    attended_BhTd = torch.empty_like(v_BhTd, memory_format=torch.contiguous_format)
    scaled_BhTd = (q_BhTd * q_BhTd.shape[-1] ** -0.5).contiguous()
    size, heads, tokens, _ = q_BhTd.shape
    side = by_row_BhGGG.shape[2]
    step = max(_CACHED_SCORES // 2 // (side * tokens), 1)
    for one in range(size):
        for head in range(heads):
            keys_Td = k_BhTd[one, head].contiguous()
            values_dT = v_BhTd[one, head].T.contiguous()
            for row in range(0, side, step):
                some = slice(row, row + step)
                queries = slice(row * side, (row + step) * side)
                scores = linear(scaled_BhTd[one, head, queries], keys_Td)
                _add_positions(
                    scores.unflatten(0, (-1, side)),
                    by_row_BhGGG[one, head, some],
                    by_column_BhGGG[one, head, some],
                )
                torch.softmax(scores, dim=-1, out=scores)
                attended_BhTd[one, head, queries] = linear(scores, values_dT)
    return attended_BhTd


def _add_positions(scores_GGT: Tensor, by_row_GGG: Tensor, by_column_GGG: Tensor) -> None:
    """Add to every score what its query has for the key's row and column; any leading axes."""
    scores_GGGG = scores_GGT.unflatten(-1, (by_row_GGG.shape[-1], by_column_GGG.shape[-1]))
    scores_GGGG += by_row_GGG[..., None]
    scores_GGGG += by_column_GGG[..., None, :]


def _relative(embedding: Tensor, side: int) -> Tensor:
    """Embed the distance of every query from every key along one axis, (side, side, d)."""
    place = torch.arange(side, device=embedding.device)
    return embedding[place[:, None] - place[None] + side - 1]


def _to_windows(x_BGGD: Tensor, window: int) -> Tensor:
    """Cut the padded grid into windows, (B * windows, window, window, D)."""
    padding = -x_BGGD.shape[1] % window
    padded = F.pad(x_BGGD, (0, 0, 0, padding, 0, padding))
    split = padded.unflatten(1, (-1, window)).unflatten(3, (-1, window))
    return split.transpose(2, 3).flatten(0, 2)


def _from_windows(windows: Tensor, size: int, grid: int) -> Tensor:
    """Join windows to the grid without its padding, (B, G, G, D)."""
    window = windows.shape[1]
    along = -(-grid // window)
    split = windows.unflatten(0, (size, along, along)).transpose(2, 3)
    return split.flatten(3, 4).flatten(1, 2)[:, :grid, :grid]
