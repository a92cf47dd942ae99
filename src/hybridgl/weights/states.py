"""Reader of a model's file: its weights as tensors by name, whichever program wrote it.

Whole checkpoints of training programs are read as far as that is safe: nothing in a file is ever
run, what is not plain data is refused by its name, and so is what leaves open which weights are
meant.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybridgl.errors import WeightsError
from hybridgl.weights.registry import is_torchscript

__all__ = ["building", "read_state"]

_logger = logging.getLogger(__name__)

_DEPTH = 4
"""Names, each in the mapping before, that lead to a tensor at most."""

_BESIDE = (
    "argparse.Namespace",
    "pathlib.PosixPath",
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
)
"""What training programs often leave beside weights: plain values, which are passed over."""

_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch's own wrappers put into names, anywhere."""

_AVERAGE = re.compile(r"(^|[._])ema([._]|$)")
"""In the name of a running average of the weights."""

_LAYOUTS = {
    "text_model.": "a CLIP in the layout of Hugging Face's transformers",
    "vision_model.": "a CLIP in the layout of Hugging Face's transformers",
    "visual.trunk.": "open_clip's CLIP with a vision tower of timm",
    "text.transformer.": "open_clip's CLIP with a text tower of another kind",
    "vision_encoder.patch_embed.": "a SAM in the layout of Hugging Face's transformers",
    "image_encoder.trunk.": "a SAM 2",
    "image_encoder.patch_embed.seq.": "a MobileSAM",
    "image_encoder.patch_embed.proj.weight": "a SAM",
    "visual.conv1.weight": "a CLIP",
}
"""Models by a part of a tensor's name that only they have."""

_OTHER_FILES = {
    b"version https://git-lfs": "a pointer of Git LFS in the place of the file",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"\x89hdf": "an HDF5 file",
}
"""Files that are taken for weights, by how they start, in lower case."""

_ONE_ALONE = "save the `state_dict()` of the one that is meant alone"

_LONGEST_HEADER = 10**8
"""Bytes of the header of safetensors, by the format's definition."""


class _FileError(Exception):
    """Says what a file is instead of weights, and its own remedy where it has one."""

    def __init__(self, received: str, fix: str = "") -> None:
        super().__init__(received)
        self.fix = fix


def _unreadable(reason: str, fix: str = "fetch it again") -> _FileError:
    return _FileError(f"a file that cannot be read ({reason})", fix)


