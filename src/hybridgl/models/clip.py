"""CLIP through open_clip: load its files, encode images and texts, run parts of the towers.

OpenAI's ``.pt`` files are TorchScript archives of float16 weights trained with QuickGELU, those of
others are state dicts, most of them trained with GELU, which they do not say. The architecture,
vision transformer or ResNet, is read off the weights and built from open_clip's public classes.
Residual blocks run through ``hybridgl.models.transformer``, in float32: two masks
are often more alike than bfloat16's rounding of their features.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision"
(ICML 2021).
Shapes: B images or masks, R side of the input, G patches along it, P = G * G patches, T = 1 + P
tokens or those of a text, D width, h heads, d head width, L texts, E embedding width.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridgl.devices import send
from hybridgl.errors import WeightsError
from hybridgl.models.transformer import linear, mlp, patch_tokens, quick_gelu_
from hybridgl.timing import timer
from hybridgl.weights.registry import activation_of
from hybridgl.weights.states import building, read_state

__all__ = [
    "ClipEncoder",
    "ResNetTower",
    "VisionTower",
    "class_block",
    "count_modules",
    "embed_patches",
    "finish_block",
    "project_heads",
    "qkv_heads",
    "residual_block",
]

_logger = logging.getLogger(__name__)

_ENTRIES = ("text_projection", "visual.conv1.weight")
"""Tensors that every CLIP in the layout of OpenAI's has, and no other model."""

_FIX = "give another file with --clip_weights"

_WEIGHTS_OF_NO_MODULE = ("input_resolution", "context_length", "vocab_size")
"""Settings that stand among the tensors of OpenAI's archives."""

_TEXTS_PER_BATCH = 256

_MOST_KEPT_TEXTS = 2**16
"""Texts whose features are kept: 134 MB at an embedding of 512."""

_LENGTH_STEP = 8
"""Texts are cut to a multiple of so many tokens."""

_RESNET_STRIDE = 32
"""Pixels of the input along each side of a place of a ResNet's last feature map."""

_HEAD_WIDTH = 64
"""Of every attention head of OpenAI's CLIPs."""

_OTHER_HEADS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}
"""Width of the attention heads by that of the vision tower, where it is another one: ViT-H, g, bigG
and e. Source: open_clip's configurations; the weights do not say."""

_VOCABULARY = 49_408
"""Tokens of CLIP's own tokenizer."""


class VisionTower(Protocol):
    """Public parts of open_clip's ``VisionTransformer`` that methods call."""

    conv1: nn.Conv2d
    class_embedding: Tensor
    positional_embedding: Tensor
    ln_pre: nn.Module
    transformer: Any
    ln_post: nn.Module
    proj: Tensor


class ResNetTower(Protocol):
    """Public parts of open_clip's ``ModifiedResNet`` that masks act between."""

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module
    attnpool: nn.Module

    def stem(self, images_B3RR: Tensor) -> Tensor:
        """Apply three convolutions and a pooling, (B, D, R / 4, R / 4)."""


def embed_patches(visual: VisionTower, images_B3RR: Tensor) -> Tensor:
    """Compute the tokens that enter the first block.

    Args:
        visual: CLIP's vision transformer.
        images_B3RR: normalised, (B, 3, R, R). Where R is not the side that CLIP was trained on,
            the position embedding is interpolated (bicubic, antialiased).

    Returns:
        (B, 1 + P, D), the class token first.
    """
    patches_BGGD = patch_tokens(images_B3RR, visual.conv1.weight, visual.conv1.bias)
    grid = patches_BGGD.shape[1]
    patches_BPD = patches_BGGD.flatten(1, 2)
    class_B1D = visual.class_embedding.expand(len(patches_BPD), 1, -1)
    position_TD = _position_embedding(visual.positional_embedding, grid)
    tokens: Tensor = visual.ln_pre(torch.cat([class_B1D, patches_BPD], dim=1) + position_TD)
    return tokens


