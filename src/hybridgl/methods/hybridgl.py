"""HybridGL: hybrid global-local features of every mask, and spatial guidance of the choice.

With a store, what an image has been through once is read back: entries are keyed by the content
that they were made from, never by a position in a list.

Source: HybridGL (CVPR 2025, arXiv 2504.00356).
Shapes: N proposals, H x W image pixels, S sentences or phrases of one image, K candidates,
E embedding width, T tokens, D width, R side of CLIP's input, g patches along each side of GEM's
input.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hybridgl import gem, guidance, views
from hybridgl.config import (
    KNOWS_SHAPES_ONLY,
    SHAPES,
    FusionMode,
    HybridGLConfig,
    ModelConfig,
    Profile,
    ProposalConfig,
    ReferenceQuirks,
)
from hybridgl.devices import send
from hybridgl.errors import HybridGLError, ImageError, SettingError, WeightsError
from hybridgl.fusion import fuse, stream_tokens
from hybridgl.images import ImageSource, RgbImage
from hybridgl.language import (
    ParsedExpression,
    Position,
    check_unicode,
    expression_features,
    parse_sentences,
)
from hybridgl.masks import Proposals
from hybridgl.methods import Method, Prediction, Scores
from hybridgl.models import Models
from hybridgl.models.clip import ClipEncoder
from hybridgl.proposals import SamProposals
from hybridgl.results import PackedProposals, Segmentation
from hybridgl.settings import settings_of
from hybridgl.store import Content, Store, cached
from hybridgl.timing import timer

__all__ = ["HybridGL"]

_logger = logging.getLogger(__name__)

_Opened = RgbImage | ImageError
"""An image, or why it is none."""

_MAPS_PER_CHUNK = 16
"""Attention maps of one chunk, whatever the memory."""


class HybridGL(Method):
    """Zero-shot referring image segmentation.

    Args:
        models: CLIP, SAM and the parser.
        config: settings of the method.
        store: keeps the results of stages; None computes them every time. With ``keep_tokens`` it
            gets what enters the blocks in which masks act too, 1.2 MB a mask for ViT-B/16, so that
            another fusion mode takes a fraction of the time, with the same results.
        proposals: settings of SAM's mask generator for ``segment``; ``score`` gets its masks.

    Example:
        >>> image = np.full((224, 256, 3), 140, dtype=np.uint8)
        >>> image[60:120, 40:100] = (214, 38, 40)
        >>> result = HybridGL.from_pretrained("tiny").segment(image, "the red square")
        >>> bool(result.mask[90, 70]), bool(result.mask[200, 200])
        (True, False)
    """

    name: ClassVar[str] = "hybridgl"
    variants: ClassVar[tuple[str, ...]] = ("features", "relations", "guided")
    models_needed: ClassVar[tuple[str, ...]] = ("clip", "parser")
    Config: ClassVar[type[HybridGLConfig]] = HybridGLConfig
    config: HybridGLConfig

    def __init__(
        self,
        models: Models,
        config: HybridGLConfig,
        store: Store | None = None,
        *,
        proposals: ProposalConfig | None = None,
    ) -> None:
        super().__init__(models, config, store)
        self._sam = SamProposals(models, proposals or ProposalConfig(), store)
        self._stream_tokens = models.compiled(stream_tokens)
        self._fuse = models.compiled(fuse)
        self._patch_features = models.compiled(gem.patch_features)

    @classmethod
    def from_pretrained(
        cls,
        weights: str = "paper",
        *,
        profile: str = "corrected",
        store: Store | None = None,
        **settings: Any,
    ) -> HybridGL:
        """Build a model for images of one's own.

        Args:
            weights: "paper", for photographs: `hybridgl download paper` fetches its files; or
                "tiny", bundled in the package, which knows coloured shapes only.
            profile: "corrected", what the method is meant to be; or "reference", what the released
                program computes, quirks included.
            store: keeps the results of stages.
            settings: any setting of the command ``hybridgl segment`` by its flag's name, such as
                ``device="cuda"``, ``fusion_mode="both"``, ``alpha=0.5``, ``sam_type="vit_b"``,
                ``clip_weights``, ``spacy_model`` or ``dtype="bfloat16"``.

        Raises:
            SettingError: a wrong name or value.
            WeightsError: models that are missing; one line names the command that fetches them.
        """
        try:
            quirks = ReferenceQuirks.of(Profile(profile))
        except ValueError:
            names = " or ".join(repr(known.value) for known in Profile)
            raise SettingError(
                f"Expected the profile {names}, got {profile!r}; choose one of them."
            ) from None
        given = settings_of(settings | {"weights": weights}, ModelConfig, cls.Config)
        config = cls.Config.from_arguments(given, quirks=quirks)
        return cls.from_config(ModelConfig.from_arguments(given), config, store)

    @classmethod
    def from_config(
        cls, chosen: ModelConfig, config: HybridGLConfig, store: Store | None = None
    ) -> HybridGL:
        """Build a model for images of one's own from whole configurations.

        Args:
            chosen: which models, and how they run.
            config: settings of the method.
            store: keeps the results of stages.

        Raises:
            SettingError: a wrong name.
            WeightsError: models that are missing; one line names the command that fetches them.
        """
        resolved = chosen.resolved(published_clip=cls.Config.published_clip)
        models = Models.from_config(resolved)
        models.require("clip", "sam", "parser")
        if resolved.weights == SHAPES:
            _logger.warning(KNOWS_SHAPES_ONLY)
        return cls(models, config, store, proposals=resolved.proposals)

    @cached_property
    def clip(self) -> ClipEncoder:
        """CLIP, loaded at first use.

        Raises:
            WeightsError: it is no vision transformer, or has fewer blocks than the settings need.
        """
        clip = self.models.clip
        blocks = len(clip.visual.transformer.resblocks)
        fusion = self.config.fusion
        leaves_out_last = (
            fusion.fusion_mode is FusionMode.ATTENTION_MASKING
            and self.config.quirks.attention_masking_skips_last_block
        )
        needed = max(fusion.masking_block + 1 + leaves_out_last, self.config.gem.depth)
        if blocks < needed:
            lower = ", or a lower --masking_block" if blocks >= self.config.gem.depth else ""
            raise WeightsError(
                f"Expected a CLIP of at least {needed} vision blocks in "
                f"{self.models.weights.clip_weights}, got {blocks}; use ViT-B-16{lower}."
            )
        return clip

    # ---- one image for its user

    def segment(
        self, image: ImageSource, expression: str, *, reject_below: float | None = None
    ) -> Segmentation:
        """Segment what an expression refers to.

        Args:
            image: path, PIL image, or RGB array (H, W, 3) of uint8.
            expression: as people write it; must not be blank.
            reject_below: least similarity of a prediction; below it nothing matches. None accepts
                any: the best of the proposals, however poor, is predicted.

        Raises:
            HybridGLError: the image cannot be read or the expression is blank.
        """
        (result,) = self.segment_each(image, [expression], reject_below=reject_below)
        if result.error is not None:
            raise result.error
        return result

    def segment_all(
        self,
        images: ImageSource | Iterable[ImageSource],
        expressions: Iterable[str],
        *,
        reject_below: float | None = None,
    ) -> list[Segmentation]:
        """Segment many expressions; each distinct image and sentence is computed once.

        Args:
            images: one for every expression, of which the same may come again; or a single one for
                all.
            expressions: as for ``segment``.
            reject_below: as for ``segment``.

        Returns:
            One result for every pair, in their order. What cannot be segmented, such as an image
            that is cut short, has an ``error`` and leaves the others as they are.

        Raises:
            SettingError: another number of images than of expressions, or a text for a list.
        """
        pairs = list(_pairs(images, expressions))
        identities: dict[int, str] = {}
        rows_of: dict[str, list[int]] = {}
        for row, (source, _) in enumerate(pairs):
            if id(source) not in identities:
                identities[id(source)] = _identity(_open(source))
            rows_of.setdefault(identities[id(source)], []).append(row)
        results: dict[int, Segmentation] = {}
        for rows in rows_of.values():
            # Opened again, so that the pixels of one image at a time are in memory.
            image, some = _open(pairs[rows[0]][0]), [pairs[row][1] for row in rows]
            made = self._segment_image(image, some, reject_below)
            results.update(zip(rows, made, strict=True))
        return [results[row] for row in range(len(pairs))]

    def segment_each(
        self,
        images: ImageSource | Iterable[ImageSource],
        expressions: Iterable[str],
        *,
        reject_below: float | None = None,
    ) -> Iterator[Segmentation]:
        """Segment a stream of expressions, as ``segment_all`` but image by image.

        Both arguments may be generators, which are drawn as results are: one image is worked on and
        the next one opened. Expressions of an image are computed together where they follow each
        other.

        Args:
            images: as for ``segment_all``.
            expressions: as for ``segment``.
            reject_below: as for ``segment``.

        Returns:
            One result for every pair, in their order, with errors as in ``segment_all``.

        Raises:
            SettingError: as ``segment_all``; where the arguments have no length, at their end.
        """
        pairs = _pairs(images, expressions)
        opened = ((_open(source), expression) for source, expression in pairs)
        groups = itertools.groupby(opened, key=lambda pair: _identity(pair[0]))
        together = (list(group) for _, group in groups)
        return itertools.chain.from_iterable(
            self._segment_image(pairs[0][0], [text for _, text in pairs], reject_below)
            for pairs in together
        )

    def _segment_image(
        self, image: _Opened, expressions: Sequence[str], reject_below: float | None
    ) -> Iterator[Segmentation]:
        """Segment all expressions of one image, in their order."""
        errors: list[HybridGLError | None] = [_refusal(expression) for expression in expressions]
        try:
            if isinstance(image, ImageError):
                raise image
            _ = image.pixels_HW3
        except ImageError as error:
            errors = [refusal or error for refusal in errors]
        readable = [text for text, error in zip(expressions, errors, strict=True) if not error]
        made: Iterator[Segmentation] = iter(())
        if readable:
            assert isinstance(image, RgbImage)
            proposals = self._sam.propose(image)
            scored = self.score(image, readable, proposals)
            packed = PackedProposals(proposals)
            made = (self._segmentation(packed, scores, reject_below) for scores in scored)
        for text, refusal in zip(expressions, errors, strict=True):
            yield Segmentation.failed(str(text), refusal) if refusal else next(made)

    # ---- the method, as an evaluation runs it

    def load(self) -> None:
        """Load the models, so that a wrong file is found before any work.

        Raises:
            WeightsError: a file is damaged or of another architecture.
        """
        super().load()
        _ = self.clip

    @torch.inference_mode()
    def score(
        self, image: RgbImage, sentences: Sequence[str], proposals: Proposals
    ) -> list[Scores]:
        """Compute everything that the predictions of one image's sentences depend on.

        Args:
            image: the image.
            sentences: raw.
            proposals: the image's masks, from SAM or anywhere else.

        Returns:
            For every sentence ``similarity_N``, ``coherence_N`` (0 where that term is off),
            ``boxes_xywh``, where there are other nouns ``other_noun_similarity_N``, and where
            attention maps are needed ``patch_similarity_gg``; as JSON what was read off it.
        """
        scoring = partial(self._score, image, sentences, proposals)
        return self.models.batches.run(scoring, "masks")

    def _score(
        self, image: RgbImage, sentences: Sequence[str], proposals: Proposals
    ) -> list[Scores]:
        """Score with the batch sizes in use."""
        expressions = self.parse(sentences)
        count = len(proposals)
        coherence_SN = np.zeros((len(expressions), count))
        sim_Sgg: Tensor | None = None
        if self.config.guidance.uses("coherence"):
            sim_Sgg = self.patch_similarity(image, [e.noun_phrase for e in expressions])
            if count:
                coherence_SN = self._coherence(proposals.masks_NHW, image.hw, sim_Sgg, expressions)
        similarity_SN = other_SN = np.zeros((len(expressions), 0))
        if count:
            features_NE = self.features(image, proposals)
            with timer("text features"):
                texts = expression_features(self.clip.encode_texts, expressions, self.config.text)
            with timer("guidance"):
                similarity_SN, other_SN = (
                    _doubles(guidance.similarity_scores(features_NE, some, self.clip.logit_scale))
                    for some in (texts.expression_SE, texts.other_nouns_SE)
                )
        boxes_xywh = proposals.boxes_xywh.astype(np.float64)
        scored = []
        for row, expression in enumerate(expressions):
            arrays = {
                "similarity_N": similarity_SN[row],
                "coherence_N": coherence_SN[row],
                "boxes_xywh": boxes_xywh,
            }
            if count and expression.other_noun_phrases:
                arrays["other_noun_similarity_N"] = other_SN[row]
            if sim_Sgg is not None:
                arrays["patch_similarity_gg"] = sim_Sgg[row].numpy()
            meta = {
                "expression": expression.json(),
                "truncated": self.clip.is_truncated(expression.sentence),
                "attention_side": self._gem_side,
            }
            scored.append(Scores(arrays, meta))
        return scored

    @timer("guidance")
    def choose(self, scores: Scores, /, *, k_limit: int | None = None) -> Prediction:
        """Predict what one sentence refers to.

        Args:
            scores: from ``score``.
            k_limit: running limit on top-k (quirk Q5); None limits it by the proposals alone.
        """
        arrays, expression = scores.arrays, ParsedExpression.from_json(scores.meta["expression"])
        similarity_N = arrays["similarity_N"]
        choice, chosen_by = None, {}
        if len(similarity_N):
            choice = guidance.choose(
                similarity_N,
                arrays.get("other_noun_similarity_N"),
                arrays["coherence_N"],
                arrays["boxes_xywh"],
                expression.relation,
                self.config.guidance,
                undefined_scores_win=self.config.quirks.undefined_scores_win,
                k_limit=k_limit,
            )
            chosen_by = {
                "features": float(similarity_N[choice.features]),
                "relations": choice.score_of(choice.relations, choice.relation_K),
                "guided": choice.score_of(choice.guided, choice.final_K),
            }
        attention = None
        if "patch_similarity_gg" in arrays:
            # Holds no model, so that it travels with a result.
            attention = partial(
                _attention_map,
                arrays["patch_similarity_gg"],
                scores.meta["attention_side"],
                position=self._prior_of(expression),
                vertical_priors_disabled=self.config.quirks.vertical_priors_disabled,
            )
        return Prediction(
            proposals={v: getattr(choice, v) for v in self.variants} if choice else {},
            scores=chosen_by,
            expression=expression,
            truncated=scores.meta["truncated"],
            similarity_N=similarity_N,
            choice=choice,
            attention=attention,
        )

    # ---- the stages

    def parse(self, sentences: Sequence[str]) -> list[ParsedExpression]:
        """Read noun phrase, other nouns, position and relation off raw sentences."""
        return parse_sentences(
            self.models,
            self.store,
            sentences,
            right_relation_never_matches=self.config.quirks.right_relation_never_matches,
        )

    def features(self, image: RgbImage, proposals: Proposals) -> Tensor:
        """Compute CLIP features of the proposals.

        Returns:
            float32, (N, E), un-normalised.
        """

        def compute() -> Content:
            if self.store is not None and self.store.keep_tokens:
                features_NE = self._features_of_tokens(image, proposals)
            else:
                features_NE = self.compute_features(image.pixels_HW3, proposals.masks_NHW)
            return {"features_NE": features_NE.cpu().numpy()}, {}

        inputs = {
            **self._tokens_inputs(image, proposals),
            "fusion": self.config.fusion.json(),
            "skips_last_block": self.config.quirks.attention_masking_skips_last_block,
        }
        entry = cached(self.store, "features", inputs, compute)
        return send(torch.from_numpy(entry.arrays["features_NE"]), self.models.device)

    @torch.inference_mode()
    def compute_features(
        self, image_HW3: NDArray[np.uint8], masks_NHW: NDArray[np.bool_]
    ) -> Tensor:
        """Compute CLIP features of any masks, in chunks of bounded memory and without the store.

        Args:
            image_HW3: RGB, uint8, (H, W, 3).
            masks_NHW: bool, (N, H, W).

        Returns:
            float32, (N, E), un-normalised.
        """
        views_of = [self._views(image_HW3, stream) for stream in self._streams]
        chunks = []
        for masks in self._chunks(masks_NHW):
            tokens = [self._tokens(of_masks, masks) for of_masks in views_of]
            chunks.append(self._fused(masks, *tokens))
        return torch.cat(chunks)

    @torch.inference_mode()
    def patch_similarity(self, image: RgbImage, phrases: Sequence[str]) -> Tensor:
        """Compute GEM's cosines of an image's patches with noun phrases.

        Every phrase of an image is an entry of the store; the image pass runs once for those that
        are missing.

        Returns:
            float32, (S, g, g), on the CPU.
        """
        inputs = {
            "image": image.sha256,
            "clip": self.models.sha256("clip"),
            "device": self.models.device.type,
            "numerics": self.models.numerics("clip"),
            "gem": self.config.gem.json(),
        }
        made: dict[str, Tensor] = {}
        distinct = list(dict.fromkeys(phrases))

        def compute(phrase: str) -> Content:
            if not made:
                made.update(zip(distinct, self._compute_similarity(image, distinct), strict=True))
            return {"sim_gg": made[phrase].numpy()}, {"phrase": phrase}

        sim_of = {}
        for phrase in distinct:
            keyed = {**inputs, "phrase": phrase}
            entry = cached(self.store, "gem", keyed, partial(compute, phrase))
            sim_of[phrase] = torch.from_numpy(entry.arrays["sim_gg"])
        return torch.stack([sim_of[phrase] for phrase in phrases])

    @torch.inference_mode()
    def _features_of_tokens(self, image: RgbImage, proposals: Proposals) -> Tensor:
        """Compute features through the store's tokens, which are made if it lacks them."""
        tokens = [self._stored_tokens(image, proposals, stream) for stream in self._streams]
        chunks, start = [], 0
        for masks in self._chunks(proposals.masks_NHW):
            some = slice(start, start := start + len(masks))
            chunks.append(self._fused(masks, *(send(t[some], self.models.device) for t in tokens)))
        return torch.cat(chunks)

    @property
    def _streams(self) -> tuple[str, ...]:
        """Names of the streams that the fusion mode reads."""
        both = self.config.fusion.fusion_mode.reads_global_view
        return ("local", "global") if both else ("local",)

    def _stored_tokens(self, image: RgbImage, proposals: Proposals, stream: str) -> Tensor:
        """Tokens of one stream before the masked blocks, float32, (N, T, D), on the CPU."""

        def compute() -> Content:
            views_of = self._views(image.pixels_HW3, stream)
            # To the CPU chunk by chunk, so that a GPU need not hold all of them.
            chunks = self._chunks(proposals.masks_NHW)
            made = [self._tokens(views_of, masks).cpu() for masks in chunks]
            return {"tokens_NTD": torch.cat(made).numpy()}, {}

        inputs = {**self._tokens_inputs(image, proposals), "stream": stream}
        entry = cached(self.store, "tokens", inputs, compute)
        return torch.from_numpy(entry.arrays["tokens_NTD"])

    def _views(self, image_HW3: NDArray[np.uint8], stream: str) -> Callable[[Tensor], Tensor]:
        """Return what makes the views of masks for a stream."""
        quirks, side = self.config.quirks, self.clip.image_size
        image_3HW = self._channels_first(image_HW3)
        if stream == "local":
            return lambda masks_NHW: views.local_views(image_3HW, masks_NHW, side, quirks)
        with timer("views"):
            blurred_3HW = self._channels_first(views.blur_background(image_HW3))
        return lambda masks_NHW: views.global_views(image_3HW, blurred_3HW, masks_NHW, side, quirks)

    def _tokens(self, views_of: Callable[[Tensor], Tensor], masks_NHW: Tensor) -> Tensor:
        with timer("views"):
            views_N3RR = views_of(masks_NHW)
        with timer("features"):
            return self._stream_tokens(
                self.clip.visual, views_N3RR, self.config.fusion.masking_block
            )

    def _fused(
        self, masks_NHW: Tensor, local_NTD: Tensor, global_NTD: Tensor | None = None
    ) -> Tensor:
        skips = self.config.quirks.attention_masking_skips_last_block
        with timer("views"):
            coverage_NP = views.patch_coverage(masks_NHW, self.clip.grid)
        with timer("features"):
            return self._fuse(
                self.clip.visual,
                local_NTD,
                global_NTD,
                coverage_NP,
                self.config.fusion,
                attention_masking_skips_last_block=skips,
            )

    def _chunks(self, masks_NHW: NDArray[np.bool_]) -> Iterator[Tensor]:
        """Masks on the device, as many at a time as are worked on at once."""
        at_once = views.masks_per_chunk(masks_NHW.shape[1:], self.models.batches.sizes.masks)
        for chunk_NHW in torch.from_numpy(masks_NHW).split(at_once):
            yield send(chunk_NHW, self.models.device)

    @timer("gem")
    def _compute_similarity(self, image: RgbImage, phrases: Sequence[str]) -> Tensor:
        """GEM's cosines without the store; on the CPU."""
        config = self.config.gem
        texts_SE = self.clip.encode_texts([config.prompt.format(phrase) for phrase in phrases])
        images_13RR = send(gem.gem_input(image.pil, self._gem_side)[None], self.models.device)
        patches_BPE = self._patch_features(self.clip.visual, images_13RR, config)
        return gem.patch_similarity(patches_BPE[0], texts_SE).cpu()

    @timer("guidance")
    def _coherence(
        self,
        masks_NHW: NDArray[np.bool_],
        hw: tuple[int, int],
        sim_Sgg: Tensor,
        expressions: Sequence[ParsedExpression],
    ) -> NDArray[np.float64]:
        sim_Sgg = send(sim_Sgg, self.models.device)
        undefined_win = self.config.quirks.undefined_scores_win
        rows = []
        step = min(_MAPS_PER_CHUNK, views.masks_per_chunk(hw, self.models.batches.sizes.masks))
        for start in range(0, len(expressions), step):
            some = expressions[start : start + step]
            some_Sgg = sim_Sgg[start : start + len(some)]
            attention_SHW = _attention_maps(
                some_Sgg,
                self._gem_side,
                hw,
                [self._prior_of(expression) for expression in some],
                vertical_priors_disabled=self.config.quirks.vertical_priors_disabled,
                undefined_scores_win=undefined_win,
            )
            weights = [guidance.outside_weight(e.relation, self.config.guidance) for e in some]
            columns = [
                guidance.coherence_scores(
                    attention_SHW, chunk_NHW, weights, undefined_scores_win=undefined_win
                )
                for chunk_NHW in self._chunks(masks_NHW)
            ]
            rows.append(torch.cat(columns, dim=1))
        return _doubles(torch.cat(rows))

    def _prior_of(self, expression: ParsedExpression) -> Position:
        """Return the position whose prior counts."""
        counts = self.config.guidance.uses("position")
        return expression.position if counts else Position.NONE

    def _segmentation(
        self, packed: PackedProposals, scores: Scores, reject_below: float | None
    ) -> Segmentation:
        prediction = self.choose(scores)
        assert prediction.expression is not None
        return Segmentation.of(
            prediction,
            prediction.expression,
            packed,
            reject_below=reject_below,
            unmet_words=self.clip.unmet_words(prediction.expression.sentence),
        )

    def _channels_first(self, image_HW3: NDArray[np.uint8]) -> Tensor:
        return send(torch.from_numpy(image_HW3), self.models.device).permute(2, 0, 1)

    @property
    def _gem_side(self) -> int:
        return self.config.gem.resolution_factor * self.clip.image_size

    def _tokens_inputs(self, image: RgbImage, proposals: Proposals) -> dict[str, Any]:
        quirks = self.config.quirks
        return {
            "image": image.sha256,
            "masks": proposals.sha256(),
            "clip": self.models.sha256("clip"),
            "device": self.models.device.type,
            "numerics": self.models.numerics("clip"),
            "masking_block": self.config.fusion.masking_block,
            "views": [
                quirks.local_view_imagenet_unnormalised_fill,
                quirks.global_view_imagenet_statistics,
            ],
        }