class _PassedOver:
    """Stands for a plain value beside the weights."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _Weights:
    """Tensors of a model somewhere in a file.

    Attributes:
        keys: of the mappings that they lie in.
        prefix: of their names there.
        tensors: by their names without it.
        others: names of other tensors beside them, those of other candidates excepted.
    """

    keys: tuple[str, ...]
    prefix: str
    tensors: dict[str, Tensor]
    others: Sequence[str]

    def __str__(self) -> str:
        return _line(".".join((*self.keys, f"{self.prefix}*")))


def read_state(
    path: Path,
    entries: Sequence[str],
    *,
    expected: str,
    fix: str,
    fits: Callable[[Mapping[str, Tensor]], bool],
) -> dict[str, Tensor]:
    """Read the tensors of a model by name.

    Args:
        path: a ``.npz`` of arrays, safetensors, a TorchScript archive, or what ``torch.save``
            wrote: a state dict, or a checkpoint that holds one, under any keys and prefix.
        entries: names of tensors that tell the model from others.
        expected: what weights are wanted, for messages.
        fix: how to get them.
        fits: whether weights are of the wanted size; asked only where a file holds several.

    Returns:
        What the file holds of the model, in its number format, on the CPU.

    Raises:
        WeightsError: no such file; one that cannot be read, or not safely; without such weights,
            with several of them, or with other tensors among them.
    """
    if not path.is_file():
        raise WeightsError(f"Expected {expected} at {path}, got no such file; {fix}.")
    try:
        weights = _chosen(_content(path), entries, fits, path)
    except _FileError as refusal:
        fixes = " or ".join(filter(None, (refusal.fix, fix)))
        raise WeightsError(f"Expected {expected} in {path}, got {refusal}; {fixes}.") from refusal
    return weights.tensors


@contextlib.contextmanager
def building(path: Path, expected: str, fix: str) -> Iterator[None]:
    """Name the file whose weights no model can be built from, whatever fails in it.

    Args:
        path: of the weights.
        expected: what they should be of, for the message.
        fix: what helps.

    Raises:
        WeightsError: something failed; running out of memory is raised as it is.
    """
    try:
        yield
    except (WeightsError, MemoryError):
        raise
    except Exception as error:  # shapes that fit no model can fail anywhere in its package
        reason = _line(str(error), 200)
        raise WeightsError(
            f"Expected the weights of {expected} in {path}, got some that none can be built from "
            f"({type(error).__name__}: {reason}); {fix}."
        ) from error


# Formats.


def _content(path: Path) -> Any:
    """Read a file of whichever format, told by how it starts."""
    with path.open("rb") as stream:
        start = stream.read(64)
    try:
        return _reader(start)(path)
    except (_FileError, MemoryError, PermissionError):
        raise
    except Exception as error:  # a damaged file can fail in any way in zip, pickle or NumPy
        reason = _line(str(error), 200)
        raise _unreadable(f"{type(error).__name__}{': ' if reason else ''}{reason}") from error


def _reader(start: bytes) -> Callable[[Path], Any]:
    """Choose how to read a file by its first bytes."""
    if start.startswith(b"PK\x03\x04"):
        return _read_zip
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _LONGEST_HEADER:
        return _read_safetensors
    if start.startswith(b"\x80"):
        return _read_pickle
    for sign, what in _OTHER_FILES.items():
        if start.lower().startswith(sign):
            raise _FileError(what)
    raise _unreadable(
        "it is of no known format: .npz, .safetensors, TorchScript or torch.save"
        if start
        else "it is empty"
    )


def _read_zip(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise _unreadable("it is damaged or cut short") from error
    if any(name.endswith(".npy") for name in names):
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    if is_torchscript(path):
        with warnings.catch_warnings():
            # The format of OpenAI's files is not ours to choose.
            warnings.filterwarnings("ignore", ".*torch.jit.load.*")
            return torch.jit.load(str(path), map_location="cpu").state_dict()
    return _read_pickle(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    size = path.stat().st_size
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = stream.read(length)
    if len(header) == length:
        ends = [
            value["data_offsets"][1]
            for value in json.loads(header).values()
            if "data_offsets" in value
        ]
    if len(header) < length or 8 + length + max(ends, default=0) > size:
        raise _unreadable("it is cut short")
    return load_file(path)


def _read_pickle(path: Path) -> Any:
    """Read what ``torch.save`` wrote, in its present or its former format."""
    stubs: list[Any] = [
        type(name, (_PassedOver,), {"__module__": module})
        for module, _, name in (known.rpartition(".") for known in _BESIDE)
    ]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(stubs):
            warnings.simplefilter("ignore")  # of pickle protocols, which fail or do not
            return torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, IndexError, struct.error) as error:
        raise _unreadable("it is cut short") from error
    except RuntimeError as error:
        if "unexpected EOF" not in str(error):
            raise
        raise _unreadable("it is cut short") from error
    except pickle.UnpicklingError as error:
        alone = "save `model.state_dict()` alone with `torch.save`"
        if named := re.search(r"GLOBAL (\S+) was not an allowed", str(error)):
            held = f"it holds more than weights, such as {_line(named[1])}"
            raise _unreadable(held, alone) from error
        if "Unsupported operand" in str(error):
            raise _unreadable("torch reads no such pickle safely", alone) from error
        raise


# Which tensors.


def _chosen(
    content: Any,
    entries: Sequence[str],
    fits: Callable[[Mapping[str, Tensor]], bool],
    path: Path,
) -> _Weights:
    """Choose the model's weights from all that a file holds."""
    tensors_of = _by_mapping(content)
    found = [
        weights
        for keys, tensors in tensors_of.items()
        for weights in _candidates(keys, tensors, entries)
    ]
    if not found:
        raise _FileError(_instead(content, tensors_of.values(), entries))
    kept = [one for one in found if not _AVERAGE.search(str(one))] or found
    if len(kept) > 1:
        kept = [one for one in kept if fits(one.tensors)] or kept
    weights, *more = kept
    if more:
        raise _FileError(f"{len(kept)} of them: {_few(map(str, kept))}", _ONE_ALONE)
    if weights.others:
        raise _FileError(
            f"{len(weights.others)} other tensors beside {weights}: {_few(weights.others)}",
            f"save the `state_dict()` of what is {weights} alone",
        )
    beside = [str(one) for one in found if one is not weights and one.keys == weights.keys]
    left = beside + _left_out(content, weights.keys)
    if left:
        _logger.warning("Of %s, %s is read and %s left out.", path, weights, _few(left))
    return weights


