"""What a split says of its own contents: masks, instances, images, limits."""

from __future__ import annotations

import pytest
from PIL import Image

import refer
from hybridgl.errors import ImageError
from refer.dataset import Annotation, ImageErrors, ImageInfo, Ref, ReferSplit, Sentence
from refer.segmentation import MaskRule

HW = (4, 6)
TOP = [0, 0, 6, 0, 6, 2, 0, 2]
LEFT = [0, 0, 2, 0, 2, 4, 0, 4]
CROWD = {"size": [4, 6], "counts": [20, 4]}


def ref(ref_id, *ann_ids, image_id=1, sentences=1):
    said = tuple(Sentence(i, f"thing {i}") for i in range(sentences))
    return Ref(ref_id, ann_ids, image_id, said)


def split_of(refs, annotations, *, roots=(), rule=MaskRule.COCO, image_errors=None):
    images = {i: ImageInfo(i, f"{i}.jpg", *HW) for i in dict.fromkeys(r.image_id for r in refs)}
    return ReferSplit(
        dataset="mine",
        split="all",
        split_by="-",
        refs=tuple(refs),
        images=images,
        annotations={ann.ann_id: ann for ann in annotations},
        image_roots=tuple(roots),
        sha256_by_file={},
        mask_rule=rule,
        image_errors=image_errors or ImageErrors(),
    )


def as_rows(mask_HW):
    return ["".join(".#"[int(pixel)] for pixel in row) for row in mask_HW]


@pytest.mark.parametrize("dropped", [True, False])
def test_the_mask_of_several_objects_is_their_union(dropped):
    """Q9 is about the polygons of one object: pixels that two objects share stay."""
    split = split_of([ref(1, "a", "b")], [Annotation("a", 1, [TOP]), Annotation("b", 1, [LEFT])])
    gt_mask_HW = split.gt_mask(split.refs[0], overlapping_polygons_dropped=dropped)
    assert as_rows(gt_mask_HW) == ["######", "######", "##....", "##...."]
    assert gt_mask_HW.dtype == bool


def test_overlaps_are_dropped_within_an_object():
    both = Annotation(7, 1, [TOP, LEFT])
    split = split_of([ref(1, 7)], [both])
    rows = ["..####", "..####", "##....", "##...."]
    assert as_rows(split.instance_mask(7, overlapping_polygons_dropped=True)) == rows
    assert as_rows(split.gt_mask(split.refs[0], overlapping_polygons_dropped=True)) == rows
    rows = ["######", "######", "##....", "##...."]
    assert as_rows(split.instance_mask(7, overlapping_polygons_dropped=False)) == rows


def test_the_rule_of_the_dataset_draws_and_checks():
    square = [[[1.9, 1], [3, 1], [3, 2]]]
    split = split_of([ref("t", "t.0")], [Annotation("t.0", 1, square)], rule=MaskRule.PHRASECUT)
    assert as_rows(split.instance_mask("t.0", overlapping_polygons_dropped=True))[1] == ".###.."
    split.check_mask("t.0")
    as_coco = split_of([ref("t", "t.0")], [Annotation("t.0", 1, square)])
    with pytest.raises(ValueError, match="3 numbers"):
        as_coco.check_mask("t.0")


@pytest.mark.parametrize("segmentation", [[], None, {}])
def test_an_object_without_a_segmentation_adds_nothing(segmentation):
    annotations = [Annotation(1, 1, segmentation), Annotation(2, 1, [TOP])]
    split = split_of([ref(1, 1), ref(2, 1, 2), ref(3, 2), ref(4)], annotations)
    assert split.refs_without_mask == (1, 2, 4)
    split.check_mask(1)
    masks_HW = [split.gt_mask(one, overlapping_polygons_dropped=True) for one in split.refs]
    assert [mask_HW.sum() for mask_HW in masks_HW] == [0, 12, 12, 0]
    assert {mask_HW.shape for mask_HW in masks_HW} == {HW}


