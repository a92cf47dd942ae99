"""What the released program computes; ``python -m scripts.check_golden`` compares any folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.check_golden import compare_folder, main

GOLDEN = Path(__file__).parents[1] / "golden_pseudo"


@pytest.fixture(scope="module")
def report():
    return compare_folder(GOLDEN)


def test_every_comparison_passes(report):
    assert report.passed, str(report)
    subjects = {row.subject for row in report.comparisons}
    assert {"indices", "prompt", "tokens", "captions that are kept", "text"} <= subjects
    assert {f"crops of kind {number}" for number in range(4)} <= subjects


def test_what_the_folder_lacks_is_named(report):
    assert "steps.json (the folder lacks steps.json, steps.npz)" in report.not_compared


def test_a_changed_vector_is_found(tmp_path, capsys):
    for path in GOLDEN.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with np.load(GOLDEN / "crops_scores.npz") as arrays:
        changed = dict(arrays)
    changed["run0/7000/0/doc"] = changed["run0/7000/0/doc"] + 1e-5
    np.savez(tmp_path / "crops_scores.npz", **changed)
    for name in ("chains", "beams"):
        (tmp_path / f"{name}.npz").unlink()
    assert main([str(tmp_path)]) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if "WRONG" in line]
    assert len(wrong) == 1
    assert "scores in float32, run 0" in wrong[0]
