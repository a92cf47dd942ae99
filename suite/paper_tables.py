"""The tables of the papers: which runs they take, and which published row stands beside each.

A row's run is a list of arguments of ``hybridgl_main.py``; rows may share a run and differ in the
pick. Rows that only others have measured have no run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hybridgl.config import FusionMode, GuidanceConfig
from third_party.published import ROWS

__all__ = ["TABLES", "Choices", "PaperTable", "TableRow", "paper_table"]


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
        convention: how its scores are computed; None is the one that is asked for.
        by_kind: whether each row is repeated for every kind of expression.
    """

    title: str
    rows: tuple[TableRow, ...]
    convention: str | None = None
    by_kind: bool = False


@dataclass(frozen=True, slots=True)
class Choices:
    """What rows depend on besides the split.

    Attributes:
        tiny: the weights are the carried ones, which have one CLIP.
        freesolo: COCO-results file of FreeSOLO's masks, where there is one.
    """

    tiny: bool
    freesolo: Path | None = field(default=None)


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
            TableRow(method="Global-Local CLIP", setting="SAM, carried CLIP", arguments=baseline)
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
        freesolo = (*baseline, "--proposals", f"coco:{choices.freesolo}")
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
    settings += [("--num_partners", count) for count in ("1", "3", "6", "9")]
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
    return PaperTable("PhraseCut", rows, convention="phrasecut", by_kind=True)


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
