"""The floors of the repository, the homes of foreign packages, the flags, and one way to write."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import tomllib
from functools import cache
from pathlib import Path

import pytest

import hybridgl_main
import refer.doctor
import refer.download
import save_attn_gem
from hybridgl import cli
from hybridgl.config import FusionMode, Profile
from hybridgl.program import ArgumentParser

ROOT = Path(__file__).parents[1]
PROGRAMS = {"save_attn_gem": save_attn_gem, "hybridgl_main": hybridgl_main}

FLOORS = ["hybridgl", "refer", "evaluation", "pseudo_ris", "programs", "scripts"]
"""Each may import those before it; ``benchmarks`` stands beside ``scripts``."""
UTILS_FROM = "refer"
"""The lowest floor that may import ``utils``, which imports none of ours."""

HOMES = {
    "open_clip": {"src/hybridgl/models/clip.py", "src/hybridgl/models/coca.py"},
    "segment_anything": {"src/hybridgl/models/sam.py"},
    "spacy": {"src/hybridgl/models/parser.py"},
    "cv2": {"src/hybridgl/views.py", "src/hybridgl/masks.py"},
    "matplotlib": {"src/hybridgl/figures.py"},
    "pycocotools": {"src/hybridgl/masks.py"},
    "requests": {"src/hybridgl/download.py"},
    "urllib3": {"src/hybridgl/download.py"},
    "filelock": {"src/hybridgl/download.py"},
    "safetensors": {"src/hybridgl/store.py", "src/hybridgl/weights/states.py"},
    "msgspec": {
        "evaluation/records.py",
        "evaluation/evaluate.py",
        "evaluation/published.py",
    },
    "torchvision": {"src/hybridgl/models/sam_generator.py"},
}
"""Where each foreign package is imported."""

SHARED_FLAGS = {
    "--dataset": "shapes",
    "--split": None,
    "--split_by": None,
    "--splitBy": None,
    "--refer_data_root": Path("refer/data"),
    "--image_root": (),
    "--strict": False,
    "--limit": None,
    "--weights": None,
    "--clip_model": None,
    "--clip_weights": None,
    "--clip_activation": None,
    "--sam_type": None,
    "--sam_checkpoint": None,
    "--sam_settings": None,
    "--tf32": False,
    "--spacy_model": None,
    "--profile": Profile.REFERENCE,
    "--device": "auto",
    "--dtype": "float32",
    "--compile": False,
    "--store": Path("store"),
    "--overwrite": False,
    "--shard": None,
}
OWN_FLAGS = {
    "save_attn_gem": {},
    "hybridgl_main": {
        "--method": "hybridgl",
        "--proposals": "sam",
        "--protocol": "zero-shot",
        "--convention": "zero-shot",
        "--output": None,
        "--keep_tokens": False,
        "--fusion_mode": FusionMode.GLOBAL_TO_LOCAL,
        "--masking_block": 9,
        "--sentence_weight": 0.5,
        "--without": (),
        "--alpha": 0.6,
        "--num_candidates": 3,
        "--num_context_masks": 6,
        "--num_partners": 6,
        "--coherence_weights": (1.8, 1.95, 1.5),
        "--mixing_weight": None,
    },
}
ALIASES = {
    "--splitBy": "--split_by",
    "--convention": "--protocol",
    "--num_partners": "--num_context_masks",
}
CHOICES = {
    "--weights": ["tiny", "paper"],
    "--clip_activation": ["gelu", "quickgelu"],
    "--dtype": ["float32", "bfloat16"],
    "--method": ["hybridgl", "global_local"],
    "--protocol": ["zero-shot", "lavt", "lisa", "phrasecut"],
}


# Files and what they import.


def floor_of(path):
    """The folder or program that a file belongs to."""
    first, *rest = path.removeprefix("src/").split("/")
    return first if rest else "programs"


@cache
def sources():
    """Every Python file of ours by its path from the root, but those of tests."""
    files = [
        *ROOT.glob("*.py"),
        *(ROOT / "src").rglob("*.py"),
        *(file for folder in folders() for file in (ROOT / folder).rglob("*.py")),
    ]
    return {
        file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8")
        for file in sorted(files)
    }


def folders():
    """Folders of Python beside ``src`` and ``tests``."""
    return [
        folder.name
        for folder in ROOT.iterdir()
        if folder.is_dir()
        and folder.name not in ("src", "tests", "build", "dist")
        and not folder.name.startswith(".")
        and not (folder / "pyvenv.cfg").is_file()
        and any(folder.rglob("*.py"))
    ]


@cache
def trees():
    return {path: ast.parse(source) for path, source in sources().items()}


def nodes(*kinds):
    """Every node of some kinds, with its file."""
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, kinds):
                yield path, node


def imports():
    """Every import, wherever it stands in its file: file, line and module."""
    for path, node in nodes(ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            yield from ((path, node.lineno, alias.name) for alias in node.names)
        else:
            assert node.level == 0, f"{path}, line {node.lineno}: imports are absolute"
            yield path, node.lineno, node.module


def may_import(floor):
    """The folders and programs that a floor may import, besides itself."""
    if floor == "utils":
        return set()
    below = set(FLOORS[: FLOORS.index("scripts" if floor == "benchmarks" else floor)])
    if "programs" in below:
        below |= set(PROGRAMS)
    if floor not in FLOORS[: FLOORS.index(UTILS_FROM)]:
        below.add("utils")
    if floor == "benchmarks":
        below.add("scripts")
    return below


def test_every_python_file_is_in_a_known_place():
    known = {*FLOORS, "utils", "benchmarks"} - {"programs"}
    assert set(folders()) <= known
    assert [folder.name for folder in (ROOT / "src").iterdir() if any(folder.glob("*.py"))] == [
        "hybridgl"
    ]
    assert {path.stem for path in ROOT.glob("*.py")} == set(PROGRAMS)


def test_floors_import_only_those_below_them():
    ours = {*FLOORS, *PROGRAMS, "utils", "benchmarks", "tests"}
    wrong = []
    for path, line, module in imports():
        package, floor = module.split(".")[0], floor_of(path)
        if package in ours and package not in may_import(floor) | {floor}:
            wrong.append(f"{path}, line {line} imports {module}")
    assert wrong == []


def test_nothing_is_imported_where_this_test_cannot_see_it():
    wrong = [
        f"{path}, line {line} imports {module}"
        for path, line, module in imports()
        if module in ("importlib", "importlib.machinery", "runpy", "imp", "pkgutil")
    ]
    for path, node in nodes(ast.Attribute, ast.Name):
        name = node.attr if isinstance(node, ast.Attribute) else node.id
        owner = getattr(getattr(node, "value", None), "id", "")
        if name in ("import_module", "__import__") or (owner, name) == ("sys", "path"):
            wrong.append(f"{path}, line {node.lineno} has {owner}.{name}")
    for path, node in nodes(ast.ImportFrom):
        names = {alias.name for alias in node.names}
        if (node.module == "sys" and "path" in names) or "import_module" in names:
            wrong.append(f"{path}, line {node.lineno} imports {names} of {node.module}")
    assert wrong == []


@pytest.mark.parametrize(("package", "homes"), HOMES.items(), ids=HOMES)
def test_foreign_package_is_imported_in_its_home_only(package, homes):
    importers = {
        path
        for path, _, module in imports()
        if module.split(".")[0] == package and floor_of(path) not in ("scripts", "benchmarks")
    }
    assert importers == homes


def test_every_folder_of_python_is_a_package():
    places = {(ROOT / path).parent for path in sources()} - {ROOT}
    assert [folder for folder in places if not (folder / "__init__.py").is_file()] == []


def test_wheel_ships_src_and_nothing_else():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["tool"]["setuptools"]["packages"] == {"find": {"where": ["src"]}}


# Flags of the programs.


@pytest.fixture(params=PROGRAMS)
def name(request):
    return request.param


@pytest.fixture
def options(name):
    """Every option of a program, by each of its spellings."""
    return {
        flag: action
        for action in PROGRAMS[name].build_parser()._actions
        if action.dest != "help"
        for flag in action.option_strings
    }


def test_flags_of_the_programs_and_their_defaults_are_the_promised_ones(name, options):
    expected = SHARED_FLAGS | OWN_FLAGS[name]
    assert {flag: options[flag].default for flag in expected} == expected


def test_every_flag_says_what_it_is(name):
    assert [one.dest for one in PROGRAMS[name].build_parser()._actions if not one.help] == []


@pytest.mark.parametrize(
    "add",
    [
        cli._add_segment_arguments,
        cli.add_download_arguments,
        cli.add_doctor_arguments,
        refer.download.add_download_arguments,
        refer.doctor.add_doctor_arguments,
    ],
    ids=["segment", "download", "doctor", "refer download", "refer doctor"],
)
def test_every_flag_of_the_commands_says_what_it_is(add):
    parser = ArgumentParser()
    add(parser)
    assert [one.dest for one in parser._actions if not one.help] == []


def test_former_names_of_flags_stay(options):
    for former, flag in ALIASES.items():
        if flag in options:
            assert options[former] is options[flag]


def test_choices_of_the_flags_stay(options):
    for flag in CHOICES.keys() & options.keys():
        choices = list(options[flag].choices)
        assert [choice for choice in choices if choice in CHOICES[flag]] == CHOICES[flag]


def test_every_flag_is_explained(options):
    assert [flag for flag, action in options.items() if not action.help] == []


# One way to write.


def test_loggers_have_one_name():
    wrong = []
    for path, node in nodes(ast.Call):
        if getattr(node.func, "attr", "") == "getLogger" and not path.startswith("scripts/"):
            line = sources()[path].splitlines()[node.lineno - 1]
            if line != "_logger = logging.getLogger(__name__)":
                wrong.append(f"{path}, line {node.lineno}: {line.strip()}")
    assert wrong == []


USER_ERRORS = {
    *("HybridGLError", "SettingError", "ImageError", "WeightsError", "DataError"),
    *("FileNotFoundError", "FileExistsError", "NotADirectoryError", "PermissionError"),
}


def text_of(node):
    """The text of a message, with {} for what is filled in; None where it is made elsewhere."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            part.value if isinstance(part, ast.Constant) else "{}" for part in node.values
        )
    if isinstance(node, ast.BinOp):
        parts = text_of(node.left), text_of(node.right)
        return None if None in parts else "".join(parts)
    return None


