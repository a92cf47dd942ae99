"""Global-Local CLIP: every mask described by its place in the image and by its crop.

A baseline, written from the formulas. Source: Yu et al., "Zero-shot Referring Image Segmentation
with Global-Local Context Features" (CVPR 2023, arXiv 2303.17811), section 3, with the settings of
its program; quirks Q7 and Q8 of docs/quirks.md.

Shapes: N masks, H x W image pixels, R side of CLIP's input, G side of its last grid, P = G * G,
S sentences, E embedding width. Boxes are x1, y1, x2, y2 in pixels, right and bottom exclusive.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property, partial
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hybridgl import views
from hybridgl.config import CropBox, FusionConfig, FusionMode, GlobalLocalConfig
from hybridgl.devices import send
from hybridgl.errors import SettingError, WeightsError
from hybridgl.fusion import mask_features
from hybridgl.guidance import similarity_scores
from hybridgl.images import RgbImage, resized
from hybridgl.language import ParsedExpression, expression_features, parse_sentences
from hybridgl.masks import Proposals
from hybridgl.methods import Method, Prediction, Scores
from hybridgl.models.clip import ClipEncoder, ResNetTower
from hybridgl.store import Content, cached
from hybridgl.timing import timer

__all__ = [
    "GlobalLocalClip",
    "crop_features",
    "crop_views",
    "global_features",
    "mask_boxes",
    "resized_image",
]

_SHORTER_SIDE = 800
"""Pixels that the image is scaled to before anything else, as for detectors."""


def resized_image(image: Image.Image) -> Tensor:
    """Scale the image that both features are made from.

    Args:
        image: RGB.

    Returns:
        float32, (3, h, w), the shorter side 800 pixels (bilinear, antialiased), normalised with
        ImageNet's statistics.
    """
    # torchvision's rounding: the longer side is cut, not rounded.
    width, height = (_SHORTER_SIDE * side // min(image.size) for side in image.size)
    resized_hw3 = np.array(resized(image, (width, height), Image.Resampling.BILINEAR))
    resized_3hw = torch.from_numpy(resized_hw3).permute(2, 0, 1).float()
    return views.normalise(resized_3hw / 255, views.IMAGENET_MEAN, views.IMAGENET_STD)


def mask_boxes(masks_NHW: Tensor, crop_box: CropBox = CropBox.TIGHT) -> Tensor:
    """Find the boxes that masks are cropped to.

    Args:
        masks_NHW: bool, (N, H, W).
        crop_box: rule of the box.

    Returns:
        int64, (N, 4): x1, y1, x2, y2, right and bottom exclusive, at least one pixel; the first
        pixel for an empty mask.

    Example:
        >>> mask_boxes(torch.tensor([[[False, True, True], [False, False, False]]])).tolist()
        [[1, 0, 3, 1]]
    """
    ends_of = _tight_ends if crop_box is CropBox.TIGHT else _freesolo_ends
    ends = [ends_of(masks_NHW.any(dim=axis).long()) for axis in (1, 2)]
    starts_N2 = torch.stack([start_N for start_N, _ in ends], dim=1)
    stops_N2 = torch.stack([stop_N for _, stop_N in ends], dim=1)
    return torch.cat([starts_N2, torch.maximum(stops_N2, starts_N2 + 1)], dim=1)


def _tight_ends(occupied_NW: Tensor) -> tuple[Tensor, Tensor]:
    """Find the first occupied place along an axis, W or H, and the one after the last."""
    first_N = occupied_NW.argmax(dim=1)
    after_N = occupied_NW.shape[1] - occupied_NW.flip(1).argmax(dim=1)
    return first_N, torch.where(occupied_NW.any(dim=1), after_N, first_N)


def _freesolo_ends(occupied_NW: Tensor) -> tuple[Tensor, Tensor]:
    """Find c - s / 2 and c + s / 2, cut to whole pixels: c the mean, s the number of places."""
    places_W = torch.arange(occupied_NW.shape[1], device=occupied_NW.device)
    number_N = occupied_NW.sum(dim=1)
    twice_sum_N = 2 * (occupied_NW * places_W).sum(dim=1)
    starts_and_stops = (
        (twice_sum_N + sign * number_N**2).clamp(min=0) // (2 * number_N).clamp(min=1)
        for sign in (-1, 1)
    )
    start_N, stop_N = starts_and_stops
    return start_N, stop_N


def crop_views(
    image_3HW: Tensor,
    masks_NHW: Tensor,
    side: int,
    *,
    unnormalised_fill: bool,
    crop_box: CropBox = CropBox.TIGHT,
) -> Tensor:
    """Draw every mask's object on a filled background, cropped to its box, resized to CLIP's input.

    Equal to filling, cropping and resizing (bilinear, without antialiasing) each mask in turn; the
    four pixels that each output pixel reads are gathered from the image at once.

    Args:
        image_3HW: from ``resized_image`` at the size of the masks, float32, (3, H, W).
        masks_NHW: bool, (N, H, W), on the same device.
        side: R, in pixels.
        unnormalised_fill: quirk Q7: ImageNet's pixel mean as it is; otherwise 0, which stands for
            that colour among normalised pixels.
        crop_box: rule of the box; pixels of a mask outside it are not seen.

    Returns:
        float32, (N, 3, R, R).
    """
    fill = views.IMAGENET_MEAN if unnormalised_fill else (0.0, 0.0, 0.0)
    fill_1311 = views.channel_values(fill, image_3HW.device)[None]
    x1_N, y1_N, x2_N, y2_N = mask_boxes(masks_NHW, crop_box).unbind(dim=1)
    left_NR, right_NR, to_right_NR = views.bilinear_taps(x1_N, x2_N, side)
    upper_NR, lower_NR, to_lower_NR = views.bilinear_taps(y1_N, y2_N, side)
    mask_index_N11 = torch.arange(len(masks_NHW), device=masks_NHW.device)[:, None, None]

    def pixels(y_NR: Tensor, x_NR: Tensor) -> Tensor:
        y_NR1, x_N1R = y_NR[:, :, None], x_NR[:, None, :]
        inside_N1RR = masks_NHW[mask_index_N11, y_NR1, x_N1R][:, None]
        return torch.where(inside_N1RR, image_3HW[:, y_NR1, x_N1R].transpose(0, 1), fill_1311)

    to_right_N11R, to_lower_N1R1 = to_right_NR[:, None, None, :], to_lower_NR[:, None, :, None]
    upper_N3RR = (1 - to_right_N11R) * pixels(upper_NR, left_NR)
    upper_N3RR += to_right_N11R * pixels(upper_NR, right_NR)
    lower_N3RR = (1 - to_right_N11R) * pixels(lower_NR, left_NR)
    lower_N3RR += to_right_N11R * pixels(lower_NR, right_NR)
    return (1 - to_lower_N1R1) * upper_N3RR + to_lower_N1R1 * lower_N3RR


def global_features(
    clip: ClipEncoder, image_13RR: Tensor, coverage_NP: Tensor, masking_block: int
) -> Tensor:
    """Compute CLIP features of masks in their image.

    Args:
        clip: a vision transformer, whose patches masks weigh before the last blocks, or a ResNet,
            whose last feature map, in length 1, they weigh before its pooling.
        image_13RR: the image at CLIP's input size, float32.
        coverage_NP: share of the mask in every place of the grid, float32, (N, P).
        masking_block: first block of a vision transformer before which masks act.

    Returns:
        float32, (N, E), not normalised.
    """
    if clip.resnet:
        map_1DGG = F.normalize(_feature_map(clip.resnet, image_13RR), dim=1)
        pooled_NE: Tensor = clip.resnet.attnpool(
            map_1DGG * coverage_NP.unflatten(1, (1, clip.grid, clip.grid))
        )
        return pooled_NE
    config = FusionConfig(fusion_mode=FusionMode.TOKEN_MASKING, masking_block=masking_block)
    return mask_features(
        clip.visual,
        image_13RR,
        image_13RR,
        coverage_NP,
        config,
        attention_masking_skips_last_block=False,  # of another mode
    )


def crop_features(clip: ClipEncoder, crops_N3RR: Tensor) -> Tensor:
    """Compute CLIP features of crops, float32, (N, E); those of a ResNet have length 1."""
    features_NE = clip.encode_images(crops_N3RR)
    return F.normalize(features_NE, dim=-1) if clip.resnet else features_NE


class GlobalLocalClip(Method):
    """The baseline on masks from any source.

    Args:
        models: hold CLIP and the parser.
        config: settings.
        store: keeps features and parses; None computes them every time.
    """

    name: ClassVar[str] = "global_local"
    variants: ClassVar[tuple[str, ...]] = ("features",)
    models_needed: ClassVar[tuple[str, ...]] = ("clip", "parser")
    Config: ClassVar[type[GlobalLocalConfig]] = GlobalLocalConfig
    config: GlobalLocalConfig

    @cached_property
    def clip(self) -> ClipEncoder:
        """CLIP, loaded at first use.

        Raises:
            WeightsError: a vision transformer with fewer blocks than the settings need.
        """
        clip = self.models.clip
        needed = self.config.blocks.masking_block + 1
        if not clip.resnet and len(clip.visual.transformer.resblocks) < needed:
            raise WeightsError(
                f"Expected a CLIP of at least {needed} vision blocks in "
                f"{self.models.weights.clip_weights}, got "
                f"{len(clip.visual.transformer.resblocks)}; lower --masking_block."
            )
        return clip

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
        """Compute the similarity of every proposal with every sentence of one image.

        Args:
            image: the image.
            sentences: raw.
            proposals: the image's masks.
        """
        scoring = partial(self._score, image, sentences, proposals)
        return self.models.batches.run(scoring, "masks")

    def _score(
        self, image: RgbImage, sentences: Sequence[str], proposals: Proposals
    ) -> list[Scores]:
        """Score with the batch sizes in use."""
        right_never = self.config.quirks.right_relation_never_matches
        expressions = parse_sentences(
            self.models, self.store, sentences, right_relation_never_matches=right_never
        )
        similarity_SN = np.zeros((len(expressions), 0))
        if len(proposals):
            similarity_SN = self._similarity(self.features(image, proposals), expressions)
        return [
            Scores(
                {"similarity_N": similarity_N},
                {
                    "expression": expression.json(),
                    "truncated": self.clip.is_truncated(expression.sentence),
                },
            )
            for expression, similarity_N in zip(expressions, similarity_SN, strict=True)
        ]

    def choose(self, scores: Scores, /, *, k_limit: int | None = None) -> Prediction:
        """Predict the most similar proposal, the first of equal ones.

        Args:
            scores: from ``score``.
            k_limit: not read: the best proposal is within every limit.
        """
        similarity_N = scores.arrays["similarity_N"]
        best = int(similarity_N.argmax()) if len(similarity_N) else None
        return Prediction(
            proposals={} if best is None else {"features": best},
            scores={} if best is None else {"features": float(similarity_N[best])},
            expression=ParsedExpression.from_json(scores.meta["expression"]),
            truncated=scores.meta["truncated"],
            similarity_N=similarity_N,
        )

    @property
    def skips_without_proposals(self) -> bool:
        """Whether samples without proposals are left out of the scores (quirk Q8)."""
        return self.config.quirks.images_without_proposals_skipped

    def features(self, image: RgbImage, proposals: Proposals) -> Tensor:
        """Compute features of the proposals; the store keeps both parts of the mixture.

        Returns:
            float32, (N, E).
        """
        inputs = {
            "image": image.sha256,
            "masks": proposals.sha256(),
            "clip": self.models.sha256("clip"),
            "device": self.models.device.type,
            "numerics": self.models.numerics("clip"),
            "masking_block": self.config.blocks.masking_block,
            "unnormalised_fill": self.config.quirks.crop_unnormalised_fill,
            "crop_box": self.config.crop_box.value,
        }

        def compute() -> Content:
            parts_2NE = self._compute_features(image, proposals.masks_NHW)
            return {"global_and_crop_2NE": parts_2NE.cpu().numpy()}, {}

        entry = cached(self.store, "global-local", inputs, compute)
        parts_2NE = torch.from_numpy(entry.arrays["global_and_crop_2NE"])
        global_NE, crop_NE = send(parts_2NE, self.models.device)
        weight = self.config.mixing_weight
        if weight is None:
            raise SettingError(
                "Expected a mixing_weight, got None; give one, or resolve the settings for a "
                "dataset."
            )
        return weight * global_NE + (1 - weight) * crop_NE

    def _similarity(
        self, features_NE: Tensor, expressions: Sequence[ParsedExpression]
    ) -> NDArray[np.float64]:
        # Other nouns play no part here: their texts are not embedded.
        alone = [
            dataclasses.replace(expression, other_noun_phrases=(), other_nouns=())
            for expression in expressions
        ]
        if self.clip.resnet:
            texts = expression_features(self._unit_texts, alone, self.config.text)
            scores_SN = self.clip.logit_scale * texts.expression_SE @ features_NE.T
        else:
            texts = expression_features(self.clip.encode_texts, alone, self.config.text)
            scores_SN = similarity_scores(features_NE, texts.expression_SE, self.clip.logit_scale)
        return np.asarray(scores_SN.double().cpu().numpy())

    def _unit_texts(self, texts: Sequence[str]) -> Tensor:
        return F.normalize(self.clip.encode_texts(texts), dim=-1)

    @torch.inference_mode()
    def _compute_features(self, image: RgbImage, masks_NHW: NDArray[np.bool_]) -> Tensor:
        """Both features of masks, float32, (2, N, E), in chunks of bounded memory."""
        device, side = self.models.device, self.clip.image_size
        scaled_13hw = send(resized_image(image.pil)[None], device)
        image_3HW = views.resize(scaled_13hw, image.hw)[0]
        image_13RR = views.resize(scaled_13hw, (side, side))
        fills = self.config.quirks.crop_unnormalised_fill
        chunks = []
        at_once = views.masks_per_chunk(image.hw, self.models.batches.sizes.masks)
        for chunk_NHW in torch.from_numpy(masks_NHW).split(at_once):
            masks = send(chunk_NHW, device)
            with timer("views"):
                crops_N3RR = crop_views(
                    image_3HW,
                    masks,
                    side,
                    unnormalised_fill=fills,
                    crop_box=self.config.crop_box,
                )
                coverage_NP = views.patch_coverage(masks, self.clip.grid)
            with timer("features"):
                global_NE = global_features(
                    self.clip, image_13RR, coverage_NP, self.config.blocks.masking_block
                )
                chunks.append(torch.stack([global_NE, crop_features(self.clip, crops_N3RR)]))
        return torch.cat(chunks, dim=1)


def _feature_map(resnet: ResNetTower, images_B3RR: Tensor) -> Tensor:
    map_BDGG: Tensor = resnet.stem(images_B3RR)
    for layer in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
        map_BDGG = layer(map_BDGG)
    return map_BDGG
