"""Measure the tiny CLIP on scenes that no training saw, on true masks.

Every way in which the method looks at an object is asked the same queries: phrases of attributes
that single out one object of a scene. The prediction is the object whose feature is nearest the
text's.

Shapes: N objects of a scene, S queries, T texts, P patches, E embedding width, H, W image pixels,
R side of the input.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from hybridgl.config import FusionConfig, FusionMode, GemConfig, Profile, ReferenceQuirks
from hybridgl.fusion import mask_features
from hybridgl.gem import attention_map, gem_input, patch_features, patch_similarity
from hybridgl.models.clip import ClipEncoder
from hybridgl.views import blur_background, global_views, local_views, patch_coverage
from refer.shapes.grammar import expressions_for
from refer.shapes.scene import Scene, sample_scene
from scripts.tiny_weights.clip_batches import global_local_crops

__all__ = ["evaluate"]


def _query_scenes(seed: int, count: int) -> Iterator[tuple[Scene, list[tuple[int, str]]]]:
    """Held-out scenes, each with phrases of attributes that single out one of its objects."""
    for index in range(count):
        scene = sample_scene(np.random.default_rng(np.random.SeedSequence((seed, 1, index))))
        rng = np.random.default_rng(np.random.SeedSequence((seed, 103, index)))
        queries = [
            (target, expression.text)
            for target in range(len(scene.objects))
            for expression in expressions_for(scene, target, rng, 4)
            if expression.kind == "attributes"
        ]
        if queries:
            yield scene, queries


def _features(encoder: ClipEncoder, scene: Scene, profile: Profile) -> Iterator[tuple[str, Tensor]]:
    """Name and features (N, E) of every way to look at the objects of a scene."""
    quirks = ReferenceQuirks.of(profile)
    image_3HW = torch.from_numpy(scene.image_HW3.transpose(2, 0, 1).copy())
    blurred_3HW = torch.from_numpy(blur_background(scene.image_HW3).transpose(2, 0, 1).copy())
    masks_NHW = torch.from_numpy(np.stack([scene.mask_HW(i) for i in range(len(scene.objects))]))
    views = (
        local_views(image_3HW, masks_NHW, encoder.image_size, quirks),
        global_views(image_3HW, blurred_3HW, masks_NHW, encoder.image_size, quirks),
    )
    for mode in FusionMode:
        yield (
            "local view" if mode is FusionMode.CROP else mode.value,
            mask_features(
                encoder.visual,
                *views,
                patch_coverage(masks_NHW, encoder.grid),
                FusionConfig(fusion_mode=mode),
                attention_masking_skips_last_block=quirks.attention_masking_skips_last_block,
            ),
        )
    crops = global_local_crops(image_3HW, masks_NHW, encoder.image_size)
    plain = FusionConfig(fusion_mode=FusionMode.CROP)
    yield (
        "crop",
        mask_features(
            encoder.visual,
            crops,
            crops,
            patch_coverage(masks_NHW, encoder.grid),
            plain,
            attention_masking_skips_last_block=False,
        ),
    )


def _gem_peaks(encoder: ClipEncoder, scene: Scene, queries: Sequence[tuple[int, str]]) -> int:
    """Count the attention maps that peak inside the right object."""
    config = GemConfig()
    side = encoder.image_size * config.resolution_factor
    image_13RR = gem_input(Image.fromarray(scene.image_HW3), side)[None]
    patches_PE = patch_features(encoder.visual, image_13RR, config)[0]
    prompts = [config.prompt.format(text.removesuffix(" .")) for _, text in queries]
    sim_Sgg = patch_similarity(patches_PE, encoder.encode_texts(prompts))
    maps_SHW = attention_map(sim_Sgg, side, scene.labels_HW.shape)
    peaks = maps_SHW.flatten(1).argmax(dim=1).tolist()
    labels = scene.labels_HW.ravel()
    return sum(labels[peak] == target + 1 for peak, (target, _) in zip(peaks, queries, strict=True))


@torch.inference_mode()
def evaluate(weights: Path, seed: int, num_scenes: int, profile: Profile) -> dict[str, float]:
    """Share of right predictions on true masks, by the way of looking at the object.

    Args:
        weights: the exported file.
        seed: of the scenes and phrases.
        num_scenes: held-out scenes to use.
        profile: which reading of the method.

    Returns:
        Scores between 0 and 1; "queries" is their number, "chance" the mean of one over the
        number of objects, "gem area" the mean share of the image that the object covers.
    """
    encoder = ClipEncoder.from_file(weights)
    sums: dict[str, float] = defaultdict(float)
    for scene, queries in tqdm(
        _query_scenes(seed, num_scenes), total=num_scenes, desc=profile.value, mininterval=5
    ):
        texts_TE = F.normalize(encoder.encode_texts([text for _, text in queries]), dim=-1)
        targets = torch.tensor([target for target, _ in queries])
        for name, features_NE in _features(encoder, scene, profile):
            predicted = (texts_TE @ F.normalize(features_NE, dim=-1).T).argmax(dim=1)
            sums[name] += int((predicted == targets).sum())
        sums["gem peak"] += _gem_peaks(encoder, scene, queries)
        sums["gem area"] += sum(float(scene.mask_HW(target).mean()) for target, _ in queries)
        sums["chance"] += len(queries) / len(scene.objects)
        sums["queries"] += len(queries)
    count = sums.pop("queries")
    return {"queries": count, **{name: value / count for name, value in sums.items()}}
