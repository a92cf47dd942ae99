"""Train the tiny SAM that the library bundles, on scenes of the shapes world, and measure it.

The model is built from segment_anything's own classes (``build_tiny_sam``). It learns what the
mask generator asks of it: a point prompt gives three masks and a quality for each. The recipe is of
Segment Anything (Kirillov et al., ICCV 2023, appendix A): the loss of the best of the three masks
and a regression of their quality; half the mean loss of the three is added, since little is
ambiguous in this world.

The generator prompts on a fixed grid, and one object in eight has no grid point on it. So a point
*beside* an object, up to ``NEAR`` pixels away, means that object as well; a point further away
means nothing, and its masks have the least quality.

Run it again after an interruption and it goes on from its last checkpoint; a step's data depends
on the seed and the step alone.

Shapes: B images, Q point prompts per image, M = 3 masks of each, H, W pixels, h, w loss grid.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import modeling
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

import hybridgl
from hybridgl.config import SAM_SETTINGS
from hybridgl.models.sam import Sam, build_tiny_sam
from refer.shapes.scene import IMAGE_HW, SIZES
from refer.shapes.world import training_scene

__all__ = ["main"]

NEAR = 10.0
"""A point at most this far from an object, in pixels, means the object."""

FAR = 14.0
"""A point further than this from every object, in pixels, means nothing; between, unused."""

LEAST_QUALITY = 1 / 3
"""Quality of a mask with IoU 0; 1 is that of IoU 1. The generator's cut at 0.7 is IoU 0.55 then:
a small object whose edge is a pixel off has an IoU of 0.75, too close to a cut there."""

HELD_OUT_SEED = 1_000_003
"""Seed of the scenes that measure; no training may use it."""

_BACKGROUND, _UNUSED = 0, 255
_NUM_BACKGROUND, _NUM_NEAR = 3, 4
_STEP_STREAM = 200
_STEPS_PER_CHECKPOINT = 200


@dataclass(frozen=True, slots=True)
class Settings:
    """All that the weights depend on.

    Attributes:
        folder: for the scenes and checkpoints.
        seed: of scenes, initial weights and steps.
        scenes: how many different ones are trained on.
        steps: of the optimiser.
        images: per step.
        points: per image.
        lr: peak learning rate.
    """

    folder: Path
    seed: int
    scenes: int
    steps: int
    images: int
    points: int
    lr: float


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Training scenes on disk, memory-mapped.

    Attributes:
        images_NHW3: uint8 RGB.
        labels_NHW: uint8; which object owns the pixel, from 1; 0 for none.
        claims_NHW: uint8; which object a point there means; 0 for none, 255 for unused.
    """

    images_NHW3: NDArray[np.uint8]
    labels_NHW: NDArray[np.uint8]
    claims_NHW: NDArray[np.uint8]


