"""Stages alone, each held against its floor: what its products and bytes take at least.

The floor of a stage is its multiplications and additions at the rate of a large matrix product of
the same number format, or the bytes that it must read and write (weights of the vision towers,
inputs and outputs that are tensors, each once) at the rate of a large copy, whichever takes longer;
both rates are measured first.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.data import HW, Workload, drawn_masks
from benchmarks.gpu.attention import FORMS, flex
from benchmarks.gpu.measurements import Deferred, Measurements
from benchmarks.stages import NUM_SENTENCES
from hybridgl import gem, guidance
from hybridgl.config import SAM_SETTINGS, HybridGLConfig, ProposalConfig
from hybridgl.devices import Batches, BatchSizes, set_tf32
from hybridgl.methods.hybridgl import HybridGL
from hybridgl.models import Models
from hybridgl.models.sam import load_sam
from hybridgl.models.sam_encoder import encode, encoder_block
from hybridgl.models.sam_generator import MaskGenerator
from hybridgl.models.transformer import set_product_dtype

__all__ = ["Bench", "measure_stages", "seconds_of"]

FORMATS = {
    "float32": (torch.float32, False),
    "TF32": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
}
"""Number format of the weights, and whether TF32 is on. Only SAM's encoder has bfloat16."""

Sizes = Mapping[str, Sequence[int]]
"""Sizes of a batch that are tried: of masks, points and images."""

_LEAST_SECONDS = 0.2
"""Of what is timed at once on a GPU."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What the device reaches.

    Attributes:
        teraflops: a second of a large matrix product, by number format.
        gigabytes: a second of a large copy, read and written.
    """

    teraflops: dict[str, float]
    gigabytes: float

    def floor(self, number_format: str, operations: float, moved: float) -> float:
        """Return the least seconds of a stage."""
        return max(operations / self.teraflops[number_format] / 1e12, moved / self.gigabytes / 1e9)


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage, ready to run.

    Attributes:
        run: does it.
        handled: items that it handles.
        unit: of the items.
        holds: modules whose weights it reads.
        inputs: tensors that it reads.
    """

    run: Callable[[], Any]
    handled: int
    unit: str
    holds: Sequence[nn.Module]
    inputs: Sequence[Tensor] = ()


class Bench:
    """Models at real size, on the device, and what goes through them.

    Args:
        workload: written; decides models, masks of an image and device.
    """

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.device = workload.torch_device
        self.masks_NHW = drawn_masks(0, workload.masks).masks_NHW
        self.image_HW3 = np.random.default_rng(0).integers(0, 256, (*HW, 3), dtype=np.uint8)
        self.models = Models(workload.weights, device=self.device)

    @cached_property
    def method(self) -> HybridGL:
        """The method, without a store."""
        return HybridGL(self.models, HybridGLConfig())

    @cached_property
    def sam(self) -> Any:
        """SAM as segment_anything builds it, float32."""
        return self._sam(torch.float32)

    def _sam(self, dtype: torch.dtype) -> Any:
        weights = self.workload.weights
        sam = load_sam(weights.sam_checkpoint, weights.sam_type)
        sam = sam.eval().requires_grad_(False).to(self.device)
        set_product_dtype(sam.image_encoder.modules(), dtype)
        return sam

    @cached_property
    def sam_bfloat16(self) -> Any:
        """SAM whose encoder multiplies in bfloat16."""
        return self._sam(torch.bfloat16)

    def images(self, count: int) -> Tensor:
        """Return inputs of SAM's encoder."""
        side = self.sam.image_encoder.img_size
        return torch.randn(count, 3, side, side, device=self.device)

    def batches(self, **sizes: int) -> Batches:
        """Return the batch sizes that the program chooses, but for those given."""
        return Batches(replace(self.models.batches.sizes, **sizes))

    def generator(self, settings: ProposalConfig) -> MaskGenerator:
        """Return SAM's mask generator."""
        return MaskGenerator(self.sam, settings, self.device, self.batches())

    def decoder(self, points_per_side: int, batches: Batches) -> MaskGenerator:
        """Return SAM's mask generator for an image that its encoder has embedded before."""
        config = replace(SAM_SETTINGS["refcoco"], points_per_side=points_per_side)
        embedding = encode(self.sam.image_encoder, self.images(1))
        return MaskGenerator(self.sam, config, self.device, batches, lambda *_: embedding)

    def features(self, masks_NHW: Any, most: int | None = None) -> Tensor:
        """Compute features of masks, at most so many at once."""
        batches, usual = self.models.batches, self.models.batches.sizes
        batches.sizes = usual if most is None else replace(usual, masks=most)
        try:
            return self.method.compute_features(self.image_HW3, masks_NHW)
        finally:
            batches.sizes = usual


