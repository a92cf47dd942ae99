"""HybridGL: masks for what an expression refers to in an image, without training.

Start at ``HybridGL.from_pretrained`` and ``HybridGL.segment``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybridgl.config import FusionMode, MethodConfig, Profile, ReferenceQuirks
from hybridgl.errors import HybridGLError

if TYPE_CHECKING:
    from hybridgl.methods.hybridgl import Candidate, HybridGL, Segmentation

__all__ = [
    "Candidate",
    "FusionMode",
    "HybridGL",
    "HybridGLError",
    "MethodConfig",
    "Profile",
    "ReferenceQuirks",
    "Segmentation",
]


def __getattr__(name: str) -> object:
    """Import what needs torch, which takes seconds, when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hybridgl.methods import hybridgl

    return getattr(hybridgl, name)
