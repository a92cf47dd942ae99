"""The two sets of weights: which files they are, and whether those are the published ones."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from hybridgl.weights import manifest
from hybridgl.weights.registry import CLIP_FILES, SAM_FILES, WeightsFile, weight_set


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRIDGL_WEIGHTS", str(tmp_path))
    return tmp_path


def test_published_names_lie_in_the_weights_folder(folder):
    paper = weight_set("paper")
    assert paper.clip_weights == folder / "ViT-B-16.pt"
    assert paper.sam_checkpoint == folder / "sam_vit_h_4b8939.pth"
    assert paper.spacy_model == "en_core_web_lg"


def test_published_addresses_are_the_known_ones():
    assert CLIP_FILES["RN50"].url == (
        "https://openaipublic.azureedge.net/clip/models/"
        "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt"
    )
    assert CLIP_FILES["RN50"].name == "RN50.pt"
    assert SAM_FILES["vit_b"].url == (
        "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth"
    )


def test_missing_files_are_named_with_their_command_and_source(folder):
    clip, sam = weight_set("paper").missing()
    assert str(folder / "ViT-B-16.pt") in clip
    assert "run `hybridgl download clip-ViT-B-16`, or" in clip
    assert CLIP_FILES["ViT-B-16"].url in clip
    assert "run `hybridgl download sam-vit_h`, or" in sam
    assert SAM_FILES["vit_h"].url in sam


def test_command_for_a_missing_file_names_the_folder_that_it_is_missing_from(folder):
    weights = weight_set("paper", clip_weights=folder / "my own" / "ViT-B-32.pt")
    clip, _ = weights.missing()
    assert f"download clip-ViT-B-32 --weights_folder '{folder / 'my own'}'`, or" in clip


def test_file_with_a_published_name_and_another_content_is_doubted(folder, monkeypatch):
    for name in ("ViT-B-16.pt", "sam_vit_h_4b8939.pth"):
        (folder / name).write_bytes(name.encode())
    weights = weight_set("paper")
    digests = {model: weights.digest(model) for model in ("clip", "sam")}
    assert digests["clip"] == hashlib.sha256(b"ViT-B-16.pt").hexdigest()
    clip, sam = weights.warnings(digests)
    assert (
        f"of {folder / 'ViT-B-16.pt'} to start with 5806e77cd80f, got {digests['clip'][:12]}"
        in clip
    )
    assert "run `hybridgl download sam-vit_h`, or fetch it from https://dl.fbaipubl" in sam
    known = {"vit_h": WeightsFile("sam-vit_h", "sam_vit_h_4b8939.pth", "url", digests["sam"][:6])}
    monkeypatch.setattr(manifest, "SAM_FILES", known)
    assert weights.warnings(digests) == [clip]


def test_file_with_a_name_of_its_own_is_not_doubted(folder):
    own = folder / "own.pt"
    own.write_bytes(b"own")
    weights = replace(weight_set("tiny"), clip_weights=own)
    assert weights.warnings({model: weights.digest(model) for model in ("clip", "sam")}) == []
