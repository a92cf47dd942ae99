"""The least time that the stages of an image can take, by arithmetic and by bytes.

Operations and bytes come from the architectures; how many of them a second the machine does is
measured in the process that the stages are timed in.

Shapes: T tokens, D width, C channels of SAM's embedding, g places of it along a side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.generated_data import HW, Setting
from benchmarks.reference_schedule import ReferenceSchedule
from hybridgl.config import MethodConfig, ProposalConfig, TextConfig
from hybridgl.models import transformer
from hybridgl.models.parser import SpacyParser
from refer.dataset import ReferSplit

DECODE, ENCODER, DECODER = "decode image", "SAM encoder", "SAM decoder, filters, clean-up"
VIEWS, FEATURES, GEM, TEXTS = "views", "mask features", "GEM", "text features"
PARSE, GUIDANCE, SCORING, STORE = "parse", "guidance and scores", "truth and overlaps", "store"
WHOLE = "all"

STAGES = (DECODE, ENCODER, DECODER, VIEWS, FEATURES, GEM, TEXTS, PARSE, GUIDANCE, SCORING, STORE)

COPIED_BYTES = 2**28
"""More than any cache holds."""

PRODUCT_SIDES = {"cpu": (4096, 1024, 1024), "cuda": (8192, 8192, 8192)}
"""Rows, and widths of input and output, of the product that measures the device."""

REPEATS = 4


@dataclass(frozen=True, slots=True)
class Cost:
    """The least that a stage takes.

    Attributes:
        operations: of floating-point numbers, a multiplication and an addition being two.
        weights: numbers of the model that are read once.
        moved_bytes: of input and output.
        exact: computed in float32 whatever the number format of the run.
    """

    operations: float
    weights: float = 0.0
    moved_bytes: float = 0.0
    exact: bool = False

    def times(self, count: int) -> Cost:
        """The same for several images, each on its own."""
        return replace(
            self,
            operations=count * self.operations,
            weights=count * self.weights,
            moved_bytes=count * self.moved_bytes,
        )

    def seconds(self, rates: Mapping[str, float], dtype: str) -> float:
        """The floor: by arithmetic or by bytes, whichever is higher.

        Args:
            rates: from ``machine_rates``.
            dtype: number format of the run.
        """
        name = "float32" if self.exact else dtype
        item = getattr(torch, name).itemsize
        moved = self.weights * item + self.moved_bytes
        return max(self.operations / rates[name], moved / rates["bytes"])


def machine_rates(device: torch.device, dtypes: Iterable[str]) -> dict[str, float]:
    """Operations a second of a large matrix product by number format, and "bytes" moved a second.

    Args:
        device: what is measured.
        dtypes: number formats.
    """
    rows, width, out = PRODUCT_SIDES[device.type]
    rates = {}
    for dtype in dtypes:
        x = torch.randn(rows, width, device=device, dtype=getattr(torch, dtype))
        weight = torch.randn(out, width, device=device, dtype=x.dtype)
        seconds = min(
            _fastest(partial(layer, x, weight), device) for layer in (F.linear, transformer.linear)
        )
        rates[dtype] = 2 * rows * width * out / seconds
    source = torch.ones(COPIED_BYTES // 4, device=device)
    target = torch.empty_like(source)
    rates["bytes"] = 2 * COPIED_BYTES / _fastest(lambda: target.copy_(source), device)
    return rates


def now(device: torch.device) -> float:
    """Time in seconds, when the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.inference_mode()
def _fastest(run: Callable[[], object], device: torch.device) -> float:
    """Least seconds of some calls."""
    times = []
    for _ in range(REPEATS):
        start = now(device)
        run()
        times.append(now(device) - start)
    return min(times)


def stage_costs(
    setting: Setting, schedule: ReferenceSchedule, split: ReferSplit
) -> dict[str, Cost]:
    """What the stages of a run need at least, by their architecture; parsing is not counted.

    Args:
        setting: the number of masks.
        schedule: holds the models.
        split: the images and their sentences.
    """
    clip, sam = schedule.clip, schedule.generator.predictor.model
    config, images = MethodConfig(), len(split.images)
    raws = [sentence.raw for ref in split.refs for sentence in ref.sentences]
    parser = SpacyParser(setting.weights.spacy_model)
    parsed = parser.parse(raws, right_relation_never_matches=True)
    phrases = {expression.noun_phrase for expression in parsed}
    texts = {e.sentence for e in parsed} | phrases
    texts |= {
        TextConfig().other_noun_prompt.format(p) for e in parsed for p in e.other_noun_phrases
    }
    texts |= {config.gem.prompt.format(phrase) for phrase in phrases}
    pixels, masks = HW[0] * HW[1], setting.masks
    grid = config.gem.resolution_factor * clip.visual.grid_size[0]
    file_bytes = sum(split.image_path(image_id).stat().st_size for image_id in split.images)
    view_bytes = 2 * 3 * 4 * clip.visual.image_size[0] ** 2
    of_an_image = {
        ENCODER: _sam_encoder_cost(sam.image_encoder),
        DECODER: _sam_decoder_cost(sam, setting.proposals),
        VIEWS: Cost(0, moved_bytes=3 * pixels + masks * (pixels + view_bytes)),
        FEATURES: _features_cost(clip.visual, masks),
        GEM: _gem_cost(clip.visual, grid, config.gem.depth, config.gem.iterations),
    }
    return {
        **{stage: cost.times(images) for stage, cost in of_an_image.items()},
        DECODE: Cost(0, moved_bytes=file_bytes + images * 3 * pixels),
        TEXTS: _texts_cost(schedule, texts),
        GUIDANCE: Cost(
            2 * len(parsed) * masks * pixels,
            moved_bytes=images * masks * pixels + 4 * len(parsed) * grid**2,
            exact=True,
        ),
        SCORING: Cost(0, moved_bytes=(images * masks + len(split.refs)) * pixels),
    }


