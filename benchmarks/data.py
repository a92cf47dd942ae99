"""Data and weights for benchmarks, made from a seed: images, expressions, masks, annotation files.

Datasets have the layout and proportions of the published ones, weights the formats and sizes of the
published files, but random values. An image shows coloured ellipses on a noisy ground, and they are
its masks: what SAM proposes with random weights means nothing.

Example:
    workload = Workload(
        sizes="real", sam_type="vit_b", images=3, masks=32, device="cpu", folder=folder
    )
    workload.write()
    proposals = drawn_masks(0, workload.masks)

Shapes: N masks, H x W image pixels.
"""

from __future__ import annotations

import itertools
import json
import math
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image
from segment_anything import sam_model_registry

from hybridgl.devices import select_device
from hybridgl.masks import Proposals, encode_rle, mask_boxes_xywh
from hybridgl.weights.registry import WeightSet, weight_set
from refer.shapes.scene import COLORS
from refer.splits import SPLITS, ExpectedCounts

__all__ = [
    "HW",
    "REFS_PER_IMAGE",
    "SENTENCES",
    "SENTENCES_PER_REF",
    "Workload",
    "drawn_masks",
    "outlines",
    "random_clip_state",
    "random_sam_state",
    "write_phrasecut",
    "write_refcoco",
]

HW = (480, 640)
"""Size of the images, in pixels: RefCOCO's usual one."""

REFS_PER_IMAGE = 2.54
SENTENCES_PER_REF = 2.84
"""RefCOCO val: 3,811 refs and 10,834 sentences of 1,500 images."""

NUM_ANNOTATIONS = 196_771
"""Of RefCOCO's instances.json."""

MEAN_POINTS = 24
"""Of an outline: instances.json gets about 100 MB by it, as the published one has."""

MEAN_INSTANCES = 1.6
"""Objects of a PhraseCut phrase."""

WORDS = ("the", "man", "on", "left", "in", "a", "red", "shirt", "holding", "an", "umbrella")

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

_COLOR_PAIRS = tuple(itertools.product(COLORS, repeat=2))

SENTENCES = tuple(
    dict.fromkeys(
        phrase.format(own=own, other=other) for phrase in PHRASES for own, other in _COLOR_PAIRS
    )
)
"""All that a ``Workload`` can say."""

_LOGIT_SCALE = 100.0
"""OpenAI's factor on cosines."""

_Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What both programs run on.

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
    def torch_device(self) -> torch.device:
        """The device."""
        return select_device(self.device)

    @property
    def flags(self) -> list[str]:
        """Flags of the programs that name data and models."""
        files = self.weights
        flags = {
            "--dataset": "refcoco",
            "--split": "val",
            "--refer_data_root": self.folder / "data",
            "--device": self.device,
            "--weights": "paper",
            "--clip_weights": files.clip_weights,
            "--sam_type": files.sam_type,
            "--sam_checkpoint": files.sam_checkpoint,
            "--spacy_model": files.spacy_model,
        }
        return [str(part) for pair in flags.items() for part in pair]

    @property
    def proposal_file(self) -> Path:
        """The drawn masks of all images, as COCO results."""
        return self.folder / "proposals.json"

    def write(self) -> None:
        """Write data and weights to the folder."""
        refs = round(REFS_PER_IMAGE * self.images)
        counts = {"val": ExpectedCounts(refs, self.images, round(SENTENCES_PER_REF * refs))}
        shown = [_Ellipses.of(image_id, self.masks) for image_id in range(self.images)]

        def sentence(image_id: int, target: int, sent_id: int) -> str:
            colors = shown[image_id].colors
            other = colors[(target + 1 + sent_id) % self.masks]
            return PHRASES[sent_id % len(PHRASES)].format(own=colors[target], other=other)

        points = (one.outline(index) for index in range(self.masks) for one in shown)
        _write_refer(self.folder / "data", counts, points, sentence)
        image_folder = self.folder / "data/images/mscoco/images/train2014"
        image_folder.mkdir(parents=True)
        results = []
        for image_id in range(self.images):
            pixels_HW3 = _image(image_id, self.masks)
            Image.fromarray(pixels_HW3).save(image_folder / _file_name(image_id), quality=90)
            for counts_of_runs in encode_rle(drawn_masks(image_id, self.masks).masks_NHW):
                rle = {"size": list(HW), "counts": counts_of_runs}
                results.append({"image_id": image_id, "segmentation": rle, "score": 1.0})
        self.proposal_file.write_text(json.dumps(results))
        if self.sizes == "real":
            torch.save(random_clip_state(), self.weights.clip_weights)
            torch.save(random_sam_state(self.sam_type), self.weights.sam_checkpoint)


