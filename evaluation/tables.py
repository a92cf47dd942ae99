"""The tables of the papers: which runs they take, and which published row stands beside each.

A row's run is a list of arguments of ``hybridgl_main.py``; rows may share a run and differ in the
pick. Rows that only others have measured have no run. A published value is shown as its source has
it or not at all, and a difference to it only where nothing speaks against comparing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evaluation.breakdowns import BREAKDOWNS
from evaluation.published import ROWS, SOURCES, Cell, Metric
from evaluation.records import Record
from evaluation.report import intervals_by_pick, score_by_pick
from hybridgl.config import FusionMode, GuidanceConfig
from hybridgl.metrics import EvaluationProtocol
from utils.tables import Table

__all__ = [
    "TABLES",
    "Choices",
    "Entry",
    "GroupScores",
    "Measured",
    "PaperTable",
    "TableRow",
    "filled_table",
    "group_scores",
    "paper_table",
]

_NOTHING = "-"
_NOT_MADE = "not made"

_METRICS: tuple[Metric, ...] = ("mIoU", "oIoU")

_PUBLISHED_CONVENTION = "zero-shot"
_PUBLISHED_CONVENTIONS = {"phrasecut": "phrasecut"}
"""What published values were computed by, for the datasets where that is another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One method in one setting.

    Attributes:
        method: as its authors call it.
        setting: what sets the row apart.
        arguments: of ``hybridgl_main.py``, besides data, weights and folders; None where there is
            nothing to run.
        pick: way of picking; None is the method's own.
        published_id: ``row_id`` of the published row; None where there is none.
    """

    method: str
    setting: str
    arguments: tuple[str, ...] | None = None
    pick: str | None = None
    published_id: str | None = None


@dataclass(frozen=True, slots=True)
class PaperTable:
    """A table.

    Attributes:
        title: one line.
        rows: of every split.
        protocol: how its scores are computed; None is the one that is asked for.
        by_kind: whether each row is repeated for every kind of expression.
    """

    title: str
    rows: tuple[TableRow, ...]
    protocol: str | None = None
    by_kind: bool = False


@dataclass(frozen=True, slots=True)
class Choices:
    """What rows depend on besides the split.

    Attributes:
        tiny: the weights are the bundled ones, which have one CLIP.
        freesolo: COCO-results file of FreeSOLO's masks, where there is one.
    """

    tiny: bool
    freesolo: Path | None = field(default=None)


@dataclass(frozen=True, slots=True)
class GroupScores:
    """Scores of a group of a run's records, under one protocol.

    Attributes:
        kind: of the group's expressions; empty for all of them.
        n: records.
        scores: in percent, by pick and yardstick, then by the score's name.
        intervals: of 95 %, by pick, then by the score's name.
    """

    kind: str
    n: int
    scores: Mapping[str, Mapping[str, float]]
    intervals: Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a run gave.

    Attributes:
        groups: all records, then one group for every kind of expression, if there are several.
        final_pick: the way of picking that is the method.
        profile: that it was made with.
        warnings: why its scores do not compare with published ones; empty where they do.
    """

    groups: Sequence[GroupScores]
    final_pick: str
    profile: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """A row on a split.

    Attributes:
        row: the row.
        cell: dataset, split_by and split.
        measured: what its run gave; None where there is none, or it could not be made.
    """

    row: TableRow
    cell: Cell
    measured: Measured | None


def paper_table(name: str, choices: Choices) -> PaperTable:
    """The table of a name in ``TABLES``."""
    return TABLES[name](choices)


def _main(_: Choices) -> PaperTable:
    rows = [
        TableRow(method="HybridGL", setting="pure features", arguments=(), pick="pure"),
        TableRow(method="HybridGL", setting="with guidance", arguments=(), published_id="hybridgl"),
        TableRow(method="HybridGL", setting="relations, without GEM", arguments=(), pick="no_gem"),
    ]
    rows += [_published_only(row_id) for row_id in ("hybridgl-rerun-pure", "hybridgl-rerun-guided")]
    return PaperTable("HybridGL", tuple(rows))


def _baselines(choices: Choices) -> PaperTable:
    baseline = ("--method", "global_local")
    if choices.tiny:
        rows = [
            TableRow(method="Global-Local CLIP", setting="SAM, bundled CLIP", arguments=baseline)
        ]
    else:
        rows = [
            TableRow(
                method="Global-Local CLIP",
                setting=f"SAM, CLIP {model}",
                arguments=(*baseline, "--clip_model", model),
                published_id=f"global_local-sam-{row_id}",
            )
            for model, row_id in (("ViT-B-32", "vit_b_32"), ("RN50", "rn50"))
        ]
    freesolo = None
    if choices.freesolo:
        clip = () if choices.tiny else ("--clip_model", "ViT-B-32")
        freesolo = (*baseline, *clip, "--proposals", f"coco:{choices.freesolo}")
    rows.append(
        TableRow(
            method="Global-Local CLIP",
            setting="FreeSOLO",
            arguments=freesolo,
            published_id="global_local-freesolo",
        )
    )
    others = ("clip_as_rnn", "ref_diff", "tas", "iterprime", "lgd_dino")
    rows += [_published_only(row_id) for row_id in (*others, "pseudo_ris-etris", "pseudo_ris-cris")]
    rows.append(TableRow(method="HybridGL", setting="SAM", arguments=(), published_id="hybridgl"))
    return PaperTable("Baselines", tuple(rows))