@contextmanager
def computing_in(number_format: str) -> Iterator[None]:
    """Compute in a number format, as far as torch's own settings decide it."""
    set_tf32(enabled=FORMATS[number_format][1])
    try:
        yield
    finally:
        set_tf32(enabled=False)


def seconds_of(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Time a call, the median of some repetitions; those that load kernels are not counted."""
    on_gpu = device.type == "cuda"

    def once(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            call()
        if on_gpu:
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / times

    once(1)
    times = max(round(_LEAST_SECONDS / max(once(1), 1e-6)), 1) if on_gpu else 1
    return median(once(times) for _ in range(repeats))


def rates(device: torch.device, repeats: int) -> Rates:
    """Measure what the device reaches."""
    side = 8192 if device.type == "cuda" else 1024
    reached = {}
    for name, (dtype, _) in FORMATS.items():
        factors = [torch.randn(side, side, device=device, dtype=dtype) for _ in range(2)]
        with computing_in(name):
            seconds = seconds_of(partial(torch.mm, *factors), device, repeats)
        reached[name] = 2 * side**3 / seconds / 1e12
    count = 2**30 if device.type == "cuda" else 2**26
    source = torch.ones(count // 4, device=device)
    target = torch.empty_like(source)
    copied = seconds_of(partial(target.copy_, source), device, repeats)
    return Rates(reached, 2 * count / copied / 1e9)


def measure_stages(
    log: Measurements, bench: Bench, batch_sizes: Sizes, repeats: int
) -> list[Deferred]:
    """Take all measurements of this part, and return those of compiled stages."""
    device = bench.device
    reached = log.measure("stages", "rates", lambda: asdict(rates(device, repeats)))
    if not reached:
        log.leave_out("stages", "all others", "without rates there is no floor")
        return []

    def row(
        stage: Stage, number_format: str, call: Callable[[], Any] | None = None
    ) -> dict[str, Any]:
        with torch.inference_mode(), computing_in(number_format):
            with FlopCounterMode(display=False) as counter:
                result = stage.run()
            taken = seconds_of(call or stage.run, device, repeats)
        operations, moved = counter.get_total_flops(), _bytes(stage, result)
        floor = Rates(**reached).floor(number_format, operations, moved)
        return {
            f"{stage.unit}/s": stage.handled / taken,
            "seconds": taken,
            "GFLOP": operations / 1e9,
            "floor, % of seconds": 100 * floor / taken,
            "% of matrix rate": operations / taken / reached["teraflops"][number_format] / 1e10,
        }

    def plain(name: str, number_format: str) -> dict[str, Any]:
        return row(_STAGES[name](bench, number_format), number_format)

    def compiled(name: str, number_format: str) -> dict[str, Any]:
        stage, call = _STAGES[name](bench, number_format), _compiled(bench, name, number_format)
        return row(stage, number_format, call)

    for name in _STAGES:
        for number_format in _FORMATS_OF.get(name, ("float32", "TF32")):
            subject = f"{name}, {number_format}"
            if number_format == "TF32" and log.leave_out_tf32("stages", subject, device):
                continue
            log.measure("stages", subject, partial(plain, name, number_format))
    _measure_attention(log, bench, repeats)
    _measure_sweeps(log, bench, batch_sizes, repeats)
    return [
        Deferred("stages", f"{name}, {one}, compiled", partial(compiled, name, one), 60)
        for name, one in _COMPILED
    ]


# ---- stages


_numbers = itertools.count()


def _encoder(bench: Bench, number_format: str) -> Stage:
    sam = bench.sam_bfloat16 if number_format == "bfloat16" else bench.sam
    images_B3RR = bench.images(bench.models.batches.sizes.images)
    return Stage(
        lambda: encode(sam.image_encoder, images_B3RR),
        len(images_B3RR),
        "images",
        [sam.image_encoder],
        [images_B3RR],
    )


def _decoder(bench: Bench, _: str) -> Stage:
    """Everything after the encoder: prompts, decoding, drawing, filters."""
    generator = bench.decoder(SAM_SETTINGS["refcoco"].points_per_side, bench.batches())
    return Stage(lambda: generator.submit([bench.image_HW3]), 1, "images", [bench.sam.mask_decoder])


def _whole_sam(bench: Bench, _: str) -> Stage:
    images = [bench.image_HW3] * bench.models.batches.sizes.images

    def run() -> Any:
        generator = bench.generator(SAM_SETTINGS["refcoco"])
        return [finish() for finish in generator.submit(images)]

    return Stage(run, len(images), "images", [bench.sam])


def _features(bench: Bench, _: str) -> Stage:
    def run() -> Tensor:
        return bench.features(bench.masks_NHW)

    return Stage(run, len(bench.masks_NHW), "masks", [_vision(bench)])


def _gem(bench: Bench, _: str) -> Stage:
    config, clip = bench.method.config.gem, bench.method.clip
    side = config.resolution_factor * clip.image_size
    image_13RR = torch.randn(1, 3, side, side, device=bench.device)
    return Stage(
        lambda: gem.patch_features(clip.visual, image_13RR, config),
        1,
        "images",
        [_vision(bench)],
        [image_13RR],
    )


def _texts(bench: Bench, _: str) -> Stage:
    count = 3 * NUM_SENTENCES

    def run() -> Tensor:  # other texts each time: a text is encoded once
        texts = [f"a photo of thing {number}" for number in itertools.islice(_numbers, count)]
        return bench.method.clip.encode_texts(texts)

    return Stage(run, count, "texts", [])


def _coherence(bench: Bench, _: str) -> Stage:
    masks_NHW = torch.from_numpy(bench.masks_NHW).to(bench.device)
    maps_SHW = torch.rand(NUM_SENTENCES, *HW, device=bench.device)
    return Stage(
        lambda: guidance.coherence_scores(
            maps_SHW, masks_NHW, [1.8] * NUM_SENTENCES, undefined_scores_win=True
        ),
        NUM_SENTENCES,
        "sentences",
        [],
        [masks_NHW, maps_SHW],
    )


def _vision(bench: Bench) -> nn.Module:
    visual: Any = bench.method.clip.visual
    return visual


_STAGES: dict[str, Callable[[Bench, str], Stage]] = {
    "SAM encoder": _encoder,
    "SAM decoder": _decoder,
    "SAM": _whole_sam,
    "features": _features,
    "GEM": _gem,
    "texts": _texts,
    "coherence": _coherence,
}

_FORMATS_OF = {"SAM encoder": ("float32", "TF32", "bfloat16")}

_COMPILED = (
    ("SAM encoder", "bfloat16"),
    ("SAM encoder", "float32"),
    ("features", "TF32"),
    ("GEM", "TF32"),
)


def _bytes(stage: Stage, result: Any) -> int:
    """Return the bytes that a stage must read and write."""
    tensors = [*stage.inputs, *(weight for held in stage.holds for weight in held.parameters())]
    tensors += [result] if isinstance(result, Tensor) else []
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _compiled(bench: Bench, name: str, number_format: str) -> Callable[[], Any]:
    """Return a stage with its compiled function, compiled."""
    if name == "SAM encoder":
        sam = bench.sam_bfloat16 if number_format == "bfloat16" else bench.sam
        images_B3RR = bench.images(bench.models.batches.sizes.images)
        block = torch.compile(encoder_block)
        return lambda: encode(sam.image_encoder, images_B3RR, block)
    models = Models(bench.workload.weights, device=bench.device, compiles=True)
    models.clip = bench.models.clip
    method = HybridGL(models, HybridGLConfig())
    if name == "features":
        return lambda: method.compute_features(bench.image_HW3, bench.masks_NHW)
    config, clip = method.config.gem, method.clip
    side = config.resolution_factor * clip.image_size
    image_13RR = torch.randn(1, 3, side, side, device=bench.device)
    patch_features = models.compiled(gem.patch_features)
    return lambda: patch_features(clip.visual, image_13RR, config)


# ---- attention and batch sizes


def _measure_attention(log: Measurements, bench: Bench, repeats: int) -> None:
    """Time the forms of SAM's attention over a whole image."""
    encoder = bench.sam.image_encoder
    side, heads = encoder.patch_embed.proj.stride[0], encoder.blocks[0].attn.num_heads
    grid, width = encoder.img_size // side, encoder.blocks[0].attn.qkv.in_features // heads
    for number_format in ("float32", "bfloat16"):
        dtype = FORMATS[number_format][0]
        q, k, v = (
            torch.randn(1, heads, grid**2, width, device=bench.device, dtype=dtype)
            for _ in range(3)
        )
        rows, columns = (torch.randn(grid, grid, width, device=bench.device) for _ in range(2))

        def form(attend: Callable[..., Tensor], *given: Tensor) -> dict[str, float]:
            with torch.inference_mode():
                exact = FORMS["additive mask"](*(tensor.float() for tensor in given))
                error = (attend(*given).float() - exact).abs()
                seconds = seconds_of(partial(attend, *given), bench.device, repeats)
            return {"seconds": seconds, "largest error": float(error.max())}

        for name, attend in FORMS.items():
            subject = f"attention of an image, {number_format}, {name}"
            if attend is flex and bench.device.type != "cuda":
                log.leave_out("stages", subject, "it has a kernel on a GPU alone")
                continue
            measure = partial(form, attend, q, k, v, rows, columns)
            log.measure("stages", subject, measure)


def _measure_sweeps(log: Measurements, bench: Bench, batch_sizes: Sizes, repeats: int) -> None:
    """Time batch sizes, and hold the best against the one that the program chooses."""
    usual: BatchSizes = bench.models.batches.sizes

    def masks(most: int) -> float:
        masks_NHW = np.resize(bench.masks_NHW, (max(batch_sizes["masks"]), *HW))
        call = partial(bench.features, masks_NHW, most)
        return len(masks_NHW) / seconds_of(call, bench.device, repeats)

    def points(most: int) -> float:
        batches = bench.batches(points=most)
        generator = bench.decoder(int(max(batch_sizes["points"]) ** 0.5), batches)
        call = partial(generator.submit, [bench.image_HW3])
        seconds = seconds_of(call, bench.device, repeats)
        if batches.sizes.points < most:
            raise torch.cuda.OutOfMemoryError("the generator took fewer points at once")
        return max(batch_sizes["points"]) / seconds

    def images(most: int) -> float:
        sam = bench.sam_bfloat16 if bench.device.type == "cuda" else bench.sam
        call = partial(encode, sam.image_encoder, bench.images(most))
        return most / seconds_of(call, bench.device, repeats)

    for name, measure, sizes in (
        ("masks", masks, batch_sizes["masks"]),
        ("points", points, batch_sizes["points"]),
        ("images", images, batch_sizes["images"]),
    ):
        log.measure(
            "stages",
            f"{name} at once",
            partial(_swept, measure, sizes, getattr(usual, name)),
        )


@torch.inference_mode()
def _swept(measure: Callable[[int], float], sizes: Sequence[int], chosen: int) -> dict[str, Any]:
    per_second: dict[str, float | str] = {}
    for size in sizes:
        try:
            per_second[str(size)] = measure(size)
        except torch.cuda.OutOfMemoryError:
            per_second[str(size)] = "memory ran out"
    reached = {size: one for size, one in per_second.items() if isinstance(one, float)}
    return {
        "items/s by size": per_second,
        "best": int(max(reached, key=lambda size: reached[size])),
        "the program chooses": chosen,
    }
