"""Batch sizes: chosen by the memory of a device, halved where it runs out all the same."""

from __future__ import annotations

from threading import Barrier, Thread

import pytest
import torch

from hybridgl.config import ModelConfig
from hybridgl.devices import SMALL_BATCHES, Batches, BatchSizes, send, set_tf32
from hybridgl.errors import HybridGLError
from hybridgl.models import Models
from hybridgl.models.sam import SAM_TYPES, image_and_point_bytes
from tests.pretend_gpu import PretendGpu

GIB = 2**30


def sizes_of(gibibytes, sam_type="vit_h"):
    image_bytes, point_bytes = image_and_point_bytes(sam_type)
    return BatchSizes.of("cuda", gibibytes * GIB, point_bytes=point_bytes, image_bytes=image_bytes)


def out_of_memory(limits, calls):
    """What fails where a size is above its limit, as a GPU does."""

    def compute(sizes):
        calls.append(sizes)
        if any(getattr(sizes, name) > limit for name, limit in limits.items()):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return sizes

    return compute


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


def test_a_cpu_has_its_own_sizes_whatever_its_memory():
    assert BatchSizes.of("cpu", 0, point_bytes=1, image_bytes=1) == SMALL_BATCHES
    models = Models.from_config(ModelConfig(device="cpu").resolved(published_clip="ViT-B-16"))
    assert models.batches.sizes == SMALL_BATCHES


def test_memory_that_runs_out_halves_the_sizes_that_take_it(caplog):
    batches, calls = Batches(BatchSizes(16, 16, 8)), []
    done = batches.run(out_of_memory({"points": 5}, calls), "points", "images")
    assert done == batches.sizes == BatchSizes(16, 4, 2)
    assert [one.points for one in calls] == [16, 8, 4]
    assert "from here on, 16 masks, 4 points and 2 images go through" in caplog.messages[-1]
    assert batches.run(out_of_memory({"points": 5}, calls), "points", "images") == done
    assert len(calls) == 4


def test_a_size_of_1_that_does_not_fit_is_an_error_that_says_what_to_do():
    batches = Batches(BatchSizes(4, 4, 2))
    with pytest.raises(HybridGLError, match=r"room for one of images and points .* --device cpu"):
        batches.run(out_of_memory({"points": 0}, []), "images", "points")
    assert batches.sizes == BatchSizes(4, 1, 1)


def test_two_threads_that_fail_together_halve_once():
    batches, together, calls = Batches(BatchSizes(16, 16, 8)), Barrier(2), []

    def compute(sizes):
        calls.append(sizes)
        if sizes.masks == 16:
            together.wait(10)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    threads = [Thread(target=batches.run, args=(compute, "masks")) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert batches.sizes == BatchSizes(8, 16, 8)
    assert len(calls) == 4


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="a kernel"):
        Batches(SMALL_BATCHES).run(lambda _: (_ for _ in ()).throw(RuntimeError("a kernel")))


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
def test_numerics_say_what_torch_is_set_to_on_a_gpu_alone():
    config = ModelConfig(device="cpu", tf32=True).resolved(published_clip="ViT-B-16")
    models = Models.from_config(config)
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32
    assert models.numerics("clip") == "torch.float32"
    models.device = torch.device("cuda")
    assert models.numerics("clip") == models.numerics("sam") == "torch.float32 tf32"
    # Whoever sets it back decides what is computed, so that decides the keys too.
    set_tf32(enabled=False)
    assert models.numerics("clip") == "torch.float32"
    assert not torch.backends.cudnn.allow_tf32
