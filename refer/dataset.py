"""The records that every dataset is read into: one split, in the dataset's order.

Shapes: H x W image pixels, hw = (height, width).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hybridgl.errors import DataError
from hybridgl.files import is_file
from hybridgl.images import RgbImage, resized
from refer.segmentation import MaskRule, check_segmentation, gt_mask

__all__ = ["Annotation", "Id", "ImageErrors", "ImageInfo", "Ref", "ReferSplit", "Sentence"]

Id = int | str
"""REFER counts its refs and annotations; PhraseCut and custom datasets may name them."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """One expression.

    Attributes:
        sent_id: unique in its ref; in REFER data in its split.
        raw: as people wrote it, before any cleaning.
        kind: kind of expression, where the data says: the shapes world its own, PhraseCut seen or
            unseen.
    """

    sent_id: int
    raw: str
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class Ref:
    """What is referred to, with everything said of it.

    Attributes:
        ref_id: unique in its split.
        ann_ids: the annotations that are referred to together: one in REFER data, any number in
            PhraseCut.
        image_id: its image.
        sentences: everything said of it.
    """

    ref_id: Id
    ann_ids: tuple[Id, ...]
    image_id: int
    sentences: tuple[Sentence, ...]


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """One image; height and width in pixels, as annotated."""

    image_id: int
    file_name: str
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotated object.

    Attributes:
        ann_id: unique in the dataset.
        image_id: its image.
        segmentation: as in the file; empty where it has no mask.  ``ReferSplit.instance_mask``
            draws it, ``ReferSplit.check_mask`` checks it.
        iscrowd: whether it marks a group as one region.
    """

    ann_id: Id
    image_id: int
    segmentation: object
    iscrowd: bool = False


@dataclass(frozen=True, slots=True)
class ImageErrors:
    """Images of a split that are not as its annotations say, by their ids, in dataset order.

    Attributes:
        missing: no such file.
        corrupt: the file is no image, or is cut short.
        wrong_size: height and width of the file, where they are not the annotated ones.
        turned: those that are turned as their EXIF tag says: the annotated size shows it, or it was
            asked for.
        tagged: those with such a tag, of which the size does not tell whether the annotations are
            of the stored or of the turned image; they are taken as stored.
    """

    missing: tuple[int, ...] = ()
    corrupt: tuple[int, ...] = ()
    wrong_size: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    turned: tuple[int, ...] = ()
    tagged: tuple[int, ...] = ()

    @property
    def unreadable(self) -> tuple[int, ...]:
        """Return the images for which nothing can be predicted: missing or corrupt."""
        return (*self.missing, *self.corrupt)


