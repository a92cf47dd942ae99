"""Data and weights for a whole run: images, expressions and masks made from a seed.

The dataset has RefCOCO's layout and proportions; the weights have the files' formats and real size,
but random values. An image shows coloured ellipses on a noisy ground, and they are its masks: what
SAM proposes with random weights means nothing.

Example:
    setting = Setting(
        sizes="real", sam_type="vit_b", images=3, masks=32, device="cpu", folder=folder
    )
    write_files(setting)
    drawn = setting.drawn(setting.split())

Shapes: N masks, H x W image pixels.
"""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image
from segment_anything import sam_model_registry

from hybridgl.config import PROPOSALS_REFCOCO, ProposalConfig
from hybridgl.models import select_device
from hybridgl.masks import Proposals
from hybridgl.weights.registry import WeightSet, weight_set
from refer.dataset import ReferSplit
from refer.refer import load_refer
from refer.shapes.scene import COLORS

__all__ = ["HW", "Setting", "drawn_masks", "write_dataset", "write_files"]

HW = (480, 640)
"""Size of the images, in pixels: RefCOCO's usual one."""

REFS_PER_IMAGE = 2.54
SENTENCES_PER_REF = 2.84
"""RefCOCO val: 3,811 refs and 10,834 sentences of 1,500 images."""

OUTLINE_POINTS = 24
"""Of an annotation: as many as RefCOCO's have on average."""

LOGIT_SCALE = 100.0
"""OpenAI's factor on cosines."""

PHRASES = (
    "the {own} circle",
    "{own} disc on the left",
    "the {own} circle right of the {other} circle",
    "the {own} circle left of the {other} disc",
    "the bigger {own} circle",
    "the {own} thing above the {other} circle",
    "{own} circle in the middle",
    "the smaller {own} disc below the {other} thing",
    "the {own} circle inside the {other} circle",
    "the {own} disc at the top",
)
"""Attributes, positions and relations, in words of the bundled parser's world."""