def qkv_heads(block: Any, normed_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Project tokens to query, key and value of a residual block.

    Args:
        block: open_clip's ``ResidualAttentionBlock``.
        normed_BTD: tokens after the block's first layer norm, (B, T, D).

    Returns:
        Three tensors (B, h, T, d).
    """
    q, k, v = project_heads(block.attn, normed_BTD, slice(0, 3))
    return q, k, v


def project_heads(attention: Any, normed_BTD: Tensor, parts: slice) -> tuple[Tensor, ...]:
    """Project tokens to some of query, key and value, head by head.

    Args:
        attention: torch's ``MultiheadAttention``.
        normed_BTD: tokens after a layer norm, (B, T, D).
        parts: which of the three.

    Returns:
        Tensors (B, h, T, d), as many as were asked for.
    """
    weight_3DD = attention.in_proj_weight.unflatten(0, (3, -1))[parts]
    bias_3D = attention.in_proj_bias.unflatten(0, (3, -1))[parts]
    projected = linear(normed_BTD, weight_3DD.flatten(0, 1), bias_3D.flatten())
    heads = projected.unflatten(-1, (len(weight_3DD), attention.num_heads, -1))
    return heads.permute(2, 0, 3, 1, 4).unbind()


def finish_block(block: Any, tokens_BTD: Tensor, attended_BhTd: Tensor) -> Tensor:
    """Do what a residual block does after its attention.

    Args:
        block: open_clip's ``ResidualAttentionBlock``.
        tokens_BTD: what entered the block, (B, T, D).
        attended_BhTd: output of the attention, head by head.

    Returns:
        float32, (B, T, D).
    """
    out_proj = block.attn.out_proj
    merged_BTD = attended_BhTd.transpose(1, 2).flatten(2)
    tokens_BTD = tokens_BTD + linear(merged_BTD, out_proj.weight, out_proj.bias)
    middle = block.mlp
    activation_ = middle.gelu if isinstance(middle.gelu, nn.GELU) else quick_gelu_
    return tokens_BTD + mlp(block.ln_2(tokens_BTD), middle.c_fc, activation_, middle.c_proj)


def residual_block(block: Any, tokens_BTD: Tensor, mask: Tensor | None = None) -> Tensor:
    """Run a residual block as it was trained.

    Args:
        block: open_clip's ``ResidualAttentionBlock``.
        tokens_BTD: float32, (B, T, D).
        mask: which tokens a token attends to, bool, broadcastable to (B, h, T, T).
    """
    q, k, v = qkv_heads(block, block.ln_1(tokens_BTD))
    return finish_block(block, tokens_BTD, F.scaled_dot_product_attention(q, k, v, mask))


def class_block(block: Any, tokens_BTD: Tensor, mask_B11T: Tensor | None = None) -> Tensor:
    """Compute the class token after a residual block, and no other token.

    Args:
        block: open_clip's ``ResidualAttentionBlock``.
        tokens_BTD: float32, (B, T, D), the class token first.
        mask_B11T: which tokens the class token attends to, bool, (B, 1, 1, T).

    Returns:
        float32, (B, D).
    """
    normed_BTD = block.ln_1(tokens_BTD)
    (q_Bh1d,) = project_heads(block.attn, normed_BTD[:, :1], slice(0, 1))
    k_BhTd, v_BhTd = project_heads(block.attn, normed_BTD, slice(1, 3))
    attended_Bh1d = F.scaled_dot_product_attention(q_Bh1d, k_BhTd, v_BhTd, mask_B11T)
    return finish_block(block, tokens_BTD[:, :1], attended_Bh1d)[:, 0]


def _position_embedding(position_TD: Tensor, grid: int) -> Tensor:
    """Resize the position embedding from the grid of g x g patches that it was trained for."""
    trained = round((position_TD.shape[0] - 1) ** 0.5)
    if trained == grid:
        return position_TD
    trained_1Dgg = position_TD[1:].T.unflatten(-1, (trained, trained))[None]
    resized_1DGG = F.interpolate(
        trained_1Dgg.float(), (grid, grid), mode="bicubic", align_corners=False, antialias=True
    )
    return torch.cat([position_TD[:1], resized_1DGG[0].flatten(1).T])


@dataclass(frozen=True, slots=True)
class _Tower:
    """Sizes of a vision tower, read off its weights.

    Attributes:
        width: D.
        patch: side of a patch in pixels; None for a ResNet.
        blocks: residual blocks; of a ResNet, in each of its four layers.
        embedding: E.
    """

    width: int
    patch: int | None
    blocks: int | tuple[int, ...]
    embedding: int

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> _Tower:
        """Read the sizes off a state dict."""
        if "visual.proj" in state:
            width, _, patch, _ = state["visual.conv1.weight"].shape
            blocks = count_modules(state, "visual.transformer.resblocks.")
            return cls(width, patch, blocks, state["visual.proj"].shape[1])
        layers = tuple(count_modules(state, f"visual.layer{layer}.") for layer in (1, 2, 3, 4))
        width = len(state["visual.layer1.0.conv1.weight"])
        return cls(width, None, layers, len(state["visual.attnpool.c_proj.weight"]))

    def __str__(self) -> str:
        if isinstance(self.blocks, int):
            what, blocks = f"vision transformer of patch {self.patch},", str(self.blocks)
        else:
            what, blocks = "ResNet of", " + ".join(map(str, self.blocks))
        return f"{what} width {self.width}, {blocks} blocks, embedding {self.embedding}"


_ARCHITECTURES = {
    "ViT-B-16": _Tower(768, 16, 12, 512),
    "ViT-B-32": _Tower(768, 32, 12, 512),
    "ViT-L-14": _Tower(1024, 14, 24, 768),
    "RN50": _Tower(64, None, (3, 4, 6, 3), 1024),
}
"""OpenAI's vision towers."""


class ClipEncoder:
    """CLIP's two towers with their tokenizer, from one set of weights.

    Attributes:
        device: where the weights are.
        resnet: the vision tower, where it is a ResNet; None where it is a transformer.
        image_size: R, in pixels.
        grid: G; of a ResNet, places along each side of its last feature map.
        logit_scale: factor on cosines, already exponentiated.
    """

    def __init__(
        self, state: Mapping[str, Tensor], device: torch.device, activation: str = "quickgelu"
    ) -> None:
        import open_clip

        state = {name: value.float() for name, value in state.items()}
        tower = _Tower.of(state)
        positions = "visual.positional_embedding"
        if tower.patch is None:
            positions = "visual.attnpool.positional_embedding"
        self.grid: int = round((len(state[positions]) - 1) ** 0.5)
        self.image_size: int = self.grid * (tower.patch or _RESNET_STRIDE)
        self._model = self._built(tower, state, activation).to(device)
        self._tokenizer = open_clip.SimpleTokenizer(context_length=self._model.context_length)
        self.device = device
        self.resnet: ResNetTower | None = None if tower.patch else self._model.visual
        self.logit_scale = float(state["logit_scale"].exp())
        self._truncated: set[str] = set()
        self._text_features: dict[str, Tensor] = {}

    def _built(self, tower: _Tower, state: Mapping[str, Tensor], activation: str) -> Any:
        """Build open_clip's ``CLIP`` of the sizes that the weights have, and load them."""
        import open_clip

        context, text_width = state["positional_embedding"].shape
        model = open_clip.CLIP(
            state["text_projection"].shape[1],
            open_clip.CLIPVisionCfg(
                layers=tower.blocks,
                width=tower.width,
                head_width=_HEAD_WIDTH,
                patch_size=tower.patch,
                image_size=self.image_size,
            ),
            open_clip.CLIPTextCfg(
                context_length=context,
                vocab_size=len(state["token_embedding.weight"]),
                width=text_width,
                heads=text_width // _HEAD_WIDTH,
                layers=count_modules(state, "transformer.resblocks."),
            ),
            quick_gelu=activation == "quickgelu",
        )
        model.load_state_dict(state)
        return model.eval().requires_grad_(False)

    @classmethod
    def from_file(
        cls,
        path: Path,
        *,
        architecture: str | None = None,
        activation: str | None = None,
        device: torch.device | str = "cpu",
    ) -> ClipEncoder:
        """Load OpenAI's TorchScript archive, or its tensors in any file that ``read_state`` reads.

        Args:
            path: a local file.
            architecture: the expected one, as ``ViT-B-16`` or ``RN50``; None takes any.
            activation: of the blocks, "gelu" or "quickgelu", as CLIP was trained; None:
                what the file's name says, else "quickgelu".
            device: where the weights go.

        Raises:
            WeightsError: no such file, unreadable, or of another architecture.
        """
        state = read_state(
            path,
            _ENTRIES,
            expected="CLIP weights",
            fix=_FIX,
            fits=lambda some: _fits(some, architecture),
        )
        for name in _WEIGHTS_OF_NO_MODULE:
            state.pop(name, None)
        with building(path, "a whole CLIP in OpenAI's layout", _FIX):
            tower = _Tower.of(state)
            _check_architecture(tower, path, architecture)
            _check_represented(tower, state, path)
            return cls(state, torch.device(device), activation_of(path, activation))

    @property
    def visual(self) -> VisionTower:
        """Vision transformer.

        Raises:
            WeightsError: the vision tower is a ResNet.
        """
        if self.resnet:
            raise WeightsError(
                "Expected a CLIP vision transformer, got a ResNet; use --clip_model ViT-B-16."
            )
        tower: VisionTower = self._model.visual
        return tower

    @torch.inference_mode()
    def encode_images(self, images_B3RR: Tensor) -> Tensor:
        """Encode images.

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
    @timer("text features")
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Encode texts, each distinct one once for all calls.

        Args:
            texts: any strings; those beyond the context of 77 tokens are cut there and counted.

        Returns:
            float32, (L, E), not normalised.
        """
        if not texts:
            return torch.empty(0, self._model.text_projection.shape[1], device=self.device)
        if len(self._text_features) > _MOST_KEPT_TEXTS:
            self._text_features.clear()
        missing = [text for text in dict.fromkeys(texts) if text not in self._text_features]
        if missing:
            self._text_features.update(zip(missing, self._encode(missing), strict=True))
        return torch.stack([self._text_features[text] for text in texts])

    def _encode(self, texts: Sequence[str]) -> Iterator[Tensor]:
        """Encode distinct texts, each to (E,).

        Texts of about the same length go together: no token attends to one after it, so that what
        follows the text is left out, and a feature depends on the other texts by rounding alone.
        """
        tokens_LT = self.tokenize(texts)
        end_L = tokens_LT.argmax(dim=1)  # the end of a text has the highest id
        rows_of: dict[int, list[int]] = {}
        for row, end in enumerate(end_L.tolist()):
            rows_of.setdefault((end // _LENGTH_STEP + 1) * _LENGTH_STEP, []).append(row)
        features: dict[int, Tensor] = {}
        for length, rows in rows_of.items():
            for start in range(0, len(rows), _TEXTS_PER_BATCH):
                some = rows[start : start + _TEXTS_PER_BATCH]
                encoded_LE = self._encode_tokens(tokens_LT[some, :length], end_L[some])
                features.update(zip(some, encoded_LE, strict=True))
        return (features[row] for row in range(len(texts)))

    def _encode_tokens(self, tokens_LT: Tensor, end_L: Tensor) -> Tensor:
        """Encode texts of about one length at the last token of each, (L, E)."""
        tokens_LT, end_L = send(tokens_LT, self.device), send(end_L, self.device)
        length, model = tokens_LT.shape[1], self._model
        x_LTD = model.token_embedding(tokens_LT) + model.positional_embedding[:length]
        causal_TT = torch.ones(length, length, dtype=torch.bool, device=self.device).tril()
        for block in model.transformer.resblocks:
            x_LTD = residual_block(block, x_LTD, causal_TT)
        end_LD = x_LTD[torch.arange(len(x_LTD), device=self.device), end_L]
        return linear(model.ln_final(end_LD), model.text_projection.T)

    @property
    def num_truncated(self) -> int:
        """Number of distinct texts so far that were longer than the context."""
        return len(self._truncated)

    def is_truncated(self, text: str) -> bool:
        """Decide whether a text is longer than the context and gets cut."""
        return len(self._tokenizer.encode(text)) + 2 > self._model.context_length

    def unmet_words(self, text: str) -> tuple[str, ...]:
        """Return the words of a text of which no training has met some part, in their order.

        The rows of their tokens are zero: to the bundled CLIP, trained on a world of shapes, most
        words are. The published ones have met every token.
        """
        table = self._model.token_embedding.weight
        words = dict.fromkeys(re.findall(r"\w+", text.lower()))
        return tuple(
            word for word in words if not bool(table[self._tokenizer.encode(word)].any(dim=1).all())
        )

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return token ids, int64, (L, 77), filled up with 0; texts beyond the context are cut."""
        truncated = {text for text in texts if self.is_truncated(text)}
        if truncated and not self._truncated:
            _logger.warning(
                "A text is longer than CLIP's %d tokens and is cut there; such texts are counted.",
                self._model.context_length,
            )
        self._truncated |= truncated
        tokens: Tensor = self._tokenizer(list(texts))
        return tokens


def count_modules(state: Mapping[str, Tensor], prefix: str) -> int:
    """Count the numbered modules under a prefix."""
    numbers = {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}
    return len(numbers)


def _fits(state: Mapping[str, Tensor], architecture: str | None) -> bool:
    """Decide whether weights may be of an architecture, or of any where none is expected."""
    try:
        return _Tower.of(state) == _ARCHITECTURES.get(architecture or "", _Tower.of(state))
    except (KeyError, ValueError):  # of no whole CLIP
        return False


def _check_architecture(tower: _Tower, path: Path, expected: str | None) -> None:
    """Refuse another one of OpenAI's vision towers than the expected one."""
    if expected in _ARCHITECTURES and tower != _ARCHITECTURES[expected]:
        names = [name for name, known in _ARCHITECTURES.items() if known == tower]
        received, fix = f"a {tower}", "give another file with --clip_weights"
        if names:
            received, fix = names[0], f"choose --clip_model {names[0]}, or {fix}"
        raise WeightsError(f"Expected CLIP {expected} in {path}, got {received}; {fix}.")


def _check_represented(tower: _Tower, state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that fit this model, but were trained in one that computes otherwise."""
    text_width, vocabulary = state["text_projection"].shape[0], len(state["token_embedding.weight"])
    width = tower.width if tower.patch else 0
    wrong = ""
    if width in _OTHER_HEADS:
        wrong = f"a {tower}, whose heads have {_OTHER_HEADS[width]}"
    elif width % _HEAD_WIDTH or text_width % _HEAD_WIDTH:
        wrong = f"a {tower}, and texts of width {text_width}"
    elif vocabulary != _VOCABULARY:
        wrong = f"one of {vocabulary:,} tokens, which has another tokenizer"
    if wrong:
        raise WeightsError(
            f"Expected a CLIP with attention heads of {_HEAD_WIDTH} channels and {_VOCABULARY:,} "
            f"tokens in {path}, got {wrong}; give ViT-B, ViT-L or a ResNet with --clip_weights."
        )
