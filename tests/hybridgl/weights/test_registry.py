"""The two sets of weights: which files they are, and whether those are the published ones."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch

from hybridgl.errors import SettingError, WeightsError
from hybridgl.weights import registry
from hybridgl.weights.registry import (
    CLIP_FILES,
    SAM_FILES,
    Parser,
    WeightsFile,
    known_activation,
    weight_set,
)
from tests.factories_clip import save_torchscript


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


def test_missing_models_are_named_on_one_line_with_one_command(folder):
    clip, sam = folder / "ViT-B-16.pt", folder / "sam_vit_h_4b8939.pth"
    weights = weight_set("paper", spacy_model="en_core_web_none")
    assert weights.missing() == (
        f"Expected weights at {clip} and {sam}, got none; run `hybridgl download paper`."
    )
    assert weights.missing(["parser"]) == (
        "Expected a spaCy pipeline 'en_core_web_none', got none; install it with "
        "`python -m spacy download en_core_web_none`, or name another with --spacy_model."
    )
    clip.touch()
    line = f"Expected weights at {sam}, got no such file; run `hybridgl download paper`."
    assert weights.missing() == line
    sam.touch()
    assert weights.missing() == ""
    other = weight_set("paper", clip_model="RN50", sam_type="vit_b").missing()
    assert other.endswith("run `hybridgl download clip-RN50 sam-vit_b`.")
    assert weight_set("tiny").missing(["clip", "sam", "parser"]) == ""


def test_everything_for_photographs_is_fetched_with_one_command(folder, monkeypatch):
    monkeypatch.setattr(registry, "SPACY_MODEL", "en_core_web_none")
    line = weight_set("paper").missing(["clip", "sam", "parser"])
    assert "and a spaCy pipeline 'en_core_web_none', got none; run `hybridgl download pa" in line
    assert len(line) < 300


def test_command_for_a_missing_file_names_the_folder_that_it_is_missing_from(folder):
    weights = weight_set("paper", clip_weights=folder / "my own" / "ViT-B-32.pt")
    line = weights.missing(["clip"])
    assert line.endswith(f"download clip-ViT-B-32 --weights_folder '{folder / 'my own'}'`.")


def test_file_with_a_published_name_and_another_content_is_warned_of(folder, monkeypatch):
    for name in ("ViT-B-16.pt", "sam_vit_h_4b8939.pth"):
        (folder / name).write_bytes(name.encode())
    weights = weight_set("paper")
    sha256s = {model: weights.sha256(model) for model in ("clip", "sam")}
    assert sha256s["clip"] == hashlib.sha256(b"ViT-B-16.pt").hexdigest()
    clip, sam = weights.warnings("clip", "sam")
    assert (
        f"of {folder / 'ViT-B-16.pt'} to start with 5806e77cd80f, got {sha256s['clip'][:12]}"
        in clip
    )
    assert "run `hybridgl download sam-vit_h`, or fetch it from https://dl.fbaipubl" in sam
    known = {"vit_h": WeightsFile("sam-vit_h", "sam_vit_h_4b8939.pth", "url", sha256s["sam"][:6])}
    monkeypatch.setattr(registry, "SAM_FILES", known)
    assert weights.warnings("clip", "sam") == [clip]


PUBLISHED = [
    (name, tag)
    for name, tag in open_clip.list_pretrained()
    if re.fullmatch(r"(ViT-[SMBL]-\d\d|RN\d+(x\d+)?)(-plus)?(-\d+)?(-quickgelu)?", name)
]
"""CLIPs of open_clip's table that have the layout which is read here."""


def test_published_clips_are_known_by_their_names_as_in_open_clips_table(tmp_path):
    archive = save_torchscript(tmp_path / "archive.pt", {"weight": torch.zeros(1)})
    for model, tag in PUBLISHED:
        config = open_clip.get_pretrained_cfg(model, tag)
        names = [config["url"].rpartition("/")[2]] if config.get("url") else []
        if config.get("hf_hub"):
            folder = config["hf_hub"].strip("/").replace("/", "--")
            names.append(f"models--{folder}/snapshots/0a1b2c/open_clip_model.safetensors")
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if tag == "openai" and name.endswith(".pt"):
                shutil.copy(archive, path)
            expected = "quickgelu" if config.get("quick_gelu") else "gelu"
            assert known_activation(path) == expected, name
            warned = weight_set("tiny", clip_weights=path).clip_warnings()
            assert bool(warned) == (config["mean"] == (0.5, 0.5, 0.5)), name
    assert len(PUBLISHED) > 60


def test_activation_of_a_file_without_a_known_name_is_unknown(folder):
    assert known_activation(folder / "own.pt") is None
    assert known_activation(folder / "laion/a/b/c/own.pt") is None, "too far above"
    assert known_activation(folder / "openai/laion2b.pt") == "gelu", "the nearest name counts"
    save_torchscript(folder / "own.pt", {"weight": torch.zeros(1)})
    assert known_activation(folder / "own.pt") == "quickgelu"


