"""Time, throughput and peak memory of every stage at real size, with random weights.

Each stage runs in a process of its own, so that its peak memory is its own, and beside a plain
version in the same process: the library's own, or one mask, one sentence or one pair at a time.
Random weights cost what trained ones cost, except in SAM's generator, whose thresholds are lowered
so that masks survive.

Example:
    python -m benchmarks.stages --masks 16 --output stages.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator, sam_model_registry
from torch import Tensor

from hybridgl import fusion, gem, guidance, views
from hybridgl.config import (
    FusionConfig,
    FusionMode,
    GemConfig,
    GuidanceConfig,
    ProposalConfig,
    ReferenceQuirks,
)
from hybridgl.images import RgbImage
from hybridgl.language import Position, Relation
from hybridgl.masks import Proposals
from hybridgl.methods.global_local import GlobalLocalClip, GlobalLocalConfig
from hybridgl.methods.hybridgl import HybridGL
from hybridgl.models import Models
from hybridgl.models.clip import ClipEncoder
from hybridgl.models.parser import SpacyParser
from hybridgl.models.sam_encoder import encode
from hybridgl.models.sam_generator import MaskGenerator
from hybridgl.stages import masks_per_chunk
from hybridgl.weights.registry import weight_set
from hybridgl.program import keep_freed_memory
from utils.runtime import peak_memory_bytes
from utils.tables import Table

HW = (480, 640)
"""Size of the generated image, in pixels: RefCOCO's usual one."""

NUM_SENTENCES = 7
"""Sentences of one image: 2.54 refs of 2.84 sentences in RefCOCO."""

QUIRKS = ReferenceQuirks()


