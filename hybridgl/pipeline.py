"""The method from pictures and sentences to masks, every stage a function whose result is kept.

``HybridGL`` composes the stages. With a store, what a picture has been through once is read back:
entries are keyed by the content that they were made from, never by a position in a list.

Shapes: N proposals, H x W image pixels, S sentences or phrases of one image, K candidates,
E embedding width, g patches along each side of GEM's input.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridgl import gem, guidance, mask_rle, views
from hybridgl.config import (
    PROPOSALS_REFCOCO,
    PROPOSALS_SHAPES,
    FusionConfig,
    FusionMode,
    MethodConfig,
    Profile,
    ReferenceQuirks,
)
from hybridgl.errors import UserError
from hybridgl.fusion import mask_features
from hybridgl.images import ImageSource, RgbImage
from hybridgl.language import ParsedExpression
from hybridgl.models.clip_encoder import ClipEncoder
from hybridgl.models.sam_proposals import SamProposer
from hybridgl.models.spacy_parser import SpacyParser
from hybridgl.proposals import Proposals
from hybridgl.text import expression_features
from hybridgl.weights.manifest import WeightSet, weight_set

__all__ = [
    "ArtefactStore",
    "Candidate",
    "HybridGL",
    "Prediction",
    "Segmentation",
    "masks_per_chunk",
    "select_device",
    "select_dtype",
]

_LOG = logging.getLogger(__name__)

_STAGE_VERSION = 1
"""Part of every key: raised when a stage's code gives other results than before."""

_VIEW_BYTES = 512 * 2**20
"""Memory for what a chunk of masks or heat maps has at the size of the picture."""

_MOST_MASKS = 32
"""Masks of one chunk, whatever the memory: more do not make a chunk faster."""

_HEAT_MAPS_PER_CHUNK = 16
"""Heat maps of one chunk, whatever the memory."""


class StoredEntry(Protocol):
    """What a store hands back."""

    @property
    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """Arrays by name."""

    @property
    def meta(self) -> Mapping[str, Any]:
        """JSON values by name."""


class ArtefactStore(Protocol):
    """Keeps the results of stages; ``utils.store.Store`` is the one on disk."""

    def load(self, kind: str, key: str) -> StoredEntry | None:
        """The entry under a key, or None where it is missing or damaged."""

    def save(
        self, kind: str, key: str, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]
    ) -> None:
        """Keep an entry."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """One expression's picks among the proposals of its picture.

    Attributes:
        expression: what was read off the sentence.
        choice: picks and scores; None where the picture has no proposal.
        similarity_N: scaled cosine of every proposal with the expression, float64.
        low_resolution_map_gg: GEM's cosines for the noun phrase, float32, (g, g).
    """

    expression: ParsedExpression
    choice: guidance.Choice | None
    similarity_N: NDArray[np.float64]
    low_resolution_map_gg: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One of the masks among which the guidance picked.

    Attributes:
        mask: bool, (H, W).
        box: x, y, w, h in pixels.
        similarity: scaled cosine with the expression.
        relation: relation score before softmax.
        coherence: coherence score.
        score: final score.
    """

    mask: NDArray[np.bool_]
    box: tuple[int, int, int, int]
    similarity: float
    relation: float
    coherence: float
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """What an expression refers to in a picture.

    Attributes:
        mask: the picked mask, bool, (H, W); empty where the picture has no proposal.
        box: its box x, y, w, h in pixels; None where there is no proposal.
        scores: scaled cosine of every proposal with the expression, float64, (N,).
        candidates: the masks that the guidance chose from, best similarity first.
        heat_map: GEM map of the noun phrase under the position ramp, mean 1, float32, (H, W).
        pure_mask: the mask that mask features alone pick, bool, (H, W).
        expression: noun phrase, other nouns, position and relation.
    """

    mask: NDArray[np.bool_]
    box: tuple[int, int, int, int] | None
    scores: NDArray[np.float64]
    candidates: tuple[Candidate, ...]
    heat_map: NDArray[np.float32]
    pure_mask: NDArray[np.bool_]
    expression: ParsedExpression