def test_activation_of_bundled_and_published_files_is_openais(folder):
    for weights in (
        weight_set("tiny"),
        weight_set("paper"),
        weight_set("paper", clip_model="RN50"),
    ):
        assert (weights.activation, weights.clip_warnings()) == ("quickgelu", [])


def test_activation_that_is_asked_for_counts_whatever_is_known():
    assert weight_set("tiny", clip_activation="gelu").activation == "gelu"


def test_parser_is_named_by_its_own_files_without_being_loaded(folder, monkeypatch):
    monkeypatch.setattr(
        registry, "_version", lambda name: {"spacy": "3.8.1", "m": "3.7.1"}.get(name)
    )
    assert str(weight_set("tiny").parser) == "en_tiny_shapes 1 under spaCy 3.8.1"
    assert str(weight_set("tiny", spacy_model="m").parser) == "m 3.7.1 under spaCy 3.8.1"
    gone = weight_set("tiny", spacy_model=str(folder / "gone")).parser
    assert gone.model_version is None
    (folder / "meta.json").write_text("damaged")
    assert weight_set("tiny", spacy_model=str(folder)).parser.model_version is None


@pytest.mark.parametrize(
    ("parser", "is_released"),
    [
        (("en_core_web_lg", "3.7.1", "3.7.6"), True),
        (("en_core_web_lg", "3.7.1", "3.7.2"), True),
        (("en_core_web_lg", "3.7.1", "3.8.0"), False),
        (("en_core_web_lg", "3.7.0", "3.7.6"), False),
        (("en_core_web_md", "3.7.1", "3.7.6"), False),
        (("en_core_web_lg", "3.7.1", None), False),
        (("en_core_web_lg", None, "3.7.6"), False),
    ],
)
def test_released_parser_is_known_by_model_and_versions(parser, is_released):
    assert Parser(*parser).is_released == is_released


def test_file_with_a_name_of_its_own_is_not_warned_of(folder):
    own = folder / "own.pt"
    own.write_bytes(b"own")
    weights = replace(weight_set("tiny"), clip_weights=own)
    assert weights.warnings("clip", "sam") == []


def installed(folder, name, content, *, record=True):
    """A package as an installer leaves it, with or without its list of files."""
    package, metadata = folder / name, folder / f"{name}-1.0.dist-info"
    package.mkdir(parents=True)
    metadata.mkdir()
    (package / "weights.bin").write_bytes(content)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    sha256 = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    if record:
        (metadata / "RECORD").write_text(
            f"{name}/weights.bin,sha256={sha256},{len(content)}\n"
            f"{name}/__pycache__/x.pyc,sha256=abc,3\n"
            f"{name}-1.0.dist-info/INSTALLER,sha256=def,4\n{name}-1.0.dist-info/RECORD,,\n"
        )


def sha256_of_parser(name):
    return weight_set("tiny", spacy_model=str(name)).sha256("parser")


def test_sha256_of_a_pipelines_folder_changes_with_any_of_its_files(tmp_path):
    bundled = Path(weight_set("tiny").spacy_model)
    copied = shutil.copytree(bundled, tmp_path / "copied")
    assert sha256_of_parser(copied) == sha256_of_parser(bundled)
    model = copied / "parser" / "model"
    model.write_bytes(model.read_bytes() + b"x")
    changed = sha256_of_parser(copied)
    assert changed != sha256_of_parser(bundled)
    model.rename(copied / "parser" / "other")
    assert sha256_of_parser(copied) not in (changed, sha256_of_parser(bundled))


def test_sha256_of_an_installed_pipeline_is_that_of_what_was_installed(tmp_path, monkeypatch):
    for number, content in enumerate((b"one", b"one", b"two")):
        installed(tmp_path / str(number), "en_own", content)
    found = []
    for number in range(3):
        with monkeypatch.context() as patch:
            patch.syspath_prepend(tmp_path / str(number))
            found.append(sha256_of_parser("en_own"))
    assert found[0] == found[1] != found[2]


def test_pipeline_without_a_list_of_its_files_is_known_by_name_and_version(tmp_path, monkeypatch):
    installed(tmp_path, "en_bare", b"", record=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert len(sha256_of_parser("en_bare")) == 64


@pytest.mark.parametrize("name", ["en_core_web_none", "no/such/folder"])
def test_sha256_of_a_missing_pipeline_says_how_to_install_one(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"got neither a package nor a folder.*spacy download"):
        sha256_of_parser(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "huge"}, "weights among tiny, paper, got 'huge'; choose one"),
        ({"clip_model": "RN101"}, "a CLIP model among ViT-B-16, .*, got 'RN101'; choose one"),
        ({"sam_type": "vit_x"}, "a SAM type among vit_h, .*tiny, got 'vit_x'; choose one"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(arguments, message):
    with pytest.raises(SettingError, match=message):
        weight_set(**{"name": "tiny", **arguments})