@dataclass(frozen=True, slots=True)
class Measurement:
    """One stage's cost.

    Attributes:
        stage: its name.
        unit: what is counted.
        count: how many of them one call handles.
        seconds: of one call, the best of the repetitions.
        plain_seconds: of the plain version; None where there is none.
        peak_bytes: largest resident size of the process after the call, weights included.
    """

    stage: str
    unit: str
    count: int
    seconds: float
    plain_seconds: float | None
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage does, ready to run.

    Attributes:
        unit: what is counted.
        count: how many of them one call handles.
        run: the library's way.
        plain: one thing at a time; None where the stage has one thing only.
    """

    unit: str
    count: int
    run: Callable[[], object]
    plain: Callable[[], object] | None = None


def random_image(rng: np.random.Generator) -> NDArray[np.uint8]:
    """A generated image, RGB, uint8, (H, W, 3)."""
    return rng.integers(0, 256, size=(*HW, 3), dtype=np.uint8)


def ellipses(rng: np.random.Generator, count: int) -> Tensor:
    """Masks of random ellipses, bool, (N, H, W)."""
    y, x = torch.meshgrid(torch.arange(HW[0]), torch.arange(HW[1]), indexing="ij")
    centers = torch.from_numpy(rng.uniform(0.1, 0.9, (count, 2)) * HW)
    radii = torch.from_numpy(rng.uniform(20, 120, (count, 2)))
    dy = (y - centers[:, 0, None, None]) / radii[:, 0, None, None]
    dx = (x - centers[:, 1, None, None]) / radii[:, 1, None, None]
    return dx**2 + dy**2 <= 1


def random_clip(architecture: str = "ViT-B-16") -> ClipEncoder:
    """A CLIP as OpenAI built it, with random weights."""
    model = open_clip.create_model(f"{architecture}-quickgelu")
    return ClipEncoder(model.state_dict(), torch.device("cpu"))


def sam_encoder(_: int) -> Work:
    """SAM ViT-B's image encoder; plain: segment_anything's own forward pass."""
    sam = sam_model_registry["vit_b"]().eval()
    image_13RR = torch.zeros(1, 3, 1024, 1024)
    return Work(
        "image",
        1,
        lambda: encode(sam.image_encoder, image_13RR),
        lambda: sam.image_encoder(image_13RR),
    )


def sam_generator(_: int) -> Work:
    """SAM ViT-B's automatic masks on a grid of 8 x 8 clicks; plain: segment_anything's."""
    sam = sam_model_registry["vit_b"]().eval()
    config = ProposalConfig(
        pred_iou_thresh=-1.0, stability_score_thresh=0.0, min_mask_region_area=0
    )
    library = SamAutomaticMaskGenerator(sam, **asdict(config))
    ours = MaskGenerator(sam, config, torch.device("cpu"))
    image_HW3 = random_image(np.random.default_rng(0))
    return Work(
        "image",
        1,
        lambda: ours.submit([image_HW3])[0](),
        lambda: library.generate(image_HW3),
    )


def both_views(num_masks: int) -> Work:
    """Local views, global views and gates of all masks."""
    rng = np.random.default_rng(0)
    image_HW3, masks_NHW = random_image(rng), ellipses(rng, num_masks)

    def run(chunk: int) -> None:
        image_3HW = torch.from_numpy(image_HW3).permute(2, 0, 1)
        blurred_3HW = torch.from_numpy(views.blur_background(image_HW3)).permute(2, 0, 1)
        for masks in masks_NHW.split(chunk):
            views.local_views(image_3HW, masks, 224, QUIRKS)
            views.global_views(image_3HW, blurred_3HW, masks, 224, QUIRKS)
            views.patch_coverage(masks, 14)

    return Work("mask", num_masks, lambda: run(masks_per_chunk(HW, "cpu")), lambda: run(1))


def fused(mode: FusionMode) -> Callable[[int], Work]:
    """Mask features in a fusion mode, from views that are there."""

    def work(num_masks: int) -> Work:
        clip = random_clip()
        local_N3RR = torch.randn(num_masks, 3, 224, 224)
        global_N3RR = torch.randn(num_masks, 3, 224, 224)
        coverage_NP = views.patch_coverage(ellipses(np.random.default_rng(0), num_masks), 14)

        def run(chunk: int) -> None:
            parts = zip(
                local_N3RR.split(chunk),
                global_N3RR.split(chunk),
                coverage_NP.split(chunk),
                strict=True,
            )
            for local, global_, gate in parts:
                fusion.mask_features(
                    clip.visual,
                    local,
                    global_,
                    gate,
                    FusionConfig(mode=mode),
                    attention_masking_skips_last_block=True,
                )

        return Work("mask", num_masks, lambda: run(masks_per_chunk(HW, "cpu")), lambda: run(1))

    return work


def features(num_masks: int) -> Work:
    """Mask features as a run makes them, from the image and its masks, in bounded chunks."""
    rng = np.random.default_rng(0)
    image_HW3, masks_NHW = random_image(rng), ellipses(rng, num_masks).numpy()
    model = HybridGL.from_pretrained("tiny", device="cpu")
    model.models.clip = random_clip()

    def plain() -> None:
        for mask_1HW in np.split(masks_NHW, num_masks):
            model.compute_features(image_HW3, mask_1HW)

    run = partial(model.compute_features, image_HW3, masks_NHW)
    return Work("mask", num_masks, run, plain)


def baseline(architecture: str) -> Callable[[int], Work]:
    """Global-Local CLIP's features of an image's masks."""

    def work(num_masks: int) -> Work:
        rng = np.random.default_rng(0)
        image, masks_NHW = RgbImage(random_image(rng)), ellipses(rng, num_masks).numpy()
        models = Models(weight_set("tiny"), device=torch.device("cpu"))
        models.clip = random_clip(architecture)
        model = GlobalLocalClip(models, GlobalLocalConfig())

        def run(chunk: int) -> None:
            for masks in np.array_split(masks_NHW, -(-num_masks // chunk)):
                scores = np.ones(len(masks), dtype=np.float32)
                boxes_xywh = np.ones((len(masks), 4), dtype=np.int64)
                model.features(image, Proposals(masks, boxes_xywh, scores, scores))

        return Work("mask", num_masks, lambda: run(num_masks), lambda: run(1))

    return work


def gem_maps(_: int) -> Work:
    """GEM maps of an image's noun phrases; plain: the image pass once a phrase."""
    clip, config = random_clip(), GemConfig()
    image = Image.fromarray(random_image(np.random.default_rng(0)))
    phrases_SE = torch.randn(NUM_SENTENCES, 512)

    def one_pass(some_SE: Tensor) -> None:
        images_13RR = gem.gem_input(image, 448)[None]
        patches_PE = gem.patch_features(clip.visual, images_13RR, config)[0]
        gem.attention_map(gem.patch_similarity(patches_PE, some_SE), 448, HW)

    def plain() -> None:
        for phrase_1E in phrases_SE.split(1):
            one_pass(phrase_1E)

    return Work("phrase", NUM_SENTENCES, lambda: one_pass(phrases_SE), plain)


def texts(_: int) -> Work:
    """Text features; plain: one text at a time, each filled up to 77 tokens."""
    model = open_clip.create_model("ViT-B-16-quickgelu").eval()
    clip = ClipEncoder(model.state_dict(), torch.device("cpu"))
    sentences = [f"the {n}th thing on the left" for n in range(2 * NUM_SENTENCES)]
    counter = itertools.count()

    def run() -> None:
        # Texts of an earlier call would not be computed again.
        clip.encode_texts([f"{sentence} {next(counter)}" for sentence in sentences])

    def plain() -> None:
        for sentence in sentences:
            model.encode_text(clip.tokenize([sentence]))

    return Work("text", len(sentences), run, plain)


