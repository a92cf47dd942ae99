"""Files of weights as programs of every kind leave them: what is read, what is said of others."""

from __future__ import annotations

import argparse
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hybridgl.errors import WeightsError
from hybridgl.weights.states import read_state

STATE = {"stem.weight": torch.arange(6.0).reshape(2, 3), "norm.bias": torch.ones(2)}
"""Of the model that is wanted."""

LARGE = {name: torch.zeros(8, *value.shape) for name, value in STATE.items()}
"""Of another size of it."""

LAYERS = {"0.weight": torch.zeros(2, 2)}
"""Of another model."""


def read(path):
    return read_state(
        path,
        ("stem.weight", "norm.bias"),
        expected="weights of a toy",
        fix="ask for another",
        fits=lambda state: state["stem.weight"].shape == (2, 3),
    )


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


def below(prefix, state=STATE):
    return {f"{prefix}{name}": value for name, value in state.items()}


def assert_read(path, state=STATE):
    got = read(path)
    assert got.keys() == state.keys()
    assert all(torch.equal(got[name], value) for name, value in state.items())


def refusal_of(path):
    with pytest.raises(WeightsError) as caught:
        read(path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"Expected weights of a toy in {path}, got ")
    return line.partition(", got ")[2]


# Formats.


def test_state_dicts_of_either_format_of_torch_are_read(tmp_path):
    assert_read(saved(tmp_path / "new.pt", STATE))
    assert_read(saved(tmp_path / "old.pt", STATE, _use_new_zipfile_serialization=False))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_safetensors_are_told_by_their_content(tmp_path, name):
    save_file(STATE, tmp_path / name)
    assert_read(tmp_path / name)


@pytest.mark.parametrize("name", ["w.npz", "w.pt"])
def test_arrays_are_told_by_their_content(tmp_path, name):
    with (tmp_path / name).open("wb") as stream:
        np.savez(stream, **{key: value.numpy() for key, value in STATE.items()})
    assert_read(tmp_path / name)


def write_safetensors(path):
    save_file(STATE, path)


def write_npz(path):
    with path.open("wb") as stream:
        np.savez(stream, **STATE)


def write_new(path):
    torch.save(STATE, path)


def write_old(path):
    torch.save(STATE, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [write_safetensors, write_npz, write_new, write_old])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.999])
def test_files_that_are_cut_short_are_said_to_be(tmp_path, write, kept):
    path = tmp_path / "w"
    write(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert re.fullmatch(
        r"a file that cannot be read \(it is (damaged or )?cut short\); "
        r"fetch it again or ask for another\.",
        refusal_of(path),
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "(it is empty)"),
        (b"nothing of ours", "(it is of no known format"),
        (bytes(1000), "(it is of no known format"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS in the place"),
        (b"<!DOCTYPE html><html>", "a web page; ask for another."),
    ],
)
def test_files_of_no_such_format_are_not_said_to_be_cut(tmp_path, content, said):
    path = tmp_path / "w.pt"
    path.write_bytes(content)
    line = refusal_of(path)
    assert said in line
    assert "cut" not in line


def test_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"of a toy at .*gone\.pt, got no such file; ask for an"):
        read(tmp_path / "gone.pt")


# Checkpoints of training programs.


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": STATE},
        {"model": STATE, "epoch": 3},
        {"epoch": 3, "model_state_dict": below("module.")},
        {"whatever": {"net": STATE}},
        below("_orig_mod."),
        below("module._orig_mod."),
        {"state_dict": below("student.backbone.")},
        {"state_dict": {**below("model."), "steps": torch.tensor(7)}},
        {"stem._orig_mod.weight": STATE["stem.weight"], "norm.bias": STATE["norm.bias"]},
        {**STATE, "epoch": 3},
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_weights_are_found_below_any_keys_and_prefix(tmp_path, content, caplog):
    assert_read(saved(tmp_path / "w.pt", content))
    assert not caplog.records


def test_weights_of_a_whole_training_program_are_read(tmp_path, caplog):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoint = {
        "model": STATE,
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2).state_dict(),
        "loss": np.float64(0.5),
        "step": np.int64(3),
        "seen": np.arange(3),
        "args": argparse.Namespace(lr=0.1, folder=Path("runs")),
    }
    assert_read(saved(tmp_path / "new.pt", checkpoint))
    assert_read(saved(tmp_path / "old.pt", checkpoint, _use_new_zipfile_serialization=False))
    assert not caplog.records


class Recipe:
    """A type that only its own program knows."""


def test_type_that_is_no_plain_value_is_named(tmp_path):
    path = saved(tmp_path / "w.pt", {"model": STATE, "recipe": Recipe()})
    assert refusal_of(path) == (
        f"a file that cannot be read (it holds more than weights, such as {__name__}.Recipe); save "
        f"`model.state_dict()` alone with `torch.save` or ask for another."
    )


