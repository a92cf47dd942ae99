"""Files of another program's masks: what is read, and in which words the first error is refused."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

import refer.refer
from evaluation.proposals import FileSource
from evaluation.published import ROWS
from hybridgl.errors import DataError
from hybridgl.images import RgbImage
from refer.dataset import ImageErrors, ImageInfo, ReferSplit
from refer.segmentation import MaskRule, gt_mask
from tests.refer_factories import mini_refer

FOLDER = Path(__file__).parents[2] / "third_party"
HW = (4, 6)
CAT, DOG, TREE = 581857, 37, 412
# Rows 1 and 2 of columns 1 and 2, in all three ways of writing it.
MASK = np.zeros(HW, dtype=bool)
MASK[1:3, 1:3] = True
RUNS = {"size": [4, 6], "counts": [5, 2, 2, 2, 13]}
LETTERS = {"size": [4, 6], "counts": "5220;"}
POLYGON = [[1.0, 1, 3, 1, 3, 3, 1, 3]]
IMAGES = {CAT: "cat.jpg", DOG: "dog.jpg"}
IMAGE = RgbImage(np.zeros((*HW, 3), dtype=np.uint8))
NAN = float("nan")


def result(image_id=CAT, segmentation=LETTERS, **others):
    return {"image_id": image_id, "category_id": 1, "segmentation": segmentation, **others}


def listed(image_id=CAT, file_name="cat.jpg", height=4, width=6):
    return {"id": image_id, "file_name": file_name, "height": height, "width": width}


def split_of(images):
    """A split of images of 4 x 6 pixels, by their ids."""
    return ReferSplit(
        dataset="mine",
        split="all",
        split_by="-",
        refs=(),
        images={image_id: ImageInfo(image_id, name, *HW) for image_id, name in images.items()},
        annotations={},
        image_roots=(),
        sha256_by_file={},
        mask_rule=MaskRule.COCO,
        image_errors=ImageErrors(),
    )


def proposed(source, image_id):
    (finish,) = source.submit([(image_id, IMAGE)])
    return finish()


@pytest.fixture
def read(tmp_path):
    """Write content as JSON and read it back as the masks of images."""

    def write_and_read(content, images=IMAGES):
        path = tmp_path / "masks.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return FileSource(path, split_of(images))

    return write_and_read


@pytest.fixture
def refusal(read):
    """The message with which content is refused."""

    def message_of(content, images=IMAGES):
        with pytest.raises(DataError) as error:
            read(content, images)
        message = str(error.value)
        assert "masks.json" in message
        assert "\n" not in message
        return message

    return message_of


@pytest.mark.parametrize(
    "segmentation", [RUNS, LETTERS, POLYGON], ids=["runs", "letters", "polygon"]
)
def test_fixtures_are_three_spellings_of_one_mask(segmentation):
    np.testing.assert_array_equal(
        gt_mask(segmentation, HW, overlapping_polygons_dropped=False), MASK
    )


def test_results_keep_order_score_and_masks(read, tmp_path):
    column = {"size": [4, 6], "counts": [4, 4, 16]}
    rows = [
        result(DOG, RUNS, score=0.25),
        result(CAT, LETTERS, score=1, bbox=[1, 1, 2, 2]),
        result(DOG, column, score=-3.5),
        result(DOG, POLYGON),
    ]
    source = read(rows)
    dogs, cats = proposed(source, DOG), proposed(source, CAT)
    column_HW = np.broadcast_to(np.arange(6) == 1, HW)
    np.testing.assert_array_equal(dogs.masks_NHW, [MASK, column_HW, MASK])
    np.testing.assert_array_equal(cats.masks_NHW, [MASK])
    assert dogs.predicted_iou.tolist() == [0.25, -3.5, 1]
    assert cats.predicted_iou.tolist() == [1]
    sha256 = hashlib.sha256((tmp_path / "masks.json").read_bytes()).hexdigest()
    assert source.settings() == {"source": "coco", "file": "masks.json", "sha256": sha256}


def test_annotations_may_list_images_of_other_data(read):
    content = {
        "info": {},
        "images": [listed(TREE, "tree.jpg", 7, 8), listed()],
        "annotations": [
            {"id": 9, **result(CAT, POLYGON)},
            result(TREE, {"size": [7, 8], "counts": [0, 56]}),
        ],
        "categories": [],
    }
    source = read(content, {CAT: "cat.jpg"})
    np.testing.assert_array_equal(proposed(source, CAT).masks_NHW, [MASK])
    assert source.warnings == ()


@pytest.mark.parametrize("spelled", ["581857", "000000581857"])
def test_digits_in_a_string_are_the_number(read, spelled):
    for content in (
        [result(spelled)],
        {"images": [listed(spelled)], "annotations": [result(CAT)]},
    ):
        assert len(proposed(read(content), CAT)) == 1


def test_string_that_is_no_number_is_of_no_image(read, refusal):
    rows = [result("cat.jpg"), result("²"), result("9" * 5000)]
    assert "entry 0 has image_id 'cat.jpg'; the images have 581857, 37:" in refusal(rows)
    assert len(proposed(read([*rows, result()]), CAT)) == 1


def test_two_spellings_of_an_id_are_refused(refusal):
    message = refusal([result(37), result("37")])
    assert "entry 1 (image_id '37')" in message
    assert "got 37 before" in message


BROKEN_ROWS = {
    "box only": ({"image_id": CAT, "bbox": [1, 1, 2, 2], "score": 1.0}, "got none, only a bbox"),
    "no mask": ({"image_id": CAT}, "Expected a segmentation, got none; have the program write"),
    "null": (result(segmentation=None), "at least one polygon or run-length mask, got None"),
    "no polygons": (result(segmentation=[]), "got []"),
    "text": (result(segmentation="5220;"), "got '5220;'"),
    "flat polygon": (
        result(segmentation=POLYGON[0]),
        "Expected a polygon (a list of numbers) or run lengths (size and counts), got 1.0",
    ),
    "two points": (result(segmentation=[[1, 1, 3, 3]]), "even count of numbers, at least 6, got 4"),
    "odd polygon": (result(segmentation=[[1, 1, 3, 1, 3, 3, 1]]), "got 7"),
    "NaN in polygon": (
        result(segmentation=[[1, 1, 3, 1, 3, NAN]]),
        "height 4 and width 6, got the coordinate nan",
    ),
    "text in polygon": (
        result(segmentation=[[1, 1, 3, 1, 3, "3"]]),
        "a polygon of numbers, got '3'",
    ),
    "no size": (result(segmentation={"counts": "5220;"}), "height first, got None"),
    "float size": (result(segmentation={**LETTERS, "size": [4.0, 6]}), "got [4.0, 6]"),
    "zero size": (result(segmentation={**LETTERS, "size": [0, 6]}), "got [0, 6]"),
    "no counts": (
        result(segmentation={"size": [4, 6]}),
        "as text or as a list of numbers, got None",
    ),
    "printed bytes": (result(segmentation={**LETTERS, "counts": "b'5220;'"}), ".decode('ascii')"),
    "empty counts": (
        result(segmentation={**LETTERS, "counts": ""}),
        "got 0 runs from 0 that add up to 0",
    ),
    "runs too short": (result(segmentation={**RUNS, "counts": [5, 2]}), "add up to 24 pixels"),
    "negative run": (
        result(segmentation={**RUNS, "counts": [25, -1]}),
        "got 2 runs from -1 that add up to 24",
    ),
    "float run": (result(segmentation={**RUNS, "counts": [24.0]}), "as whole numbers, got 24.0"),
    "NaN score": (result(score=NAN), "score as a finite number, got nan"),
    "infinite score": (result(score=float("inf")), "got inf"),
    "score as text": (result(score="0.9"), "got '0.9'"),
    "score null": (result(score=None), "got None; write a number, or leave score out"),
    "score true": (result(score=True), "got True"),
    "score beyond float32": (result(score=10**400), "score as a finite number"),
    "id as float": (result(581857.0), "image_id as a whole number, got 581857.0"),
    "id true": (result(True), "got True"),
    "id empty": (result(""), "got ''"),
    "id null": (result(None), "got None"),
    "no id": ({"segmentation": LETTERS}, "(image_id missing): Expected image_id"),
    "list": ([1, 2], "Expected an object, got [1, 2]"),
}


@pytest.mark.parametrize(("row", "said"), BROKEN_ROWS.values(), ids=BROKEN_ROWS)
def test_first_broken_entry_is_named(refusal, row, said):
    message = refusal([result(DOG), row, {"image_id": "later"}])
    assert "masks.json, entry 1 (image_id " in message
    assert said in message


NO_PROPOSALS = {
    "empty file": ("", "whole JSON"),
    "cut short": (json.dumps([result(), result()])[:-20], "cut short"),
    "two documents": ("[]\n[]", "Extra data"),
    "too deep": ("[" * 100_000, "RecursionError"),
    "empty list": ([], "Expected masks in"),
    "no annotations": ({"images": [listed()], "annotations": []}, "got an empty list"),
    "number": (3, "got 3 for the list"),
    "annotations by id": ({"images": [], "annotations": {"1": {}}}, "got {'1': {}} for the list"),
    "images by id": ({"images": {}, "annotations": []}, "Expected images as a list"),
    "one result": (result(), "got an object with 'image_id', 'category_id', 'segmentation'"),
    "SA-1B": ({"image": {}, "annotations": []}, "got an object with 'image', 'annotations'"),
    "nothing": ({}, "got an object with nothing"),
}


@pytest.mark.parametrize(("content", "said"), NO_PROPOSALS.values(), ids=NO_PROPOSALS)
def test_file_of_another_form_says_what_it_is(refusal, content, said):
    assert said in refusal(content)


def test_missing_file_and_other_encodings_are_refused(tmp_path):
    split = split_of(IMAGES)
    with pytest.raises(DataError, match=r"absent\.json, got No such file"):
        FileSource(tmp_path / "absent.json", split)
    with pytest.raises(DataError, match="Is a directory"):
        FileSource(tmp_path, split)
    packed = tmp_path / "masks.json.gz"
    packed.write_bytes(b"\x1f\x8b\x08\x00")
    with pytest.raises(DataError, match=r"masks\.json\.gz, got UnicodeDecodeError"):
        FileSource(packed, split)


BROKEN_IMAGES = {
    "twice": (listed(), "Expected every id once, got 581857 again"),
    "twice as text": (listed("581857"), "Expected every id once, got '581857' again"),
    "no name": ({"id": 5, "height": 4, "width": 6}, "file_name as a string, got None"),
    "no height": ({"id": 5, "file_name": "a", "width": 6}, "height and width as two whole numbers"),
    "no id": ({"file_name": "a"}, "(id missing): Expected id as a whole number"),
    "text": ("cat.jpg", "Expected an object, got 'cat.jpg'"),
}


@pytest.mark.parametrize(("image", "said"), BROKEN_IMAGES.values(), ids=BROKEN_IMAGES)
def test_first_broken_image_of_the_list_is_named(refusal, image, said):
    message = refusal({"images": [listed(), image, {}], "annotations": [result()]})
    assert "image 1 of its list" in message
    assert said in message


def test_annotation_has_to_fit_the_listed_images(refusal):
    rows = [result(CAT), result(DOG)]
    message = refusal({"images": [listed()], "annotations": rows})
    assert f"entry 1 (image_id {DOG}): Expected the image of every annotation" in message


def test_first_mask_of_another_size_is_named(refusal):
    turned = {**RUNS, "size": [6, 4]}
    message = refusal([result(DOG), result(CAT, POLYGON), result(CAT, turned), result(DOG, turned)])
    assert f"entry 2 (image_id {CAT}): Expected run lengths of the image's size [4, 6]" in message
    assert "got [6, 4]; write the height first" in message
    message = refusal({"images": [listed()], "annotations": [result(CAT), result(CAT, turned)]})
    assert "entry 1" in message
    assert "size [4, 6], height first, got [6, 4]" in message
    assert "got [8, 6]; write the mask at" in refusal(
        [result(CAT, {"size": [8, 6], "counts": [48]})]
    )


def test_masks_of_all_images_leave_nothing_to_say(read):
    elsewhere = result(TREE, {**RUNS, "size": [24, 1]})
    assert read([result(CAT), result(DOG), elsewhere]).warnings == ()


def test_images_without_entry_are_said(read):
    images = {i: f"{i}.jpg" for i in (1, 2, 3, 4, 5, 6, CAT)}
    (line,) = read([result(CAT)], images).warnings
    assert line.startswith("6 of 7 images have no entry in ")
    assert line.endswith(
        "no proposals: 1.jpg (1), 2.jpg (2), 3.jpg (3), 4.jpg (4), 5.jpg (5) and 1 more."
    )


def test_listed_image_has_to_be_the_datasets_own(read, refusal):
    def content(name):
        return {"images": [listed(TREE, name)], "annotations": [result(TREE)]}

    images = {TREE: "train/tree.jpg"}
    assert read(content("/data/tree.jpg"), images).warnings == ()
    assert read(content("data\\tree.jpg"), images).warnings == ()
    message = refusal(content("palm.jpg"), images)
    assert "image 0 of its list (id 412): " in message
    assert "to be train/tree.jpg, got 'palm.jpg'" in message


def test_listed_image_of_another_size_is_refused(refusal):
    content = {"images": [listed(height=8, width=12)], "annotations": [result(CAT, POLYGON)]}
    assert "to have height 4 and width 6, got 8 and 12" in refusal(content)


def python_blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def readme_block(needle):
    (block,) = [block for block in python_blocks(FOLDER / "README.md") if needle in block]
    return block


def test_writer_of_the_readme_writes_what_is_read(tmp_path):
    names = {}
    exec(readme_block("def masks_to_coco_results"), names)
    path = tmp_path / "masks.json"
    full = np.ones(HW, dtype=bool)
    masks = {str(CAT): np.stack([MASK, full]), DOG: np.zeros((0, *HW), dtype=bool)}
    names["masks_to_coco_results"](masks, path)
    source = FileSource(path, split_of(IMAGES))
    proposals = proposed(source, CAT)
    assert proposals.predicted_iou.tolist() == [1, 1]
    np.testing.assert_array_equal(proposals.masks_NHW, masks[str(CAT)])
    assert source.warnings[0].startswith("1 of 2 images")
    names["masks_to_coco_results"]({DOG: [MASK]}, path, {DOG: np.float32([0.5])})
    assert proposed(FileSource(path, split_of(IMAGES)), DOG).predicted_iou == [0.5]


def test_image_list_of_the_readme_names_the_files_of_a_split(tmp_path, monkeypatch):
    data = mini_refer()
    data.write(tmp_path / "refer/data")
    monkeypatch.chdir(tmp_path)
    # The small data folder has fewer images than the published split.
    small = functools.partial(refer.refer.load_refer, check_counts=False)
    monkeypatch.setattr(refer.refer, "load_refer", small)
    exec(readme_block("load_refer"), {})
    paths = json.loads((tmp_path / "images.json").read_text())
    ids = {ref["image_id"] for ref in data.refs if ref["split"] == "val"}
    assert {int(image_id) for image_id in paths} == ids
    assert all(Path(path).is_absolute() and Path(path).is_file() for path in paths.values())


def test_every_python_block_of_the_pages_is_python():
    blocks = [block for page in FOLDER.glob("*.md") for block in python_blocks(page)]
    assert len(blocks) >= 7
    for block in blocks:
        ast.parse(block)


def test_index_has_every_page_and_no_other():
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", index))
    assert linked == {page.name for page in FOLDER.glob("*.md")} - {"README.md"}


def test_every_page_has_its_facts():
    for page in FOLDER.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        facts = ["Paper", "Code", "Licence", "Pin", "Run here"]
        if page.name != "README.md":
            assert re.findall(r"^\* ([\w ]+): ", text, flags=re.MULTILINE)[:3] == facts[:3]
            assert all(f"* {fact}: " in text for fact in facts), page.name
            assert "```bibtex" in text


def test_rows_that_the_pages_name_are_published():
    known = {row.row_id for row in ROWS}
    named = set()
    for page in FOLDER.glob("*.md"):
        for lines in re.findall(
            r"^Rows? in `published.json`: (.*?)\n\n", page.read_text(), re.M | re.S
        ):
            named |= set(re.findall(r"`([\w-]+)`", lines)) - {"published"}
    assert named == known
