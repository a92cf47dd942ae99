"""Masks from a file and from the annotations, on a small folder in RefCOCO's layout."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from evaluation.proposals import FileSource, GroundTruthSource, SamSource
from hybridgl.config import ProposalConfig
from hybridgl.devices import Batches, BatchSizes
from hybridgl.errors import DataError, HybridGLError
from hybridgl.masks import Proposals
from hybridgl.store import Store
from refer.phrasecut import load_phrasecut
from refer.refer import load_refer
from tests.refer_factories import (
    CROWD_XYXY,
    HW,
    LEFT_POLYGON,
    RIGHT_POLYGONS,
    mini_phrasecut,
    mini_refer,
)

HEIGHT, WIDTH = HW


def random_masks(seed, count=6):
    """Full, empty and one-pixel masks, one row, one column, and scattered ones."""
    rng = np.random.default_rng(seed)
    masks_NHW = rng.random((count + 5, *HW)) < rng.random((count + 5, 1, 1)) ** 4
    masks_NHW[:5] = False
    masks_NHW[0] = True
    masks_NHW[2, 63, 95] = True
    masks_NHW[3, 7, 5:40] = True
    masks_NHW[4, 2:33, 0] = True
    return masks_NHW[rng.permutation(len(masks_NHW))]


def compressed(mask_HW):
    """As pycocotools writes it, with its letters as text."""
    rle = coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8))
    return {"size": list(map(int, rle["size"])), "counts": rle["counts"].decode("ascii")}


def uncompressed(mask_HW):
    """Runs down the columns, the first of background: counted one pixel at a time."""
    runs, value = [0], False
    for pixel in mask_HW.T.ravel():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return {"size": list(HW), "counts": runs}


def rectangle(x1, y1, x2, y2):
    """A polygon and its mask."""
    mask_HW = np.zeros(HW, dtype=bool)
    mask_HW[y1:y2, x1:x2] = True
    return [x1, y1, x2, y1, x2, y2, x1, y2], mask_HW


def slow_box(mask_HW):
    """Left, top, width and height as SAM's generator has them: no 1 is added."""
    pixels = [(x, y) for y in range(HEIGHT) for x in range(WIDTH) if mask_HW[y, x]]
    if not pixels:
        return [0, 0, 0, 0]
    xs, ys = zip(*pixels, strict=True)
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


@pytest.fixture(scope="module")
def ids(split):
    """Of the three images, in the order of the split."""
    return list(split.images)


@pytest.fixture
def read(tmp_path, split):
    """Writes content as JSON and makes a source of it."""

    def make(content, of=split, *, strict=False):
        path = tmp_path / "masks.json"
        path.write_text(json.dumps(content))
        return FileSource(path, of, strict=strict)

    return make


@pytest.fixture
def refusal(read, tmp_path):
    """The message with which content is refused, strictly."""

    def message_of(content):
        with pytest.raises(HybridGLError) as error:
            read(content, strict=True)
        message = str(error.value)
        assert str(tmp_path / "masks.json") in message
        return message

    return message_of


def result(image_id, segmentation, **others):
    return {"image_id": image_id, "segmentation": segmentation, **others}


def listed(split, image_id):
    info = split.images[image_id]
    return {"id": image_id, "file_name": info.file_name, "height": HEIGHT, "width": WIDTH}


def proposed(source, split, image_id) -> Proposals:
    (finish,) = source.submit([(image_id, split.open_image(image_id))])
    proposals = finish()
    assert proposals.hw == HW
    return proposals


def counts_of(source, split):
    return [len(proposed(source, split, image_id)) for image_id in split.images]