def _by_mapping(content: Any) -> dict[tuple[str, ...], dict[str, Tensor]]:
    """Return every tensor by the keys of the mapping that it lies in, and its unwrapped name."""
    found: dict[tuple[str, ...], dict[str, Tensor]] = {}
    for (*keys, name), tensor in _tensors(content):
        tensors, plain = found.setdefault(tuple(keys), {}), _unwrapped(name)
        if plain in tensors:
            raise _FileError(
                f"two tensors {_line(plain)}, one of them compiled or wrapped", _ONE_ALONE
            )
        tensors[plain] = tensor
    return found


def _tensors(content: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Yield every tensor in nested mappings, with its keys."""
    if isinstance(content, Tensor) and keys:
        yield keys, content
    elif isinstance(content, Mapping) and len(keys) < _DEPTH:
        for name, inner in content.items():
            if isinstance(name, str):
                yield from _tensors(inner, (*keys, name))


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _candidates(
    keys: tuple[str, ...], tensors: Mapping[str, Tensor], entries: Sequence[str]
) -> list[_Weights]:
    """Return the models among the tensors of one mapping, each below a prefix of its own."""
    first, *rest = entries
    prefixes = [name.removesuffix(first) for name in tensors if f".{name}".endswith(f".{first}")]
    # The longest first, so that every name belongs to the innermost model.
    prefixes = sorted(
        (prefix for prefix in prefixes if all(prefix + entry in tensors for entry in rest)),
        key=len,
        reverse=True,
    )
    below: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in prefixes}
    others = []
    for name, tensor in tensors.items():
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if prefix is not None:
            below[prefix][name.removeprefix(prefix)] = tensor
        elif tensor.ndim:  # single numbers count steps
            others.append(name)
    return [_Weights(keys, prefix, below[prefix], others) for prefix in prefixes]


def _left_out(content: Any, taken: tuple[str, ...]) -> list[str]:
    """Return the outermost names of other tensors than those below some keys, numbers excepted."""
    names = {keys[0] for keys, tensor in _tensors(content) if tensor.ndim and keys[:-1] != taken}
    return sorted(names)


def _instead(content: Any, groups: Iterable[Mapping[str, Tensor]], entries: Sequence[str]) -> str:
    """Say what a file holds that has no such weights."""
    names = [f".{name}" for tensors in groups for name in tensors]
    for mark, what in _LAYOUTS.items():
        if mark not in entries and any(f".{mark}" in name for name in names):
            return what
    missing = next(
        (entry for entry in entries if not any(name.endswith(f".{entry}") for name in names)),
        entries[0],
    )
    held = _few(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
    return f"something without {missing}: it holds {held or 'nothing'}"


def _few(names: Iterable[str]) -> str:
    """Return the first names, and how many more there are."""
    names = list(names)
    shown = ", ".join(map(_line, itertools.islice(names, 3)))
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _line(text: str, most: int = 80) -> str:
    """Return a text of a file as one line of bounded length."""
    return " ".join(text.split())[:most]
