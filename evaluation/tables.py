"""The tables of the papers: which runs they take, and which published row stands beside each.

A row's run is a list of arguments of ``hybridgl_main.py``; rows may share a run and differ in the
variant. Rows that only others have measured have no run. A published value is shown as its source
has it or not at all, and a difference to it only where nothing speaks against comparing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.published import ROWS, SOURCES, Cell, Metric, PublishedRow
from evaluation.report import Report
from hybridgl.config import TERMS, CropBox, FusionMode, GuidanceConfig
from hybridgl.metrics import EvaluationProtocol
from utils.tables import Table

__all__ = ["TABLES", "Entry", "PaperTable", "TableRow", "filled_table", "paper_tables"]

_NOTHING = "-"
_NOT_MADE = "not made"

_METRICS: tuple[Metric, ...] = ("mIoU", "oIoU")

_PUBLISHED_PROTOCOL = "zero-shot"
_PUBLISHED_PROTOCOLS = {"phrasecut": "phrasecut"}
"""What published values were computed by, for the datasets where that is another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One method in one setting.

    Attributes:
        method: as its authors call it.
        setting: what sets the row apart.
        arguments: of ``hybridgl_main.py``, besides data, weights and folders; None where there is
            nothing to run.
        variant: that is shown; None is the method's own.
        published_id: ``row_id`` of the published row; None where there is none.
    """

    method: str
    setting: str
    arguments: tuple[str, ...] | None = None
    variant: str | None = None
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
class Entry:
    """A row on a split, and what its run gave.

    Attributes:
        row: the row.
        cell: dataset, split_by and split.
        report: on the run's records; None where there is no run, or it could not be made.
        profile: that the run was made with.
        warnings: why its scores do not compare with published ones; empty where they do.
    """

    row: TableRow
    cell: Cell
    report: Report | None = None
    profile: str = ""
    warnings: tuple[str, ...] = ()


def paper_tables(*, tiny: bool, freesolo: Path | None = None) -> dict[str, PaperTable]:
    """Return all tables by their names.

    Args:
        tiny: whether the weights are the bundled ones, which have one CLIP.
        freesolo: COCO-results file of FreeSOLO's masks, where there is one.
    """
    return {
        "main": PaperTable("HybridGL", _main()),
        "baselines": PaperTable("Baselines", _baselines(tiny, freesolo)),
        "ablation-fusion": PaperTable("Fusion of the two streams", _fusion()),
        "ablation-guidance": PaperTable("Terms of the guidance", _guidance()),
        "ablation-settings": PaperTable("Settings", _settings()),
        "phrasecut": PaperTable("PhraseCut", _phrasecut(tiny), protocol="phrasecut", by_kind=True),
    }


def _ours(setting: str, *arguments: str, variant: str | None = None) -> TableRow:
    return TableRow(method="HybridGL", setting=setting, arguments=arguments, variant=variant)


def _global_local(setting: str, *arguments: str, published_id: str | None = None) -> TableRow:
    return TableRow(
        method="Global-Local CLIP",
        setting=setting,
        arguments=("--method", "global_local", *arguments),
        published_id=published_id,
    )


def _published_only(row_id: str) -> TableRow:
    row = next(row for row in ROWS if row.row_id == row_id)
    return TableRow(method=row.method, setting=row.setting, published_id=row_id)


def _main() -> tuple[TableRow, ...]:
    return (
        _ours("mask features alone", variant="features"),
        TableRow(method="HybridGL", setting="with guidance", arguments=(), published_id="hybridgl"),
        _ours("relations, without GEM", variant="relations"),
        _published_only("hybridgl-rerun-pure"),
        _published_only("hybridgl-rerun-guided"),
    )


def _baselines(tiny: bool, freesolo: Path | None) -> tuple[TableRow, ...]:
    rows = [
        _global_local(f"SAM, CLIP {clip}", "--clip_model", clip, published_id=row_id)
        for clip, row_id in (
            ("ViT-B-32", "global_local-sam-vit_b_32"),
            ("RN50", "global_local-sam-rn50"),
        )
    ]
    if tiny:
        rows = [_global_local("SAM, bundled CLIP")]
    if freesolo:
        masks = ("--proposals", f"coco:{freesolo}", "--crop_box", CropBox.FREESOLO.value)
        arguments = (*_vit_b_32(tiny), *masks)
        rows.append(_global_local("FreeSOLO", *arguments, published_id="global_local-freesolo"))
    else:
        rows.append(_published_only("global_local-freesolo"))
    others = ("clip_as_rnn", "ref_diff", "tas", "iterprime", "lgd_dino")
    rows += map(_published_only, (*others, "pseudo_ris-etris", "pseudo_ris-cris"))
    rows.append(TableRow(method="HybridGL", setting="SAM", arguments=(), published_id="hybridgl"))
    return tuple(rows)


def _vit_b_32(tiny: bool) -> tuple[str, ...]:
    return () if tiny else ("--clip_model", "ViT-B-32")


def _fusion() -> tuple[TableRow, ...]:
    return tuple(
        _ours(f"{mode.value}, {setting}", "--fusion_mode", mode.value, variant=variant)
        for mode in FusionMode
        for variant, setting in (("features", "mask features alone"), ("guided", "with guidance"))
    )


def _guidance() -> tuple[TableRow, ...]:
    kept = (TERMS[:1], TERMS[1:2], TERMS[1:], TERMS[:2], TERMS)
    rows = [_ours("no guidance", variant="features")]
    for names in kept:
        left_out = [term for term in TERMS if term not in names]
        rows.append(_ours(", ".join(names), *(["--without", *left_out] if left_out else [])))
    return tuple(rows)


def _settings() -> tuple[TableRow, ...]:
    constant = (str(GuidanceConfig().coherence_weights[0]),) * 3
    settings: list[tuple[str, ...]] = [("--alpha", f"{n / 5:g}") for n in range(6)]
    settings += [("--sentence_weight", weight) for weight in ("0", "0.5", "1")]
    settings += [("--num_candidates", count) for count in ("1", "2", "3", "5")]
    settings += [("--num_context_masks", count) for count in ("1", "3", "6", "9")]
    settings += [("--coherence_weights", *constant)]
    settings += [("--masking_block", block) for block in ("7", "8", "9", "10")]
    return tuple(_ours(" ".join(setting).lstrip("-"), *setting) for setting in settings)


def _phrasecut(tiny: bool) -> tuple[TableRow, ...]:
    return (
        _ours("mask features alone", variant="features"),
        _ours("with guidance"),
        _global_local("SAM", *_vit_b_32(tiny), published_id="global_local-phrasecut"),
        _published_only("ref_diff-phrasecut"),
    )


TABLES = tuple(paper_tables(tiny=True))
"""Names of the tables."""


def filled_table(
    table: PaperTable, entries: Sequence[Entry], protocol: EvaluationProtocol
) -> tuple[Table, list[str]]:
    """Fill a table with what was measured and what is published.

    Args:
        table: what is shown.
        entries: in the order of the lines; those that nobody ran or published are left out.
        protocol: of every report.

    Returns:
        The table, and the notes under it.
    """
    header = ["method", "setting", "split", "n"]
    names = (protocol.mean_name, protocol.overall_name)
    for metric, name in zip(_METRICS, names, strict=True):
        header += [name, f"{name} 95 %", f"{metric} published", f"{name} difference"]
    header += ["oracle", "profile", "protocol"]
    lines: list[tuple[str, ...]] = []
    footnotes: dict[str, None] = {}
    warnings: dict[str, None] = {}
    left_out: list[Entry] = []
    for entry in entries:
        theirs = _published(entry)
        if entry.row.arguments is None and not theirs:
            left_out.append(entry)
            continue
        footnotes |= dict.fromkeys(_footnotes(entry, theirs.values()))
        if theirs and entry.report:
            warnings |= dict.fromkeys(_warnings(entry))
        lines += _lines(table, entry, theirs)
    notes = [*footnotes, *(f"not compared with published values: {text}" for text in warnings)]
    if left_out:
        notes.append(f"left out, as nobody ran or published it here: {_names(left_out, entries)}")
    notes.append(
        f"{_NOTHING}: nobody's value is known, or there was no run; a difference is only given for "
        f"a whole split without warnings, with the published weights and settings"
    )
    return Table(tuple(header), tuple(lines), text_columns=3), notes


def _warnings(entry: Entry) -> list[str]:
    """Why an entry that has a report is not compared."""
    assert entry.report is not None
    usual = _PUBLISHED_PROTOCOLS.get(entry.cell[0], _PUBLISHED_PROTOCOL)
    name = entry.report.protocol.name
    other = [] if name == usual else [f"protocol {name}, theirs is {usual}"]
    return [*entry.warnings, *other]


def _lines(
    table: PaperTable, entry: Entry, theirs: Mapping[Metric, PublishedRow]
) -> Iterator[tuple[str, ...]]:
    """Write the line of an entry, and those of its kinds of expressions."""
    row, report = entry.row, entry.report
    values = {metric: _text(published, entry.cell) for metric, published in theirs.items()}
    if report is None:
        n = _NOTHING if row.arguments is None else _NOT_MADE
        cells = [
            c for m in _METRICS for c in (_NOTHING, _NOTHING, values.get(m, _NOTHING), _NOTHING)
        ]
        yield (row.method, row.setting, entry.cell[2], n, *cells, *[_NOTHING] * 3)
        return
    reports = {"": report, **(report.groups("kind") if table.by_kind else {})}
    for kind, part in reports.items():
        shown = {} if kind else theirs
        oracle = part.scores.get("oracle", {}).get(part.protocol.mean_name)
        yield (
            row.method,
            f"{row.setting}, {kind}" if kind else row.setting,
            entry.cell[2],
            str(len(part.records)),
            *_score_cells(entry, part, shown),
            _NOTHING if oracle is None else f"{oracle:.2f}",
            entry.profile,
            part.protocol.name,
        )


def _score_cells(
    entry: Entry, report: Report, theirs: Mapping[Metric, PublishedRow]
) -> Iterator[str]:
    """For every metric: the score, its interval, the published value, the difference."""
    variant = entry.row.variant or report.variants[-1]
    comparable = not _warnings(entry)
    names = (report.protocol.mean_name, report.protocol.overall_name)
    for metric, name in zip(_METRICS, names, strict=True):
        value = f"{report.scores[variant][name]:.2f}"
        yield value
        yield "{:.2f} to {:.2f}".format(*report.intervals[variant][name])
        yield _text(theirs[metric], entry.cell) if metric in theirs else _NOTHING
        if metric in theirs and comparable:
            yield f"{float(value) - float(theirs[metric].text(entry.cell)):+.2f}"
        else:
            yield _NOTHING


def _text(published: PublishedRow, cell: Cell) -> str:
    return f"{published.text(cell)} [{SOURCES[published.source].mark}]"


def _published(entry: Entry) -> dict[Metric, PublishedRow]:
    return {
        row.metric: row
        for row in ROWS
        if row.row_id == entry.row.published_id and entry.cell in row.cells
    }


def _footnotes(entry: Entry, theirs: Iterable[PublishedRow]) -> Iterator[str]:
    """Name the sources of published values, and what these say otherwise than the row."""
    for published in theirs:
        source = SOURCES[published.source]
        yield source.footnote
        if entry.row.arguments is None and published.setting != entry.row.setting:
            said = published.setting or "no setting"
            yield f"[{source.mark}] reports {said} of {published.method}"


def _names(left_out: Sequence[Entry], entries: Sequence[Entry]) -> str:
    """Name the rows that are left out, with their splits where others of theirs are shown."""
    splits: dict[TableRow, list[str]] = {}
    for entry in left_out:
        splits.setdefault(entry.row, []).append(entry.cell[2])
    names = []
    for row, without in splits.items():
        name = f"{row.method} ({row.setting})" if row.setting else row.method
        everywhere = len(without) == sum(entry.row == row for entry in entries)
        names.append(name if everywhere else f"{name} on {', '.join(without)}")
    return "; ".join(names)
