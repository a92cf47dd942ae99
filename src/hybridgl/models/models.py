"""The models that every method stands on: CLIP, SAM and the parser of one set of weights.

Each is loaded when it is first needed, so that a run whose results are all stored loads none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from importlib.metadata import version
from typing import Any, ParamSpec

import torch
from torch import Tensor

from hybridgl.errors import HybridGLError
from hybridgl.models.clip import ClipEncoder
from hybridgl.models.parser import SpacyParser
from hybridgl.models.sam import SamProposer
from hybridgl.weights.registry import WeightSet

__all__ = ["Models", "select_device", "select_dtype"]

_LOG = logging.getLogger(__name__)

_Parameters = ParamSpec("_Parameters")

_PACKAGES = ("hybridgl", "torch", "torchvision", "open_clip_torch", "segment-anything", "spacy")


class Models:
    """CLIP, SAM and spaCy's pipeline.

    Attributes:
        weights: their files.
        device: where they run.
        dtype: of the matrix products in SAM's image encoder: float32, or bfloat16, with which the
            masks are nearly the same. CLIP computes in float32: two masks are often more alike than
            bfloat16's rounding of their features.
        compiles: whether torch compiles the encoders.
    """

    def __init__(
        self,
        weights: WeightSet,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        compiles: bool = False,
    ) -> None:
        self.weights = weights
        self.device = device
        self.dtype = dtype
        self.compiles = compiles
        self._sha256: dict[str, str] = {}

    @cached_property
    def clip(self) -> ClipEncoder:
        """CLIP.

        Raises:
            HybridGLError: no such file, damaged, or of another architecture.
        """
        return ClipEncoder.from_file(
            self.weights.clip_weights,
            architecture=self.weights.clip_model,
            device=self.device,
        )

    @cached_property
    def proposer(self) -> SamProposer:
        """SAM.

        Raises:
            HybridGLError: no such file, damaged, or of another type.
        """
        return SamProposer.from_checkpoint(
            self.weights.sam_checkpoint,
            self.weights.sam_type,
            self.device,
            self.dtype,
            compiles=self.compiles,
        )

    @cached_property
    def parser(self) -> SpacyParser:
        """SpaCy's pipeline.

        Raises:
            HybridGLError: it is not installed.
        """
        return _parser(self.weights.spacy_model)

    def require(self, *models: str) -> None:
        """Check that files are there, before any work.

        Args:
            models: "clip", "sam".

        Raises:
            HybridGLError: some are not; all of them are named.
        """
        missing = self.weights.missing(models)
        if missing:
            raise HybridGLError(" ".join(missing))

    def sha256(self, model: str) -> str:
        """Sha256 of a model's file, which takes part in the keys of what it computes.

        A file that is not the published one whose name it has is named in a warning.

        Args:
            model: "clip" or "sam".
        """
        if model not in self._sha256:
            self._sha256[model] = self.weights.sha256(model)
            for warning in self.weights.warnings({model: self._sha256[model]}):
                _LOG.warning(warning)
        return self._sha256[model]

    def warnings(self, *models: str) -> list[str]:
        """One line for every file that has a published one's name, but not its content."""
        return self.weights.warnings({model: self.sha256(model) for model in models})

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """CLIP text features, float32, (L, E), un-normalised."""
        return self.clip.encode_texts(texts)

    def numerics(self, model: str) -> str:
        """What a model's rounding depends on: part of the keys of what it computes.

        Args:
            model: "clip" or "sam".
        """
        dtype = self.dtype if model == "sam" else torch.float32
        return f"{dtype}{' compiled' if self.compiles else ''}"

    def compiled(self, function: Callable[_Parameters, Tensor]) -> Callable[_Parameters, Tensor]:
        """The function, compiled by torch if that was asked for."""
        return torch.compile(function, dynamic=True) if self.compiles else function

    def describe(self, *models: str) -> dict[str, Any]:
        """Weights, number format and versions, as JSON values.

        Args:
            models: those of "clip" and "sam" that take part.
        """
        files = {"clip": self.weights.clip_weights, "sam": self.weights.sam_checkpoint}
        return {
            "weights": {
                **{model: files[model].name for model in models},
                "spacy": self.parser.name,
                "sha256": {model: self.sha256(model) for model in models},
            },
            "device": self.device.type,
            "dtype": self.numerics("sam").removeprefix("torch."),
            "versions": {name: version(name) for name in _PACKAGES},
        }


@lru_cache(maxsize=2)
def _parser(model: str) -> SpacyParser:
    """Loaded once a process: several methods in turn parse with the same one."""
    return SpacyParser(model)


def select_device(name: str) -> torch.device:
    """Device of a name; "auto" is the first GPU, or else the CPU.

    Raises:
        HybridGLError: no device has this name, or it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise HybridGLError(
            f"Expected the device auto, cpu, cuda or cuda:i, got {name!r}."
        ) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise HybridGLError(
            f"Expected a device that is there, got {name!r} with {torch.cuda.device_count()} "
            f"GPUs. Use --device cpu."
        )
    if device.type not in ("cpu", "cuda"):
        raise HybridGLError(f"Expected the device auto, cpu, cuda or cuda:i, got {name!r}.")
    return device


def select_dtype(name: str) -> torch.dtype:
    """Number format of a name.

    Raises:
        HybridGLError: neither float32 nor bfloat16.
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in known:
        raise HybridGLError(f"Expected the dtype float32 or bfloat16, got {name!r}.")
    return known[name]
