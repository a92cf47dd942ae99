"""Registry of the models that methods stand on: loaded by name, or as the set of one run.

Each foreign package has one module here, and is imported when its first model is loaded: importing
``hybridgl.models`` costs little more than torch, and a run whose results are all stored loads none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ParamSpec

import torch
from torch import Tensor

from hybridgl.config import ModelConfig
from hybridgl.devices import CPU_BATCHES, Batches, BatchSizes, select_device
from hybridgl.errors import SettingError, WeightsError
from hybridgl.models.clip import ClipEncoder
from hybridgl.models.parser import SpacyParser
from hybridgl.models.sam import Sam, image_and_point_bytes
from hybridgl.timing import timer
from hybridgl.weights.registry import WeightSet, weight_set

__all__ = ["LOADERS", "Models", "load"]

_logger = logging.getLogger(__name__)

_Parameters = ParamSpec("_Parameters")

LOADERS: dict[str, Callable[..., Any]] = {
    "clip": ClipEncoder.from_file,
    "sam": Sam.from_checkpoint,
    # Methods in turn parse with the same pipeline.
    "parser": lru_cache(maxsize=2)(SpacyParser),
}
"""What loads a model, by its name."""


@timer("load models")
def load(name: str, weights: Path | str, **options: Any) -> Any:
    """Load a model; any number of one name can live side by side.

    Args:
        name: "clip", "sam" or "parser".
        weights: its file; of the parser, a folder or the name of an installed pipeline.
        options: those of its loader: ``device`` of CLIP and SAM, ``architecture`` and
            ``activation`` of CLIP, ``sam_type``, ``dtype``, ``compiles`` and ``batches`` of SAM.

    Returns:
        A ``ClipEncoder``, a ``Sam`` or a ``SpacyParser``.

    Raises:
        SettingError: no model has this name.
        WeightsError: the weights are missing, damaged, or those of another model.

    Example:
        >>> from hybridgl.weights.registry import weight_set
        >>> load("clip", weight_set("tiny").clip_weights, device="cpu").image_size
        112
    """
    if name not in LOADERS:
        known = ", ".join(LOADERS)
        raise SettingError(f"Expected a model among {known}, got {name!r}; choose one of them.")
    return LOADERS[name](weights, **options)


class Models:
    """CLIP, SAM and the parser of one set of weights, each loaded when it is first needed.

    Attributes:
        weights: their files.
        device: where they run.
        dtype: of the products in SAM's image encoder: float32, or bfloat16, with which the masks
            are nearly the same; CLIP computes in float32.
        tf32: whether a GPU's float32 products may be rounded to TF32: it names results, and torch's
            own setting, which programs make agree (``set_tf32``), decides.
        compiles: whether torch compiles the encoders and SAM's decoder.
    """

    def __init__(
        self,
        weights: WeightSet,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        tf32: bool = False,
        compiles: bool = False,
    ) -> None:
        self.weights = weights
        self.device = device
        self.dtype = dtype
        self.tf32 = tf32
        self.compiles = compiles
        self._sha256: dict[str, str] = {}
        self._assumed: set[str] = set()

    @classmethod
    def from_config(cls, config: ModelConfig) -> Models:
        """Take the models that the settings name; no file is read.

        Args:
            config: resolved: what depends on dataset and method is filled in. Its number of threads
                is torch's, and so is set for the process.

        Raises:
            SettingError: a wrong name, or a device that is not there.
        """
        weights = weight_set(
            config.weights or "tiny",
            clip_model=config.clip_model,
            clip_weights=config.clip_weights,
            sam_type=config.sam_type,
            sam_checkpoint=config.sam_checkpoint,
            spacy_model=config.spacy_model,
            clip_activation=config.clip_activation,
        )
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        return cls(
            weights,
            device=select_device(config.device),
            dtype=getattr(torch, config.dtype),
            tf32=config.tf32,
            compiles=config.compile,
        )

    @cached_property
    def clip(self) -> ClipEncoder:
        """CLIP.

        Raises:
            WeightsError: no such file, damaged, or of another architecture.
        """
        clip: ClipEncoder = load(
            "clip",
            self.weights.clip_weights,
            architecture=self.weights.clip_model,
            activation=self.activation,
            device=self.device,
        )
        return clip

    @cached_property
    def activation(self) -> str:
        """Activation that CLIP is computed with, a key of ``ACTIVATIONS``."""
        return self.weights.activation

    @cached_property
    def sam(self) -> Sam:
        """SAM.

        Raises:
            WeightsError: no such file, damaged, or of another type.
        """
        sam: Sam = load(
            "sam",
            self.weights.sam_checkpoint,
            sam_type=self.weights.sam_type,
            device=self.device,
            dtype=self.dtype,
            compiles=self.compiles,
            batches=self.batches,
        )
        return sam

    @cached_property
    def parser(self) -> SpacyParser:
        """SpaCy's pipeline.

        Raises:
            WeightsError: it is not installed, damaged, or lacks a component.
        """
        parser: SpacyParser = load("parser", self.weights.spacy_model)
        return parser

    def require(self, *names: str) -> None:
        """Check that models are there, before any work.

        Args:
            names: those of "clip", "sam" and "parser" that are needed.

        Raises:
            WeightsError: some are not; all of them are named.
        """
        missing = self.weights.missing(names)
        if missing:
            raise WeightsError(missing)

    def sha256(self, name: str) -> str:
        """Return the sha256 of a model's weights: part of the keys of what it computes.

        What ``warnings`` says of the model is logged, once.

        Args:
            name: "clip", "sam" or "parser".
        """
        if name not in self._sha256:
            self._sha256[name] = self.weights.sha256(name)
            for warning in self._warnings(name):
                _logger.warning(warning)
        return self._sha256[name]

    def assume(self, name: str, sha256: str) -> None:
        """Take a model whose file is not here to have some content.

        Args:
            name: "clip", "sam" or "parser".
            sha256: of what it would hold.
        """
        self._sha256[name] = sha256
        self._assumed.add(name)

    def load(self, *names: str) -> None:
        """Load models, so that a wrong file is found before any work.

        One that is only assumed waits until it is needed, as does the parser where spaCy is not
        installed: what the store holds needs neither.

        Raises:
            WeightsError: a file is damaged or of another architecture.
        """
        for name in names:
            absent = name == "parser" and find_spec("spacy") is None
            if name not in self._assumed and not absent:
                getattr(self, name)

    def name(self, name: str) -> str:
        """Return the name of a model's file, folder or package."""
        return self.weights.path(name).name

    @cached_property
    def batches(self) -> Batches:
        """How many items go through a model together, by the memory of the device."""
        if self.device.type == "cpu":
            return Batches(CPU_BATCHES)
        total = torch.cuda.get_device_properties(self.device).total_memory
        image_bytes, point_bytes = image_and_point_bytes(self.weights.sam_type)
        return Batches(BatchSizes.of(total, point_bytes=point_bytes, image_bytes=image_bytes))

    def warnings(self, *names: str) -> list[str]:
        """Return one line for every way in which a model may not be what its name says.

        Args:
            names: those of "clip", "sam" and "parser" that take part.
        """
        return [line for name in names for line in self._warnings(name)]

    def _warnings(self, name: str) -> list[str]:
        lines = [] if name in self._assumed else self.weights.warnings(name)
        return lines + (self.weights.clip_warnings() if name == "clip" else [])

    def notes(self, *names: str) -> list[str]:
        """Return one line for every model that is not here.

        Args:
            names: as for ``warnings``.
        """
        return [
            f"{self.name(name)} is not here; by the store's manifest its sha256 is "
            f"{self._sha256[name][:12]}."
            for name in names
            if name in self._assumed
        ]

    def numerics(self, name: str) -> str:
        """Return the numeric settings of a model: part of its store keys.

        Args:
            name: "clip" or "sam".

        Returns:
            The number format; whether TF32 is on, here or in torch's own settings; whether torch
            compiles; of CLIP, an activation other than OpenAI's.
        """
        dtype = self.dtype if name == "sam" else torch.float32
        set_by_torch = self.device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
        rounded = self.tf32 or set_by_torch
        gelu = name == "clip" and self.activation == "gelu"
        parts = {" tf32": rounded, " compiled": self.compiles, " gelu": gelu}
        return f"{dtype}{''.join(part for part, holds in parts.items() if holds)}"

    def compiled(self, function: Callable[_Parameters, Tensor]) -> Callable[_Parameters, Tensor]:
        """Compile a function with torch, if that was asked for."""
        return torch.compile(function, dynamic=True) if self.compiles else function
