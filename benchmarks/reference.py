"""The method in the order and granularity of the released program, with stock libraries.

SAM runs again for every ref of an image, the views of a mask are built one by one on the CPU, all
tokens go through all blocks of both streams, the GEM image pass runs once a sentence, a sentence is
parsed eight times, texts are embedded one at a time over the whole context, and masks are scored in
loops that wait for the device at every number. All in float32. It is what the library is timed
against, and an independent computation of the same predictions: mode G2L, profile reference.

Example:
    schedule = ReferenceSchedule(weights, HybridGLConfig(), torch.device("cpu"))
    schedule.save_maps(split, folder)
    predictions = schedule.predict(split, drawn, folder)

Shapes: N masks, H x W image pixels, R side of CLIP's input, P patches, T = 1 + P tokens, D width,
h heads, d head width, E embedding width, g patches along a side of GEM's input, K candidates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator
from torch import Tensor

from hybridgl.config import GuidanceConfig, HybridGLConfig, ProposalConfig
from hybridgl.language import ParsedExpression, Position, Relation
from hybridgl.masks import Proposals
from hybridgl.models import load
from hybridgl.models.sam import load_sam
from hybridgl.timing import timer
from hybridgl.weights.registry import WeightSet
from refer.dataset import Id, Ref, ReferSplit

__all__ = ["ReferenceSchedule"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

PARSES_FOR_MAP = 2
PARSES_FOR_PREDICTION = 6
"""Parser calls of one sentence in the program that writes maps, and in the one that predicts."""


Indices = tuple[int, int]
"""Of the proposals that one sentence predicts: by features alone, and guided."""


class ReferenceSchedule:
    """The two programs, one after the other.

    Args:
        weights: files of the models.
        config: settings of the method.
        device: where CLIP and SAM run.
    """

    def __init__(self, weights: WeightSet, config: HybridGLConfig, device: torch.device) -> None:
        self._config, self._device = config, device
        self._parser = load("parser", weights.spacy_model)
        self._tokenizer = open_clip.SimpleTokenizer(context_length=77)
        clip_state = _read_state(weights.clip_weights)
        self._clip = _build_clip(clip_state)
        self._clip.load_state_dict(clip_state)
        self._clip.eval().requires_grad_(False).to(device)
        sam = load_sam(weights.sam_checkpoint, weights.sam_type)
        sam.eval().requires_grad_(False).to(device)
        sam.image_encoder.forward = timer("SAM encoder")(sam.image_encoder.forward)
        self._generator = SamAutomaticMaskGenerator(sam, **dataclasses.asdict(ProposalConfig()))

    @torch.inference_mode()
    def save_maps(self, split: ReferSplit, folder: Path) -> None:
        """Write the GEM map of every sentence, at the size of its image."""
        for ref in split.refs:
            image = self._open(split, ref)
            for sentence in ref.sentences:
                expression = self._parse(sentence.raw, PARSES_FOR_MAP)
                map_HW = self._gem_map(image, expression.noun_phrase)
                self._write_map(folder / f"{ref.ref_id}-{sentence.sent_id}.npy", map_HW)

    @torch.inference_mode()
    def predict(
        self, split: ReferSplit, drawn: Mapping[int, Proposals], folder: Path
    ) -> dict[tuple[Id, int], Indices]:
        """Predict a mask for every sentence, and compare it with the ground truth.

        Args:
            split: the data.
            drawn: masks by image that take the place of SAM's, which are made all the same.
            folder: holds the maps.

        Returns:
            Indices by the ids of ref and sentence.
        """
        predictions: dict[tuple[Id, int], Indices] = {}
        guidance = self._config.guidance
        for ref in split.refs:
            image = self._open(split, ref)
            with timer("SAM decoder"):
                self._generator.generate(np.array(image))
            proposals = drawn[ref.image_id]
            # Quirk Q5: the k_limits persist from ref to ref.
            guidance = dataclasses.replace(
                guidance,
                num_candidates=min(guidance.num_candidates, len(proposals)),
                num_context_masks=min(guidance.num_context_masks, len(proposals)),
            )
            features_NE = self._mask_features(*self._views(image, proposals.masks_NHW))
            with timer("counts"):
                gt_mask_HW = split.gt_mask(ref, overlapping_polygons_dropped=True)
            for sentence in ref.sentences:
                expression = self._parse(sentence.raw, PARSES_FOR_PREDICTION)
                object_E, other_E = self._text_features(expression)
                map_HW = self._read_map(folder / f"{ref.ref_id}-{sentence.sent_id}.npy")
                chosen = self._choose(
                    features_NE, object_E, other_E, map_HW, proposals, expression, guidance
                )
                self._evaluate(proposals.masks_NHW, chosen, gt_mask_HW)
                predictions[ref.ref_id, sentence.sent_id] = chosen
        return predictions

    @timer("views")
    def _views(
        self, image: Image.Image, masks_NHW: NDArray[np.bool_]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Make views, local and global, (N, 3, R, R), and patch coverage, (N, P), mask by mask."""
        image_HW3 = np.array(image)
        image_3HW = _channels_first(image_HW3)
        blurred_3HW = _channels_first(cv2.GaussianBlur(image_HW3, (15, 15), 0))
        side, grid = self._clip.visual.image_size[0], self._clip.visual.grid_size[0]
        locals_, globals_, coverages = [], [], []
        for mask_HW in masks_NHW:
            mask_1HW = torch.from_numpy(mask_HW)[None].float()
            normed_3HW = _normalised(image_3HW / 255, IMAGENET_MEAN, IMAGENET_STD)
            local_3HW = normed_3HW * mask_1HW + (1 - mask_1HW) * _per_channel(CLIP_MEAN)
            locals_.append(_resized(local_3HW, side))
            global_3HW = image_3HW * mask_1HW + blurred_3HW * (1 - mask_1HW)
            global_3RR = _resized(global_3HW / 255, side)
            globals_.append(_normalised(global_3RR, IMAGENET_MEAN, IMAGENET_STD))
            coverages.append(_resized(mask_1HW, grid).flatten())
        local_N3RR, global_N3RR, coverage_NP = (
            torch.stack(parts).to(self._device) for parts in (locals_, globals_, coverages)
        )
        return local_N3RR, global_N3RR, coverage_NP

    @timer("features")
    def _mask_features(
        self, local_N3RR: Tensor, global_N3RR: Tensor, coverage_NP: Tensor
    ) -> Tensor:
        """Compute features of mode G2L, (N, E)."""
        visual, fusion = self._clip.visual, self._config.fusion
        blocks = list(visual.transformer.resblocks)
        heads = blocks[0].attn.num_heads
        l_NTD = self._tokens(local_N3RR, visual.positional_embedding)
        g_NTD = self._tokens(global_N3RR, visual.positional_embedding)
        weight_NT1 = F.pad(coverage_NP, (1, 0), value=1.0)[..., None]
        mask_NhTT = _class_attends_mask(coverage_NP, heads)
        for block in blocks[: fusion.masking_block]:
            l_NTD, g_NTD = block(l_NTD), block(g_NTD)
        for block in blocks[fusion.masking_block :]:
            added_NTD = fusion.stream_weight * g_NTD * weight_NT1
            l_NTD, g_NTD = block(added_NTD + l_NTD), block(g_NTD, attn_mask=mask_NhTT)
        features_NE: Tensor = visual.ln_post(l_NTD[:, 0]) @ visual.proj
        return features_NE

    @timer("gem")
    def _gem_map(self, image: Image.Image, phrase: str) -> Tensor:
        """Compute the GEM map of a noun phrase, 0 to 1, (H, W)."""
        gem, visual = self._config.gem, self._clip.visual
        text_E = self._encode_text(gem.prompt.format(phrase))
        side = gem.resolution_factor * visual.image_size[0]
        pixels_HW3 = np.array(image.resize((side, side), Image.Resampling.BICUBIC))
        pixels_3RR = _normalised(_channels_first(pixels_HW3) / 255, CLIP_MEAN, CLIP_STD)
        grid = gem.resolution_factor * visual.grid_size[0]
        position_TD = _enlarged_positions(visual.positional_embedding, grid)
        x_1TD = self._tokens(pixels_3RR[None].to(self._device), position_TD)
        blocks = list(visual.transformer.resblocks)
        first = len(blocks) - (gem.depth - 1)
        for block in blocks[:first]:
            x_1TD = block(x_1TD)
        y_1TD = x_1TD
        for block in blocks[first:]:
            y_1TD = y_1TD + _self_self_attention(block, x_1TD, gem.iterations)
            x_1TD = block(x_1TD)
        patches_PE = F.normalize(visual.ln_post(y_1TD[0]) @ visual.proj, dim=-1)[1:]
        map_11gg = (patches_PE @ F.normalize(text_E, dim=-1)).view(1, 1, grid, grid)
        map_11RR = F.interpolate(map_11gg, (side, side), mode="bilinear", align_corners=False)
        return F.interpolate(_min_max(map_11RR), image.size[::-1], mode="bilinear", antialias=True)[
            0, 0
        ]

    @timer("text features")
    def _encode_text(self, text: str) -> Tensor:
        """Encode one text, (E,)."""
        feature_1E: Tensor = self._clip.encode_text(self._tokenizer([text]).to(self._device))
        return feature_1E[0]

    @timer("guidance")
    def _choose(
        self,
        features_NE: Tensor,
        object_E: Tensor,
        other_E: Tensor | None,
        map_HW: Tensor,
        proposals: Proposals,
        expression: ParsedExpression,
        guidance: GuidanceConfig,
    ) -> Indices:
        """Predict for one sentence, one number after the other."""
        p_N = self._probabilities(features_NE, object_E)
        candidates_K = _best(p_N, guidance.num_candidates)
        q_N, context = p_N, candidates_K
        if other_E is not None:
            q_N = self._probabilities(features_NE, other_E)
            context = _best(q_N, guidance.num_context_masks)
        holds = _RELATIONS[expression.relation]
        boxes = proposals.boxes_xywh.tolist()
        relation_K = []
        for i in candidates_K:
            score = 0.0
            for j in context:
                weight = 1.0 if expression.relation is Relation.NONE else q_N[j]
                score += p_N[i] * weight * holds(boxes[i], boxes[j])
            relation_K.append(score)
        share_K = torch.tensor(relation_K, dtype=torch.float64).softmax(dim=0).tolist()
        attention_HW = _weighted_attention(map_HW, expression.position)
        outside = _outside_weight(expression.relation, guidance)
        finals = []
        for i, share in zip(candidates_K, share_K, strict=True):
            mask_HW = torch.from_numpy(proposals.masks_NHW[i]).to(self._device)
            inside_mean, outside_mean = attention_HW[mask_HW].mean(), attention_HW[~mask_HW].mean()
            coherence = (2 - outside) * inside_mean.item() - outside * outside_mean.item()
            finals.append((1 - guidance.alpha) * share + guidance.alpha * coherence)
        return candidates_K[0], candidates_K[finals.index(max(finals))]

    @timer("counts")
    def _evaluate(
        self, masks_NHW: NDArray[np.bool_], predicted: Indices, gt_mask_HW: NDArray[np.bool_]
    ) -> list[tuple[int, int]]:
        """Count intersection and union of both predictions with the ground truth, in pixels."""
        return [
            (int((masks_NHW[index] & gt_mask_HW).sum()), int((masks_NHW[index] | gt_mask_HW).sum()))
            for index in predicted
        ]

    @timer("store")
    def _write_map(self, path: Path, map_HW: Tensor) -> None:
        """Write a map to disk."""
        np.save(path, map_HW.cpu().numpy())

    @timer("store")
    def _read_map(self, path: Path) -> Tensor:
        """Read a map from disk."""
        return torch.from_numpy(np.load(path)).to(self._device)

    @timer("decode")
    def _open(self, split: ReferSplit, ref: Ref) -> Image.Image:
        return Image.open(split.image_path(ref.image_id)).convert("RGB")

    def _parse(self, sentence: str, times: int) -> ParsedExpression:
        for _ in range(times):
            (expression,) = self._parser.parse([sentence], right_relation_never_matches=True)
        return expression

    def _tokens(self, images_N3RR: Tensor, position_TD: Tensor) -> Tensor:
        """Embed patches: what enters the first block, (N, T, D)."""
        visual = self._clip.visual
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            patches_NDgg = visual.conv1(images_N3RR)
        patches_NPD = patches_NDgg.flatten(2).transpose(1, 2)
        class_N1D = visual.class_embedding.expand(len(patches_NPD), 1, -1)
        tokens: Tensor = visual.ln_pre(torch.cat([class_N1D, patches_NPD], dim=1) + position_TD)
        return tokens

    def _text_features(self, expression: ParsedExpression) -> tuple[Tensor, Tensor | None]:
        """Encode the object, (E,), and the other nouns, where there are any."""
        text = self._config.text
        object_E = text.sentence_weight * self._encode_text(expression.sentence)
        object_E = object_E + (1 - text.sentence_weight) * self._encode_text(expression.noun_phrase)
        others = [
            self._encode_text(text.other_noun_prompt.format(phrase))
            for phrase in expression.other_noun_phrases
        ]
        return object_E, torch.stack(others).mean(dim=0) if others else None

    def _probabilities(self, features_NE: Tensor, text_E: Tensor) -> list[float]:
        """Compute the softmax over the masks of their scaled cosines with a text."""
        scale = self._clip.logit_scale.exp()
        scores = []
        for feature_E in features_NE:
            scores.append((scale * F.cosine_similarity(feature_E, text_E, dim=0)).item())
        probabilities: list[float] = torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()
        return probabilities


