"""Settings: the published numbers, the profiles, and the list of quirks in the documentation."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import re
from pathlib import Path

import pytest

from hybridgl import config
from hybridgl.config import (
    SAM_SETTINGS,
    FusionConfig,
    FusionMode,
    GemConfig,
    GlobalLocalConfig,
    GuidanceConfig,
    HybridGLConfig,
    ModelConfig,
    Profile,
    ProposalConfig,
    ReferenceQuirks,
    TextConfig,
)
from hybridgl.errors import HybridGLError, SettingError
from hybridgl.settings import Settings, add_arguments

ROOT = Path(__file__).parents[2]
QUIRKS = [field.name for field in dataclasses.fields(ReferenceQuirks)]
CLASSES = [
    declared
    for declared in vars(config).values()
    if isinstance(declared, type) and issubclass(declared, Settings) and declared is not Settings
]


@pytest.mark.parametrize(("profile", "on"), [("reference", True), ("corrected", False)])
def test_profile_has_every_quirk_or_none(profile, on):
    quirks = ReferenceQuirks.of(Profile(profile))
    assert set(dataclasses.astuple(quirks)) == {on}


@pytest.mark.parametrize("method", [HybridGLConfig, GlobalLocalConfig])
def test_default_is_the_reference_profile(method):
    assert method().quirks == ReferenceQuirks.of(Profile.REFERENCE)


@pytest.mark.parametrize("mode", list(FusionMode))
def test_fusion_modes_are_found_by_name(mode):
    assert FusionMode.parse(mode.value) is mode


def test_published_spelling_of_both_is_accepted():
    assert FusionMode.parse("G2L&L2G") is FusionMode.BOTH


@pytest.mark.parametrize("name", ["g2l", "", "G2L & L2G", "hybrid"])
def test_wrong_fusion_mode_is_answered_with_the_right_ones(name):
    expected = f"among G2L, L2G, both, token_masking, attn_masking, crop, got {name!r}"
    with pytest.raises(HybridGLError, match=re.escape(expected)):
        FusionMode.parse(name)


@pytest.mark.parametrize(
    ("settings", "published"),
    [
        (ProposalConfig(), (8, 0.7, 0.7, 0, 1, 800)),
        (SAM_SETTINGS["refcoco"], (8, 0.7, 0.7, 0, 1, 800)),
        (SAM_SETTINGS["phrasecut"], (64, 0.86, 0.92, 1, 2, 100)),
        (SAM_SETTINGS["shapes"], (8, 0.7, 0.7, 0, 1, 100)),
        (FusionConfig(), (9, FusionMode.GLOBAL_TO_LOCAL, 2.0)),
        (TextConfig(), (0.5, "a photo of {}")),
        (GemConfig(), (7, 1, 2, "a photo of a {}.")),
        (GuidanceConfig(), ((), 0.6, 3, 6, (1.8, 1.95, 1.5))),
    ],
)
def test_defaults_are_the_published_settings(settings, published):
    assert dataclasses.astuple(settings) == published


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [("refcoco", 0.95), ("refcoco+", 0.95), ("refcocog", 0.85), ("shapes", 0.95)],
)
def test_mixing_weight_is_lower_for_refcocog_unless_it_is_given(dataset, expected):
    assert GlobalLocalConfig().resolved(dataset).mixing_weight == expected
    assert GlobalLocalConfig(mixing_weight=0.0).resolved(dataset).mixing_weight == 0


@pytest.mark.parametrize(
    ("given", "dataset", "expected"),
    [
        ({}, None, ("paper", "refcoco", "ViT-B-16")),
        ({"weights": "tiny"}, None, ("tiny", "shapes", None)),
        ({}, "shapes", ("tiny", "shapes", None)),
        ({}, "refcoco+", ("paper", "refcoco", "ViT-B-16")),
        ({}, "phrasecut", ("paper", "phrasecut", "ViT-B-16")),
        ({"weights": "paper"}, None, ("paper", "refcoco", "ViT-B-16")),
        ({"weights": "paper"}, "shapes", ("paper", "shapes", "ViT-B-16")),
        ({"weights": "tiny"}, "refcocog", ("tiny", "refcoco", None)),
        ({"sam_settings": "phrasecut"}, "refcoco", ("paper", "phrasecut", "ViT-B-16")),
        ({"clip_model": "ViT-B-32"}, "refcoco", ("paper", "refcoco", "ViT-B-32")),
        ({"clip_weights": Path("my.pt")}, "refcoco", ("paper", "refcoco", None)),
    ],
)
def test_models_follow_from_dataset_and_weights_unless_they_are_given(given, dataset, expected):
    chosen = ModelConfig(**given).resolved(dataset, published_clip="ViT-B-16")
    assert (chosen.weights, chosen.sam_settings, chosen.clip_model) == expected
    assert chosen.proposals == SAM_SETTINGS[expected[1]]


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        HybridGLConfig().guidance.alpha = 0.5


def test_guidance_uses_the_terms_that_are_not_left_out():
    guidance = GuidanceConfig(without=("coherence",))
    used = [guidance.uses(term) for term in ("relationship", "coherence", "position")]
    assert used == [True, False, True]


def test_choosing_alone_reads_alpha_and_both_counts():
    """What else differs makes other scores: it must be part of their key."""
    late = GuidanceConfig().json().keys() - GuidanceConfig().json(late=False).keys()
    assert late == {"alpha", "num_candidates", "num_context_masks"}
    assert "quirks" in HybridGLConfig().json(late=False)


@pytest.mark.parametrize(
    "given",
    [
        {"alpha": 1.1},
        {"alpha": float("nan")},
        {"num_candidates": 0},
        {"coherence_weights": (1.8, 1.95, 2.1)},
        {"without": ("coherence", "colour")},
    ],
)
def test_guidance_outside_its_range_is_refused(given):
    with pytest.raises(SettingError, match=f"Expected {next(iter(given))} "):
        GuidanceConfig(**given)


@pytest.mark.parametrize("declared", CLASSES, ids=lambda declared: declared.__name__)
def test_every_setting_has_a_help_and_every_value_a_flag_gives_is_the_default(declared):
    for field in dataclasses.fields(declared):
        assert "setting" not in field.metadata or field.metadata["setting"].help, field.name
    parser = argparse.ArgumentParser()
    add_arguments(parser, "settings", declared)
    assert declared.from_arguments(parser.parse_args([])) == declared()
    assert declared().changed() == {}
    parser.format_help()


def test_every_quirk_is_explained_where_it_is_declared():
    tree = ast.parse(Path(config.__file__).read_text(encoding="utf-8"))
    body = next(
        node.body
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == "ReferenceQuirks"
    )
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            assert isinstance(following, ast.Expr), node.target.id
            assert isinstance(following.value.value, str)


@pytest.fixture(scope="module")
def documented_rows():
    """Cells of the table in docs/quirks.md, by the id in the first one."""
    text = (ROOT / "docs" / "quirks.md").read_text(encoding="utf-8")
    rows = [line.strip("| \n").split(" | ") for line in text.splitlines() if line.startswith("| Q")]
    return {cells[0]: cells for cells in rows}


def test_all_quirks_are_documented(documented_rows):
    assert list(documented_rows) == [f"Q{number}" for number in range(1, len(QUIRKS) + 1)]


def test_switches_in_the_documentation_are_those_of_the_code(documented_rows):
    source = Path(config.__file__).read_text(encoding="utf-8")
    for name in QUIRKS:
        declared = re.search(rf'    {name}: bool = True\n    """(Q\d+): ', source)
        assert declared, f"{name} is declared with its id"
        assert documented_rows[declared[1]][1] == f"`{name}`"
    named = {cells[1].strip("`") for cells in documented_rows.values() if "`" in cells[1]}
    assert named == set(QUIRKS)


def test_places_in_the_documentation_exist():
    """Every ``file:function`` that the page names, tests included."""
    text = (ROOT / "docs" / "quirks.md").read_text(encoding="utf-8")
    places = re.findall(r"`([\w/]+\.py):(\w+)`", text)
    assert len(places) >= 14
    missing = []
    for file, function in places:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        defined = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        if function not in defined:
            missing.append(f"{file}:{function}")
    assert missing == []
