"""Automatic masks against segment_anything's generator: whole, part by part, and as on a GPU.

The library's generator crashes where crops are asked for and none of them yields a mask: that is
counted as no masks.
"""

from __future__ import annotations

import dataclasses
import itertools
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.utils.amg import (
    batched_mask_to_box,
    build_all_layer_point_grids,
    calculate_stability_score,
    generate_crop_boxes,
    is_box_near_crop_edge,
)
from torchvision.ops import nms

from benchmarks.gpu.operations import RecordOperations
from hybridgl.config import (
    SAM_SETTINGS,
    ProposalConfig,
)
from hybridgl.devices import CPU_BATCHES, Batches
from hybridgl.masks import Proposals
from hybridgl.models import sam_generator
from hybridgl.models.sam import build_tiny_sam
from hybridgl.models.sam_decoder import DecodedPoints, PointDecoder
from hybridgl.models.sam_generator import MaskGenerator, crop_boxes, point_grid
from refer.shapes.world import training_scene
from tests.hybridgl.models.test_sam import BUNDLED
from tests.pretend_gpu import PretendGpu

CPU, CUDA = torch.device("cpu"), torch.device("cuda")

OVERLAP = 512 / 1500
"""The library's default."""

STRAY_PIXELS = 5
"""Pixels of a mask whose logits may lie so near to the threshold that rounding decides."""

CROPPED = dataclasses.replace(SAM_SETTINGS["phrasecut"], points_per_side=16)
MANY = dataclasses.replace(
    SAM_SETTINGS["phrasecut"],
    points_per_side=6,
    pred_iou_thresh=0.3,
    stability_score_thresh=0.3,
    min_mask_region_area=20,
)
"""Lets bad masks pass, so that there are many to compare."""


def bundled_sam():
    with np.load(BUNDLED, allow_pickle=False) as arrays:
        state = {name: torch.from_numpy(arrays[name]).float() for name in arrays.files}
    sam = build_tiny_sam().requires_grad_(False)
    sam.load_state_dict(state)
    return sam


@pytest.fixture(scope="module")
def sam():
    return bundled_sam()


def scene(index, hw=None):
    image = Image.fromarray(training_scene(7, index).image_HW3)
    return np.asarray(image if hw is None else image.resize(hw[::-1]))


