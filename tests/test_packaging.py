"""What an installation holds, what it leaves as it is, and what it works beside."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import distributions
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


def run(*command, **options):
    """Without what the environment says about Python's paths and make; returns the output."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTHONPATH", "MAKE"))
    }
    environment |= options.pop("env", {})
    done = subprocess.run(command, capture_output=True, text=True, env=environment, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def pip(python, *arguments):
    """Without a network."""
    command = [sys.executable, "-m", "pip", f"--python={python}", *arguments]
    run(*command, "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")


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
    for name in ("pyproject.toml", "README.md", "LICENSE", "Makefile", "constraints.txt"):
        shutil.copy(ROOT / name, clone)
    script = SCRIPT.replace("STRANGERS", repr(["utils", "refer", "tests"]))
    (folder / "script.py").write_text(script)
    return folder


@pytest.fixture
def python(tmp_path):
    """The interpreter of an environment without hybridgl that sees our other packages."""
    venv.create(tmp_path / "venv", with_pip=False)
    ours = "\n".join(path for path in sys.path if Path(path).name.endswith("-packages"))
    (packages_of(tmp_path / "venv") / "dependencies.pth").write_text(f"{ours}\n")
    return tmp_path / "venv" / "bin" / "python"


def packages_of(environment):
    return Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))


def said_by_the_script(python, folder):
    return run(python, "script.py", cwd=folder)


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


@pytest.fixture
def for_cpus(python):
    """The same, with a torch and a torchvision for CPUs alone, the oldest that are allowed."""
    for name, version, needs in (
        ("torch", "2.5.0+cpu", ""),
        ("torchvision", "0.20.0+cpu", "Requires-Dist: torch==2.5.0\n"),
    ):
        folder = packages_of(python.parents[1]) / f"{name}-{version}.dist-info"
        folder.mkdir()
        about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
        (folder / "METADATA").write_text(about)
        (folder / "INSTALLER").write_text("pip\n")
        (folder / "RECORD").touch()
    return python


@pytest.mark.parametrize("command", ["pip", "make"])
def test_torch_for_cpus_is_left_as_it_is(command, for_cpus, beside, tmp_path):
    plan = tmp_path / "plan.json"
    planned = {
        "PIP_DRY_RUN": "1",
        "PIP_REPORT": str(plan),
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "false",  # pip's way of saying yes
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    if command == "make":
        what = ["make", "install", f"VENV={for_cpus.parents[1]}"]
    else:
        what = [for_cpus, "-m", "pip", "install", "-e", "."]
    run(*what, cwd=beside / "hybridgl", env=planned)
    changed = [one["metadata"]["name"] for one in json.loads(plan.read_text())["install"]]
    assert changed == ["hybridgl"]


def link_torch(folder):
    """Let an environment have the torch of this one, which takes minutes to fetch."""
    for package in distributions():
        if re.match(r"torch(vision)?$|triton|nvidia|cuda", package.metadata["Name"]):
            for name in {file.parts[0] for file in package.files or ()} - {".."}:
                if not (folder / name).exists():
                    (folder / name).symlink_to(package.locate_file(name))


RECIPE = re.search(
    r'^pip install -e \. (.*"spacy==.*)$',
    (ROOT / "docs/running.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


@pytest.mark.parametrize("which", ["wheel, newest packages", "clone, parser as released"])
def test_installation_works_in_an_environment_of_its_own(which, wheel, beside, tmp_path):
    newest = which.startswith("wheel")
    if not newest and sys.version_info >= (3, 13):
        pytest.skip("spaCy 3.7 is not there for Python 3.13")
    venv.create(tmp_path / "venv", with_pip=False)
    link_torch(packages_of(tmp_path / "venv"))
    programs = tmp_path / "venv" / "bin"
    pip = [sys.executable, "-m", "pip", f"--python={programs / 'python'}"]
    versions_before = versions_of(pip)

    what = [wheel] if newest else ["--editable", beside / "hybridgl", *shlex.split(RECIPE[1])]
    run(*pip, "install", "--quiet", "--no-compile", *what)

    run(*pip, "check")
    versions = versions_of(pip)
    assert {name: versions[name] for name in versions_before} == versions_before
    assert versions["numpy"].split(".")[0] == ("2" if newest else "1")
    assert "opencv-python-headless" in versions
    assert "opencv-python" not in versions
    run(programs / "hybridgl", "--help")
    assert run(programs / "hybridgl", "--version").startswith("hybridgl ")
    segment = ["segment", "docs/scene.png", "the circle left of the yellow moon"]
    segment += ["--weights", "tiny", "--output", tmp_path / "overlay.png"]
    found = run(programs / "hybridgl", *segment, cwd=ROOT).splitlines()
    here = run(sys.executable, "-m", "hybridgl", *segment, cwd=ROOT, env={"PYTHONPATH": "src"})
    assert found[:6] == here.splitlines()[:6]
    assert found[0].split() == ["noun", "phrase", "the", "circle"]
    assert found[5].startswith("box ")
    shutil.rmtree(tmp_path / "venv")  # hundreds of MB, which pytest would keep


def versions_of(pip):
    packages = json.loads(run(*pip, "list", "--format=json", "--disable-pip-version-check"))
    return {package["name"]: package["version"] for package in packages}
