"""What an installation holds: both ways of installing, beside a clone of the package's own name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "hybridgl"

pytestmark = pytest.mark.slow

SCRIPT = """
import importlib.util
from pathlib import Path

import hybridgl
from hybridgl.weights.registry import weight_set

tiny = weight_set("tiny")
assert tiny.missing() == ""
assert (Path(tiny.spacy_model) / "meta.json").is_file()
assert hybridgl.HybridGL.from_pretrained("tiny", device="cpu")
strangers = [name for name in STRANGERS if importlib.util.find_spec(name)]
print(Path(hybridgl.__file__).parent, strangers)
"""


def files_of_the_package() -> set[str]:
    return {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def pip(python, *arguments):
    """Without a network, and without what the environment says about Python's paths."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-m", "pip", f"--python={python}", *arguments]
    command += ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    subprocess.run(command, check=True, capture_output=True, env=environment)


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """A folder that holds a clone named hybridgl, and a script."""
    folder = tmp_path_factory.mktemp("beside")
    clone = folder / "hybridgl"
    clone.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", clone / "src", ignore=ignored)
    for name in ("utils", "refer", "tests"):
        (clone / name).mkdir()
        (clone / name / "__init__.py").touch()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    script = SCRIPT.replace("STRANGERS", repr(["utils", "refer", "tests"]))
    (folder / "script.py").write_text(script)
    return folder


@pytest.fixture
def python(tmp_path):
    """The interpreter of an environment without hybridgl that sees our other packages."""
    venv.create(tmp_path / "venv", with_pip=False)
    purelib = sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")})
    ours = "\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (Path(purelib) / "dependencies.pth").write_text(f"{ours}\n")
    return tmp_path / "venv" / "bin" / "python"


def said_by_the_script(python, folder):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, "script.py"],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def wheel(beside, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    pip(sys.executable, "wheel", beside / "hybridgl", f"--wheel-dir={folder}")
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == files_of_the_package()
    assert {"hybridgl/py.typed", "hybridgl/weights/tiny/clip.npz"} < names


def test_wheel_is_imported_beside_a_clone_of_its_name(wheel, beside, python):
    pip(python, "install", "--ignore-installed", wheel)
    where, strangers = said_by_the_script(python, beside).split(" ", 1)
    assert Path(where).is_relative_to(python.parents[1])
    assert strangers == "[]"


def test_editable_installation_is_imported_beside_its_own_clone(beside, python):
    pip(python, "install", "--ignore-installed", "--editable", beside / "hybridgl")
    where, strangers = said_by_the_script(python, beside).split(" ", 1)
    assert Path(where) == beside / "hybridgl" / "src" / "hybridgl"
    assert strangers == "[]"
