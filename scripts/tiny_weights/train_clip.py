"""Train the tiny CLIP that the library bundles, on scenes of the shapes world, and measure it.

The model is open_clip's own class in OpenAI's layout. Two things make it learn shapes, which are
hard and colours are not: discarded auxiliary heads, and windows on single regions that grow from
the region's box to the whole image in the first phase. The second phase adds the two ways in which
the method uses CLIP beyond that, the masked forward of ``hybridgl.fusion`` and the attention maps
of ``hybridgl.gem``, both run as they will run later; and captions that are wrong in one attribute,
because sizes are seldom told apart by chance. The third phase is for the attention maps above all,
which learn shapes last.

Run it again after an interruption and it goes on from its last checkpoint; a step's data depends
on the seed and the step alone. ``--evaluate`` measures the exported file on scenes
that no training saw.

Shapes: N regions, T texts, B scenes, R side of the input, L tokens, P patches, D width, E embedding
width, K objects of a scene.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn
from tqdm import tqdm

import hybridgl
from hybridgl.config import FusionConfig, GemConfig, Profile
from hybridgl.fusion import mask_features
from hybridgl.gem import patch_features
from hybridgl.models.clip import embed_patches
from refer.shapes.scene import COLORS, SHAPES, SIZES
from scripts.tiny_weights.clip_batches import (
    PATCH,
    SIDE,
    UNUSED,
    Batch,
    GemScenes,
    Phase,
    Views,
    sample_batch,
)
from scripts.tiny_weights.clip_data import Captions, ScenePool, fits_TN, open_pool
from scripts.tiny_weights.clip_scores import evaluate

__all__ = ["main"]

log = logging.getLogger(__name__)

WEIGHTS = Path(hybridgl.__file__).parent / "weights" / "tiny" / "clip.npz"

WIDTH, VISION_BLOCKS, TEXT_BLOCKS, EMBED = 128, 12, 3, 128
CONTEXT, VOCABULARY = 77, 49408

_OUTLINE_BLOCK = 4
_OUTLINE_CELLS = 4
_MANTISSA_BITS = 8
_BACKGROUND = len(SHAPES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """Phases under one cosine of the learning rate, which ends at 0.

    Attributes:
        learning_rate: at the top.
        warmup: steps of the linear rise to it.
        phases: one after the other.
    """

    learning_rate: float
    warmup: int
    phases: tuple[Phase, ...]

    @property
    def steps(self) -> int:
        """Of all phases."""
        return sum(phase.steps for phase in self.phases)


ROUNDS = (
    Round(
        learning_rate=4e-4,
        warmup=200,
        phases=(
            Phase(steps=2600, crop_shares=(0.6, 0.2), reaches=(0.2, 3.0), scenes=8),
            Phase(
                steps=2600,
                crop_shares=(0.25, 0.2),
                scenes=3,
                masked_scenes=5,
                gem_scenes=2,
                opposites=True,
            ),
        ),
    ),
    Round(
        learning_rate=2.5e-4,
        warmup=50,
        phases=(
            Phase(
                steps=1500,
                crop_shares=(0.3, 0.3),
                scenes=2,
                masked_scenes=5,
                gem_scenes=6,
                opposites=True,
            ),
        ),
    ),
)

WEIGHT_DECAY = 0.05
MAX_GRADIENT_NORM = 1.0
AUXILIARY_WEIGHTS = {"shape": 3.0, "color": 0.5, "size": 0.5, "patches": 0.5, "outline": 0.5}
GEM_WEIGHT = 1.0

NUM_PHRASES = 40_000
CHECKPOINT_EVERY = 200


# The model.


def build_clip(vocabulary: int) -> CLIP:
    """Untrained tiny CLIP.

    Residual branches start small, as in OpenAI's initialisation of the text tower.

    Args:
        vocabulary: rows of the embedding table.
    """
    clip = CLIP(
        EMBED,
        CLIPVisionCfg(layers=VISION_BLOCKS, width=WIDTH, patch_size=PATCH, image_size=SIDE),
        CLIPTextCfg(
            context_length=CONTEXT,
            vocab_size=vocabulary,
            width=WIDTH,
            heads=WIDTH // 64,
            layers=TEXT_BLOCKS,
        ),
        quick_gelu=True,
    )
    for block in clip.visual.transformer.resblocks:
        nn.init.normal_(block.attn.in_proj_weight, std=WIDTH**-0.5)
        nn.init.normal_(block.attn.out_proj.weight, std=(2 * VISION_BLOCKS * WIDTH) ** -0.5)
        nn.init.normal_(block.mlp.c_fc.weight, std=(2 * WIDTH) ** -0.5)
        nn.init.normal_(block.mlp.c_proj.weight, std=(2 * VISION_BLOCKS * WIDTH) ** -0.5)
        for bias in (block.attn.in_proj_bias, block.mlp.c_fc.bias, block.mlp.c_proj.bias):
            nn.init.zeros_(bias)
    return clip


class Learner(nn.Module):
    """CLIP with the auxiliary heads that are discarded after training."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.clip = build_clip(vocabulary)
        self.heads = nn.ModuleDict(
            {
                "shape": nn.Linear(EMBED, len(SHAPES)),
                "color": nn.Linear(EMBED, len(COLORS)),
                "size": nn.Linear(EMBED, len(SIZES)),
                "patches": nn.Linear(WIDTH, _BACKGROUND + 1),
                "outline": nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, _OUTLINE_CELLS**2)),
            }
        )

    def text_features(self, tokens_TL: Tensor) -> Tensor:
        """Text features of compact rows; the text tower is causal, so padding has no say."""
        clip, length = self.clip, tokens_TL.shape[1]
        x_TLD = clip.token_embedding(tokens_TL) + clip.positional_embedding[:length]
        x_TLD = clip.transformer(x_TLD, attn_mask=clip.attn_mask[:length, :length])
        end_T = tokens_TL.argmax(dim=-1)
        last_TD = clip.ln_final(x_TLD[torch.arange(len(x_TLD)), end_T])
        features: Tensor = last_TD @ clip.text_projection
        return features

    def region_features(self, views: Views, shapes_N: Tensor) -> tuple[Tensor, Tensor]:
        """Class-token features of single-region views, and the loss of what patches tell."""
        visual = self.clip.visual
        x_NTD = embed_patches(visual, views.images_N3RR)
        for index, block in enumerate(visual.transformer.resblocks):
            x_NTD = block(x_NTD)
            if index + 1 == _OUTLINE_BLOCK:
                outline_NPC = self.heads["outline"](x_NTD[:, 1:])
        x_NTD = visual.ln_post(x_NTD)
        patches = F.cross_entropy(
            self.heads["patches"](x_NTD[:, 1:]).float().flatten(0, 1),
            _patch_shapes(views.masks_N1RR, shapes_N).flatten(),
            ignore_index=UNUSED,
        )
        cells = _outline(views.masks_N1RR)
        outline = F.binary_cross_entropy_with_logits(outline_NPC.float(), cells)
        auxiliary = AUXILIARY_WEIGHTS["patches"] * patches + AUXILIARY_WEIGHTS["outline"] * outline
        return x_NTD[:, 0] @ visual.proj, auxiliary

    def attribute_loss(self, features_NE: Tensor, attributes_N3: Tensor) -> Tensor:
        """Loss of the heads that read shape, colour and size off features, whatever the view."""
        losses = [
            AUXILIARY_WEIGHTS[name]
            * F.cross_entropy(self.heads[name](features_NE).float(), attributes_N3[:, column])
            for column, name in enumerate(("shape", "color", "size"))
        ]
        return torch.stack(losses).sum()


