"""Where the masks come from among which an expression picks: SAM, a file, or the ground truth.

A run's methods all see the same source, so that what they score compares.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from evaluation.coco_masks import ProposalFile, check_images, read_proposal_file
from hybridgl.config import ProposalConfig
from hybridgl.errors import DataError, HybridGLError, ImageError
from hybridgl.images import RgbImage
from hybridgl.models import Models
from hybridgl.proposals import Proposals
from hybridgl.stages import ArtefactStore, SamProposals
from refer.dataset import ReferSplit
from refer.images import open_image
from refer.segmentation import check_segmentation, ground_truth
from utils.runtime import prefetch, progress

__all__ = ["FileSource", "GroundTruthSource", "ProposalSource", "SamSource"]


_FINISHERS = min(os.cpu_count() or 1, 4)
"""Threads that clean and store masks."""


class ProposalSource(Protocol):
    """Masks of a split's images.

    Attributes:
        name: for people.
        models: of "clip" and "sam", those that it computes with.
        warnings: one line for each warning about it that does not forbid using it.
    """

    name: str
    models: tuple[str, ...]
    warnings: tuple[str, ...]

    def count(self, image_id: int) -> int:
        """Number of an image's masks.

        Raises:
            ImageError: the image cannot be read, so that nothing is predicted for it.
        """

    def counts(self, image_ids: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Every image's id and the number of its masks, in order; 0 where it cannot be read."""
        for image_id in image_ids:
            count = 0
            with contextlib.suppress(ImageError):  # named when its sentences are scored
                count = self.count(image_id)
            yield image_id, count

    def propose(self, image_id: int, image: RgbImage) -> Proposals:
        """An image's masks; the image is the opened one of that id."""

    def describe(self) -> dict[str, Any]:
        """What must be the same for the same masks, as JSON values."""


