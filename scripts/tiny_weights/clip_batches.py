"""What one step of the tiny CLIP's training sees: views of regions, whole scenes, captions.

Shapes: N regions, T texts, B scenes, K objects of all scenes of a batch, P patches, L tokens, H, W
image pixels, R side of the input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hybridgl.config import FusionMode, GemConfig, Profile, ReferenceQuirks
from hybridgl.gem import gem_input
from hybridgl.views import CLIP_MEAN, CLIP_STD, global_views, local_views, patch_coverage
from scripts.tiny_weights.clip_data import GEM_WORDING, Captions, ScenePool

__all__ = [
    "BACKGROUND_PATCH",
    "PATCH",
    "SIDE",
    "UNUSED",
    "Batch",
    "GemScenes",
    "MaskedRegions",
    "Phase",
    "Views",
    "global_local_crops",
    "sample_batch",
]

SIDE, PATCH = 112, 16
"""Sides of the square input and of its patches, in pixels."""

BACKGROUND_PATCH, UNUSED = -1, -100
"""Owners of a patch that no object covers, and of one that is not clearly anything."""

MASKED_MODES = {
    FusionMode.GLOBAL_TO_LOCAL: 0.6,
    FusionMode.BOTH: 0.2,
    FusionMode.LOCAL_TO_GLOBAL: 0.1,
    FusionMode.TOKEN_MASKING: 0.05,
    FusionMode.ATTENTION_MASKING: 0.05,
}
"""Shares of the fusion modes in the masked forward."""

REFERENCE_SHARE = 0.7
"""Share of the reference profile in all views; the rest is ``corrected``."""

WHOLE = math.inf
"""Upper end of the reach with which every window is the whole image."""

_OBJECTS = 4
"""Regions taken from one scene; other regions of the same image make good negatives."""

_GLOBAL_SHARE = 0.25
"""Share of global views among the single-region views that are no crops; the others are local."""

_CAPTIONS_PER_REGION = 2
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One stretch of the training."""

    steps: int
    crop_shares: tuple[float, float]
    """Share of crops among the single-region views at the start and at the end of the phase."""
    reaches: tuple[float, float] = (WHOLE, WHOLE)
    """Upper end of the reach of the other views, at the start and at the end of the phase."""
    scenes: int
    """Scenes from which single-region views are taken, four regions of each."""
    masked_scenes: int = 0
    """Scenes whose objects go through the masked forward."""
    gem_scenes: int = 0
    """Scenes that go through the attention maps' forward."""
    opposites: bool = False
    """Whether every region also gets a caption that is wrong in one attribute, and a right one."""


@dataclass(frozen=True, slots=True, eq=False)
class MaskedRegions:
    """Regions for the masked forward: both views, the patch coverage, and how to read them."""

    local_N3RR: Tensor
    global_N3RR: Tensor
    coverage_NP: Tensor
    mode: FusionMode
    quirks: ReferenceQuirks


@dataclass(frozen=True, slots=True, eq=False)
class GemScenes:
    """Whole scenes for the attention maps.

    Attributes:
        images_B3RR: from ``gem_input``.
        owners_BP: int64; which row of ``attributes_K3`` owns the patch, or ``BACKGROUND_PATCH``
            or ``UNUSED``.
        attributes_K3: of the objects of all scenes, as are the texts.
        told_T3: what the prompts tell.
        tokens_TL: the prompts.
        scene_of_T: which scene a prompt was written for.
    """

    images_B3RR: Tensor
    owners_BP: Tensor
    attributes_K3: Tensor
    told_T3: Tensor
    tokens_TL: Tensor
    scene_of_T: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One step's data; ``attributes_N3`` holds the single regions first, then the masked ones."""

    views: Views
    masked: MaskedRegions | None
    attributes_N3: Tensor
    told_T3: Tensor
    tokens_TL: Tensor
    gem: GemScenes | None