def test_a_broken_mask_is_named_by_its_annotation_and_image():
    split = split_of([ref(1, 5)], [Annotation(5, 1, [TOP[:-1]])])
    says = r"^Annotation 5 of image 1\.jpg: Expected a polygon .* got 7 numbers"
    with pytest.raises(ValueError, match=says):
        split.check_mask(5)
    with pytest.raises(ValueError, match=says):
        split.instance_mask(5, overlapping_polygons_dropped=True)
    with pytest.raises(ValueError, match=says):
        split.gt_mask(split.refs[0], overlapping_polygons_dropped=False)


def test_instances_are_what_can_serve_as_a_proposal():
    annotations = [
        Annotation(9, 1, [TOP]),
        Annotation(1, 1, []),
        Annotation(2, 1, None),
        Annotation(3, 1, CROWD, iscrowd=True),
        Annotation(4, 1, [LEFT]),
        Annotation(5, 2, [LEFT]),
        Annotation(6, 1, [LEFT]),
        Annotation(7, 1, [TOP, LEFT]),
        Annotation(8, 1, [LEFT, TOP]),
    ]
    refs = [ref(1, 4), ref(2, 5, image_id=2)]
    split = split_of(refs, annotations)
    assert split.instances(1) == (9, 4, 7, 8)
    assert split.instances(2) == (5,)
    assert split_of([*refs, ref(3, 3)], annotations).instances(1) == (9, 3, 4, 7, 8)


def test_an_image_without_objects_has_no_instances():
    assert split_of([ref(1)], []).instances(1) == ()


def test_refs_without_sentences():
    split = split_of([ref(1, sentences=0), ref(2), ref(3, sentences=0)], [])
    assert split.refs_without_sentences == (1, 3)
    assert split.num_sentences == 1


def test_images_are_found_in_the_first_folder_that_has_them(tmp_path):
    roots = [tmp_path / name for name in ("first", "second")]
    for root in roots:
        root.mkdir()
    split = split_of([ref(1), ref(2, image_id=2), ref(3, image_id=3)], [], roots=roots)
    (roots[0] / "1.jpg").touch()
    (roots[1] / "1.jpg").touch()
    (roots[0] / "2.jpg").mkdir()
    (roots[1] / "2.jpg").touch()
    found = [split.image_path(i).relative_to(tmp_path).as_posix() for i in (1, 2, 3)]
    assert found == ["first/1.jpg", "second/2.jpg", "first/3.jpg"]
    with pytest.raises(KeyError):
        split.image_path(4)


def test_an_image_is_opened_at_its_annotated_size(tmp_path):
    split = split_of([ref(1), ref(2, image_id=2)], [], roots=[tmp_path])
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by the camera; annotations are in stored pixels
    Image.new("RGB", (12, 8), (9, 8, 7)).save(tmp_path / "1.jpg", exif=exif)
    Image.new("L", HW[::-1]).save(tmp_path / "2.jpg", exif=exif)
    assert [split.open_image(i).pixels_HW3.shape for i in (1, 2)] == [(*HW, 3)] * 2


def test_an_image_that_cannot_be_opened_is_named(tmp_path):
    split = split_of([ref(i, image_id=i) for i in (1, 2)], [], roots=[tmp_path])
    (tmp_path / "2.jpg").touch()
    for image_id in (1, 2):
        with pytest.raises(ImageError, match=rf"{image_id}\.jpg"):
            split.open_image(image_id)


def test_the_folder_exports_what_it_promises():
    assert set(refer.__all__) <= vars(refer).keys()


def test_a_limit_keeps_the_errors_of_its_images():
    refs = [ref(i, i, image_id=i) for i in (3, 1, 2)]
    image_errors = ImageErrors(missing=(3, 2), corrupt=(1,), wrong_size={1: (5, 5), 2: (8, 8)})
    annotations = [Annotation(i, i, [TOP]) for i in (1, 2, 3)]
    limited = split_of(refs, annotations, image_errors=image_errors).limited(2)
    assert limited.image_errors == ImageErrors(missing=(3,), corrupt=(1,), wrong_size={1: (5, 5)})
    assert (list(limited.images), list(limited.annotations)) == ([3, 1], [1, 3])
    assert (limited.instances(3), limited.instances(2)) == ((3,), ())