class SamSource(ProposalSource):
    """SAM's automatic masks.

    Args:
        models: hold SAM.
        config: settings of its mask generator.
        store: keeps the masks.
        split: the data.
    """

    models: tuple[str, ...] = ("sam",)
    warnings: tuple[str, ...] = ()

    def __init__(
        self, models: Models, config: ProposalConfig, store: ArtefactStore, split: ReferSplit
    ) -> None:
        self.name = f"SAM {models.weights.sam_checkpoint.name}"
        self._sam = SamProposals(models, config, store)
        self._split = split

    def count(self, image_id: int) -> int:
        """Number of an image's masks, which are made if the store lacks them."""
        image = open_image(self._split, image_id)
        stored = self._sam.stored_count(image)
        return len(self._sam.propose(image)) if stored is None else stored

    def counts(self, image_ids: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Every image's id and the number of its masks, in order; 0 where it cannot be read.

        While the device works on some images, threads read the next ones, and clean and store the
        masks of the last.
        """
        return prefetch(lambda finish: finish(), self._counting(image_ids), threads=_FINISHERS)

    def _counting(self, image_ids: Iterable[int]) -> Iterator[Callable[[], tuple[int, int]]]:
        """What is left to do for every image when the device is done with it."""
        opened = prefetch(self._open, image_ids)
        while group := list(itertools.islice(opened, self._sam.images_at_once)):
            lacking = [image for _, image, count in group if image and count is None]
            unfinished = iter(self._sam.begin(lacking))
            for image_id, _, count in group:
                finish = next(unfinished) if count is None else None
                yield partial(_counted, image_id, count, finish)

    def _open(self, image_id: int) -> tuple[int, RgbImage | None, int | None]:
        """An image, decoded where its masks are not stored; their number where they are."""
        try:
            image = open_image(self._split, image_id)
            count = self._sam.stored_count(image)
            if count is None:
                _ = image.pixels_HW3
        except ImageError:  # named when its sentences are scored
            return image_id, None, 0
        return image_id, image, count

    def propose(self, image_id: int, image: RgbImage) -> Proposals:
        """An image's masks, in the generator's order."""
        return self._sam.propose(image)

    def describe(self) -> dict[str, Any]:
        """Settings of the generator; the weights are described with the models."""
        return {"source": "sam", **dataclasses.asdict(self._sam.config)}


class FileSource(ProposalSource):
    """Masks that another program wrote as COCO results or COCO annotations.

    Args:
        path: the file.
        split: the data.

    Raises:
        HybridGLError: the file is damaged, or for other images than those of the split; the first
            entry that is wrong is named.
    """

    models: tuple[str, ...] = ()

    def __init__(self, path: Path, split: ReferSplit) -> None:
        self.name = path.name
        self._file = read_proposal_file(path)
        self._split = split
        images = {
            image_id: (info.file_name, info.height, info.width)
            for image_id, info in split.images.items()
        }
        self.warnings = check_images(self._file, images)
        _check_masks(self._file, split)

    def count(self, image_id: int) -> int:
        """Number of an image's masks.

        Raises:
            ImageError: the image cannot be read, so that nothing is predicted for it.
        """
        _ = open_image(self._split, image_id).pil
        return len(self._file.by_image.get(image_id, ()))

    def propose(self, image_id: int, image: RgbImage) -> Proposals:
        """An image's masks, in the file's order; their scores stand for the predicted IoU."""
        entries = self._file.by_image.get(image_id, ())
        masks = [ground_truth(e.segmentation, image.hw, drop_overlaps=False) for e in entries]
        scores = [1.0 if entry.score is None else entry.score for entry in entries]
        return _proposals_of(masks, image.hw, scores)

    def describe(self) -> dict[str, Any]:
        """The file by its content."""
        return {"source": "coco", "file": self.name, "sha256": self._file.sha256}


class GroundTruthSource(ProposalSource):
    """Every annotated object of an image: what is left to choose where the masks are perfect.

    Args:
        split: the data.
        drop_overlaps: quirk Q9, as for the truth that picks are scored against.

    Raises:
        DataError: an annotation's segmentation is broken.
    """

    name = "ground truth"
    models: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __init__(self, split: ReferSplit, *, drop_overlaps: bool) -> None:
        self._split = split
        self._drop_overlaps = drop_overlaps
        for image_id in split.images:
            for ann_id in split.instances(image_id):
                split.check_mask(ann_id)

    def count(self, image_id: int) -> int:
        """Number of an image's annotated objects.

        Raises:
            ImageError: the image cannot be read, so that nothing is predicted for it.
        """
        _ = open_image(self._split, image_id).pil
        return len(self._split.instances(image_id))

    def propose(self, image_id: int, image: RgbImage) -> Proposals:
        """Masks of an image's annotated objects, in the order of their file."""
        masks = [
            self._split.instance_mask(ann_id, drop_overlaps=self._drop_overlaps)
            for ann_id in self._split.instances(image_id)
        ]
        return _proposals_of(masks, image.hw, [1.0] * len(masks))

    def describe(self) -> dict[str, Any]:
        """The annotations are described with the data."""
        return {"source": "gt"}


def _counted(
    image_id: int, count: int | None, finish: Callable[[], Proposals] | None
) -> tuple[int, int]:
    return image_id, len(finish()) if finish else count or 0


def _check_masks(file: ProposalFile, split: ReferSplit) -> None:
    """Refuse a file with a broken mask before any work, not in the middle of it."""
    entries = [
        (info, entry)
        for image_id, info in split.images.items()
        for entry in file.by_image.get(image_id, ())
    ]
    entries.sort(key=lambda pair: pair[1].position)
    for info, entry in progress(entries, "proposal file", "mask"):
        try:
            check_segmentation(entry.segmentation, (info.height, info.width))
        except DataError as error:
            raise HybridGLError(
                f"Expected masks of the images in {file.path}, but entry {entry.position}, "
                f"of image {entry.image_id}, is broken: {error} Write the file again."
            ) from error


def _proposals_of(
    masks: list[NDArray[np.bool_]], hw: tuple[int, int], scores: list[float]
) -> Proposals:
    """Proposals with boxes as SAM's generator defines them."""
    if not masks:
        return Proposals.empty(hw)
    masks_NHW = np.stack(masks)
    return Proposals(
        masks_NHW=masks_NHW,
        boxes_xywh=_boxes_xywh(masks_NHW),
        predicted_iou=np.array(scores, dtype=np.float32),
        stability=np.ones(len(masks), dtype=np.float32),
    )


def _boxes_xywh(masks_NHW: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Boxes x, y, w, h with w = x_max - x_min; 0 for an empty mask."""
    boxes_xywh = np.zeros((len(masks_NHW), 4), dtype=np.int64)
    for column, axis in ((0, 1), (1, 2)):
        covered = np.asarray(masks_NHW.any(axis=axis))
        first = covered.argmax(axis=1)
        last = covered.shape[1] - 1 - covered[:, ::-1].argmax(axis=1)
        some = covered.any(axis=1)
        boxes_xywh[some, column] = first[some]
        boxes_xywh[some, column + 2] = (last - first)[some]
    return boxes_xywh
