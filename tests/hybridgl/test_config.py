"""Settings: the published numbers, the profiles, and the list of quirks in the documentation."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest

from hybridgl import config
from hybridgl.config import (
    PROPOSALS_PHRASECUT,
    PROPOSALS_REFCOCO,
    FusionMode,
    MethodConfig,
    Profile,
    ReferenceQuirks,
)
from hybridgl.errors import HybridGLError

ROOT = Path(__file__).parents[2]
QUIRKS = [field.name for field in dataclasses.fields(ReferenceQuirks)]


def test_reference_profile_has_every_quirk():
    assert all(dataclasses.asdict(ReferenceQuirks.of(Profile.REFERENCE)).values())


def test_corrected_profile_has_no_quirk():
    assert not any(dataclasses.asdict(ReferenceQuirks.of(Profile.CORRECTED)).values())


def test_default_is_the_reference_profile():
    assert MethodConfig().quirks == ReferenceQuirks.of(Profile.REFERENCE)


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


def test_defaults_are_the_published_settings():
    method = MethodConfig()
    assert dataclasses.astuple(method.proposals) == (8, 0.7, 0.7, 0, 1, 800)
    assert method.proposals == PROPOSALS_REFCOCO
    assert dataclasses.astuple(PROPOSALS_PHRASECUT) == (64, 0.86, 0.92, 1, 2, 100)
    assert dataclasses.astuple(method.fusion) == (FusionMode.GLOBAL_TO_LOCAL, 9, 2.0)
    assert dataclasses.astuple(method.text) == (0.5, "a photo of {}")
    assert dataclasses.astuple(method.gem) == (7, 1, 2, "a photo of a {}.")
    assert dataclasses.astuple(method.guidance) == (
        *(0.6, 3, 6, 1.8, 1.95, 1.5),
        *(True, True, True),
    )


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MethodConfig().guidance.alpha = 0.5


@pytest.mark.parametrize(
    "cls",
    [c for c in vars(config).values() if isinstance(c, type) and dataclasses.is_dataclass(c)],
    ids=lambda cls: cls.__name__,
)
def test_every_setting_is_explained_where_it_is_declared(cls):
    tree = ast.parse(Path(config.__file__).read_text(encoding="utf-8"))
    body = next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == cls.__name__)
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            assert isinstance(following, ast.Expr), f"{cls.__name__}.{node.target.id}"
            assert isinstance(following.value.value, str)


@pytest.fixture(scope="module")
def documented_rows():
    """Cells of the table in docs/quirks.md, by the id in the first one."""
    text = (ROOT / "docs" / "quirks.md").read_text(encoding="utf-8")
    rows = [line.strip("| \n").split(" | ") for line in text.splitlines() if line.startswith("| Q")]
    return {cells[0]: cells for cells in rows}


def test_all_nine_quirks_are_documented(documented_rows):
    assert list(documented_rows) == [f"Q{number}" for number in range(1, 10)]


def test_switches_in_the_documentation_are_those_of_the_code(documented_rows):
    source = Path(config.__file__).read_text(encoding="utf-8")
    for name in QUIRKS:
        declared = re.search(rf'    {name}: bool = True\n    """(Q\d): ', source)
        assert declared, f"{name} is declared with its id"
        assert documented_rows[declared[1]][1] == f"`{name}`"
    named = {cells[1].strip("`") for cells in documented_rows.values() if "`" in cells[1]}
    assert named == set(QUIRKS)


def test_places_in_the_documentation_exist():
    """Every ``file:function`` that the page names, tests included."""
    text = (ROOT / "docs" / "quirks.md").read_text(encoding="utf-8")
    places = re.findall(r"`([\w/]+\.py):(\w+)`", text)
    assert len(places) >= 14
    for file, function in places:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        defined = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        assert function in defined, f"{file} defines {function}"
