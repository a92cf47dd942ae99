"""The benchmark of a whole run, at its smallest: both sides pick the same, and all is reported."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from benchmarks import floors, memory, run
from benchmarks.generated_data import Setting, drawn_masks, write_files
from benchmarks.reference_schedule import ReferenceSchedule
from evaluation.counts import running_k_limits
from hybridgl.config import MethodConfig
from hybridgl.images import RgbImage
from hybridgl.methods.hybridgl import HybridGL
from hybridgl.models import Models

MASK_COUNTS = {0: 5, 1: 2}
"""Of each image: enough for quirk Q5 to act on the second ref of the first."""


@pytest.fixture(autouse=True)
def one_thread():
    """Small products take far longer on several threads where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_reports_runs_that_pick_the_same(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "NUM_SCENES", 2)
    monkeypatch.setattr(floors, "REPEATS", 1)
    path = tmp_path / "run.json"
    flags = "--sizes tiny --images 2 --masks 4 --device cpu"
    run.main([*flags.split(), "--output", str(path)])
    found = json.loads(path.read_text())
    runs = {row["run"]: row for row in found["runs"]}
    assert list(runs) == [run.REFERENCE, *run.VARIANTS]
    assert runs[run.OURS]["compared_with"] == run.REFERENCE
    assert runs[run.OURS]["equal_pure_percent"] == 100
    assert runs[run.OURS]["equal_guided_percent"] == 100
    assert all(row["seconds"] > 0 and row["peak_bytes"] > 0 for row in runs.values())
    assert [row["stage"] for row in found["stages"]] == [*run.STAGES, run.WHOLE]
    for row in found["stages"]:
        has_floor = row["stage"] not in (run.PARSE, run.WHOLE)
        assert (row["float32"]["floor_seconds"] is not None) is has_floor
    assert found["sam_bfloat16"]["recall"] > 0.9
    assert found["machine"]["images"] == 2
    assert run.OURS in capsys.readouterr().out


def test_reference_schedule_picks_as_the_pipeline_does(tmp_path):
    setting = Setting(
        sizes="tiny", sam_type="vit_b", images=2, masks=5, device="cpu", folder=tmp_path
    )
    write_files(setting)
    split = setting.split()
    drawn = {image_id: drawn_masks(image_id, count) for image_id, count in MASK_COUNTS.items()}
    config = MethodConfig(proposals=setting.proposals)
    schedule = ReferenceSchedule(setting.weights, config, setting.torch_device)
    schedule.save_maps(split, tmp_path)
    picks = schedule.pick(split, drawn, tmp_path)

    model = HybridGL(Models(setting.weights, device=setting.torch_device), config)
    k_limits = running_k_limits([MASK_COUNTS[ref.image_id] for ref in split.refs], shrinks=True)
    assert k_limits == [5, 2, 2, 2, 2]
    for ref, k_limit in zip(split.refs, k_limits, strict=True):
        image, proposals = RgbImage(split.image_path(ref.image_id)), drawn[ref.image_id]
        expressions = model.parse([sentence.raw for sentence in ref.sentences])
        predicted = model.predict(image, proposals, expressions, [k_limit] * len(expressions))
        for sentence, prediction in zip(ref.sentences, predicted, strict=True):
            picked = picks[ref.ref_id, sentence.sent_id]
            assert (picked.pure, picked.guided) == (
                prediction.picks["pure"],
                prediction.picks["guided"],
            )


def test_the_floor_is_the_slower_of_arithmetic_and_bytes():
    rates = {"float32": 100.0, "bfloat16": 400.0, "bytes": 10.0}
    cost = floors.Cost(operations=200.0, weights=2.0, moved_bytes=4.0)
    assert cost.seconds(rates, "float32") == 2.0
    assert cost.seconds(rates, "bfloat16") == 0.8  # (2 * 2 + 4) bytes
    assert floors.Cost(200.0, exact=True).seconds(rates, "bfloat16") == 2.0
    assert cost.times(3).seconds(rates, "float32") == 6.0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells the peak")
def test_memory_above_what_was_there_is_measured(tmp_path):
    setting = Setting(
        sizes="tiny", sam_type="vit_b", images=1, masks=8, device="cpu", folder=tmp_path
    )
    write_files(setting)
    found = memory.memory_of_masks(4, setting)
    assert 0 < found["above_bytes"] < found["peak_bytes"]
    assert found["seconds"] > 0


def test_clock_counts_inner_calls_once(monkeypatch):
    times = iter([0.0, 1.0, 4.0, 10.0])

    class Work:
        def outer(self):
            self.inner()

        def inner(self):
            pass

    clock = run.Clock(torch.device("cpu"))
    monkeypatch.setattr(run.time, "perf_counter", lambda: next(times))
    with clock.watching([("outer", Work, "outer"), ("inner", Work, "inner")]):
        Work().outer()
    assert clock.seconds == {"inner": 3.0, "outer": 7.0}
    assert clock.total == 10.0
