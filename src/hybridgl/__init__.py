"""HybridGL: masks for what an expression refers to in an image, without training.

Start at ``HybridGL.from_pretrained`` and ``HybridGL.segment``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybridgl.config import FusionMode, HybridGLConfig, Profile, ReferenceQuirks
from hybridgl.errors import DataError, HybridGLError, ImageError, SettingError, WeightsError

if TYPE_CHECKING:
    from hybridgl.masks import Proposals
    from hybridgl.methods.hybridgl import HybridGL
    from hybridgl.results import Candidate, Segmentation
    from hybridgl.store import Store

__all__ = [
    "Candidate",
    "DataError",
    "FusionMode",
    "HybridGL",
    "HybridGLConfig",
    "HybridGLError",
    "ImageError",
    "Profile",
    "Proposals",
    "ReferenceQuirks",
    "Segmentation",
    "SettingError",
    "Store",
    "WeightsError",
]


def __getattr__(name: str) -> object:
    """Import what needs torch, which takes seconds, when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hybridgl import masks, results, store
    from hybridgl.methods import hybridgl

    holders = (hybridgl, results, masks, store)
    return next(getattr(one, name) for one in holders if name in one.__all__)
