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
DENSE = MASK.astype(int).tolist()
TURNED = MASK.T.astype(int).tolist()
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

    def write_and_read(content, images=IMAGES, *, strict=False):
        path = tmp_path / "masks.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return FileSource(path, split_of(images), strict=strict)

    return write_and_read


@pytest.fixture
def refusal(read):
    """The message with which content is refused, strictly."""

    def message_of(content, images=IMAGES, *, strict=True):
        with pytest.raises(DataError) as error:
            read(content, images, strict=strict)
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
    message = refusal(rows, strict=False)
    assert "entry 0 has image_id 'cat.jpg'; the images have 581857, 37:" in message
    assert len(proposed(read([*rows, result()]), CAT)) == 1


def test_every_spelling_of_an_id_is_the_images_but_not_strictly(read, refusal):
    rows = [result(37), result("37"), result(37.0), result("037")]
    assert len(proposed(read(rows), DOG)) == 4
    assert "Entry 1 of the masks in " in refusal(rows)


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
    "half a row": (result(segmentation={**LETTERS, "size": [4.5, 6]}), "got [4.5, 6]"),
    "float size": (result(segmentation={**LETTERS, "size": [4.0, 6]}), "got the size [4.0, 6]"),
    "dense mask": (result(segmentation=DENSE), "got a dense mask, 4 rows of 6 zeros and ones"),
    "dense mask turned": (result(segmentation=TURNED), "dense one of 6 rows of 4; write the mask"),
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
    "id as float": (result(581857.0), "image_id as int or a name, got 581857.0"),
    "id true": (result(True), "got True"),
    "id empty": (result(""), "got ''"),
    "id null": (result(None), "got None"),
    "no id": ({"segmentation": LETTERS}, "Expected image_id as int or a name, got None"),
    "list": ([1, 2], "Expected an object, got [1, 2]"),
}


@pytest.mark.parametrize(("row", "said"), BROKEN_ROWS.values(), ids=BROKEN_ROWS)
def test_first_broken_entry_is_named(refusal, row, said):
    message = refusal([result(DOG), row, {"image_id": "later"}])
    assert message.startswith("Entry 1 of the masks in ")
    assert said in message


@pytest.mark.parametrize(("row", "said"), BROKEN_ROWS.values(), ids=BROKEN_ROWS)
def test_broken_entries_are_left_out_counted_and_named(read, row, said):
    source = read([result(DOG), row, result(DOG, score=0.5), row, result(CAT)])
    assert proposed(source, DOG).predicted_iou.tolist() == [1, 0.5]
    if row in READ_ANYHOW:
        assert len(proposed(source, CAT)) == 3
        return
    assert len(proposed(source, CAT)) == 1
    first, second = source.warnings
    assert first.startswith("2 broken masks are left out of ")
    assert "masks.json: entry 1 of the masks, entry 3 of the masks; the first: " in first
    assert said in first
    assert second.startswith("Proposals are numbered without the broken masks of ")


READ_ANYHOW = [BROKEN_ROWS[name][0] for name in ("float size", "dense mask", "id as float")]


def test_dense_masks_are_read_counted_and_named(read):
    source = read([result(CAT, DENSE), result(CAT), result(DOG)])
    np.testing.assert_array_equal(proposed(source, CAT).masks_NHW, [MASK, MASK])
    (line,) = source.warnings
    assert line.startswith("1 masks in another form are read in ")
    assert "entry 0 of the masks; the first: Expected polygons" in line
    assert "got a dense mask, 4 rows of 6 zeros and ones" in line
    assert source.settings()["lenient"]


@pytest.mark.parametrize("rows", [[{"image_id": CAT, "bbox": [1, 1, 2, 2]}] * 2, [5], [None]])
def test_a_file_of_broken_masks_alone_is_refused_by_the_first(refusal, rows):
    message = refusal(rows, strict=False)
    assert "masks for the 2 images in " in message
    assert "got none that can be read (entry 0 of the masks: " in message


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_every_encoding_of_json_is_read(tmp_path, encoding):
    path = tmp_path / "masks.json"
    path.write_text(json.dumps([result()]), encoding=encoding)
    assert len(proposed(FileSource(path, split_of(IMAGES)), CAT)) == 1


