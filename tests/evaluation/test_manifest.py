"""Manifests: which models filled a store, for machines that lack them or have another device."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from evaluation.evaluate import Evaluation
from evaluation.manifest import find_manifest, other_devices, write_manifest
from hybridgl.config import ModelConfig
from hybridgl.errors import DataError, WeightsError
from hybridgl.models import Models
from hybridgl.store import Store
from tests.evaluation.factories import ToyMethod
from tests.run_folders import content_of, summary_of

NEEDED = ("clip", "parser")

pytestmark = pytest.mark.usefixtures("without_figures")


def models_of(**changes):
    config = ModelConfig(weights="tiny", device="cpu", **changes)
    return Models.from_config(config.resolved(published_clip="ViT-B-16"))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def here():
    """The manifest of the bundled models."""
    return find_manifest(Store(models_of().weights.clip_weights.parent), models_of(), NEEDED)


def on_a_gpu(manifest):
    """The manifest of the same models on a GPU."""
    return replace(manifest, device="cuda")


@pytest.fixture
def gone(tmp_path):
    """A CLIP of the bundled one's name that is not there."""
    return tmp_path / "elsewhere" / "clip.npz"


def test_manifest_names_and_hashes_the_models_that_take_part(here):
    assert here.names == {"clip": "clip.npz", "parser": "spacy"}
    assert here.sha256 == {name: models_of().sha256(name) for name in NEEDED}
    assert here.numerics == {"clip": "torch.float32"}
    assert here.device == "cpu"


def test_manifest_of_a_store_serves_where_a_model_is_missing(store, here, gone):
    write_manifest(store, here)
    models = models_of(clip_weights=gone)
    assert find_manifest(store, models, NEEDED) == here
    assert models.sha256("clip") == here.sha256["clip"]


def test_missing_model_without_a_manifest_is_named(store, here, gone):
    with pytest.raises(WeightsError, match=f"Expected weights at {gone}, got no such file"):
        find_manifest(store, models_of(clip_weights=gone), NEEDED)
    write_manifest(store, replace(here, names={**here.names, "clip": "other.npz"}))
    with pytest.raises(WeightsError, match=f"Expected weights at {gone}, got no such file"):
        find_manifest(store, models_of(clip_weights=gone), NEEDED)


def test_missing_parser_without_a_manifest_is_named(store, here):
    with pytest.raises(WeightsError, match="'en_core_web_none'"):
        find_manifest(store, models_of(spacy_model="en_core_web_none"), NEEDED)
    write_manifest(store, replace(here, names={**here.names, "parser": "en_core_web_none"}))
    found = find_manifest(store, models_of(spacy_model="en_core_web_none"), NEEDED)
    assert found.sha256 == here.sha256


def test_manifests_of_other_models_that_are_here_do_not_count(store, here, gone):
    write_manifest(store, replace(here, sha256={**here.sha256, "parser": "1" * 64}))
    with pytest.raises(WeightsError, match="got no such file"):
        find_manifest(store, models_of(clip_weights=gone), NEEDED)


def test_two_models_of_one_name_are_not_told_apart(store, here, gone):
    for sha256 in ("1" * 64, "2" * 64):
        write_manifest(store, replace(here, sha256={**here.sha256, "clip": sha256}))
    with pytest.raises(DataError, match=r"Expected one clip\.npz in the manifests .* got 2"):
        find_manifest(store, models_of(clip_weights=gone), NEEDED)


def test_damaged_manifest_is_none(store, here, gone, caplog):
    write_manifest(store, here)
    (path,) = store.root.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="got no such file"):
        find_manifest(Store(store.root), models_of(clip_weights=gone), NEEDED)
    assert str(path) in caplog.text


