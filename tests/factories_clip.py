"""Small random CLIPs in OpenAI's layout, and models with one of them and a parser by hand."""

from __future__ import annotations

import warnings

import numpy as np
import open_clip
import torch
from torch import nn

from hybridgl.models import Models
from hybridgl.models.clip import ClipEncoder
from hybridgl.weights.registry import weight_set


def clip_state(
    seed=0,
    *,
    side=64,
    patch=16,
    width=128,
    blocks=12,
    embedding=64,
    text_width=64,
    text_blocks=2,
    sharpness=1.0,
):
    """A state dict of float32 tensors whose values float16 holds exactly.

    Defaults give a grid of 4 x 4 patches, two vision heads and one text head. The sharper attention
    is, the more rounding errors grow from block to block.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, std, mean=0.0):
        return (mean + std * torch.randn(*shape, generator=generator)).half().float()

    def linear(name, rows, columns):
        return {
            f"{name}weight": normal(rows, columns, std=columns**-0.5),
            f"{name}bias": normal(rows, std=0.1),
        }

    def norm(name, size, mean=1.0):
        return {
            f"{name}weight": normal(size, std=0.1, mean=mean),
            f"{name}bias": normal(size, std=0.1),
        }

    def transformer(prefix, size, count):
        state = {}
        for index in range(count):
            name = f"{prefix}transformer.resblocks.{index}."
            state |= linear(f"{name}attn.in_proj_", 3 * size, size)
            state |= linear(f"{name}attn.out_proj.", size, size)
            state |= linear(f"{name}mlp.c_fc.", 4 * size, size)
            state |= linear(f"{name}mlp.c_proj.", size, 4 * size)
            state |= norm(f"{name}ln_1.", size, mean=sharpness)
            state |= norm(f"{name}ln_2.", size)
        return state

    tokens = 1 + (side // patch) ** 2
    return {
        "positional_embedding": normal(77, text_width, std=0.3),
        "text_projection": normal(text_width, embedding, std=text_width**-0.5),
        "logit_scale": torch.tensor(4.6).half().float(),
        "token_embedding.weight": normal(49408, text_width, std=0.5),
        **norm("ln_final.", text_width),
        **transformer("", text_width, text_blocks),
        "visual.class_embedding": normal(width, std=0.5),
        "visual.positional_embedding": normal(tokens, width, std=0.5),
        "visual.proj": normal(width, embedding, std=width**-0.5),
        "visual.conv1.weight": normal(width, 3, patch, patch, std=(3 * patch**2) ** -0.5),
        **norm("visual.ln_pre.", width),
        **norm("visual.ln_post.", width),
        **transformer("visual.", width, blocks),
    }


def resnet_clip_state(seed=0):
    """A state dict as ``clip_state``'s with a ResNet as vision tower, for images of 64 pixels."""
    torch.manual_seed(seed)
    vision = open_clip.CLIPVisionCfg(layers=(1, 1, 1, 1), width=16, image_size=64)
    tower = open_clip.CLIP(64, vision, open_clip.CLIPTextCfg(layers=1)).visual
    text = {key: value for key, value in clip_state(seed).items() if "visual." not in key}
    return text | {
        f"visual.{key}": value.half().float() if value.is_floating_point() else value
        for key, value in tower.state_dict().items()
    }


def clip_encoder(state):
    return ClipEncoder(state, torch.device("cpu"))


class _Tree(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def save_torchscript(path, state):
    """An archive as OpenAI publishes them: scripted code beside float16 weights."""
    root = _Tree()
    for name, value in state.items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, _Tree())
            module = getattr(module, parent)
        module.register_parameter(leaf, nn.Parameter(value.half(), requires_grad=False))
    # As in OpenAI's archives, three settings stand among the tensors.
    for name, value in (("input_resolution", 224), ("context_length", 77), ("vocab_size", 49408)):
        root.register_buffer(name, torch.tensor(value))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.*")
        torch.jit.script(root).save(str(path))
    return path


def save_npz(path, state):
    np.savez(path, **{name: value.half().numpy() for name, value in state.items()})
    return path


class ParserByHand:
    """Knows a few sentences, and counts how often it is asked."""

    name = "by hand"

    def __init__(self, expressions):
        self._expression_of = {expression.sentence: expression for expression in expressions}
        self.calls = []

    def parse(self, sentences, *, right_relation_never_matches):
        self.calls.append((list(sentences), right_relation_never_matches))
        return [self._expression_of[sentence] for sentence in sentences]


def models_of(clip_weights, expressions=None):
    """Tiny models on the CPU with another CLIP; with expressions, parsed by hand."""
    weights = weight_set("tiny", clip_weights=clip_weights)
    models = Models(weights, device=torch.device("cpu"))
    if expressions is not None:
        models.__dict__["parser"] = ParserByHand(expressions)
        models.assume("parser", "0" * 64)
    return models
