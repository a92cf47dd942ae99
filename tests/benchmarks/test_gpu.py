"""The command that proves CUDA, on a CPU: all parts at their smallest; what a failure leaves."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import exact, parses, waiting
from benchmarks.gpu.attention import FORMS
from benchmarks.gpu.measurements import PARTS, Measurements
from benchmarks.gpu.parses import FILE, StoredParser, stored_sentences
from hybridgl.errors import DataError
from hybridgl.models.sam_encoder import relative_attention
from hybridgl.weights.registry import weight_set

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"

SMALLEST = gpu.Plan(
    sizes="tiny",
    sam_type="tiny",
    scenes=1,
    images=1,
    reference_images=1,
    masks=4,
    batch_sizes={"masks": (4, 8), "points": (4, 16), "images": (1,)},
    sam_settings=("refcoco",),
    masks_in_memory=(4,),
    traced_images=1,
    repeats=1,
    compiles=False,
)

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells the peak")


@pytest.fixture
def measurements(tmp_path):
    return Measurements(tmp_path / "gpu.json", 60, {"device": "cpu"})


def written(tmp_path):
    return json.loads((tmp_path / "gpu.json").read_text())


# The whole command.


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What it leaves, without spaCy."""
    folder = tmp_path_factory.mktemp("gpu")
    output = folder / "gpu.json"
    vectors = folder / "golden"
    vectors.mkdir()
    for name in ("clip_tiny.npz", "text.npz", "guidance.npz", "guidance.json"):
        shutil.copy(GOLDEN / name, vectors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "spacy", None)
        values = gpu.measure(SMALLEST, device="cpu", golden=vectors, output=output, seconds=100)
    assert json.loads(output.read_text()) == json.loads(json.dumps(values))
    return values


@pytest.mark.slow
@linux_only
def test_all_parts_are_measured_and_nothing_fails(found):
    assert found["failed"] == {}
    assert list(found)[:6] == ["machine", *PARTS]
    for part in PARTS:
        measured = {name for name, value in found[part].items() if value is not None}
        assert measured, part
        left_out = {f"{part}, {name}" for name in found[part].keys() - measured}
        assert left_out <= found["left_out"].keys()
    assert found["seconds"].keys() >= {"all", "exact, float32"}


@pytest.mark.slow
@linux_only
def test_a_cpu_predicts_what_a_cpu_predicts(found):
    assert found["exact"]["golden vectors"]["wrong"] == []
    assert found["exact"]["two runs"]["same records"] is True
    for name in ("features", "guided"):
        compared = found["exact"]["float32"][name]
        assert compared["of"] == found["exact"]["shapes val on the CPU"]["sentences"] > 3
        assert compared["equal"] == compared["to the pixel"] == compared["of"]
        assert compared["differing"] == []


@pytest.mark.slow
@linux_only
def test_runs_and_stages_tell_what_the_tables_need(found):
    ours = found["run"]["float32"]
    assert ours["times faster"] > 0
    assert ours["equal, features %"] == ours["equal, guided %"] == 100
    assert ours["s/image"] > 0
    assert {"SAM encoder", "features", "gem", "guidance"} <= ours["stages, s/image"].keys()
    assert ours["extrapolated: minutes of 1500 images"] == pytest.approx(25 * ours["s/image"])
    encoder = found["stages"]["SAM encoder, bfloat16"]
    assert encoder["floor, % of seconds"] > 0
    assert encoder["GFLOP"] > 0.1
    swept = found["stages"]["masks at once"]
    assert swept["items/s by size"].keys() == {"4", "8"}
    assert swept["best"] in (4, 8)
    assert swept["the program chooses"] == 16
    assert found["memory"]["features of 4 masks"]["process MB"] > 100
    for name in ("masks", "sentences"):
        assert found["waiting"][f"waits, by {name}"]["in a loop"] == {}


def test_a_missing_package_is_named_at_once(tmp_path):
    """Before anything that takes time: the others are not imported."""
    hidden = "import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p];"
    code = (
        f"{hidden} import benchmarks.gpu.__main__ as gpu; sys.exit(gpu.main(['--device', 'cpu']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: Expected the packages of this benchmark, got none of torch ")
    assert "segment-anything" in line


