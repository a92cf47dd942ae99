"""Other forms of SAM's attention with relative positions, to be held against ours.

A score is the product of query and key, plus what the query has for the key's row and column. The
library adds the two as a mask; both forms here need none. Either takes its place if it proves
faster.

Shapes: B images, h heads, T = G * G tokens, d head width, C = 2 * G places.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridgl.models.sam_encoder import relative_attention

__all__ = ["FORMS", "flex", "wide_keys"]


def _by_row_and_column(
    q_BhTd: Tensor, rows_GGd: Tensor, columns_GGd: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what every query has for the rows and the columns of keys, two of (B, h, T, G)."""
    side = len(rows_GGd)
    q_BhGGd = q_BhTd.unflatten(2, (side, side))
    by_row = torch.einsum("bnijd,ikd->bnijk", q_BhGGd, rows_GGd.to(q_BhTd.dtype))
    by_column = torch.einsum("bnijd,jkd->bnijk", q_BhGGd, columns_GGd.to(q_BhTd.dtype))
    return by_row.flatten(2, 3), by_column.flatten(2, 3)


def wide_keys(
    q_BhTd: Tensor, k_BhTd: Tensor, v_BhTd: Tensor, rows_GGd: Tensor, columns_GGd: Tensor
) -> Tensor:
    """Append to every query what it has for all rows and columns, to every key which are its own.

    The products of the longer vectors are the scores, so that any kernel serves, flash attention
    too: it wants values as wide as keys, and so these get zeros. Arguments and result are those of
    ``relative_attention``.
    """
    side, width = len(rows_GGd), q_BhTd.shape[-1]
    by_row, by_column = _by_row_and_column(q_BhTd, rows_GGd, columns_GGd)
    place_T = torch.arange(side * side, device=q_BhTd.device)
    own_TC = torch.cat(
        [F.one_hot(place_T // side, side), F.one_hot(place_T % side, side)], dim=-1
    ).to(k_BhTd.dtype)
    own_BhTC = own_TC.expand(*k_BhTd.shape[:2], -1, -1)
    wide_q = torch.cat([q_BhTd * width**-0.5, by_row, by_column], dim=-1)
    wide_k = torch.cat([k_BhTd, own_BhTC], dim=-1)
    wide_v = F.pad(v_BhTd, (0, 2 * side))
    attended = F.scaled_dot_product_attention(wide_q, wide_k, wide_v, scale=1.0)
    return attended[..., :width]


@lru_cache(maxsize=1)
def _flex_attention() -> Callable[..., Any]:
    """Return FlexAttention, which torch compiles to a kernel on a GPU."""
    from torch.nn.attention.flex_attention import flex_attention  # not in torch 2.4

    function: Any = flex_attention
    return torch.compile(function) if torch.cuda.is_available() else function


def flex(
    q_BhTd: Tensor, k_BhTd: Tensor, v_BhTd: Tensor, rows_GGd: Tensor, columns_GGd: Tensor
) -> Tensor:
    """Add what a query has for a key inside the kernel, by FlexAttention.

    Arguments and result are those of ``relative_attention``.
    """
    side = len(rows_GGd)
    by_row, by_column = _by_row_and_column(q_BhTd, rows_GGd, columns_GGd)

    def with_positions(
        score: Tensor, image: Tensor, head: Tensor, query: Tensor, key: Tensor
    ) -> Tensor:
        row, column = key // side, key % side
        return score + by_row[image, head, query, row] + by_column[image, head, query, column]

    # Smaller blocks than usual: in float32 those would not fit an H100's shared memory.
    blocks = {"BLOCK_M": 32, "BLOCK_N": 32} if q_BhTd.dtype is torch.float32 else None
    attended: Tensor = _flex_attention()(
        q_BhTd.contiguous(),
        k_BhTd.contiguous(),
        v_BhTd.contiguous(),
        score_mod=with_positions,
        kernel_options=blocks,
    )
    return attended


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "additive mask": relative_attention,
    "wide keys": wide_keys,
    "FlexAttention": flex,
}