def _attention_maps(
    sim_Sgg: Tensor,
    side: int,
    hw: tuple[int, int],
    positions: Sequence[Position],
    *,
    vertical_priors_disabled: bool,
    undefined_scores_win: bool = False,
) -> Tensor:
    """Attention maps under their position priors, float32, (S, H, W)."""
    priors = [
        guidance.position_prior(position, hw, vertical_priors_disabled=vertical_priors_disabled)
        for position in positions
    ]
    attention_SHW = gem.attention_map(sim_Sgg, side, hw)
    return guidance.weighted_attention(
        attention_SHW, priors, undefined_scores_win=undefined_scores_win
    )


def _attention_map(
    sim_gg: NDArray[np.float32],
    side: int,
    hw: tuple[int, int],
    *,
    position: Position,
    vertical_priors_disabled: bool,
) -> NDArray[np.float32]:
    """Attention map of one sentence under its position prior, mean 1, float32, (H, W)."""
    (map_HW,) = _attention_maps(
        torch.from_numpy(sim_gg)[None],
        side,
        hw,
        [position],
        vertical_priors_disabled=vertical_priors_disabled,
    )
    return np.asarray(map_HW.numpy())


_END = object()


def _pairs(
    images: ImageSource | Iterable[ImageSource], expressions: Iterable[str]
) -> Iterator[tuple[ImageSource | _Opened, str]]:
    """Pair images with expressions; one image alone is opened once, for all."""
    if isinstance(expressions, str):
        raise SettingError(
            f"Expected a list of expressions, got the text {expressions!r}; put it into a list."
        )
    if isinstance(images, str | Path | Image.Image | np.ndarray):
        return zip(itertools.repeat(_open(images)), expressions, strict=False)
    if isinstance(images, Sized) and isinstance(expressions, Sized):
        _check_lengths(len(images), len(expressions))
    return _paired(images, expressions)