def test_a_gpu_that_is_not_there_is_one_line(capsys, tmp_path):
    assert gpu.main(["--device", "cuda:99", "--output", str(tmp_path / "gpu.json")]) == 2
    assert "use --device auto or --device cpu" in capsys.readouterr().err
    assert not (tmp_path / "gpu.json").exists()


# Measurements.


def test_a_figure_that_fails_is_named_and_the_next_one_taken(measurements, tmp_path, capsys):
    def fail():
        raise torch.cuda.OutOfMemoryError("CUDA out\nof memory.")

    assert measurements.measure("stages", "first", fail) is None
    assert written(tmp_path)["stages"] == {"first": None}
    assert measurements.measure("stages", "second", lambda: {"images/s": 2.5}) == {"images/s": 2.5}
    assert written(tmp_path)["stages"] == {"first": None, "second": {"images/s": 2.5}}
    assert written(tmp_path)["failed"] == {"stages, first": "OutOfMemoryError: CUDA out of memory."}
    assert "second: images/s 2.5" in capsys.readouterr().out


def test_without_time_a_figure_is_left_out(tmp_path):
    measurements = Measurements(tmp_path / "gpu.json", 0, {})
    assert measurements.measure("memory", "late", lambda: 1, needs_seconds=0) is None
    assert written(tmp_path)["memory"] == {"late": None}
    assert written(tmp_path)["left_out"] == {"memory, late": "no time was left"}


# Comparing predictions.


class Sample:
    """A prediction of one mask among two, with a margin."""

    def __init__(self, mask_HW, margin=0.5):
        self.ref = type("Ref", (), {"image_id": 7})
        self.sentence, self._mask_HW, self._margin = "the cat", np.array(mask_HW, bool), margin

    def mask(self, _variant):
        return self._mask_HW

    def margin(self, _variant):
        return self._margin


def test_predictions_are_equal_where_their_masks_are():
    whole = np.ones((10, 10))
    edge = whole.copy()
    edge[0, :4] = 0
    half = whole.copy()
    half[:5] = 0
    pairs = [(Sample(whole), Sample(other)) for other in (whole, edge, half)]
    compared = exact._compared(pairs, "guided")
    differing = {"image": 7, "sentence": "the cat", "IoU": 0.5, "margin": 0.5}
    assert compared == {"equal": 2, "to the pixel": 1, "of": 3, "differing": [differing]}


# Waiting.


def test_waits_in_a_loop_are_found():
    values = torch.arange(32.0)

    def call(count):
        assert values.sum().item() > 0
        return [values[place].item() for place in range(count)]

    found = waiting._growth(call, 4, 12, torch.device("cpu"))
    assert (found["of 4"], found["of 12"]) == (5, 13)
    assert found["in a loop"] == {"_local_scalar_dense": 8}


def test_busy_time_counts_what_overlaps_once():
    assert waiting.busy_seconds([(4, 5), (0, 2), (1, 3), (1, 2)]) == 4
    assert waiting.busy_seconds([]) == 0


# Attention.


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("name", FORMS)
def test_all_forms_of_attention_agree(name):
    torch.manual_seed(0)
    side, width = 6, 16
    q, k, v = (torch.randn(2, 3, side * side, width) for _ in range(3))
    rows, columns = torch.randn(side, side, width), torch.randn(side, side, width)
    expected = relative_attention(q, k, v, rows, columns)
    torch.testing.assert_close(FORMS[name](q, k, v, rows, columns), expected, rtol=0, atol=1e-5)


# Parses.


@pytest.mark.slow
def test_stored_parses_are_those_of_the_bundled_parser(tmp_path):
    assert parses.parsed(parses.sentences(tmp_path)) == FILE.read_text(encoding="utf-8")


def test_stored_parser_gives_back_what_is_stored_and_nothing_else():
    parser = StoredParser(weight_set("tiny").spacy_model)
    first, second, *_ = stored_sentences()
    found = parser.parse([second, first, second], right_relation_never_matches=True)
    assert found[0] == found[2] != found[1]
    for sentences, never in ((["of none"], True), ([first], False)):
        with pytest.raises(DataError, match=r"python -m benchmarks\.gpu\.parses"):
            parser.parse(sentences, right_relation_never_matches=never)