def messages():
    """Messages of errors that a user can fix: place and text."""
    for path, node in nodes(ast.Raise):
        call = node.exc
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in USER_ERRORS and call.args:
            text = text_of(call.args[0])
            # One that starts with a value goes on with another error's message.
            if text is not None and not re.match(r"\{\}|[A-Z]\w+ \{\} of |[a-z]+ \{\}: \{\}", text):
                yield f"{path}, line {node.lineno}", text


FOR_ARGPARSE = re.compile(r"expected .*[,;] got ")
"""Messages behind which argparse has put the flag's name."""


def test_errors_say_what_was_expected_what_was_got_and_the_fix():
    wrong = [
        f"{place}: {text}"
        for place, text in messages()
        if not re.match(r"Expected .*[,;] got .*; .*|Cannot .*", text, flags=re.DOTALL)
        and not FOR_ARGPARSE.match(text)
    ]
    assert wrong == []


def documented():
    """Public functions and methods with a docstring, but properties: place and docstring."""
    for path, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef):
        kinds = {getattr(one, "attr", getattr(one, "id", "")) for one in node.decorator_list}
        docstring = ast.get_docstring(node)
        if docstring and not kinds & {"property", "cached_property", "setter"}:
            yield f"{path}, line {node.lineno}: {node.name}", docstring


