"""Command-line arguments that choose models and settings, shared by all programs with models."""

from __future__ import annotations

import argparse
from pathlib import Path

from hybridgl.config import (
    PROPOSALS_PHRASECUT,
    PROPOSALS_REFCOCO,
    PROPOSALS_SHAPES,
    FusionConfig,
    FusionMode,
    GuidanceConfig,
    MethodConfig,
    Profile,
    ProposalConfig,
    ReferenceQuirks,
    TextConfig,
)
from hybridgl.errors import HybridGLError
from hybridgl.methods.hybridgl import HybridGL
from hybridgl.models import Models, select_device, select_dtype
from hybridgl.weights.registry import CLIP_FILES, SAM_FILES, weight_set

__all__ = [
    "add_method_arguments",
    "add_model_arguments",
    "method_config_from_arguments",
    "model_from_arguments",
    "models_from_arguments",
    "proposal_config_from_arguments",
]

_PROPOSALS = {
    "refcoco": PROPOSALS_REFCOCO,
    "phrasecut": PROPOSALS_PHRASECUT,
    "shapes": PROPOSALS_SHAPES,
}

_TERMS = ("relationship", "coherence", "position")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that ``models_from_arguments`` reads, in a group "models"."""
    group = parser.add_argument_group("models")
    group.add_argument(
        "--weights",
        choices=["tiny", "paper"],
        help="tiny: bundled along, knows the shapes world only; paper: SAM ViT-H, CLIP ViT-B/16 "
        "and en_core_web_lg, to be fetched (default: tiny; for datasets of photographs paper)",
    )
    group.add_argument("--clip_model", choices=list(CLIP_FILES), help="another CLIP architecture")
    group.add_argument("--clip_weights", type=Path, metavar="FILE", help="CLIP's file")
    group.add_argument("--sam_type", choices=[*SAM_FILES, "tiny"], help="another size of SAM")
    group.add_argument("--sam_checkpoint", type=Path, metavar="FILE", help="SAM's file")
    group.add_argument(
        "--sam_settings",
        choices=list(_PROPOSALS),
        help="settings of SAM's mask generator: refcoco (8 x 8 clicks), phrasecut (64 x 64 and "
        "crops) or shapes (as refcoco, for small images) (default: by the dataset or weights)",
    )
    group.add_argument("--spacy_model", metavar="NAME", help="a spaCy pipeline or its folder")
    group.add_argument(
        "--profile",
        choices=[profile.value for profile in Profile],
        default=Profile.REFERENCE.value,
        help="reference: as released, quirks included; corrected: quirks repaired "
        "(default: %(default)s)",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:i (default: auto)")
    group.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="number format of the matrix products in SAM's image encoder; with bfloat16 it is "
        "faster and its masks are nearly the same; CLIP has float32 (default: %(default)s)",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="let torch compile the encoders: minutes at the start, which long runs on a GPU win "
        "back (needs a C++ compiler)",
    )


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the settings of the method that ablations change, in a group "method"."""
    guidance, fusion, text = GuidanceConfig(), FusionConfig(), TextConfig()
    weights = (
        guidance.outside_weight,
        guidance.outside_weight_big,
        guidance.outside_weight_small,
    )
    group = parser.add_argument_group("method")
    group.add_argument(
        "--fusion_mode",
        type=_fusion_mode,
        default=fusion.mode,
        metavar="{" + ",".join(mode.value for mode in FusionMode) + "}",
        help=f"how the two streams of a mask are combined (default: {fusion.mode.value})",
    )
    group.add_argument(
        "--masking_block",
        type=int,
        default=fusion.masking_block,
        metavar="B",
        help="first block of CLIP, counted from 0, in which masks act (default: %(default)s)",
    )
    group.add_argument(
        "--sentence_weight",
        type=float,
        default=text.sentence_weight,
        metavar="R",
        help="share of the sentence in the text feature, the noun phrase has the rest: 1 is the "
        "sentence alone (default: %(default)s)",
    )
    group.add_argument(
        "--without",
        choices=_TERMS,
        nargs="+",
        default=[],
        metavar="TERM",
        help=f"terms of the guidance that are left out: {', '.join(_TERMS)}",
    )
    group.add_argument(
        "--alpha",
        type=float,
        default=guidance.alpha,
        metavar="A",
        help="share of the coherence score in the final one (default: %(default)s)",
    )
    group.add_argument(
        "--num_candidates",
        type=int,
        default=guidance.num_candidates,
        metavar="K1",
        help="best masks among which one is picked (default: %(default)s)",
    )
    group.add_argument(
        "--num_context_masks",
        type=int,
        default=guidance.num_context_masks,
        metavar="K2",
        help="masks that a relation is measured against (default: %(default)s)",
    )
    group.add_argument(
        "--coherence_weights",
        type=float,
        nargs=3,
        default=weights,
        metavar=("B", "BIG", "SMALL"),
        help="weight of the heat outside a mask: usually, for the relation big, for small "
        f"(default: {' '.join(map(str, weights))})",
    )