@dataclass(frozen=True, slots=True)
class _Ellipses:
    """What an image shows, one behind the other.

    Attributes:
        centres_N2: x and y in pixels.
        radii_N2: along x and y, in pixels.
        colors: a name of ``COLORS`` for each.
    """

    centres_N2: _Points
    radii_N2: _Points
    colors: tuple[str, ...]

    @classmethod
    def of(cls, image_id: int, count: int) -> _Ellipses:
        """Return the ellipses of an image, the same at every call."""
        rng = np.random.default_rng((0, image_id))
        return cls(
            rng.uniform(0.1, 0.9, (count, 2)) * HW[::-1],
            rng.uniform(20, 90, (count, 2)),
            tuple(rng.choice(list(COLORS), count).tolist()),
        )

    def outline(self, index: int) -> _Points:
        """Return the outline of one, (points, 2), within the image."""
        points = self.centres_N2[index] + self.radii_N2[index] * _circle(MEAN_POINTS)
        return points.clip(0, HW[::-1]).round(2)


@lru_cache(maxsize=64)
def drawn_masks(image_id: int, count: int) -> Proposals:
    """Return the ellipses of an image as proposals, in their order."""
    shown = _Ellipses.of(image_id, count)
    y, x = np.mgrid[: HW[0], : HW[1]]
    masks_NHW = np.stack(
        [
            ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1
            for (cx, cy), (rx, ry) in zip(shown.centres_N2, shown.radii_N2, strict=True)
        ]
    )
    ones_N = np.ones(count, dtype=np.float32)
    return Proposals(masks_NHW, mask_boxes_xywh(masks_NHW), ones_N, ones_N)


def outlines(rng: np.random.Generator, count: int) -> Iterator[_Points]:
    """Draw stars around random centres: (points, 2), x and y in pixels."""
    spread = rng.lognormal(np.log(MEAN_POINTS) - 0.7**2 / 2, 0.7, count)
    centres = rng.uniform(0.2, 0.8, (count, 2)) * HW[::-1]
    for num_points, centre in zip(np.clip(spread, 3, 400).astype(int), centres, strict=True):
        radii = rng.uniform(20, 90, (num_points, 1))
        yield (centre + radii * _circle(num_points)).round(2)


def write_refcoco(root: Path) -> None:
    """Write RefCOCO by unc: in every split the published numbers of refs, images and sentences."""
    rng = np.random.default_rng(0)
    counts = {split: count for split, count in SPLITS["refcoco"]["unc"].items() if count}
    points = outlines(np.random.default_rng(1), NUM_ANNOTATIONS)
    _write_refer(root, counts, points, lambda *_: _phrase(rng))


def write_phrasecut(split: str, root: Path) -> None:
    """Write one split of PhraseCut, with the published numbers of phrases and images."""
    rng = np.random.default_rng(0)
    count = SPLITS["phrasecut"]["-"][split]
    assert count is not None
    shares = 1 + rng.poisson(MEAN_INSTANCES - 1, count.refs)
    points = outlines(rng, int(shares.sum()))
    tasks = (
        {
            "task_id": f"{place % count.images}__{place}",
            "image_id": place % count.images,
            "ann_ids": list(range(share)),
            "instance_boxes": [[10.5, 20.5, 30.5, 40.5]] * share,
            "phrase": _phrase(rng),
            "phrase_structure": {"name": "man", "attributes": ["red"], "type": "attribute"},
            "Polygons": [[one.tolist()] for one in itertools.islice(points, share)],
        }
        for place, share in enumerate(shares.tolist())
    )
    sizes = (
        {"image_id": i, "height": HW[0], "width": HW[1], "split": split}
        for i in range(count.images)
    )
    folder = root / "phrasecut"
    folder.mkdir(parents=True)
    _write_list(folder / f"refer_{split}.json", tasks)
    _write_list(folder / "image_data_split.json", sizes)


def random_clip_state(architecture: str = "ViT-B-16") -> dict[str, Any]:
    """Return the state dict of a CLIP as OpenAI built it, with random weights."""
    torch.manual_seed(0)
    state: dict[str, Any] = open_clip.create_model(f"{architecture}-quickgelu").state_dict()
    state["logit_scale"].fill_(math.log(_LOGIT_SCALE))
    return state


