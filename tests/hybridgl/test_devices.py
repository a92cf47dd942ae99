"""Batch sizes: chosen by the memory of a device, halved where it runs out all the same."""

from __future__ import annotations

import importlib
from dataclasses import replace
from threading import Barrier, Thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hybridgl.config import SAM_SETTINGS, GlobalLocalConfig, HybridGLConfig, ModelConfig
from hybridgl.devices import CPU_BATCHES, Batches, BatchSizes, send, set_tf32
from hybridgl.errors import HybridGLError
from hybridgl.images import RgbImage
from hybridgl.masks import Proposals, mask_boxes_xywh
from hybridgl.methods.global_local import GlobalLocalClip
from hybridgl.methods.hybridgl import HybridGL
from hybridgl.models import Models
from hybridgl.models.sam import SAM_TYPES, image_and_point_bytes
from refer.shapes.world import training_scene
from tests.pretend_gpu import PretendGpu

GIB = 2**30


def sizes_of(gibibytes, sam_type="vit_h"):
    image_bytes, point_bytes = image_and_point_bytes(sam_type)
    return BatchSizes.of(gibibytes * GIB, point_bytes=point_bytes, image_bytes=image_bytes)


class Narrow:
    """Computes with the sizes in use, and fails as a GPU does where one is above its limit."""

    def __init__(self, sizes, **limits):
        self.batches, self.limits, self.calls = Batches(sizes), limits, []

    def run(self, *names):
        return self.batches.run(self.compute, *names)

    def compute(self):
        sizes = self.batches.sizes
        self.calls.append(sizes)
        if any(getattr(sizes, name) > limit for name, limit in self.limits.items()):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return sizes


@pytest.mark.parametrize("sam_type", SAM_TYPES)
def test_sizes_grow_with_the_memory_and_stay_powers_of_two(sam_type):
    sizes = [sizes_of(gibibytes, sam_type) for gibibytes in (0, 4, 8, 12, 16, 24, 48, 80, 140)]
    for name in ("masks", "points", "images"):
        column = [getattr(one, name) for one in sizes]
        assert column == sorted(column)
        assert all(size.bit_count() == 1 for size in column)
    assert sizes[0] == BatchSizes(1, 1, 1)


def test_what_goes_through_each_model_fits_a_quarter_of_the_memory():
    for gibibytes in (4, 8, 11, 16, 24):
        sizes = sizes_of(gibibytes)
        image_bytes, point_bytes = image_and_point_bytes("vit_h")
        assert sizes.images * image_bytes <= gibibytes * GIB / 4
        assert sizes.points * point_bytes <= gibibytes * GIB / 4


def test_a_small_sam_leaves_room_for_more():
    assert sizes_of(4, "tiny").points > sizes_of(4, "vit_h").points
    assert sizes_of(4, "vit_b").images > sizes_of(4, "vit_h").images


def test_a_cpu_has_its_own_sizes_and_a_gpu_those_of_its_memory(monkeypatch):
    models = Models.from_config(
        ModelConfig(weights="tiny", device="cpu").resolved(published_clip="ViT-B-16")
    )
    assert models.batches.sizes == CPU_BATCHES
    assert models.sam._batches is models.batches
    on_gpu = Models(models.weights, device=torch.device("cuda"))
    memory = SimpleNamespace(total_memory=80 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: memory)
    assert on_gpu.batches.sizes == BatchSizes(masks=128, points=128, images=8)