def noise(hw, grain):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (-(-hw[0] // grain), -(-hw[1] // grain), 3), dtype=np.uint8)
    return coarse.repeat(grain, axis=0).repeat(grain, axis=1)[: hw[0], : hw[1]]


IMAGES = {
    "a scene": lambda: scene(0),
    "portrait, larger than the input": lambda: scene(1, (500, 300)),
    "landscape, larger than the input": lambda: scene(2, (300, 500)),
    "as large as the input": lambda: scene(3, (256, 256)),
    "small and thin": lambda: scene(4, (100, 30)),
    "odd sides": lambda: scene(5, (97, 131)),
    "coarse noise": lambda: noise((120, 161), 20),
    "fine noise": lambda: noise((90, 90), 3),
}


def records_of_the_library(sam, config, image):
    try:
        return SamAutomaticMaskGenerator(sam, **dataclasses.asdict(config)).generate(image)
    except IndexError:
        if config.crop_n_layers:
            return []
        raise


def assert_equals_records(proposals, records, stray=STRAY_PIXELS):
    assert len(proposals) == len(records)
    for index, record in enumerate(records):
        wrong = proposals.masks_NHW[index] != record["segmentation"]
        assert wrong.sum() <= stray
        np.testing.assert_allclose(proposals.boxes_xywh[index], record["bbox"], atol=stray and 2)
        assert proposals.predicted_iou[index] == pytest.approx(record["predicted_iou"], abs=1e-5)
        # One pixel at either cut may fall to the other side by rounding.
        tolerance = max(1e-3, 1.5 / max(record["segmentation"].sum(), 1))
        stability = pytest.approx(record["stability_score"], abs=tolerance, nan_ok=True)
        assert proposals.stability[index] == stability


def assert_same(got, expected):
    """To the last bit."""
    for field in dataclasses.fields(Proposals):
        np.testing.assert_array_equal(getattr(got, field.name), getattr(expected, field.name))


def assert_close(got, expected):
    """Up to rounding."""
    names = ("segmentation", "bbox", "predicted_iou", "stability_score")
    fields = (
        expected.masks_NHW,
        expected.boxes_xywh,
        expected.predicted_iou,
        expected.stability,
    )
    assert_equals_records(
        got, [dict(zip(names, row, strict=True)) for row in zip(*fields, strict=True)]
    )


def generator_of(sam, config, device=CPU, **sizes):
    """A generator whose batches are of the usual sizes, but for those given."""
    return MaskGenerator(sam, config, device, Batches(dataclasses.replace(CPU_BATCHES, **sizes)))


def generate(sam, config, *images, **sizes):
    return [finish() for finish in generator_of(sam, config, **sizes).submit(images)]


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize(
    "config",
    [SAM_SETTINGS["refcoco"], SAM_SETTINGS["shapes"], MANY],
    ids=["RefCOCO", "shapes", "many masks and crops"],
)
def test_masks_boxes_scores_and_order_are_the_librarys(sam, config, image):
    image = image()
    records = records_of_the_library(sam, config, image)
    (proposals,) = generate(sam, config, image)
    assert_equals_records(proposals, records)
    assert len(records) > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small and thin", "fine noise"])
def test_masks_of_crops_through_all_filters_are_the_librarys(sam, name):
    image = IMAGES[name]()
    records = records_of_the_library(sam, CROPPED, image)
    assert_equals_records(generate(sam, CROPPED, image)[0], records)
    assert bool(records) == (name != "fine noise")


@pytest.mark.slow
def test_masks_with_phrasecuts_settings_are_the_librarys(sam):
    image = scene(6, (60, 70))
    records = records_of_the_library(sam, SAM_SETTINGS["phrasecut"], image)
    assert_equals_records(generate(sam, SAM_SETTINGS["phrasecut"], image)[0], records)
    assert len(records) > 1


@pytest.mark.slow
def test_masks_at_the_size_of_a_real_sam_are_the_librarys(monkeypatch):
    """ViT-B with two of its blocks, one of them over windows; no duplicate is left out."""
    torch.manual_seed(0)
    sam = sam_model_registry["vit_b"]().eval().requires_grad_(False)
    sam.image_encoder.blocks = sam.image_encoder.blocks[1:3]
    for name, value in sam.named_parameters():
        if "rel_pos" in name or name.endswith(".bias"):
            value.add_(0.1 * torch.randn_like(value))
    for layer in sam.mask_decoder.output_hypernetworks_mlps:
        layer.layers[-1].weight.mul_(100)
    config = ProposalConfig(
        points_per_side=2, pred_iou_thresh=-1, stability_score_thresh=0, min_mask_region_area=0
    )
    image = scene(0, (480, 640))
    monkeypatch.setattr(sam_generator, "_NMS_IOU", 1.0)
    library = SamAutomaticMaskGenerator(sam, **dataclasses.asdict(config), box_nms_thresh=1.0)

    records = library.generate(image)
    (proposals,) = generate(sam, config, image)

    assert [block.window_size for block in sam.image_encoder.blocks] == [14, 0]
    assert len(proposals) == len(records) == 12
    for mask, record in zip(proposals.masks_NHW, records, strict=True):
        expected = record["segmentation"]
        assert 0.02 < expected.mean() < 0.98
        assert (mask & expected).sum() / (mask | expected).sum() > 0.999
    assert len({mask.tobytes() for mask in proposals.masks_NHW}) > 3


def test_a_mask_of_the_least_stability_is_kept_as_in_the_library(sam):
    image = scene(0)
    free = dataclasses.replace(SAM_SETTINGS["shapes"], stability_score_thresh=0.0)
    stabilities = sorted(
        record["stability_score"] for record in records_of_the_library(sam, free, image)
    )
    config = dataclasses.replace(free, stability_score_thresh=stabilities[len(stabilities) // 2])
    records = records_of_the_library(sam, config, image)
    assert 0 < len(records) < len(stabilities)
    assert_equals_records(generate(sam, config, image)[0], records)


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("config", [SAM_SETTINGS["shapes"], MANY], ids=["plain", "crops"])
def test_images_together_get_what_each_gets_alone(sam, config, at_once):
    images = [IMAGES[name]() for name in ("odd sides", "small and thin", "coarse noise")]
    images.insert(1, np.zeros((1, 1000, 3), np.uint8))
    alone = [generate(sam, config, image)[0] for image in images]

    together = generate(sam, config, *images, images=at_once)

    assert [len(proposals) > 0 for proposals in together] == [True, False, True, True]
    for got, expected in zip(together, alone, strict=True):
        (assert_same if at_once == 1 else assert_close)(got, expected)


@pytest.mark.parametrize("config", [SAM_SETTINGS["shapes"], MANY], ids=["plain", "crops"])
def test_masks_may_be_filtered_before_all_are_drawn(sam, config, monkeypatch):
    expected = generate(sam, config, scene(0), points=4)
    good, before = MaskGenerator._good, []

    def noted(generator, masks, *place):
        before.append(len(masks.iou_N))
        return good(generator, masks, *place)

    monkeypatch.setattr(MaskGenerator, "_good", noted)
    monkeypatch.setattr(sam_generator, "_DRAWN_BYTES", 0)
    (got,) = generate(sam, config, scene(0), points=4)
    assert len(before) > 5
    assert_same(got, expected[0])


def test_no_images_get_no_proposals(sam):
    assert generate(sam, SAM_SETTINGS["shapes"]) == []


def test_the_hosts_part_may_run_in_any_thread_in_any_order_and_again(sam):
    images = [scene(0, (90, 100)), noise((60, 80), 10), scene(1, (50, 60))]
    expected = generate(sam, MANY, *images)
    unfinished = generator_of(sam, MANY).submit(images)
    with ThreadPoolExecutor() as pool:
        backwards = list(pool.map(lambda finish: finish(), unfinished[::-1]))
    again = [finish() for finish in unfinished]
    for got, twice, wanted in zip(backwards[::-1], again, expected, strict=True):
        assert_same(got, wanted)
        assert_same(twice, wanted)


def test_proposals_of_an_image_share_no_memory_with_it_or_each_other(sam):
    image = scene(0)
    before = image.copy()
    generator = generator_of(sam, SAM_SETTINGS["shapes"])
    first, second = (generator.submit([image])[0]() for _ in range(2))
    kept = [getattr(second, field.name).copy() for field in dataclasses.fields(Proposals)]
    for field in dataclasses.fields(Proposals):
        getattr(first, field.name)[:] = 0
    np.testing.assert_array_equal(image, before)
    assert_same(second, Proposals(*kept))


LAYOUTS = {
    "read-only": lambda image: image,
    "mirrored": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "blue first": lambda image: image[..., ::-1],
    "Fortran order": np.asfortranarray,
    "a window": lambda image: image[10:47, 20:],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_an_image_may_lie_anywhere_in_memory(sam, layout):
    image = layout(noise((60, 80), 10).copy())
    image.flags.writeable = False
    copied = np.ascontiguousarray(image)
    before = copied.copy()
    got, expected = generate(sam, MANY, image)[0], generate(sam, MANY, copied)[0]
    assert len(got) > 1
    assert_same(got, expected)
    np.testing.assert_array_equal(image, before)


def test_generating_leaves_the_weights_as_they_are():
    sam = bundled_sam()
    before = {name: value.clone() for name, value in sam.state_dict().items()}
    generate(sam, MANY, scene(0))
    assert all(torch.equal(sam.state_dict()[name], value) for name, value in before.items())


# On a GPU.


class LateGpu(PretendGpu):
    """What is copied to the host without blocking arrives when an event after it is awaited."""

    def __init__(self):
        super().__init__()
        self.pending = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.copy_ and kwargs.get("non_blocking"):
            target, source = args
            self.pending.append((target, source.clone()))
            # Whoever reads too early sees the opposite.
            return target.copy_(~source)
        return super().__torch_function__(func, types, args, kwargs)

    def attach(self, monkeypatch):
        """Stand in for CUDA's events and streams."""
        monkeypatch.setattr(torch.cuda, "Event", lambda: _Event(self))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: None)


class _Event:
    def __init__(self, gpu):
        self._gpu, self._due = gpu, None

    def record(self, *_):
        self._due = list(self._gpu.pending)

    def synchronize(self):
        for target, source in self._due:
            target.copy_(source)


def submit_on_gpu(sam, config, scenes, monkeypatch, **sizes):
    with LateGpu() as gpu:
        gpu.attach(monkeypatch)
        return generator_of(sam, config, CUDA, **sizes).submit(scenes)


@pytest.mark.parametrize("prompts", [128, 5], ids=["as set", "many batches"])
@pytest.mark.parametrize("config", [SAM_SETTINGS["shapes"], MANY], ids=["plain", "crops"])
def test_a_gpu_gives_what_a_cpu_does(sam, config, prompts, monkeypatch):
    # The library's call orders ties among thousands of boxes by the kind of device.
    monkeypatch.setattr("torchvision.ops.batched_nms", lambda b, s, _, iou: nms(b, s, iou))
    images = [scene(0), np.zeros((1, 1000, 3), np.uint8), noise((60, 80), 10)]
    expected = generate(sam, config, *images)

    unfinished = submit_on_gpu(sam, config, images, monkeypatch, points=prompts, images=8)

    for finish, wanted in zip(unfinished, expected, strict=True):
        assert_close(finish(), wanted)


def test_a_gpu_without_a_filter_draws_every_mask(sam, monkeypatch):
    config = dataclasses.replace(
        SAM_SETTINGS["shapes"], points_per_side=3, pred_iou_thresh=0.0, stability_score_thresh=0.0
    )
    (finish,) = submit_on_gpu(sam, config, [scene(0)], monkeypatch)
    assert_close(finish(), generate(sam, config, scene(0))[0])


def test_the_next_prompts_are_decoded_before_the_host_learns_of_the_last(sam, monkeypatch):
    config = dataclasses.replace(SAM_SETTINGS["shapes"], points_per_side=4)
    order = []

    def noted(owner, name):
        original = getattr(owner, name)

        def method(*args):
            order.append(name)
            return original(*args)

        monkeypatch.setattr(owner, name, method)

    noted(PointDecoder, "_transform")  # of the first thing that is decoded
    noted(sam_generator._Filtered, "survivors")

    submit_on_gpu(sam, config, [scene(0)], monkeypatch, points=4)
    order = [name.replace("_transform", "decode") for name in order]

    assert order == ["decode", *["decode", "survivors"] * 3, "survivors"]


def test_nothing_waits_for_the_device_between_the_first_and_the_last_prompt(sam, monkeypatch):
    """Every operation of the loop, but those on what an event has brought to the host."""
    loop, loops, drawn = None, [], []
    embed, survivors = PointDecoder.embed, sam_generator._Filtered.survivors
    near_inner_edge = sam_generator._near_inner_edge

    def first(decoder, points_P2):
        nonlocal loop
        prompts_P2C = embed(decoder, points_P2)
        loop = RecordOperations()
        loop.__enter__()
        return prompts_P2C

    def on_host(filtered):
        loop.__exit__(None, None, None)
        some, pairs_N2 = survivors(filtered)
        drawn.append(len(pairs_N2))
        loop.__enter__()
        return some, pairs_N2

    def last(boxes_N4, *place):
        loop.__exit__(None, None, None)
        loops.append(loop)
        return near_inner_edge(boxes_N4, *place)

    monkeypatch.setattr(PointDecoder, "embed", first)
    monkeypatch.setattr(sam_generator._Filtered, "survivors", on_host)
    monkeypatch.setattr(sam_generator, "_near_inner_edge", last)

    submit_on_gpu(sam, MANY, [scene(0)], monkeypatch, points=9)

    assert len(loops) == 5
    assert sum(drawn) > 20
    for one in loops:
        assert len(one.names) > 300
        assert not one.waiting


def test_bits_are_packed_on_a_gpu_as_by_numpy():
    rng = np.random.default_rng(0)
    for count, height, width in itertools.product((0, 1, 3), (1, 3, 8), (1, 5, 7, 8, 9, 16)):
        masks = rng.random((count, height, width)) < 0.5
        expected = np.packbits(masks.reshape(count, height * width), axis=1)
        given = torch.from_numpy(masks)
        with PretendGpu():
            on_gpu = sam_generator._packed(given)
        for packed in (on_gpu, sam_generator._packed(given)):
            assert packed.dtype is torch.uint8
            np.testing.assert_array_equal(packed, expected)


def test_every_byte_is_packed_on_a_gpu_as_by_numpy():
    masks = np.array(list(itertools.product([False, True], repeat=8)))[:, None]
    with PretendGpu():
        packed = sam_generator._packed(torch.from_numpy(masks))
    assert packed[:, 0].tolist() == list(range(256))


# Part by part.


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("side", [1, 2, 3, 8, 9, 16, 32, 64])
def test_prompts_are_those_of_the_library_in_every_layer(side, factor):
    layers = [layer for layer in range(3) if side // factor**layer]
    expected = build_all_layer_point_grids(side, len(layers) - 1, factor)
    for layer, grid in zip(layers, expected, strict=True):
        np.testing.assert_array_equal(point_grid(side // factor**layer), grid)


@pytest.mark.parametrize("hw", [(480, 640), (37, 611), (300, 500), (256, 256), (5, 3)])
def test_prompts_are_scaled_to_the_input_as_by_the_library(sam, hw):
    predictor = SamPredictor(sam)
    config = dataclasses.replace(CROPPED, crop_n_layers=2, crop_n_points_downscale_factor=3)
    grids = build_all_layer_point_grids(16, 2, 3)
    generator = generator_of(sam, config)
    for crop in generator._crops(np.zeros((*hw, 3), np.uint8)):
        points = grids[crop.layer] * crop.hw[::-1]
        expected = predictor.transform.apply_coords(points, crop.hw)
        got = generator._points(crop)
        assert got.dtype is torch.float64
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_crops_are_those_of_the_library_for_any_size(layers):
    rng = np.random.default_rng(layers)
    sizes = [*itertools.product(range(1, 9), repeat=2), (480, 640), (640, 427), (1000, 3)]
    sizes += rng.integers(1, 3000, (300, 2)).tolist()
    for hw in sizes:
        boxes, layers_of = generate_crop_boxes(hw, layers, OVERLAP)
        expected = [(tuple(box), layer) for box, layer in zip(boxes, layers_of, strict=True)]
        assert crop_boxes(tuple(hw), layers) == expected


@pytest.mark.parametrize("hw", [(480, 640), (37, 611), (300, 500), (256, 256), (5, 3), (999, 1)])
def test_images_enter_the_encoder_as_by_the_library(sam, hw):
    image = np.random.default_rng(0).integers(0, 256, (*hw, 3), dtype=np.uint8)
    predictor = SamPredictor(sam)
    generator = generator_of(sam, dataclasses.replace(CROPPED, crop_n_layers=1))
    for crop in generator._crops(image):
        x0, y0, x1, y1 = crop.box
        scaled = predictor.transform.apply_image(image[y0:y1, x0:x1])
        np.testing.assert_array_equal(crop.scaled_3hw.permute(1, 2, 0), scaled)
        expected = sam.preprocess(torch.from_numpy(scaled).permute(2, 0, 1)[None])[0]
        assert torch.equal(generator._padded(crop), expected)


MASKS = {
    "none": torch.zeros(0, 5, 7),
    "empty": torch.zeros(2, 5, 7),
    "full": torch.ones(2, 5, 7),
    "every pixel": torch.eye(35).view(35, 5, 7),
    "a row": torch.ones(1, 1, 9),
    "a column": torch.ones(1, 9, 1),
    "a pixel": torch.ones(1, 1, 1),
}


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
def test_boxes_are_those_of_the_library(masks):
    boxes = sam_generator._boxes(masks.bool())
    assert boxes.dtype is torch.int64
    assert torch.equal(boxes, batched_mask_to_box(masks.bool()).long())


@pytest.mark.parametrize("filled", [0.001, 0.01, 0.1, 0.5])
def test_boxes_of_random_masks_are_those_of_the_library(filled):
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(50, 23, 31, generator=generator) < filled
    assert torch.equal(sam_generator._boxes(masks), batched_mask_to_box(masks))


def test_masks_near_an_inner_edge_are_those_of_the_library():
    generator = torch.Generator().manual_seed(0)
    hw, crops = (200, 300), [(0, 0, 300, 200), *(box for box, _ in crop_boxes((200, 300), 2))]
    crops += [(10, 15, 280, 190), (20, 21, 279, 180)]
    seen = []
    for x0, y0, x1, y1 in crops:
        # From -25 to 25 pixels beyond every edge, exactly 20 included.
        boxes = torch.randint(-25, 26, (2000, 4), generator=generator)
        boxes += torch.tensor([0, 0, x1 - x0, y1 - y0])
        got = sam_generator._near_inner_edge(boxes, (x0, y0, x1, y1), hw)
        expected = is_box_near_crop_edge(boxes, [x0, y0, x1, y1], [0, 0, hw[1], hw[0]])
        assert torch.equal(got, expected)
        seen.append(got.float().mean())
    assert seen[0] == 0
    assert max(seen) > 0.1


def test_the_edge_of_a_crop_is_twenty_pixels_wide():
    crop, hw = (50, 50, 150, 150), (400, 400)
    boxes = torch.tensor([[20, 40, 60, 60], [21, 40, 60, 60], [40, 40, 79, 60], [40, 40, 80, 60]])
    got = sam_generator._near_inner_edge(boxes, crop, hw)
    assert got.tolist() == [True, False, False, True]


@pytest.mark.parametrize("threshold", [0.0, 0.4, -2.0])
def test_stability_is_that_of_the_library(threshold):
    logits = 3 * torch.randn(40, 9, 13, generator=torch.Generator().manual_seed(0))
    logits[0], logits[1] = -10, 10
    logits[2] = threshold + 1  # as high as the higher threshold, which does not count
    logits[3] = threshold - 1
    got = sam_generator._stability(logits, threshold)
    expected = calculate_stability_score(logits, threshold, 1.0)
    assert got.dtype is torch.float32
    torch.testing.assert_close(got, expected, atol=0, rtol=0, equal_nan=True)
    assert got[0].isnan()
    assert got[1] == 1
    assert got[2] == 0


SIZES = [(480, 640), (640, 427), (300, 500), (256, 256), (64, 64), (100, 30), (1, 1), (3, 200)]


@pytest.mark.parametrize("side", [256, 1024])
@pytest.mark.parametrize("hw", SIZES, ids=str)
def test_logits_are_enlarged_as_by_the_library(hw, side):
    encoder = SimpleNamespace(
        img_size=side, patch_embed=SimpleNamespace(proj=SimpleNamespace(stride=(16, 16)))
    )
    sam = SimpleNamespace(image_encoder=encoder)
    scale = side / max(hw)
    scaled_hw = tuple(int(length * scale + 0.5) for length in hw)
    crop = sam_generator._Crop((5, 7, 5 + hw[1], 7 + hw[0]), 0, torch.zeros(3, *scaled_hw))
    low = 5 * torch.randn(2, side // 4, side // 4, generator=torch.Generator().manual_seed(0))

    got = sam_generator._Upsampler(sam, crop, CPU)(low)

    expected = Sam.postprocess_masks(sam, low[:, None], scaled_hw, hw)[:, 0]
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)


def test_rows_of_a_resampling_matrix_are_means():
    matrix = sam_generator._resampling(64, 256, 192, 100)
    assert matrix.shape == (100, 64)
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(100))
    assert (matrix >= 0).all()
    assert (matrix[:, 50:] == 0).all()


def decoded(passed_QM):
    prompts, masks = passed_QM.shape
    return DecodedPoints(
        iou_QM=torch.where(passed_QM, 0.9, 0.1),
        weights_QME=torch.arange(prompts * masks * 2.0).view(prompts, masks, 2),
        places_QPC=torch.arange(prompts * 3.0).view(prompts, 3, 1),
    )


PASSED = {
    "all": [[1, 1, 1], [1, 1, 1]],
    "none": [[0, 0, 0], [0, 0, 0]],
    "some": [[0, 0, 0], [1, 0, 1], [0, 0, 0], [0, 1, 0]],
    "one of every prompt": [[0, 0, 1], [1, 0, 0]],
}


@pytest.mark.parametrize("late", [True, False], ids=["GPU", "CPU"])
@pytest.mark.parametrize("passed", PASSED.values(), ids=PASSED)
def test_prompts_without_a_mask_that_passes_are_left_out(passed, late, monkeypatch):
    passed_QM = torch.tensor(passed, dtype=torch.bool)
    prompts = decoded(passed_QM)
    if late:
        with LateGpu() as gpu:
            gpu.attach(monkeypatch)
            some, pairs = sam_generator._Filtered(prompts, 0.5).survivors()
    else:
        some, pairs = sam_generator._Filtered(prompts, 0.5).survivors()

    expected = passed_QM.nonzero().tolist()
    kept = sorted({row for row, _ in expected})
    assert [[kept[row], mask] for row, mask in pairs.tolist()] == expected
    assert torch.equal(some.iou_QM, prompts.iou_QM[kept])
    assert torch.equal(some.weights_QME, prompts.weights_QME[kept])
    assert torch.equal(some.places_QPC, prompts.places_QPC[kept])


def test_a_mask_passes_above_the_threshold_and_without_one_every_mask_does():
    prompts = decoded(torch.tensor([[True, False, False]]))
    iou = prompts.iou_QM
    for threshold, passing in ((0.1, 1), (0.9, 0), (0.0, 3), (-0.5, 3)):
        exact = float(iou.min()) if threshold == 0.1 else threshold
        exact = float(iou.max()) if threshold == 0.9 else exact
        assert len(sam_generator._Filtered(prompts, exact).survivors()[1]) == passing
