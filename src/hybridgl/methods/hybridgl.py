"""The method from images and sentences to masks, every stage a function whose result is kept.

``HybridGL`` composes the stages. With a store, what an image has been through once is read back:
entries are keyed by the content that they were made from, never by a position in a list.

Shapes: N proposals, H x W image pixels, S sentences or phrases of one image, K candidates,
E embedding width, g patches along each side of GEM's input.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridgl import gem, guidance, views
from hybridgl.config import (
    PROPOSALS_REFCOCO,
    PROPOSALS_SHAPES,
    FusionConfig,
    FusionMode,
    MethodConfig,
    Profile,
    ReferenceQuirks,
)
from hybridgl.errors import HybridGLError
from hybridgl.fusion import fuse, stream_tokens
from hybridgl.images import ImageSource, RgbImage
from hybridgl.language import ParsedExpression, Position
from hybridgl.models import Models, select_device, select_dtype
from hybridgl.models.clip import ClipEncoder
from hybridgl.proposals import Proposals
from hybridgl.stages import (
    ArtefactStore,
    SamProposals,
    masks_per_chunk,
    masks_sha256,
    stage_key,
)
from hybridgl.text import expression_features
from hybridgl.weights.registry import weight_set

__all__ = ["Candidate", "HybridGL", "Prediction", "Scores", "Segmentation"]

_MAPS_PER_CHUNK = 16
"""Attention maps of one chunk, whatever the memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """All that one expression's pick depends on, besides the k_limits of quirk Q5.

    Attributes:
        expression: what was read off the sentence.
        similarity_N: similarity of every proposal with the expression, float64.
        other_noun_similarity_N: similarity with the other nouns; None where there are none.
        coherence_N: coherence score of every proposal; 0 where that term is off.
        boxes_xywh: boxes of the proposals, float64, (N, 4).
        patch_similarity_gg: GEM's cosines for the noun phrase, float32, (g, g); None where no
            map was needed.
    """

    expression: ParsedExpression
    similarity_N: NDArray[np.float64]
    other_noun_similarity_N: NDArray[np.float64] | None
    coherence_N: NDArray[np.float64]
    boxes_xywh: NDArray[np.float64]
    patch_similarity_gg: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """One expression's picks among the proposals of its image.

    Attributes:
        expression: what was read off the sentence.
        picks: index of the proposal that each way of picking takes, by its name: "pure" by
            similarity alone, "guided" by the method, "no_gem" by relations alone. Empty where the
            image has no proposal.
        similarity_N: similarity of every proposal with the expression, float64.
        choice: candidates and their scores; None where nothing was guided.
        patch_similarity_gg: GEM's cosines for the noun phrase, float32, (g, g); None where no
            map was needed.
    """

    expression: ParsedExpression
    picks: Mapping[str, int]
    similarity_N: NDArray[np.float64]
    choice: guidance.Choice | None = None
    patch_similarity_gg: NDArray[np.float32] | None = None


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
    """What an expression refers to in an image.

    Attributes:
        mask: the picked mask, bool, (H, W); empty where the image has no proposal.
        box: its box x, y, w, h in pixels; None where there is no proposal.
        scores: scaled cosine of every proposal with the expression, float64, (N,).
        candidates: the masks that the guidance chose from, best similarity first.
        attention_map: GEM map of the noun phrase under the position prior, mean 1, float32, (H, W); None
            where the settings need none.
        pure_mask: the mask that mask features alone pick, bool, (H, W).
        expression: noun phrase, other nouns, position and relation.
    """

    mask: NDArray[np.bool_]
    box: tuple[int, int, int, int] | None
    scores: NDArray[np.float64]
    candidates: tuple[Candidate, ...]
    attention_map: NDArray[np.float32] | None
    pure_mask: NDArray[np.bool_]
    expression: ParsedExpression


