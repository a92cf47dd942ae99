"""Both programs from end to end: the same records, whatever happens on the way."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import pickle
import random
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

import hybridgl
import hybridgl_main
import save_attn_gem
from evaluation.counts import running_k_limits
from evaluation.records import read_records
from hybridgl.config import FusionMode
from hybridgl.models.sam import Sam
from hybridgl.store import Store
from tests.factories_clip import clip_state, save_npz, save_torchscript
from tests.programs.conftest import NUM_IMAGES
from tests.programs.interrupted import FIGURE, run_on_a_slow_disk
from tests.refer_factories import mini_refer

CARRIED = Path(hybridgl.__file__).parent / "weights" / "tiny"

pytestmark = pytest.mark.usefixtures("without_figures")


def records_of(folder: Path) -> bytes:
    return (folder / "run" / "records.jsonl").read_bytes()


def summary_of(folder: Path):
    return json.loads((folder / "run" / "summary.json").read_text())


def entries(folder: Path) -> list[Path]:
    return sorted((folder / "store").rglob("*.safetensors"))


@pytest.fixture(scope="module")
def undisturbed(arguments, tmp_path_factory) -> Path:
    """Folder of a run of stage 2 alone, to be read only."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluation.run.draw_samples", lambda *_: None)
        assert hybridgl_main.main(arguments(folder)) == 0
    return folder


@pytest.fixture
def resumed(undisturbed, tmp_path) -> Path:
    """A folder with a copy of the undisturbed run's store."""
    shutil.copytree(undisturbed / "store", tmp_path / "store")
    return tmp_path


@pytest.fixture
def with_proposals(resumed) -> Path:
    """A folder with the proposals in its store, and nothing else."""
    shutil.rmtree(resumed / "store" / "features")
    shutil.rmtree(resumed / "store" / "gem")
    return resumed