_Box = Sequence[float]


def _share_within(inner: _Box, outer: _Box) -> float:
    """Share of a box x, y, w, h that lies in another one."""
    (x, y, w, h), (other_x, other_y, other_w, other_h) = inner, outer
    width = min(x + w, other_x + other_w) - max(x, other_x)
    height = min(y + h, other_y + other_h) - max(y, other_y)
    return max(width, 0) * max(height, 0) / (w * h) if w * h else 0.0


_RELATIONS: Mapping[Relation, Callable[[_Box, _Box], float]] = {
    Relation.NONE: lambda a, b: 1.0,
    Relation.LEFT: lambda a, b: a[0] + a[2] / 2 < b[0] + b[2] / 2,
    Relation.RIGHT: lambda a, b: a[0] + a[2] / 2 > b[0] + b[2] / 2,
    Relation.UP: lambda a, b: a[1] + a[3] / 2 < b[1] + b[3] / 2,
    Relation.DOWN: lambda a, b: a[1] + a[3] / 2 > b[1] + b[3] / 2,
    Relation.BIG: lambda a, b: a[2] * a[3] > b[2] * b[3],
    Relation.SMALL: lambda a, b: a[2] * a[3] < b[2] * b[3],
    Relation.WITHIN: _share_within,
}
"""Whether, or how much, the first box stands in a relation to the second."""


