"""Every setting, declared once: default, range, help and source.

Flags, checks, the settings that a run records, and what differs from the defaults all follow from
the declarations (``hybridgl.settings``).

Sources: HybridGL (CVPR 2025, arXiv 2504.00356), Global-Local CLIP (CVPR 2023, arXiv 2303.17811),
GEM (CVPR 2024, arXiv 2312.00878), and the behaviour of the released programs, whose deviations are
the quirks Q1 to Q10 of docs/quirks.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import ClassVar

from hybridgl.errors import SettingError
from hybridgl.settings import Settings, setting
from hybridgl.weights.registry import ACTIVATIONS, CLIP_FILES, SAM_FILES

__all__ = [
    "KNOWS_SHAPES_ONLY",
    "PHOTOGRAPHS",
    "SAM_SETTINGS",
    "SHAPES",
    "CropBox",
    "FusionConfig",
    "FusionMode",
    "GemConfig",
    "GlobalLocalConfig",
    "GuidanceConfig",
    "HybridGLConfig",
    "MaskedBlocksConfig",
    "MethodConfig",
    "ModelConfig",
    "Profile",
    "ProfileConfig",
    "ProposalConfig",
    "ReferenceQuirks",
    "TextConfig",
]

TERMS = ("relationship", "coherence", "position")
"""Terms of the guidance (paper section 3.3)."""

PHOTOGRAPHS, SHAPES = "paper", "tiny"
"""Names of the two sets of weights: for photographs, and bundled, for the shapes world."""

KNOWS_SHAPES_ONLY = (
    "The tiny weights know coloured shapes only; for photographs run `hybridgl download paper`, "
    "and take --weights paper."
)


class Profile(Enum):
    """Which reading of the method is run."""

    REFERENCE = "reference"
    """What the released program computes, every quirk included."""
    CORRECTED = "corrected"
    """What its authors can have meant: every quirk repaired."""


class FusionMode(Enum):
    """How the global and the local stream of a mask are combined (paper section 3.2)."""

    GLOBAL_TO_LOCAL = "G2L"
    LOCAL_TO_GLOBAL = "L2G"
    BOTH = "both"
    TOKEN_MASKING = "token_masking"
    ATTENTION_MASKING = "attn_masking"
    CROP = "crop"

    @classmethod
    def parse(cls, name: str) -> FusionMode:
        """Return the mode of a name; the published spelling ``G2L&L2G`` means ``both``.

        Raises:
            SettingError: no mode has this name.
        """
        if name == "G2L&L2G":
            return cls.BOTH
        try:
            return cls(name)
        except ValueError:
            names = ", ".join(mode.value for mode in cls)
            raise SettingError(
                f"Expected a fusion mode among {names}, got {name!r}; choose one of them."
            ) from None

    @property
    def reads_global_view(self) -> bool:
        """Tell whether the global stream takes part."""
        return self in (self.GLOBAL_TO_LOCAL, self.LOCAL_TO_GLOBAL, self.BOTH)


class CropBox(Enum):
    """Box that Global-Local CLIP crops a mask to."""

    TIGHT = "tight"
    """The smallest that holds every pixel of the mask."""
    FREESOLO = "freesolo"
    """FreeSOLO's: as many columns and rows as the mask occupies, around their mean; its fractions
    are cut, so that it lies a pixel too far left and up, and is too small for masks with gaps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceQuirks:
    """What the released program does that its authors cannot have meant; True reproduces it."""

    local_view_imagenet_unnormalised_fill: bool = True
    """Q1: local views use ImageNet statistics and CLIP's pixel mean, un-normalised, as filling."""
    global_view_imagenet_statistics: bool = True
    """Q2: global views are normalised with ImageNet's statistics instead of CLIP's."""
    attention_masking_skips_last_block: bool = True
    """Q3: mode ``attn_masking`` reads the class token one block before the last."""
    right_relation_never_matches: bool = True
    """Q4: no word makes the relation "right"."""
    top_k_shrinks_across_images: bool = True
    """Q5: an image with few proposals lowers the candidate counts of every later image."""
    vertical_priors_disabled: bool = True
    """Q6: the position words "up" and "down" have no position prior."""
    crop_unnormalised_fill: bool = True
    """Q7: Global-Local CLIP fills crops with ImageNet's pixel mean, un-normalised."""
    images_without_proposals_skipped: bool = True
    """Q8: Global-Local CLIP leaves images without proposals out of both metrics."""
    overlapping_polygons_dropped: bool = True
    """Q9: pixels that two polygons of one annotation cover are not part of the ground truth."""
    undefined_scores_win: bool = True
    """Q10: a score of 0 / 0 counts as the highest: that of a mask that covers the whole image."""

    @classmethod
    def of(cls, profile: Profile) -> ReferenceQuirks:
        """Return all quirks for ``reference``, none for ``corrected``."""
        on = profile is Profile.REFERENCE
        return cls(**{quirk.name: on for quirk in dataclasses.fields(cls)})