def test_memory_that_runs_out_halves_the_sizes_that_take_it(caplog, monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    narrow = Narrow(BatchSizes(16, 16, 8), points=5)
    assert narrow.run("points", "images") == narrow.batches.sizes == BatchSizes(16, 4, 2)
    assert [one.points for one in narrow.calls] == [16, 8, 4]
    assert len(emptied) == 2
    assert "from here on, 16 masks, 4 points and 2 images go through" in caplog.messages[-1]
    assert narrow.run("points", "images") == BatchSizes(16, 4, 2)
    assert len(narrow.calls) == 4


def test_a_size_of_1_that_does_not_fit_is_an_error_that_says_what_to_do():
    narrow = Narrow(BatchSizes(4, 4, 2), points=0)
    with pytest.raises(HybridGLError, match=r"room for the smallest batches, .* --device cpu"):
        narrow.run("images", "points")
    assert narrow.batches.sizes == BatchSizes(4, 1, 1)


def test_two_threads_that_fail_together_halve_once(caplog):
    batches, together, calls = Batches(BatchSizes(16, 16, 8)), Barrier(2), []

    def compute():
        calls.append(batches.sizes)
        if len(calls) <= 2:
            together.wait(10)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    threads = [Thread(target=batches.run, args=(compute, "masks")) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert batches.sizes == BatchSizes(8, 16, 8)
    assert len(calls) == 4
    assert len(caplog.messages) == 1


# The models themselves, where a GPU has room for little.


def limited(monkeypatch, owner, name, place, limit):
    """Let a function fail whose argument at a place has more items than the limit."""
    original, items = getattr(owner, name), []

    def function(*arguments, **named):
        items.append(len(arguments[place]))
        if items[-1] > limit:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, function)
    return items


@pytest.fixture(scope="module")
def scene():
    return RgbImage(training_scene(7, 0).image_HW3)


@pytest.fixture
def tiny():
    return Models.from_config(
        ModelConfig(weights="tiny", device="cpu").resolved(published_clip="ViT-B-16")
    )


@pytest.fixture(scope="module")
def masks():
    masks_NHW = np.zeros((7, 224, 256), dtype=bool)
    for row, mask_HW in enumerate(masks_NHW):
        mask_HW[20 * row : 20 * row + 60, 10 * row : 10 * row + 80] = True
    ones_N = np.ones(len(masks_NHW), dtype=np.float32)
    return Proposals(masks_NHW, mask_boxes_xywh(masks_NHW), ones_N, ones_N)


@pytest.mark.parametrize(
    ("kind", "config", "owner", "name"),
    [
        (HybridGL, HybridGLConfig(), "hybridgl.methods.hybridgl", "stream_tokens"),
        (
            GlobalLocalClip,
            GlobalLocalConfig(mixing_weight=0.95),
            "hybridgl.methods.global_local",
            "crop_features",
        ),
    ],
)
def test_masks_are_scored_in_the_chunks_for_which_there_is_room(
    kind, config, owner, name, tiny, scene, masks, monkeypatch
):
    sentences = ["the red circle", "the star left of the blue square"]
    expected = kind(tiny, config).score(scene, sentences, masks)
    items = limited(monkeypatch, importlib.import_module(owner), name, 1, 2)

    found = kind(tiny, config).score(scene, sentences, masks)

    assert tiny.batches.sizes == replace(CPU_BATCHES, masks=2)
    assert items[:4] == [7, 7, 4, 2]
    for one, other in zip(expected, found, strict=True):
        for array_name, array in one.arrays.items():
            np.testing.assert_allclose(other.arrays[array_name], array, rtol=0, atol=1e-4)


def test_prompts_and_images_go_through_sam_as_there_is_room(tiny, scene, monkeypatch):
    images = [scene.pixels_HW3, scene.pixels_HW3[::-1].copy(), scene.pixels_HW3]
    config = SAM_SETTINGS["shapes"]
    expected = [finish() for finish in tiny.sam.submit(images, config)]
    tiny.batches.sizes = BatchSizes(masks=16, points=32, images=4)
    prompts = limited(monkeypatch, tiny.sam, "_decode", 1, 8)
    encoded = limited(monkeypatch, tiny.sam, "_encode", 1, 3)

    found = [finish() for finish in tiny.sam.submit(images, config)]

    assert tiny.batches.sizes == BatchSizes(masks=16, points=8, images=1)
    assert encoded[:2] == [3, 2]
    assert set(prompts) == {32, 16, 8}
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one.masks_NHW, other.masks_NHW)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="a kernel"):
        Batches(CPU_BATCHES).run(lambda: (_ for _ in ()).throw(RuntimeError("a kernel")))


def test_copies_to_a_gpu_do_not_wait():
    waited = []

    class Recorded(PretendGpu):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is torch.Tensor.to:
                waited.append(not (kwargs or {}).get("non_blocking"))
            return super().__torch_function__(func, types, args, kwargs)

    with Recorded():
        assert send(torch.arange(3), torch.device("cuda")).tolist() == [0, 1, 2]
    assert waited == [False]


@pytest.fixture
def as_torch_was():
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32 = matmul
    torch.backends.cudnn.allow_tf32 = cudnn


@pytest.mark.usefixtures("as_torch_was")
def test_numerics_tell_of_tf32_that_was_asked_for_or_that_torch_is_set_to():
    config = ModelConfig(device="cpu", tf32=True).resolved(published_clip="ViT-B-16")
    # On a CPU too, so that it finds what a GPU with the same flags has stored.
    assert Models.from_config(config).numerics("sam") == "torch.float32 tf32"
    models = Models.from_config(replace(config, tf32=False))
    set_tf32(enabled=True)
    assert models.numerics("clip") == "torch.float32"
    models.device = torch.device("cuda")
    assert models.numerics("clip") == "torch.float32 tf32"
    set_tf32(enabled=False)
    assert models.numerics("clip") == "torch.float32"
    assert not torch.backends.cudnn.allow_tf32