def _patch_shapes(masks_N1RR: Tensor, shapes_N: Tensor) -> Tensor:
    """Shape of the region in the patches that it fills by half; (N, P)."""
    coverage_NP = F.avg_pool2d(masks_N1RR, PATCH).flatten(1)
    labels_NP = torch.full(coverage_NP.shape, UNUSED)
    labels_NP[coverage_NP < 0.1] = _BACKGROUND
    return torch.where(coverage_NP > 0.5, shapes_N[:, None], labels_NP)


def _outline(masks_N1RR: Tensor) -> Tensor:
    """Coverage of the cells of every patch, (N, P, cells)."""
    cells = F.avg_pool2d(masks_N1RR, PATCH // _OUTLINE_CELLS)
    return F.pixel_unshuffle(cells, _OUTLINE_CELLS).flatten(2).transpose(1, 2)


# Losses.


def contrast(scores: Tensor, positive: Tensor) -> Tensor:
    """Mean over the rows that have positives of the mean -log softmax of those."""
    counts = positive.sum(dim=1)
    logs = scores.log_softmax(dim=1).masked_fill(~positive, 0.0)
    has_any = counts > 0
    return -(logs.sum(dim=1)[has_any] / counts[has_any]).mean()


def gem_loss(patches_BPE: Tensor, texts_TE: Tensor, scale: Tensor, scenes: GemScenes) -> Tensor:
    """Patches against all prompts, and every prompt against the patches of its scene."""
    scores_TBP = scale * torch.einsum("te,bpe->tbp", F.normalize(texts_TE, dim=-1), patches_BPE)
    fits_TK = fits_TN(scenes.told_T3, scenes.attributes_K3)
    owners_BP = scenes.owners_BP
    owned_BP = owners_BP >= 0
    fits_TBP = fits_TK[:, owners_BP.clamp(min=0)] & owned_BP
    from_patches = contrast(scores_TBP[:, owned_BP].T, fits_TBP[:, owned_BP].T)
    prompts_T = torch.arange(len(texts_TE))
    own_TP = scores_TBP[prompts_T, scenes.scene_of_T]
    used_TP = (owners_BP != UNUSED)[scenes.scene_of_T]
    from_texts = contrast(
        own_TP.masked_fill(~used_TP, -1e4), fits_TBP[prompts_T, scenes.scene_of_T]
    )
    return 0.5 * (from_patches + from_texts)


@dataclass(frozen=True, slots=True)
class Losses:
    """One step's loss terms, and the share of answerable captions whose best region fits."""

    contrast: Tensor
    auxiliary: Tensor
    gem: Tensor
    right: Tensor

    @property
    def total(self) -> Tensor:
        """What is minimised."""
        return self.contrast + self.auxiliary + GEM_WEIGHT * self.gem


def step_losses(learner: Learner, batch: Batch) -> Losses:
    """Compute all losses of a batch; the towers run in bfloat16, the comparisons in float32."""
    visual, scale = learner.clip.visual, learner.clip.logit_scale.exp().clamp(max=100.0)
    shapes_N = batch.attributes_N3[: len(batch.views.images_N3RR), 0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features_NE, auxiliary = learner.region_features(batch.views, shapes_N)
        texts_TE = learner.text_features(batch.tokens_TL)
        if batch.masked is not None:
            quirks = batch.masked.quirks
            masked_NE = mask_features(
                visual,
                batch.masked.local_N3RR,
                batch.masked.global_N3RR,
                batch.masked.coverage_NP,
                FusionConfig(fusion_mode=batch.masked.mode),
                attention_masking_skips_last_block=quirks.attention_masking_skips_last_block,
            )
            features_NE = torch.cat([features_NE, masked_NE])
        auxiliary = auxiliary + learner.attribute_loss(features_NE, batch.attributes_N3)
        if batch.gem is not None:
            patches_BPE = patch_features(visual, batch.gem.images_B3RR, GemConfig())
            prompts_TE = learner.text_features(batch.gem.tokens_TL)
    gem = torch.zeros(())
    if batch.gem is not None:
        gem = gem_loss(patches_BPE.float(), prompts_TE.float(), scale, batch.gem)
    features_NE, texts_TE = (F.normalize(x.float(), dim=-1) for x in (features_NE, texts_TE))
    scores_TN = scale * texts_TE @ features_NE.T
    matches_TN = fits_TN(batch.told_T3, batch.attributes_N3)
    both_ways = 0.5 * (contrast(scores_TN, matches_TN) + contrast(scores_TN.T, matches_TN.T))
    best_T1 = scores_TN.detach().argmax(dim=1, keepdim=True)
    right_T = matches_TN.gather(1, best_T1)[matches_TN.any(dim=1)]
    return Losses(both_ways, auxiliary, gem, right_T.float().mean())


# The loop.


def _place(step: int) -> tuple[Phase, float, float]:
    """Return the phase of a step, the share of it that lies behind, and the learning rate."""
    for current in ROUNDS:
        if step < current.steps:
            break
        step -= current.steps
    cosine = 0.5 * (1 + math.cos(math.pi * step / current.steps))
    learning_rate = min(1.0, (step + 1) / current.warmup) * current.learning_rate * cosine
    for phase in current.phases:
        if step < phase.steps:
            break
        step -= phase.steps
    return phase, step / phase.steps, learning_rate


def _optimizer(learner: nn.Module) -> torch.optim.AdamW:
    groups: dict[bool, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in learner.named_parameters():
        groups[parameter.ndim >= 2 and "embedding" not in name].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": WEIGHT_DECAY},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
    )


def train(folder: Path, seed: int, scenes: int, weights: Path) -> None:
    """Train to the end of the last phase, from the last checkpoint in ``folder`` if there is one.

    Args:
        folder: where checkpoints and the pool of scenes are.
        seed: of scenes, phrases, weights and batches.
        scenes: size of the pool.
        weights: the file to write after each phase.
    """
    captions = Captions(seed, NUM_PHRASES)
    pool = open_pool(folder / "pool", seed, scenes)
    torch.manual_seed(seed)
    learner = Learner(len(captions.token_ids))
    optimizer = _optimizer(learner)
    checkpoint = folder / "checkpoint.pt"
    step = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["token_ids"] != captions.token_ids:
            raise ValueError(
                f"expected a checkpoint of the same phrases, got {checkpoint} of others: delete it"
            )
        learner.load_state_dict(state["learner"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    ends = set(accumulate(phase.steps for current in ROUNDS for phase in current.phases))
    means: dict[str, float] = {}
    with tqdm(total=max(ends), initial=step, mininterval=10) as progress:
        while step < max(ends):
            losses = train_step(learner, optimizer, pool, captions, seed, step)
            step += 1
            for name in ("contrast", "auxiliary", "gem", "right"):
                value = float(getattr(losses, name).detach())
                means[name] = 0.99 * means.get(name, value) + 0.01 * value
            progress.set_postfix({name: f"{value:.3f}" for name, value in means.items()}, False)
            progress.update()
            if step % CHECKPOINT_EVERY == 0 or step in ends:
                draft = checkpoint.with_suffix(".draft")
                torch.save(
                    {
                        "learner": learner.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "step": step,
                        "token_ids": captions.token_ids,
                    },
                    draft,
                )
                draft.replace(checkpoint)
            if step in ends:
                export(learner.clip, captions.token_ids, weights)


def train_step(
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    pool: ScenePool,
    captions: Captions,
    seed: int,
    step: int,
) -> Losses:
    phase, done, learning_rate = _place(step)
    rng = np.random.default_rng(np.random.SeedSequence((seed, 102, step)))
    batch = sample_batch(pool, captions, rng, phase, done)
    losses = step_losses(learner, batch)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad(set_to_none=True)
    losses.total.backward()
    nn.utils.clip_grad_norm_(learner.parameters(), MAX_GRADIENT_NORM)
    optimizer.step()
    return losses


def export(clip: CLIP, token_ids: Sequence[int], path: Path) -> None:
    """Write OpenAI's layout as float16, with the full table: zeros for words never seen.

    Mantissas are rounded to ``_MANTISSA_BITS``, which compression turns into a smaller file.
    """
    state = {name: _rounded(tensor).half() for name, tensor in clip.state_dict().items()}
    table = torch.zeros(VOCABULARY, WIDTH, dtype=torch.float16)
    table[torch.tensor(token_ids)] = state["token_embedding.weight"]
    state["token_embedding.weight"] = table
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in state.items()}
    with draft.open("wb") as stream:
        np.savez_compressed(stream, **arrays)
    draft.replace(path)
    log.info("wrote %s, %d bytes", path, path.stat().st_size)


def _rounded(values: Tensor) -> Tensor:
    """Nearest values whose mantissas have ``_MANTISSA_BITS`` bits behind the leading one."""
    mantissa, exponent = torch.frexp(values.detach().float())
    steps = 2.0 ** (_MANTISSA_BITS + 1)
    return torch.ldexp((mantissa * steps).round() / steps, exponent)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or measure with ``--evaluate``."""
    parser = argparse.ArgumentParser(description="Train the tiny CLIP of the shapes world.")
    parser.add_argument(
        "--checkpoints",
        type=Path,
        default=Path("build/tiny_clip"),
        help="folder of the checkpoint and the scenes (default: %(default)s)",
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="the file of the weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=8000, help="training scenes")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--evaluate", action="store_true", help="measure the weights instead")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    if not options.evaluate:
        train(options.checkpoints, options.seed, options.scenes, options.weights)
    for profile in Profile:
        scores = evaluate(options.weights, options.seed, 150, profile)
        log.info("%s: %s", profile.value, ", ".join(f"{k} {v:.4g}" for k, v in scores.items()))


if __name__ == "__main__":
    main()