def random_sam_state(sam_type: str) -> dict[str, Any]:
    """Return the state dict of a SAM with random weights, all of whose masks pass its filters."""
    torch.manual_seed(0)
    state: dict[str, Any] = sam_model_registry[sam_type]().state_dict()
    for name, value in state.items():
        if "rel_pos" in name or name.endswith("pos_embed"):
            value.normal_(std=0.02)  # zeros before training
        elif "output_upscaling" in name and value.dim() == 4:
            # The four places that come of one are alike: outlines about as long as real ones, where
            # noise would make their run lengths many times as slow.
            value.copy_(value.mean(dim=(2, 3), keepdim=True).expand_as(value))
        elif name.endswith("iou_prediction_head.layers.2.bias"):
            value += 1  # the predicted IoU, about 0 before
        elif "output_hypernetworks_mlps" in name and "layers.2" in name:
            value *= 1000  # logits far from 0 are stable
    return state


def _write_refer(
    root: Path,
    counts: Mapping[str, ExpectedCounts],
    points: Iterable[_Points],
    sentence: Callable[[int, int, int], str],
) -> None:
    """Write the annotation files of RefCOCO by unc.

    Args:
        root: gets a folder for them.
        counts: of every split.
        points: outline of every object, image by image, then of the next object of each image.
        sentence: words one, of an image, an index of its objects, and a sentence's id.
    """
    num_images = sum(count.images for count in counts.values())
    refs: list[dict[str, object]] = []
    sent_ids = itertools.count()
    first_image = 0
    for split, count in counts.items():
        shares = np.diff(np.arange(count.refs + 1) * (count.sentences or 0) // count.refs)
        # Refs of all images in turn, so that those of one image do not follow each other.
        for place, share in enumerate(shares.tolist()):
            image_id, target = first_image + place % count.images, place // count.images
            ids = list(itertools.islice(sent_ids, share))
            raws = [sentence(image_id, target, sent_id) for sent_id in ids]
            refs.append(
                {
                    "ref_id": len(refs),
                    "ann_id": image_id + target * num_images,
                    "image_id": image_id,
                    "category_id": 1,
                    "split": split,
                    "file_name": f"COCO_train2014_{image_id:012d}_{len(refs)}.jpg",
                    "sent_ids": ids,
                    "sentences": [
                        {"sent_id": sent_id, "raw": raw, "sent": raw, "tokens": raw.split()}
                        for sent_id, raw in zip(ids, raws, strict=True)
                    ],
                }
            )
        first_image += count.images
    folder = root / "refcoco"
    folder.mkdir(parents=True)
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    images = [
        {"id": i, "file_name": _file_name(i), "height": HW[0], "width": HW[1]}
        for i in range(num_images)
    ]
    annotations = (
        {
            "id": ann_id,
            "image_id": ann_id % num_images,
            "category_id": 1,
            "segmentation": [one.ravel().tolist()],
            "bbox": [*one.min(axis=0).tolist(), *np.ptp(one, axis=0).tolist()],
            "area": 1000.5,
            "iscrowd": 0,
        }
        for ann_id, one in enumerate(points)
    )
    before = f'{{"images": {json.dumps(images)}, "categories": [], "annotations": '
    _write_list(folder / "instances.json", annotations, before, "}")


def _write_list(path: Path, entries: Iterable[object], before: str = "", after: str = "") -> None:
    """Write a JSON list, entry by entry, between other text."""
    with path.open("w", encoding="utf-8") as file:
        file.write(f"{before}[")
        for place, entry in enumerate(entries):
            file.write(f"{', ' if place else ''}{json.dumps(entry)}")
        file.write(f"]{after}")


def _file_name(image_id: int) -> str:
    return f"COCO_train2014_{image_id:012d}.jpg"


def _phrase(rng: np.random.Generator) -> str:
    """Draw two to eight words."""
    return " ".join(rng.choice(WORDS, rng.integers(2, 9)))


def _circle(num_points: int) -> _Points:
    angles = np.linspace(0, 2 * np.pi, num_points, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _image(image_id: int, count: int) -> NDArray[np.uint8]:
    """Draw the ellipses on a ground of smooth and of grainy noise, uint8, (H, W, 3)."""
    rng = np.random.default_rng((1, image_id))
    coarse = Image.fromarray(rng.integers(60, 196, (15, 20, 3), dtype=np.uint8))
    pixels_HW3 = np.array(coarse.resize(HW[::-1], Image.Resampling.BICUBIC)).astype(np.float64)
    shown = _Ellipses.of(image_id, count)
    for mask_HW, color in zip(drawn_masks(image_id, count).masks_NHW, shown.colors, strict=True):
        pixels_HW3[mask_HW] = COLORS[color]
    pixels_HW3 += rng.normal(0, 8, pixels_HW3.shape)
    return pixels_HW3.clip(0, 255).astype(np.uint8)
