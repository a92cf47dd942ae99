"""SAM's adapter: the generator's own numbers, weights files checked, no crash on odd images."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import ImageEncoderViT

import hybridgl
from hybridgl.config import SAM_SETTINGS, ProposalConfig
from hybridgl.devices import CPU_BATCHES, Batches
from hybridgl.errors import SettingError, WeightsError
from hybridgl.masks import Proposals
from hybridgl.models import sam_generator
from hybridgl.models.sam import SAM_TYPES, Sam, build_tiny_sam, load_sam
from refer.shapes.world import training_scene
from scripts.tiny_weights import train_sam
from scripts.tiny_weights.train_sam import HELD_OUT_SEED, Settings

BUNDLED = Path(hybridgl.__file__).parent / "weights" / "tiny" / "sam.npz"

ANY_MASK = ProposalConfig(
    points_per_side=3,
    pred_iou_thresh=-1e9,
    stability_score_thresh=0.0,
    min_mask_region_area=0,
)
NO_MASK = dataclasses.replace(ANY_MASK, pred_iou_thresh=1e9)
WITH_CROPS = dataclasses.replace(ANY_MASK, crop_n_layers=1, crop_n_points_downscale_factor=1)


@pytest.fixture
def sam():
    torch.manual_seed(0)
    sam = build_tiny_sam()
    with torch.no_grad():
        for layer in sam.mask_decoder.output_hypernetworks_mlps:
            layer.layers[-1].weight.mul_(30.0)
    # Untrained masks differ only where their logits are far from zero.
    sam.mask_threshold = 0.4
    return sam


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((10, 10, 1)))
    return image.astype(np.uint8)


def _save_npz(path, sam):
    np.savez_compressed(
        path, **{name: value.numpy().astype(np.float16) for name, value in sam.state_dict().items()}
    )
    return path


def _assert_same(first: Proposals, second: Proposals):
    for field in dataclasses.fields(Proposals):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name))


def _assert_equals_records(proposals: Proposals, records):
    assert len(proposals) == len(records) > 1
    for index, record in enumerate(records):
        np.testing.assert_array_equal(proposals.masks_NHW[index], record["segmentation"])
        assert proposals.boxes_xywh[index].tolist() == record["bbox"]
        # A prompt's qualities are computed beside other prompts here: the last bits differ.
        assert proposals.predicted_iou[index] == pytest.approx(record["predicted_iou"], abs=1e-6)
        assert proposals.stability[index] == np.float32(record["stability_score"])


@pytest.mark.parametrize(
    "config",
    [ANY_MASK, WITH_CROPS, dataclasses.replace(ANY_MASK, min_mask_region_area=30)],
    ids=["plain", "crops", "regions"],
)
def test_proposals_are_those_of_the_generator_in_its_order(sam, image, config):
    records = SamAutomaticMaskGenerator(sam, **dataclasses.asdict(config)).generate(image)

    _assert_equals_records(Sam(sam).propose(image, config), records)


def test_the_bundled_weights_propose_what_the_generator_does_with_every_filter_on():
    scene = training_scene(HELD_OUT_SEED, 0)
    with np.load(BUNDLED, allow_pickle=False) as arrays:
        state = {name: torch.from_numpy(arrays[name]).float() for name in arrays.files}
    sam = build_tiny_sam()
    sam.load_state_dict(state)
    settings = dataclasses.asdict(SAM_SETTINGS["shapes"])

    proposals = Sam.from_checkpoint(BUNDLED, "tiny").propose(
        scene.image_HW3, SAM_SETTINGS["shapes"]
    )

    records = SamAutomaticMaskGenerator(sam, **settings).generate(scene.image_HW3)
    _assert_equals_records(proposals, records)


def test_boxes_span_first_to_last_pixel_without_one_added(sam, image):
    proposals = Sam(sam).propose(image, ANY_MASK)

    for mask, box in zip(proposals.masks_NHW, proposals.boxes_xywh, strict=True):
        rows, columns = np.nonzero(mask)
        if not len(rows):
            assert box.tolist() == [0, 0, 0, 0]
            continue
        x, y = columns.min(), rows.min()
        assert box.tolist() == [x, y, columns.max() - x, rows.max() - y]


def test_proposing_twice_gives_the_same_bits(sam, image):
    proposer = Sam(sam)
    _assert_same(proposer.propose(image, ANY_MASK), proposer.propose(image, ANY_MASK))


def test_a_large_image_in_smaller_batches_gives_the_same_masks(sam, image, monkeypatch):
    whole = Sam(sam).propose(image, ANY_MASK)
    monkeypatch.setattr(sam_generator, "_LOGIT_BYTES", 2 * 60 * 80 * 4)
    pairs = Batches(dataclasses.replace(CPU_BATCHES, points=2))

    in_pairs = Sam(sam, batches=pairs).propose(image, ANY_MASK)

    np.testing.assert_array_equal(in_pairs.masks_NHW, whole.masks_NHW)
    np.testing.assert_allclose(in_pairs.predicted_iou, whole.predicted_iou, atol=1e-5)


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("min_area", [0, 100])
def test_no_surviving_mask_gives_empty_proposals(sam, image, layers, min_area):
    config = dataclasses.replace(NO_MASK, crop_n_layers=layers, min_mask_region_area=min_area)

    proposals = Sam(sam).propose(image, config)

    assert len(proposals) == 0
    assert proposals.masks_NHW.shape == (0, 60, 80)


@pytest.mark.parametrize("config", [ANY_MASK, WITH_CROPS], ids=["plain", "crops"])
@pytest.mark.parametrize("hw", [(1, 1), (1, 2), (2, 2), (3, 3), (1, 200), (200, 1)])
def test_tiny_and_thin_images_get_proposals_of_their_size(sam, hw, config):
    image = np.random.default_rng(0).integers(0, 256, (*hw, 3), dtype=np.uint8)

    proposals = Sam(sam).propose(image, config)

    assert proposals.hw == hw


@pytest.mark.parametrize("hw", [(1, 1000), (2000, 2)])
def test_an_image_too_thin_for_the_model_has_no_proposals_and_says_so(sam, hw, caplog):
    with caplog.at_level(logging.WARNING):
        proposals = Sam(sam).propose(np.zeros((*hw, 3), np.uint8), WITH_CROPS)

    assert len(proposals) == 0
    assert proposals.hw == hw
    assert f"got {hw[0]} x {hw[1]}" in caplog.text


def test_an_image_too_small_for_crops_is_seen_whole(sam):
    image = np.random.default_rng(0).integers(0, 256, (1, 40, 3), dtype=np.uint8)
    proposer = Sam(sam)

    _assert_same(proposer.propose(image, WITH_CROPS), proposer.propose(image, ANY_MASK))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 5), np.uint8),
        np.zeros((4, 5, 4), np.uint8),
        np.zeros((4, 5, 3), np.float32),
        np.zeros((0, 5, 3), np.uint8),
    ],
)
def test_only_8_bit_rgb_is_taken(sam, image):
    with pytest.raises(ValueError, match="Expected image_HW3 to be uint8 of shape"):
        Sam(sam).propose(image, ANY_MASK)


def test_images_of_a_batch_are_all_checked_before_any_is_computed(sam, image, monkeypatch):
    monkeypatch.setattr(Sam, "propose", None)
    proposer = Sam(sam)
    with pytest.raises(ValueError, match=r"got float32 of shape \(60, 80, 3\); convert"):
        proposer.submit([image, image.astype(np.float32)], ANY_MASK)
    first, second = proposer.submit([image, image[:, ::-1]], ANY_MASK)
    _assert_same(second(), proposer.submit([image[:, ::-1]], ANY_MASK)[0]())
    _assert_same(first(), proposer.submit([image], ANY_MASK)[0]())
    assert proposer.submit([], ANY_MASK) == []


def test_bfloat16_is_for_products_of_the_image_encoder_alone():
    proposer = Sam.from_checkpoint(BUNDLED, "tiny", dtype=torch.bfloat16)
    scene = training_scene(HELD_OUT_SEED, 0)
    exact = Sam.from_checkpoint(BUNDLED, "tiny").propose(scene.image_HW3, SAM_SETTINGS["shapes"])

    rounded = proposer.propose(scene.image_HW3, SAM_SETTINGS["shapes"])

    narrow = {
        ".".join(name.split(".")[3:])
        for name, value in proposer._sam.named_parameters()
        if value.dtype is torch.bfloat16
    }
    layers = ("attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2")
    assert narrow == {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    assert len(rounded) == len(exact) > 1
    for mask, other in zip(rounded.masks_NHW, exact.masks_NHW, strict=True):
        assert (mask & other).sum() / (mask | other).sum() > 0.95
    assert (rounded.predicted_iou != exact.predicted_iou).any()


def test_pth_and_npz_load_what_was_saved(sam, image, tmp_path):
    sam.mask_threshold = 0.0  # not part of a weights file
    half = build_tiny_sam()
    half.load_state_dict({name: value.half().float() for name, value in sam.state_dict().items()})
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    _save_npz(tmp_path / "sam.npz", sam)

    from_pth = Sam.from_checkpoint(tmp_path / "sam.pth", "tiny")
    from_npz = Sam.from_checkpoint(str(tmp_path / "sam.npz"), "tiny")

    _assert_same(from_pth.propose(image, ANY_MASK), Sam(sam).propose(image, ANY_MASK))
    _assert_same(from_npz.propose(image, ANY_MASK), Sam(half).propose(image, ANY_MASK))


def test_checkpoint_of_a_training_program_loads(sam, tmp_path):
    state = sam.state_dict()
    below = {f"module.{name}": value for name, value in state.items()}
    save_file(state, tmp_path / "plain.safetensors")
    torch.save({"model": below, "loss": np.float64(1)}, tmp_path / "whole.pth")
    expected = load_sam(tmp_path / "plain.safetensors", "tiny").state_dict()
    got = load_sam(tmp_path / "whole.pth", "tiny").state_dict()
    assert all(torch.equal(got[name], value) for name, value in expected.items())


def test_of_two_sams_that_of_the_type_is_taken(sam, tmp_path):
    other = {
        f"teacher.{name}": torch.zeros(3, *value.shape) for name, value in sam.state_dict().items()
    }
    student = {f"student.{name}": value for name, value in sam.state_dict().items()}
    torch.save(other | student, tmp_path / "sam.pth")
    assert len(load_sam(tmp_path / "sam.pth", "tiny").image_encoder.blocks) == 4


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vision_encoder.patch_embed.projection.weight", "layout of Hugging Face's transformers"),
        ("image_encoder.trunk.patch_embed.proj.weight", "a SAM 2"),
        ("visual.conv1.weight", "a CLIP"),
    ],
)
def test_layout_of_another_model_is_named(tmp_path, name, said):
    torch.save({name: torch.zeros(1)}, tmp_path / "sam.pth")
    with pytest.raises(WeightsError, match=f"of SAM vit_b in .*{said}; download https"):
        Sam.from_checkpoint(tmp_path / "sam.pth", "vit_b")


def test_unknown_type_names_the_right_ones(tmp_path):
    with pytest.raises(SettingError, match="among vit_h, vit_l, vit_b, tiny, got 'vit_g'"):
        Sam.from_checkpoint(tmp_path / "sam.pth", "vit_g")


@pytest.mark.parametrize("sam_type", SAM_TYPES)
def test_a_missing_file_says_where_to_get_it(tmp_path, sam_type):
    with pytest.raises(WeightsError, match="got no such file") as caught:
        Sam.from_checkpoint(tmp_path / "sam.pth", sam_type)
    assert "\n" not in str(caught.value)
    if sam_type != "tiny":
        assert f"segment_anything/sam_{sam_type}_" in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".npz"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_a_file_cut_short_is_noticed(sam, tmp_path, suffix, kept):
    path = tmp_path / f"sam{suffix}"
    if suffix == ".npz":
        _save_npz(path, sam)
    else:
        torch.save(sam.state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])

    with pytest.raises(WeightsError, match="cannot be read"):
        Sam.from_checkpoint(path, "tiny")


def test_flipped_bytes_in_an_npz_are_noticed(sam, tmp_path):
    path = _save_npz(tmp_path / "sam.npz", sam)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(255 - value for value in content[middle : middle + 8])
    path.write_bytes(content)

    with pytest.raises(WeightsError, match="cannot be read"):
        Sam.from_checkpoint(path, "tiny")


@pytest.mark.parametrize("name", ["sam.pth", "sam.npz"])
def test_code_in_a_file_is_not_run(tmp_path, name):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    if name.endswith(".npz"):
        np.savez(tmp_path / name, entry=np.array([Trap()], dtype=object))
    else:
        torch.save({"entry": Trap()}, tmp_path / name)

    with pytest.raises(WeightsError, match="cannot be read"):
        Sam.from_checkpoint(tmp_path / name, "tiny")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [{"other": torch.zeros(1)}, [1, 2], {"state": {}}])
def test_weights_of_another_model_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "sam.pth")
    with pytest.raises(WeightsError, match="got something without image_encoder"):
        Sam.from_checkpoint(tmp_path / "sam.pth", "vit_b")


@pytest.mark.parametrize(
    ("width", "depth", "found"), [(768, 12, "vit_b"), (1024, 24, "vit_l"), (1280, 32, "vit_h")]
)
def test_another_sam_is_named(tmp_path, width, depth, found):
    state = {"image_encoder.patch_embed.proj.weight": torch.zeros(width, 3, 1, 1)}
    state |= {f"image_encoder.blocks.{i}.norm1.bias": torch.zeros(1) for i in range(depth)}
    torch.save(state, tmp_path / "sam.pth")
    asked = "vit_h" if found != "vit_h" else "vit_b"

    with pytest.raises(
        WeightsError, match=f"of SAM {asked} in .*, got those of {found}; choose --sam_type {found}"
    ):
        Sam.from_checkpoint(tmp_path / "sam.pth", asked)


def test_an_unknown_sam_is_described(sam, tmp_path):
    sam.image_encoder = ImageEncoderViT(
        img_size=256, embed_dim=48, depth=2, num_heads=3, out_chans=64
    )
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    with pytest.raises(WeightsError, match=r"width 96, 4 blocks.*got width 48 and 2 blocks"):
        Sam.from_checkpoint(tmp_path / "sam.pth", "tiny")


def _drop(state):
    del state["mask_decoder.iou_token.weight"]


def _add(state):
    state["adapter.weight"] = torch.zeros(1)


def _reshape(state):
    state["mask_decoder.iou_token.weight"] = torch.zeros(2, 64)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop, r"mask_decoder\.iou_token\.weight is missing"),
        (_add, r"adapter\.weight is not of this model"),
        (_reshape, r"has shape \(2, 64\) instead of \(1, 64\)"),
    ],
)
def test_entries_must_be_those_of_the_model(sam, tmp_path, damage, message):
    state = dict(sam.state_dict())
    damage(state)
    torch.save(state, tmp_path / "sam.pth")
    with pytest.raises(WeightsError, match=message):
        Sam.from_checkpoint(tmp_path / "sam.pth", "tiny")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("masks_NHW", np.zeros((2, 3, 4), np.uint8)),
        ("masks_NHW", np.zeros((3, 4), bool)),
        ("boxes_xywh", np.zeros((2, 4), np.float32)),
        ("boxes_xywh", np.zeros((1, 4), np.int64)),
        ("predicted_iou", np.zeros(2, np.float64)),
        ("stability", np.zeros((2, 1), np.float32)),
    ],
)
def test_proposals_refuse_fields_that_do_not_match(field, value):
    right = Proposals(
        masks_NHW=np.zeros((2, 3, 4), bool),
        boxes_xywh=np.zeros((2, 4), np.int64),
        predicted_iou=np.zeros(2, np.float32),
        stability=np.zeros(2, np.float32),
    )
    with pytest.raises(ValueError, match="convert it before"):
        dataclasses.replace(right, **{field: value})


def test_training_clicks_beside_an_object_mean_the_nearest_one():
    labels = np.zeros((60, 80), np.uint8)
    labels[20:40, 10:20] = 1
    labels[20:40, 30:40] = 2

    claims = train_sam.click_claims(labels)

    np.testing.assert_array_equal(claims[labels > 0], labels[labels > 0])
    assert claims[30, 23] == 1
    assert claims[30, 27] == 2
    assert claims[30, 48] == 2
    assert claims[30, 52] == 255
    assert claims[30, 60] == 0


def _settings(folder):
    return Settings(folder=folder, seed=3, scenes=2, steps=3, images=1, points=8, lr=1e-3)


def test_an_interrupted_training_ends_with_the_same_bytes(tmp_path, monkeypatch):
    train_sam.export(train_sam.train(_settings(tmp_path / "a")), tmp_path / "a.npz")
    monkeypatch.setattr(train_sam, "_STEPS_PER_CHECKPOINT", 1)
    with monkeypatch.context() as patch:
        patch.setattr(train_sam.tqdm, "set_postfix", _interrupt_after(2))
        with pytest.raises(KeyboardInterrupt):
            train_sam.train(_settings(tmp_path / "b"))
    assert torch.load(tmp_path / "b" / "last.pt", weights_only=True)["step"] == 1

    train_sam.export(train_sam.train(_settings(tmp_path / "b")), tmp_path / "b.npz")

    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    train_sam.train(_settings(tmp_path))
    with pytest.raises(ValueError, match="choose another folder"):
        train_sam.train(dataclasses.replace(_settings(tmp_path), seed=4))


def _interrupt_after(calls):
    left = iter(range(calls - 1))

    def set_postfix(*_, **__):
        if next(left, None) is None:
            raise KeyboardInterrupt

    return set_postfix


def test_measuring_counts_a_missed_object_as_zero():
    class Blind:
        def propose(self, image_HW3, config):
            return Proposals.empty(image_HW3.shape[:2])

    class Seer:
        def propose(self, image_HW3, config):
            labels = next(labels_of)
            masks = np.stack([labels == 1, labels == 1])
            return Proposals(
                masks, np.zeros((2, 4), np.int64), np.ones(2, np.float32), np.ones(2, np.float32)
            )

    scenes = [training_scene(HELD_OUT_SEED, index) for index in range(2)]
    labels_of = iter([scene.labels_HW for scene in scenes])
    objects = sum(len(scene.objects) for scene in scenes)

    blind, seer = train_sam.evaluate(Blind(), 2), train_sam.evaluate(Seer(), 2)

    assert (blind.mean_best_iou, blind.recall, blind.proposals_per_object) == (0, 0, 0)
    assert seer.objects == objects
    assert seer.mean_best_iou == pytest.approx(2 / objects)
    assert seer.recall == pytest.approx(2 / objects)
    assert seer.proposals_per_object == pytest.approx(4 / objects)


def test_loaded_sam_has_all_tensors_of_one_that_is_built():
    """Its weights take the place of those that are drawn; statistics of pixels are no weights."""
    built, loaded = build_tiny_sam(), load_sam(BUNDLED, "tiny")
    for kind in ("named_parameters", "named_buffers"):
        expected, found = dict(getattr(built, kind)()), dict(getattr(loaded, kind)())
        assert found.keys() == expected.keys()
        assert all(tensor.device.type == "cpu" for tensor in found.values())
    assert torch.equal(loaded.pixel_mean, built.pixel_mean)
    assert torch.equal(loaded.pixel_std, built.pixel_std)
