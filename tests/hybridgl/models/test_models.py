"""The registry of models: loaded by name, side by side, and nothing imported before."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from hybridgl import models
from hybridgl.config import ModelConfig
from hybridgl.devices import select_device
from hybridgl.errors import SettingError, WeightsError
from hybridgl.models import Models, load
from hybridgl.models.clip import ClipEncoder
from hybridgl.models.parser import SpacyParser
from hybridgl.models.sam import Sam
from hybridgl.weights.registry import weight_set
from tests.factories_clip import clip_encoder, clip_state, resnet_clip_state, save_npz

TINY = weight_set("tiny")

HEAVY = ("open_clip", "segment_anything", "spacy", "torchvision", "matplotlib", "requests")
"""Packages that cost much of a second each."""


@pytest.mark.parametrize("imported", ["hybridgl", "hybridgl.models", "hybridgl.models.sam"])
def test_no_model_package_is_imported_before_a_model_is_loaded(imported):
    code = f"import sys, {imported}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(done.stdout.split())


def test_models_are_loaded_by_name():
    assert isinstance(load("clip", TINY.clip_weights), ClipEncoder)
    assert isinstance(load("sam", TINY.sam_checkpoint, sam_type="tiny"), Sam)
    assert isinstance(load("parser", TINY.spacy_model), SpacyParser)


def test_unknown_model_is_refused_with_the_known_ones():
    with pytest.raises(SettingError, match="among clip, sam, parser, got 'blip'; choose one"):
        load("blip", TINY.clip_weights)


def test_a_model_of_another_package_can_be_registered(monkeypatch):
    monkeypatch.setitem(models.LOADERS, "captioner", lambda weights, device: (weights, device))
    assert load("captioner", "c.pt", device="cpu") == ("c.pt", "cpu")


def test_two_clips_live_side_by_side(tmp_path):
    states = clip_state(0, blocks=2), resnet_clip_state(1), clip_state(2, blocks=1, side=96)
    paths = [save_npz(tmp_path / f"{number}.npz", state) for number, state in enumerate(states)]
    together = [load("clip", path) for path in paths]
    for clip, state in zip(together, states, strict=True):
        alone = clip_encoder(state)
        images = torch.randn(
            1, 3, *[alone.image_size] * 2, generator=torch.Generator().manual_seed(0)
        )
        assert torch.equal(clip.encode_images(images), alone.encode_images(images))
        assert torch.equal(clip.encode_texts(["a cat"]), alone.encode_texts(["a cat"]))


def test_models_of_a_set_are_loaded_once_each_and_only_when_needed(monkeypatch):
    asked = []
    for name in models.LOADERS:
        monkeypatch.setitem(models.LOADERS, name, lambda *_, name=name, **__: asked.append(name))
    of_run = Models(TINY, device=torch.device("cpu"))
    assert asked == []
    for _ in range(2):
        assert (of_run.sam, of_run.parser, of_run.clip) == (None, None, None)
    assert asked == ["sam", "parser", "clip"]


def test_numerics_of_sam_depend_on_the_dtype_and_those_of_clip_do_not():
    of_run = Models(TINY, device=torch.device("cpu"), dtype=torch.bfloat16, compiles=True)
    assert of_run.numerics("sam") == "torch.bfloat16 compiled"
    assert of_run.numerics("clip") == "torch.float32 compiled"


def test_numerics_of_clip_name_the_activation_where_it_is_not_openais(tmp_path):
    def models_of(name, activation=None):
        weights = weight_set("tiny", clip_weights=tmp_path / name, clip_activation=activation)
        return Models(weights, device=torch.device("cpu"), compiles=True)

    asked, named = models_of("own.pt", "gelu"), models_of("CLIP-ViT-B-32-laion2B-s34B-b79K.pt")
    assert asked.numerics("clip") == named.numerics("clip") == "torch.float32 compiled gelu"
    assert asked.numerics("sam") == "torch.float32 compiled"
    for usual in (models_of("own.pt"), models_of("laion.pt", "quickgelu"), models_of("RN50.pt")):
        assert usual.numerics("clip") == "torch.float32 compiled"


def test_clip_of_unknown_activation_is_warned_of_once_and_computed_with_quickgelu(tmp_path, caplog):
    path = save_npz(tmp_path / "own.npz", clip_state(blocks=1))

    def models_of(activation=None):
        weights = weight_set("tiny", clip_weights=path, clip_activation=activation)
        return Models(weights, device=torch.device("cpu"))

    unknown = models_of()
    assert unknown.sha256("clip") == unknown.sha256("clip")
    (line,) = unknown.warnings("clip", "sam")
    assert caplog.messages == [line]
    assert f"got {path}, which is computed with QuickGELU" in line
    assert "--clip_activation quickgelu, or gelu" in line
    assert unknown.warnings("sam") == models_of("gelu").warnings("clip") == []
    same, other = (models_of(name).clip.encode_texts(["a cat"]) for name in ("quickgelu", "gelu"))
    assert torch.equal(unknown.clip.encode_texts(["a cat"]), same)
    assert not torch.equal(unknown.clip.encode_texts(["a cat"]), other)


def test_clip_that_is_not_here_is_warned_of_too(tmp_path):
    models = Models(
        weight_set("tiny", clip_weights=tmp_path / "own.pt"), device=torch.device("cpu")
    )
    models.assume("clip", "0" * 64)
    assert len(models.warnings("clip")) == 1


def test_missing_files_are_named_before_any_work(tmp_path):
    weights = weight_set("tiny", clip_weights=tmp_path / "c.pt", sam_checkpoint=tmp_path / "s.pth")
    of_run = Models(weights, device=torch.device("cpu"))
    with pytest.raises(WeightsError, match=r"weights at \S+c\.pt and \S+s\.pth, got none; check"):
        of_run.require("clip", "sam")
    Models(TINY, device=torch.device("cpu")).require("clip", "sam")


def test_file_that_is_not_the_published_one_is_warned_of_once(tmp_path, caplog):
    path = tmp_path / "ViT-B-16.pt"
    path.write_bytes(b"other")
    of_run = Models(weight_set("tiny", clip_weights=path), device=torch.device("cpu"))
    assert of_run.sha256("clip") == of_run.sha256("clip")
    assert [record.message for record in caplog.records] == of_run.warnings("clip")
    assert len(caplog.records) == 1


@pytest.mark.parametrize("name", ["gpu", "meta", "cpu:x", "", "mps", "mps:0", "xpu"])
def test_device_of_another_kind_is_refused(name):
    expected = f"auto, cpu, cuda or cuda:i, got '{name}', which is not supported; use --device cpu"
    with pytest.raises(SettingError, match=expected):
        select_device(name)


def test_device_that_is_not_there_is_refused():
    with pytest.raises(
        SettingError, match=r"'cuda:99' with \d+ GPUs; use --device auto or --device cpu"
    ):
        select_device("cuda:99")


def test_names_of_devices_and_number_formats():
    assert select_device("cpu") == torch.device("cpu")
    assert select_device("auto").type in ("cpu", "cuda")
    config = ModelConfig(dtype="bfloat16", device="cpu").resolved(published_clip="ViT-B-16")
    assert Models.from_config(config).dtype is torch.bfloat16
    with pytest.raises(SettingError, match="float32, bfloat16, got 'float16'; choose one"):
        ModelConfig(dtype="float16")