def sample_batch(
    pool: ScenePool, captions: Captions, rng: np.random.Generator, phase: Phase, done: float
) -> Batch:
    """Draw scenes, regions, views and captions.

    Args:
        pool: the training scenes.
        captions: the training phrases.
        rng: the only source of chance.
        phase: what a step of it holds.
        done: share of the phase that lies behind.
    """
    mix = ViewMix(
        crop_share=_between(phase.crop_shares, done),
        reach=_between(phase.reaches, done),
    )
    views, attributes = [], []
    for scene in rng.integers(len(pool), size=phase.scenes):
        objects = _some_objects(pool, int(scene), rng)
        views.append(region_views(pool, int(scene), objects, rng, mix))
        attributes.append(pool.attributes_NK3[scene, objects])
    masked = None
    if phase.masked_scenes:
        masked, masked_attributes = _masked_regions(pool, rng, phase.masked_scenes)
        attributes.append(masked_attributes)
    attributes_N3 = np.concatenate(attributes)
    rows = attributes_N3.tolist()
    pairs = [captions.sample(rng, row) for row in rows for _ in range(_CAPTIONS_PER_REGION)]
    if phase.opposites:
        pairs += [pair for row in rows for pair in captions.sample_opposites(rng, row)]
    told, texts = zip(*pairs, strict=True)
    return Batch(
        views=Views(
            torch.cat([v.images_N3RR for v in views]), torch.cat([v.masks_N1RR for v in views])
        ),
        masked=masked,
        attributes_N3=torch.from_numpy(attributes_N3).long(),
        told_T3=torch.tensor(told),
        tokens_TL=captions.tokens_TL(texts),
        gem=_gem_scenes(pool, captions, rng, phase.gem_scenes) if phase.gem_scenes else None,
    )


def _between(ends: tuple[float, float], done: float) -> float:
    return ends[0] if ends[0] == ends[1] else ends[0] * (1 - done) + ends[1] * done


def _some_objects(pool: ScenePool, scene: int, rng: np.random.Generator) -> list[int]:
    count = pool.num_objects(scene)
    return [int(i) for i in rng.permutation(count)[:_OBJECTS]]