def models_from_arguments(arguments: argparse.Namespace, *, paper_clip: str = "ViT-B-16") -> Models:
    """The models that the arguments name; no file is read.

    Args:
        arguments: parsed; ``dataset`` is optional and decides the default weights.
        paper_clip: CLIP's architecture in the paper's weights, where no other is named.

    Raises:
        HybridGLError: a device is not there.
    """
    name = _weights(arguments)
    unnamed = arguments.clip_model is None and arguments.clip_weights is None
    weights = weight_set(
        name,
        clip_model=paper_clip if unnamed and name == "paper" else arguments.clip_model,
        clip_weights=arguments.clip_weights,
        sam_type=arguments.sam_type,
        sam_checkpoint=arguments.sam_checkpoint,
        spacy_model=arguments.spacy_model,
    )
    device, dtype = select_device(arguments.device), select_dtype(arguments.dtype)
    return Models(weights, device=device, dtype=dtype, compiles=arguments.compile)


def proposal_config_from_arguments(arguments: argparse.Namespace) -> ProposalConfig:
    """Settings of the mask generator: named, the dataset's, or those for what the weights know."""
    name = arguments.sam_settings or getattr(arguments, "dataset", None)
    if name is None:
        name = "shapes" if _weights(arguments) == "tiny" else "refcoco"
    return _PROPOSALS.get(name, PROPOSALS_REFCOCO)


def method_config_from_arguments(arguments: argparse.Namespace) -> MethodConfig:
    """The settings that the arguments name; those of the group "method" are optional.

    Raises:
        HybridGLError: a number is out of its range.
    """
    profile = Profile(arguments.profile)
    config = MethodConfig(
        quirks=ReferenceQuirks.of(profile), proposals=proposal_config_from_arguments(arguments)
    )
    if not hasattr(arguments, "fusion_mode"):
        return config
    for name, low, high in (
        ("sentence_weight", 0, 1),
        ("alpha", 0, 1),
        ("masking_block", 0, None),
        ("num_candidates", 1, None),
        ("num_context_masks", 1, None),
    ):
        _check_range(name, getattr(arguments, name), low, high)
    usual, big, small = arguments.coherence_weights
    for weight in (usual, big, small):
        _check_range("coherence_weights", weight, 0, 2)
    return MethodConfig(
        quirks=config.quirks,
        proposals=config.proposals,
        fusion=FusionConfig(mode=arguments.fusion_mode, masking_block=arguments.masking_block),
        text=TextConfig(sentence_weight=arguments.sentence_weight),
        guidance=GuidanceConfig(
            alpha=arguments.alpha,
            num_candidates=arguments.num_candidates,
            num_context_masks=arguments.num_context_masks,
            outside_weight=usual,
            outside_weight_big=big,
            outside_weight_small=small,
            **{term: term not in arguments.without for term in _TERMS},
        ),
    )


def model_from_arguments(arguments: argparse.Namespace) -> HybridGL:
    """The method that the arguments name, without a store.

    Raises:
        HybridGLError: a file is missing or a device is not there.
    """
    models = models_from_arguments(arguments)
    models.require("clip", "sam")
    return HybridGL(models, method_config_from_arguments(arguments))


def _weights(arguments: argparse.Namespace) -> str:
    known = getattr(arguments, "dataset", None) in (None, "shapes")
    weights: str = arguments.weights or ("tiny" if known else "paper")
    return weights


def _fusion_mode(name: str) -> FusionMode:
    """Type of ``--fusion_mode``: a wrong name is an argument error that lists the right ones."""
    try:
        return FusionMode.parse(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _check_range(name: str, value: float, low: float, high: float | None) -> None:
    if not low <= value or (high is not None and not value <= high):
        expected = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise HybridGLError(f"Expected --{name} {expected}, got {value}.")
