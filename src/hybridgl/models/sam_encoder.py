"""SAM's image encoder: a vision transformer with windows and relative positions.

segment_anything's module holds the weights; here its forward pass never holds the attention of a
whole image, and computes nothing for the padding of windows.

Source: Kirillov et al., "Segment Anything" (ICCV 2023), appendix A; relative positions of Li et
al., "MViTv2" (CVPR 2022).
Shapes: B images or windows, R side of the input, g patches along a side, T tokens of a side
times a side, D width, h heads, d head width, C channels of the embedding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridgl.models.transformer import linear, mlp, patch_tokens

__all__ = ["encode", "relative_attention"]

_CACHED_SCORES = 2**22
"""Attention scores that a CPU works on at once: 16 MB, so that they stay in its cache."""

_BIAS_SCORES = 2**29
"""Biases that a GPU holds at once: 2 GB in float32, which is two images of ViT-H."""


def encode(encoder: Any, images_B3RR: Tensor) -> Tensor:
    """Embeddings of images.

    Args:
        encoder: segment_anything's ``ImageEncoderViT`` as its registry builds it, with relative
            positions; the weights of its linear layers decide the number format of the products.
        images_B3RR: normalised and padded, float32, (B, 3, R, R).

    Returns:
        float32, (B, C, g, g).
    """
    projection = encoder.patch_embed.proj
    x_BggD = patch_tokens(images_B3RR, projection.weight, projection.bias)
    if encoder.pos_embed is not None:
        x_BggD = x_BggD + encoder.pos_embed
    for block in encoder.blocks:
        x_BggD = x_BggD + _attention(block, block.norm1(x_BggD))
        x_BggD += mlp(block.norm2(x_BggD), block.mlp.lin1, block.mlp.act, block.mlp.lin2)
    narrow, norm, smooth, last_norm = encoder.neck
    x_BggC = linear(x_BggD, narrow.weight.flatten(1))
    x_BCgg = norm(x_BggC.permute(0, 3, 1, 2))
    # As a product of 3 x 3 neighbourhoods: cuDNN rounds convolutions to ten bits by default.
    neighbourhoods_BTK = F.unfold(x_BCgg, smooth.kernel_size, padding=1).transpose(1, 2)
    x_BTC = linear(neighbourhoods_BTK, smooth.weight.flatten(1))
    embedded_BCgg: Tensor = last_norm(x_BTC.transpose(1, 2).unflatten(2, x_BCgg.shape[2:]))
    return embedded_BCgg


def _attention(block: Any, normed_BggD: Tensor) -> Tensor:
    """What a block's attention adds, (B, g, g, D)."""
    attention, window = block.attn, block.window_size
    size, grid = len(normed_BggD), normed_BggD.shape[1]
    qkv_Bgg3 = linear(normed_BggD, attention.qkv.weight)
    side = grid
    if window:
        # The padding of windows is 0 before the layer, so that all it gets is the bias.
        qkv_Bgg3 = _to_windows(qkv_Bgg3, window)
        side = window
    qkv_Bgg3 = qkv_Bgg3 + attention.qkv.bias
    q, k, v = qkv_Bgg3.flatten(1, 2).unflatten(-1, (3, attention.num_heads, -1)).unbind(dim=2)
    attended_BhTd = relative_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        _relative(attention.rel_pos_h, side),
        _relative(attention.rel_pos_w, side),
    )
    merged_BggD = attended_BhTd.transpose(1, 2).flatten(2).unflatten(1, (side, side))
    if window:
        merged_BggD = _from_windows(merged_BggD, size, grid)
    return linear(merged_BggD, attention.proj.weight, attention.proj.bias)


def relative_attention(
    q_BhTd: Tensor, k_BhTd: Tensor, v_BhTd: Tensor, rows_ggd: Tensor, columns_ggd: Tensor
) -> Tensor:
    """Attention whose scores depend on the distance of query and key, by row and by column.

    Args:
        q_BhTd: queries, row by row.
        k_BhTd: keys.
        v_BhTd: values.
        rows_ggd: embedding of the distance of a query's row and a key's row.
        columns_ggd: likewise for columns.

    Returns:
        (B, h, T, d).
    """
    _, heads, tokens, _ = q_BhTd.shape
    side = len(rows_ggd)
    q_Bhggd = q_BhTd.unflatten(2, (side, side))
    by_row_Bhggg = torch.einsum("bnijd,ikd->bnijk", q_Bhggd, rows_ggd.to(q_BhTd.dtype))
    by_column_Bhggg = torch.einsum("bnijd,jkd->bnijk", q_Bhggd, columns_ggd.to(q_BhTd.dtype))

    if q_BhTd.device.type != "cpu":
        return _attend_with_bias(q_BhTd, k_BhTd, v_BhTd, by_row_Bhggg, by_column_Bhggg)
    if heads * tokens * tokens <= _CACHED_SCORES:
        return _attend_window_by_window(q_BhTd, k_BhTd, v_BhTd, by_row_Bhggg, by_column_Bhggg)
    return _attend_head_by_head(q_BhTd, k_BhTd, v_BhTd, by_row_Bhggg, by_column_Bhggg)