def _masked_regions(
    pool: ScenePool, rng: np.random.Generator, count: int
) -> tuple[MaskedRegions, NDArray[np.int8]]:
    quirks = _any_quirks(rng)
    modes = list(MASKED_MODES)
    mode = modes[int(rng.choice(len(modes), p=list(MASKED_MODES.values())))]
    rows, attributes = [], []
    for scene in map(int, rng.integers(len(pool), size=count)):
        objects = _some_objects(pool, scene, rng)
        image_3HW, masks_NHW = pool.image_3HW(scene), pool.masks_NHW(scene, objects)
        rows.append(
            (
                local_views(image_3HW, masks_NHW, SIDE, quirks),
                global_views(image_3HW, pool.blurred_3HW(scene), masks_NHW, SIDE, quirks),
                patch_coverage(masks_NHW, SIDE // PATCH),
            )
        )
        attributes.append(pool.attributes_NK3[scene, objects])
    local, global_, coverages = (torch.cat(column) for column in zip(*rows, strict=True))
    return MaskedRegions(local, global_, coverages, mode, quirks), np.concatenate(attributes)


def _any_quirks(rng: np.random.Generator) -> ReferenceQuirks:
    reference = rng.random() < REFERENCE_SHARE
    return ReferenceQuirks.of(Profile.REFERENCE if reference else Profile.CORRECTED)


def _gem_scenes(
    pool: ScenePool, captions: Captions, rng: np.random.Generator, count: int
) -> GemScenes:
    side = SIDE * GemConfig().resolution_factor
    images: list[Tensor] = []
    owners: list[Tensor] = []
    attributes: list[list[int]] = []
    scene_of: list[int] = []
    for place, scene in enumerate(map(int, rng.integers(len(pool), size=count))):
        objects = list(range(pool.num_objects(scene)))
        coverage_K1gg = F.adaptive_avg_pool2d(
            pool.masks_NHW(scene, objects)[:, None].float(), side // PATCH
        )
        most_P, owner_P = coverage_K1gg.flatten(1).max(dim=0)
        owner_P = torch.where(most_P > 0.5, owner_P + len(attributes), UNUSED)
        owners.append(owner_P.masked_fill(most_P < 0.1, BACKGROUND_PATCH))
        images.append(gem_input(Image.fromarray(pool.images_NHW3[scene]), side))
        attributes.extend(pool.attributes_NK3[scene, objects].tolist())
        scene_of.extend([place] * len(objects))
    told, prompts = zip(
        *(captions.sample(rng, row, GEM_WORDING) for row in attributes), strict=True
    )
    return GemScenes(
        torch.stack(images),
        torch.stack(owners),
        torch.tensor(attributes),
        torch.tensor(told),
        captions.tokens_TL(prompts),
        torch.tensor(scene_of),
    )


# Views.


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """Regions as CLIP sees them.

    Attributes:
        images_N3RR: float32, normalised.
        masks_N1RR: float32 coverage of the region in the same frame.
    """

    images_N3RR: Tensor
    masks_N1RR: Tensor


def _statistics(reference: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, deviation and filling of the crops, (3, 1, 1) each."""
    mean, std = (_IMAGENET_MEAN, _IMAGENET_STD) if reference else (CLIP_MEAN, CLIP_STD)
    mean_311, std_311 = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return mean_311, std_311, mean_311 if reference else torch.zeros(3, 1, 1)


def _resize(images_NCHW: Tensor, side: int) -> Tensor:
    return F.interpolate(images_NCHW, (side, side), mode="bilinear", align_corners=False)


def _crop(
    image_3HW: Tensor, mask_HW: Tensor, side: int, *, masked: bool, reference: bool, margin: float
) -> tuple[Tensor, Tensor]:
    """Cut the region's box, stretched to a square: image (3, R, R) and mask (1, R, R)."""
    rows, cols = mask_HW.any(dim=1).nonzero(), mask_HW.any(dim=0).nonzero()
    top, bottom = int(rows[0]), int(rows[-1])
    left, right = int(cols[0]), int(cols[-1])
    pad_y, pad_x = int(margin * (bottom - top)), int(margin * (right - left))
    window = (
        slice(max(top - pad_y, 0), bottom + pad_y + (margin > 0)),
        slice(max(left - pad_x, 0), right + pad_x + (margin > 0)),
    )
    mean_311, std_311, fill_311 = _statistics(reference)
    inside_hw = mask_HW[window]
    pixels_3hw = (image_3HW[:, window[0], window[1]].float() / 255 - mean_311) / std_311
    if masked:
        pixels_3hw = torch.where(inside_hw, pixels_3hw, fill_311)
    square = _resize(torch.cat([pixels_3hw, inside_hw[None].float()])[None], side)[0]
    return square[:3], square[3:]


def global_local_crops(image_3HW: Tensor, masks_NHW: Tensor, side: int) -> Tensor:
    """Crops of the Global-Local CLIP baseline: masked, filled, cut to the box's exclusive end.

    Args:
        image_3HW: RGB, uint8, (3, H, W).
        masks_NHW: bool, (N, H, W).
        side: R, in pixels.

    Returns:
        float32, (N, 3, R, R), normalised with ImageNet's statistics.
    """
    return torch.stack(
        [
            _crop(image_3HW, mask_HW, side, masked=True, reference=True, margin=0.0)[0]
            for mask_HW in masks_NHW
        ]
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewMix:
    """Shares of the single-region views.

    Attributes:
        crop_share: probability of a crop; half of the crops show their surroundings.
        reach: local and global views are taken in a window; it lies between the region's box (0)
            and the whole image (1), at a place drawn evenly from 0 to ``reach``, 1 at most.
    """

    crop_share: float
    reach: float


def region_views(
    pool: ScenePool, scene: int, objects: Sequence[int], rng: np.random.Generator, mix: ViewMix
) -> Views:
    """Draw one view of each of some objects of a scene: a crop, a local or a global view.

    Args:
        pool: where the scene is.
        scene: index of the scene.
        objects: which of its objects.
        rng: the only source of chance.
        mix: shares of the views.
    """
    image_3HW, masks_NHW = pool.image_3HW(scene), pool.masks_NHW(scene, objects)
    blurred_3HW = pool.blurred_3HW(scene)
    images, masks = [], []
    for mask_HW in masks_NHW:
        reference = bool(rng.random() < REFERENCE_SHARE)
        if rng.random() < mix.crop_share:
            masked = bool(rng.random() < 0.5)
            margin = 0.0 if masked and rng.random() < 0.5 else float(rng.uniform(0.0, 0.25))
            image, mask = _crop(
                image_3HW, mask_HW, SIDE, masked=masked, reference=reference, margin=margin
            )
        else:
            quirks = ReferenceQuirks.of(Profile.REFERENCE if reference else Profile.CORRECTED)
            window = _window(mask_HW, min(float(rng.random()) * mix.reach, 1.0))
            seen_3hw, mask_1hw = image_3HW[window], mask_HW[None][window]
            if rng.random() < _GLOBAL_SHARE:
                image = global_views(seen_3hw, blurred_3HW[window], mask_1hw, SIDE, quirks)[0]
            else:
                image = local_views(seen_3hw, mask_1hw, SIDE, quirks)[0]
            mask = _resize(mask_1hw[None].float(), SIDE)[0]
        images.append(image)
        masks.append(mask)
    return Views(torch.stack(images), torch.stack(masks))


def _window(mask_HW: Tensor, place: float) -> tuple[slice, slice, slice]:
    """Cut the part of an image (any, h, w) between the mask's box, at 0, and all of it, at 1."""
    bounds = []
    for inside, size in zip((mask_HW.any(dim=1), mask_HW.any(dim=0)), mask_HW.shape, strict=True):
        places = inside.nonzero()
        first, end = int(places[0]), int(places[-1]) + 1
        bounds.append(slice(round((1 - place) * first), round(end + place * (size - end))))
    return slice(None), bounds[0], bounds[1]
