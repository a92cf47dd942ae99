"""SAM's mask decoder for many clicks on one image.

segment_anything's modules hold the weights. The first layer's projections of the image are the
same for every click and are made once; masks are upscaled only for the clicks that keep one.

Source: Kirillov et al., "Segment Anything" (ICCV 2023), appendix A.
Shapes: P clicks, C channels of the embedding, T = g * g places of it, J tokens of a click, h heads,
d head width, M masks of a click, K channels of an upscaled place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridgl.models.transformer import linear

__all__ = ["DecodedPoints", "PointDecoder"]


@dataclass(frozen=True, slots=True, eq=False)
class DecodedPoints:
    """What the decoder makes of clicks, before any mask is drawn.

    Attributes:
        iou_PM: predicted IoU of every mask, float32.
        weights_PMK: of the upscaled places, whose sum is a mask's logit.
        places_PTC: the image as each click sees it.
    """

    iou_PM: Tensor
    weights_PMK: Tensor
    places_PTC: Tensor


class PointDecoder:
    """Decodes clicks on one image, each into three masks of different extent.

    Args:
        sam: segment_anything's ``Sam``.
        embedding_Cgg: the image, from the image encoder, float32.
    """

    def __init__(self, sam: Any, embedding_Cgg: Tensor) -> None:
        self._prompts, self._decoder = sam.prompt_encoder, sam.mask_decoder
        self._grid = embedding_Cgg.shape[-1]
        no_mask_C = self._prompts.no_mask_embed.weight[0]
        self._places_TC = embedding_Cgg.flatten(1).T + no_mask_C
        self._positions_TC = self._prompts.get_dense_pe()[0].flatten(1).T
        first = self._decoder.transformer.layers[0]
        into, out_of = first.cross_attn_token_to_image, first.cross_attn_image_to_token
        keys_TC = self._places_TC + self._positions_TC
        self._first_keys = _heads(into, into.k_proj, keys_TC[None])
        self._first_values = _heads(into, into.v_proj, self._places_TC[None])
        self._first_queries = _heads(out_of, out_of.q_proj, keys_TC[None])

    def embed(self, points_P2: Tensor) -> Tensor:
        """Tokens of clicks on foreground: the point, and that no other point follows.

        Args:
            points_P2: x and y in pixels of the encoder's input, float64.

        Returns:
            float32, (P, 2, C).
        """
        prompts = self._prompts
        place_P1C = prompts.pe_layer.forward_with_coords(
            points_P2[:, None] + 0.5, prompts.input_image_size
        )
        point_P1C = place_P1C + prompts.point_embeddings[1].weight
        return torch.cat([point_P1C, prompts.not_a_point_embed.weight.expand_as(point_P1C)], dim=1)

    def decode(self, prompts_P2C: Tensor) -> DecodedPoints:
        """Predicted qualities of the masks of clicks, and what the masks are drawn from.

        Args:
            prompts_P2C: from ``embed``.
        """
        decoder = self._decoder
        own_JC = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens_PJC = torch.cat([own_JC.expand(len(prompts_P2C), -1, -1), prompts_P2C], dim=1)
        queries_PJC, places_PTC = self._transform(tokens_PJC)
        mask_tokens_PMC = queries_PJC[:, 2 : 1 + decoder.num_mask_tokens]
        heads = list(decoder.output_hypernetworks_mlps)[1:]
        weights = [head(mask_tokens_PMC[:, index]) for index, head in enumerate(heads)]
        iou_PM = decoder.iou_prediction_head(queries_PJC[:, 0])[:, 1:]
        return DecodedPoints(iou_PM, torch.stack(weights, dim=1), places_PTC)

    def logits(self, clicks: DecodedPoints) -> Tensor:
        """Masks at four times the resolution of the embedding, float32, (P, M, 4g, 4g)."""
        widen, norm, _, widen_again, _ = self._decoder.output_upscaling
        x = _upscale(widen, clicks.places_PTC)
        x = F.gelu(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps))
        x_PTssssK = F.gelu(_upscale(widen_again, x))
        masks_PXM = x_PTssssK.flatten(1, -2) @ clicks.weights_PMK.transpose(1, 2)
        # Row and column of the place, of its quarter, and of the quarter of that.
        split = masks_PXM.unflatten(1, (self._grid, self._grid, 2, 2, 2, 2))
        return split.permute(0, 7, 1, 3, 5, 2, 4, 6).flatten(5).flatten(2, 4)

    def _transform(self, tokens_PJC: Tensor) -> tuple[Tensor, Tensor]:
        """The two-way transformer: what tokens and places become."""
        transformer = self._decoder.transformer
        queries_PJC, places_PTC = self._first_layer(transformer.layers[0], tokens_PJC)
        for layer in transformer.layers[1:]:
            asking = queries_PJC + tokens_PJC
            queries_PJC = layer.norm1(queries_PJC + layer.self_attn(asking, asking, queries_PJC))
            keys_PTC = places_PTC + self._positions_TC
            into, out_of = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
            attended_PJC = _attend(
                into,
                _heads(into, into.q_proj, queries_PJC + tokens_PJC),
                _heads(into, into.k_proj, keys_PTC),
                _heads(into, into.v_proj, places_PTC),
            )
            queries_PJC = layer.norm2(queries_PJC + attended_PJC)
            queries_PJC = layer.norm3(queries_PJC + layer.mlp(queries_PJC))
            image_heads = _heads(out_of, out_of.q_proj, keys_PTC)
            places_PTC = self._seen(layer, image_heads, places_PTC, queries_PJC, tokens_PJC)
        into = transformer.final_attn_token_to_image
        attended_PJC = _attend(
            into,
            _heads(into, into.q_proj, queries_PJC + tokens_PJC),
            _heads(into, into.k_proj, places_PTC + self._positions_TC),
            _heads(into, into.v_proj, places_PTC),
        )
        return transformer.norm_final_attn(queries_PJC + attended_PJC), places_PTC

    def _first_layer(self, layer: Any, tokens_PJC: Tensor) -> tuple[Tensor, Tensor]:
        """The layer in which every click still sees the same image."""
        queries_PJC = layer.norm1(layer.self_attn(tokens_PJC, tokens_PJC, tokens_PJC))
        into = layer.cross_attn_token_to_image
        # All tokens of all clicks ask the one image, as if they were one click's.
        asking_1XC = (queries_PJC + tokens_PJC).flatten(0, 1)[None]
        asking = _heads(into, into.q_proj, asking_1XC)
        attended_1XC = _attend(into, asking, self._first_keys, self._first_values)
        queries_PJC = layer.norm2(queries_PJC + attended_1XC.view(queries_PJC.shape))
        queries_PJC = layer.norm3(queries_PJC + layer.mlp(queries_PJC))
        image_heads = self._first_queries.expand(len(tokens_PJC), -1, -1, -1)
        return queries_PJC, self._seen(layer, image_heads, self._places_TC, queries_PJC, tokens_PJC)

    def _seen(
        self,
        layer: Any,
        image_PhTd: Tensor,
        places: Tensor,
        queries_PJC: Tensor,
        tokens_PJC: Tensor,
    ) -> Tensor:
        """The places after they have attended to the tokens, (P, T, C)."""
        attention = layer.cross_attn_image_to_token
        attended_PTC = _attend(
            attention,
            image_PhTd,
            _heads(attention, attention.k_proj, queries_PJC + tokens_PJC),
            _heads(attention, attention.v_proj, queries_PJC),
        )
        attended_PTC += places
        seen_PTC: Tensor = layer.norm4(attended_PTC)
        return seen_PTC


def _heads(attention: Any, projection: Any, x_BSC: Tensor) -> Tensor:
    """A projection split into heads, (B, h, S, d)."""
    projected = linear(x_BSC, projection.weight, projection.bias)
    return projected.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)


def _attend(attention: Any, q_BhQd: Tensor, k_BhSd: Tensor, v_BhSd: Tensor) -> Tensor:
    """Attention and its output layer, (B, Q, C)."""
    attended_BhQd = F.scaled_dot_product_attention(q_BhQd, k_BhSd, v_BhSd)
    merged_BQD = attended_BhQd.transpose(1, 2).flatten(2)
    return linear(merged_BQD, attention.out_proj.weight, attention.out_proj.bias)


def _upscale(layer: Any, x: Tensor) -> Tensor:
    """A transposed convolution of side and stride 2: four places for each one.

    Args:
        layer: ``nn.ConvTranspose2d``.
        x: (..., C).

    Returns:
        (..., 2, 2, K): row, column.
    """
    weight_CK22 = layer.weight
    weight_22KC = weight_CK22.permute(2, 3, 1, 0)
    widened = linear(x, weight_22KC.flatten(0, 2), layer.bias.repeat(4))
    return widened.unflatten(-1, (2, 2, -1))
