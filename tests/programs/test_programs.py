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
from evaluation.records import read_records
from hybridgl import devices, views
from hybridgl.devices import BatchSizes
from hybridgl.methods import hybridgl as hybridgl_method
from hybridgl.models.sam import Sam
from hybridgl.store import Store
from tests.factories_clip import clip_state, save_npz, save_torchscript
from tests.programs.conftest import NUM_IMAGES
from tests.programs.interrupted import FIGURE, run_on_a_slow_disk
from tests.refer_factories import mini_refer
from tests.run_folders import content_of, made_in, records_of, summary_of

BUNDLED = Path(hybridgl.__file__).parent / "weights" / "tiny"

pytestmark = pytest.mark.usefixtures("without_figures", "each_model_loaded_once")


def entries(folder, kind="*"):
    return sorted((folder / "store").glob(f"v2/{kind}/??/*.safetensors"))


def remove(folder, *kinds):
    """Take entries out of a store."""
    for kind in kinds:
        shutil.rmtree(folder / "store" / "v2" / kind)


def count(folder, kind):
    return len(entries(folder, kind))


def with_refs_in_another_order(root, folder):
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


def by_sentence(folder):
    return {record.sent_id: record for record in records_of(folder)}


@pytest.mark.slow
def test_defaults_run_with_the_bundled_weights(world, tmp_path, monkeypatch, capsys):
    """No argument but the device: data, store and output in the folders that the README names."""
    monkeypatch.undo()  # with figures
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world, tmp_path / "refer" / "data")
    assert save_attn_gem.main(["--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "noun phrases in 4 images in store/: 0 found there, 17 made" in printed
    assert hybridgl_main.main(["--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    folder = tmp_path / "runs" / "shapes-val-G2L-reference"
    records = read_records(folder / "records.jsonl")
    refs = pickle.loads((world / "shapes" / "refs(synthetic).p").read_bytes())
    assert [record.sent_id for record in records] == [i for ref in refs for i in ref["sent_ids"]]
    assert f"{len(records)} samples, 0 without proposals" in printed
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["store"]["found"]["gem"] == 17
    assert {"proposals": 4, "features": 4, "scores": 4}.items() <= summary["store"]["made"].items()
    scores = summary["scores"]
    for line, variant in (("mask features alone", "features"), ("with guidance", "guided")):
        oiou, miou = scores[variant]["oIoU"], scores[variant]["mIoU"]
        assert f"{line}: oIoU {oiou:.2f}  mIoU {miou:.2f}  (95" in printed
    assert scores["guided"]["mIoU"] > scores["chance"]["mIoU"] + 10
    figures = sorted(path.name for path in (folder / "figures").iterdir())
    sorts = [f"{sort}-{rank}.png" for sort in ("best", "random", "worst") for rank in (1, 2, 3)]
    assert figures == sorted(["gallery.png", *sorts])
    for name in figures:
        Image.open(folder / "figures" / name).verify()


def test_second_run_finds_everything_and_gives_the_same_bytes(
    arguments, stocked, copied, monkeypatch
):
    monkeypatch.setattr("hybridgl.models.load", None)
    assert hybridgl_main.main(arguments(copied)) == 0
    assert content_of(copied) == content_of(stocked)
    stages = {"proposals": NUM_IMAGES, "parses": NUM_IMAGES, "features": NUM_IMAGES, "gem": 17}
    made = {**stages, "scores": NUM_IMAGES, "manifests": 1}
    assert summary_of(stocked)["store"] == {"found": {}, "made": made}
    assert summary_of(copied)["store"] == {"found": {"scores": NUM_IMAGES}, "made": {}}


def test_stages_are_found_where_scores_are_not(arguments, stocked, copied):
    remove(copied, "scores", "manifests")
    assert hybridgl_main.main(arguments(copied)) == 0
    assert content_of(copied) == content_of(stocked)
    assert made_in(copied) == {"scores": NUM_IMAGES, "manifests": 1}
    assert {path.name for path in entries(copied)} == {path.name for path in entries(stocked)}


def test_stage_1_first_gives_the_same_records(arguments, stocked, copied, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage 1")
    assert save_attn_gem.main(arguments(folder, "--limit", "1", output=False)) == 0
    maps = {path.name for path in entries(folder, "gem")}
    assert maps < {path.name for path in entries(stocked, "gem")}
    shutil.copytree(copied / "store" / "v2" / "proposals", folder / "store" / "v2" / "proposals")
    assert hybridgl_main.main(arguments(folder, "--limit", "1")) == 0
    assert summary_of(folder)["store"]["found"]["gem"] == len(maps) > 0
    assert "gem" not in made_in(folder)
    assert content_of(stocked).startswith(content_of(folder))


def test_shards_of_stage_1_fill_one_store(arguments, stocked, tmp_path, capsys):
    argv = arguments(tmp_path, "--limit", "2", output=False)
    for index, images in ((3, 0), (2, 1), (1, 1)):
        assert save_attn_gem.main([*argv, "--shard", f"{index}/3"]) == 0
        assert f"noun phrases in {images} images in " in capsys.readouterr().out
    maps = {path.name for path in entries(tmp_path, "gem")}
    assert maps < {path.name for path in entries(stocked, "gem")}
    assert save_attn_gem.main(argv) == 0
    assert "in 2 images in " in (printed := capsys.readouterr().out)
    assert f"{len(maps)} found there, 0 made" in printed


def test_shards_of_the_method_in_stores_of_their_own(arguments, stocked, tmp_path, monkeypatch):
    """SAM takes images in groups and CLIP masks in chunks: the shards' are other ones."""
    for index in (2, 1):
        argv = arguments(tmp_path / str(index), "--shard", f"{index}/2")
        assert hybridgl_main.main(argv) == 0
        shutil.copytree(tmp_path / str(index) / "store", tmp_path / "store", dirs_exist_ok=True)
    monkeypatch.setattr("hybridgl.models.load", None)
    assert hybridgl_main.main(arguments(tmp_path)) == 0
    assert content_of(tmp_path) == content_of(stocked)


@pytest.mark.parametrize(
    "sizes",
    [
        {(devices, "CPU_BATCHES"): BatchSizes(3, 5, 2), (hybridgl_method, "_MAPS_PER_CHUNK"): 2},
        {(views, "_VIEW_BYTES"): 2 * 3 * 4 * 224 * 256},
        pytest.param(
            {
                (devices, "CPU_BATCHES"): BatchSizes(1, 1, 1),
                (hybridgl_method, "_MAPS_PER_CHUNK"): 1,
            },
            marks=pytest.mark.slow,
        ),
    ],
)
def test_chunk_sizes_do_not_matter(arguments, stocked, copied, monkeypatch, sizes):
    for (module, name), size in sizes.items():
        monkeypatch.setattr(module, name, size)
    remove(copied, "scores", "features")
    assert hybridgl_main.main(arguments(copied, "--limit", "1")) == 0
    assert content_of(stocked).startswith(content_of(copied))
    assert made_in(copied)["features"] == made_in(copied)["scores"] == 1


@pytest.mark.parametrize(
    "profile", ["reference", pytest.param("corrected", marks=pytest.mark.slow)]
)
def test_records_depend_on_the_order_of_images_by_quirk_5_alone(
    profile, arguments, world, copied, tmp_path_factory
):
    shuffled = tmp_path_factory.mktemp("shuffled")
    shutil.copytree(copied / "store", shuffled / "store")
    remove(shuffled, "scores", "gem")
    more = ["--profile", profile]
    assert hybridgl_main.main(arguments(copied, *more)) == 0
    data = with_refs_in_another_order(world, shuffled)
    assert hybridgl_main.main(arguments(shuffled, *more, "--refer_data_root", data)) == 0
    assert content_of(copied) != content_of(shuffled)
    before, after = by_sentence(copied), by_sentence(shuffled)
    if profile == "corrected":
        assert before == after
        return

    def limits(folder):
        smallest, found = 6, {}
        for record in records_of(folder):
            smallest = min(smallest, record.num_proposals)
            found[record.sent_id] = smallest
        return found

    limits_before, limits_after = limits(copied), limits(shuffled)
    same = {i for i, limit in limits_before.items() if limits_after[i] == limit}
    assert 0 < len(same) < len(before)
    assert {i: before[i] for i in same} == {i: after[i] for i in same}


@pytest.mark.parametrize("which", [0, 1])
def test_half_of_the_store_deleted(arguments, stocked, copied, which):
    deleted = entries(copied)[which::2]
    for path in deleted:
        path.unlink()
    assert hybridgl_main.main(arguments(copied)) == 0
    assert content_of(copied) == content_of(stocked)
    made = Counter(path.parts[-3] for path in deleted)
    # A stage whose results are not needed for the missing scores is not made again.
    assert all(count <= made[kind] for kind, count in made_in(copied).items())
    assert made_in(copied)["scores"] == made["scores"] > 0


def test_damaged_entries_are_reported_and_made_again(arguments, stocked, copied, caplog):
    remove(copied, "scores")
    rng = random.Random(0)
    damaged = [path for path in entries(copied)[::2] if path.parts[-3] != "manifests"]
    for path in damaged:
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(content))
    cut = next(path for path in entries(copied)[1::2] if path.parts[-3] != "manifests")
    cut.write_bytes(cut.read_bytes()[:-20])
    assert {path.parts[-3] for path in damaged} == {"features", "gem", "parses", "proposals"}
    assert hybridgl_main.main(arguments(copied)) == 0
    assert content_of(copied) == content_of(stocked)
    for path in [*damaged, cut]:
        assert sum(str(path) in message for message in caplog.messages) == 1
        assert path.read_bytes() == (stocked / path.relative_to(copied)).read_bytes()


@pytest.mark.parametrize(
    "setting",
    [
        "fusion mode",
        *(pytest.param(s, marks=pytest.mark.slow) for s in ("profile", "CLIP weights")),
    ],
)
def test_results_of_other_settings_are_not_used(arguments, copied, tmp_path_factory, setting):
    fresh = tmp_path_factory.mktemp("fresh")
    proposals = "store/v2/proposals"
    shutil.copytree(copied / proposals, fresh / proposals)
    if setting == "CLIP weights":
        path = save_npz(fresh / "other.npz", clip_state(seed=1))
        more, other_maps = ["--clip_weights", path], 10
    elif setting == "profile":
        more, other_maps = ["--profile", "corrected"], 0
    else:
        more, other_maps = ["--fusion_mode", "crop"], 0
    for folder in (copied, fresh):
        assert hybridgl_main.main(arguments(folder, *more, "--limit", "2")) == 0
    assert content_of(copied) == content_of(fresh)
    assert made_in(copied)["features"] == made_in(copied)["scores"] == 2
    assert made_in(copied).get("gem", 0) == other_maps


@pytest.mark.slow
def test_bfloat16_has_masks_of_its_own_and_the_same_maps(arguments, copied):
    assert hybridgl_main.main(arguments(copied, "--dtype", "bfloat16", "--limit", "1")) == 0
    found = summary_of(copied)["store"]["found"]
    assert found["parses"] == 1
    assert made_in(copied) == {"proposals": 1, "features": 1, "scores": 1, "manifests": 1}
    numerics = summary_of(copied)["settings"]["models"]["numerics"]
    assert numerics == {"clip": "torch.float32", "sam": "torch.bfloat16"}


def test_compiled_encoders_are_those_that_were_asked_for(arguments, copied, monkeypatch):
    """The compiler itself takes minutes: here it gives back what it is given."""
    compiled = []

    def compiler(function, **_):
        compiled.append(function.__name__)
        return function

    monkeypatch.setattr(torch, "compile", compiler)
    assert hybridgl_main.main(arguments(copied, "--compile", "--limit", "1")) == 0
    assert sorted(compiled) == [
        "decode",
        "encoder_block",
        "fuse",
        "patch_features",
        "stream_tokens",
    ]
    numerics = summary_of(copied)["settings"]["models"]["numerics"]
    assert numerics == dict.fromkeys(("clip", "sam"), "torch.float32 compiled")
    assert made_in(copied)["proposals"] == made_in(copied)["features"] == 1


@pytest.mark.slow
def test_kept_tokens_give_the_records_of_every_mode(arguments, stocked, copied, tmp_path):
    """Each mode in its own folder without tokens, and all of them from one store with tokens."""
    remove(copied, "scores", "features")
    kept = [*arguments(copied), "--keep_tokens"]
    assert hybridgl_main.main(kept) == 0
    assert content_of(copied) == content_of(stocked)
    assert made_in(copied)["tokens"] == 2 * NUM_IMAGES
    for mode in ("L2G", "both", "token_masking", "attn_masking", "crop"):
        for folder, more in ((tmp_path / mode, kept), (tmp_path / f"{mode} plain", None)):
            argv = more or [*arguments(copied), "--overwrite"]
            flags = ["--fusion_mode", mode, "--output", str(folder / "run")]
            assert hybridgl_main.main([*argv, *flags]) == 0
            assert summary_of(folder)["settings"]["method"]["fusion"]["fusion_mode"] == mode
        streams = 2 if mode in ("L2G", "both") else 1
        assert summary_of(tmp_path / mode)["store"]["found"]["tokens"] == streams * NUM_IMAGES
        assert "tokens" not in made_in(tmp_path / mode)
        assert content_of(tmp_path / mode) == content_of(tmp_path / f"{mode} plain")


def test_refcoco_layout_with_openai_format_files(tmp_path, capsys):
    """Files as a user has them: TorchScript CLIP, SAM checkpoint, spaCy folder, pickled refs."""
    mini_refer("refcoco").write(tmp_path / "data")
    clip = save_torchscript(tmp_path / "clip.pt", clip_state())
    sam = tmp_path / "sam.pth"
    torch.save(Sam.from_checkpoint(BUNDLED / "sam.npz", "tiny")._sam.state_dict(), sam)
    spacy = shutil.copytree(BUNDLED / "spacy", tmp_path / "spacy")
    given = ["--dataset", "refcoco", "--split", "testA", "--splitBy", "unc", "--device", "cpu"]
    given += ["--refer_data_root", str(tmp_path / "data"), "--store", str(tmp_path / "store")]
    given += ["--clip_weights", str(clip), "--sam_type", "tiny", "--sam_checkpoint", str(sam)]
    given += ["--spacy_model", str(spacy), "--limit", "1"]
    assert save_attn_gem.main(given) == 0
    assert hybridgl_main.main([*given, "--output", str(tmp_path / "run")]) == 0
    records = records_of(tmp_path)
    assert [record.sentence for record in records[:2]] == ["Red box  on the left", "the red one"]
    assert len(records) == 5
    assert max(record.oracle_iou for record in records) > 0.7
    warning, limited = summary_of(tmp_path)["warnings"]
    parser = summary_of(tmp_path)["notes"][-1]
    assert "the first 1 of 3 images" in limited
    assert warning.startswith("Not the whole of refcoco testA (unc): expected 1975 refs, got 6;")
    printed = capsys.readouterr().out
    assert f"note: {warning}" in printed
    assert f"note: {parser}" in printed
    setting = "G2L, reference profile, CLIP clip.pt, proposals of SAM sam.pth, float32"
    assert f"this run: {setting}" in printed
    assert "published" in printed


# Killed.


FORKING = multiprocessing.get_context("forkserver")
# Loaded once, before the processes part: a kill then falls into the run, not into its imports.
FORKING.set_forkserver_preload([run_on_a_slow_disk.__module__])


@pytest.mark.slow
def test_killed_at_ten_random_moments(arguments, stocked, tmp_path):
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
    expected = content_of(tmp_path)
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
    assert content_of(tmp_path) == expected
    assert content_of(stocked).startswith(expected)
    assert summary_of(tmp_path)["counts"]["sentences"] == len(expected.splitlines())
    assert not list(tmp_path.rglob("*.partial"))


def assert_no_half_written_file(folder, records):
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