NO_VERBS = {"The", "A", "An", "What", "Whether", "How", "All", "Every", "One", "Where", "This"}
NO_IMPERATIVES = {"Returns", "Reads", "Writes", "Checks", "Draws", "Makes", "Gives", "Removes"}


def test_docstrings_of_functions_begin_with_a_verb():
    """Ruff's D401 holds most of it; what it lets through is held here."""
    wrong = [
        f"{place}: {docstring.splitlines()[0]}"
        for place, docstring in documented()
        if docstring.split()[0] in NO_VERBS | NO_IMPERATIVES
    ]
    assert wrong == []


BANNED = re.compile(
    r"pictures?|heat|heatmaps?|picks?|faults?|faulty|doubts?|doubtful|conventions?|clicks?|partners?"
    r"|ramps?|digests?|fingerprints?|mends?|mended|carried|anew"
)
"""Words for which the field has others: see the glossary of CONTRIBUTING.md."""

ALLOWED = {
    ("src/hybridgl/language.py", "picture"),  # "on the left of the picture", as people say
    ("evaluation/run.py", "convention"),  # former name of --protocol
    ("scripts/reproduce.py", "convention"),  # likewise
    ("src/hybridgl/config.py", "partners"),  # former name of --num_context_masks
    ("src/hybridgl/files.py", "digest"),  # of hashlib
    ("src/hybridgl/download.py", "digest"),  # of hashlib
    ("evaluation/records.py", "picks"),  # in records of schema 1
    ("scripts/compare_records.py", "picks"),  # in records of schema 1
    ("scripts/check_golden.py", "pick"),  # in the golden vectors
    ("scripts/check_golden.py", "heat"),  # in the golden vectors
}