@dataclass(frozen=True, slots=True)
class Ellipses:
    """What an image shows, one behind the other.

    Attributes:
        centres_N2: x and y in pixels.
        radii_N2: along x and y, in pixels.
        colors: a name of ``COLORS`` for each.
    """

    centres_N2: NDArray[np.float64]
    radii_N2: NDArray[np.float64]
    colors: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is run.

    Attributes:
        sizes: of the models: "real", or "tiny" for the bundled ones.
        sam_type: of the real SAM: vit_h, vit_l or vit_b.
        images: of the dataset.
        masks: of every image.
        device: where the models run.
        folder: holds data, weights, stores and outputs.
    """

    sizes: str
    sam_type: str
    images: int
    masks: int
    device: str
    folder: Path

    @property
    def weights(self) -> WeightSet:
        """Files of the models."""
        bundled = weight_set("tiny")
        if self.sizes == "tiny":
            return bundled
        # The bundled parser: no other can be had everywhere.
        return weight_set(
            "paper",
            clip_weights=self.folder / "random-ViT-B-16.pt",
            sam_type=self.sam_type,
            sam_checkpoint=self.folder / f"random-sam-{self.sam_type}.pth",
            spacy_model=bundled.spacy_model,
        )

    @property
    def proposals(self) -> ProposalConfig:
        """Settings of SAM's generator: with thresholds of 0 it leaves its filters out.

        The bundled SAM, which is for trying the benchmark, gets fewer clicks.
        """
        if self.sizes == "tiny":
            return replace(PROPOSALS_REFCOCO, points_per_side=4)
        return replace(PROPOSALS_REFCOCO, pred_iou_thresh=0.0, stability_score_thresh=0.0)

    @property
    def torch_device(self) -> torch.device:
        """The device."""
        return select_device(self.device)

    def split(self) -> ReferSplit:
        """The data."""
        return load_refer(self.folder / "data", "refcoco", "val", "unc", check_counts=False)

    def drawn(self, split: ReferSplit) -> dict[int, Proposals]:
        """The masks of every image."""
        return {image_id: drawn_masks(image_id, self.masks) for image_id in split.images}


def write_files(setting: Setting) -> None:
    """Data and weights of a setting, to its folder."""
    write_dataset(setting.folder / "data", setting.images, setting.masks)
    if setting.sizes == "real":
        _write_weights(setting.weights)


def ellipses_of(image_id: int, count: int) -> Ellipses:
    """The ellipses of an image, the same at every call."""
    rng = np.random.default_rng((0, image_id))
    return Ellipses(
        rng.uniform(0.1, 0.9, (count, 2)) * HW[::-1],
        rng.uniform(20, 90, (count, 2)),
        tuple(rng.choice(list(COLORS), count).tolist()),
    )


def drawn_masks(image_id: int, count: int) -> Proposals:
    """The ellipses of an image as proposals, in their order."""
    shown = ellipses_of(image_id, count)
    y, x = np.mgrid[: HW[0], : HW[1]]
    masks, boxes = [], []
    for (cx, cy), (rx, ry) in zip(shown.centres_N2, shown.radii_N2, strict=True):
        mask_HW = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1
        columns, rows = np.flatnonzero(mask_HW.any(axis=0)), np.flatnonzero(mask_HW.any(axis=1))
        masks.append(mask_HW)
        boxes.append([columns[0], rows[0], np.ptp(columns), np.ptp(rows)])
    ones_N = np.ones(count, dtype=np.float32)
    return Proposals(np.stack(masks), np.array(boxes, dtype=np.int64), ones_N, ones_N)


def write_dataset(root: Path, num_images: int, num_masks: int) -> None:
    """RefCOCO by unc with a split val of some images: annotations and JPEG files.

    Args:
        root: a data root, made if need be.
        num_images: of val.
        num_masks: ellipses of every image.
    """
    folder, image_folder = root / "refcoco", root / "images/mscoco/images/train2014"
    folder.mkdir(parents=True)
    image_folder.mkdir(parents=True)
    images, annotations = [], []
    for image_id in range(num_images):
        shown = ellipses_of(image_id, num_masks)
        name = f"COCO_train2014_{image_id:012d}.jpg"
        Image.fromarray(_image(image_id, num_masks)).save(image_folder / name, quality=90)
        images.append({"id": image_id, "file_name": name, "height": HW[0], "width": HW[1]})
        annotations += [
            _annotation(image_id, index, num_masks, shown) for index in range(num_masks)
        ]
    instances = {"images": images, "categories": [], "annotations": annotations}
    (folder / "instances.json").write_text(json.dumps(instances))
    refs = _refs(num_images, num_masks)
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))


def _write_weights(files: WeightSet) -> None:
    """CLIP ViT-B/16 and a SAM, with random weights."""
    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-B-16-quickgelu").state_dict()
    clip["logit_scale"].fill_(math.log(LOGIT_SCALE))
    torch.save(clip, files.clip_weights)
    sam = sam_model_registry[files.sam_type]().state_dict()
    for name, value in sam.items():
        if "rel_pos" in name or name.endswith("pos_embed"):
            value.normal_(std=0.02)  # zeros before training
        elif "output_upscaling" in name and value.dim() == 4:
            # The four places that come of one are alike: outlines about as long as real ones, where
            # noise would make their run lengths many times as slow.
            value.copy_(value.mean(dim=(2, 3), keepdim=True).expand_as(value))
    torch.save(sam, files.sam_checkpoint)


def _image(image_id: int, count: int) -> NDArray[np.uint8]:
    """The ellipses on a ground of smooth and of grainy noise, uint8, (H, W, 3)."""
    rng = np.random.default_rng((1, image_id))
    coarse = Image.fromarray(rng.integers(60, 196, (15, 20, 3), dtype=np.uint8))
    pixels_HW3 = np.array(coarse.resize(HW[::-1], Image.Resampling.BICUBIC)).astype(np.float64)
    shown = ellipses_of(image_id, count)
    for mask_HW, color in zip(drawn_masks(image_id, count).masks_NHW, shown.colors, strict=True):
        pixels_HW3[mask_HW] = COLORS[color]
    pixels_HW3 += rng.normal(0, 8, pixels_HW3.shape)
    return pixels_HW3.clip(0, 255).astype(np.uint8)


def _annotation(image_id: int, index: int, num_masks: int, shown: Ellipses) -> dict[str, object]:
    angles = np.linspace(0, 2 * np.pi, OUTLINE_POINTS, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    outline = (shown.centres_N2[index] + shown.radii_N2[index] * circle).clip(0, HW[::-1])
    return {
        "id": image_id * num_masks + index,
        "image_id": image_id,
        "category_id": 1,
        "segmentation": [outline.round(2).ravel().tolist()],
        "bbox": [*outline.min(axis=0).tolist(), *np.ptp(outline, axis=0).tolist()],
        "area": 1000.5,
        "iscrowd": 0,
    }


def _refs(num_images: int, num_masks: int) -> list[dict[str, object]]:
    """Refs of all images in turn, so that those of one image do not follow each other."""
    num_refs = round(REFS_PER_IMAGE * num_images)
    num_sentences = round(SENTENCES_PER_REF * num_refs)
    bounds = np.arange(num_refs + 1) * num_sentences // num_refs
    refs: list[dict[str, object]] = []
    for ref_id in range(num_refs):
        image_id, target = ref_id % num_images, ref_id // num_images % num_masks
        colors = ellipses_of(image_id, num_masks).colors
        ids = range(int(bounds[ref_id]), int(bounds[ref_id + 1]))
        raws = [
            PHRASES[sent_id % len(PHRASES)].format(
                own=colors[target], other=colors[(target + 1 + sent_id) % num_masks]
            )
            for sent_id in ids
        ]
        refs.append(
            {
                "ref_id": ref_id,
                "ann_id": image_id * num_masks + target,
                "image_id": image_id,
                "category_id": 1,
                "split": "val",
                "file_name": f"COCO_train2014_{image_id:012d}_{ref_id}.jpg",
                "sent_ids": list(ids),
                "sentences": [
                    {"sent_id": sent_id, "raw": raw, "sent": raw, "tokens": raw.split()}
                    for sent_id, raw in zip(ids, raws, strict=True)
                ],
            }
        )
    return refs
