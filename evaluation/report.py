"""Scores of a run for people: records in, text and JSON out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.published import SOURCES, published
from evaluation.records import Record
from hybridgl import metrics
from hybridgl.metrics import EvaluationProtocol
from hybridgl.timing import timer
from utils.tables import Table

__all__ = ["BREAKDOWNS", "Breakdown", "Report", "ReportContext"]

_VARIANT_NAMES = {
    "features": "mask features alone",
    "relations": "with guidance, without GEM",
    "guided": "with guidance",
}
_LEGEND = {
    "features": "by mask features alone",
    "relations": "relations without GEM (alpha 0)",
    "guided": "the method",
    "chance": "mean over all proposals",
    "oracle": "the proposal nearest the ground truth",
}
_PUBLISHED_NAMES = {"hybridgl": "HybridGL", "global_local": "Global-Local CLIP"}

_SMALL, _LARGE = 32**2, 96**2
_WORDS = ((2, "1-2"), (5, "3-5"), (10, "6-10"))


@dataclass(frozen=True, slots=True)
class Breakdown:
    """A way to group records.

    Attributes:
        title: what the groups are of.
        group_of: name of a record's group.
        order: of the groups whose order is not that of their names.
    """

    title: str
    group_of: Callable[[Record], str]
    order: tuple[str, ...] = ()


def _other_nouns(record: Record) -> str:
    if record.num_other_nouns is None:
        return "none"
    return str(record.num_other_nouns) if record.num_other_nouns < 3 else "3 or more"


def _length(record: Record) -> str:
    words = len(record.sentence.split())
    return next((name for most, name in _WORDS if words <= most), "11 or more")


def _target_size(record: Record) -> str:
    if record.gt_area < _SMALL:
        return "small"
    return "medium" if record.gt_area < _LARGE else "large"


BREAKDOWNS: Mapping[str, Breakdown] = {
    "kind": Breakdown("kind", lambda record: record.kind or "none"),
    "position": Breakdown("position word", lambda record: record.position or "none", ("none",)),
    "relation": Breakdown("relation word", lambda record: record.relation or "none", ("none",)),
    "other_nouns": Breakdown("other nouns", _other_nouns),
    "length": Breakdown("words", _length, (*(name for _, name in _WORDS), "11 or more")),
    "target_size": Breakdown("target size", _target_size, ("small", "medium", "large")),
}
"""By name. Sizes are COCO's: small below 32 x 32 pixels, large from 96 x 96."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportContext:
    """What a report says besides scores.

    Attributes:
        dataset: of the run.
        split_by: author of its splits.
        split: of the run.
        method: name of the method.
        setting: what the run was made with, in a line.
        counts: of the run; ``sentences`` and ``without_proposals`` are shown.
        warnings: what speaks against taking the scores as they are, a line each.
        notes: what else should be known of the run, a line each.
        origin: when, by which command and where the records were made, a line each.
        figures: paths of the figures, from the page's folder.
    """

    dataset: str
    split_by: str
    split: str
    method: str
    setting: str
    counts: Mapping[str, int]
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
    origin: Sequence[str] = ()
    figures: Sequence[str] = ()


