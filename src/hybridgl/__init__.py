"""HybridGL: masks for what an expression refers to in an image, without training.

Start at ``HybridGL.from_pretrained`` and ``HybridGL.segment``.
"""

from __future__ import annotations

from hybridgl.config import FusionMode, HybridGLConfig, Profile, ReferenceQuirks
from hybridgl.errors import DataError, HybridGLError, ImageError, SettingError, WeightsError
from hybridgl.masks import Proposals
from hybridgl.methods.hybridgl import Candidate, HybridGL, Segmentation
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
