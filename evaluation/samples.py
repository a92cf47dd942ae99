"""Figures of a run: its best, its worst and some random predictions, and a gallery."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from random import Random

from evaluation.evaluate import Evaluation, Made
from evaluation.records import Record
from hybridgl.figures import GalleryItem, draw_gallery, draw_prediction
from hybridgl.files import atomic_write_bytes, sweep_partials
from hybridgl.methods import Prediction
from refer.dataset import Ref

__all__ = ["draw_samples", "drawn_figures"]

_FIGURE = re.compile(r"(worst|best|random)-\d+\.png|gallery\.png")
_FIGURES_OF_EACH_SORT = 3
_GALLERY_ITEMS = 8


def drawn_figures(folder: Path) -> list[Path]:
    """List the figures that ``draw_samples`` has left in a folder, the gallery first."""
    found = [path for path in sorted(folder.glob("*.png")) if _FIGURE.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.stem != "gallery")


def draw_samples(evaluation: Evaluation, made: Sequence[Made], folder: Path) -> None:
    """Draw the best, the worst and some random predictions, and a gallery of random ones.

    Args:
        evaluation: that made the records.
        made: records of one run, at least one.
        folder: gets ``best-1.png`` and so on, and ``gallery.png``; made if missing.
    """
    sweep_partials(folder)
    for earlier in drawn_figures(folder):
        earlier.unlink()
    variant = evaluation.method.variants[-1]
    shown = [one for one in made if not one[0].image_error]
    order = sorted(shown, key=lambda one: one[0].iou(variant))
    few = min(_FIGURES_OF_EACH_SORT, len(order))
    shuffled = Random(0).sample(order, len(order))
    sorts = {"worst": order[:few], "best": order[::-1][:few], "random": shuffled[:few]}
    refs = {ref.ref_id: ref for ref in evaluation.split.refs}
    for sort, chosen in sorts.items():
        for rank, (record, limit) in enumerate(chosen, start=1):
            figure = _draw(evaluation, refs[record.ref_id], record, limit)
            atomic_write_bytes(folder / f"{sort}-{rank}.png", figure)
    found = (_item(evaluation, refs[record.ref_id], record, limit) for record, limit in shuffled)
    items = list(itertools.islice((item for item in found if item is not None), _GALLERY_ITEMS))
    if items:
        atomic_write_bytes(folder / "gallery.png", draw_gallery(items))


def _draw(evaluation: Evaluation, ref: Ref, record: Record, limit: int | None) -> bytes:
    """Draw the figure of one prediction, a PNG file."""
    image = evaluation.split.open_image(record.image_id)
    (finish,) = evaluation.source.submit([(record.image_id, image)])
    prediction = evaluation.predict(ref, record.sent_id, limit)
    return draw_prediction(
        image.pixels_HW3,
        finish(),
        prediction,
        prediction.attention(image.hw) if prediction.attention is not None else None,
        title=f"ref {record.ref_id}, sentence {record.sent_id}: {record.sentence!r}",
        gt_mask_HW=evaluation.gt_mask(ref),
    )


def _item(
    evaluation: Evaluation, ref: Ref, record: Record, limit: int | None
) -> GalleryItem | None:
    """Return what a gallery shows of one prediction; None where nothing is predicted."""
    variant = evaluation.method.variants[-1]
    prediction: Prediction = evaluation.predict(ref, record.sent_id, limit)
    image = evaluation.split.open_image(record.image_id)
    if variant in prediction.masks:
        mask_HW = prediction.masks[variant]
    elif variant in prediction.proposals:
        (finish,) = evaluation.source.submit([(record.image_id, image)])
        mask_HW = finish().masks_NHW[prediction.proposals[variant]]
    else:
        return None
    return GalleryItem(
        image_HW3=image.pixels_HW3,
        mask_HW=mask_HW,
        gt_mask_HW=evaluation.gt_mask(ref),
        expression=record.sentence.strip(),
    )
