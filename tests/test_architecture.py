"""The arrows between folders, the one home of every foreign package, and the shared flags."""

from __future__ import annotations

import argparse
import ast
import tomllib
from pathlib import Path

import pytest

import hybridgl_main
import save_attn_gem
from hybridgl.config import FusionMode

ROOT = Path(__file__).parents[1]
PROGRAMS = ["save_attn_gem", "hybridgl_main"]
FOLDERS = ["hybridgl", "refer", "utils", "third_party", "suite", "scripts", "benchmarks", "tests"]

LIBRARIES = {"hybridgl", "refer", "utils", "third_party"}
MAY_IMPORT = {
    "hybridgl": set(),
    "refer": set(),
    "utils": set(),
    "third_party": {"hybridgl"},
    "suite": LIBRARIES,
    "save_attn_gem": LIBRARIES | {"suite"},
    "hybridgl_main": LIBRARIES | {"suite"},
    "scripts": {*FOLDERS, *PROGRAMS} - {"tests"},
    "benchmarks": {*FOLDERS, *PROGRAMS} - {"tests"},
    "tests": {*FOLDERS, *PROGRAMS},
}

HOMES = {
    "open_clip": {"hybridgl/models/clip_encoder.py"},
    "segment_anything": {"hybridgl/models/sam_proposals.py"},
    "spacy": {"hybridgl/models/spacy_parser.py"},
    "cv2": {"hybridgl/views.py", "hybridgl/mask_regions.py"},
    "matplotlib": {"hybridgl/figures.py"},
    "requests": {"hybridgl/download.py"},
    "pycocotools": {"hybridgl/mask_rle.py", "refer/ground_truth.py"},
}
FREE_OF_HOMES = ("tests", "scripts", "benchmarks")

SHARED_FLAGS = {
    "--dataset": "shapes",
    "--split": None,
    "--split_by": None,
    "--splitBy": None,
    "--refer_data_root": Path("refer/data"),
    "--weights": None,
    "--clip_model": None,
    "--clip_weights": None,
    "--sam_type": None,
    "--sam_checkpoint": None,
    "--sam_settings": None,
    "--spacy_model": None,
    "--profile": "reference",
    "--device": "auto",
    "--dtype": "float32",
    "--compile": False,
    "--store": Path("store"),
    "--limit": None,
    "--overwrite": False,
    "--shard": None,
}
CHOICES = {
    "--weights": ["tiny", "paper"],
    "--profile": ["reference", "corrected"],
    "--dtype": ["float32", "bfloat16"],
}
OWN_FLAGS = {
    "save_attn_gem": {},
    "hybridgl_main": {
        "--method": "hybridgl",
        "--proposals": "sam",
        "--protocol": "zero-shot",
        "--output": None,
        "--keep_tokens": False,
        "--fusion_mode": FusionMode.GLOBAL_TO_LOCAL,
        "--masking_block": 9,
        "--sentence_weight": 0.5,
        "--without": [],
        "--alpha": 0.6,
        "--num_candidates": 3,
        "--num_context_masks": 6,
        "--coherence_weights": (1.8, 1.95, 1.5),
        "--mixing_weight": None,
    },
}


def sources():
    """Every Python file of ours, by its path from the root."""
    files = [ROOT / f"{program}.py" for program in PROGRAMS]
    for folder in FOLDERS:
        files += sorted((ROOT / folder).rglob("*.py"))
    return {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files}


def imported_packages(source, path):
    """Top-level names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: imports are absolute"
            yield node.module.split(".")[0]


def home_of(path):
    """The folder or program that a file belongs to."""
    return path.split("/")[0].removesuffix(".py")


def test_every_python_file_is_in_a_known_place():
    folders = [
        folder.name
        for folder in ROOT.iterdir()
        if folder.is_dir()
        and folder.name not in ("build", "dist")
        and not folder.name.startswith(".")
        and not (folder / "pyvenv.cfg").is_file()
        and any(folder.rglob("*.py"))
    ]
    assert {*folders, *(path.stem for path in ROOT.glob("*.py"))} <= set(MAY_IMPORT)


def test_arrows_between_folders():
    wrong = [
        f"{path} imports {package}"
        for path, source in sources().items()
        for package in imported_packages(source, path)
        if package in MAY_IMPORT and package not in MAY_IMPORT[home_of(path)] | {home_of(path)}
    ]
    assert not wrong


@pytest.mark.parametrize(("package", "homes"), HOMES.items(), ids=HOMES)
def test_foreign_package_is_imported_in_its_home_only(package, homes):
    importers = {
        path
        for path, source in sources().items()
        if home_of(path) not in FREE_OF_HOMES and package in imported_packages(source, path)
    }
    assert importers == homes


def test_every_folder_of_python_is_a_package():
    folders = {(ROOT / path).parent for path in sources()} - {ROOT}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


def test_wheel_ships_every_package_of_hybridgl_and_nothing_else():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {path.parent.relative_to(ROOT) for path in ROOT.glob("hybridgl/**/__init__.py")}
    shipped = settings["tool"]["setuptools"]["packages"]
    assert sorted(shipped) == sorted(".".join(package.parts) for package in packages)


@pytest.fixture(params=[save_attn_gem, hybridgl_main], ids=lambda program: program.__name__)
def program(request):
    return request.param


@pytest.fixture
def options(program, monkeypatch):
    """Every option of a program, by each of its spellings."""
    parsers = []

    def stop(parser, _argv=None):
        parsers.append(parser)
        parser.exit()

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(SystemExit):
        program.main([])
    return {
        flag: action
        for action in parsers[0]._actions
        if action.dest != "help"
        for flag in action.option_strings
    }


def test_flags_of_the_programs_are_the_promised_ones(program, options):
    assert set(options) == set(SHARED_FLAGS) | set(OWN_FLAGS[program.__name__])


def test_defaults_of_the_flags_stay(program, options):
    defaults = SHARED_FLAGS | OWN_FLAGS[program.__name__]
    assert {flag: options[flag].default for flag in defaults} == defaults


def test_choices_of_the_shared_flags_stay(options):
    assert {flag: list(options[flag].choices) for flag in CHOICES} == CHOICES
