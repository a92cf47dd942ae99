"""Where the masks come from among which an expression chooses: SAM, a file, or the ground truth.

A run's methods all see the same source, so that what they score compares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from evaluation.proposal_files import read_masks
from hybridgl.config import ProposalConfig
from hybridgl.files import file_sha256
from hybridgl.images import RgbImage
from hybridgl.masks import Proposals, mask_boxes_xywh
from hybridgl.models import Models
from hybridgl.proposals import SamProposals
from hybridgl.store import Store
from refer.dataset import ReferSplit
from refer.entries import EntryReader, first_few, read_json
from refer.mask_errors import without_broken_masks
from refer.segmentation import gt_mask

__all__ = ["FileSource", "GroundTruthSource", "NoSource", "ProposalSource", "SamSource"]

Finish = Callable[[], Proposals]
"""Does the host's part of making an image's masks, in any thread."""


class ProposalSource(Protocol):
    """Masks of a split's images.

    Attributes:
        name: for people.
        models: of "clip" and "sam", those that it computes with.
        warnings: one line for each warning about it.
    """

    name: str
    models: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def batch_size(self) -> int:
        """Images that are worth giving to ``submit`` together."""
        return 1

    def submit(self, images: Sequence[tuple[int, RgbImage]]) -> list[Finish]:
        """Do the device's part of proposing masks.

        Args:
            images: ids and opened images.

        Returns:
            For every image a function that does the host's part.
        """

    def settings(self) -> dict[str, Any]:
        """Return what must be the same for the same masks, as JSON values."""


class NoSource(ProposalSource):
    """No masks, for methods that need none."""

    name = "none"
    models: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def submit(self, images: Sequence[tuple[int, RgbImage]]) -> list[Finish]:
        """Propose nothing."""
        return [partial(Proposals.empty, image.hw) for _, image in images]

    def settings(self) -> dict[str, Any]:
        """Return the kind of source."""
        return {"source": "none"}


class SamSource(ProposalSource):
    """SAM's automatic masks.

    Args:
        models: hold SAM.
        config: settings of its mask generator.
        store: keeps the masks.
        device: kind of device whose masks are wanted, as for ``SamProposals``.
    """

    models: tuple[str, ...] = ("sam",)
    warnings: tuple[str, ...] = ()

    def __init__(
        self, models: Models, config: ProposalConfig, store: Store, *, device: str | None = None
    ) -> None:
        self.name = f"SAM {models.weights.sam_checkpoint.name}"
        self._models, self._config = models, config
        self._sam = SamProposals(models, config, store, device=device)

    @property
    def batch_size(self) -> int:
        """Images that go through SAM's encoder together."""
        return self._models.batches.sizes.images

    def submit(self, images: Sequence[tuple[int, RgbImage]]) -> list[Finish]:
        """Run SAM on those images whose masks the store lacks."""
        return self._sam.submit([image for _, image in images])

    def settings(self) -> dict[str, Any]:
        """Return the generator's settings; the weights are named with the models."""
        return {"source": "sam", **self._config.json()}


class FileSource(ProposalSource):
    """Masks that another program wrote as COCO results or COCO annotations.

    One file can serve several splits, so what it holds for other images is not checked. Broken
    masks are left out, counted and named.

    Args:
        path: the file.
        split: the data.
        strict: refuse broken masks, and what is not written as its format has it.

    Raises:
        DataError: the file is missing, damaged, of another form, or for other images than those of
            the split; or an entry is broken, and ``strict``.
    """

    models: tuple[str, ...] = ()

    def __init__(self, path: Path, split: ReferSplit, *, strict: bool = False) -> None:
        self.name = path.name
        reader = EntryReader(path, strict=strict)
        self._masks = read_masks(read_json(path), split, reader)
        self._sha256, self._lenient = file_sha256(path), reader.lenient
        absent = [
            f"{info.file_name} ({image_id})"
            for image_id, info in split.images.items()
            if image_id not in self._masks
        ]
        self.warnings: tuple[str, ...] = reader.warnings()
        if reader.none_of("masks") != "none":
            self.warnings += (f"Proposals are numbered without the broken masks of {path}.",)
        if absent:
            self.warnings += (
                f"{len(absent)} of {len(split.images)} images have no entry in {path}, so no "
                f"proposals: {first_few(absent)}.",
            )

    def submit(self, images: Sequence[tuple[int, RgbImage]]) -> list[Finish]:
        """Draw the masks in the file's order; scores stand for the predicted IoU."""
        return [partial(self._propose, *one) for one in images]

    def _propose(self, image_id: int, image: RgbImage) -> Proposals:
        entries = self._masks.get(image_id, [])
        masks = [
            gt_mask(segmentation, image.hw, overlapping_polygons_dropped=False)
            for segmentation, _ in entries
        ]
        return _proposals_of(masks, image.hw, [score for _, score in entries])

    def settings(self) -> dict[str, Any]:
        """Return the file by its content, and whether it was read leniently."""
        lenient = {"lenient": True} if self._lenient else {}
        return {"source": "coco", "file": self.name, "sha256": self._sha256, **lenient}


class GroundTruthSource(ProposalSource):
    """Every annotated object of an image: what is left to choose where the masks are perfect.

    Args:
        split: the data.
        overlapping_polygons_dropped: quirk Q9, as for the ground truth of the scores.
        strict: refuse a broken mask, which is otherwise no proposal, and named.

    Raises:
        DataError: a mask is broken, and ``strict``.
    """

    name = "ground truth"
    models: tuple[str, ...] = ()

    def __init__(
        self, split: ReferSplit, *, overlapping_polygons_dropped: bool, strict: bool = False
    ) -> None:
        self._overlapping_polygons_dropped = overlapping_polygons_dropped
        # Those that are referred to were checked when the split was loaded.
        referred = {ann_id for ref in split.refs for ann_id in ref.ann_ids}
        spare = [
            ann_id
            for image_id in split.images
            for ann_id in split.instances(image_id)
            if ann_id not in referred
        ]
        self._split = without_broken_masks(split, spare, strict=strict)
        self.warnings = self._split.warnings[len(split.warnings) :]

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
        return {"source": "gt", **({"lenient": True} if self.warnings else {})}


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
