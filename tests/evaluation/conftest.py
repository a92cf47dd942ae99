"""Runs on a small split with the toy method: no model is loaded, nothing is drawn."""

from __future__ import annotations

import argparse
from types import SimpleNamespace

import pytest

from evaluation.run import Run, RunConfig, add_run_arguments
from refer.refer import load_refer
from tests.evaluation.factories import MaskMethod, ToyMethod
from tests.refer_factories import mini_refer

METHODS = {"toy": ToyMethod, "mask": MaskMethod}


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """A data root with a small RefCOCO; read it only."""
    root = tmp_path_factory.mktemp("root")
    mini_refer().write(root)
    return root


@pytest.fixture(scope="module")
def split(data_root):
    """Three images; first a ref of each image's left object, then of the right ones, backwards."""
    return load_refer(data_root, "refcoco", "val", check_counts=False)


@pytest.fixture
def without_figures(monkeypatch):
    monkeypatch.setattr("evaluation.run.draw_samples", lambda *_: None)


@pytest.fixture(scope="session")
def toy(data_root):
    """Runs of the toy method on annotated objects: how they are made, and what they leave."""

    def config(folder, *more):
        parser = argparse.ArgumentParser()
        add_run_arguments(parser, METHODS)
        given = ["--dataset", "refcoco", "--refer_data_root", data_root, "--weights", "tiny"]
        given += ["--method", "toy", "--proposals", "gt", "--device", "cpu"]
        given += ["--store", folder / "store", "--output", folder / "run", *more]
        return RunConfig.from_arguments(parser.parse_args([*map(str, given)]), METHODS)

    def prepare(folder, *more):
        return Run(config(folder, *more), METHODS)

    return SimpleNamespace(
        config=config,
        prepare=prepare,
        run=lambda folder, *more: prepare(folder, *more).execute(),
    )