def _numbers(*modules: Any) -> int:
    """Parameters of modules."""
    return sum(weight.numel() for module in modules for weight in module.parameters())


def _layers(tokens: float, width: int, attended: float | None = None) -> float:
    """Operations of a residual block whose tokens attend to some number of tokens, or to all."""
    return 24 * tokens * width**2 + 4 * tokens * (attended or tokens) * width


def _features_cost(visual: Any, masks: int) -> Cost:
    """Mode G2L: two streams through all blocks but the last, of which one class token is read."""
    width, side = visual.conv1.out_channels, visual.image_size[0]
    tokens, blocks = len(visual.positional_embedding), len(visual.transformer.resblocks)
    last = 4 * tokens * width**2 + 20 * width**2 + 4 * tokens * width
    embedding = 2 * (tokens - 1) * visual.conv1.weight.numel()
    each = 2 * (embedding + (blocks - 1) * _layers(tokens, width)) + last
    moved = masks * 4 * (2 * 3 * side**2 + visual.proj.shape[1])
    return Cost(masks * each, _numbers(visual), moved, exact=True)


def _gem_cost(visual: Any, grid: int, depth: int, iterations: int) -> Cost:
    """All blocks but the end of the last, and the second stream through the last of them."""
    width, blocks = visual.conv1.out_channels, len(visual.transformer.resblocks)
    tokens = 1 + grid**2
    unread = 4 * tokens**2 * width + 18 * tokens * width**2
    gathering = 3 * (iterations + 1) * 4 * tokens**2 * width + 2 * tokens * width**2
    operations = 2 * grid**2 * visual.conv1.weight.numel() + blocks * _layers(tokens, width)
    operations += (depth - 1) * gathering - unread
    moved = 4 * tokens * (visual.conv1.weight[0].numel() + visual.proj.shape[1])
    return Cost(operations, _numbers(visual), moved, exact=True)


def _texts_cost(schedule: ReferenceSchedule, texts: Iterable[str]) -> Cost:
    """Every text once, without what fills it up to the context."""
    clip = schedule.clip
    lengths = [len(schedule.tokenizer.encode(text)) + 2 for text in texts]
    width = clip.positional_embedding.shape[1]
    blocks = clip.transformer.resblocks
    operations = sum(len(blocks) * _layers(length, width, length / 2) for length in lengths)
    moved = 4 * width * sum(lengths)
    return Cost(operations, _numbers(clip.transformer), moved, exact=True)


def _sam_encoder_cost(encoder: Any) -> Cost:
    """Windows without their padding, and relative positions along both axes."""
    projection = encoder.patch_embed.proj
    width, channels = projection.out_channels, encoder.neck[0].out_channels
    side = encoder.img_size // projection.kernel_size[0]
    tokens = side**2
    operations = 2 * tokens * projection.weight.numel()
    for block in encoder.blocks:
        along = block.window_size or side
        operations += _layers(tokens, width, along**2) + 4 * tokens * along * width
    operations += 2 * tokens * (width * channels + 9 * channels**2)
    moved = 4 * (3 * encoder.img_size**2 + tokens * channels)
    return Cost(operations, _numbers(encoder), moved)


def _sam_decoder_cost(sam: Any, config: ProposalConfig) -> Cost:
    """Every click through the two-way transformer and its three masks drawn.

    What the first layer makes of the image alone is made once. Small layers on the few tokens of
    a click are not counted.
    """
    channels = sam.mask_decoder.transformer_dim
    places = sam.prompt_encoder.image_embedding_size[0] ** 2
    clicks = config.points_per_side**2
    # Layers from the places and back: 1 in the first layer, 4 in the second, 2 at the end.
    projections = 7 * 2 * places * channels * (channels // 2)
    upscaling = 2 * places * channels**2 + places * channels**2
    drawing = 16 * places * 3 * 2 * (channels // 8)
    low_bytes, mask_bytes = 4 * 16 * places, HW[0] * HW[1]
    moved = 4 * places * channels + clicks * 3 * (low_bytes + mask_bytes)
    weights = _numbers(sam.mask_decoder, sam.prompt_encoder)
    return Cost(clicks * (projections + upscaling + drawing), weights, moved, exact=True)
