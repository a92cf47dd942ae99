"""Command-line arguments that choose the models, shared by every program that runs them."""

from __future__ import annotations

import argparse
from pathlib import Path

from hybridgl.config import (
    PROPOSALS_PHRASECUT,
    PROPOSALS_REFCOCO,
    PROPOSALS_SHAPES,
    FusionConfig,
    FusionMode,
    MethodConfig,
    Profile,
    ReferenceQuirks,
)
from hybridgl.pipeline import ArtefactStore, HybridGL, select_device, select_dtype
from hybridgl.weights.manifest import CLIP_FILES, SAM_FILES, weight_set

__all__ = ["add_model_arguments", "fusion_mode", "model_from_arguments"]


_PROPOSALS = {"shapes": PROPOSALS_SHAPES, "phrasecut": PROPOSALS_PHRASECUT}


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that ``model_from_arguments`` reads, in a group "models"."""
    group = parser.add_argument_group("models")
    group.add_argument(
        "--weights",
        choices=["tiny", "paper"],
        help="tiny: carried along, knows the shapes world only; paper: SAM ViT-H, CLIP ViT-B/16 "
        "and en_core_web_lg, to be fetched (default: tiny; for datasets of photographs paper)",
    )
    group.add_argument("--clip_model", choices=list(CLIP_FILES), help="another CLIP architecture")
    group.add_argument("--clip_weights", type=Path, metavar="FILE", help="CLIP's file")
    group.add_argument("--sam_type", choices=[*SAM_FILES, "tiny"], help="another size of SAM")
    group.add_argument("--sam_checkpoint", type=Path, metavar="FILE", help="SAM's file")
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
        help="number format of CLIP's encoders (default: %(default)s)",
    )


def fusion_mode(name: str) -> FusionMode:
    """Type of ``--fusion_mode``: a wrong name is an argument error that lists the right ones."""
    try:
        return FusionMode.parse(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def model_from_arguments(arguments: argparse.Namespace, store: ArtefactStore | None) -> HybridGL:
    """The model that the arguments name.

    Args:
        arguments: parsed; ``fusion_mode`` is optional, and so is ``dataset``, which decides the
            default weights and the settings of the mask generator.
        store: keeps the results of stages.

    Raises:
        UserError: a file is missing or a device is not there.
    """
    mode = getattr(arguments, "fusion_mode", FusionMode.GLOBAL_TO_LOCAL)
    dataset = getattr(arguments, "dataset", None)
    weights = arguments.weights or ("tiny" if dataset in (None, "shapes") else "paper")
    if dataset is None:
        dataset = "shapes" if weights == "tiny" else "refcoco"
    return HybridGL(
        weight_set(
            weights,
            clip_model=arguments.clip_model,
            clip_weights=arguments.clip_weights,
            sam_type=arguments.sam_type,
            sam_checkpoint=arguments.sam_checkpoint,
            spacy_model=arguments.spacy_model,
        ),
        MethodConfig(
            quirks=ReferenceQuirks.of(Profile(arguments.profile)),
            proposals=_PROPOSALS.get(dataset, PROPOSALS_REFCOCO),
            fusion=FusionConfig(mode=mode),
        ),
        device=select_device(arguments.device),
        dtype=select_dtype(arguments.dtype),
        store=store,
    )
