"""Hybrid global-local mask features: CLIP's vision transformer with masks in its last blocks.

Source: HybridGL (CVPR 2025) section 3.2; quirk Q3 of docs/quirks.md. The blocks' own parts are
called; nothing of CLIP is patched.

Shapes: N masks, R side of CLIP's input, G patch-grid side, P = G * G, T = 1 + P tokens,
D width, E embedding width, h heads, d head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridgl.config import FusionConfig, FusionMode
from hybridgl.models.clip import (
    VisionTower,
    class_block,
    embed_patches,
    finish_block,
    qkv_heads,
    residual_block,
)
from hybridgl.models.transformer import linear

__all__ = ["fuse", "mask_features", "stream_tokens"]


def mask_features(
    visual: VisionTower,
    local_N3RR: Tensor,
    global_N3RR: Tensor,
    coverage_NP: Tensor,
    config: FusionConfig,
    *,
    attention_masking_skips_last_block: bool,
) -> Tensor:
    """Compute CLIP features of masks from their two views.

    Args:
        visual: CLIP's vision transformer.
        local_N3RR: local views, float32, (N, 3, R, R).
        global_N3RR: global views, float32, (N, 3, R, R).
        coverage_NP: share of the mask in every patch, float32, (N, P), 0 to 1.
        config: mode, first masked block, weight of the added stream.
        attention_masking_skips_last_block: quirk Q3.

    Returns:
        float32, (N, E), not normalised.
    """
    local_NTD = stream_tokens(visual, local_N3RR, config.masking_block)
    global_NTD = None
    if config.fusion_mode.reads_global_view:
        global_NTD = stream_tokens(visual, global_N3RR, config.masking_block)
    return fuse(
        visual,
        local_NTD,
        global_NTD,
        coverage_NP,
        config,
        attention_masking_skips_last_block=attention_masking_skips_last_block,
    )


def stream_tokens(visual: VisionTower, views_N3RR: Tensor, masking_block: int) -> Tensor:
    """Compute the tokens before the first block in which masks act: the same for all modes.

    Args:
        visual: CLIP's vision transformer.
        views_N3RR: local or global views, float32, (N, 3, R, R).
        masking_block: index of that block, from 0.

    Returns:
        float32, (N, T, D).
    """
    tokens_NTD = embed_patches(visual, views_N3RR)
    for block in list(visual.transformer.resblocks)[:masking_block]:
        tokens_NTD = residual_block(block, tokens_NTD)
    return tokens_NTD


def fuse(
    visual: VisionTower,
    local_NTD: Tensor,
    global_NTD: Tensor | None,
    coverage_NP: Tensor,
    config: FusionConfig,
    *,
    attention_masking_skips_last_block: bool,
) -> Tensor:
    """Run the blocks in which masks act, and what follows.

    Args:
        visual: CLIP's vision transformer.
        local_NTD: ``stream_tokens`` of the local views.
        global_NTD: those of the global views; None where the mode does not read them.
        coverage_NP: share of the mask in every patch, float32, (N, P), 0 to 1.
        config: mode, first masked block, weight of the added stream.
        attention_masking_skips_last_block: quirk Q3.

    Returns:
        float32, (N, E), not normalised.
    """
    blocks = list(visual.transformer.resblocks)
    if config.fusion_mode is FusionMode.ATTENTION_MASKING and attention_masking_skips_last_block:
        blocks = blocks[:-1]
    masks = _MaskedBlocks(blocks[config.masking_block :], coverage_NP, config.stream_weight)

    def project(class_ND: Tensor) -> Tensor:
        return linear(visual.ln_post(class_ND), visual.proj.T)

    if global_NTD is None:
        return project(_LOCAL_MODES[config.fusion_mode](masks, local_NTD))
    if config.fusion_mode is FusionMode.BOTH:
        from_local_ND, from_global_ND = _both(masks, local_NTD, global_NTD)
        return project(from_local_ND) + project(from_global_ND)
    return project(_HYBRID_MODES[config.fusion_mode](masks, local_NTD, global_NTD))


class _MaskedBlocks:
    """The masked blocks, and both ways in which a mask acts.

    It weighs the patch tokens by its coverage, or the class token attends to its patches alone.

    Of the last block, only the class token is ever read: ``last`` computes no other.
    """

    def __init__(self, blocks: list[Any], coverage_NP: Tensor, stream_weight: float) -> None:
        *self.inner, self._last = blocks
        self.stream_weight = stream_weight
        self._coverage_NT1 = F.pad(coverage_NP, (1, 0), value=1.0)[..., None]
        self._visible_N11T = F.pad(coverage_NP > 0, (1, 0), value=True)[:, None, None]

    def covered(self, tokens_NTD: Tensor) -> Tensor:
        """Multiply patch tokens by their share of the mask; leave the class token."""
        return tokens_NTD * self._coverage_NT1

    def step(self, block: Any, tokens_NTD: Tensor, *, class_attends_mask: bool = False) -> Tensor:
        """Run a residual block; the class token may attend to the patches of its mask only."""
        if not class_attends_mask:
            return residual_block(block, tokens_NTD)
        q_NhTd, k_NhTd, v_NhTd = qkv_heads(block, block.ln_1(tokens_NTD))
        attended_NhTd = F.scaled_dot_product_attention(q_NhTd, k_NhTd, v_NhTd)
        class_Nh1d = F.scaled_dot_product_attention(
            q_NhTd[:, :, :1], k_NhTd, v_NhTd, self._visible_N11T
        )
        # Not written in place: attention keeps its result for the gradient, when CLIP is trained.
        attended_NhTd = torch.cat([class_Nh1d, attended_NhTd[:, :, 1:]], dim=2)
        return finish_block(block, tokens_NTD, attended_NhTd)

    def last(self, tokens_NTD: Tensor, *, class_attends_mask: bool = False) -> Tensor:
        """Return the class token after the last block, (N, D)."""
        return class_block(
            self._last, tokens_NTD, self._visible_N11T if class_attends_mask else None
        )


def _crop(masks: _MaskedBlocks, l_NTD: Tensor) -> Tensor:
    for block in masks.inner:
        l_NTD = masks.step(block, l_NTD)
    return masks.last(l_NTD)


def _token_masking(masks: _MaskedBlocks, l_NTD: Tensor) -> Tensor:
    for block in masks.inner:
        l_NTD = masks.step(block, masks.covered(l_NTD))
    return masks.last(masks.covered(l_NTD))


def _attention_masking(masks: _MaskedBlocks, l_NTD: Tensor) -> Tensor:
    for block in masks.inner:
        l_NTD = masks.step(block, l_NTD, class_attends_mask=True)
    return masks.last(l_NTD, class_attends_mask=True)


def _local_to_global(masks: _MaskedBlocks, l_NTD: Tensor, g_NTD: Tensor) -> Tensor:
    weight = masks.stream_weight
    for block in masks.inner:
        g_NTD = masks.step(block, l_NTD + weight * g_NTD, class_attends_mask=True)
        l_NTD = masks.step(block, l_NTD)
    return masks.last(l_NTD + weight * g_NTD, class_attends_mask=True)


def _global_to_local(masks: _MaskedBlocks, l_NTD: Tensor, g_NTD: Tensor) -> Tensor:
    weight = masks.stream_weight
    for block in masks.inner:
        l_NTD = masks.step(block, weight * masks.covered(g_NTD) + l_NTD)
        g_NTD = masks.step(block, g_NTD, class_attends_mask=True)
    return masks.last(weight * masks.covered(g_NTD) + l_NTD)


def _both(masks: _MaskedBlocks, l_NTD: Tensor, g_NTD: Tensor) -> tuple[Tensor, Tensor]:
    weight = masks.stream_weight
    hybrid_l_NTD, hybrid_g_NTD = l_NTD, g_NTD
    for block in masks.inner:
        hybrid_l_NTD = masks.step(block, hybrid_l_NTD + weight * masks.covered(g_NTD))
        hybrid_g_NTD = masks.step(block, l_NTD + weight * hybrid_g_NTD, class_attends_mask=True)
        l_NTD, g_NTD = masks.step(block, l_NTD), masks.step(block, g_NTD, class_attends_mask=True)
    return (
        masks.last(hybrid_l_NTD + weight * masks.covered(g_NTD)),
        masks.last(l_NTD + weight * hybrid_g_NTD, class_attends_mask=True),
    )


_LOCAL_MODES: dict[FusionMode, Callable[[_MaskedBlocks, Tensor], Tensor]] = {
    FusionMode.CROP: _crop,
    FusionMode.TOKEN_MASKING: _token_masking,
    FusionMode.ATTENTION_MASKING: _attention_masking,
}

_HYBRID_MODES: dict[FusionMode, Callable[[_MaskedBlocks, Tensor, Tensor], Tensor]] = {
    FusionMode.LOCAL_TO_GLOBAL: _local_to_global,
    FusionMode.GLOBAL_TO_LOCAL: _global_to_local,
}