def test_whole_module_is_refused_by_its_type(tmp_path):
    line = refusal_of(saved(tmp_path / "w.pt", nn.Linear(2, 2)))
    assert "such as torch.nn.modules.linear.Linear); save `model.state_dict()` alone" in line


def test_pickle_that_torch_does_not_read_safely_is_not_said_to_be_cut(tmp_path):
    line = refusal_of(saved(tmp_path / "w.pt", STATE, pickle_protocol=4))
    assert "(torch reads no such pickle safely); save `model.state_dict()` alone" in line


@pytest.mark.parametrize("format_is_new", [True, False])
def test_nothing_of_a_file_is_run(tmp_path, format_is_new):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    path = tmp_path / "w.pt"
    torch.save({"model": STATE, "x": Trap()}, path, _use_new_zipfile_serialization=format_is_new)
    assert "it holds more than weights, such as io.open" in refusal_of(path)
    assert not (tmp_path / "sprung").exists()


def test_values_beside_weights_are_never_built(tmp_path, monkeypatch):
    path = saved(tmp_path / "w.pt", {"model": STATE, "args": argparse.Namespace(lr=1)})
    monkeypatch.setattr(argparse, "Namespace", None)
    assert_read(path)


# Several weights in one file.


@pytest.mark.parametrize(
    ("content", "left"),
    [
        ({"model": STATE, "model_ema": LARGE}, "model.* is read and model_ema"),
        ({"ema": {"module": STATE}, "net": STATE}, "net.* is read and ema"),
        ({"state_dict": STATE, "state_dict_ema": STATE}, "state_dict.* is read and state_dict_ema"),
        ({"teacher": LARGE, "student": STATE}, "student.* is read and teacher"),
        ({**STATE, **below("ema.", LARGE)}, "* is read and ema.*"),
        (
            {**below("model."), **below("model_ema.", LARGE)},
            "model.* is read and model_ema.*",
        ),
        ({"model": STATE, "lora": LAYERS}, "model.* is read and lora"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_plain_weights_or_those_that_fit_are_taken_and_others_named(
    tmp_path, content, left, caplog
):
    path = saved(tmp_path / "w.pt", content)
    with caplog.at_level(logging.WARNING):
        assert_read(path)
    assert caplog.messages == [f"Of {path}, {left} left out."]


def test_average_alone_is_taken(tmp_path):
    assert_read(saved(tmp_path / "w.pt", {"ema": STATE, "epoch": 3}))


@pytest.mark.parametrize("state", [STATE, LARGE], ids=["all fit", "none fits"])
def test_several_weights_are_refused_with_their_names(tmp_path, state):
    content = {"state_dict": {**below("student.", state), **below("teacher.", state)}}
    assert refusal_of(saved(tmp_path / "w.pt", content)) == (
        "2 of them: state_dict.student.*, state_dict.teacher.*; save the `state_dict()` of the one "
        "that is meant alone or ask for another."
    )


def test_weights_that_are_there_both_compiled_and_plain_are_refused(tmp_path):
    content = {"state_dict": {**STATE, **below("_orig_mod.", STATE)}}
    assert refusal_of(saved(tmp_path / "w.pt", content)).startswith(
        "two tensors stem.weight, one of them compiled or wrapped; save the `state_dict()` of"
    )


def test_other_tensors_among_the_weights_are_refused_with_their_names(tmp_path):
    content = {"state_dict": {**below("sam."), "w_As.0.weight": torch.zeros(2)}}
    assert refusal_of(saved(tmp_path / "w.pt", content)) == (
        "1 other tensors beside state_dict.sam.*: w_As.0.weight; save the `state_dict()` of what "
        "is state_dict.sam.* alone or ask for another."
    )


# Other models.


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"text_model.embeddings.position_ids": torch.zeros(1, 77)},
            "a CLIP in the layout of Hugging Face's transformers; ask for another.",
        ),
        (
            {"model": {"image_encoder.trunk.patch_embed.proj.weight": torch.zeros(1)}},
            "a SAM 2; ask for another.",
        ),
        ({"visual.conv1.weight": torch.zeros(1)}, "a CLIP; ask for another."),
        (
            {"epoch": 3, "lr": 0.1, "net": LAYERS, "step": 5, "x": "y"},
            "something without stem.weight: it holds epoch, lr, net and 2 more; ask for another.",
        ),
        (
            {"stem.weight": torch.zeros(1)},
            "something without norm.bias: it holds stem.weight; ask for another.",
        ),
        ({}, "something without stem.weight: it holds nothing; ask for another."),
        ([1, 2], "something without stem.weight: it holds list; ask for another."),
        (torch.zeros(2), "something without stem.weight: it holds Tensor; ask for another."),
        (
            {"two\nlines " + "and long" * 99: torch.zeros(1)},
            f"something without stem.weight: it holds {('two lines ' + 'and long' * 99)[:80]}; ask "
            f"for another.",
        ),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_what_a_file_holds_instead_is_said(tmp_path, content, said):
    assert refusal_of(saved(tmp_path / "w.pt", content)) == said