def _paired(
    images: Iterable[ImageSource], expressions: Iterable[str]
) -> Iterator[tuple[ImageSource, str]]:
    """Pair streams, of which none may end before the other."""
    first, second = iter(images), iter(expressions)
    for number in itertools.count():
        image, expression = next(first, _END), next(second, _END)
        if image is _END and expression is _END:
            return
        if image is _END or expression is _END:
            _check_lengths(number + (image is not _END), number + (expression is not _END))
        yield cast(ImageSource, image), cast(str, expression)


def _check_lengths(num_images: int, num_expressions: int) -> None:
    if num_images != num_expressions:
        raise SettingError(
            f"Expected as many images as expressions, or one for all, got {num_images} and "
            f"{num_expressions}; repeat an image for each of its expressions."
        )


def _open(source: ImageSource | _Opened) -> _Opened:
    """Open an image; return the error where there is none."""
    if isinstance(source, _Opened):
        return source
    try:
        return RgbImage(source)
    except ImageError as error:
        return error


def _identity(image: _Opened) -> str:
    """Return what only the very same image has."""
    return image.sha256 if isinstance(image, RgbImage) else str(image)


def _refusal(expression: object) -> SettingError | None:
    """Return why an expression cannot be read; None where it can."""
    if not isinstance(expression, str) or not expression.strip():
        return SettingError(
            f"Expected an expression in words, got {expression!r}; say what to segment."
        )
    try:
        check_unicode(expression)
    except SettingError as error:
        return error
    return None


def _doubles(tensor: Tensor) -> NDArray[np.float64]:
    return np.asarray(tensor.double().cpu().numpy())