def words_of(path, source):
    """Words of names, comments and strings, with their lines; names in parts."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.NAME, tokenize.COMMENT, tokenize.STRING):
            for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", token.string):
                yield token.start[0], word.lower()


def test_words_are_those_of_the_field():
    wrong = [
        f"{path}, line {line}: {word}"
        for path, source in sources().items()
        if not path.startswith(("refer/shapes/", "scripts/tiny_weights/"))
        for line, word in words_of(path, source)
        if BANNED.fullmatch(word) and (path, word) not in ALLOWED
    ]
    assert wrong == []


def test_ground_truth_is_called_by_its_whole_name():
    wrong = []
    for path, source in sources().items():
        text = re.sub(r"(?m)^\s*#", "", source)
        for match in re.finditer(r"(?i)\btruths?\b", re.sub(r"\s+", " ", text)):
            before = re.sub(r"\s+", " ", text)[: match.start()].lower()
            if not before.endswith(("ground ", "ground-")):
                wrong.append(f"{path}: ...{before[-40:]}{match[0]}")
    assert wrong == []


# Axes.


def legend():
    """The letters of docs/axes.md."""
    rows = re.findall(r"^\| ([A-Za-z, ]+) \|", (ROOT / "docs/axes.md").read_text(), flags=re.M)
    return {letter for row in rows if row != "letter" for letter in row.split(", ")}


def suffixes():
    """Suffixes of axes at names of arrays, each with its file and line."""
    for path, node in nodes(ast.Name, ast.arg):
        name = node.id if isinstance(node, ast.Name) else node.arg
        *stem, suffix = name.split("_")
        is_axes = re.fullmatch(r"[A-Za-z]*[A-Z][A-Za-z]*\d?|[a-z0-9]?[A-Z][A-Za-z0-9]*", suffix)
        if any(stem) and is_axes and not name.isupper():
            yield path, node.lineno, name, suffix


def test_axes_have_the_letters_of_the_legend():
    letters = legend()
    assert {"N", "S", "H", "W", "h", "w"} <= letters
    wrong = {
        f"{path}, line {line}: {name}"
        for path, line, name, suffix in suffixes()
        if not {one for one in suffix if one.isalpha()} <= letters
    }
    assert wrong == set()
    assert len({suffix for *_, suffix in suffixes()}) > 30
