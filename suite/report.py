"""What a run leaves for people: scores, the printed table, and figures of some samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

from hybridgl.figures import GalleryItem, draw_gallery, draw_prediction
from hybridgl.metrics import Overlap, iou, mean_iou, overall_iou, precision_at
from hybridgl.pipeline import HybridGL
from refer.reader import ReferSplit
from suite.evaluation import open_image
from third_party.published import published_scores
from utils.records import PICKS, Record
from utils.store import atomic_write_bytes, sweep_partials
from utils.tables import breakdown

__all__ = ["draw_samples", "overlaps", "score_by_pick", "score_report"]

_FIGURES_OF_EACH_SORT = 3
_GALLERY_ITEMS = 8

_LEGEND = (
    "pure: by mask features alone; guided: the method; no_gem: relations without GEM (alpha 0);",
    "random: mean over all proposals; best: the proposal nearest the truth. All in percent.",
)


def overlaps(records: Sequence[Record], pick: str) -> list[Overlap]:
    """Counts of one of the picks."""
    return [
        Overlap(getattr(r, f"intersection_{pick}"), getattr(r, f"union_{pick}")) for r in records
    ]


def score_by_pick(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Precision, oIoU and mIoU of every pick, and mIoU of the yardsticks, in percent."""
    scores = {
        pick: {
            "oIoU": overall_iou(overlaps(records, pick)),
            "mIoU": mean_iou(overlaps(records, pick)),
            "P@0.5": precision_at(overlaps(records, pick), 0.5),
        }
        for pick in PICKS
    }
    for name in ("random", "best"):
        mean = sum(getattr(r, f"{name}_iou") for r in records) / len(records)
        scores[name] = {"mIoU": 100 * mean}
    return scores


def score_report(
    split: ReferSplit, records: Sequence[Record], setting: str, problems: Sequence[str]
) -> str:
    """Scores by kind of expression, the totals, and what is published.

    Args:
        split: the data.
        records: of one run, at least one.
        setting: what the run was made with, to be held against the published setting.
        problems: what is doubtful about data or weights.
    """
    columns = {
        f"{score} {pick}": lambda rows, score=score, pick=pick: score_by_pick(rows)[pick][score]
        for score, picks in (("mIoU", (*PICKS, "random", "best")), ("P@0.5", PICKS))
        for pick in picks
    }
    table = breakdown(records, lambda r: r.kind or "all", columns, title="kind")
    scores = score_by_pick(records)
    lines = [table.markdown(), *_LEGEND, ""]
    for name, pick in (("pure features", "pure"), ("with guidance", "guided")):
        lines.append(f"{name}: oIoU {scores[pick]['oIoU']:.2f}  mIoU {scores[pick]['mIoU']:.2f}")
    without = sum(r.num_proposals == 0 for r in records)
    lines.append(f"{len(records)} samples, {without} without proposals")
    lines += [f"note: {problem}" for problem in problems]
    lines.append(f"this run: {setting}")
    for published in published_scores(split.dataset, split.split_by, split.split):
        oiou = "-" if published.oiou is None else f"{published.oiou:.2f}"
        lines.append(f"published, {published.what}: oIoU {oiou}  mIoU {published.miou:.2f}")
        lines.append(f"    ({published.source})")
    return "\n".join(lines)


def draw_samples(
    model: HybridGL,
    split: ReferSplit,
    records: Sequence[Record],
    caps: dict[int, int],
    folder: Path,
) -> None:
    """Figures of the best, the worst and some random guided picks, and a gallery of random ones.

    Args:
        model: the method, with what the records were made from in its store.
        split: the data.
        records: of one run, at least one.
        caps: cap on the candidate counts of every ref.
        folder: gets ``best-1.png`` and so on, and ``gallery.png``; made if missing.
    """
    sweep_partials(folder)
    for earlier in folder.glob("*.png"):
        earlier.unlink()
    order = sorted(records, key=lambda r: iou(overlaps([r], "guided")[0]))
    few = min(_FIGURES_OF_EACH_SORT, len(order))
    shuffled = Random(0).sample(order, len(order))
    sorts = {"worst": order[:few], "best": order[::-1][:few], "random": shuffled[:few]}
    refs = {ref.ref_id: ref for ref in split.refs}
    drop_overlaps = model.config.quirks.overlapping_polygons_dropped
    for sort, chosen in sorts.items():
        for rank, record in enumerate(chosen, start=1):
            image = open_image(split, record.image_id)
            proposals, expressions = model.propose(image), model.parse([record.sentence])
            prediction = model.predict(image, proposals, expressions, [caps[record.ref_id]])[0]
            figure = draw_prediction(
                image.pixels_HW3,
                proposals,
                prediction,
                model.heat_map(prediction, image.hw),
                title=f"ref {record.ref_id}, sentence {record.sent_id}: {record.sentence!r}",
                truth_HW=split.truth(refs[record.ref_id], drop_overlaps=drop_overlaps),
            )
            atomic_write_bytes(folder / f"{sort}-{rank}.png", figure)
    shown = [record for record in shuffled if record.pick_guided is not None][:_GALLERY_ITEMS]
    if shown:
        gallery = draw_gallery(
            [
                GalleryItem(
                    image_HW3=image.pixels_HW3,
                    mask_HW=model.propose(image).masks_NHW[record.pick_guided],
                    truth_HW=split.truth(refs[record.ref_id], drop_overlaps=drop_overlaps),
                    expression=record.sentence.strip(),
                )
                for record in shown
                for image in [open_image(split, record.image_id)]
            ],
        )
        atomic_write_bytes(folder / "gallery.png", gallery)
