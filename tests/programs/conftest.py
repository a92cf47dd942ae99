"""A small shapes world and a random CLIP, made once, and how the programs are called on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest

import hybridgl_main
from hybridgl import models
from refer.shapes.world import write_world
from tests.factories_clip import clip_state, save_npz
from tests.refer_factories import mini_refer

NUM_IMAGES = 4
"""The third has two proposals, the others more: enough for quirk Q5 to act on the fourth."""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root, to be read only."""
    root = tmp_path_factory.mktemp("world")
    write_world(root, seed=0, sizes={"val": NUM_IMAGES})
    return root


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # In a folder whose name says what activation it has.
    return save_npz(tmp_path_factory.mktemp("openai") / "clip.npz", clip_state())


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of the time of a small run."""
    monkeypatch.setattr("evaluation.run.draw_samples", lambda *_: None)


@pytest.fixture(scope="session")
def each_model_loaded_once():
    """Most of a small run's time goes into loading the same files."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("clip", "sam"):
            patch.setitem(models.LOADERS, name, lru_cache(models.LOADERS[name]))
        yield


@pytest.fixture(scope="session")
def arguments(world: Path, clip_file: Path) -> Callable[..., list[str]]:
    """Arguments of either program: its store and its output lie in a folder."""

    def build(folder: Path, *more: str, output: bool = True) -> list[str]:
        given = ["--refer_data_root", world, "--clip_weights", clip_file, "--device", "cpu"]
        given += ["--store", folder / "store"]
        if output:
            given += ["--output", folder / "run"]
        return [*map(str, given), *map(str, more)]

    return build


@pytest.fixture(scope="session")
def stocked(arguments, each_model_loaded_once, tmp_path_factory) -> Path:
    """A folder with a finished run, whose store holds every stage of it; read it only."""
    folder = tmp_path_factory.mktemp("stocked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluation.run.draw_samples", lambda *_: None)
        assert hybridgl_main.main(arguments(folder)) == 0
    return folder


@pytest.fixture
def copied(stocked, tmp_path) -> Path:
    """A folder with a copy of that store, and no run."""
    shutil.copytree(stocked / "store", tmp_path / "store")
    return tmp_path


@pytest.fixture(scope="session")
def refcoco_stocked(arguments, each_model_loaded_once, tmp_path_factory) -> Path:
    """A finished run on a small RefCOCO's annotated objects; its data lie in ``data``."""
    folder = tmp_path_factory.mktemp("refcoco")
    mini_refer("refcoco").write(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluation.run.draw_samples", lambda *_: None)
        assert hybridgl_main.main(refcoco_arguments(arguments, folder)) == 0
    return folder


def refcoco_arguments(arguments, folder: Path, *more: str) -> list[str]:
    """Arguments for the small RefCOCO that lies in ``data`` of a folder, without SAM."""
    data = ["--dataset", "refcoco", "--weights", "tiny", "--refer_data_root", folder / "data"]
    return arguments(folder, *data, "--proposals", "gt", *more)


@pytest.fixture
def refcoco(arguments, refcoco_stocked, tmp_path) -> list[str]:
    """Arguments for a copy of it in ``tmp_path``, which has its data and its store."""
    for name in ("data", "store"):
        shutil.copytree(refcoco_stocked / name, tmp_path / name)
    return refcoco_arguments(arguments, tmp_path)
