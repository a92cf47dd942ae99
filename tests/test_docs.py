"""Pages for people: links, paths, tests and commands are there; the README is short and runs."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/*.md", "third_party/*.md", "refer/*.md", "tests/golden/*.md")
    for page in ROOT.glob(pattern)
)
HISTORY = {"CHANGELOG.md"}
"""Speaks of files that were."""
MADE_BY_RUNS = "refer/data"
FOLDERS = "src|refer|evaluation|utils|scripts|benchmarks|third_party|tests|docs"
MOST_WORDS = 900


def text_of(page):
    return page.read_text(encoding="utf-8")


def anchors(page):
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in headings}


def blocks(page, language):
    """Fenced blocks of a language; "" for those of none."""
    return [code for name, code in _fenced(page) if name == language]


def prose_of(page):
    """A page without its fenced blocks."""
    text = text_of(page)
    for _, code in _fenced(page):
        text = text.replace(code, "")
    return text


def _fenced(page):
    return re.findall(r"^```(\w*)\n(.*?)^```$", text_of(page), re.DOTALL | re.MULTILINE)


@pytest.fixture(params=PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])
def page(request):
    return request.param


def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(linked), f"{page.name} links to {target}"


def test_paths_exist(page):
    if page.name in HISTORY:
        return
    found = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)(?![\w./<*-])", text_of(page))
    missing = [
        path
        for path in found
        if not path.startswith(MADE_BY_RUNS)
        and not (ROOT / path.rstrip(".")).exists()
        and not (page.parent / path).exists()
    ]
    assert not missing


def test_names_after_a_path_are_in_the_file(page):
    """Such as `tests/test_docs.py:test_links_resolve`."""
    missing = [
        f"{path}:{name}"
        for path, name in re.findall(r"`([\w/]+\.py):(\w+)`", text_of(page))
        if not (ROOT / path).is_file() or name not in names_of(ROOT / path)
    ]
    assert not missing


def names_of(path):
    return {
        node.name
        for node in ast.walk(ast.parse(text_of(path)))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }


def test_modules_that_are_run_exist(page):
    if page.name in HISTORY:
        return
    for module in re.findall(
        r"python -m ((?:scripts|benchmarks|refer|evaluation)[\w.]*)", text_of(page)
    ):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


def test_every_quirk_has_a_row_with_its_switch():
    from dataclasses import fields

    from hybridgl.config import ReferenceQuirks

    rows = re.findall(r"^\| Q(\d+) \| `(\w+)` \|", text_of(ROOT / "docs/quirks.md"), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    assert {switch for _, switch in rows} == {field.name for field in fields(ReferenceQuirks)}


def test_readme_is_short():
    assert len(text_of(ROOT / "README.md").split()) < MOST_WORDS


def test_five_lines_of_the_readme_find_the_circle(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(ROOT / "README.md", "python")
    assert len([line for line in code.splitlines() if line.strip()]) == 5
    exec(compile(code, "README.md", "exec"), {})
    with Image.open("mask.png") as mask:
        found_HW = np.array(mask)
    with Image.open("docs/scene.png") as scene:
        assert found_HW.shape == (scene.height, scene.width)
    assert found_HW.any()


@pytest.mark.slow
def test_example_of_several_processes_finds_two_objects(tmp_path):
    (code,) = [block for block in blocks(ROOT / "docs/running.md", "python") if "spawn" in block]
    (tmp_path / "example.py").write_text(code)
    done = subprocess.run(
        [sys.executable, tmp_path / "example.py"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    boxes = ast.literal_eval(done.stdout)
    assert [len(box) for box in boxes] == [4, 4]
    assert boxes[0] != boxes[1]


def test_flags_of_the_table_are_those_of_the_program():
    import hybridgl_main

    text = text_of(ROOT / "docs/running.md")
    rows = text[text.index("| flag | values |") : text.index("Former names still work")]
    named = set(re.findall(r"`[^`]*?(--\w+)", rows)) | set(re.findall(r"`(--\w+)`", rows))
    options = {o for action in hybridgl_main.build_parser()._actions for o in action.option_strings}
    assert len(named) > 20
    assert named <= options


def test_toy_method_of_the_guide_predicts():
    from dataclasses import dataclass
    from types import SimpleNamespace

    from hybridgl.config import MethodConfig
    from hybridgl.methods import Method, Prediction, Scores
    from hybridgl.settings import setting

    (code,) = blocks(ROOT / "CONTRIBUTING.md", "python")
    assert len([line for line in code.splitlines() if line.strip()]) < 20
    names = {
        "dataclass": dataclass,
        "Method": Method,
        "MethodConfig": MethodConfig,
        "Prediction": Prediction,
        "Scores": Scores,
        "setting": setting,
        "__name__": __name__,
    }
    exec(compile(code, "CONTRIBUTING.md", "exec"), names)
    method = names["Largest"](None, names["LargestConfig"](rank=1))
    masks_NHW = np.zeros((3, 4, 4), dtype=bool)
    for index, side in enumerate((2, 1, 3)):
        masks_NHW[index, :side, :side] = True
    (scores,) = method.score(None, ["the red thing"], SimpleNamespace(masks_NHW=masks_NHW))
    assert method.choose(scores).proposals == {"largest": 0}
    assert method.settings()["rank"] == 1
    assert "rank" not in method.settings(late=False)


def test_tree_of_the_readme_is_the_tree():
    (tree,) = [block for block in blocks(ROOT / "README.md", "") if "src/hybridgl/" in block]
    folder, missing = ROOT, []
    for line in tree.splitlines():
        names = re.match(r"(?:\S+ )*\S+", line.strip())[0].split()
        if not line.startswith(" "):
            folder = ROOT / names[0] if names[0] == "src/hybridgl/" else ROOT
        missing += [
            name
            for name in names
            if not ((folder if line.startswith(" ") else ROOT) / name).exists()
        ]
    assert not missing


LETTERS = re.findall(
    r"^\| ([A-Za-z](?:, [A-Za-z])*) \|", text_of(ROOT / "docs/axes.md"), re.MULTILINE
)


def test_arrays_end_in_letters_of_the_legend():
    known = {letter for row in LETTERS for letter in row.split(", ")}
    wrong = {}
    for folder in ("src", "refer", "evaluation", "utils", "scripts", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for name in identifiers(path):
                suffix = re.fullmatch(r"_*[a-z][a-z0-9_]*_(?=\w*[A-Z])([0-9A-Za-z]+)", name)
                if suffix and not {c for c in suffix[1] if c.isalpha()} <= known:
                    wrong.setdefault(path.relative_to(ROOT).as_posix(), set()).add(name)
    assert not wrong


def identifiers(path):
    for node in ast.walk(ast.parse(text_of(path))):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Attribute):
            yield node.attr


def test_table_of_words_is_that_of_the_code():
    from hybridgl import language

    text = text_of(ROOT / "docs/words.md")
    found: dict[str, dict[str, str]] = {"position": {}, "relation": {}}
    for kind, value, words in re.findall(
        r"^\| (position|relation) \| (\w+) \| (.+) \|$", text, re.M
    ):
        found[kind] |= dict.fromkeys(words.split(", "), value)
    expected = {"position": language._POSITION_WORDS, "relation": language._RELATION_WORDS}
    for kind, words in expected.items():
        assert found[kind] == {word: value.value for word, value in words.items()}
    (unread,) = re.findall(r"by the guidance: (.+?), and every", " ".join(text.split()))
    for word in unread.split(", "):
        assert not {*word.split()} & {*found["position"], *found["relation"]}
    parts = re.search(r"nouns hold (.+?), there is no", " ".join(text.split()))
    assert parts
    assert {*re.split(", | or ", parts[1])} == language._PARTS_OF_THE_IMAGE