def _attend_with_bias(
    q_BhTd: Tensor, k_BhTd: Tensor, v_BhTd: Tensor, by_row_Bhggg: Tensor, by_column_Bhggg: Tensor
) -> Tensor:
    """On a GPU: the fused kernel, with the positions of as many images as fit in memory."""
    size, heads, tokens, _ = q_BhTd.shape
    at_once = max(_BIAS_SCORES // (heads * tokens * tokens), 1)
    parts = []
    for start in range(0, size, at_once):
        some = slice(start, start + at_once)
        bias = by_row_Bhggg[some, ..., None] + by_column_Bhggg[some, ..., None, :]
        bias_BhTT = bias.flatten(4).flatten(2, 3)
        parts.append(
            F.scaled_dot_product_attention(
                q_BhTd[some], k_BhTd[some], v_BhTd[some], attn_mask=bias_BhTT
            )
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attend_window_by_window(
    q_BhTd: Tensor, k_BhTd: Tensor, v_BhTd: Tensor, by_row_Bhggg: Tensor, by_column_Bhggg: Tensor
) -> Tensor:
    """On a CPU: all heads of a window at once."""
    attended_BhTd = torch.empty_like(v_BhTd, memory_format=torch.contiguous_format)
    scaled_BhTd = q_BhTd * q_BhTd.shape[-1] ** -0.5
    keys_BhdT, values_BhTd = k_BhTd.contiguous().transpose(2, 3), v_BhTd.contiguous()
    for one, q_hTd in enumerate(scaled_BhTd):
        scores_hggT = (q_hTd @ keys_BhdT[one]).unflatten(1, by_row_Bhggg.shape[2:4])
        _add_positions(scores_hggT, by_row_Bhggg[one], by_column_Bhggg[one])
        attended_BhTd[one] = scores_hggT.flatten(1, 2).softmax(dim=-1) @ values_BhTd[one]
    return attended_BhTd


def _attend_head_by_head(
    q_BhTd: Tensor, k_BhTd: Tensor, v_BhTd: Tensor, by_row_Bhggg: Tensor, by_column_Bhggg: Tensor
) -> Tensor:
    """On a CPU: some rows of one head at once, where a head's scores would not fit in its cache."""
    attended_BhTd = torch.empty_like(v_BhTd, memory_format=torch.contiguous_format)
    scaled_BhTd = (q_BhTd * q_BhTd.shape[-1] ** -0.5).contiguous()
    size, heads, tokens, _ = q_BhTd.shape
    side = by_row_Bhggg.shape[2]
    step = max(_CACHED_SCORES // 2 // (side * tokens), 1)
    for one in range(size):
        for head in range(heads):
            keys_Td = k_BhTd[one, head].contiguous()
            values_dT = v_BhTd[one, head].T.contiguous()
            for row in range(0, side, step):
                some = slice(row, row + step)
                queries = slice(row * side, (row + step) * side)
                scores_QT = linear(scaled_BhTd[one, head, queries], keys_Td)
                _add_positions(
                    scores_QT.unflatten(0, (-1, side)),
                    by_row_Bhggg[one, head, some],
                    by_column_Bhggg[one, head, some],
                )
                torch.softmax(scores_QT, dim=-1, out=scores_QT)
                attended_BhTd[one, head, queries] = linear(scores_QT, values_dT)
    return attended_BhTd


def _add_positions(scores_ggT: Tensor, by_row_ggg: Tensor, by_column_ggg: Tensor) -> None:
    """Add to every score what its query has for the key's row and column; any leading axes."""
    scores_gggg = scores_ggT.unflatten(-1, (by_row_ggg.shape[-1], by_column_ggg.shape[-1]))
    scores_gggg += by_row_ggg[..., None]
    scores_gggg += by_column_ggg[..., None, :]


def _relative(embedding_Ld: Tensor, side: int) -> Tensor:
    """Embedding of the distance of every query from every key along one axis, (side, side, d)."""
    place = torch.arange(side, device=embedding_Ld.device)
    return embedding_Ld[place[:, None] - place[None] + side - 1]


def _to_windows(x_BggD: Tensor, window: int) -> Tensor:
    """Windows of the padded grid, (B * windows, window, window, D)."""
    padding = -x_BggD.shape[1] % window
    padded = F.pad(x_BggD, (0, 0, 0, padding, 0, padding))
    split = padded.unflatten(1, (-1, window)).unflatten(3, (-1, window))
    return split.transpose(2, 3).flatten(0, 2)


def _from_windows(windows: Tensor, size: int, grid: int) -> Tensor:
    """The grid without its padding, (B, g, g, D)."""
    window = windows.shape[1]
    along = -(-grid // window)
    split = windows.unflatten(0, (size, along, along)).transpose(2, 3)
    return split.flatten(3, 4).flatten(1, 2)[:, :grid, :grid]