@dataclass(frozen=True)
class Report:
    """Scores of records under one protocol, in percent.

    Attributes:
        records: that are scored, at least one, of one run.
        protocol: how.
        left_out: how many records of the run are not among them.
    """

    records: Sequence[Record]
    protocol: EvaluationProtocol
    left_out: int = 0

    @classmethod
    def of(
        cls,
        records: Sequence[Record],
        protocol: EvaluationProtocol,
        *,
        skips_without_proposals: bool = False,
    ) -> Report:
        """Score the records of a run.

        Args:
            records: at least one.
            protocol: how scores are computed.
            skips_without_proposals: quirk Q8: those without proposals are left out, but for those
                whose image cannot be read, which are errors of the data. Where that leaves none,
                all stay.
        """
        kept = [r for r in records if r.num_proposals != 0 or r.image_error]
        scored = kept if skips_without_proposals and kept else list(records)
        return cls(scored, protocol, len(records) - len(scored))

    @property
    def variants(self) -> list[str]:
        """Ways of predicting; the last one is the method."""
        return list(self.records[0].predictions)

    @cached_property
    def scores(self) -> dict[str, dict[str, float]]:
        """All scores of every variant; the mean IoU of chance and oracle, where there are any.

        These two are compared at the annotated size under every protocol.
        """
        by_variant = {
            name: metrics.scores(*self._counts(name), self.protocol) for name in self.variants
        }
        for name in ("chance", "oracle"):
            ious = [getattr(record, f"{name}_iou") for record in self.records]
            if None not in ious:
                by_variant[name] = {self.protocol.mean_name: 100 * (sum(ious) / len(ious))}
        return by_variant

    @cached_property
    @timer("intervals")
    def intervals(self) -> dict[str, dict[str, list[float]]]:
        """95 % intervals of all scores of every variant, by bootstrap over images."""
        image_ids = [record.image_id for record in self.records]
        by_variant = {
            name: metrics.bootstrap_intervals(image_ids, *self._counts(name), self.protocol)
            for name in self.variants
        }
        return {
            variant: {name: list(interval) for name, interval in by_name.items()}
            for variant, by_name in by_variant.items()
        }

    @property
    def lost(self) -> dict[str, float]:
        """What keeps the method's mean IoU from 100, in points: the proposals, or the choice.

        Empty where the protocol is not that of oracle and chance (at the annotated size, 0 for two
        empty masks), and for a method without proposals.
        """
        if self.protocol.at_480 or self.protocol.empty_union or "oracle" not in self.scores:
            return {}
        mean = self.protocol.mean_name
        oracle, own = self.scores["oracle"][mean], self.scores[self.variants[-1]][mean]
        return {"proposals": 100 - oracle, "choice": oracle - own}

    def groups(self, name: str) -> dict[str, Report]:
        """Divide the records by a breakdown.

        Args:
            name: key of ``BREAKDOWNS``.

        Returns:
            A report for each group, in the order of the breakdown; none where there is one group.
        """
        breakdown = BREAKDOWNS[name]
        members: dict[str, list[Record]] = {}
        for record in self.records:
            members.setdefault(breakdown.group_of(record), []).append(record)
        names = [group for group in breakdown.order if group in members]
        names += sorted(members.keys() - set(breakdown.order))
        return {n: Report(members[n], self.protocol) for n in names} if len(names) > 1 else {}

    def breakdown(self, name: str) -> dict[str, dict[str, float]]:
        """Return number of records, mean IoUs and precision of every group, "all" the last.

        Args:
            name: key of ``BREAKDOWNS``.
        """
        mean_name, precisions = self.protocol.mean_name, self.protocol.precisions
        wanted = [(mean_name, variant) for variant in self.scores]
        if precisions:
            wanted += [(f"P@{precisions[0]:g}", variant) for variant in self.variants]
        return {
            group: {"n": len(report.records)}
            | {f"{score} {by}": round(report.scores[by][score], 2) for score, by in wanted}
            for group, report in {**self.groups(name), "all": self}.items()
        }

    def json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "scores": self.scores,
            "lost": self.lost,
            "intervals": self.intervals,
            "breakdowns": {name: self.breakdown(name) for name in BREAKDOWNS},
            "left_out": self.left_out,
        }

    def text(self, context: ReportContext) -> str:
        """Return what the program prints: the table by kind, the totals, what is published."""
        lines = ["    " * deep + line for deep, line in self._lines(context)]
        return "\n".join([self._table("kind"), "", *lines])

    def markdown(self, context: ReportContext) -> str:
        """Return a page: the tables of all breakdowns, the lines of ``text``, and the figures."""
        method = _PUBLISHED_NAMES.get(context.method, context.method)
        title = f"# {method} on {context.dataset} {context.split}\n"
        tables = [f"{self._table(name)}\n" for name in BREAKDOWNS]
        lines = ["  " * deep + f"* {line}" for deep, line in self._lines(context)]
        figures = [f"![{Path(path).stem}]({path})\n" for path in context.figures]
        shown = ["", "## Figures", "", *figures] if figures else []
        return "\n".join([title, *_paragraph(context.origin), *tables, *lines, *shown])

    def _table(self, name: str) -> str:
        rows = self.breakdown(name)
        return Table(
            (BREAKDOWNS[name].title, *rows["all"]),
            tuple(
                (group, *(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()))
                for group, row in rows.items()
            ),
        ).markdown()

    def _lines(self, context: ReportContext) -> Iterator[tuple[int, str]]:
        """Say what stands below the tables, each line with its depth."""
        legend = [f"{name}: {_LEGEND[name]}" for name in self.scores if name in _LEGEND]
        yield 0, f"{'; '.join(legend)}. All in percent."
        for variant in self.variants:
            yield from self._totals(variant)
        if "oracle" in self.scores:
            oracle = (
                f"{self.protocol.mean_name} {self.scores['oracle'][self.protocol.mean_name]:.2f}"
            )
            lost = ", ".join(f"the {what} lost {points:.2f}" for what, points in self.lost.items())
            yield 0, f"oracle: {oracle}" + (f"; of 100, {lost}" if lost else "")
        yield (
            0,
            f"{context.counts['sentences']} samples, {context.counts['without_proposals']} without "
            f"proposals"
            + (f", {self.left_out} of them left out (Q8)" if self.left_out else "")
            + f"; protocol {self.protocol.name}",
        )
        yield from ((0, f"note: {line}") for line in (*context.warnings, *context.notes))
        yield 0, f"this run: {context.setting}"
        yield from _published_lines(context)

    def _totals(self, variant: str) -> Iterator[tuple[int, str]]:
        by_name, intervals = self.scores[variant], self.intervals[variant]
        overall_and_mean, precisions = list(by_name)[:2], list(by_name)[2:]
        named = "  ".join(f"{name} {by_name[name]:.2f}" for name in overall_and_mean)
        spans = ", ".join(f"{name} {_span(intervals[name])}" for name in overall_and_mean)
        yield 0, f"{_VARIANT_NAMES.get(variant, variant)}: {named}  (95 %: {spans})"
        if precisions:
            yield 1, "  ".join(f"{name} {by_name[name]:.2f}" for name in precisions)

    def _counts(self, variant: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Intersections and unions of a variant, at the resolution of the protocol."""
        if self.protocol.at_480:
            pairs = [
                (r.predictions[variant].intersection_480, r.union_480(variant))
                for r in self.records
            ]
        else:
            pairs = [(r.predictions[variant].intersection, r.union(variant)) for r in self.records]
        intersections, unions = np.array(pairs, dtype=np.int64).T
        return intersections, unions


def _paragraph(lines: Sequence[str]) -> list[str]:
    return [*lines, ""] if lines else []


def _span(interval: Sequence[float]) -> str:
    return "{:.2f} to {:.2f}".format(*interval)


def _published_lines(context: ReportContext) -> Iterator[tuple[int, str]]:
    """Say what is published for the method on the split, then the sources."""
    if context.method not in _PUBLISHED_NAMES:
        return
    cell = (context.dataset, context.split_by, context.split)
    rows = published(cell, _PUBLISHED_NAMES[context.method])
    for row_id in dict.fromkeys(row.row_id for row in rows):
        of_id = [row for row in rows if row.row_id == row_id]
        values = "  ".join(
            f"{row.metric} {row.text(cell)} [{SOURCES[row.source].mark}]" for row in of_id
        )
        yield 0, f"published, {of_id[0].method}, {of_id[0].setting}: {values}"
    for source in dict.fromkeys(row.source for row in rows):
        yield 1, SOURCES[source].footnote
