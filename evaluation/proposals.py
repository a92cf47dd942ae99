"""Where the masks come from among which an expression chooses: SAM, a file, or the ground truth.

A run's methods all see the same source, so that what they score compares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from hybridgl.masks import Proposals, mask_boxes_xywh
from numpy.typing import NDArray

from evaluation.coco_masks import ProposalFile, check_images, read_proposal_file
from hybridgl.config import ProposalConfig
from hybridgl.errors import DataError
from hybridgl.images import RgbImage
from hybridgl.models import Models
from hybridgl.proposals import SamProposals
from hybridgl.store import Store
from refer.dataset import ReferSplit
from refer.segmentation import check_segmentation, ground_truth
from utils.runtime import progress

__all__ = ["FileSource", "GroundTruthSource", "ProposalSource", "SamSource"]

Finish = Callable[[], Proposals]
"""Does the host's part of making an image's masks, in any thread."""


class ProposalSource(Protocol):
    """Masks of a split's images.

    Attributes:
        name: for people.
        models: of "clip" and "sam", those that it computes with.
        warnings: one line for each warning about it.
        batch_size: images that are worth giving to ``submit`` together.
    """

    name: str
    models: tuple[str, ...]
    warnings: tuple[str, ...]
    batch_size: int

    def submit(self, images: Sequence[tuple[int, RgbImage]]) -> list[Finish]:
        """Do the device's part of proposing masks.

        Args:
            images: ids and opened images.

        Returns:
            For every image a function that does the host's part.
        """

    def settings(self) -> dict[str, Any]:
        """Return what must be the same for the same masks, as JSON values."""


class SamSource(ProposalSource):
    """SAM's automatic masks.

    Args:
        models: hold SAM.
        config: settings of its mask generator.
        store: keeps the masks.
    """

    models: tuple[str, ...] = ("sam",)
    warnings: tuple[str, ...] = ()

    def __init__(self, models: Models, config: ProposalConfig, store: Store) -> None:
        self.name = f"SAM {models.weights.sam_checkpoint.name}"
        self.batch_size = models.images_at_once
        self._sam = SamProposals(models, config, store)

    def submit(self, images: Sequence[tuple[int, RgbImage]]) -> list[Finish]:
        """Run SAM on those images whose masks the store lacks."""
        return self._sam.submit([image for _, image in images])

    def settings(self) -> dict[str, Any]:
        """Return the generator's settings; the weights are named with the models."""
        return self._sam.settings()


class FileSource(ProposalSource):
    """Masks that another program wrote as COCO results or COCO annotations.

    Args:
        path: the file.
        split: the data.

    Raises:
        DataError: the file is damaged, or for other images than those of the split; the first
            entry that is wrong is named.
    """

    models: tuple[str, ...] = ()
    batch_size = 1

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

    def submit(self, images: Sequence[tuple[int, RgbImage]]) -> list[Finish]:
        """Draw the masks, in the file's order; their scores stand for the predicted IoU."""
        return [partial(self._propose, *one) for one in images]

    def _propose(self, image_id: int, image: RgbImage) -> Proposals:
        entries = self._file.by_image.get(image_id, ())
        masks = [
            ground_truth(e.segmentation, image.hw, overlapping_polygons_dropped=False)
            for e in entries
        ]
        scores = [1.0 if entry.score is None else entry.score for entry in entries]
        return _proposals_of(masks, image.hw, scores)

    def settings(self) -> dict[str, Any]:
        """Return the file by its content."""
        return {"source": "coco", "file": self.name, "sha256": self._file.sha256}


class GroundTruthSource(ProposalSource):
    """Every annotated object of an image: what is left to choose where the masks are perfect.

    Args:
        split: the data.
        overlapping_polygons_dropped: quirk Q9, as for the truth that picks are scored against.

    Raises:
        DataError: an annotation's segmentation is broken.
    """

    name = "ground truth"
    models: tuple[str, ...] = ()
    batch_size = 1
    warnings: tuple[str, ...] = ()

    def __init__(self, split: ReferSplit, *, overlapping_polygons_dropped: bool) -> None:
        self._split = split
        self._overlapping_polygons_dropped = overlapping_polygons_dropped
        for image_id in split.images:
            for ann_id in split.instances(image_id):
                split.check_mask(ann_id)

    def submit(self, images: Sequence[tuple[int, RgbImage]]) -> list[Finish]:
        """Draw the masks of annotated objects, in the order of their file."""
        return [partial(self._propose, *one) for one in images]

    def _propose(self, image_id: int, image: RgbImage) -> Proposals:
        masks = [
            self._split.instance_mask(
                ann_id, overlapping_polygons_dropped=self._overlapping_polygons_dropped
            )
            for ann_id in self._split.instances(image_id)
        ]
        return _proposals_of(masks, image.hw, [1.0] * len(masks))

    def settings(self) -> dict[str, Any]:
        """Return the kind of source; the annotations are named with the data."""
        return {"source": "gt"}


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
            raise DataError(
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
        boxes_xywh=mask_boxes_xywh(masks_NHW),
        predicted_iou=np.array(scores, dtype=np.float32),
        stability=np.ones(len(masks), dtype=np.float32),
    )
