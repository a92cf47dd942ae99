"""CoCa through open_clip: image tokens, and what a caption says next of several images at once.

A caption grows by a token a step. So keys and values of earlier tokens are kept, only the last
position is computed, and prefixes that several captions share are computed once.

Source: Yu et al., "CoCa: Contrastive Captioners are Image-Text Foundation Models" (TMLR 2022), in
open_clip's form: neither the text tower's last norm nor its class token takes part in captions.
Shapes: N images, U prefixes of one length, B pairs of a prefix and an image, A of any, h heads, d
head width, D width, T tokens, E embedding width, V vocabulary, R side of the input.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridgl.models.clip import (
    count_modules,
    embed_patches,
    finish_block,
    project_heads,
    qkv_heads,
    residual_block,
)
from hybridgl.models.transformer import linear
from hybridgl.weights.states import building, read_state

__all__ = ["Coca", "CocaHeads", "CocaImages", "CocaScorer", "decode_tokens"]

_ENTRIES = ("text_decoder.text_projection", "visual.attn_pool.query")
"""Tensors that every CoCa has, and no other model."""

_MOST_TOKENS = 30
"""Room for the keys and values of a caption."""


@dataclass(frozen=True, slots=True)
class CocaHeads:
    """What weights do not say of attention.

    Attributes:
        vision_width: of every head of the vision tower.
        text_width: of every head of both text towers.
        pooler_heads: heads of the attentional pooler.
    """

    vision_width: int = 64
    text_width: int = 64
    pooler_heads: int = 8


@dataclass(frozen=True, slots=True, eq=False)
class CocaImages:
    """Images as CoCa sees them.

    Attributes:
        tokens_NTD: float32, (N, T, D).
        latents_NE: of length 1, float32, (N, E).
    """

    tokens_NTD: Tensor
    latents_NE: Tensor


class Coca:
    """CoCa's three towers.

    Args:
        state: weights by open_clip's names.
        heads: what they do not say.
        device: where they go.

    Attributes:
        device: as given.
        image_size: R, in pixels.
    """

    def __init__(
        self,
        state: Mapping[str, Tensor],
        heads: CocaHeads | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self._model = _built(state, heads or CocaHeads()).to(self.device)
        self.image_size = int(self._model.visual.image_size[0])
        self.text_layers = self._model.text.transformer.resblocks
        self.decoder = self._model.text_decoder

    @classmethod
    def from_file(
        cls, path: Path, *, heads: CocaHeads | None = None, device: torch.device | str = "cpu"
    ) -> Coca:
        """Load weights.

        Args:
            path: a local file that ``read_state`` reads.
            heads: what the weights do not say; None: those of open_clip's ``coca_ViT-L-14``.
            device: where they go.

        Raises:
            WeightsError: no such file, unreadable, or of another model.
        """
        fix = "give another file with --coca_weights"
        state = read_state(path, _ENTRIES, expected="CoCa weights", fix=fix, fits=lambda _: True)
        with building(path, "a whole CoCa", fix):
            return cls(state, heads, device)

    @torch.inference_mode()
    def encode_images(self, images_N3RR: Tensor) -> CocaImages:
        """Encode images.

        Args:
            images_N3RR: normalised with CLIP's statistics, float32, (N, 3, R, R).
        """
        visual = self._model.visual
        tokens_NTD = embed_patches(visual, images_N3RR)
        for block in visual.transformer.resblocks:
            tokens_NTD = residual_block(block, tokens_NTD)
        pooled_NTD = visual.ln_post(visual.attn_pool(tokens_NTD))
        latents_NE = F.normalize(linear(pooled_NTD[:, 0], visual.proj.T), dim=-1)
        return CocaImages(pooled_NTD[:, 1:], latents_NE)

    @torch.inference_mode()
    def embed_token(self, tokens_U: Tensor, place: int) -> Tensor:
        """Embed a token at a place of each of some texts, (U, D)."""
        text = self._model.text
        embedded_UD: Tensor = text.token_embedding(tokens_U) + text.positional_embedding[place]
        return embedded_UD

    @torch.inference_mode()
    def project(self, hidden_AD: Tensor) -> Tensor:
        """Project hidden states of the decoder to logits, float32, (A, V)."""
        return linear(hidden_AD, self.decoder.text_projection.T)


class CocaScorer:
    """Scores the next token of captions of some images (``pseudo_ris.captions.PrefixScorer``).

    Args:
        coca: the model.
        images: that are captioned.
        together: one beginning, read with all N images; otherwise N beginnings, each read with its
            own image.
    """

    def __init__(self, coca: Coca, images: CocaImages, *, together: bool) -> None:
        self._coca = coca
        count = len(images.tokens_NTD)
        self._together = together
        self._image_U = torch.arange(1 if together else count, device=coca.device)
        self._read_with = count if together else 1
        self._length = 0
        self._keys_values = [
            project_heads(block.attn, block.ln_1_kv(images.tokens_NTD), slice(1, 3))
            for block in coca.decoder.cross_attn
        ]
        self._text = [_Cache() for _ in coca.text_layers]
        self._decoder = [_Cache() for _ in coca.decoder.resblocks]

    @torch.inference_mode()
    def extend(self, parents_U: Tensor, tokens_U: Tensor) -> Tensor:
        """Add a token to prefixes; return the hidden states of what comes next, (U, N, D)."""
        self._image_U = self._image_U[parents_U]
        x_U1D = self._coca.embed_token(tokens_U, self._length)[:, None]
        for block, cache in zip(self._coca.text_layers, self._text, strict=True):
            x_U1D = cache.step(block, x_U1D, parents_U, self._length)
        count, read_with = len(parents_U), self._read_with
        rows = parents_U[:, None] * read_with + torch.arange(read_with, device=parents_U.device)
        x_B1D = x_U1D.repeat_interleave(read_with, dim=0)
        decoder = self._coca.decoder
        for block, cross, cache, keys_values in zip(
            decoder.resblocks, decoder.cross_attn, self._decoder, self._keys_values, strict=True
        ):
            x_B1D = cache.step(block, x_B1D, rows.flatten(), self._length)
            x_B1D = self._read_images(cross, x_B1D, keys_values)
        self._length += 1
        return decoder.ln_final(x_B1D).view(count, read_with, -1)

    def project(self, hidden_AD: Tensor) -> Tensor:
        """Project hidden states to logits, float32, (A, V)."""
        return self._coca.project(hidden_AD)

    def _read_images(self, block: Any, x_B1D: Tensor, keys_values: tuple[Tensor, ...]) -> Tensor:
        """Run a cross-attention block: each prefix reads its images."""
        keys_NhTd, values_NhTd = keys_values
        (query_Bh1d,) = project_heads(block.attn, block.ln_1(x_B1D), slice(0, 1))
        if self._together:  # an image is read by all prefixes at once, and need not be copied
            query_NhUd = query_Bh1d[:, :, 0].unflatten(0, (-1, self._read_with)).permute(1, 2, 0, 3)
            attended_NhUd = F.scaled_dot_product_attention(query_NhUd, keys_NhTd, values_NhTd)
            attended_Bh1d = attended_NhUd.permute(2, 0, 1, 3).flatten(0, 1)[:, :, None]
        else:
            attended_Bh1d = F.scaled_dot_product_attention(
                query_Bh1d, keys_NhTd[self._image_U], values_NhTd[self._image_U]
            )
        return finish_block(block, x_B1D, attended_Bh1d)


class _Cache:
    """Keys and values of one self-attention layer, of all tokens so far."""

    def __init__(self) -> None:
        self._keys_values: tuple[Tensor, Tensor] | None = None

    def step(self, block: Any, x_B1D: Tensor, parents_B: Tensor, length: int) -> Tensor:
        """Run a residual block on the newest token of some prefixes.

        Args:
            block: open_clip's ``ResidualAttentionBlock``.
            x_B1D: float32, (B, 1, D).
            parents_B: row of each prefix in the step before.
            length: tokens before this one.
        """
        q_Bh1d, k_Bh1d, v_Bh1d = qkv_heads(block, block.ln_1(x_B1D))
        keys, values = self._grown(k_Bh1d, parents_B)
        keys[:, :, length], values[:, :, length] = k_Bh1d[:, :, 0], v_Bh1d[:, :, 0]
        attended_Bh1d = F.scaled_dot_product_attention(
            q_Bh1d, keys[:, :, : length + 1], values[:, :, : length + 1]
        )
        return finish_block(block, x_B1D, attended_Bh1d)

    def _grown(self, like_Bh1d: Tensor, parents_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the kept keys and values, in the order of the new prefixes."""
        if self._keys_values is None:
            batch, heads, _, width = like_Bh1d.shape
            empty = [like_Bh1d.new_zeros(batch, heads, _MOST_TOKENS, width) for _ in range(2)]
            self._keys_values = empty[0], empty[1]
            return self._keys_values
        keys, values = self._keys_values
        in_place = len(parents_B) == len(keys) and bool(
            (parents_B == torch.arange(len(keys), device=parents_B.device)).all()
        )
        if not in_place:
            self._keys_values = keys[parents_B], values[parents_B]
        return self._keys_values


