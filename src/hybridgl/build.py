"""From settings to models."""

from __future__ import annotations

from hybridgl.config import ModelConfig
from hybridgl.models import Models, select_device, select_dtype
from hybridgl.weights.registry import weight_set

__all__ = ["build_models"]


def build_models(config: ModelConfig) -> Models:
    """Build the set of models that the settings name; no file is read.

    Args:
        config: resolved: what depends on dataset and method is filled in.

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
    )
    return Models(
        weights,
        device=select_device(config.device),
        dtype=select_dtype(config.dtype),
        compiles=config.compile,
    )
