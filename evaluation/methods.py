"""The methods that a run can be made with, and the arguments that choose and set them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from evaluation.proposals import FileSource, GroundTruthSource, ProposalSource, SamSource
from hybridgl.arguments import (
    method_config_from_arguments,
    models_from_arguments,
    proposal_config_from_arguments,
)
from hybridgl.config import Profile, ReferenceQuirks
from hybridgl.errors import HybridGLError
from hybridgl.images import RgbImage
from hybridgl.language import ParsedExpression
from hybridgl.methods.global_local import GlobalLocalClip, GlobalLocalConfig, mixing_weight
from hybridgl.methods.hybridgl import HybridGL, Prediction, Scores
from hybridgl.metrics import PROTOCOLS
from hybridgl.models import Models
from hybridgl.proposals import Proposals
from hybridgl.stages import ArtefactStore
from refer.dataset import ReferSplit

__all__ = [
    "METHODS",
    "Method",
    "add_run_arguments",
    "check_run_arguments",
    "method_from_arguments",
    "source_from_arguments",
]

METHODS = ("hybridgl", "global_local")

_COCO = "coco:"


class Method(Protocol):
    """What an evaluation needs of a method.

    Attributes:
        models: its models.
        picks: names of its ways of picking.
        final_pick: the one that is the method.
    """

    models: Models
    picks: tuple[str, ...]
    final_pick: str

    @property
    def quirks(self) -> ReferenceQuirks:
        """Deviations of the released program that are reproduced."""

    @property
    def most_candidates(self) -> int:
        """Largest k_limit on the candidate counts (quirk Q5) that makes a difference."""

    @property
    def skips_without_proposals(self) -> bool:
        """Whether samples without proposals are left out of the scores (quirk Q8)."""

    def load(self) -> None:
        """Load what every run needs."""

    def parse(self, sentences: Sequence[str]) -> list[ParsedExpression]:
        """What is read off raw sentences."""

    def score(
        self, image: RgbImage, proposals: Proposals, expressions: Sequence[ParsedExpression]
    ) -> list[Scores]:
        """All that the picks of one image's expressions depend on, besides the k_limit."""

    def choose(self, scores: Scores, k_limit: int | None = None, /) -> Prediction:
        """Picks of one expression."""

    def attention_map(
        self, prediction: Prediction, hw: tuple[int, int], /
    ) -> NDArray[np.float32] | None:
        """Attention map of a prediction, for its figure."""

    def describe(self) -> dict[str, Any]:
        """Name and settings, as JSON values."""


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what a run compares: method, proposals and protocol, in a group "run"."""
    group = parser.add_argument_group("run")
    group.add_argument("--method", choices=METHODS, default="hybridgl", help="(default: hybridgl)")
    group.add_argument(
        "--mixing_weight",
        type=float,
        metavar="V",
        help="of global_local: share of the feature in the image, the crop's has the rest "
        "(default: 0.85 for refcocog, else 0.95)",
    )
    group.add_argument(
        "--proposals",
        default="sam",
        metavar="{sam,coco:FILE,gt}",
        help="masks to choose from: SAM's, those of a COCO-results or COCO-annotation file, or the "
        "annotated objects of the image (default: sam)",
    )
    group.add_argument(
        "--protocol",
        choices=list(PROTOCOLS),
        default="zero-shot",
        help="how the scores are computed, see docs/protocols.md (default: zero-shot)",
    )


def check_run_arguments(arguments: argparse.Namespace) -> None:
    """Check the arguments of the group "run" without reading what they name.

    Raises:
        HybridGLError: a wrong source of proposals, or a number out of its range.
    """
    proposals = arguments.proposals
    if proposals not in ("sam", "gt") and not proposals.startswith(_COCO):
        raise HybridGLError(f"Expected --proposals sam, coco:FILE or gt, got {proposals!r}.")
    if proposals.startswith(_COCO) and not Path(proposals.removeprefix(_COCO)).is_file():
        path = proposals.removeprefix(_COCO)
        raise HybridGLError(
            f"Expected a JSON file of masks at {path!r}, found no such file. third_party/README.md "
            f"says how to make one."
        )
    weight = arguments.mixing_weight
    if weight is not None and not 0 <= weight <= 1:
        raise HybridGLError(f"Expected --mixing_weight from 0 to 1, got {weight}.")


def method_from_arguments(arguments: argparse.Namespace, store: ArtefactStore) -> Method:
    """The method that the arguments name, its files checked for being there.

    Raises:
        HybridGLError: a file is missing, a number is out of its range, or a device is not there.
    """
    baseline = arguments.method == "global_local"
    config = method_config_from_arguments(arguments)
    models = models_from_arguments(arguments, paper_clip="ViT-B-32" if baseline else "ViT-B-16")
    models.require("clip", *(("sam",) if arguments.proposals == "sam" else ()))
    if not baseline:
        return HybridGL(models, config, store, keep_tokens=arguments.keep_tokens)
    weight = arguments.mixing_weight
    settings = GlobalLocalConfig(
        mixing_weight=mixing_weight(arguments.dataset) if weight is None else weight,
        masking_block=config.fusion.masking_block,
        text=config.text,
        quirks=config.quirks,
    )
    return GlobalLocalClip(models, settings, store)


def source_from_arguments(
    arguments: argparse.Namespace, models: Models, store: ArtefactStore, split: ReferSplit
) -> ProposalSource:
    """The source of proposals that the arguments name.

    Raises:
        HybridGLError: a file that cannot be used for this split.
    """
    if arguments.proposals == "sam":
        return SamSource(models, proposal_config_from_arguments(arguments), store, split)
    if arguments.proposals == "gt":
        quirks = ReferenceQuirks.of(Profile(arguments.profile))
        return GroundTruthSource(split, drop_overlaps=quirks.overlapping_polygons_dropped)
    return FileSource(Path(arguments.proposals.removeprefix(_COCO)), split)