class HybridGL:
    """Zero-shot referring image segmentation.

    Args:
        models: the models.
        config: settings of the method.
        store: keeps the results of stages; None computes them anew.
        keep_tokens: store what enters the blocks in which masks act, 1.2 MB a mask for ViT-B/16, so
            that another fusion mode takes a fraction of the time. The results are the same.

    Example:
        >>> image = np.full((224, 256, 3), 140, dtype=np.uint8)
        >>> image[60:120, 40:100] = (214, 38, 40)
        >>> result = HybridGL.from_pretrained("tiny").segment(image, "the red square")
        >>> bool(result.mask[90, 70]), bool(result.mask[200, 200])
        (True, False)
    """

    picks: tuple[str, ...] = ("pure", "guided", "no_gem")
    """Ways of picking that ``predict`` gives."""

    final_pick = "guided"
    """The one that is the method."""

    skips_without_proposals = False
    """Samples without proposals count as IoU 0."""

    def __init__(
        self,
        models: Models,
        config: MethodConfig,
        store: ArtefactStore | None = None,
        *,
        keep_tokens: bool = False,
    ) -> None:
        self.models = models
        self.config = config
        self._sam = SamProposals(models, config.proposals, store)
        self._store = store
        self._keep_tokens = keep_tokens
        self._stream_tokens = models.compiled(stream_tokens)
        self._fuse = models.compiled(fuse)
        self._patch_features = models.compiled(gem.patch_features)

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
            weights: "tiny", bundled in the package, knows coloured shapes only; "paper" is the
                published setting and expects its files in ``weights_folder()``.
            device: "auto", "cpu", "cuda" or "cuda:1".
            profile: "reference" or "corrected".
            fusion_mode: G2L, L2G, both, token_masking, attn_masking or crop.
            dtype: of SAM's image encoder: "float32" or "bfloat16".
            store: keeps the results of stages.

        Raises:
            HybridGLError: a wrong name, or a file that is missing.
        """
        try:
            quirks = ReferenceQuirks.of(Profile(profile))
        except ValueError:
            names = " or ".join(repr(known.value) for known in Profile)
            raise HybridGLError(f"Expected the profile {names}, got {profile!r}.") from None
        config = MethodConfig(
            quirks=quirks,
            proposals=PROPOSALS_SHAPES if weights == "tiny" else PROPOSALS_REFCOCO,
            fusion=FusionConfig(mode=FusionMode.parse(fusion_mode)),
        )
        files = weight_set(weights)
        models = Models(files, device=select_device(device), dtype=select_dtype(dtype))
        models.require("clip", "sam")
        return cls(models, config, store)

    @cached_property
    def clip(self) -> ClipEncoder:
        """CLIP, loaded at first use.

        Raises:
            HybridGLError: it is no vision transformer, or has fewer blocks than the settings speak of.
        """
        clip = self.models.clip
        blocks = len(clip.visual.transformer.resblocks)
        fusion, quirks = self.config.fusion, self.config.quirks
        leaves_out_last = (
            fusion.mode is FusionMode.ATTENTION_MASKING
            and quirks.attention_masking_skips_last_block
        )
        needed = max(fusion.masking_block + 1 + leaves_out_last, self.config.gem.depth)
        if blocks < needed:
            raise HybridGLError(
                f"Expected a CLIP of at least {needed} vision blocks in "
                f"{self.models.weights.clip_weights}, got {blocks}. Use ViT-B-16, or a lower "
                f"--masking_block."
            )
        return clip

    @property
    def quirks(self) -> ReferenceQuirks:
        """Deviations of the released program that are reproduced."""
        return self.config.quirks

    @property
    def most_candidates(self) -> int:
        """Largest k_limit on the candidate counts (quirk Q5) that makes a difference."""
        return max(self.config.guidance.num_candidates, self.config.guidance.num_context_masks)

    def load(self) -> None:
        """Load what every run needs, so that a wrong file is found before any work.

        SAM waits for an image whose proposals are not stored.

        Raises:
            HybridGLError: a file is damaged or of another architecture.
        """
        _ = self.models.parser, self.clip

    def segment(self, image: ImageSource, expression: str) -> Segmentation:
        """Mask of what an expression refers to.

        Args:
            image: path, PIL image, or RGB array (H, W, 3) of uint8.
            expression: as people write it; must not be blank.

        Raises:
            HybridGLError: the image cannot be read or the expression is blank.
        """
        return self.segment_all([image], [expression])[0]

    def segment_all(
        self, images: Sequence[ImageSource], expressions: Sequence[str]
    ) -> list[Segmentation]:
        """Masks of many expressions; each distinct image and sentence is computed once.

        Args:
            images: one for every expression; the same image may come again.
            expressions: one for every image; must not be blank.

        Returns:
            One result for every pair, in their order.

        Raises:
            HybridGLError: another number of images than of expressions, an image that cannot be
                read, or a blank expression.
        """
        if len(images) != len(expressions):
            raise HybridGLError(
                f"Expected as many images as expressions, got {len(images)} and "
                f"{len(expressions)}. Repeat an image for each of its expressions."
            )
        for expression in expressions:
            if not isinstance(expression, str) or not expression.strip():
                raise HybridGLError(f"Expected an expression in words, got {expression!r}.")
        parsed = self.parse(expressions)
        indices_of: dict[str, list[int]] = {}
        for index, source in enumerate(images):
            indices_of.setdefault(RgbImage(source).sha256, []).append(index)
        results: dict[int, Segmentation] = {}
        for indices in indices_of.values():
            # Opened again, so that the pixels of one image at a time are in memory.
            image = RgbImage(images[indices[0]])
            proposals = self.propose(image)
            predictions = self.predict(image, proposals, [parsed[index] for index in indices])
            for index, prediction in zip(indices, predictions, strict=True):
                results[index] = self._segmentation(image, proposals, prediction)
        return [results[index] for index in range(len(images))]

    def parse(self, sentences: Sequence[str]) -> list[ParsedExpression]:
        """Noun phrase, other nouns, position and relation of raw sentences."""
        return self.models.parser.parse(
            sentences,
            right_relation_never_matches=self.config.quirks.right_relation_never_matches,
        )

    def propose(self, image: RgbImage) -> Proposals:
        """SAM's masks of an image, in the generator's order."""
        return self._sam.propose(image)

    def features(self, image: RgbImage, proposals: Proposals) -> Tensor:
        """CLIP features of the proposals, float32, (N, E), un-normalised."""
        if self._store is None:
            return self.compute_features(image.pixels_HW3, proposals.masks_NHW)
        key = self._features_key(image, proposals)
        entry = self._store.load("features", key)
        if entry:
            return torch.from_numpy(entry.arrays["features_NE"]).to(self.models.device)
        if self._keep_tokens:
            features_NE = self._features_of_tokens(image, proposals)
        else:
            features_NE = self.compute_features(image.pixels_HW3, proposals.masks_NHW)
        self._store.save("features", key, {"features_NE": features_NE.cpu().numpy()}, {})
        return features_NE

    def patch_similarity(self, image: RgbImage, phrases: Sequence[str]) -> Tensor:
        """GEM's cosines of an image's patches with noun phrases, float32, (S, g, g).

        The store holds one entry an image; phrases that it lacks are added to it.
        """
        known: list[str] = []
        sim_Sgg: Tensor | None = None
        if self._store is not None:
            key = stage_key(image, "gem", self._gem_settings())
            entry = self._store.load("gem", key)
            if entry:
                known = list(entry.meta["phrases"])
                sim_Sgg = torch.from_numpy(entry.arrays["sim_Sgg"])
        lacking = [phrase for phrase in dict.fromkeys(phrases) if phrase not in known]
        if lacking or sim_Sgg is None:
            made_Sgg = self._compute_maps(image, lacking)
            sim_Sgg = made_Sgg if sim_Sgg is None else torch.cat([sim_Sgg, made_Sgg])
            known += lacking
            if self._store is not None:
                arrays = {"sim_Sgg": sim_Sgg.numpy()}
                self._store.save("gem", key, arrays, {"phrases": known})
        return sim_Sgg[[known.index(phrase) for phrase in phrases]].to(self.models.device)

    def predict(
        self,
        image: RgbImage,
        proposals: Proposals,
        expressions: Sequence[ParsedExpression],
        k_limit: Sequence[int] | None = None,
    ) -> list[Prediction]:
        """Picks for the expressions of one image.

        Args:
            image: the image.
            proposals: its masks, from ``propose`` or anywhere else.
            expressions: from ``parse``.
            k_limit: k_limit on the candidate counts of every expression (quirk Q5); None k_limits them
                at the number of proposals.
        """
        return [
            self.choose(scores, k_limit[row] if k_limit else None)
            for row, scores in enumerate(self.score(image, proposals, expressions))
        ]

    @torch.inference_mode()
    def score(
        self, image: RgbImage, proposals: Proposals, expressions: Sequence[ParsedExpression]
    ) -> list[Scores]:
        """Everything that the picks of one image's expressions depend on.

        Args:
            image: the image.
            proposals: its masks, from ``propose`` or anywhere else.
            expressions: from ``parse``.
        """
        count = len(proposals)
        coherence_SN = np.zeros((len(expressions), count))
        maps: list[NDArray[np.float32] | None] = [None] * len(expressions)
        if self.config.guidance.coherence:
            sim_Sgg = self.patch_similarity(image, [e.noun_phrase for e in expressions])
            maps = list(sim_Sgg.cpu().numpy())
            if count:
                masks_NHW = proposals.masks_NHW
                coherence_SN = _doubles(self._coherence(masks_NHW, image.hw, sim_Sgg, expressions))
        similarity_SN = other_noun_similarity_SN = np.zeros((len(expressions), 0))
        has_others = [False] * len(expressions)
        if count:
            texts = expression_features(self.models.encode_texts, expressions, self.config.text)
            features_NE = self.features(image, proposals)
            scale = self.clip.logit_scale
            similarity_SN = _doubles(
                guidance.similarity_scores(features_NE, texts.expression_SE, scale)
            )
            other_noun_similarity_SN = _doubles(
                guidance.similarity_scores(features_NE, texts.other_nouns_SE, scale)
            )
            has_others = list(texts.has_others)
        boxes_xywh = proposals.boxes_xywh.astype(np.float64)
        return [
            Scores(
                expression=expression,
                similarity_N=similarity_SN[row],
                other_noun_similarity_N=other_noun_similarity_SN[row] if has_others[row] else None,
                coherence_N=coherence_SN[row],
                boxes_xywh=boxes_xywh,
                patch_similarity_gg=maps[row],
            )
            for row, expression in enumerate(expressions)
        ]

    def choose(self, scores: Scores, k_limit: int | None = None) -> Prediction:
        """Picks of one expression.

        Args:
            scores: from ``score``.
            k_limit: k_limit on the candidate counts (quirk Q5); None k_limits them at the number of
                proposals.
        """
        choice = None
        if len(scores.similarity_N):
            choice = guidance.choose(
                scores.similarity_N,
                scores.other_noun_similarity_N,
                scores.coherence_N,
                scores.boxes_xywh,
                scores.expression.relation,
                self.config.guidance,
                k_limit=k_limit,
            )
        picks = (choice.features, choice.pick, choice.relations) if choice else ()
        return Prediction(
            expression=scores.expression,
            picks=dict(zip(self.picks, picks, strict=False)),
            similarity_N=scores.similarity_N,
            choice=choice,
            patch_similarity_gg=scores.patch_similarity_gg,
        )

    def attention_map(
        self, prediction: Prediction, hw: tuple[int, int]
    ) -> NDArray[np.float32] | None:
        """GEM map of a prediction under its position prior, mean 1, float32, (H, W)."""
        if prediction.patch_similarity_gg is None:
            return None
        sim_1gg = torch.from_numpy(prediction.patch_similarity_gg)[None]
        attention_1HW = self._weighted_attention(sim_1gg, hw, [prediction.expression])
        return np.asarray(attention_1HW[0].numpy())

    def describe(self) -> dict[str, Any]:
        """Settings of the method, as JSON values."""
        settings = {
            name: value
            for name, value in dataclasses.asdict(self.config).items()
            if name != "proposals"
        }
        return {
            "name": "hybridgl",
            **json.loads(json.dumps(settings, default=lambda enum: enum.value)),
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
        views_of = [self._views(image_HW3, stream) for stream in self._streams]
        chunks = []
        for masks in self._chunks(masks_NHW):
            tokens = [self._tokens(of_masks(masks)) for of_masks in views_of]
            chunks.append(self._fused(masks, *tokens))
        return torch.cat(chunks)

    @torch.inference_mode()
    def _features_of_tokens(self, image: RgbImage, proposals: Proposals) -> Tensor:
        """The same through the store's tokens, which are made if it lacks them."""
        tokens = [self._stored_tokens(image, proposals, stream) for stream in self._streams]
        chunks, start = [], 0
        for masks in self._chunks(proposals.masks_NHW):
            some = slice(start, start := start + len(masks))
            chunks.append(self._fused(masks, *(t[some].to(self.models.device) for t in tokens)))
        return torch.cat(chunks)

    @property
    def _streams(self) -> tuple[str, ...]:
        """Names of the streams that the fusion mode reads."""
        return ("local", "global") if self.config.fusion.mode.reads_global_view else ("local",)

    def _stored_tokens(self, image: RgbImage, proposals: Proposals, stream: str) -> Tensor:
        """Tokens of one stream before the masked blocks, float32, (N, T, D), on the CPU."""
        assert self._store is not None
        key = stage_key(image, f"tokens-{stream}", self._tokens_settings(proposals))
        entry = self._store.load("tokens", key)
        if entry:
            return torch.from_numpy(entry.arrays["tokens_NTD"])
        views_of = self._views(image.pixels_HW3, stream)
        made = [self._tokens(views_of(m)).cpu() for m in self._chunks(proposals.masks_NHW)]
        tokens_NTD = torch.cat(made)
        self._store.save("tokens", key, {"tokens_NTD": tokens_NTD.numpy()}, {})
        return tokens_NTD

    def _views(self, image_HW3: NDArray[np.uint8], stream: str) -> Callable[[Tensor], Tensor]:
        """What makes the views of masks for a stream."""
        quirks, side = self.config.quirks, self.clip.image_size
        image_3HW = self._channels_first(image_HW3)
        if stream == "local":
            return lambda masks_NHW: views.local_views(image_3HW, masks_NHW, side, quirks)
        blurred_3HW = self._channels_first(views.blur_background(image_HW3))
        return lambda masks_NHW: views.global_views(image_3HW, blurred_3HW, masks_NHW, side, quirks)

    def _tokens(self, views_N3RR: Tensor) -> Tensor:
        return self._stream_tokens(self.clip.visual, views_N3RR, self.config.fusion.masking_block)

    def _fused(
        self, masks_NHW: Tensor, local_NTD: Tensor, global_NTD: Tensor | None = None
    ) -> Tensor:
        return self._fuse(
            self.clip.visual,
            local_NTD,
            global_NTD,
            views.patch_coverage(masks_NHW, self.clip.grid),
            self.config.fusion,
            attention_masking_skips_last_block=self.quirks.attention_masking_skips_last_block,
        )

    def _chunks(self, masks_NHW: NDArray[np.bool_]) -> Iterator[Tensor]:
        """Masks on the device, as many at a time as are worked on at once."""
        at_once = masks_per_chunk(masks_NHW.shape[1:], self.models.device.type)
        for chunk_NHW in torch.from_numpy(masks_NHW).split(at_once):
            yield chunk_NHW.to(self.models.device)

    @torch.inference_mode()
    def _compute_maps(self, image: RgbImage, phrases: Sequence[str]) -> Tensor:
        """GEM maps without the store; on the CPU."""
        config = self.config.gem
        texts_SE = self.models.encode_texts([config.prompt.format(phrase) for phrase in phrases])
        images_13RR = gem.gem_input(image.pil, self._gem_side)[None].to(self.models.device)
        patches_BPE = self._patch_features(self.clip.visual, images_13RR, config)
        return gem.patch_similarity(patches_BPE[0], texts_SE).cpu()

    def _coherence(
        self,
        masks_NHW: NDArray[np.bool_],
        hw: tuple[int, int],
        sim_Sgg: Tensor,
        expressions: Sequence[ParsedExpression],
    ) -> Tensor:
        rows = []
        step = min(_MAPS_PER_CHUNK, masks_per_chunk(hw, self.models.device.type))
        for start in range(0, len(expressions), step):
            some = expressions[start : start + step]
            attention_SHW = self._weighted_attention(sim_Sgg[start : start + len(some)], hw, some)
            weights = [guidance.outside_weight(e.relation, self.config.guidance) for e in some]
            columns = [
                guidance.coherence_scores(attention_SHW, chunk_NHW, weights)
                for chunk_NHW in self._chunks(masks_NHW)
            ]
            rows.append(torch.cat(columns, dim=1))
        return torch.cat(rows)

    def _weighted_attention(
        self, sim_Sgg: Tensor, hw: tuple[int, int], expressions: Sequence[ParsedExpression]
    ) -> Tensor:
        priors = [
            guidance.position_prior(
                e.position if self.config.guidance.position else Position.NONE,
                hw,
                vertical_priors_disabled=self.config.quirks.vertical_priors_disabled,
            )
            for e in expressions
        ]
        return guidance.weighted_attention(gem.attention_map(sim_Sgg, self._gem_side, hw), priors)

    def _segmentation(
        self, image: RgbImage, proposals: Proposals, prediction: Prediction
    ) -> Segmentation:
        choice = prediction.choice
        attention_HW = self.attention_map(prediction, image.hw)
        if choice is None:
            empty_HW = np.zeros(image.hw, dtype=bool)
            return Segmentation(
                empty_HW, None, np.zeros(0), (), attention_HW, empty_HW, prediction.expression
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
            attention_map=attention_HW,
            pure_mask=proposals.masks_NHW[choice.features].copy(),
            expression=prediction.expression,
        )

    def _channels_first(self, image_HW3: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(image_HW3).permute(2, 0, 1).to(self.models.device)

    @property
    def _gem_side(self) -> int:
        return self.config.gem.resolution_factor * self.clip.image_size

    def _features_key(self, image: RgbImage, proposals: Proposals) -> str:
        fusion = self.config.fusion
        settings = {
            **self._tokens_settings(proposals),
            "mode": fusion.mode.value,
            "stream_weight": fusion.stream_weight,
            "skips_last_block": self.quirks.attention_masking_skips_last_block,
        }
        return stage_key(image, "features", settings)

    def _tokens_settings(self, proposals: Proposals) -> dict[str, Any]:
        quirks = self.quirks
        return {
            "masks": masks_sha256(proposals),
            "clip": self.models.sha256("clip"),
            "device": self.models.device.type,
            "dtype": self.models.numerics("clip"),
            "masking_block": self.config.fusion.masking_block,
            "views": [
                quirks.local_view_imagenet_unnormalised_fill,
                quirks.global_view_imagenet_statistics,
            ],
        }

    def _gem_settings(self) -> dict[str, Any]:
        return {
            "clip": self.models.sha256("clip"),
            "device": self.models.device.type,
            "dtype": self.models.numerics("clip"),
            "config": dataclasses.asdict(self.config.gem),
        }


def _box(proposals: Proposals, index: int) -> tuple[int, int, int, int]:
    x, y, w, h = proposals.boxes_xywh[index].tolist()
    return x, y, w, h


def _doubles(tensor: Tensor) -> NDArray[np.float64]:
    return np.asarray(tensor.double().cpu().numpy())