def _outside_weight(relation: Relation, guidance: GuidanceConfig) -> float:
    if relation is Relation.BIG:
        return guidance.coherence_weights[1]
    if relation is Relation.SMALL:
        return guidance.coherence_weights[2]
    return guidance.coherence_weights[0]


def _weighted_attention(map_HW: Tensor, position: Position) -> Tensor:
    """Weight a map by its prior, mean 1; words for up and down have none (quirk Q6)."""
    width = map_HW.shape[1]
    attention_HW = _min_max(map_HW)
    priors = {
        Position.LEFT: torch.linspace(1, 0, width),
        Position.RIGHT: torch.linspace(0, 1, width),
        Position.MIDDLE: torch.cat(
            [torch.linspace(0, 1, width // 2), torch.linspace(1, 0, width - width // 2)]
        ),
    }
    if position in priors:
        attention_HW = attention_HW * priors[position].to(attention_HW.device)
    return attention_HW / attention_HW.mean()


def _best(scores_N: Sequence[float], count: int) -> list[int]:
    """Return the indices of the highest scores, highest first."""
    return sorted(range(len(scores_N)), key=lambda index: -scores_N[index])[:count]


def _class_attends_mask(coverage_NP: Tensor, heads: int) -> Tensor:
    """Return what is added to the attention, so that the class token sees itself and the mask."""
    size, patches = coverage_NP.shape
    added_NTT = torch.zeros(size, 1 + patches, 1 + patches, device=coverage_NP.device)
    added_NTT[:, 0, 1:].masked_fill_(coverage_NP <= 0, float("-inf"))
    return added_NTT.repeat_interleave(heads, dim=0)


def _self_self_attention(block: Any, x_1TD: Tensor, iterations: int) -> Tensor:
    """Compute what a block adds to GEM's second stream, (1, T, D)."""
    attention = block.attn
    normed_1TD = block.ln_1(x_1TD)
    qkv = F.linear(normed_1TD, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = qkv[0].unflatten(-1, (3, attention.num_heads, -1)).permute(1, 2, 0, 3)
    tau = normed_1TD.norm(dim=-1).mean() * q.shape[-1] ** -0.5
    gathered = []
    for z_hTd in (v, k, q):
        for _ in range(iterations):
            z_hTd = F.normalize(z_hTd, dim=-1)
            z_hTd = (tau * z_hTd @ z_hTd.transpose(1, 2)).softmax(dim=-1) @ z_hTd
        z_hTd = F.normalize(z_hTd, dim=-1)
        gathered.append((tau * z_hTd @ z_hTd.transpose(1, 2)).softmax(dim=-1) @ v)
    mean_hTd = torch.stack(gathered).mean(dim=0)
    merged_1TD = mean_hTd.transpose(0, 1).flatten(1)[None]
    return F.linear(merged_1TD, attention.out_proj.weight, attention.out_proj.bias)


def _enlarged_positions(position_TD: Tensor, grid: int) -> Tensor:
    """Position embedding of a larger grid of patches, (1 + grid * grid, D)."""
    trained = round((len(position_TD) - 1) ** 0.5)
    position_1Dgg = position_TD[1:].T.unflatten(-1, (trained, trained))[None]
    larger_1Dgg = F.interpolate(
        position_1Dgg, (grid, grid), mode="bicubic", align_corners=False, antialias=True
    )
    return torch.cat([position_TD[:1], larger_1Dgg[0].flatten(1).T])


def _channels_first(image_HW3: NDArray[Any]) -> Tensor:
    return torch.from_numpy(image_HW3).permute(2, 0, 1).float()


def _resized(image_CHW: Tensor, side: int) -> Tensor:
    """Bilinear without antialiasing, (C, side, side)."""
    return F.interpolate(image_CHW[None], (side, side), mode="bilinear", align_corners=False)[0]


def _normalised(image_3HW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    return (image_3HW - _per_channel(mean)) / _per_channel(std)


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values)[:, None, None]


def _min_max(values: Tensor) -> Tensor:
    return (values - values.min()) / (values.max() - values.min())


def _build_clip(state: Mapping[str, Tensor]) -> Any:
    """Build open_clip's model of the sizes that a vision transformer's weights have."""
    width, _, patch, _ = state["visual.conv1.weight"].shape
    context, text_width = state["positional_embedding"].shape
    grid = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    blocks = [
        len({name for name in state if name.startswith(start) and name.endswith("ln_1.weight")})
        for start in ("visual.transformer.", "transformer.")
    ]
    vision = open_clip.CLIPVisionCfg(
        layers=blocks[0], width=width, patch_size=patch, image_size=grid * patch
    )
    text = open_clip.CLIPTextCfg(
        context_length=context,
        vocab_size=len(state["token_embedding.weight"]),
        width=text_width,
        heads=text_width // 64,
        layers=blocks[1],
    )
    return open_clip.CLIP(state["text_projection"].shape[1], vision, text, quick_gelu=True)


def _read_state(path: Path) -> dict[str, Tensor]:
    """Read the weights of a file, in float32."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: torch.from_numpy(arrays[name]).float() for name in arrays.files}
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return {name: value.float() for name, value in state.items()}