class HybridGL:
    """Zero-shot referring image segmentation.

    Models are loaded when a stage first needs them, so that a run whose results are all stored
    loads none.

    Args:
        weights: the files.
        config: settings of the method.
        device: where the models run.
        dtype: float32, or bfloat16 for the matrix products of CLIP's encoders; SAM computes in
            float32, so that the candidates stay the same.
        store: keeps the results of stages; None computes them anew.

    Raises:
        UserError: a file is missing.

    Example:
        >>> picture = np.full((224, 256, 3), 140, dtype=np.uint8)
        >>> picture[60:120, 40:100] = (214, 38, 40)
        >>> result = HybridGL.from_pretrained("tiny").segment(picture, "the red square")
        >>> bool(result.mask[90, 70]), bool(result.mask[200, 200])
        (True, False)
    """

    def __init__(
        self,
        weights: WeightSet,
        config: MethodConfig,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        store: ArtefactStore | None = None,
    ) -> None:
        missing = weights.missing()
        if missing:
            raise UserError(missing[0])
        self.weights = weights
        self.config = config
        self.device = device
        self.dtype = dtype
        self._store = store

    @classmethod
    def from_pretrained(
        cls,
        weights: str = "tiny",
        *,
        device: str = "auto",
        profile: str = "reference",
        fusion_mode: str = "G2L",
        dtype: str = "float32",
        store: ArtefactStore | None = None,
    ) -> HybridGL:
        """A model from one of the two sets of weights.

        Args:
            weights: "tiny", carried in the package, knows coloured shapes only; "paper" is the
                published setting and expects its files in ``weights_folder()``.
            device: "auto", "cpu", "cuda" or "cuda:1".
            profile: "reference" or "corrected".
            fusion_mode: G2L, L2G, both, token_masking, attn_masking or crop.
            dtype: "float32" or "bfloat16".
            store: keeps the results of stages.

        Raises:
            UserError: a wrong name, or a file that is missing.
        """
        try:
            quirks = ReferenceQuirks.of(Profile(profile))
        except ValueError:
            names = " or ".join(repr(known.value) for known in Profile)
            raise UserError(f"Expected the profile {names}, got {profile!r}.") from None
        config = MethodConfig(
            quirks=quirks,
            proposals=PROPOSALS_SHAPES if weights == "tiny" else PROPOSALS_REFCOCO,
            fusion=FusionConfig(mode=FusionMode.parse(fusion_mode)),
        )
        return cls(
            weight_set(weights),
            config,
            device=select_device(device),
            dtype=select_dtype(dtype),
            store=store,
        )

    @cached_property
    def clip(self) -> ClipEncoder:
        """CLIP, loaded at first use.

        Raises:
            UserError: it has fewer blocks than the settings speak of.
        """
        clip = ClipEncoder.from_file(
            self.weights.clip_weights,
            architecture=self.weights.clip_model,
            device=self.device,
        )
        blocks = len(clip.visual.transformer.resblocks)
        # Mode attn_masking may leave out the last block (quirk Q3).
        needed = max(self.config.fusion.masking_block + 2, self.config.gem.depth)
        if blocks < needed:
            raise UserError(
                f"Expected a CLIP of at least {needed} vision blocks in "
                f"{self.weights.clip_weights}, got {blocks}. Use ViT-B-16."
            )
        return clip

    @cached_property
    def proposer(self) -> SamProposer:
        """SAM, loaded at first use."""
        return SamProposer.from_checkpoint(
            self.weights.sam_checkpoint, self.weights.sam_type, self.device
        )

    @cached_property
    def parser(self) -> SpacyParser:
        """SpaCy's pipeline, loaded at first use."""
        return SpacyParser(self.weights.spacy_model)

    @cached_property
    def weights_ids(self) -> dict[str, str]:
        """Sha256 of the weights that take part in keys.

        Files that are not the published ones whose names they have are named in a warning.
        """
        digests = self.weights.digests()
        for doubt in self.weights.doubts(digests):
            _LOG.warning(doubt)
        return digests

    def load(self) -> None:
        """Load what every run needs, so that a wrong file is found before any work.

        SAM waits for a picture whose proposals are not stored.

        Raises:
            UserError: a file is damaged or of another architecture.
        """
        _ = self.parser, self.clip

    def segment(self, image: ImageSource, expression: str) -> Segmentation:
        """Mask of what an expression refers to.

        Args:
            image: path, PIL image, or RGB array (H, W, 3) of uint8.
            expression: as people write it; must not be blank.

        Raises:
            UserError: the picture cannot be read or the expression is blank.
        """
        return self.segment_all([image], [expression])[0]

    def segment_all(
        self, images: Sequence[ImageSource], expressions: Sequence[str]
    ) -> list[Segmentation]:
        """Masks of many expressions; each distinct picture and sentence is computed once.

        Args:
            images: one for every expression; the same picture may come again.
            expressions: one for every image; must not be blank.

        Returns:
            One result for every pair, in their order.

        Raises:
            UserError: another number of images than of expressions, a picture that cannot be
                read, or a blank expression.
        """
        if len(images) != len(expressions):
            raise UserError(
                f"Expected as many images as expressions, got {len(images)} and "
                f"{len(expressions)}. Repeat an image for each of its expressions."
            )
        for expression in expressions:
            if not isinstance(expression, str) or not expression.strip():
                raise UserError(f"Expected an expression in words, got {expression!r}.")
        parsed = self.parse(expressions)
        indices_of: dict[str, list[int]] = {}
        for index, source in enumerate(images):
            indices_of.setdefault(RgbImage(source).digest, []).append(index)
        results: dict[int, Segmentation] = {}
        for indices in indices_of.values():
            # Opened again, so that the pixels of one picture at a time are in memory.
            image = RgbImage(images[indices[0]])
            proposals = self.propose(image)
            predictions = self.predict(image, proposals, [parsed[index] for index in indices])
            for index, prediction in zip(indices, predictions, strict=True):
                results[index] = self._segmentation(image, proposals, prediction)
        return [results[index] for index in range(len(images))]

    def parse(self, sentences: Sequence[str]) -> list[ParsedExpression]:
        """Noun phrase, other nouns, position and relation of raw sentences."""
        return self.parser.parse(
            sentences,
            right_relation_never_matches=self.config.quirks.right_relation_never_matches,
        )

    def propose(self, image: RgbImage) -> Proposals:
        """SAM's masks of a picture, in the generator's order."""
        if self._store is None:
            return self.proposer.propose(image.pixels_HW3, self.config.proposals)
        key = self._proposals_key(image)
        entry = self._store.load("proposals", key)
        if entry:
            return _unpack_proposals(entry)
        proposals = self.proposer.propose(image.pixels_HW3, self.config.proposals)
        self._store.save("proposals", key, *_pack_proposals(proposals))
        return proposals

    def count_proposals(self, image: RgbImage) -> int:
        """Number of a picture's proposals, without decoding those that are stored."""
        if self._store is not None:
            entry = self._store.load("proposals", self._proposals_key(image))
            if entry:
                return len(entry.arrays["boxes_xywh"])
        return len(self.propose(image))

    def features(self, image: RgbImage, proposals: Proposals) -> Tensor:
        """CLIP features of the proposals, float32, (N, E), un-normalised."""
        if self._store is None:
            return self.compute_features(image.pixels_HW3, proposals.masks_NHW)
        key = self._features_key(image, proposals)
        entry = self._store.load("features", key)
        if entry:
            return torch.from_numpy(entry.arrays["features_NE"]).to(self.device)
        features_NE = self.compute_features(image.pixels_HW3, proposals.masks_NHW)
        self._store.save("features", key, {"features_NE": features_NE.cpu().numpy()}, {})
        return features_NE

    def low_resolution_maps(self, image: RgbImage, phrases: Sequence[str]) -> Tensor:
        """GEM's cosines of a picture's patches with noun phrases, float32, (S, g, g).

        The store holds one entry a picture; phrases that it lacks are added to it.
        """
        known: list[str] = []
        maps_Sgg: Tensor | None = None
        if self._store is not None:
            key = self._key(image, "gem", self._gem_settings())
            entry = self._store.load("gem", key)
            if entry:
                known = list(entry.meta["phrases"])
                maps_Sgg = torch.from_numpy(entry.arrays["maps_Sgg"])
        lacking = [phrase for phrase in dict.fromkeys(phrases) if phrase not in known]
        if lacking or maps_Sgg is None:
            made_Sgg = self._compute_maps(image, lacking)
            maps_Sgg = made_Sgg if maps_Sgg is None else torch.cat([maps_Sgg, made_Sgg])
            known += lacking
            if self._store is not None:
                arrays = {"maps_Sgg": maps_Sgg.numpy()}
                self._store.save("gem", key, arrays, {"phrases": known})
        return maps_Sgg[[known.index(phrase) for phrase in phrases]].to(self.device)

    @torch.inference_mode()
    def predict(
        self,
        image: RgbImage,
        proposals: Proposals,
        expressions: Sequence[ParsedExpression],
        largest_k: Sequence[int] | None = None,
    ) -> list[Prediction]:
        """Picks for the expressions of one picture.

        Args:
            image: the picture.
            proposals: from ``propose``.
            expressions: from ``parse``.
            largest_k: cap on the candidate counts of every expression (quirk Q5); None caps them
                at the number of proposals.
        """
        maps_Sgg = self.low_resolution_maps(image, [e.noun_phrase for e in expressions])
        kept_Sgg = maps_Sgg.cpu().numpy()
        if not len(proposals):
            nothing = np.zeros(0)
            return [
                Prediction(expression, None, nothing, map_gg)
                for expression, map_gg in zip(expressions, kept_Sgg, strict=True)
            ]
        texts = expression_features(self.encode_texts, expressions, self.config.text)
        features_NE = self.features(image, proposals)
        scale = self.clip.logit_scale
        own_SN = _doubles(guidance.similarity_scores(features_NE, texts.own_SE, scale))
        other_SN = _doubles(guidance.similarity_scores(features_NE, texts.other_SE, scale))
        coherence_SN = _doubles(
            self._coherence(proposals.masks_NHW, image.hw, maps_Sgg, expressions)
        )
        boxes_xywh = proposals.boxes_xywh.astype(np.float64)
        return [
            Prediction(
                expression=expression,
                choice=guidance.choose(
                    own_SN[row],
                    other_SN[row] if texts.has_others[row] else None,
                    coherence_SN[row],
                    boxes_xywh,
                    expression.relation,
                    self.config.guidance,
                    largest_k=largest_k[row] if largest_k else None,
                ),
                similarity_N=own_SN[row],
                low_resolution_map_gg=kept_Sgg[row],
            )
            for row, expression in enumerate(expressions)
        ]

    def heat_map(self, prediction: Prediction, hw: tuple[int, int]) -> NDArray[np.float32]:
        """GEM map of a prediction under its position ramp, mean 1, float32, (H, W)."""
        maps_1gg = torch.from_numpy(prediction.low_resolution_map_gg)[None]
        heat_1HW = self._weighted_heat(maps_1gg, hw, [prediction.expression])
        return np.asarray(heat_1HW[0].numpy())

    def describe(self) -> dict[str, Any]:
        """Weights, settings and versions, as JSON values: what a run must be repeated with."""
        packages = ("torch", "torchvision", "open_clip_torch", "segment-anything", "spacy")
        return {
            "weights": {
                "clip": self.weights.clip_weights.name,
                "sam": self.weights.sam_checkpoint.name,
                "spacy": self.parser.name,
                "sha256": self.weights_ids,
            },
            "method": json.loads(
                json.dumps(dataclasses.asdict(self.config), default=lambda enum: enum.value)
            ),
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "versions": {name: version(name) for name in ("hybridgl", *packages)},
        }

    @torch.inference_mode()
    def compute_features(
        self, image_HW3: NDArray[np.uint8], masks_NHW: NDArray[np.bool_]
    ) -> Tensor:
        """CLIP features of any masks, in chunks of bounded memory and without the store.

        Args:
            image_HW3: RGB, uint8, (H, W, 3).
            masks_NHW: bool, (N, H, W).

        Returns:
            float32, (N, E), un-normalised.
        """
        quirks, side = self.config.quirks, self.clip.image_size
        image_3HW = self._channels_first(image_HW3)
        blurred_3HW = self._channels_first(views.blur_background(image_HW3))
        chunks = []
        for chunk_NHW in torch.from_numpy(masks_NHW).split(masks_per_chunk(image_HW3.shape[:2])):
            masks = chunk_NHW.to(self.device)
            local_N3RR = views.local_views(image_3HW, masks, side, quirks)
            global_N3RR = views.global_views(image_3HW, blurred_3HW, masks, side, quirks)
            with self._autocast():
                features_NE = mask_features(
                    self.clip.visual,
                    local_N3RR,
                    global_N3RR,
                    views.gate(masks, self.clip.grid),
                    self.config.fusion,
                    attention_masking_skips_last_block=quirks.attention_masking_skips_last_block,
                )
            chunks.append(features_NE.float())
        return torch.cat(chunks)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """CLIP text features, float32, (L, E), un-normalised."""
        with self._autocast():
            return self.clip.encode_texts(texts).float()

    @torch.inference_mode()
    def _compute_maps(self, image: RgbImage, phrases: Sequence[str]) -> Tensor:
        """GEM maps without the store; on the CPU."""
        config = self.config.gem
        texts_SE = self.encode_texts([config.prompt.format(phrase) for phrase in phrases])
        images_13RR = gem.gem_input(image.pil, self._gem_side)[None].to(self.device)
        with self._autocast():
            patches_BPE = gem.patch_features(self.clip.visual, images_13RR, config)
        return gem.low_resolution_maps(patches_BPE[0].float(), texts_SE).cpu()

    def _coherence(
        self,
        masks_NHW: NDArray[np.bool_],
        hw: tuple[int, int],
        maps_Sgg: Tensor,
        expressions: Sequence[ParsedExpression],
    ) -> Tensor:
        rows = []
        step = min(_HEAT_MAPS_PER_CHUNK, masks_per_chunk(hw))
        for start in range(0, len(expressions), step):
            some = expressions[start : start + step]
            heat_SHW = self._weighted_heat(maps_Sgg[start : start + len(some)], hw, some)
            weights = [guidance.outside_weight(e.relation, self.config.guidance) for e in some]
            columns = [
                guidance.coherence_scores(heat_SHW, chunk_NHW.to(self.device), weights)
                for chunk_NHW in torch.from_numpy(masks_NHW).split(masks_per_chunk(hw))
            ]
            rows.append(torch.cat(columns, dim=1))
        return torch.cat(rows)

    def _weighted_heat(
        self, maps_Sgg: Tensor, hw: tuple[int, int], expressions: Sequence[ParsedExpression]
    ) -> Tensor:
        ramps = [
            guidance.position_ramp(
                e.position, hw, vertical_disabled=self.config.quirks.vertical_ramps_disabled
            )
            for e in expressions
        ]
        return guidance.weighted_heat(gem.heat_map(maps_Sgg, self._gem_side, hw), ramps)

    def _segmentation(
        self, image: RgbImage, proposals: Proposals, prediction: Prediction
    ) -> Segmentation:
        choice = prediction.choice
        heat_HW = self.heat_map(prediction, image.hw)
        if choice is None:
            empty_HW = np.zeros(image.hw, dtype=bool)
            return Segmentation(
                empty_HW, None, np.zeros(0), (), heat_HW, empty_HW, prediction.expression
            )
        return Segmentation(
            mask=proposals.masks_NHW[choice.pick].copy(),
            box=_box(proposals, choice.pick),
            scores=prediction.similarity_N,
            candidates=tuple(
                Candidate(
                    mask=proposals.masks_NHW[index].copy(),
                    box=_box(proposals, index),
                    similarity=float(prediction.similarity_N[index]),
                    relation=float(relation),
                    coherence=float(choice.coherence_N[index]),
                    score=float(final),
                )
                for index, relation, final in zip(
                    choice.candidates_K, choice.relation_K, choice.final_K, strict=True
                )
            ),
            heat_map=heat_HW,
            pure_mask=proposals.masks_NHW[choice.pick_pure].copy(),
            expression=prediction.expression,
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.dtype is torch.bfloat16
        )

    def _channels_first(self, image_HW3: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(image_HW3).permute(2, 0, 1).to(self.device)

    @property
    def _gem_side(self) -> int:
        return self.config.gem.resolution_factor * self.clip.image_size

    def _key(self, image: RgbImage, stage: str, settings: Mapping[str, Any]) -> str:
        return _digest(
            {
                "stage": stage,
                "version": _STAGE_VERSION,
                "image": image.digest,
                **settings,
            }
        )

    def _proposals_key(self, image: RgbImage) -> str:
        settings = {
            "sam": self.weights_ids["sam"],
            "config": dataclasses.asdict(self.config.proposals),
        }
        return self._key(image, "proposals", settings)

    def _features_key(self, image: RgbImage, proposals: Proposals) -> str:
        """By the masks themselves: another machine may find others at the same settings."""
        config, quirks = self.config, self.config.quirks
        masks = np.packbits(proposals.masks_NHW)
        settings = {
            "masks": f"{len(proposals)} {hashlib.sha256(masks.tobytes()).hexdigest()}",
            "clip": self.weights_ids["clip"],
            "device": self.device.type,
            "dtype": str(self.dtype),
            "mode": config.fusion.mode.value,
            "masking_block": config.fusion.masking_block,
            "stream_weight": config.fusion.stream_weight,
            "quirks": [
                quirks.local_view_imagenet_unnormalised_fill,
                quirks.global_view_imagenet_statistics,
                quirks.attention_masking_skips_last_block,
            ],
        }
        return self._key(image, "features", settings)

    def _gem_settings(self) -> dict[str, Any]:
        return {
            "clip": self.weights_ids["clip"],
            "device": self.device.type,
            "dtype": str(self.dtype),
            "config": dataclasses.asdict(self.config.gem),
        }


def select_device(name: str) -> torch.device:
    """Device of a name; "auto" is the first GPU, or else the CPU.

    Raises:
        UserError: no device has this name, or it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"Expected the device auto, cpu, cuda or cuda:i, got {name!r}.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"Expected a device that is there, got {name!r} with {torch.cuda.device_count()} "
            f"GPUs. Use --device cpu."
        )
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"Expected the device auto, cpu, cuda or cuda:i, got {name!r}.")
    return device


def select_dtype(name: str) -> torch.dtype:
    """Number format of a name.

    Raises:
        UserError: neither float32 nor bfloat16.
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in known:
        raise UserError(f"Expected the dtype float32 or bfloat16, got {name!r}.")
    return known[name]


def masks_per_chunk(hw: tuple[int, ...]) -> int:
    """How many masks' full-size float views, of three channels, fit in the memory set aside."""
    return min(max(_VIEW_BYTES // (3 * 4 * hw[0] * hw[1]), 1), _MOST_MASKS)


def _box(proposals: Proposals, index: int) -> tuple[int, int, int, int]:
    x, y, w, h = proposals.boxes_xywh[index].tolist()
    return x, y, w, h


def _doubles(tensor: Tensor) -> NDArray[np.float64]:
    return np.asarray(tensor.double().cpu().numpy())


def _pack_proposals(proposals: Proposals) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    packed = mask_rle.pack_rles(mask_rle.encode_masks(proposals.masks_NHW), proposals.hw)
    arrays: dict[str, NDArray[Any]] = {
        "rle_counts": packed.counts,
        "rle_offsets": packed.offsets,
        "boxes_xywh": proposals.boxes_xywh,
        "predicted_iou": proposals.predicted_iou,
        "stability": proposals.stability,
    }
    return arrays, {"hw": list(proposals.hw)}


def _unpack_proposals(entry: StoredEntry) -> Proposals:
    height, width = entry.meta["hw"]
    packed = mask_rle.PackedRles(
        entry.arrays["rle_counts"], entry.arrays["rle_offsets"], (height, width)
    )
    return Proposals(
        masks_NHW=mask_rle.decode_masks(mask_rle.unpack_rles(packed), packed.hw),
        boxes_xywh=entry.arrays["boxes_xywh"],
        predicted_iou=entry.arrays["predicted_iou"],
        stability=entry.arrays["stability"],
    )


def _digest(settings: Mapping[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