def click_claims(labels_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Which object a point on each pixel means: its own, else the nearest one."""
    numbers = np.unique(labels_HW[labels_HW > 0])
    distances_KHW = np.stack(
        [cv2.distanceTransform((labels_HW != k).astype(np.uint8), cv2.DIST_L2, 5) for k in numbers]
    )
    nearest_HW = distances_KHW.min(axis=0)
    claims_HW: NDArray[np.uint8] = numbers[distances_KHW.argmin(axis=0)]
    claims_HW[nearest_HW > NEAR] = _UNUSED
    claims_HW[nearest_HW > FAR] = _BACKGROUND
    return claims_HW


def open_pool(folder: Path, seed: int, size: int) -> Pool:
    """Open the pool in ``folder``, drawing it first if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}-{seed}-{size}.npy" for name in ("images", "labels", "claims")]
    if not paths[-1].exists():
        shapes = [(size, *IMAGE_HW, 3), (size, *IMAGE_HW), (size, *IMAGE_HW)]
        drafts = [path.with_suffix(".draft") for path in paths]
        arrays = [
            np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
            for path, shape in zip(drafts, shapes, strict=True)
        ]
        for index in tqdm(range(size), desc="scenes", mininterval=5):
            scene = training_scene(seed, index)
            arrays[0][index] = scene.image_HW3
            arrays[1][index] = scene.labels_HW
            arrays[2][index] = click_claims(scene.labels_HW)
        for array in arrays:
            array.flush()
        for draft, path in zip(drafts, paths, strict=True):
            draft.replace(path)
    return Pool(*(np.load(path, mmap_mode="r") for path in paths))


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What one step learns from.

    Attributes:
        images_B3HW: float32 RGB in 0..255.
        points_BQ2: float32 x, y in pixels.
        targets_BPhw: float32 coverage of the meant object on a grid of half the resolution.
        is_object_BQ: bool; False where the point means nothing.
    """

    images_B3HW: Tensor
    points_BQ2: Tensor
    targets_BPhw: Tensor
    is_object_BQ: Tensor


def sample_batch(pool: Pool, rng: np.random.Generator, num_images: int, num_points: int) -> Batch:
    """Draw images, flips, noise and point prompts."""
    images, points, targets, is_object = [], [], [], []
    for index in rng.integers(len(pool.labels_NHW), size=num_images):
        flips = (slice(None, None, int(rng.choice([1, -1]))) for _ in range(2))
        window = tuple(flips)
        image_HW3 = pool.images_NHW3[index][window].astype(np.float32)
        image_HW3 += rng.standard_normal(image_HW3.shape, dtype=np.float32) * rng.uniform(0, 5)
        labels_HW = np.ascontiguousarray(pool.labels_NHW[index][window])
        claims_HW = np.ascontiguousarray(pool.claims_NHW[index][window])
        points_Q2, meant_Q = _sample_points(labels_HW, claims_HW, rng, num_points)
        objects_QHW = labels_HW == meant_Q[:, None, None]
        height, width = labels_HW.shape
        objects_Qhw = objects_QHW.reshape(num_points, height // 2, 2, width // 2, 2)
        images.append(image_HW3.clip(0, 255).transpose(2, 0, 1))
        points.append(points_Q2)
        targets.append(objects_Qhw.sum(axis=(2, 4), dtype=np.float32) / 4)
        is_object.append(meant_Q != _BACKGROUND)
    return Batch(
        *(torch.from_numpy(np.stack(part)) for part in (images, points, targets, is_object))
    )


def _sample_points(
    labels_HW: NDArray[np.uint8],
    claims_HW: NDArray[np.uint8],
    rng: np.random.Generator,
    num_points: int,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Point prompts as x, y (Q, 2) and the object that each means (Q,)."""
    width = labels_HW.shape[1]
    labels, claims = labels_HW.ravel(), claims_HW.ravel()
    background = np.flatnonzero(claims == _BACKGROUND)
    chosen = [rng.choice(background, size=min(_NUM_BACKGROUND, len(background)))]
    # Objects are drawn first, then a pixel of each, so that small ones are met as often.
    numbers = rng.choice(np.unique(labels)[1:], size=num_points - len(chosen[0]))
    for position, number in enumerate(numbers):
        own = labels == number
        beside = (claims == number) & ~own
        pixels = beside if position < _NUM_NEAR and beside.any() else own
        chosen.append(rng.choice(np.flatnonzero(pixels), size=1))
    flat = np.concatenate(chosen)
    points = np.stack([flat % width, flat // width], axis=1).astype(np.float32)
    return points, claims[flat]


def predict(sam: modeling.Sam, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mask logits (B*P, M, h, w) on the loss grid and predicted qualities (B*P, M)."""
    embeddings = sam.image_encoder(sam.preprocess(batch.images_B3HW))
    pe = sam.prompt_encoder.get_dense_pe()
    logits, qualities = [], []
    for embedding, points in zip(embeddings, batch.points_BQ2, strict=True):
        labels = torch.ones(len(points), 1, dtype=torch.int)
        sparse, dense = sam.prompt_encoder((points[:, None], labels), None, None)
        masks, quality = sam.mask_decoder(embedding[None], pe, sparse, dense, multimask_output=True)
        logits.append(masks)
        qualities.append(quality)
    h, w = batch.targets_BPhw.shape[-2:]
    low = torch.cat(logits).float()
    side = 2 * low.shape[-1]
    high = F.interpolate(low, (side, side), mode="bilinear", align_corners=False)
    return high[..., :h, :w], torch.cat(qualities).float()


def training_loss(logits: Tensor, quality: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Compute the loss to minimise and the mean IoU of the best mask, for the log."""
    is_object = batch.is_object_BQ.flatten()
    targets = batch.targets_BPhw.flatten(0, 1)[is_object][:, None]
    on_object = logits[is_object]
    bce = F.binary_cross_entropy_with_logits(
        on_object, targets.expand_as(on_object), reduction="none"
    ).mean(dim=(2, 3))
    probability = on_object.sigmoid()
    overlap = (probability * targets).sum(dim=(2, 3))
    total = probability.sum(dim=(2, 3)) + targets.sum(dim=(2, 3))
    mask_loss = 10 * bce + 1 - (2 * overlap + 1) / (total + 1)
    with torch.no_grad():
        predicted, wanted = on_object > 0, targets >= 0.5
        union = (predicted | wanted).sum(dim=(2, 3))
        true_ious = torch.zeros_like(quality)
        true_ious[is_object] = (predicted & wanted).sum(dim=(2, 3)) / union.clamp(min=1)
        best_iou = true_ious[is_object].max(dim=1).values.mean()
    loss = mask_loss.min(dim=1).values.mean() + 0.5 * mask_loss.mean()
    wanted_quality = LEAST_QUALITY + (1 - LEAST_QUALITY) * true_ious
    return loss + 10 * F.mse_loss(quality, wanted_quality), best_iou


def train(settings: Settings) -> modeling.Sam:
    """Train to the last step, from the last checkpoint if there is one.

    Args:
        settings: all that the weights depend on.

    Returns:
        The trained model, on the CPU.

    Raises:
        ValueError: the checkpoint in the folder comes from other settings.
    """
    settings.folder.mkdir(parents=True, exist_ok=True)
    pool = open_pool(settings.folder / "pool", settings.seed, settings.scenes)
    torch.manual_seed(settings.seed)
    sam = build_tiny_sam().train()
    torch.nn.init.trunc_normal_(sam.image_encoder.pos_embed, std=0.02)
    optimizer = torch.optim.AdamW(sam.parameters(), lr=settings.lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.lr, total_steps=settings.steps, pct_start=0.05, cycle_momentum=False
    )
    parts = {"sam": sam, "optimizer": optimizer, "schedule": schedule}
    checkpoint = settings.folder / "last.pt"
    numbers = {name: value for name, value in asdict(settings).items() if name != "folder"}
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["settings"] != numbers:
            raise ValueError(
                f"Expected {checkpoint} to come from {numbers}, got one from {state['settings']}; "
                f"choose another folder."
            )
        for name, part in parts.items():
            part.load_state_dict(state[name])
        first = state["step"]
    progress = tqdm(
        range(first, settings.steps), initial=first, total=settings.steps, mininterval=5
    )
    for step in progress:
        rng = np.random.default_rng(np.random.SeedSequence((settings.seed, _STEP_STREAM, step)))
        batch = sample_batch(pool, rng, settings.images, settings.points)
        with torch.autocast("cpu", torch.bfloat16):
            logits, quality = predict(sam, batch)
        loss, best_iou = training_loss(logits, quality, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", iou=f"{best_iou.item():.3f}", refresh=False)
        if (step + 1) % _STEPS_PER_CHECKPOINT == 0 or step + 1 == settings.steps:
            state = {name: part.state_dict() for name, part in parts.items()}
            state |= {"step": step + 1, "settings": numbers}
            torch.save(state, checkpoint.with_suffix(".draft"))
            checkpoint.with_suffix(".draft").replace(checkpoint)
    return sam.eval()


def export(sam: modeling.Sam, path: Path) -> None:
    """Write the weights as float16 arrays; the same weights give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: value.numpy().astype(np.float16) for name, value in sam.state_dict().items()}
    np.savez_compressed(path, allow_pickle=False, **arrays)


@dataclass(frozen=True, slots=True)
class Scores:
    """How good proposals are on held-out scenes.

    Attributes:
        mean_best_iou: over objects, IoU of the best proposal, 0 to 1.
        recall: share of objects whose best proposal has an IoU above 0.5.
        proposals_per_object: proposals divided by objects.
        seconds_per_image: on the threads given.
        objects: how many there were.
        best_iou_by_size: ``mean_best_iou`` of the objects of each size name.
    """

    mean_best_iou: float
    recall: float
    proposals_per_object: float
    seconds_per_image: float
    objects: int
    best_iou_by_size: dict[str, float]


def evaluate(proposer: Sam, num_images: int) -> Scores:
    """Measure a model on scenes that no training with another seed has met."""
    best: dict[str, list[float]] = {size: [] for size in SIZES}
    num_proposals, seconds = 0, 0.0
    for index in tqdm(range(num_images), desc="held-out scenes", mininterval=5):
        scene = training_scene(HELD_OUT_SEED, index)
        start = time.perf_counter()
        proposals = proposer.propose(scene.image_HW3, SAM_SETTINGS["shapes"])
        seconds += time.perf_counter() - start
        num_proposals += len(proposals)
        for number, item in enumerate(scene.objects):
            gt_mask_HW = scene.mask_HW(number)
            overlap_N = (proposals.masks_NHW & gt_mask_HW).sum(axis=(1, 2))
            union_N = (proposals.masks_NHW | gt_mask_HW).sum(axis=(1, 2))
            best[item.size].append(float((overlap_N / union_N).max(initial=0.0)))
    ious = np.concatenate([np.array(values) for values in best.values()])
    return Scores(
        mean_best_iou=float(ious.mean()),
        recall=float((ious > 0.5).mean()),
        proposals_per_object=num_proposals / len(ious),
        seconds_per_image=seconds / num_images,
        objects=len(ious),
        best_iou_by_size={size: float(np.mean(values)) for size, values in best.items() if values},
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and export, or measure with ``--evaluate``; the scores go to standard output."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--weights",
        type=Path,
        default=Path(hybridgl.__file__).parent / "weights" / "tiny" / "sam.npz",
        help="file to write, or to measure",
    )
    parser.add_argument("--evaluate", action="store_true", help="measure only, train nothing")
    parser.add_argument("--evaluate-images", type=int, default=300, help="held-out scenes")
    parser.add_argument(
        "--folder", type=Path, default=Path("tiny-sam"), help="for the scenes and checkpoints"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=6000, help="different training scenes")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--images", type=int, default=8, help="per step")
    parser.add_argument("--points", type=int, default=12, help="per image")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    if args.seed == HELD_OUT_SEED:
        parser.error(f"expected a seed other than {HELD_OUT_SEED}, which measures: choose another")
    torch.set_num_threads(args.threads)
    if not args.evaluate:
        settings = Settings(
            args.folder, args.seed, args.scenes, args.steps, args.images, args.points, args.lr
        )
        export(train(settings), args.weights)
    scores = evaluate(Sam.from_checkpoint(args.weights, "tiny"), args.evaluate_images)
    report = {
        "weights": str(args.weights),
        "bytes": args.weights.stat().st_size,
        "images": args.evaluate_images,
        "threads": args.threads,
        "proposals": asdict(SAM_SETTINGS["shapes"]),
        "scores": asdict(scores),
    }
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
