"""What a run leaves for people: scores, printed and as files, and figures of some samples."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from evaluation.breakdowns import Breakdown
from evaluation.methods import Method
from evaluation.proposals import ProposalSource
from evaluation.published import SOURCES, published
from evaluation.records import Pick, Record
from hybridgl.figures import GalleryItem, draw_gallery, draw_prediction
from hybridgl.files import atomic_write_bytes, sweep_partials
from hybridgl.metrics import EvaluationProtocol, bootstrap_intervals, scores
from refer.dataset import Id, ReferSplit
from utils.tables import Table, breakdown

__all__ = [
    "breakdown_table",
    "draw_samples",
    "intervals_by_pick",
    "points_lost",
    "report_text",
    "score_by_pick",
    "scored_records",
]

_FIGURE = re.compile(r"(worst|best|random)-\d+\.png|gallery\.png")
_FIGURES_OF_EACH_SORT = 3
_GALLERY_ITEMS = 8

_PICK_NAMES = {
    "pure": "pure features",
    "guided": "with guidance",
    "no_gem": "with guidance, without GEM",
}

_PUBLISHED_NAMES = {"hybridgl": "HybridGL", "global_local": "Global-Local CLIP"}

_LEGEND = {
    "pure": "by mask features alone",
    "guided": "the method",
    "no_gem": "relations without GEM (alpha 0)",
    "random": "mean over all proposals",
    "best": "the proposal nearest the truth",
}


def scored_records(records: Sequence[Record], *, skips_without_proposals: bool) -> list[Record]:
    """The records that scores are computed from.

    Args:
        records: of a run.
        skips_without_proposals: quirk Q8: those without proposals are left out, but for those whose
            image cannot be read, which are a error of the data. Where that leaves none, all stay.
    """
    kept = [record for record in records if record.num_proposals or record.image_missing]
    return kept if skips_without_proposals and kept else list(records)


def score_by_pick(
    records: Sequence[Record], protocol: EvaluationProtocol
) -> dict[str, dict[str, float]]:
    """All scores of every pick, and the mean IoU of the yardsticks, in percent.

    Yardsticks are compared at the annotated size under every protocol.

    Args:
        records: at least one, of one run.
        protocol: how scores are computed.
    """
    by_pick = {
        pick: scores(*_counts(records, pick, protocol), protocol) for pick in _picks(records)
    }
    for name in ("random", "best"):
        mean = sum(getattr(record, f"{name}_iou") for record in records) / len(records)
        by_pick[name] = {protocol.mean_name: 100 * mean}
    return by_pick


def points_lost(
    by_pick: Mapping[str, Mapping[str, float]], pick: str, protocol: EvaluationProtocol
) -> dict[str, float]:
    """What keeps the mean IoU of a pick from 100, in points: the proposals, or the choice.

    Args:
        by_pick: from ``score_by_pick``.
        pick: way of picking.
        protocol: of the scores. Where it is not the yardsticks' own, at the annotated size and 0
            for two empty masks, the result is empty.
    """
    if protocol.at_480 or protocol.empty_union:
        return {}
    best, picked = by_pick["best"][protocol.mean_name], by_pick[pick][protocol.mean_name]
    return {"proposals": 100 - best, "choice": best - picked}


def intervals_by_pick(
    records: Sequence[Record], protocol: EvaluationProtocol
) -> dict[str, dict[str, list[float]]]:
    """95 % intervals of all scores of every pick, by bootstrap over images, in percent."""
    image_ids = [record.image_id for record in records]
    return {
        pick: {
            name: list(interval)
            for name, interval in bootstrap_intervals(
                image_ids, *_counts(records, pick, protocol), protocol
            ).items()
        }
        for pick in _picks(records)
    }


def breakdown_table(
    records: Sequence[Record], protocol: EvaluationProtocol, groups: Breakdown
) -> Table:
    """Scores of every group of records.

    Args:
        records: at least one, of one run.
        protocol: how scores are computed.
        groups: what they are grouped by.
    """
    mean_name = protocol.mean_name
    wanted = [(mean_name, name) for name in (*_picks(records), "random", "best")]
    if protocol.precisions:
        wanted += [(f"P@{protocol.precisions[0]:g}", name) for name in _picks(records)]

    def scores_of(group: Sequence[Record]) -> dict[str, float]:
        scored = score_by_pick(group, protocol)
        return {f"{score} {name}": scored[name][score] for score, name in wanted}

    return breakdown(records, groups.group_of, scores_of, title=groups.title, order=groups.order)


def report_text(
    split: ReferSplit,
    records: Sequence[Record],
    summary: Mapping[str, Any],
    protocol: EvaluationProtocol,
    tables: Iterable[Table],
) -> str:
    """Tables by groups of expressions, the totals, and what is published.

    Args:
        split: the data.
        records: that are scored, at least one.
        summary: of the run.
        protocol: how scores are computed.
        tables: from ``breakdown_table``.
    """
    lines: list[str] = []
    for table in tables:
        lines += [table.markdown(), ""]
    legend = [f"{name}: {_LEGEND[name]}" for name in (*_picks(records), "random", "best")]
    lines += [f"{'; '.join(legend)}. All in percent.", ""]
    lines += _totals(records, summary, protocol)
    lines += [f"note: {problem}" for problem in summary["warnings"]]
    method_name = summary["settings"]["method"]["name"]
    lines.append(f"this run: {summary['setting']}")
    lines += _published(split, method_name)
    return "\n".join(lines)


def _published(split: ReferSplit, method_name: str) -> list[str]:
    """What is published for a method on a split, with the sources."""
    cell = (split.dataset, split.split_by, split.split)
    rows = published(*cell, method=_PUBLISHED_NAMES[method_name])
    lines = []
    for row_id in dict.fromkeys(row.row_id for row in rows):
        of_id = [row for row in rows if row.row_id == row_id]
        values = "  ".join(
            f"{row.metric} {row.text(cell)} [{SOURCES[row.source].mark}]" for row in of_id
        )
        lines.append(f"published, {of_id[0].method}, {of_id[0].setting}: {values}")
    for key in dict.fromkeys(row.source for row in rows):
        source = SOURCES[key]
        secondary = "secondary source: " if source.secondary else ""
        lines.append(f"    [{source.mark}] {secondary}{source.text}")
    return lines


def _totals(
    records: Sequence[Record], summary: Mapping[str, Any], protocol: EvaluationProtocol
) -> list[str]:
    lines = []
    for pick in _picks(records):
        by_name, intervals = summary["scores"][pick], summary["intervals"][pick]
        named = "  ".join(f"{name} {by_name[name]:.2f}" for name in list(by_name)[:2])
        spans = ", ".join(
            f"{name} {low:.2f} to {high:.2f}" for name, (low, high) in list(intervals.items())[:2]
        )
        lines.append(f"{_PICK_NAMES.get(pick, pick)}: {named}  (95 %: {spans})")
        precisions = [f"{name} {value:.2f}" for name, value in list(by_name.items())[2:]]
        if precisions:
            lines.append(f"    {'  '.join(precisions)}")
    best = f"{protocol.mean_name} {summary['scores']['best'][protocol.mean_name]:.2f}"
    lost = ", ".join(f"the {what} lost {points:.2f}" for what, points in summary["lost"].items())
    lines.append(f"best proposal: {best}" + (f"; of 100, {lost}" if lost else ""))
    counts = summary["counts"]
    lines.append(
        f"{counts['sentences']} samples, {counts['without_proposals']} without proposals"
        + (f", {counts['left_out']} of them left out (Q8)" if counts["left_out"] else "")
        + f"; protocol {protocol.name}"
    )
    return lines


def draw_samples(
    method: Method,
    source: ProposalSource,
    split: ReferSplit,
    records: Sequence[Record],
    k_limits: Mapping[Id, int],
    folder: Path,
) -> None:
    """Figures of the best, the worst and some random picks, and a gallery of random ones.

    Args:
        method: with what the records were made from in its store.
        source: proposals.
        split: the data.
        records: of one run, at least one.
        k_limits: effective k_limit of every ref.
        folder: gets ``best-1.png`` and so on, and ``gallery.png``; made if missing.
    """
    sweep_partials(folder)
    for earlier in folder.glob("*.png"):
        if _FIGURE.fullmatch(earlier.name):
            earlier.unlink()
    pick_of = method.final_pick
    shown = [record for record in records if not record.image_missing]
    order = sorted(shown, key=lambda record: _iou(record.picks[pick_of]))
    few = min(_FIGURES_OF_EACH_SORT, len(order))
    shuffled = Random(0).sample(order, len(order))
    sorts = {"worst": order[:few], "best": order[::-1][:few], "random": shuffled[:few]}
    refs = {ref.ref_id: ref for ref in split.refs}
    drop_overlaps = method.quirks.overlapping_polygons_dropped
    for sort, chosen in sorts.items():
        for rank, record in enumerate(chosen, start=1):
            image = split.open_image(record.image_id)
            proposals = source.propose(record.image_id, image)
            (sample,) = method.score(image, proposals, method.parse([record.sentence]))
            prediction = method.choose(sample, k_limits[record.ref_id])
            figure = draw_prediction(
                image.pixels_HW3,
                proposals,
                prediction,
                method.attention_map(prediction, image.hw),
                title=f"ref {record.ref_id}, sentence {record.sent_id}: {record.sentence!r}",
                gt_mask_HW=split.gt_mask(
                    refs[record.ref_id], overlapping_polygons_dropped=drop_overlaps
                ),
            )
            atomic_write_bytes(folder / f"{sort}-{rank}.png", figure)
    items = []
    for record in [r for r in shuffled if r.picks[pick_of].index is not None][:_GALLERY_ITEMS]:
        image = split.open_image(record.image_id)
        items.append(
            GalleryItem(
                image_HW3=image.pixels_HW3,
                mask_HW=source.propose(record.image_id, image).masks_NHW[
                    record.picks[pick_of].index
                ],
                gt_mask_HW=split.gt_mask(
                    refs[record.ref_id], overlapping_polygons_dropped=drop_overlaps
                ),
                expression=record.sentence.strip(),
            )
        )
    if items:
        atomic_write_bytes(folder / "gallery.png", draw_gallery(items))


def _picks(records: Sequence[Record]) -> list[str]:
    return list(records[0].picks)


def _counts(
    records: Sequence[Record], pick: str, protocol: EvaluationProtocol
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]:
    """Intersections and unions of a pick, at the resolution of the protocol."""
    suffix = "_480" if protocol.at_480 else ""
    taken = [record.picks[pick] for record in records]
    return (
        np.array([getattr(one, f"intersection{suffix}") for one in taken], dtype=np.int64),
        np.array([getattr(one, f"union{suffix}") for one in taken], dtype=np.int64),
    )


def _iou(pick: Pick) -> float:
    return pick.intersection / pick.union if pick.union else 0.0
