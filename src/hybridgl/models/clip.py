"""CLIP through open_clip: loading OpenAI's files, text features, the parts of the vision towers.

OpenAI's ``.pt`` files are TorchScript archives of float16 weights trained with QuickGELU; the
architecture, vision transformer or ResNet, is read off the weights. Residual blocks run through
``hybridgl.models.transformer``: products in the number format that was asked for, everything else
in float32.

Shapes: B images or masks, R side of the input, T tokens, D width, h heads, d head width,
L texts, E embedding width.
"""

from __future__ import annotations

import logging
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import build_model_from_openai_state_dict
from torch import Tensor, nn

from hybridgl.errors import HybridGLError
from hybridgl.models.transformer import (
    attend,
    linear,
    mlp,
    patch_tokens,
    quick_gelu_,
    set_product_dtype,
)

__all__ = [
    "ClipEncoder",
    "ResNetTower",
    "VisionTower",
    "class_block",
    "embed_patches",
    "finish_block",
    "qkv_heads",
    "residual_block",
]

_LOG = logging.getLogger(__name__)

_ARCHITECTURES = {
    "ViT-B-16": "vision transformer of width 768, patch 16, 12 blocks, embedding 512",
    "ViT-B-32": "vision transformer of width 768, patch 32, 12 blocks, embedding 512",
    "ViT-L-14": "vision transformer of width 1024, patch 14, 24 blocks, embedding 768",
    "RN50": "ResNet of width 64, 3 + 4 + 6 + 3 blocks, embedding 1024",
}
"""OpenAI's vision towers, as ``_describe`` words them."""

_TEXTS_PER_BATCH = 256

_MOST_KEPT_TEXTS = 2**16
"""Texts whose features are kept: 134 MB at 512 channels."""

_LENGTH_STEP = 8
"""Texts are cut to a multiple of so many tokens."""

_RESNET_STRIDE = 32
"""Pixels of the input along each side of a place of a ResNet's last feature map."""


class VisionTower(Protocol):
    """The public parts of open_clip's ``VisionTransformer`` that the method calls."""

    conv1: nn.Conv2d
    class_embedding: Tensor
    positional_embedding: Tensor
    ln_pre: nn.Module
    transformer: Any
    ln_post: nn.Module
    proj: Tensor


class ResNetTower(Protocol):
    """The public parts of open_clip's ``ModifiedResNet`` that masks act between."""

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module
    attnpool: nn.Module

    def stem(self, images_B3RR: Tensor) -> Tensor:
        """Three convolutions and a pooling, (B, D, R / 4, R / 4)."""


def embed_patches(visual: VisionTower, images_B3RR: Tensor) -> Tensor:
    """Tokens that enter the first block.

    Args:
        visual: CLIP's vision transformer.
        images_B3RR: normalised, (B, 3, R, R). Where R is not the side that CLIP was trained on,
            the position embedding is interpolated (bicubic, antialiased).

    Returns:
        (B, 1 + P, D), the class token first.
    """
    patches_BggD = patch_tokens(images_B3RR, visual.conv1.weight, visual.conv1.bias)
    grid = patches_BggD.shape[1]
    patches_BPD = patches_BggD.flatten(1, 2)
    class_B1D = visual.class_embedding.expand(len(patches_BPD), 1, -1)
    position_TD = _position_embedding(visual.positional_embedding, grid)
    tokens: Tensor = visual.ln_pre(torch.cat([class_B1D, patches_BPD], dim=1) + position_TD)
    return tokens


