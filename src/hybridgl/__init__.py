"""HybridGL: masks for what an expression refers to in an image, without training.

Start at ``HybridGL.from_pretrained`` and ``HybridGL.segment``.
"""

from __future__ import annotations

from hybridgl.config import FusionMode, MethodConfig, Profile, ReferenceQuirks
from hybridgl.errors import HybridGLError
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
