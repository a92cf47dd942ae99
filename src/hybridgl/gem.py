"""GEM attention maps: where in the image a phrase is, from CLIP's own weights.

Self-self attention: in the last blocks a second stream gathers values where queries resemble
queries, keys resemble keys and values resemble values, so that patch tokens keep what they show.
The image pass does not depend on the phrase and runs once per image.

Source: "Grounding Everything" (CVPR 2024, arXiv 2312.00878) section 3, with the settings of
HybridGL (CVPR 2025) section 3.3.
Shapes: B images, R side of the enlarged input, P = g * g patches of it, T = 1 + P tokens,
D width, E embedding width, h heads, d head width, S phrases, H x W image pixels.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from hybridgl.config import GemConfig
from hybridgl.images import resized
from hybridgl.models.clip import (
    VisionTower,
    embed_patches,
    finish_block,
    qkv_heads,
    residual_block,
)
from hybridgl.models.transformer import linear
from hybridgl.views import CLIP_MEAN, CLIP_STD

__all__ = ["attention_map", "gem_input", "min_max", "patch_features", "patch_similarity"]

_LEAST_CONTRAST = 1e-6
"""Spread below which a map of cosines, or of values from 0 to 1, holds rounding errors alone."""


def gem_input(image: Image.Image, side: int) -> Tensor:
    """Resize and normalise the whole frame for GEM.

    Args:
        image: RGB.
        side: R, in pixels: 448 for ViT-B/16.

    Returns:
        float32, (3, R, R), normalised with CLIP's statistics.
    """
    resized_RR3 = np.array(resized(image, (side, side), Image.Resampling.BICUBIC))
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    resized_3RR = torch.from_numpy(resized_RR3).permute(2, 0, 1)
    return (resized_3RR.float() / 255 - mean[:, None, None]) / std[:, None, None]


def patch_features(visual: VisionTower, images_B3RR: Tensor, config: GemConfig) -> Tensor:
    """Compute patch features of the self-self attention stream.

    Args:
        visual: CLIP's vision transformer.
        images_B3RR: from ``gem_input``, float32, (B, 3, R, R).
        config: depth and iterations.

    Returns:
        float32, (B, P, E), of length 1.
    """
    x_BTD = embed_patches(visual, images_B3RR)
    blocks = list(visual.transformer.resblocks)
    first = len(blocks) - (config.depth - 1)
    for block in blocks[:first]:
        x_BTD = residual_block(block, x_BTD)
    y_BTD = x_BTD
    for block in blocks[first:]:
        normed_BTD = block.ln_1(x_BTD)
        q_BhTd, k_BhTd, v_BhTd = qkv_heads(block, normed_BTD)
        tau_B111 = normed_BTD.norm(dim=-1).mean(dim=1)[:, None, None, None]
        tau_B111 = tau_B111 * q_BhTd.shape[-1] ** -0.5
        gathered = [
            _self_self_attention(z_BhTd, v_BhTd, tau_B111, config.iterations)
            for z_BhTd in (v_BhTd, k_BhTd, q_BhTd)
        ]
        mean_BTD = torch.stack(gathered).mean(dim=0).transpose(1, 2).flatten(2)
        out_proj = block.attn.out_proj
        y_BTD = y_BTD + linear(mean_BTD, out_proj.weight, out_proj.bias)
        if block is not blocks[-1]:
            attended_BhTd = F.scaled_dot_product_attention(q_BhTd, k_BhTd, v_BhTd)
            x_BTD = finish_block(block, x_BTD, attended_BhTd)
    return F.normalize(linear(visual.ln_post(y_BTD[:, 1:]), visual.proj.T), dim=-1)


def patch_similarity(patches_PE: Tensor, phrases_SE: Tensor) -> Tensor:
    """Compute the cosine of every patch with every phrase: all that a map holds.

    Args:
        patches_PE: one image's ``patch_features``, (P, E), of length 1.
        phrases_SE: text features of the prompted phrases, (S, E), any length.

    Returns:
        float32, (S, g, g), -1 to 1.
    """
    side = round(patches_PE.shape[0] ** 0.5)
    cosines_PS = linear(patches_PE, F.normalize(phrases_SE, dim=-1))
    return cosines_PS.T.unflatten(-1, (side, side))


def attention_map(sim_Sgg: Tensor, side: int, hw: tuple[int, int]) -> Tensor:
    """Enlarge patch similarities to attention maps at the size of the image.

    Args:
        sim_Sgg: from ``patch_similarity``, (S, g, g).
        side: R, in pixels.
        hw: height and width of the image.

    Returns:
        float32, (S, H, W), 0 to 1: enlarged to the input, scaled to its range, resized. A map
        without contrast is 0 everywhere.
    """
    maps_S1RR = F.interpolate(sim_Sgg[:, None], (side, side), mode="bilinear", align_corners=False)
    scaled_S1RR = min_max(maps_S1RR)
    return F.interpolate(
        scaled_S1RR, hw, mode="bilinear", align_corners=False, antialias=True
    ).squeeze(1)


def min_max(maps: Tensor, without_contrast: float = 0.0) -> Tensor:
    """Scale the last two axes to 0 to 1.

    Args:
        maps: (..., H, W).
        without_contrast: what a map without contrast becomes everywhere.
    """
    low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    spread = high - low
    scaled = (maps - low) / spread
    return torch.where(spread > _LEAST_CONTRAST, scaled, without_contrast)


def _self_self_attention(
    z_BhTd: Tensor, v_BhTd: Tensor, tau_B111: Tensor, iterations: int
) -> Tensor:
    """Gather values by the similarity of ``z`` with itself, sharpened ``iterations`` times."""
    for _ in range(iterations):
        z_BhTd = F.normalize(z_BhTd, dim=-1)
        z_BhTd = F.scaled_dot_product_attention(tau_B111 * z_BhTd, z_BhTd, z_BhTd, scale=1.0)
    z_BhTd = F.normalize(z_BhTd, dim=-1)
    return F.scaled_dot_product_attention(tau_B111 * z_BhTd, z_BhTd, v_BhTd, scale=1.0)