def assert_same(first: Proposals, second: Proposals):
    for name in ("masks_NHW", "boxes_xywh", "predicted_iou", "stability"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


# Masks of a file.


@pytest.mark.parametrize("write", [compressed, uncompressed])
def test_run_lengths_come_back_as_the_masks_that_were_written(write, read, split, ids):
    masks = {image_id: random_masks(seed) for seed, image_id in enumerate(ids)}
    # Entries of several images by turns, in another order than the split's.
    rows = [result(i, write(masks[i][n])) for n in range(11) for i in sorted(ids)]
    source = read(rows)
    for image_id in ids:
        proposals = proposed(source, split, image_id)
        np.testing.assert_array_equal(proposals.masks_NHW, masks[image_id])
        assert proposals.boxes_xywh.tolist() == [slow_box(mask) for mask in masks[image_id]]
    assert source.warnings == ()


def test_spellings_of_a_mask_give_the_same_proposals(read, split, ids):
    polygon, mask_HW = rectangle(8, 16, 33, 48)
    spelled = [
        proposed(read([result(i, segmentation) for i in ids]), split, ids[1])
        for segmentation in (compressed(mask_HW), uncompressed(mask_HW), [polygon])
    ]
    np.testing.assert_array_equal(spelled[0].masks_NHW[0], mask_HW)
    for other in spelled[1:]:
        assert_same(spelled[0], other)


def test_polygons_of_one_entry_are_merged(read, split, ids):
    (first, first_HW), (second, second_HW) = rectangle(4, 4, 20, 20), rectangle(10, 10, 40, 30)
    source = read([result(ids[0], [first, second])])
    (mask_HW,) = proposed(source, split, ids[0]).masks_NHW
    np.testing.assert_array_equal(mask_HW, first_HW | second_HW)


def test_results_and_annotations_give_the_same_proposals(read, split, ids):
    masks = random_masks(0)
    rows = [result(i, compressed(mask), score=0.5) for i in ids for mask in masks]
    images = [listed(split, image_id) for image_id in reversed(ids)]
    forms = read(rows), read({"images": images, "annotations": rows})
    for image_id in ids:
        assert_same(*(proposed(source, split, image_id) for source in forms))


def test_scores_are_those_of_the_file_and_1_where_it_has_none(read, split, ids):
    mask = compressed(random_masks(0)[0])
    rows = [result(ids[0], mask, score=0.25), result(ids[0], mask), result(ids[0], mask, score=-3)]
    proposals = proposed(read(rows), split, ids[0])
    assert proposals.predicted_iou.tolist() == [0.25, 1, -3]
    assert proposals.stability.tolist() == [1, 1, 1]


def test_images_without_an_entry_have_no_proposals_and_are_named(read, split, ids):
    source = read([result(ids[1], compressed(random_masks(0)[0]))])
    (warning,) = source.warnings
    for image_id in (ids[0], ids[2]):
        assert len(proposed(source, split, image_id)) == 0
        assert split.images[image_id].file_name in warning
    assert warning.startswith("2 of 3 images have no entry")
    assert split.images[ids[1]].file_name not in warning


def test_masks_of_other_images_are_let_be(read, data_root, split, ids):
    """One file serves all splits, whatever is wrong with the masks of others."""
    other = next(iter(load_refer(data_root, "refcoco", "testA", check_counts=False).images))
    assert other not in split.images
    rows = [result(other, {"size": [7, 7], "counts": "0"})]
    rows += [result(i, compressed(random_masks(0)[0])) for i in ids]
    source = read(rows)
    assert source.warnings == ()
    assert counts_of(source, split) == [1, 1, 1]
    limited = split.limited(1)
    assert counts_of(read(rows, limited), limited) == [1]


def test_settings_name_the_file_by_its_content(read, tmp_path, ids):
    first = read([result(i, compressed(random_masks(0)[0])) for i in ids])
    again = read([result(i, compressed(random_masks(0)[0])) for i in ids])
    other = read([result(i, compressed(random_masks(0)[1])) for i in ids])
    assert first.settings() == again.settings() != other.settings()
    assert first.name == "masks.json"
    assert first.models == ()


# Files that are refused.


def test_file_of_other_images_says_whose_it_has(refusal, ids):
    message = refusal([result("COCO_1.jpg", compressed(random_masks(0)[0]))])
    assert "entry 0 has image_id 'COCO_1.jpg'" in message
    assert str(ids[0]) in message


def test_first_entry_of_a_wrong_size_is_named_in_the_order_of_the_file(refusal, ids):
    right = compressed(random_masks(0)[0])
    turned = {"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}
    rows = [result(ids[1], right), result(ids[2], turned), result(ids[0], turned)]
    message = refusal(rows)
    assert message.startswith("Entry 1 of the masks in ")
    assert f"image {ids[2]}: Expected run lengths of the image's size [64" in message
    assert "got [96, 64]; write the height first" in message


BROKEN = {
    "too few runs": ({"size": list(HW), "counts": "0"}, "got 1 runs from 0 that add up to 0"),
    "cut short": (
        {"size": list(HW), "counts": "Pk"},
        "compressed run lengths, got 'Pk', cut short",
    ),
    "run of a hundred letters": ({"size": list(HW), "counts": "o" * 100}, "compressed run lengths"),
    "polygon far outside": ([[0, 0, 5000, 0, 5000, 5000]], "got the coordinate 5000"),
}


@pytest.mark.parametrize(("segmentation", "said"), BROKEN.values(), ids=BROKEN)
def test_broken_mask_is_refused_by_its_entry_and_image(segmentation, said, refusal, ids):
    right = compressed(random_masks(0)[0])
    message = refusal([result(ids[0], right), result(ids[2], right), result(ids[2], segmentation)])
    assert message.startswith("Entry 2 of the masks in ")
    assert f"image {ids[2]}: Expected " in message
    assert said in message


def test_first_broken_entry_is_named_in_the_order_of_the_file(refusal, ids):
    """As all other errors of a file are, so that fixing it goes from top to bottom."""
    right, (broken, _) = compressed(random_masks(0)[0]), BROKEN["too few runs"]
    rows = [result(ids[1], right), result(ids[2], broken), result(ids[0], broken)]
    message = refusal(rows)
    assert message.startswith("Entry 1 of the masks in ")
    assert f"image {ids[2]}: " in message


def test_boxes_alone_are_refused(refusal, ids):
    message = refusal([{"image_id": i, "bbox": [1, 1, 5, 5], "score": 1.0} for i in ids])
    assert message.startswith("Entry 0 of the masks in ")
    assert "only a bbox" in message


def test_image_of_another_name_or_size_is_refused(refusal, split, ids):
    annotations = [result(ids[0], [LEFT_POLYGON])]
    other_name = listed(split, ids[0]) | {"file_name": "cat.jpg"}
    assert "got 'cat.jpg'" in refusal({"images": [other_name], "annotations": annotations})
    twice = listed(split, ids[0]) | {"height": 2 * HEIGHT}
    assert "got height 128 and width 96" in refusal({"images": [twice], "annotations": annotations})


def test_missing_file_is_named(tmp_path, split):
    with pytest.raises(HybridGLError, match=r"gone\.json, got No such file"):
        FileSource(tmp_path / "gone.json", split)


# Annotated objects.


def slow_gt_mask(polygons, *, overlapping_polygons_dropped):
    """Every polygon alone by pycocotools, and how many of them cover a pixel."""
    alone = [coco_mask.decode(coco_mask.frPyObjects([p], *HW))[..., 0] for p in polygons]
    total_HW = np.sum(alone, axis=0)
    return total_HW == 1 if overlapping_polygons_dropped else total_HW >= 1


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("overlapping_polygons_dropped", [True, False])
def test_objects_are_those_of_the_annotations_without_the_crowd(
    overlapping_polygons_dropped, split, ids
):
    source = GroundTruthSource(split, overlapping_polygons_dropped=overlapping_polygons_dropped)
    for image_id in ids:
        proposals = proposed(source, split, image_id)
        expected = [
            slow_gt_mask(polygons, overlapping_polygons_dropped=overlapping_polygons_dropped)
            for polygons in ([LEFT_POLYGON], RIGHT_POLYGONS)
        ]
        np.testing.assert_array_equal(proposals.masks_NHW, expected)
        assert proposals.boxes_xywh.tolist() == [slow_box(mask_HW) for mask_HW in expected]
        assert (proposals.predicted_iou == 1).all()
        left, top, *_ = CROWD_XYXY
        assert not proposals.masks_NHW[:, top + 1, left + 1].any()


def test_overlapping_polygons_make_the_two_profiles_differ(split, ids):
    both = [
        proposed(
            GroundTruthSource(split, overlapping_polygons_dropped=drop), split, ids[0]
        ).masks_NHW.sum(axis=(1, 2))
        for drop in (True, False)
    ]
    assert [counts.tolist() for counts in both] == [[768, 768], [768, 896]]


@pytest.mark.parametrize("overlapping_polygons_dropped", [True, False])
def test_every_ground_truth_of_one_object_is_among_the_proposals(
    overlapping_polygons_dropped, split
):
    source = GroundTruthSource(split, overlapping_polygons_dropped=overlapping_polygons_dropped)
    for ref in split.refs:
        gt_mask_HW = split.gt_mask(ref, overlapping_polygons_dropped=overlapping_polygons_dropped)
        masks_NHW = proposed(source, split, ref.image_id).masks_NHW
        assert (masks_NHW == gt_mask_HW).all(axis=(1, 2)).any()


def test_crowd_that_is_referred_to_is_a_proposal(tmp_path):
    data = mini_refer()
    refs = [ref for ref in data.refs if ref["split"] == "val"]
    refs[0]["ann_id"] += 2
    data.write(tmp_path)
    split = load_refer(tmp_path, "refcoco", "val", check_counts=False)
    source = GroundTruthSource(split, overlapping_polygons_dropped=True)
    counts = dict(zip(split.images, counts_of(source, split), strict=True))
    assert counts.pop(refs[0]["image_id"]) == 3
    assert set(counts.values()) == {2}


def test_image_without_annotated_objects_has_no_proposals(tmp_path):
    data = mini_refer()
    for annotation in data.instances["annotations"]:
        annotation["segmentation"] = []
    data.write(tmp_path)
    split = load_refer(tmp_path, "refcoco", "val", check_counts=False)
    source = GroundTruthSource(split, overlapping_polygons_dropped=True)
    for image_id in split.images:
        assert len(proposed(source, split, image_id)) == 0


def test_objects_that_phrasecut_repeats_are_proposed_once(tmp_path):
    mini_phrasecut().write(tmp_path / "phrasecut")
    split = load_phrasecut(tmp_path, "val", check_counts=False)
    source = GroundTruthSource(split, overlapping_polygons_dropped=True)
    for image_id in split.images:
        proposals = proposed(source, split, image_id)
        # Drawn with its border, the box of 24 x 32 pixels has 25 x 33.
        assert proposals.masks_NHW.sum(axis=(1, 2)).tolist()[0] == 25 * 33
        assert len(proposals) == 3


def test_broken_mask_to_which_nobody_refers_is_no_proposal_and_named(tmp_path):
    data = mini_refer()
    annotation = data.instances["annotations"][-1]
    spare = {**annotation, "id": 99, "iscrowd": 0, "segmentation": [[1, 2, 3, 4, 5]]}
    val_image = next(ref["image_id"] for ref in data.refs if ref["split"] == "val")
    dense = [[column % 2 for column in range(WIDTH)]] * HEIGHT
    data.instances["annotations"] += [
        {**spare, "image_id": val_image},
        {**spare, "id": 98, "image_id": val_image, "segmentation": dense},
    ]
    data.write(tmp_path)
    split = load_refer(tmp_path, "refcoco", "val", check_counts=False)
    source = GroundTruthSource(split, overlapping_polygons_dropped=True)
    broken, other_form = source.warnings
    assert (
        "1 annotations of refcoco val have a broken mask, and count as without one: 99;" in broken
    )
    assert "Annotation 99 of image COCO_train2014_" in broken
    assert (
        "1 annotations of refcoco val have a mask in another form, which is read: 98" in other_form
    )
    proposals = proposed(source, split, val_image)
    assert len(proposals) == 3
    np.testing.assert_array_equal(proposals.masks_NHW[2], dense)
    assert source.settings() == {"source": "gt", "lenient": True}
    with pytest.raises(DataError, match=r"^Annotation 99 of image COCO_train2014_"):
        GroundTruthSource(split, overlapping_polygons_dropped=True, strict=True)


# SAM.


class TwoHalves:
    """Stands for SAM: the left and the right half of any image, and how it was asked."""

    def __init__(self):
        self.groups = []

    def propose(self, image_HW3):
        masks_NHW = np.zeros((2, *image_HW3.shape[:2]), dtype=bool)
        masks_NHW[0, :, : WIDTH // 2] = masks_NHW[1, :, WIDTH // 2 :] = True
        boxes = np.array([slow_box(mask_HW) for mask_HW in masks_NHW])
        ones = np.ones(2, dtype=np.float32)
        return Proposals(masks_NHW, boxes, ones, ones)

    def submit(self, images, _config):
        self.groups.append(len(images))
        return [partial(self.propose, image_HW3) for image_HW3 in images]


class OnlySam:
    """Models without any file."""

    batches = Batches(BatchSizes(masks=1, points=1, images=2))
    device = SimpleNamespace(type="cpu")
    weights = SimpleNamespace(sam_checkpoint=SimpleNamespace(name="sam.pth"))

    def __init__(self, sam):
        self.sam = sam

    def numerics(self, _model):
        return "torch.float32"

    def sha256(self, model):
        assert model == "sam"
        return "0" * 64


def test_masks_of_sam_are_those_of_the_opened_image(split, ids, tmp_path):
    sam = TwoHalves()
    source = SamSource(OnlySam(sam), ProposalConfig(), Store(tmp_path))
    assert sam.groups == []
    image = split.open_image(ids[0])
    assert_same(proposed(source, split, ids[0]), sam.propose(image.pixels_HW3))
    assert source.settings()["points_per_side"] == ProposalConfig().points_per_side
    assert (source.name, source.models, source.batch_size) == ("SAM sam.pth", ("sam",), 2)


def test_exported_masks_have_the_boxes_that_sam_gives(read, split, ids, tmp_path):
    """Of halves: width and height lack the 1 that other definitions add."""
    sam = SamSource(OnlySam(TwoHalves()), ProposalConfig(), Store(tmp_path / "store"))
    exported = proposed(sam, split, ids[0])
    source = read([result(ids[0], compressed(mask_HW)) for mask_HW in exported.masks_NHW])
    assert_same(proposed(source, split, ids[0]), exported)
    assert exported.boxes_xywh.tolist() == [[0, 0, 47, 63], [48, 0, 47, 63]]


def test_stored_masks_do_not_load_sam(split, tmp_path):
    sam = TwoHalves()
    made = SamSource(OnlySam(sam), ProposalConfig(), Store(tmp_path))
    expected = [proposed(made, split, image_id) for image_id in split.images]
    stored = SamSource(OnlySam(None), ProposalConfig(), Store(tmp_path))
    for image_id, proposals in zip(split.images, expected, strict=True):
        assert_same(proposed(stored, split, image_id), proposals)


def test_masks_of_another_device_are_loaded_and_never_made(split, ids, tmp_path):
    class OnAGpu(OnlySam):
        device = SimpleNamespace(type="cuda")

    store = Store(tmp_path)
    expected = proposed(SamSource(OnAGpu(TwoHalves()), ProposalConfig(), store), split, ids[0])
    sam = TwoHalves()
    source = SamSource(OnlySam(sam), ProposalConfig(), store, device="cuda")
    assert_same(proposed(source, split, ids[0]), expected)
    with pytest.raises(DataError, match="made on cuda in the store, got none of 1 images"):
        proposed(source, split, ids[2])
    assert sam.groups == []


def test_only_images_whose_masks_are_not_stored_are_given_to_sam(split, ids, tmp_path):
    sam = TwoHalves()
    source = SamSource(OnlySam(sam), ProposalConfig(), Store(tmp_path))
    expected = [proposed(source, split, image_id) for image_id in ids]
    # The first two images have the same pixels, so that the second finds the masks of the first.
    assert sam.groups == [1, 1]
    mixed = SamSource(OnlySam(sam), ProposalConfig(min_mask_region_area=7), Store(tmp_path))
    _ = proposed(mixed, split, ids[2])
    sam.groups.clear()
    finishers = mixed.submit([(image_id, split.open_image(image_id)) for image_id in ids])
    assert sam.groups == [2]
    for finish, proposals in zip(finishers, expected, strict=True):
        assert_same(finish(), proposals)
