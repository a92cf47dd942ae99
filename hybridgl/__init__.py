"""HybridGL: masks for what an expression refers to in a picture, without training.

Start at ``HybridGL.from_pretrained`` and ``HybridGL.segment``.
"""

from __future__ import annotations

from hybridgl.config import FusionMode, MethodConfig, Profile, ReferenceQuirks
from hybridgl.errors import UserError
from hybridgl.pipeline import Candidate, HybridGL, Segmentation

__all__ = [
    "Candidate",
    "FusionMode",
    "HybridGL",
    "MethodConfig",
    "Profile",
    "ReferenceQuirks",
    "Segmentation",
    "UserError",
]
