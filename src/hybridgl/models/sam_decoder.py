"""Mask decoder of SAM for many point prompts on one image.

segment_anything's modules hold the weights. The first layer's projections of the image are the same
for every prompt and are made once; masks are upscaled only for the prompts that keep one.

Source: Kirillov et al., "Segment Anything" (ICCV 2023), appendix A.
Shapes: Q point prompts, T tokens of each, M masks of each, C channels of the embedding, P = G * G
places of it, h heads, d head width, E channels of an upscaled place, g = 4 G.
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
    """Decoded point prompts, before any mask is drawn.

    Attributes:
        iou_QM: predicted IoU of every mask, float32.
        weights_QME: of the channels of the upscaled places: a mask's logit is the sum.
        places_QPC: the image as each prompt sees it.
    """

    iou_QM: Tensor
    weights_QME: Tensor
    places_QPC: Tensor


class PointDecoder:
    """Decoder of point prompts on one image, each into three masks of different extent.

    Args:
        sam: segment_anything's ``Sam``.
        embedding_CGG: the image, from the image encoder, float32.
    """

    def __init__(self, sam: Any, embedding_CGG: Tensor) -> None:
        self._prompts, self._decoder = sam.prompt_encoder, sam.mask_decoder
        self._grid = embedding_CGG.shape[-1]
        no_mask = self._prompts.no_mask_embed.weight[0]
        self._places_PC = embedding_CGG.flatten(1).T + no_mask
        self._positions_PC = self._prompts.get_dense_pe()[0].flatten(1).T
        first = self._decoder.transformer.layers[0]
        into, out_of = first.cross_attn_token_to_image, first.cross_attn_image_to_token
        keys_PC = self._places_PC + self._positions_PC
        self._first_keys = _heads(into, into.k_proj, keys_PC[None])
        self._first_values = _heads(into, into.v_proj, self._places_PC[None])
        self._first_queries = _heads(out_of, out_of.q_proj, keys_PC[None])

    def embed(self, points_Q2: Tensor) -> Tensor:
        """Embed points on foreground in two tokens: the point, and that no other point follows.

        Args:
            points_Q2: x and y in pixels of the encoder's input, float64.

        Returns:
            float32, (Q, 2, C).
        """
        prompts = self._prompts
        place_Q1C = prompts.pe_layer.forward_with_coords(
            points_Q2[:, None] + 0.5, prompts.input_image_size
        )
        point_Q1C = place_Q1C + prompts.point_embeddings[1].weight
        return torch.cat([point_Q1C, prompts.not_a_point_embed.weight.expand_as(point_Q1C)], dim=1)

    def decode(self, prompts_Q2C: Tensor) -> DecodedPoints:
        """Predict the qualities of the masks of point prompts, and what the masks are drawn from.

        Args:
            prompts_Q2C: from ``embed``.
        """
        decoder = self._decoder
        own_TC = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens_QTC = torch.cat([own_TC.expand(len(prompts_Q2C), -1, -1), prompts_Q2C], dim=1)
        queries_QTC, places_QPC = self._transform(tokens_QTC)
        mask_tokens_QMC = queries_QTC[:, 2 : 1 + decoder.num_mask_tokens]
        heads = list(decoder.output_hypernetworks_mlps)[1:]
        weights = [head(mask_tokens_QMC[:, index]) for index, head in enumerate(heads)]
        iou_QM = decoder.iou_prediction_head(queries_QTC[:, 0])[:, 1:]
        return DecodedPoints(iou_QM, torch.stack(weights, dim=1), places_QPC)

    def logits(self, points: DecodedPoints) -> Tensor:
        """Draw masks at four times the resolution of the embedding, logits, (Q, M, g, g)."""
        widen, norm, _, widen_again, _ = self._decoder.output_upscaling
        x = _upscale(widen, points.places_QPC)
        x = F.gelu(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps))
        x = F.gelu(_upscale(widen_again, x))
        masks = x.flatten(1, -2) @ points.weights_QME.transpose(1, 2)
        # Row and column of the place, of its quarter, and of the quarter of that.
        split = masks.unflatten(1, (self._grid, self._grid, 2, 2, 2, 2))
        return split.permute(0, 7, 1, 3, 5, 2, 4, 6).flatten(5).flatten(2, 4)

    def _transform(self, tokens_QTC: Tensor) -> tuple[Tensor, Tensor]:
        """Run the two-way transformer over tokens and places."""
        transformer = self._decoder.transformer
        queries_QTC, places_QPC = self._first_layer(transformer.layers[0], tokens_QTC)
        for layer in transformer.layers[1:]:
            asking = queries_QTC + tokens_QTC
            queries_QTC = layer.norm1(queries_QTC + layer.self_attn(asking, asking, queries_QTC))
            keys_QPC = places_QPC + self._positions_PC
            into, out_of = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
            attended_QTC = _attend(
                into,
                _heads(into, into.q_proj, queries_QTC + tokens_QTC),
                _heads(into, into.k_proj, keys_QPC),
                _heads(into, into.v_proj, places_QPC),
            )
            queries_QTC = layer.norm2(queries_QTC + attended_QTC)
            queries_QTC = layer.norm3(queries_QTC + layer.mlp(queries_QTC))
            image_heads = _heads(out_of, out_of.q_proj, keys_QPC)
            places_QPC = self._seen(layer, image_heads, places_QPC, queries_QTC, tokens_QTC)
        into = transformer.final_attn_token_to_image
        attended_QTC = _attend(
            into,
            _heads(into, into.q_proj, queries_QTC + tokens_QTC),
            _heads(into, into.k_proj, places_QPC + self._positions_PC),
            _heads(into, into.v_proj, places_QPC),
        )
        return transformer.norm_final_attn(queries_QTC + attended_QTC), places_QPC

    def _first_layer(self, layer: Any, tokens_QTC: Tensor) -> tuple[Tensor, Tensor]:
        """Run the layer in which every prompt still sees the same image."""
        queries_QTC = layer.norm1(layer.self_attn(tokens_QTC, tokens_QTC, tokens_QTC))
        into = layer.cross_attn_token_to_image
        # All tokens of all prompts ask the one image, as if they were one prompt's.
        asking_1TC = (queries_QTC + tokens_QTC).flatten(0, 1)[None]
        asking = _heads(into, into.q_proj, asking_1TC)
        attended_1TC = _attend(into, asking, self._first_keys, self._first_values)
        queries_QTC = layer.norm2(queries_QTC + attended_1TC.view(queries_QTC.shape))
        queries_QTC = layer.norm3(queries_QTC + layer.mlp(queries_QTC))
        image_heads = self._first_queries.expand(len(tokens_QTC), -1, -1, -1)
        return queries_QTC, self._seen(layer, image_heads, self._places_PC, queries_QTC, tokens_QTC)

    def _seen(
        self,
        layer: Any,
        image_QhPd: Tensor,
        places: Tensor,
        queries_QTC: Tensor,
        tokens_QTC: Tensor,
    ) -> Tensor:
        """Let the places attend to the tokens, (Q, P, C)."""
        attention = layer.cross_attn_image_to_token
        attended_QPC = _attend(
            attention,
            image_QhPd,
            _heads(attention, attention.k_proj, queries_QTC + tokens_QTC),
            _heads(attention, attention.v_proj, queries_QTC),
        )
        attended_QPC += places
        seen_QPC: Tensor = layer.norm4(attended_QPC)
        return seen_QPC


def _heads(attention: Any, projection: Any, x_BTC: Tensor) -> Tensor:
    """Project and split into heads, (B, h, T, d)."""
    projected = linear(x_BTC, projection.weight, projection.bias)
    return projected.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)


def _attend(attention: Any, q_BhTd: Tensor, k_BhPd: Tensor, v_BhPd: Tensor) -> Tensor:
    """Apply attention and its output layer, (B, T, C)."""
    attended_BhTd = F.scaled_dot_product_attention(q_BhTd, k_BhPd, v_BhPd)
    merged_BTD = attended_BhTd.transpose(1, 2).flatten(2)
    return linear(merged_BTD, attention.out_proj.weight, attention.out_proj.bias)


def _upscale(layer: Any, x: Tensor) -> Tensor:
    """Apply a transposed convolution of side and stride 2: four places for each one.

    Args:
        layer: ``nn.ConvTranspose2d``.
        x: (..., C).

    Returns:
        (..., 2, 2, E): row, column.
    """
    weight_CE22 = layer.weight
    weight_22EC = weight_CE22.permute(2, 3, 1, 0)
    widened = linear(x, weight_22EC.flatten(0, 2), layer.bias.repeat(4))
    return widened.unflatten(-1, (2, 2, -1))
