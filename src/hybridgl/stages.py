"""Stages whose results are kept, and the keys under which they are found again.

A key hashes the content that a result was made from: the image's bytes, the weights, the settings
of the stage and of those before it; never a position in a list.

Shapes: N proposals, H x W image pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hybridgl import mask_rle
from hybridgl.config import ProposalConfig
from hybridgl.images import RgbImage
from hybridgl.models import Models
from hybridgl.models.sam_generator import IMAGES_AT_ONCE
from hybridgl.proposals import Proposals

__all__ = [
    "ArtefactStore",
    "SamProposals",
    "StoredEntry",
    "masks_per_chunk",
    "masks_sha256",
    "stage_key",
]

_STAGE_VERSION = 2
"""Part of every key: raised when a stage's code gives other results than before."""

_VIEW_BYTES = 512 * 2**20
"""Memory for what a chunk of masks or attention maps has at the size of the image."""

_MOST_MASKS = {"cpu": 16, "cuda": 128}
"""Masks of one chunk, whatever the memory: more do not make a chunk faster."""


class StoredEntry(Protocol):
    """What a store hands back."""

    @property
    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """Arrays by name."""

    @property
    def meta(self) -> Mapping[str, Any]:
        """JSON values by name."""


class ArtefactStore(Protocol):
    """Keeps the results of stages; ``hybridgl.store.Store`` is the one on disk."""

    def load(self, kind: str, key: str) -> StoredEntry | None:
        """The entry under a key, or None where it is missing or damaged."""

    def save(
        self, kind: str, key: str, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]
    ) -> None:
        """Keep an entry."""


def stage_key(image: RgbImage, stage: str, settings: Mapping[str, Any]) -> str:
    """Sha256 of all that a stage's result for an image depends on.

    Args:
        image: the image.
        stage: its name.
        settings: weights and settings of the stage, as JSON values.
    """
    described = {
        "stage": stage,
        "version": _STAGE_VERSION,
        "image": image.sha256,
        **settings,
    }
    text = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def masks_sha256(proposals: Proposals) -> str:
    """Number and hash of the masks: another machine may find others at the same settings."""
    packed = np.packbits(proposals.masks_NHW)
    return f"{len(proposals)} {hashlib.sha256(packed.tobytes()).hexdigest()}"


def masks_per_chunk(hw: tuple[int, ...], device: str) -> int:
    """How many masks of an image are worked on at once.

    Args:
        hw: height and width of the image: full-size float views, of three channels, must fit in
            the memory set aside.
        device: type of the device: "cpu" or "cuda".
    """
    return min(max(_VIEW_BYTES // (3 * 4 * hw[0] * hw[1]), 1), _MOST_MASKS[device])


class SamProposals:
    """SAM's masks of images, each image's computed once.

    Args:
        models: hold SAM.
        config: settings of its mask generator.
        store: keeps the masks; None computes them anew.
    """

    def __init__(self, models: Models, config: ProposalConfig, store: ArtefactStore | None) -> None:
        self.config = config
        self._models = models
        self._store = store

    @property
    def images_at_once(self) -> int:
        """Images that are worth giving to ``begin`` together."""
        return IMAGES_AT_ONCE[self._models.device.type]

    def propose(self, image: RgbImage) -> Proposals:
        """Masks of an image, in the generator's order."""
        entry = self._load(image)
        return _unpack(entry) if entry else self.begin([image])[0]()

    def stored_count(self, image: RgbImage) -> int | None:
        """Number of an image's masks, without decoding them; None where the store lacks them."""
        entry = self._load(image)
        return len(entry.arrays["boxes_xywh"]) if entry else None

    def begin(self, images: Sequence[RgbImage]) -> list[Callable[[], Proposals]]:
        """The device's part of making the masks of several images, whatever the store holds.

        Returns:
            For every image a function that does the host's part, in any thread: it cleans the
            masks and stores them.
        """
        if not images:
            return []  # without loading SAM
        pixels = [image.pixels_HW3 for image in images]
        unfinished = self._models.sam.submit(pixels, self.config)
        return [
            partial(self._finish, self._key(image), finish)
            for image, finish in zip(images, unfinished, strict=True)
        ]

    def _load(self, image: RgbImage) -> StoredEntry | None:
        return self._store.load("proposals", self._key(image)) if self._store is not None else None

    def _finish(self, key: str, finish: Callable[[], Proposals]) -> Proposals:
        proposals = finish()
        if self._store is not None:
            self._store.save("proposals", key, *_pack(proposals))
        return proposals

    def _key(self, image: RgbImage) -> str:
        settings = {
            "sam": self._models.sha256("sam"),
            "dtype": self._models.numerics("sam"),
            "config": dataclasses.asdict(self.config),
        }
        return stage_key(image, "proposals", settings)


def _pack(proposals: Proposals) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    packed = mask_rle.pack_rles(mask_rle.encode_masks(proposals.masks_NHW), proposals.hw)
    arrays: dict[str, NDArray[Any]] = {
        "rle_counts": packed.counts,
        "rle_offsets": packed.offsets,
        "boxes_xywh": proposals.boxes_xywh,
        "predicted_iou": proposals.predicted_iou,
        "stability": proposals.stability,
    }
    return arrays, {"hw": list(proposals.hw)}


def _unpack(entry: StoredEntry) -> Proposals:
    height, width = entry.meta["hw"]
    packed = mask_rle.PackedRles(
        entry.arrays["rle_counts"], entry.arrays["rle_offsets"], (height, width)
    )
    return Proposals(
        masks_NHW=mask_rle.decode_masks(mask_rle.unpack_rles(packed), packed.hw),
        boxes_xywh=entry.arrays["boxes_xywh"],
        predicted_iou=entry.arrays["predicted_iou"],
        stability=entry.arrays["stability"],
    )