def _ablation_fusion(_: Choices) -> PaperTable:
    rows = [
        TableRow(
            method="HybridGL",
            setting=f"{mode.value}, {setting}",
            arguments=("--fusion_mode", mode.value),
            pick=pick,
        )
        for mode in FusionMode
        for pick, setting in (("pure", "pure features"), ("guided", "with guidance"))
    ]
    return PaperTable("Fusion of the two streams", tuple(rows))


def _ablation_guidance(_: Choices) -> PaperTable:
    rows = [TableRow(method="HybridGL", setting="no guidance", arguments=(), pick="pure")]
    for setting, left_out in (
        ("relationship", ("coherence", "position")),
        ("coherence", ("relationship", "position")),
        ("coherence, position", ("relationship",)),
        ("relationship, coherence", ("position",)),
        ("relationship, coherence, position", ()),
    ):
        arguments = ("--without", *left_out) if left_out else ()
        rows.append(TableRow(method="HybridGL", setting=setting, arguments=arguments))
    return PaperTable("Terms of the guidance", tuple(rows))


def _ablation_settings(_: Choices) -> PaperTable:
    guidance = GuidanceConfig()
    constant = (str(guidance.outside_weight),) * 3
    settings: list[tuple[str, ...]] = [("--alpha", f"{n / 5:g}") for n in range(6)]
    settings += [("--sentence_weight", weight) for weight in ("0", "0.5", "1")]
    settings += [("--num_candidates", count) for count in ("1", "2", "3", "5")]
    settings += [("--num_context_masks", count) for count in ("1", "3", "6", "9")]
    settings += [("--coherence_weights", *constant)]
    settings += [("--masking_block", block) for block in ("7", "8", "9", "10")]
    rows = [
        TableRow(
            method="HybridGL",
            setting=f"{name.lstrip('-')} {' '.join(values)}",
            arguments=(name, *values),
        )
        for name, *values in settings
    ]
    return PaperTable("Settings", tuple(rows))


def _phrasecut(choices: Choices) -> PaperTable:
    baseline = ("--method", "global_local")
    clip = () if choices.tiny else ("--clip_model", "ViT-B-32")
    rows = (
        TableRow(method="HybridGL", setting="pure features", arguments=(), pick="pure"),
        TableRow(method="HybridGL", setting="with guidance", arguments=()),
        TableRow(
            method="Global-Local CLIP",
            setting="SAM",
            arguments=(*baseline, *clip),
            published_id="global_local-phrasecut",
        ),
        _published_only("ref_diff-phrasecut"),
    )
    return PaperTable("PhraseCut", rows, protocol="phrasecut", by_kind=True)


TABLES: Mapping[str, Callable[[Choices], PaperTable]] = {
    "main": _main,
    "baselines": _baselines,
    "ablation-fusion": _ablation_fusion,
    "ablation-guidance": _ablation_guidance,
    "ablation-settings": _ablation_settings,
    "phrasecut": _phrasecut,
}
"""What makes a table, by its name."""


def _published_only(row_id: str) -> TableRow:
    row = next(row for row in ROWS if row.row_id == row_id)
    return TableRow(method=row.method, setting=row.setting, published_id=row_id)


def group_scores(records: Sequence[Record], protocol: EvaluationProtocol) -> list[GroupScores]:
    """Scores of all records, then of every kind of expression, where there are several.

    Args:
        records: that are scored, at least one, of one run.
        protocol: how scores are computed.
    """
    by_kind: dict[str, list[Record]] = {}
    for record in records:
        by_kind.setdefault(BREAKDOWNS["kind"].group_of(record), []).append(record)
    kinds = sorted(by_kind.items()) if len(by_kind) > 1 else []
    return [
        GroupScores(
            kind,
            len(members),
            score_by_pick(members, protocol),
            intervals_by_pick(members, protocol),
        )
        for kind, members in [("", list(records)), *kinds]
    ]


