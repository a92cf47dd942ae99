"""A split through a method, in two passes.

The first pass scores images: in any order, on any machine, each leaves one entry in the store. The
second makes a record of every sentence from these entries: it is serial and cheap, needs no model,
and holds quirk Q5 alone, the running limit on top-k that makes a prediction depend on all images
before its own.

Shapes: N proposals, S ground truths of one image, H x W image pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from evaluation.counts import ImageCounts
from evaluation.executors import Executor, serial
from evaluation.proposals import Finish, ProposalSource
from evaluation.records import PredictionCounts, Record
from hybridgl.devices import BatchSizes
from hybridgl.errors import DataError, ImageError
from hybridgl.files import file_sha256
from hybridgl.images import RgbImage
from hybridgl.masks import Proposals
from hybridgl.methods import Method, Prediction, Scores
from hybridgl.models import Models
from hybridgl.store import Content, Entry, Store, entry_key
from hybridgl.timing import timer
from hybridgl.weights.registry import Parser
from refer.dataset import Ref, ReferSplit, Sentence
from utils.runtime import prefetch

__all__ = ["Evaluation", "ImageResult", "Made"]

_logger = logging.getLogger(__name__)

_KIND = "scores"

_DECIMALS = 4
"""Of similarities and scores in records: more depend on what was computed together."""

_HOST_THREADS = min(os.cpu_count() or 1, 4)
"""Threads that clean and store masks, and that decode images for a GPU."""

_RESULTS_KEPT = 64
"""Images whose results stay in memory: refs of one image may be far apart in a dataset."""

Made = tuple[Record, int | None]
"""A record, and the running limit on top-k that it was made under."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageResult:
    """What the first pass leaves of an image.

    Attributes:
        scores: of every sentence, refs and sentences in the order of the dataset; none where the
            image cannot be read.
        counts: of its proposals and its refs' ground truths; None where the image cannot be read.
        batch_sizes: in use when it was scored (masks and features that were stored before may be of
            others); None where the image cannot be read.
        parser: that read its sentences (parses that were stored before may be of another version
            of spaCy); None where the image cannot be read, or none is needed.
        error: why the image cannot be read; empty where it can.
    """

    scores: Sequence[Scores]
    counts: ImageCounts | None
    batch_sizes: BatchSizes | None = None
    parser: Parser | None = None
    error: str = ""

    def content(self) -> Content:
        """Return the result as a store takes it."""
        arrays = {
            f"{row}/{name}": array
            for row, one in enumerate(self.scores)
            for name, array in one.arrays.items()
        }
        if self.counts is not None:
            arrays |= self.counts.arrays()
        return arrays, {
            "scores": [dict(one.meta) for one in self.scores],
            "batch_sizes": dataclasses.asdict(self.batch_sizes) if self.batch_sizes else None,
            "parser": dataclasses.asdict(self.parser) if self.parser else None,
        }

    @classmethod
    def from_entry(cls, entry: Entry) -> ImageResult:
        """Build a result from what a store gives back."""
        arrays: list[dict[str, Any]] = [{} for _ in entry.meta["scores"]]
        for path, array in entry.arrays.items():
            row, _, name = path.partition("/")
            if name:
                arrays[int(row)][name] = array
        return cls(
            scores=[Scores(*one) for one in zip(arrays, entry.meta["scores"], strict=True)],
            counts=ImageCounts.from_arrays(entry.arrays),
            batch_sizes=BatchSizes(**entry.meta["batch_sizes"]),
            # Earlier versions did not say.
            parser=Parser(**entry.meta["parser"]) if entry.meta.get("parser") else None,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Opened:
    """An image on its way through the first pass."""

    image_id: int
    key: str
    image: RgbImage | None


@dataclass(frozen=True, slots=True, eq=False)
class _Scored:
    """Scores of an image, on their way to the store."""

    opened: _Opened
    proposals: Proposals | None
    scores: Sequence[Scores]
    batch_sizes: BatchSizes


class Evaluation:
    """A method on a split, with the store that holds what it has scored.

    Args:
        method: scores and chooses.
        source: proposals.
        split: the data.
        store: gets an entry for every image.
        made_by: everything besides data, method and source that decides the results, as JSON
            values: hashes of the models, kind of device, number formats.
        overlapping_polygons_dropped: quirk Q9.
        top_k_shrinks_across_images: quirk Q5.
        may_score: whether an entry that proves damaged may be made again here.

    Attributes:
        batch_sizes: that the images were scored with, counted by the last ``records``.
        parsers: that read their sentences, likewise.
    """

    def __init__(
        self,
        method: Method,
        source: ProposalSource,
        split: ReferSplit,
        store: Store,
        made_by: Mapping[str, Any],
        *,
        overlapping_polygons_dropped: bool,
        top_k_shrinks_across_images: bool,
        may_score: bool = True,
    ) -> None:
        self.method = method
        self.source = source
        self.split = split
        self.store = store
        self._inputs = {
            "method": method.settings(late=False),
            "proposals": source.settings(),
            "made_by": dict(made_by),
            "overlapping_polygons_dropped": overlapping_polygons_dropped,
            "data": split.sha256_by_file,
            **({"lenient": True} if split.lenient else {}),
            "split": [split.dataset, split.split, split.split_by],
        }
        self._drops_overlaps = overlapping_polygons_dropped
        self._limit_shrinks = top_k_shrinks_across_images
        self._may_score = may_score
        self.batch_sizes: Counter[BatchSizes] = Counter()
        self.parsers: Counter[Parser] = Counter()
        parses = "parser" in method.models_needed
        self._parser = method.models.weights.parser if parses else None
        self._refs_by_image = split.refs_by_image()
        self._unreadable = set(split.image_errors.unreadable)
        self._cached_result = lru_cache(maxsize=_RESULTS_KEPT)(self._result)

    # ---- first pass

    def missing(self, image_ids: Iterable[int] | None = None) -> list[int]:
        """Return the images that have not been scored.

        Args:
            image_ids: those that are asked for; None asks for all of the split.
        """
        asked = self.split.images if image_ids is None else image_ids
        return [
            image_id
            for image_id in asked
            if image_id not in self._unreadable and not self.store.has(_KIND, self._key(image_id))
        ]

    def score_images(
        self, image_ids: Iterable[int], executor: Executor[int, int] = serial
    ) -> Iterator[int]:
        """Score images and store the results: in any order, on any machine.

        Args:
            image_ids: that can be read, as ``missing`` returns them.
            executor: runs the work.

        Returns:
            The ids of the images, each when it is done.
        """
        return executor(self._work, image_ids)

    def _work(self, image_ids: Iterable[int]) -> Iterator[int]:
        """Score a stream of images; reading, the device and writing overlap.

        On a GPU the masks of the next images are made from a thread of their own, so that it has
        work while the host prepares what the method needs, and the other way round.
        """
        models = self.method.models
        models.batches.sizes = self._batch_sizes_so_far() or models.batches.sizes
        overlap = _overlaps(models)
        with self.store.background_writes():
            opened = prefetch(self._open, image_ids, threads=_HOST_THREADS if overlap else 1)
            groups = self._grouped(opened)
            submitted = prefetch(self._submit, groups) if overlap else map(self._submit, groups)
            each = itertools.chain.from_iterable(submitted)
            proposed = prefetch(_finished, each, threads=_HOST_THREADS)
            scored = (self._score(one, proposals) for one, proposals in proposed)
            yield from prefetch(self._save, scored)

    def _batch_sizes_so_far(self) -> BatchSizes | None:
        """Return the batch sizes of the first image of the split that is scored; None without one.

        Others round otherwise, so whoever goes on with a run in its store takes up what it used.
        """
        for image_id in self.split.images:
            if image_id not in self._unreadable and self.store.has(_KIND, self._key(image_id)):
                entry = self.store.load(_KIND, self._key(image_id))
                if entry is not None:
                    return BatchSizes(**entry.meta["batch_sizes"])
        return None

    def _open(self, image_id: int) -> _Opened:
        try:
            with timer("decode"):
                key = self._key(image_id)
                image = self.split.open_image(image_id)
                _ = image.pixels_HW3  # decoded here, while the device works on the image before
        except ImageError:  # named when its records are made
            return _Opened(image_id, key, None)
        return _Opened(image_id, key, image)

    def _grouped(self, opened: Iterator[_Opened]) -> Iterator[list[_Opened]]:
        """Group images that are worth giving to the source together."""
        while group := list(itertools.islice(opened, self.source.batch_size)):
            yield group

    def _submit(self, group: Sequence[_Opened]) -> list[tuple[_Opened, Finish | None]]:
        """Run the proposals' part on the device."""
        readable = [(one.image_id, one.image) for one in group if one.image is not None]
        with timer("proposals"):
            finishers = iter(self.source.submit(readable))
        return [(one, next(finishers) if one.image is not None else None) for one in group]

    def _score(self, opened: _Opened, proposals: Proposals | None) -> _Scored:
        sentences = [sentence.raw for _, sentence in self._samples(opened.image_id)]
        scores: Sequence[Scores] = []
        if opened.image is not None and proposals is not None and sentences:
            scores = self.method.score(opened.image, sentences, proposals)
        return _Scored(opened, proposals, scores, self.method.models.batches.sizes)

    def _save(self, scored: _Scored) -> int:
        opened, proposals = scored.opened, scored.proposals
        if proposals is None:
            return opened.image_id  # nothing is stored: it may be readable tomorrow
        with timer("counts"):
            gt_masks = [self.gt_mask(ref) for ref in self._refs_by_image[opened.image_id]]
            counts = ImageCounts.of(proposals.masks_NHW, np.stack(gt_masks), proposals.boxes_xywh)
        result = ImageResult(scored.scores, counts, scored.batch_sizes, self._parser)
        self.store.save(_KIND, opened.key, *result.content())
        return opened.image_id

    def gt_mask(self, ref: Ref) -> NDArray[np.bool_]:
        """Return the ground truth of a ref, bool, (H, W)."""
        return self.split.gt_mask(ref, overlapping_polygons_dropped=self._drops_overlaps)

    def batch_sizes_json(self) -> list[dict[str, Any]]:
        """Return the batch sizes that images were scored with, the usual first, as JSON values."""
        return [
            {"sizes": dataclasses.asdict(sizes), "images": count}
            for sizes, count in self.batch_sizes.most_common()
        ]

    def parsers_json(self) -> list[dict[str, Any]]:
        """Return the parsers that read sentences, the usual first, as JSON values."""
        return [
            {"parser": dataclasses.asdict(parser), "images": count}
            for parser, count in self.parsers.most_common()
        ]

    # ---- second pass

    def records(self) -> Iterator[Made]:
        """Make the record of every sentence, in the order of the dataset.

        An image whose entry proves damaged is scored again.

        Returns:
            Records, each with the running limit on top-k that its prediction was made under; None
            where none is kept.
        """
        limit: int | None = None
        seen = set(self._unreadable)
        self.batch_sizes.clear()
        self.parsers.clear()
        for ref in self.split.refs:
            result = self.result(ref.image_id)
            if ref.image_id not in seen:
                seen.add(ref.image_id)
                if result.error:
                    _logger.warning("%s Nothing is predicted for it.", result.error)
                if result.batch_sizes:
                    self.batch_sizes[result.batch_sizes] += 1
                if result.parser:
                    self.parsers[result.parser] += 1
            count = len(result.counts.areas_N) if result.counts else 0
            # As released: whoever goes through sentences never meets a ref without any.
            if self._limit_shrinks and count and ref.sentences:
                limit = count if limit is None else min(limit, count)
            for sentence in ref.sentences:
                prediction = self.predict(ref, sentence.sent_id, limit)
                yield self._record(ref, sentence, result, prediction), limit

    def predict(self, ref: Ref, sent_id: int, k_limit: int | None) -> Prediction:
        """Predict what a sentence refers to, from what the first pass left.

        Args:
            ref: of the split.
            sent_id: of one of its sentences.
            k_limit: running limit on top-k (quirk Q5).
        """
        scores = self.result(ref.image_id).scores
        samples = self._samples(ref.image_id)
        row = next(
            place
            for place, (one, sentence) in enumerate(samples)
            if (one.ref_id, sentence.sent_id) == (ref.ref_id, sent_id)
        )
        return self.method.choose(scores[row], k_limit=k_limit) if scores else Prediction()

    def result(self, image_id: int) -> ImageResult:
        """Return what the first pass left of an image."""
        return self._cached_result(image_id)

    def _result(self, image_id: int) -> ImageResult:
        if image_id in self._unreadable:
            return ImageResult((), None, error="the file is missing or corrupt")
        entry = self.store.load(_KIND, self._key(image_id))
        if entry is None:
            error = self.reading_error(image_id)
            if error:
                return ImageResult((), None, error=error)
            if not self._may_score:
                raise DataError(
                    f"Expected the scores of image {image_id} in {self.store.root}, got a damaged "
                    f"entry of another kind of device; copy it again, or give that --device."
                )
            for _ in self.score_images([image_id]):
                pass
            entry = self.store.load(_KIND, self._key(image_id))
            assert entry is not None
        return ImageResult.from_entry(entry)

    def _record(
        self,
        ref: Ref,
        sentence: Sentence,
        result: ImageResult,
        prediction: Prediction,
    ) -> Record:
        counts = result.counts
        ref_ids = [one.ref_id for one in self._refs_by_image[ref.image_id]]
        column = ref_ids.index(ref.ref_id)
        if counts is None:
            gt_mask_1HW = self.gt_mask(ref)[None]
            counts, column = ImageCounts.of(gt_mask_1HW[:0], gt_mask_1HW), 0
        expression = prediction.expression
        return Record(
            dataset=self.split.dataset,
            split=self.split.split,
            ref_id=ref.ref_id,
            sent_id=sentence.sent_id,
            image_id=ref.image_id,
            image_file=self.split.images[ref.image_id].file_name,
            image_error=result.counts is None,
            sentence=sentence.raw,
            kind=sentence.kind,
            noun_phrase=expression.noun_phrase if expression else None,
            num_other_nouns=len(expression.other_nouns) if expression else None,
            position=expression.position.value if expression else None,
            relation=expression.relation.value if expression else None,
            truncated=prediction.truncated,
            **self._oracle_and_chance(counts, column),
            gt_area=int(counts.gt_areas_S[column]),
            gt_area_480=int(counts.gt_areas_480_S[column]),
            predictions={
                variant: self._predicted(ref, variant, prediction, counts, column)
                for variant in self.method.variants
            },
        )

    def _oracle_and_chance(self, counts: ImageCounts, column: int) -> dict[str, Any]:
        """Return the number of proposals, the best of them, and what chance scores."""
        names = ("num_proposals", "oracle_area", "oracle_intersection", "chance_iou")
        if not self.method.needs_proposals:
            return dict.fromkeys(names)
        ious_N = counts.ious(column)
        if not len(ious_N):
            return dict(zip(names, (0, 0, 0, 0.0), strict=True))
        best = counts.prediction(int(ious_N.argmax()), column)
        values = (len(ious_N), best.area, best.intersection, float(ious_N.mean()))
        return dict(zip(names, values, strict=True))

    def _predicted(
        self, ref: Ref, variant: str, prediction: Prediction, counts: ImageCounts, column: int
    ) -> PredictionCounts:
        if variant in prediction.masks:
            masks_1HW = prediction.masks[variant][None]
            counts = ImageCounts.of(masks_1HW, self.gt_mask(ref)[None])
            return msgspec.structs.replace(counts.prediction(0, 0), proposal=None)
        index = prediction.proposals.get(variant)
        counted = counts.prediction(index, column)
        if index is None:
            return counted
        similarity_N = prediction.similarity_N
        return msgspec.structs.replace(
            counted,
            similarity=None if similarity_N is None else _rounded(similarity_N[index]),
            score=_rounded(prediction.scores.get(variant, math.nan)),
        )

    def any_readable(self, image_ids: Iterable[int]) -> bool:
        """Tell whether one of some images can be decoded."""
        return not all(self.reading_error(image_id) for image_id in image_ids)

    def reading_error(self, image_id: int) -> str:
        """Say why an image cannot be decoded; empty where it can."""
        try:
            _ = self.split.open_image(image_id).pixels_HW3
        except ImageError as error:
            return str(error)
        return ""

    def images_sha256(self) -> str:
        """Hash the content of all image files that are there."""
        ids = [image_id for image_id in self.split.images if image_id not in self._unreadable]
        files = [[one, file_sha256(self.split.image_path(one))] for one in ids]
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()

    def _samples(self, image_id: int) -> list[tuple[Ref, Sentence]]:
        """Sentences of an image, each with its ref; none for refs without sentences.

        They are named among the split's warnings.
        """
        refs = self._refs_by_image[image_id]
        return [(ref, sentence) for ref in refs for sentence in ref.sentences]

    def _key(self, image_id: int) -> str:
        info = self.split.images[image_id]
        inputs = {
            **self._inputs,
            "image_id": image_id,
            "image": file_sha256(self.split.image_path(image_id)),
            "hw": [info.height, info.width],
            **({"turned": True} if image_id in self.split.image_errors.turned else {}),
        }
        return entry_key(_KIND, inputs)


def _rounded(value: float) -> float | None:
    """Return a number as records have it; None for NaN."""
    return None if math.isnan(value) else round(float(value), _DECIMALS)


def _overlaps(models: Models) -> bool:
    """Tell whether two threads may give work to the device.

    A CPU gains nothing by it, and in torch 2.11 no thread may run what is compiled while another
    compiles.
    """
    return models.device.type == "cuda" and not models.compiles


def _finished(
    submitted: tuple[_Opened, Finish | None],
) -> tuple[_Opened, Proposals | None]:
    opened, finish = submitted
    with timer("proposals"):
        return opened, finish() if finish else None