def test_damaged_manifest_is_written_again(store, here):
    write_manifest(store, here)
    (path,) = store.root.rglob("*.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    write_manifest(Store(store.root), here)
    assert path.read_bytes() == content


def test_manifest_of_an_earlier_version_is_read(store, here, gone):
    """It held what a manifest is no longer of."""
    meta = {"names": here.names, **here.made_by(), "masks_per_chunk": 16}
    store.save("manifests", "a" * 64, {}, meta)
    assert find_manifest(store, models_of(clip_weights=gone), NEEDED) == here


def test_store_of_a_gpu_with_tf32_is_used_on_a_cpu_with_the_same_flags(toy, tmp_path, monkeypatch):
    def found_on_a_gpu(*arguments):
        return on_a_gpu(find_manifest(*arguments))

    with monkeypatch.context() as patch:
        patch.setattr("evaluation.run.find_manifest", found_on_a_gpu)
        toy.run(tmp_path, "--tf32", "--shard", "1/1")
    monkeypatch.setattr(ToyMethod, "score", None)
    toy.run(tmp_path, "--tf32")
    assert summary_of(tmp_path)["settings"]["models"]["device"] == "cuda"
    toy_numerics = summary_of(tmp_path)["settings"]["models"]["numerics"]
    assert toy_numerics == {"clip": "torch.float32 tf32"}


def test_manifest_is_written_once(store, here, monkeypatch):
    write_manifest(store, here)
    monkeypatch.setattr(store, "save", None)
    write_manifest(store, here)
    assert len(store.keys("manifests")) == 1


def test_other_devices_are_those_that_filled_the_store_with_the_same_models(store, here):
    assert other_devices(store, here) == []
    write_manifest(store, here)
    assert other_devices(store, here) == []
    write_manifest(store, on_a_gpu(here))
    write_manifest(store, replace(on_a_gpu(here), sha256={**here.sha256, "clip": "1" * 64}))
    assert other_devices(store, here) == [on_a_gpu(here)]
    assert on_a_gpu(here).made_by() != here.made_by()


# Runs.


@pytest.fixture
def stored(toy, tmp_path):
    """A folder whose store holds a run, and its records."""
    toy.run(tmp_path)
    content = content_of(tmp_path)
    shutil.rmtree(tmp_path / "run")
    return tmp_path, content


def test_records_are_written_where_models_are_missing(toy, stored, gone, monkeypatch):
    folder, content = stored
    monkeypatch.setattr(ToyMethod, "score", None)
    spacy = folder / "no" / "spacy"
    toy.run(folder, "--clip_weights", gone, "--spacy_model", spacy)
    assert content_of(folder) == content
    names = summary_of(folder)["settings"]["models"]["names"]
    assert names == {"clip": "clip.npz", "parser": "spacy"}
    assert "clip.npz is not here" in summary_of(folder)["notes"][0]


def test_finished_run_is_scored_again_where_models_are_missing(toy, tmp_path, gone):
    toy.run(tmp_path)
    printed = toy.run(tmp_path, "--clip_weights", gone, "--protocol", "lavt")
    assert "the records were there" in printed
    assert summary_of(tmp_path)["protocol"] == "lavt"


def test_missing_model_is_named_where_something_is_to_be_computed(toy, stored, gone):
    folder, _ = stored
    next((folder / "store").rglob("scores/*/*.safetensors")).unlink()
    with pytest.raises(WeightsError, match=f"Expected weights at {gone}, got no such file"):
        toy.run(folder, "--clip_weights", gone)
    assert not (folder / "run").exists()


@pytest.fixture
def moved_to_a_gpu(toy, tmp_path, monkeypatch):
    """A run whose store was filled on a GPU, as far as its manifest and its keys tell."""

    def found_on_a_gpu(*arguments):
        return on_a_gpu(find_manifest(*arguments))

    with monkeypatch.context() as patch:
        patch.setattr("evaluation.run.find_manifest", found_on_a_gpu)
        toy.run(tmp_path)
    content = content_of(tmp_path)
    shutil.rmtree(tmp_path / "run")
    return tmp_path, content


def test_complete_store_of_another_device_is_used(toy, moved_to_a_gpu, monkeypatch):
    folder, content = moved_to_a_gpu
    monkeypatch.setattr(ToyMethod, "score", None)
    toy.run(folder)
    assert content_of(folder) == content
    summary = summary_of(folder)
    assert summary["settings"]["models"]["device"] == "cuda"
    assert "All images were scored on another device: cuda." in summary["notes"]
    assert not any("device" in line for line in summary["warnings"])
    assert "cuda" in (folder / "run" / "report.md").read_text()


def test_incomplete_store_of_another_device_is_not(toy, moved_to_a_gpu, caplog):
    folder, content = moved_to_a_gpu
    next((folder / "store").rglob("scores/*/*.safetensors")).unlink()
    toy.run(folder)
    assert content_of(folder) == content
    assert summary_of(folder)["settings"]["models"]["device"] == "cpu"
    assert summary_of(folder)["store"]["made"]["scores"] == 3
    assert "holds scores of 2 of 3 images that were made on cuda" in caplog.text


def test_image_that_cannot_be_decoded_is_no_reason_for_another_device(
    toy, moved_to_a_gpu, monkeypatch
):
    folder, _ = moved_to_a_gpu
    monkeypatch.setattr(Evaluation, "missing", lambda self, _=None: [min(self.split.images)])
    monkeypatch.setattr(Evaluation, "reading_error", lambda *_: "It is cut off.")
    assert toy.prepare(folder).manifest.device == "cpu"


def test_run_finished_on_another_device_is_scored_again(toy, moved_to_a_gpu, monkeypatch):
    folder, content = moved_to_a_gpu
    toy.run(folder)
    monkeypatch.setattr(ToyMethod, "score", None)
    toy.run(folder, "--protocol", "lavt")
    assert content_of(folder) == content
    assert summary_of(folder)["protocol"] == "lavt"


def test_shard_keeps_to_its_own_device(toy, moved_to_a_gpu):
    folder, _ = moved_to_a_gpu
    this = toy.prepare(folder, "--shard", "1/2")
    this.execute()
    assert this.manifest.device == "cpu"
    assert len(this.evaluation.missing()) == 1
