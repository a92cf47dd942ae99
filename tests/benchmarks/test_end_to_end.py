"""The benchmarks at their smallest: both sides predict the same, and all is reported."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import end_to_end, stages
from benchmarks.data import Workload, drawn_masks
from benchmarks.reference import ReferenceSchedule
from hybridgl.config import HybridGLConfig
from hybridgl.images import RgbImage
from hybridgl.methods.hybridgl import HybridGL
from hybridgl.models import Models
from refer.refer import load_refer

MASK_COUNTS = {0: 5, 1: 2}
"""Of each image: enough for quirk Q5 to act on the second ref of the first."""

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells the peak")


@pytest.fixture(autouse=True)
def one_thread():
    """Small products take far longer on several threads where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def workload(tmp_path):
    made = Workload(
        sizes="tiny", sam_type="vit_b", images=2, masks=5, device="cpu", folder=tmp_path
    )
    made.write()
    return made


@pytest.mark.slow
@linux_only
def test_reports_runs_that_predict_the_same(tmp_path, capsys):
    path = tmp_path / "run.json"
    flags = "--sizes tiny --images 1 --masks 4 --device cpu"
    end_to_end.main([*flags.split(), "--output", str(path)])
    found = json.loads(path.read_text())
    runs = {row["run"]: row for row in found["runs"]}
    assert list(runs) == [end_to_end.REFERENCE, *end_to_end.KINDS]
    for name in (end_to_end.OURS, end_to_end.OURS_TOKENS):
        assert runs[name]["compared with"] == end_to_end.KINDS[name].compared_with
        assert runs[name]["equal predictions, features %"] == 100
        assert runs[name]["guided %"] == 100
    assert all(row["seconds"] > 0 and row["peak MB"] > 0 for row in runs.values())
    assert found["machine"]["images"] == 1
    assert end_to_end.OURS in capsys.readouterr().out
    shared = {"decode", "SAM encoder", "SAM decoder", "views", "features", "gem", "parse"}
    shared |= {"text features", "guidance", "counts", "store", "all"}
    rows = {row.pop("stage, s per image"): row for row in found["stages"]}
    assert shared | {"proposals"} == set(rows)
    for stage in shared:
        assert all(seconds > 0 for seconds in rows[stage].values()), stage


@pytest.mark.slow
def test_reference_schedule_predicts_as_the_method_does(workload, tmp_path):
    split = load_refer(tmp_path / "data", "refcoco", "val", "unc", check_counts=False)
    drawn = {image_id: drawn_masks(image_id, count) for image_id, count in MASK_COUNTS.items()}
    config = HybridGLConfig()
    schedule = ReferenceSchedule(workload.weights, config, workload.torch_device)
    schedule._generator = SimpleNamespace(generate=lambda _: None)  # its masks are not used
    schedule.save_maps(split, tmp_path)
    found = schedule.predict(split, drawn, tmp_path)

    model = HybridGL(Models(workload.weights, device=workload.torch_device), config)
    k_limits = [5, 2, 2, 2, 2]
    for ref, k_limit in zip(split.refs, k_limits, strict=True):
        image = RgbImage(split.image_path(ref.image_id))
        sentences = [sentence.raw for sentence in ref.sentences]
        scored = model.score(image, sentences, drawn[ref.image_id])
        for sentence, scores in zip(ref.sentences, scored, strict=True):
            proposals = model.choose(scores, k_limit=k_limit).proposals
            wanted = (proposals["features"], proposals["guided"])
            assert found[ref.ref_id, sentence.sent_id] == wanted


def test_two_checkouts_are_compared_program_by_program(workload, tmp_path, monkeypatch):
    started = []

    def used(command, root):
        started.append((root == tmp_path, Path(command[1]).name, "--proposals" in command))
        return (4.0, 2.0, 100.0) if root == tmp_path else (1.0, 1.0, 50.0)

    monkeypatch.setattr(end_to_end, "_used", used)
    text = end_to_end.compare_checkouts(workload, tmp_path, pairs=2, flags=())
    programs = [
        ("save_attn_gem.py", False),
        ("hybridgl_main.py", False),
        ("hybridgl_main.py", True),
    ]
    sides = [True, False, False, True]  # in turn, so that a machine that slows down slows both
    assert started == [(side, *program) for side in sides for program in programs]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    assert [row[0] for row in rows] == ["maps", "run", "run, drawn masks"]
    assert [row[3::3] for row in rows] == [["0.25", "0.5", "0.5"]] * 3


@linux_only
@pytest.mark.parametrize("stage", ["look at images", "check run lengths"])
def test_a_stage_tells_seconds_and_memory(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "NUM_FILES", 3)
    monkeypatch.setattr(stages, "NUM_CHECKED", 3)
    row = stages.measure(stage, num_masks=2, repeats=1, folder=tmp_path)
    assert row["seconds"] > 0
    assert 0 <= row["MB above what was there"] < row["peak MB"]