def qkv_heads(block: Any, normed_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of a residual block.

    Args:
        block: open_clip's ``ResidualAttentionBlock``.
        normed_BTD: tokens after the block's first layer norm, (B, T, D).

    Returns:
        Three tensors (B, h, T, d).
    """
    q, k, v = _project_heads(block.attn, normed_BTD, slice(0, 3))
    return q, k, v


def _project_heads(attention: Any, normed_BTD: Tensor, parts: slice) -> tuple[Tensor, ...]:
    """Those of query, key and value that a slice of the three selects, each (B, h, T, d)."""
    weight_3DD = attention.in_proj_weight.unflatten(0, (3, -1))[parts]
    bias_3D = attention.in_proj_bias.unflatten(0, (3, -1))[parts]
    projected = linear(normed_BTD, weight_3DD.flatten(0, 1), bias_3D.flatten())
    heads = projected.unflatten(-1, (len(weight_3DD), attention.num_heads, -1))
    return heads.permute(2, 0, 3, 1, 4).unbind()


def finish_block(block: Any, tokens_BTD: Tensor, attended_BhTd: Tensor) -> Tensor:
    """What a residual block does after its attention.

    Args:
        block: open_clip's ``ResidualAttentionBlock``.
        tokens_BTD: what entered the block, (B, T, D).
        attended_BhTd: the attention's output, head by head.

    Returns:
        float32, (B, T, D).
    """
    out_proj = block.attn.out_proj
    merged_BTD = attended_BhTd.transpose(1, 2).flatten(2)
    tokens_BTD = tokens_BTD + linear(merged_BTD, out_proj.weight, out_proj.bias)
    middle = block.mlp
    return tokens_BTD + mlp(block.ln_2(tokens_BTD), middle.c_fc, quick_gelu_, middle.c_proj)


def residual_block(block: Any, tokens_BTD: Tensor, mask: Tensor | None = None) -> Tensor:
    """A residual block as it was trained.

    Args:
        block: open_clip's ``ResidualAttentionBlock``.
        tokens_BTD: float32, (B, T, D).
        mask: which tokens a token attends to, bool, broadcastable to (B, h, T, T).
    """
    heads = qkv_heads(block, block.ln_1(tokens_BTD))
    return finish_block(block, tokens_BTD, attend(*heads, mask))


def class_block(block: Any, tokens_BTD: Tensor, mask_B11T: Tensor | None = None) -> Tensor:
    """The class token after a residual block; no other token is computed.

    Args:
        block: open_clip's ``ResidualAttentionBlock``.
        tokens_BTD: float32, (B, T, D), the class token first.
        mask_B11T: which tokens the class token attends to, bool, (B, 1, 1, T).

    Returns:
        float32, (B, D).
    """
    normed_BTD = block.ln_1(tokens_BTD)
    (q_Bh1d,) = _project_heads(block.attn, normed_BTD[:, :1], slice(0, 1))
    k_BhTd, v_BhTd = _project_heads(block.attn, normed_BTD, slice(1, 3))
    attended_Bh1d = attend(q_Bh1d, k_BhTd, v_BhTd, mask_B11T)
    return finish_block(block, tokens_BTD[:, :1], attended_Bh1d)[:, 0]


def _position_embedding(position_TD: Tensor, grid: int) -> Tensor:
    trained = round((position_TD.shape[0] - 1) ** 0.5)
    if trained == grid:
        return position_TD
    grid_1Dgg = position_TD[1:].T.unflatten(-1, (trained, trained))[None]
    resized_1Dgg = F.interpolate(
        grid_1Dgg.float(), (grid, grid), mode="bicubic", align_corners=False, antialias=True
    )
    return torch.cat([position_TD[:1], resized_1Dgg[0].flatten(1).T])


class ClipEncoder:
    """CLIP's two towers with their tokenizer, from one set of weights.

    Attributes:
        device: where the weights are.
        dtype: number format of the products in residual blocks; ResNets have float32.
        resnet: the vision tower, where it is a ResNet; None where it is a transformer.
        image_size: side of the square input, in pixels.
        grid: patches along each side of the input; of a ResNet, places of its last feature map.
        logit_scale: factor on cosines, already exponentiated.
    """

    def __init__(
        self,
        state: dict[str, Tensor],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        state = {name: value.float() for name, value in state.items()}
        model = build_model_from_openai_state_dict(state, quick_gelu=True, cast_dtype=torch.float32)
        # The builder rounds to float16 on its way; what the file holds is loaded again.
        model.float().load_state_dict(state)
        self._model = model.eval().requires_grad_(False).to(device)
        set_product_dtype(self._residual_layers(), dtype)
        self._tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length)
        self.device = device
        self.dtype = dtype
        tower: Any = self._model.visual
        self.resnet: ResNetTower | None = None if _is_transformer(state) else tower
        self.image_size: int = tower.image_size if self.resnet else tower.image_size[0]
        self.grid: int = self.image_size // _RESNET_STRIDE if self.resnet else tower.grid_size[0]
        self.logit_scale = float(state["logit_scale"].exp())
        self._truncated: set[str] = set()
        self._text_features: dict[str, Tensor] = {}

    @classmethod
    def from_file(
        cls,
        path: Path,
        *,
        architecture: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> ClipEncoder:
        """Load OpenAI's TorchScript archive, a state dict of it, or a ``.npz`` of its arrays.

        Args:
            path: a local file.
            architecture: the expected one, as ``ViT-B-16`` or ``RN50``; None takes any.
            device: where the weights go.
            dtype: number format of the products.

        Raises:
            HybridGLError: no such file, unreadable, or of another architecture.
        """
        if not path.is_file():
            raise HybridGLError(
                f"Expected CLIP weights at {path}, found no such file. "
                f"Give another file with --clip_weights."
            )
        state = _read_state(path)
        try:
            _check_architecture(state, path, architecture)
            return cls(state, torch.device(device), dtype)
        except (HybridGLError, MemoryError):
            raise
        except Exception as error:  # shapes that fit no CLIP can fail anywhere in the builder
            reason = " ".join(str(error).split())[:200]
            raise HybridGLError(
                f"Expected the weights of a whole OpenAI CLIP in {path}, cannot build one of them "
                f"({type(error).__name__}: {reason}). Fetch the file again."
            ) from error

    @property
    def visual(self) -> VisionTower:
        """The vision transformer.

        Raises:
            HybridGLError: the vision tower is a ResNet.
        """
        if self.resnet:
            raise HybridGLError(
                "Expected a CLIP vision transformer, got a ResNet. Use --clip_model ViT-B-16."
            )
        tower: VisionTower = self._model.visual
        return tower

    @torch.inference_mode()
    def encode_images(self, images_B3RR: Tensor) -> Tensor:
        """Image features.

        Args:
            images_B3RR: normalised, float32, (B, 3, R, R), R the ``image_size``.

        Returns:
            (B, E), not normalised.
        """
        if self.resnet:
            features_BE: Tensor = self._model.encode_image(images_B3RR)
            return features_BE
        tokens_BTD = embed_patches(self.visual, images_B3RR)
        *blocks, last = self.visual.transformer.resblocks
        for block in blocks:
            tokens_BTD = residual_block(block, tokens_BTD)
        return linear(self.visual.ln_post(class_block(last, tokens_BTD)), self.visual.proj.T)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Text features, each distinct text computed once for all calls.

        Args:
            texts: any strings; those beyond the context of 77 tokens are cut there and counted.

        Returns:
            float32, (L, E), not normalised.
        """
        if not texts:
            return torch.empty(0, self._model.text_projection.shape[1], device=self.device)
        if len(self._text_features) > _MOST_KEPT_TEXTS:
            self._text_features.clear()
        lacking = [text for text in dict.fromkeys(texts) if text not in self._text_features]
        if lacking:
            self._text_features.update(zip(lacking, self._encode(lacking), strict=True))
        return torch.stack([self._text_features[text] for text in texts])

    def _encode(self, texts: Sequence[str]) -> Iterator[Tensor]:
        """Features of distinct texts, each (E,).

        Texts of about the same length go together: no token attends to one after it, so that what
        follows the text is left out, and a feature depends on the other texts by rounding alone.
        """
        tokens_LC = self.tokenize(texts)
        end_L = tokens_LC.argmax(dim=1)  # the end of a text has the highest id
        length_L = (end_L // _LENGTH_STEP + 1) * _LENGTH_STEP
        features: dict[int, Tensor] = {}
        for length in length_L.unique().tolist():
            for rows in (length_L == length).nonzero()[:, 0].split(_TEXTS_PER_BATCH):
                encoded_LE = self._encode_tokens(tokens_LC[rows, :length], end_L[rows])
                features.update(zip(rows.tolist(), encoded_LE, strict=True))
        return (features[row] for row in range(len(texts)))

    def _encode_tokens(self, tokens_LT: Tensor, end_L: Tensor) -> Tensor:
        """Features at the last token of every text, (L, E)."""
        tokens_LT, end_L = tokens_LT.to(self.device), end_L.to(self.device)
        length, model = tokens_LT.shape[1], self._model
        x_LTD = model.token_embedding(tokens_LT) + model.positional_embedding[:length]
        causal_TT = torch.ones(length, length, dtype=torch.bool, device=self.device).tril()
        for block in model.transformer.resblocks:
            x_LTD = residual_block(block, x_LTD, causal_TT)
        end_LD = x_LTD[torch.arange(len(x_LTD), device=self.device), end_L]
        return linear(model.ln_final(end_LD), model.text_projection.T)

    def _residual_layers(self) -> Iterator[nn.Module]:
        """Layers of the residual blocks of both transformers."""
        yield from self._model.transformer.modules()
        if hasattr(self._model.visual, "transformer"):
            yield from self._model.visual.transformer.modules()

    @property
    def num_truncated(self) -> int:
        """Distinct texts so far that were longer than the context."""
        return len(self._truncated)

    def is_truncated(self, text: str) -> bool:
        """Whether a text is longer than the context and gets cut."""
        return len(self._tokenizer.encode(text)) + 2 > self._model.context_length

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids, int64, (L, 77), filled up with 0; texts beyond the context are cut."""
        truncated = {text for text in texts if self.is_truncated(text)}
        if truncated and not self._truncated:
            _LOG.warning(
                "A text is longer than CLIP's %d tokens and is cut there; such texts are counted.",
                self._model.context_length,
            )
        self._truncated |= truncated
        tokens: Tensor = self._tokenizer(list(texts))
        return tokens


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".npz":
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                state = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        elif _is_torchscript(path):
            with warnings.catch_warnings():
                # The format of OpenAI's files is not ours to choose.
                warnings.filterwarnings("ignore", ".*torch.jit.load.*", FutureWarning)
                state = torch.jit.load(str(path), map_location="cpu").state_dict()
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise HybridGLError(
            f"Expected CLIP weights in {path}, but the file cannot be read "
            f"({type(error).__name__}): it may be cut short. Fetch it again."
        ) from error
    if not isinstance(state, dict) or "text_projection" not in state:
        raise HybridGLError(
            f"Expected OpenAI CLIP weights in {path}, found something else: "
            f"no text_projection in it."
        )
    for name in ("input_resolution", "context_length", "vocab_size"):
        state.pop(name, None)
    return dict(state)


def _is_torchscript(path: Path) -> bool:
    """TorchScript archives are zip files that hold code beside the tensors."""
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _is_transformer(state: dict[str, Tensor]) -> bool:
    return "visual.proj" in state


def _describe(state: dict[str, Tensor]) -> str:
    """A vision tower in words, by what its weights tell."""
    if _is_transformer(state):
        width, _, patch, _ = state["visual.conv1.weight"].shape
        blocks = sum(name.startswith("visual.") and name.endswith(".ln_1.weight") for name in state)
        embedding = state["visual.proj"].shape[1]
        return (
            f"vision transformer of width {width}, patch {patch}, {blocks} blocks, "
            f"embedding {embedding}"
        )
    width = state["visual.layer1.0.conv1.weight"].shape[0]
    layers = [
        len({name.split(".")[2] for name in state if name.startswith(f"visual.layer{layer}.")})
        for layer in (1, 2, 3, 4)
    ]
    embedding = state["visual.attnpool.c_proj.weight"].shape[0]
    blocks_by_layer = " + ".join(map(str, layers))
    return f"ResNet of width {width}, {blocks_by_layer} blocks, embedding {embedding}"


def _check_architecture(state: dict[str, Tensor], path: Path, expected: str | None) -> None:
    found = _describe(state)
    if expected in _ARCHITECTURES and found != _ARCHITECTURES[expected]:
        names = [name for name, described in _ARCHITECTURES.items() if described == found]
        came = names[0] if names else f"a {found}"
        raise HybridGLError(f"Expected CLIP {expected} in {path}, found {came}.")