def decode_tokens(tokens: Sequence[int]) -> str:
    """Write tokens of CLIP's vocabulary as text, start and end as their names.

    >>> decode_tokens([49406, 320, 2368, 49407])
    '<start_of_text>a cat <end_of_text>'
    """
    text: str = _tokenizer().decode(tokens)
    return text


@functools.cache
def _tokenizer() -> Any:
    import open_clip

    return open_clip.SimpleTokenizer()


def _built(state: Mapping[str, Tensor], heads: CocaHeads) -> Any:
    """Build open_clip's ``CoCa`` of the sizes that the weights have, and load them."""
    import open_clip
    from open_clip.coca_model import CoCa, MultimodalCfg

    positions, width = state["text.positional_embedding"].shape
    text = {
        "context_length": positions - 1,  # the class token has the last
        "vocab_size": len(state["text.token_embedding.weight"]),
        "width": width,
        "heads": width // heads.text_width,
    }
    vision_width, _, patch, _ = state["visual.conv1.weight"].shape
    grid = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    with torch.device("meta"):  # its random weights are wanted by nobody
        model = CoCa(
            state["visual.proj"].shape[1],
            MultimodalCfg(**text, layers=count_modules(state, "text_decoder.resblocks.")),
            open_clip.CLIPTextCfg(
                **text,
                layers=count_modules(state, "text.transformer.resblocks."),
                embed_cls=True,
                output_tokens=True,
            ),
            open_clip.CLIPVisionCfg(
                layers=count_modules(state, "visual.transformer.resblocks."),
                width=vision_width,
                head_width=heads.vision_width,
                patch_size=patch,
                image_size=grid * patch,
                attentional_pool=True,
                attn_pooler_queries=len(state["visual.attn_pool.query"]),
                attn_pooler_heads=heads.pooler_heads,
                output_tokens=True,
            ),
        )
    model.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    for module in model.modules():  # masks of whole texts, which are computed step by step here
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                setattr(module, name, None)
    return model.eval().requires_grad_(False)