@dataclass(frozen=True, kw_only=True, slots=True)
class ProposalConfig(Settings):
    """Settings of SAM's automatic mask generator, named as there."""

    points_per_side: int = setting(
        8,
        low=1,
        flag=False,
        source="released program",
        help="point prompts along each side of the image",
    )
    pred_iou_thresh: float = setting(
        0.7,
        flag=False,
        source="released program",
        help="least IoU that the mask decoder predicts for a mask",
    )
    stability_score_thresh: float = setting(
        0.7,
        low=0,
        high=1,
        flag=False,
        source="released program",
        help="least IoU of a mask cut at a higher and a lower logit",
    )
    crop_n_layers: int = setting(
        0,
        low=0,
        flag=False,
        source="released program",
        help="layers of image crops besides the whole image",
    )
    crop_n_points_downscale_factor: int = setting(
        1,
        low=1,
        flag=False,
        source="released program",
        help="divides the point prompts along each side per layer of crops",
    )
    min_mask_region_area: int = setting(
        800,
        low=0,
        flag=False,
        source="released program",
        help="smaller holes are filled, smaller islands removed, in pixels",
    )


SAM_SETTINGS: Mapping[str, ProposalConfig] = {
    "refcoco": ProposalConfig(),
    "phrasecut": ProposalConfig(
        points_per_side=64,
        pred_iou_thresh=0.86,
        stability_score_thresh=0.92,
        crop_n_layers=1,
        crop_n_points_downscale_factor=2,
        min_mask_region_area=100,
    ),
    "shapes": ProposalConfig(min_mask_region_area=100),
}
"""By name: RefCOCO, RefCOCO+, RefCOCOg and custom images, as released; PhraseCut, as released; the
shapes world, whose small images need a smaller region area, so that rings keep their holes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedBlocksConfig(Settings):
    """Where masks act in CLIP's vision transformer."""

    masking_block: int = setting(
        9,
        low=0,
        metavar="B",
        help="first block of CLIP, counted from 0, in which masks act",
        source="HybridGL section 3.2; Global-Local CLIP section 3.2",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionConfig(MaskedBlocksConfig):
    """Settings of the mask features."""

    fusion_mode: FusionMode = setting(
        FusionMode.GLOBAL_TO_LOCAL,
        parse=FusionMode.parse,
        help="how the two streams of a mask are combined",
        source="HybridGL section 3.2",
    )
    stream_weight: float = setting(
        2.0,
        low=0,
        flag=False,
        help="weight of the stream that is added to the other one",
        source="released program",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig(Settings):
    """Settings of the text features."""

    sentence_weight: float = setting(
        0.5,
        low=0,
        high=1,
        metavar="R",
        help="share of the sentence in the text feature, the noun phrase has the rest: 1 is the "
        "sentence alone",
        source="Global-Local CLIP section 3.3",
    )
    other_noun_prompt: str = setting(
        "a photo of {}", flag=False, help="prompt of other noun phrases", source="released program"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class GemConfig(Settings):
    """Settings of the GEM maps (GEM paper, section 3)."""

    depth: int = setting(
        7,
        low=1,
        flag=False,
        source="GEM section 3; released program",
        help="depth - 1 last blocks carry the self-self attention stream",
    )
    iterations: int = setting(
        1,
        low=0,
        flag=False,
        source="GEM section 3; released program",
        help="self-self attention steps before tokens select values",
    )
    resolution_factor: int = setting(
        2,
        low=1,
        flag=False,
        source="GEM section 3; released program",
        help="side of the input over CLIP's own: 448 pixels for 224",
    )
    prompt: str = setting(
        "a photo of a {}.",
        flag=False,
        source="GEM section 3; released program",
        help="prompt of the noun phrase",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidanceConfig(Settings):
    """Settings of the spatial guidance (HybridGL section 3.3)."""

    without: tuple[str, ...] = setting(
        (),
        choices=TERMS,
        metavar="TERM",
        help=f"terms of the guidance that are left out: {', '.join(TERMS)}",
        source="ablations of the paper",
    )
    alpha: float = setting(
        0.6,
        low=0,
        high=1,
        late=True,
        metavar="A",
        help="share of the coherence score in the final one, the relation score has the rest",
        source="released program",
    )
    num_candidates: int = setting(
        3,
        low=1,
        late=True,
        metavar="K1",
        help="best masks among which one is predicted",
        source="released program",
    )
    num_context_masks: int = setting(
        6,
        low=1,
        late=True,
        metavar="K2",
        aliases=("--num_partners",),
        help="masks of the other nouns that a relation is measured against",
        source="released program",
    )
    coherence_weights: tuple[float, float, float] = setting(
        (1.8, 1.95, 1.5),
        low=0,
        high=2,
        metavar=("B", "BIG", "SMALL"),
        help="weight b of the attention outside a mask, 2 - b weighs that inside: usually, for the "
        "relation big, for small",
        source="released program",
    )

    def uses(self, term: str) -> bool:
        """Tell whether a term of the guidance counts."""
        return term not in self.without


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodConfig(Settings):
    """Settings of any method: everything that decides its predictions, besides its inputs."""

    published_clip: ClassVar[str] = "ViT-B-16"
    """CLIP architecture that the method was published with."""
    quirks: ReferenceQuirks = field(default_factory=ReferenceQuirks)
    """Deviations of the released programs that are reproduced."""

    def resolved(self, dataset: str) -> MethodConfig:
        """Return the settings with what depends on the dataset filled in: nothing, usually."""
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class HybridGLConfig(MethodConfig):
    """Settings of HybridGL."""

    fusion: FusionConfig = field(default_factory=FusionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    gem: GemConfig = field(default_factory=GemConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class GlobalLocalConfig(MethodConfig):
    """Settings of Global-Local CLIP."""

    published_clip: ClassVar[str] = "ViT-B-32"
    blocks: MaskedBlocksConfig = field(default_factory=MaskedBlocksConfig)
    text: TextConfig = field(default_factory=TextConfig)
    mixing_weight: float | None = setting(
        None,
        low=0,
        high=1,
        metavar="V",
        help="of global_local: share of the feature in the image, the crop's has the rest; where "
        "not given, 0.85 for refcocog, else 0.95",
        source="released program",
    )
    crop_box: CropBox = setting(
        CropBox.TIGHT,
        help="of global_local: box that a mask is cropped to; freesolo: as the released program "
        "does with FreeSOLO's masks",
        source="boxes of the masks' generators",
    )

    def resolved(self, dataset: str) -> GlobalLocalConfig:
        """Return the settings with the mixing weight that the released program has for a dataset.

        >>> GlobalLocalConfig().resolved("refcocog").mixing_weight
        0.85
        """
        if self.mixing_weight is not None:
            return self
        return dataclasses.replace(self, mixing_weight=0.85 if dataset == "refcocog" else 0.95)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileConfig(Settings):
    """Which reading of a method is run."""

    profile: Profile = setting(
        Profile.REFERENCE,
        help="reference: as released, quirks included; corrected: quirks repaired",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig(Settings):
    """Which models are run, and how."""

    weights: str | None = setting(
        None,
        choices=(SHAPES, PHOTOGRAPHS),
        help="tiny: bundled, knows the shapes world only; paper: SAM ViT-H, CLIP ViT-B/16 and "
        "en_core_web_lg, to be fetched (default: paper; for the dataset shapes tiny)",
    )
    clip_model: str | None = setting(
        None, choices=tuple(CLIP_FILES), help="another CLIP architecture"
    )
    clip_weights: Path | None = setting(
        None,
        metavar="FILE",
        help="CLIP's file: OpenAI's, open_clip's, or a checkpoint of a training program",
    )
    clip_activation: str | None = setting(
        None,
        choices=tuple(ACTIVATIONS),
        help="activation that CLIP was trained with: quickgelu, as OpenAI's, or gelu, as LAION's "
        "and DataComp's (default: by the file's name, else quickgelu, with a warning)",
    )
    sam_type: str | None = setting(None, choices=(*SAM_FILES, "tiny"), help="another size of SAM")
    sam_checkpoint: Path | None = setting(None, metavar="FILE", help="SAM's file")
    sam_settings: str | None = setting(
        None,
        choices=tuple(SAM_SETTINGS),
        help="settings of SAM's mask generator: refcoco (8 x 8 point prompts), phrasecut (64 x 64 "
        "and crops) or shapes (as refcoco, for small images) (default: by the dataset or weights)",
    )
    spacy_model: str | None = setting(None, metavar="NAME", help="a spaCy pipeline or its folder")
    device: str = setting("auto", help="auto, cpu, cuda or cuda:i")
    dtype: str = setting(
        "float32",
        choices=("float32", "bfloat16"),
        help="number format of the matrix products in SAM's image encoder; with bfloat16 it is "
        "faster and its masks are nearly the same; CLIP has float32",
    )
    tf32: bool = setting(
        False,
        help="let a GPU round the factors of float32 products to ten bits (TF32), which is faster; "
        "of no effect on a CPU",
    )
    threads: int | None = setting(
        None,
        low=1,
        metavar="N",
        help="CPU threads of each operation (default: as many as there are cores); on cores that "
        "others use too, 1 is often fastest",
    )
    compile: bool = setting(
        False,
        help="let torch compile the encoders and SAM's decoder, at the start of a run (needs a C++ "
        "compiler)",
    )

    def resolved(self, dataset: str | None = None, *, published_clip: str) -> ModelConfig:
        """Return the settings with what depends on the dataset and the method filled in.

        Args:
            dataset: its name; None for custom images.
            published_clip: CLIP architecture that the method was published with.
        """
        weights = self.weights or (SHAPES if dataset == "shapes" else PHOTOGRAPHS)
        sam_settings = self.sam_settings or (dataset if dataset in SAM_SETTINGS else None)
        if sam_settings is None:
            shapes = dataset is None and weights == SHAPES
            sam_settings = "shapes" if shapes else "refcoco"
        clip_model = self.clip_model
        if clip_model is None and self.clip_weights is None and weights == PHOTOGRAPHS:
            clip_model = published_clip
        return dataclasses.replace(
            self, weights=weights, sam_settings=sam_settings, clip_model=clip_model
        )

    @property
    def proposals(self) -> ProposalConfig:
        """Settings of SAM's mask generator, of a resolved configuration."""
        return SAM_SETTINGS[self.sam_settings or "refcoco"]