NO_PROPOSALS = {
    "empty file": ("", "whole JSON"),
    "cut short": (json.dumps([result(), result()])[:-20], "cut short"),
    "two documents": ("[]\n[]", "Extra data"),
    "too deep": ("[" * 100_000, "RecursionError"),
    "empty list": ([], "Expected masks in"),
    "no annotations": ({"images": [listed()], "annotations": []}, "got an empty list"),
    "number": (3, "got 3 for the list"),
    "annotations by id": ({"images": [], "annotations": {"1": {}}}, "got {'1': {}} for the list"),
    "images by id": ({"images": {}, "annotations": []}, "Expected the images in "),
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


def test_an_image_that_is_listed_twice_is_refused(refusal):
    for spelled in (CAT, str(CAT)):
        content = {"images": [listed(), listed(spelled)], "annotations": [result()]}
        assert "to be unique, got 581857 more than once" in refusal(content, strict=False)


BROKEN_IMAGES = {
    "no name": ({"id": DOG, "height": 4, "width": 6}, "file_name as str, got None", True),
    "no height": ({"id": DOG, "file_name": "dog.jpg", "width": 6}, "height as int, got None", True),
    "no size": (listed(DOG, "dog.jpg", height=0), "width above 0, got ('dog.jpg', 0, 6)", True),
    "no id": ({"file_name": "a"}, "Expected id as int or a name, got None", False),
    "text": ("cat.jpg", "Expected an object, got 'cat.jpg'", False),
}


@pytest.mark.parametrize(("image", "said", "has_id"), BROKEN_IMAGES.values(), ids=BROKEN_IMAGES)
def test_broken_images_of_the_list_are_named(read, refusal, image, said, has_id):
    content = {"images": [listed(), image], "annotations": [result(), result(DOG)]}
    message = refusal(content)
    assert message.startswith("Entry 1 of the images in ")
    assert said in message
    source = read(content)
    assert said in source.warnings[0]
    assert len(proposed(source, CAT)) == 1
    assert len(proposed(source, DOG)) == has_id


def test_numbers_of_listed_images_are_read_however_they_are_written(read):
    image = listed("581857", height=4.0, width="6")
    assert read({"images": [image], "annotations": [result()]}, {CAT: "cat.jpg"}).warnings == ()


def test_a_mask_of_an_image_that_is_not_listed_is_left_out(read, refusal):
    content = {"images": [listed()], "annotations": [result(CAT), result(DOG)]}
    says = f"Expected the image {DOG} among the 1 images that the file lists"
    assert says in refusal(content)
    source = read(content)
    assert says in source.warnings[0]
    assert (len(proposed(source, CAT)), len(proposed(source, DOG))) == (1, 0)


def test_first_mask_of_another_size_is_named(refusal):
    turned = {**RUNS, "size": [6, 4]}
    message = refusal([result(DOG), result(CAT, POLYGON), result(CAT, turned), result(DOG, turned)])
    assert message.startswith("Entry 2 of the masks in ")
    assert f"image {CAT}: Expected run lengths of the image's size [4, 6]" in message
    assert "got [6, 4]; write the height first" in message
    message = refusal({"images": [listed()], "annotations": [result(CAT), result(CAT, turned)]})
    assert "Entry 1" in message
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
    message = refusal(content("palm.jpg"), images, strict=False)
    assert "got 'palm.jpg' for image 412, which is train/tree.jpg" in message


def test_listed_image_of_another_size_is_refused(refusal):
    content = {"images": [listed(height=8, width=12)], "annotations": [result(CAT, POLYGON)]}
    message = refusal(content, strict=False)
    assert "got height 8 and width 12 for image 581857, cat.jpg, which has 4 and 6" in message


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
