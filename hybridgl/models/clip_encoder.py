"""CLIP through open_clip: loading OpenAI's files, text features, the parts of the vision towers.

OpenAI's ``.pt`` files are TorchScript archives of float16 weights trained with QuickGELU; the
architecture, vision transformer or ResNet, is read off the weights. Everything computes in float32
unless told otherwise.

Shapes: B images or masks, R side of the input, T tokens, D width, h heads, d head width,
L texts, E embedding width.
"""

from __future__ import annotations

import logging
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import build_model_from_openai_state_dict
from torch import Tensor, nn

from hybridgl.errors import UserError

__all__ = ["ClipEncoder", "ResNetTower", "VisionTower", "embed_patches", "qkv_heads"]

_LOG = logging.getLogger(__name__)

_ARCHITECTURES = {
    "ViT-B-16": "vision transformer of width 768, patch 16, 12 blocks, embedding 512",
    "ViT-B-32": "vision transformer of width 768, patch 32, 12 blocks, embedding 512",
    "ViT-L-14": "vision transformer of width 1024, patch 14, 24 blocks, embedding 768",
    "RN50": "ResNet of width 64, 3 + 4 + 6 + 3 blocks, embedding 1024",
}
"""OpenAI's vision towers, as ``_describe`` words them."""

_TEXTS_PER_BATCH = 256

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
    # Under autocast the convolution gives bfloat16; the stream stays in the weights' float32.
    patches_BDgg = visual.conv1(images_B3RR).to(visual.class_embedding.dtype)
    grid = patches_BDgg.shape[-1]
    patches_BPD = patches_BDgg.flatten(2).transpose(1, 2)
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
    attention = block.attn
    qkv = F.linear(normed_BTD, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return q, k, v


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
        resnet: the vision tower, where it is a ResNet; None where it is a transformer.
        image_size: side of the square input, in pixels.
        grid: patches along each side of the input; of a ResNet, places of its last feature map.
        logit_scale: factor on cosines, already exponentiated.
    """

    def __init__(self, state: dict[str, Tensor], device: torch.device) -> None:
        state = {name: value.float() for name, value in state.items()}
        model = build_model_from_openai_state_dict(state, quick_gelu=True, cast_dtype=torch.float32)
        # The builder rounds to float16 on its way; what the file holds is loaded again.
        model.float().load_state_dict(state)
        self._model = model.eval().requires_grad_(False).to(device)
        self._tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length)
        self.device = device
        tower: Any = self._model.visual
        self.resnet: ResNetTower | None = None if _is_transformer(state) else tower
        self.image_size: int = tower.image_size if self.resnet else tower.image_size[0]
        self.grid: int = self.image_size // _RESNET_STRIDE if self.resnet else tower.grid_size[0]
        self.logit_scale = float(state["logit_scale"].exp())
        self._truncated: set[str] = set()

    @classmethod
    def from_file(
        cls, path: Path, *, architecture: str | None = None, device: torch.device | str = "cpu"
    ) -> ClipEncoder:
        """Load OpenAI's TorchScript archive, a state dict of it, or a ``.npz`` of its arrays.

        Args:
            path: a local file.
            architecture: the expected one, as ``ViT-B-16`` or ``RN50``; None takes any.
            device: where the weights go.

        Raises:
            UserError: no such file, unreadable, or of another architecture.
        """
        if not path.is_file():
            raise UserError(
                f"Expected CLIP weights at {path}, found no such file. "
                f"Give another file with --clip_weights."
            )
        state = _read_state(path)
        try:
            _check_architecture(state, path, architecture)
            return cls(state, torch.device(device))
        except (UserError, MemoryError):
            raise
        except Exception as error:  # shapes that fit no CLIP can fail anywhere in the builder
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"Expected the weights of a whole OpenAI CLIP in {path}, cannot build one of them "
                f"({type(error).__name__}: {reason}). Fetch the file again."
            ) from error

    @property
    def visual(self) -> VisionTower:
        """The vision transformer.

        Raises:
            UserError: the vision tower is a ResNet.
        """
        if self.resnet:
            raise UserError(
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
        features_BE: Tensor = self._model.encode_image(images_B3RR)
        return features_BE

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Text features, each distinct text computed once.

        Args:
            texts: any strings; those beyond the context of 77 tokens are cut there and counted.

        Returns:
            float32, (L, E), not normalised.
        """
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            return torch.empty(0, self._model.text_projection.shape[1], device=self.device)
        tokens = self.tokenize(distinct)
        features = torch.cat(
            [
                self._model.encode_text(batch.to(self.device))
                for batch in tokens.split(_TEXTS_PER_BATCH)
            ]
        )
        row = {text: index for index, text in enumerate(distinct)}
        return features[[row[text] for text in texts]]

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
        raise UserError(
            f"Expected CLIP weights in {path}, but the file cannot be read "
            f"({type(error).__name__}): it may be cut short. Fetch it again."
        ) from error
    if not isinstance(state, dict) or "text_projection" not in state:
        raise UserError(
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
        raise UserError(f"Expected CLIP {expected} in {path}, found {came}.")