def with_refs_in_another_order(root: Path, folder: Path) -> Path:
    """A copy of the world whose refs come in groups of one image, last image first."""
    copied = Path(shutil.copytree(root, folder / "data"))
    path = copied / "shapes" / "refs(synthetic).p"
    refs = pickle.loads(path.read_bytes())
    refs.sort(key=lambda ref: -ref["image_id"])
    path.write_bytes(pickle.dumps(refs, protocol=2))
    manifest = json.loads((copied / "shapes" / "world.json").read_text())
    manifest["files"]["shapes/refs(synthetic).p"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (copied / "shapes" / "world.json").write_text(json.dumps(manifest))
    return copied


def by_sentence(folder: Path):
    return {
        record.sent_id: record.to_json() for record in read_records(folder / "run/records.jsonl")
    }


def test_defaults_run_with_the_carried_weights(world, tmp_path, monkeypatch, capsys):
    """No argument but the device: data, store and output in the folders that the README names."""
    monkeypatch.undo()  # with figures
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world, tmp_path / "refer" / "data")
    assert save_attn_gem.main(["--device", "cpu"]) == 0
    assert (
        "noun phrases in 4 images in store/: 0 images found there, 4 made"
        in capsys.readouterr().out
    )
    assert hybridgl_main.main(["--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    folder = tmp_path / "runs" / "shapes-val-G2L-reference"
    records = read_records(folder / "records.jsonl")
    refs = pickle.loads((world / "shapes" / "refs(synthetic).p").read_bytes())
    assert [record.sent_id for record in records] == [i for ref in refs for i in ref["sent_ids"]]
    assert f"{len(records)} samples, 0 without proposals" in printed
    assert "found {'gem': 4}, made {'proposals': 4, 'features': 4}" in printed
    scores = json.loads((folder / "summary.json").read_text())["scores"]
    for line, pick in (("pure features", "pure"), ("with guidance", "guided")):
        expected = f"{line}: oIoU {scores[pick]['oIoU']:.2f}  mIoU {scores[pick]['mIoU']:.2f}  (95"
        assert expected in printed
    assert scores["guided"]["mIoU"] > scores["random"]["mIoU"] + 10
    figures = sorted(path.name for path in (folder / "figures").iterdir())
    sorts = [f"{sort}-{rank}.png" for sort in ("best", "random", "worst") for rank in (1, 2, 3)]
    assert figures == sorted(["gallery.png", *sorts])
    for name in figures:
        Image.open(folder / "figures" / name).verify()


def test_second_run_finds_everything_and_gives_the_same_bytes(arguments, undisturbed, resumed):
    assert hybridgl_main.main(arguments(resumed)) == 0
    assert records_of(resumed) == records_of(undisturbed)
    everything = {"proposals": NUM_IMAGES, "gem": NUM_IMAGES, "features": NUM_IMAGES}
    assert summary_of(undisturbed)["store"] == {"found": {}, "made": everything}
    assert summary_of(resumed)["store"] == {"found": everything, "made": {}}


def test_stage_1_first_gives_the_same_records(arguments, undisturbed, tmp_path):
    assert save_attn_gem.main(arguments(tmp_path, output=False)) == 0
    assert hybridgl_main.main(arguments(tmp_path)) == 0
    assert summary_of(tmp_path)["store"]["found"] == {"gem": NUM_IMAGES}
    assert records_of(tmp_path) == records_of(undisturbed)


@pytest.mark.parametrize(
    "sizes",
    [
        {"_MOST_MASKS": {"cpu": 1}, "_MAPS_PER_CHUNK": 1},
        {"_MOST_MASKS": {"cpu": 3}, "_MAPS_PER_CHUNK": 2},
        {"_VIEW_BYTES": 2 * 3 * 4 * 224 * 256},
    ],
)
def test_chunk_sizes_do_not_matter(arguments, undisturbed, with_proposals, monkeypatch, sizes):
    for name, size in sizes.items():
        module = "pipeline" if name == "_MAPS_PER_CHUNK" else "stages"
        monkeypatch.setattr(f"hybridgl.{module}.{name}", size)
    assert hybridgl_main.main(arguments(with_proposals)) == 0
    assert records_of(with_proposals) == records_of(undisturbed)


def test_corrected_records_do_not_depend_on_the_order_of_images(
    arguments, world, with_proposals, tmp_path_factory
):
    first, shuffled = with_proposals, tmp_path_factory.mktemp("shuffled")
    shutil.copytree(first / "store", shuffled / "store")
    assert hybridgl_main.main(arguments(first, "--profile", "corrected")) == 0
    data = with_refs_in_another_order(world, shuffled)
    more = ["--profile", "corrected", "--refer_data_root", str(data)]
    assert hybridgl_main.main(arguments(shuffled, *more)) == 0
    assert records_of(first) != records_of(shuffled)
    assert by_sentence(first) == by_sentence(shuffled)


def test_reference_records_depend_on_the_order_of_images_only_by_quirk_5(
    arguments, world, undisturbed, with_proposals, tmp_path
):
    data = with_refs_in_another_order(world, tmp_path)
    more = ["--refer_data_root", str(data)]
    assert hybridgl_main.main(arguments(with_proposals, *more)) == 0

    def k_limits(folder):
        records = read_records(folder / "run" / "records.jsonl")
        smallest = running_k_limits([record.num_proposals for record in records], shrinks=True)
        return {
            record.sent_id: min(k_limit, 6)
            for record, k_limit in zip(records, smallest, strict=True)
        }

    caps_before, caps_after = k_limits(undisturbed), k_limits(with_proposals)
    before, after = by_sentence(undisturbed), by_sentence(with_proposals)
    same_cap = {
        sentence for sentence, k_limit in caps_before.items() if caps_after[sentence] == k_limit
    }
    assert 0 < len(same_cap) < len(before)
    assert {s: before[s] for s in same_cap} == {s: after[s] for s in same_cap}


def test_reference_records_do_not_depend_on_the_order_in_which_the_store_was_filled(
    arguments, world, undisturbed, with_proposals, tmp_path_factory
):
    data = with_refs_in_another_order(world, tmp_path_factory.mktemp("shuffled"))
    more = ["--refer_data_root", str(data)]
    assert save_attn_gem.main(arguments(with_proposals, *more, output=False)) == 0
    assert hybridgl_main.main(arguments(with_proposals)) == 0
    assert records_of(with_proposals) == records_of(undisturbed)


@pytest.mark.parametrize("which", [0, 1])
def test_half_of_the_store_deleted(arguments, undisturbed, resumed, which):
    deleted = entries(resumed)[which::2]
    for path in deleted:
        path.unlink()
    assert hybridgl_main.main(arguments(resumed)) == 0
    assert records_of(resumed) == records_of(undisturbed)
    made = Counter(path.parts[-3] for path in deleted)
    assert summary_of(resumed)["store"]["made"] == made
    assert [p.name for p in entries(resumed)] == [p.name for p in entries(undisturbed)]


def test_damaged_entries_are_reported_and_made_again(arguments, undisturbed, resumed, caplog):
    rng = random.Random(0)
    damaged = entries(resumed)[::2]
    for path in damaged:
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(content))
    cut = entries(resumed)[1]
    cut.write_bytes(cut.read_bytes()[:-20])
    assert hybridgl_main.main(arguments(resumed)) == 0
    assert records_of(resumed) == records_of(undisturbed)
    for path in [*damaged, cut]:
        assert sum(str(path) in message for message in caplog.messages) == 1
        assert path.read_bytes() == (undisturbed / path.relative_to(resumed)).read_bytes()


@pytest.mark.parametrize("setting", ["fusion mode", "profile", "CLIP weights"])
def test_results_of_other_settings_are_not_used(arguments, resumed, tmp_path_factory, setting):
    fresh = tmp_path_factory.mktemp("fresh")
    shutil.copytree(resumed / "store" / "proposals", fresh / "store" / "proposals")
    if setting == "CLIP weights":
        path = save_npz(fresh / "other.npz", clip_state(seed=1))
        more, other_maps = ["--clip_weights", str(path)], NUM_IMAGES
    elif setting == "profile":
        more, other_maps = ["--profile", "corrected"], 0
    else:
        more, other_maps = ["--fusion_mode", "crop"], 0
    for folder in (resumed, fresh):
        assert hybridgl_main.main(arguments(folder, *more)) == 0
    assert records_of(resumed) == records_of(fresh)
    made = summary_of(resumed)["store"]["made"]
    assert made.get("features", 0) == NUM_IMAGES
    assert made.get("gem", 0) == other_maps


@pytest.mark.parametrize("mode", list(FusionMode))
def test_every_fusion_mode_runs(arguments, resumed, mode):
    assert hybridgl_main.main(arguments(resumed, "--fusion_mode", mode.value)) == 0
    assert summary_of(resumed)["settings"]["method"]["fusion"]["mode"] == mode.value
    assert (
        len(read_records(resumed / "run" / "records.jsonl"))
        == summary_of(resumed)["counts"]["sentences"]
    )


def test_published_spelling_of_both_is_the_same_mode(arguments, resumed):
    assert hybridgl_main.main(arguments(resumed, "--fusion_mode", "both")) == 0
    records = records_of(resumed)
    # Into the same folder, which refuses a run of other settings.
    assert hybridgl_main.main(arguments(resumed, "--fusion_mode", "G2L&L2G")) == 0
    assert records_of(resumed) == records


def test_finished_run_is_scored_again_and_not_made_again(arguments, resumed, capsys, monkeypatch):
    assert hybridgl_main.main(arguments(resumed)) == 0
    records, before = records_of(resumed), summary_of(resumed)
    monkeypatch.setattr("hybridgl_main.evaluate", None)
    capsys.readouterr()
    assert hybridgl_main.main(arguments(resumed, "--protocol", "lisa")) == 0
    assert "the records were there, and are scored again" in capsys.readouterr().out
    after = summary_of(resumed)
    assert records_of(resumed) == records
    assert list(after["scores"]["guided"]) == ["cIoU", "gIoU"]
    assert (after["store"], after["seconds"]) == (before["store"], before["seconds"])


@pytest.mark.parametrize("change", ["records", "settings"])
def test_run_that_is_not_the_same_is_made_again(arguments, resumed, change):
    given = arguments(resumed)
    assert hybridgl_main.main(given) == 0
    undisturbed = records_of(resumed)
    if change == "records":
        path = resumed / "run" / "records.jsonl"
        path.write_bytes(undisturbed.replace(b'"truncated": false', b'"truncated": true', 1))
    else:
        given += ["--overwrite", "--alpha", "0.5"]
    assert hybridgl_main.main(given) == 0
    if change == "records":
        assert records_of(resumed) == undisturbed
    else:
        assert summary_of(resumed)["settings"]["method"]["guidance"]["alpha"] == 0.5


def test_bfloat16_has_candidates_of_its_own_and_the_same_maps(arguments, resumed):
    assert hybridgl_main.main(arguments(resumed, "--dtype", "bfloat16", "--limit", "1")) == 0
    assert summary_of(resumed)["store"]["found"] == {"gem": 1}
    assert summary_of(resumed)["store"]["made"] == {"proposals": 1, "features": 1}
    assert summary_of(resumed)["settings"]["dtype"] == "bfloat16"


def test_limit_takes_the_first_images(arguments, undisturbed, resumed):
    assert hybridgl_main.main(arguments(resumed, "--limit", "2")) == 0
    part = f"Not the whole of shapes val: the first 2 of {NUM_IMAGES} images."
    assert summary_of(resumed)["warnings"] == [part]
    records = read_records(resumed / "run" / "records.jsonl")
    assert len({record.image_id for record in records}) == 2
    assert records == read_records(undisturbed / "run" / "records.jsonl")[: len(records)]


def test_same_weights_in_another_place_are_the_same_settings(
    arguments, clip_file, resumed, tmp_path_factory
):
    assert hybridgl_main.main(arguments(resumed)) == 0
    moved = shutil.copy(clip_file, tmp_path_factory.mktemp("moved"))
    assert hybridgl_main.main(arguments(resumed, "--clip_weights", str(moved))) == 0


def test_overwrite_makes_everything_again(arguments, undisturbed, resumed):
    assert hybridgl_main.main(arguments(resumed, "--overwrite")) == 0
    assert summary_of(resumed)["store"]["found"] == {}
    assert records_of(resumed) == records_of(undisturbed)


def test_output_folder_of_other_settings_is_refused(arguments, resumed, capsys):
    assert hybridgl_main.main(arguments(resumed)) == 0
    before = {path: path.read_bytes() for path in (resumed / "run").iterdir()}
    capsys.readouterr()
    assert hybridgl_main.main(arguments(resumed, "--fusion_mode", "crop")) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: Expected an empty folder or a run of the same settings")
    assert "found a run with other method." in message
    assert "--overwrite" in message
    assert {path: path.read_bytes() for path in (resumed / "run").iterdir()} == before
    assert hybridgl_main.main(arguments(resumed, "--fusion_mode", "crop", "--overwrite")) == 0


def test_refcoco_layout_with_openai_format_files(tmp_path, capsys):
    """Files as a user has them: TorchScript CLIP, SAM checkpoint, spaCy folder, pickled refs."""
    mini_refer("refcoco").write(tmp_path / "data")
    clip = save_torchscript(tmp_path / "clip.pt", clip_state())
    sam = tmp_path / "sam.pth"
    torch.save(Sam.from_checkpoint(CARRIED / "sam.npz", "tiny")._sam.state_dict(), sam)
    spacy = shutil.copytree(CARRIED / "spacy", tmp_path / "spacy")
    given = ["--dataset", "refcoco", "--split", "testA", "--splitBy", "unc", "--device", "cpu"]
    given += ["--refer_data_root", str(tmp_path / "data"), "--store", str(tmp_path / "store")]
    given += ["--clip_weights", str(clip), "--sam_type", "tiny", "--sam_checkpoint", str(sam)]
    given += ["--spacy_model", str(spacy)]
    assert save_attn_gem.main(given) == 0
    assert hybridgl_main.main([*given, "--output", str(tmp_path / "run")]) == 0
    records = read_records(tmp_path / "run" / "records.jsonl")
    assert [record.sentence for record in records[:2]] == ["Red box  on the left", "the red one"]
    assert len(records) == 15
    assert max(record.best_iou for record in records) > 0.7
    (problem,) = summary_of(tmp_path)["warnings"]
    assert problem.startswith("Not the whole of refcoco testA (unc): expected 1975 refs, got 6;")
    printed = capsys.readouterr().out
    assert f"note: {problem}" in printed
    assert (
        "this run: G2L, reference profile, CLIP clip.pt, proposals of SAM sam.pth, float32"
        in printed
    )
    assert "published" in printed


FORKING = multiprocessing.get_context("forkserver")
# Loaded once, before the processes part: a kill then falls into the run, not into its imports.
FORKING.set_forkserver_preload([run_on_a_slow_disk.__module__])


def test_killed_at_ten_random_moments(arguments, undisturbed, tmp_path):
    """Each killed run makes everything again, beside and in place of what those before it left."""

    def start(*more):
        stages = (arguments(tmp_path, *more, output=False), arguments(tmp_path, *more))
        process = FORKING.Process(target=run_on_a_slow_disk, args=stages)
        process.start()
        return process

    server = FORKING.Process(target=int)
    server.start()
    server.join()
    begin = time.perf_counter()
    process = start("--limit", "2")
    process.join()
    assert process.exitcode == 0
    seconds = time.perf_counter() - begin
    expected = records_of(tmp_path)
    shutil.rmtree(tmp_path)
    rng = random.Random(0)
    kills = 0
    for _ in range(10):
        process = start("--limit", "2", "--overwrite")
        process.join(timeout=rng.uniform(0, seconds))
        process.kill()
        process.join()
        kills += process.exitcode == -9
        assert_no_half_written_file(tmp_path, expected)
    assert kills >= 5
    process = start("--limit", "2")
    process.join()
    assert process.exitcode == 0
    assert records_of(tmp_path) == expected
    assert undisturbed.joinpath("run", "records.jsonl").read_bytes().startswith(expected)
    assert summary_of(tmp_path)["counts"]["sentences"] == len(expected.splitlines())
    assert not list(tmp_path.rglob("*.partial"))


def assert_no_half_written_file(folder: Path, records: bytes) -> None:
    store = Store(folder / "store")
    for path in entries(folder):
        load_file(path)
        assert store.load(path.parts[-3], path.stem) is not None
    output = folder / "run"
    if (output / "records.jsonl").exists():
        assert (output / "records.jsonl").read_bytes() == records
    if (output / "summary.json").exists():
        json.loads((output / "summary.json").read_text())
    for path in output.glob("figures/*.png"):
        assert path.read_bytes() == FIGURE


def test_compiled_encoders_are_those_that_were_asked_for(arguments, resumed, monkeypatch):
    """The compiler itself takes minutes: here it gives back what it is given."""
    compiled = []

    def compiler(function, **_):
        compiled.append(function.__name__)
        return function

    monkeypatch.setattr(torch, "compile", compiler)
    assert hybridgl_main.main(arguments(resumed, "--compile", "--limit", "1")) == 0
    assert sorted(compiled) == ["encode", "fuse", "patch_features", "stream_tokens"]
    assert summary_of(resumed)["settings"]["dtype"] == "float32 compiled"
    assert summary_of(resumed)["store"]["made"] == {"proposals": 1, "gem": 1, "features": 1}


def test_kept_tokens_give_the_records_of_every_mode(
    arguments, undisturbed, with_proposals, tmp_path
):
    """Each mode in its own folder without tokens, and all of them from one store with tokens."""
    kept = [*arguments(with_proposals), "--keep_tokens"]
    assert hybridgl_main.main(kept) == 0
    assert records_of(with_proposals) == records_of(undisturbed)
    assert summary_of(with_proposals)["store"]["made"]["tokens"] == 2 * NUM_IMAGES
    for mode in ("L2G", "both", "token_masking", "attn_masking", "crop"):
        flags = ["--fusion_mode", mode, "--output", str(tmp_path / mode)]
        assert hybridgl_main.main([*kept, *flags]) == 0
        summary = json.loads((tmp_path / mode / "summary.json").read_text())
        streams = 2 if mode in ("L2G", "both") else 1
        assert summary["store"]["found"]["tokens"] == streams * NUM_IMAGES
        assert "tokens" not in summary["store"]["made"]
        plain = ["--fusion_mode", mode, "--output", str(tmp_path / f"{mode} plain")]
        without = [*arguments(with_proposals), *plain, "--overwrite"]
        assert hybridgl_main.main(without) == 0
        first, second = (tmp_path / name / "records.jsonl" for name in (mode, f"{mode} plain"))
        assert first.read_bytes() == second.read_bytes()