def parses(_: int) -> Work:
    """Parsing 200 sentences with the bundled pipeline; plain: one sentence at a time."""
    parser = SpacyParser(weight_set("tiny").spacy_model)
    sentences = [f"the red circle left of the {n}th green ring" for n in range(200)]

    def run(batches: Sequence[Sequence[str]]) -> None:
        for batch in batches:
            parser.parse(batch, right_relation_never_matches=True)

    return Work(
        "sentence",
        len(sentences),
        lambda: run([sentences]),
        lambda: run([[sentence] for sentence in sentences]),
    )


def guided(num_masks: int) -> Work:
    """Coherence, relations and picks; plain: coherence one mask at a time, by indexing."""
    rng = np.random.default_rng(0)
    masks_NHW = ellipses(rng, num_masks)
    sim_Sgg = torch.rand(NUM_SENTENCES, 28, 28)
    similarity_SN = rng.normal(size=(NUM_SENTENCES, num_masks))
    boxes_xywh = rng.uniform(1, 200, size=(num_masks, 4))
    priors = [
        guidance.position_prior(Position.LEFT, HW, vertical_priors_disabled=True)
    ] * NUM_SENTENCES
    weights = [1.8] * NUM_SENTENCES
    config = GuidanceConfig()

    def pick(coherence_SN: NDArray[np.float64]) -> None:
        for similarity_N, coherence_N in zip(similarity_SN, coherence_SN, strict=True):
            guidance.choose(similarity_N, None, coherence_N, boxes_xywh, Relation.LEFT, config)

    def run() -> None:
        attention_SHW = guidance.weighted_attention(gem.attention_map(sim_Sgg, 448, HW), priors)
        pick(guidance.coherence_scores(attention_SHW, masks_NHW, weights).double().numpy())

    def plain() -> None:
        rows = []
        for low_gg in sim_Sgg:
            attention_HW = guidance.weighted_attention(
                gem.attention_map(low_gg[None], 448, HW), priors[:1]
            )[0]
            row = [0.2 * attention_HW[m].mean() - 1.8 * attention_HW[~m].mean() for m in masks_NHW]
            rows.append([float(score) for score in row])
        pick(np.array(rows))

    return Work("sentence", NUM_SENTENCES, run, plain)


STAGES: dict[str, Callable[[int], Work]] = {
    "SAM encoder (ViT-B)": sam_encoder,
    "SAM generator (ViT-B)": sam_generator,
    "views": both_views,
    **{f"fusion {mode.value}": fused(mode) for mode in FusionMode},
    "features G2L": features,
    "features Global-Local (ViT-B/32)": baseline("ViT-B-32"),
    "features Global-Local (RN50)": baseline("RN50"),
    "GEM": gem_maps,
    "text features": texts,
    "parse": parses,
    "guidance": guided,
}


def measure(stage: str, num_masks: int, repeats: int) -> Measurement:
    """Run a stage in this process, with memory kept as the programs keep it."""
    keep_freed_memory()
    with torch.inference_mode():
        work = STAGES[stage](num_masks)
        seconds = _best_of(work.run, repeats)
        peak = peak_memory_bytes()
        plain = _best_of(work.plain, repeats) if work.plain else None
    return Measurement(stage, work.unit, work.count, seconds, plain, peak)


def _best_of(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def table(measurements: Sequence[Measurement]) -> Table:
    """The measurements as text."""
    return Table(
        header=("stage", "per call", "seconds", "per second", "peak MB", "times faster than plain"),
        rows=tuple(
            (
                m.stage,
                f"{m.count} {m.unit}",
                f"{m.seconds:.3f}",
                f"{m.count / m.seconds:.1f}",
                f"{m.peak_bytes / 1e6:.0f}",
                f"{m.plain_seconds / m.seconds:.2f}" if m.plain_seconds else "-",
            )
            for m in measurements
        ),
    )


def main() -> None:
    """Measure every stage, each in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--masks", type=int, default=16, help="masks of the image (default: 16)")
    parser.add_argument("--repeats", type=int, default=2, help="the best counts (default: 2)")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--output", type=Path, metavar="FILE", help="measurements as JSON")
    parser.add_argument("--in_process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.in_process:
        one = measure(arguments.stages[0], arguments.masks, arguments.repeats)
        print(json.dumps(asdict(one)))
        return
    measurements = []
    for stage in arguments.stages:
        sys.stderr.write(f"{stage} ...\n")
        command = [sys.executable, "-m", "benchmarks.stages", "--in_process", "--stages", stage]
        command += ["--masks", str(arguments.masks), "--repeats", str(arguments.repeats)]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        measurements.append(Measurement(**json.loads(result.stdout.splitlines()[-1])))
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{date.today()}, {machine}, {HW[1]} x {HW[0]} pixels, {arguments.masks} masks\n")
    print(table(measurements).markdown())
    if arguments.output:
        arguments.output.write_text(json.dumps([asdict(m) for m in measurements], indent=2))


if __name__ == "__main__":
    main()