@dataclass(frozen=True, slots=True)
class ReferSplit:
    """One split of one dataset.

    Attributes:
        dataset: its name, as in ``refer.splits.SPLITS``; of a custom dataset that of its folder or
            file.
        split: its name, as in the dataset's files.
        split_by: who drew the splits.
        refs: in the order of their file, which is the dataset's order everywhere.
        images: image id -> image, for the images of ``refs``, in the order of first appearance.
        annotations: annotation id -> annotation, for every annotated object of these images,
            referred to or not, in the order of their file.
        image_roots: folders of the image files, in the order in which they are searched.
        sha256_by_file: sha256 of the annotation files that were read, by file name.
        mask_rule: how segmentations are written and drawn.
        image_paths: image id -> file, where ``refer.image_files.find_images`` found it under
            another name.
        image_errors: what ``refer.image_errors.find_image_errors`` found; nothing before it has
            looked.
        lenient: whether anything was left out or taken otherwise than written, as
            ``refer.entries.EntryReader`` says.
        warnings: one line for everything about the data that may be wrong but does not forbid its
            use.
    """

    dataset: str
    split: str
    split_by: str
    refs: tuple[Ref, ...]
    images: dict[int, ImageInfo]
    annotations: dict[Id, Annotation]
    image_roots: tuple[Path, ...]
    sha256_by_file: dict[str, str]
    mask_rule: MaskRule = MaskRule.COCO
    image_paths: Mapping[int, Path] = field(default_factory=dict)
    image_errors: ImageErrors = field(default_factory=ImageErrors)
    lenient: bool = False
    warnings: tuple[str, ...] = ()
    _instances: dict[int, list[Id]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        referred = {ann_id for ref in self.refs for ann_id in ref.ann_ids}
        instances: dict[int, list[Id]] = {}
        for ann_id, ann in self.annotations.items():
            if ann.segmentation and (not ann.iscrowd or ann_id in referred):
                instances.setdefault(ann.image_id, []).append(ann_id)
        object.__setattr__(self, "_instances", instances)

    @property
    def num_sentences(self) -> int:
        """Count the expressions: the samples of an evaluation."""
        return sum(len(ref.sentences) for ref in self.refs)

    @property
    def refs_without_mask(self) -> tuple[Id, ...]:
        """Find refs whose ground truth is empty or lacks an object: it has no segmentation."""
        return tuple(
            ref.ref_id
            for ref in self.refs
            if not ref.ann_ids
            or not all(self.annotations[ann_id].segmentation for ann_id in ref.ann_ids)
        )

    @property
    def refs_without_sentences(self) -> tuple[Id, ...]:
        """Find refs of which no sample of an evaluation is made."""
        return tuple(ref.ref_id for ref in self.refs if not ref.sentences)

    def refs_by_image(self) -> dict[int, tuple[Ref, ...]]:
        """Group refs by image id; images in the order of first appearance, refs in file order."""
        grouped: dict[int, list[Ref]] = {}
        for ref in self.refs:
            grouped.setdefault(ref.image_id, []).append(ref)
        return {image_id: tuple(refs) for image_id, refs in grouped.items()}

    def image_path(self, image_id: int) -> Path:
        """Find an image file; where there is none, return the first path that was tried.

        Raises:
            KeyError: the split has no such image.
        """
        if image_id in self.image_paths:
            return self.image_paths[image_id]
        paths = [root / self.images[image_id].file_name for root in self.image_roots]
        return next((path for path in paths if is_file(path)), paths[0])

    def open_image(self, image_id: int) -> RgbImage:
        """Open an image; resize it (bilinear, antialiased) if it is not of the annotated size.

        Raises:
            ImageError: it is missing or corrupt.
        """
        turn = image_id in self.image_errors.turned
        image = RgbImage(self.image_path(image_id), apply_orientation=turn)
        height, width = self._hw(image_id)
        if image.hw == (height, width):
            return image
        stretched = resized(image.pil, (width, height), Image.Resampling.BILINEAR)
        return RgbImage(stretched, apply_orientation=False)

    def instances(self, image_id: int) -> tuple[Id, ...]:
        """List the annotated objects of an image that can serve as proposals, in file order.

        Those with a segmentation that mark one object or are referred to; of several with the
        very same segmentation (PhraseCut repeats objects from task to task) the first.
        """
        distinct: dict[Id, object] = {}
        for ann_id in self._instances.get(image_id, ()):
            segmentation = self.annotations[ann_id].segmentation
            if segmentation not in distinct.values():
                distinct[ann_id] = segmentation
        return tuple(distinct)

    def instance_mask(self, ann_id: Id, *, overlapping_polygons_dropped: bool) -> NDArray[np.bool_]:
        """Draw the mask of one annotated object.

        Args:
            ann_id: one of ``annotations``.
            overlapping_polygons_dropped: quirk Q9; see ``refer.segmentation.gt_mask``.

        Returns:
            Bool, (H, W); empty where the annotation has no segmentation.

        Raises:
            DataError: the segmentation is broken.
        """
        ann = self.annotations[ann_id]
        if not ann.segmentation:
            return np.zeros(self._hw(ann.image_id), dtype=np.bool_)
        try:
            return gt_mask(
                ann.segmentation,
                self._hw(ann.image_id),
                overlapping_polygons_dropped=overlapping_polygons_dropped,
                rule=self.mask_rule,
            )
        except DataError as error:
            raise self._named(ann, error) from error

    def check_mask(self, ann_id: Id) -> DataError | None:
        """Refuse what ``instance_mask`` refuses, without drawing anything: microseconds a mask.

        Returns:
            As ``refer.segmentation.check_segmentation``.

        Raises:
            DataError: the segmentation is broken.
        """
        ann = self.annotations[ann_id]
        if not ann.segmentation:
            return None
        try:
            found = check_segmentation(
                ann.segmentation, self._hw(ann.image_id), rule=self.mask_rule
            )
        except DataError as error:
            raise self._named(ann, error) from error
        return found and self._named(ann, found)

    def gt_mask(self, ref: Ref, *, overlapping_polygons_dropped: bool) -> NDArray[np.bool_]:
        """Draw the mask that a ref's sentences refer to: the union of its objects.

        Args:
            ref: one of the split.
            overlapping_polygons_dropped: quirk Q9; see ``refer.segmentation.gt_mask``.

        Returns:
            Bool, (H, W); objects without a segmentation, which ``refs_without_mask`` names, add
            nothing.

        Raises:
            DataError: a segmentation is broken.
        """
        gt_mask_HW = np.zeros(self._hw(ref.image_id), dtype=np.bool_)
        for ann_id in ref.ann_ids:
            gt_mask_HW |= self.instance_mask(
                ann_id, overlapping_polygons_dropped=overlapping_polygons_dropped
            )
        return gt_mask_HW

    def limited(self, n_images: int) -> ReferSplit:
        """Keep the first images with all their refs, order unchanged.

        Raises:
            DataError: ``n_images`` is below 1.
        """
        if n_images < 1:
            raise DataError(
                f"Expected a limit of at least 1 image, got {n_images}; give a positive number."
            )
        images = dict(list(self.images.items())[:n_images])
        errors = self.image_errors
        return replace(
            self,
            refs=tuple(ref for ref in self.refs if ref.image_id in images),
            images=images,
            annotations={i: ann for i, ann in self.annotations.items() if ann.image_id in images},
            image_errors=ImageErrors(
                missing=tuple(i for i in errors.missing if i in images),
                corrupt=tuple(i for i in errors.corrupt if i in images),
                wrong_size={i: hw for i, hw in errors.wrong_size.items() if i in images},
            ),
        )

    def _hw(self, image_id: int) -> tuple[int, int]:
        return self.images[image_id].height, self.images[image_id].width

    def _named(self, ann: Annotation, error: DataError) -> DataError:
        name = self.images[ann.image_id].file_name
        return DataError(f"Annotation {ann.ann_id} of image {name}: {error}")