def filled_table(
    table: PaperTable, entries: Sequence[Entry], protocol: EvaluationProtocol
) -> tuple[Table, list[str]]:
    """A table with what was measured and what is published, and the notes under it.

    Args:
        table: what is shown.
        entries: in the order of the lines; those that nobody ran or published are left out.
        protocol: that everything was measured under.
    """
    header = ["method", "setting", "split", "n"]
    names = (protocol.mean_name, protocol.overall_name)
    for metric, name in zip(_METRICS, names, strict=True):
        header += [name, f"{name} 95 %", f"{metric} published", f"{name} difference"]
    header += ["best proposal", "profile", "protocol"]
    lines: list[tuple[str, ...]] = []
    sources: dict[str, None] = {}
    warnings: dict[str, None] = {}
    left_out: list[Entry] = []
    for entry in entries:
        theirs = _published(entry, sources)
        if entry.row.arguments is None and not theirs:
            left_out.append(entry)
            continue
        if theirs and entry.measured:
            warnings.update(dict.fromkeys(_warnings(entry.measured, entry.cell, protocol)))
        lines += _lines(table, entry, theirs, protocol)
    notes = [*sources, *(f"not compared with published values: {warning}" for warning in warnings)]
    if left_out:
        notes.append(f"left out, as nobody ran or published it here: {_names(left_out, entries)}")
    notes.append(
        f"{_NOTHING}: nobody's value is known, or there was no run; a difference is only given for "
        f"a whole split without warnings, with the published weights and settings"
    )
    return Table(tuple(header), tuple(lines), text_columns=3), notes


def _warnings(measured: Measured, cell: Cell, protocol: EvaluationProtocol) -> list[str]:
    usual = _PUBLISHED_CONVENTIONS.get(cell[0], _PUBLISHED_CONVENTION)
    warnings = list(measured.warnings)
    if protocol.name != usual:
        warnings.append(f"protocol {protocol.name}, theirs is {usual}")
    return warnings


def _lines(
    table: PaperTable,
    entry: Entry,
    theirs: Mapping[Metric, tuple[str, float]],
    protocol: EvaluationProtocol,
) -> Iterator[tuple[str, ...]]:
    """The line of an entry, and those of its kinds of expressions."""
    row, split, measured = entry.row, entry.cell[2], entry.measured
    if measured is None:
        n = _NOTHING if row.arguments is None else _NOT_MADE
        cells = [c for m in _METRICS for c in (_NOTHING, _NOTHING, _text(theirs, m), _NOTHING)]
        yield (row.method, row.setting, split, n, *cells, *[_NOTHING] * 3)
        return
    comparable = not _warnings(measured, entry.cell, protocol)
    for group in measured.groups if table.by_kind else measured.groups[:1]:
        cells = _score_cells(row, measured, group, {} if group.kind else theirs, protocol)
        if not comparable:
            cells[3::4] = [_NOTHING] * len(_METRICS)
        yield (
            row.method,
            ", ".join(filter(None, [row.setting, group.kind])),
            split,
            str(group.n),
            *cells,
            f"{group.scores['best'][protocol.mean_name]:.2f}",
            measured.profile,
            protocol.name,
        )


def _score_cells(
    row: TableRow,
    measured: Measured,
    group: GroupScores,
    theirs: Mapping[Metric, tuple[str, float]],
    protocol: EvaluationProtocol,
) -> list[str]:
    """For every metric: the score, its interval, the published value, the difference."""
    pick = row.pick or measured.final_pick
    cells = []
    names = (protocol.mean_name, protocol.overall_name)
    for metric, name in zip(_METRICS, names, strict=True):
        value = f"{group.scores[pick][name]:.2f}"
        interval = "{:.2f} to {:.2f}".format(*group.intervals[pick][name])
        difference = f"{float(value) - theirs[metric][1]:+.2f}" if metric in theirs else _NOTHING
        cells += [value, interval, _text(theirs, metric), difference]
    return cells


def _text(theirs: Mapping[Metric, tuple[str, float]], metric: Metric) -> str:
    return theirs[metric][0] if metric in theirs else _NOTHING


def _published(entry: Entry, notes: dict[str, None]) -> dict[Metric, tuple[str, float]]:
    """Published values, each with its source's mark and as a number; the sources are noted."""
    found: dict[Metric, tuple[str, float]] = {}
    for published in ROWS:
        if published.row_id == entry.row.published_id and entry.cell in published.values:
            source = SOURCES[published.source]
            secondary = "secondary source: " if source.secondary else ""
            notes[f"[{source.mark}] {secondary}{source.text}"] = None
            if entry.row.arguments is None and published.setting != entry.row.setting:
                told = published.setting or "no setting"
                notes[f"[{source.mark}] tells {told} of {published.method}"] = None
            text = f"{published.text(entry.cell)} [{source.mark}]"
            found[published.metric] = (text, published.values[entry.cell])
    return found


def _names(left_out: Sequence[Entry], entries: Sequence[Entry]) -> str:
    """The rows that are left out, with their splits where others of theirs are shown."""
    splits: dict[TableRow, list[str]] = {}
    for entry in left_out:
        splits.setdefault(entry.row, []).append(entry.cell[2])
    names = []
    for row, without in splits.items():
        name = f"{row.method} ({row.setting})" if row.setting else row.method
        everywhere = len(without) == sum(entry.row == row for entry in entries)
        names.append(name if everywhere else f"{name} on {', '.join(without)}")
    return "; ".join(names)
