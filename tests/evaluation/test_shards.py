"""Shards: which images they take, what their files hold, and how they are put together."""

from __future__ import annotations

import itertools
import json
import random

import pytest

from evaluation.evaluate import in_dataset_order
from evaluation.records import Pick, Record
from evaluation.shards import Shard, merge_shards, missing_shards, write_shard
from hybridgl.errors import HybridGLError
from refer.dataset import ImageInfo, Ref, ReferSplit, Sentence

SETTINGS = {"method": {"name": "hybridgl", "alpha": 0.6}, "limit": None, "pair": (1, 2)}

FAULTS = {"missing": [50], "damaged": [], "other_size": [[10, 480, 640]]}
RECORD = '{"k_limits": '
"""What the line of a record starts with."""


def split_of(image_of_ref: dict[int | str, int], sentences: int = 2) -> ReferSplit:
    """A split of refs with some sentences each, from the image of every ref in dataset order."""
    refs = tuple(
        Ref(
            ref_id=ref_id,
            ann_ids=(ref_id,),
            image_id=image_id,
            sentences=tuple(Sentence(i, f"the {i}th of {ref_id}") for i in range(sentences)),
        )
        for ref_id, image_id in image_of_ref.items()
    )
    images = {i: ImageInfo(i, f"{i}.jpg", 10, 10) for i in dict.fromkeys(image_of_ref.values())}
    return ReferSplit("mini", "val", "-", refs, images, {}, (), {})


SPLIT = split_of({1: 70, 2: 30, "three": 50, 4: 70, 5: 10, 6: 30})
COUNTS = {70: 4, 30: 2, 50: 0, 10: 6}


def record_of(ref: Ref, sentence: Sentence, k_limit: int) -> Record:
    """A record whose pick tells the k_limit, as far as there are so many proposals."""
    count = COUNTS[ref.image_id]
    index = min(k_limit, count) - 1 if count else None
    pick = Pick(
        index=index,
        area=count,
        intersection=0,
        union=count + 9,
        intersection_480=0,
        union_480=9,
    )
    return Record(
        dataset="mini",
        split="val",
        ref_id=ref.ref_id,
        sent_id=sentence.sent_id,
        image_id=ref.image_id,
        image_missing=False,
        sentence=f"{sentence.raw}, “rød”\u2028\x1c",
        kind=None,
        noun_phrase="",
        num_other_nouns=0,
        position=None,
        relation=None,
        truncated=False,
        num_proposals=count,
        target_area=9,
        best_intersection=min(count, 1),
        best_union=9,
        best_iou=min(count, 1) / 9,
        random_iou=0.1 / 3 if count else 0.0,
        picks={"pure": pick, "guided": pick},
    )


def variants_of(image_ids: list[int]):
    """Records of the images' samples under the k_limits 1 to 3."""
    return {
        (ref.ref_id, sentence.sent_id): {
            k_limit: record_of(ref, sentence, k_limit) for k_limit in (1, 2, 3)
        }
        for ref in SPLIT.refs
        for sentence in ref.sentences
        if ref.image_id in image_ids
    }


def counts_of(image_ids: list[int]) -> dict[int, int]:
    return {image_id: COUNTS[image_id] for image_id in image_ids}


def write(shard: Shard, output, settings=SETTINGS, image_errors=FAULTS, counts=None, variants=None):
    ids = shard.image_ids(SPLIT)
    counts, variants = counts or counts_of(ids), variants or variants_of(ids)
    write_shard(shard, output, settings, image_errors, counts, variants)
    return shard.path(output)


def merge(shard: Shard, output, settings=SETTINGS, split=SPLIT):
    return merge_shards(shard, output, settings, FAULTS, split)


@pytest.fixture
def halves(tmp_path):
    """The files of two shards."""
    return [write(shard, tmp_path) for shard in Shard(1, 2).all()]


def refusal(output, *, settings=SETTINGS, split=SPLIT) -> str:
    with pytest.raises(HybridGLError) as error:
        merge(Shard(1, 2), output, settings, split)
    return str(error.value)


# Which images.


@pytest.mark.parametrize("text", ["1/1", "2/8", "8/8"])
def test_shard_is_read_from_its_text(text):
    index, total = map(int, text.split("/"))
    shard = Shard.parse(text)
    assert shard == Shard(index, total)
    assert str(shard) == f"shard {text}"


@pytest.mark.parametrize(
    "text",
    [
        *("0/3", "4/3", "1/0", "0/0", "a/b", "", "1", "/", "1/", "/3", "-1/3", "1/-3", "1.5/3"),
        *("1/2/3", " 1/3", "1/3\n", "1 / 3", "1|3", "²/3"),
    ],
)
def test_other_texts_are_refused(text):
    with pytest.raises(
        HybridGLError, match=r"Expected --shard i/n with i from 1 to n, such as 2/8"
    ):
        Shard.parse(text)


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 9])
def test_every_image_is_in_one_shard_of_about_the_same_size(total):
    images = list(SPLIT.images)
    parts = [shard.image_ids(SPLIT) for shard in Shard(1, total).all()]
    assert sorted(itertools.chain(*parts)) == sorted(images)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    for part in parts:
        assert part == [image_id for image_id in images if image_id in part]


def test_shard_takes_every_nth_image_in_the_order_of_the_split():
    assert list(SPLIT.images) == [70, 30, 50, 10]
    assert Shard(1, 3).image_ids(SPLIT) == [70, 10]
    assert Shard(2, 3).image_ids(SPLIT) == [30]
    assert Shard(9, 9).image_ids(SPLIT) == []


def test_any_shard_names_them_all(tmp_path):
    for shard in Shard(1, 3).all():
        assert shard.all() == [Shard(1, 3), Shard(2, 3), Shard(3, 3)]
    assert Shard(2, 3).path(tmp_path) == tmp_path / "shards" / "2-of-3.jsonl"


# Files.


@pytest.mark.parametrize("total", [1, 2, 3, 9])
def test_what_shards_write_in_any_order_comes_back_whole(total, tmp_path):
    shards = Shard(1, total).all()
    random.Random(total).shuffle(shards)
    for place, shard in enumerate(shards):
        assert set(missing_shards(shard, tmp_path)) == set(shards[place:])
        write(shard, tmp_path)
    assert missing_shards(shards[0], tmp_path) == []
    for shard in shards:
        counts, variants = merge(shard, tmp_path)
        assert counts == COUNTS
        assert variants == variants_of(list(COUNTS))


def test_records_of_the_caps_are_in_the_order_of_the_split(tmp_path):
    for shard in Shard(1, 3).all():
        write(shard, tmp_path)
    _, variants = merge(Shard(3, 3), tmp_path)
    k_limits = {1: 3, 2: 1, "three": 1, 4: 2, 5: 1, 6: 2}
    records = in_dataset_order(SPLIT, variants, k_limits)
    assert [(record.ref_id, record.sent_id) for record in records] == [
        (ref_id, sent_id) for ref_id in (1, 2, "three", 4, 5, 6) for sent_id in (0, 1)
    ]
    picked = {record.ref_id: record.picks["guided"].index for record in records}
    assert picked == {1: 2, 2: 0, "three": None, 4: 1, 5: 0, 6: 1}


def test_each_distinct_record_is_written_once_with_its_caps(tmp_path):
    path = write(Shard(2, 4), tmp_path)
    lines = path.read_text("ascii").splitlines()
    rows = [json.loads(line) for line in lines if line.startswith(RECORD)]
    assert [row["k_limits"] for row in rows] == [[1], [2, 3]] * 4
    assert {row["record"]["image_id"] for row in rows} == {30}


def test_shard_written_again_is_the_same_file(tmp_path):
    path = write(Shard(1, 2), tmp_path)
    content = path.read_bytes()
    assert write(Shard(1, 2), tmp_path) == path
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_shards_of_another_number_lie_beside_and_are_ignored(halves, tmp_path):
    stale = write(Shard(1, 3), tmp_path, {"method": "another"})
    (tmp_path / "shards" / "2-of-3.jsonl").write_bytes(b"rubbish")
    assert missing_shards(Shard(1, 3), tmp_path) == [Shard(3, 3)]
    _, variants = merge(Shard(2, 2), tmp_path)
    assert variants == variants_of(list(COUNTS))
    assert stale.is_file()


def test_folder_in_the_place_of_a_file_is_a_missing_shard(tmp_path):
    Shard(1, 2).path(tmp_path).mkdir(parents=True)
    write(Shard(2, 2), tmp_path)
    assert missing_shards(Shard(2, 2), tmp_path) == [Shard(1, 2)]


# Files that do not fit together.


def assert_names_the_damaged_file(path, output):
    message = refusal(output)
    assert str(path) in message
    assert "Delete it and run that shard again" in message


@pytest.mark.parametrize("content", [b"", b"\n", b"{}\n", b"[]\n", b"3\n", b"\xff\xfe\n", b"null"])
def test_file_of_another_form_is_refused_by_name(content, halves, tmp_path):
    halves[1].write_bytes(content)
    assert_names_the_damaged_file(halves[1], tmp_path)


def test_file_cut_anywhere_is_refused_by_name(halves, tmp_path):
    content = halves[0].read_bytes()
    for length in [*range(0, len(content) - 1, 97), len(content) - 1]:
        halves[0].write_bytes(content[:length])
        assert_names_the_damaged_file(halves[0], tmp_path)


def flipped(content: bytes, place: int) -> bytes:
    """With the lowest bit of a byte changed, which keeps letters letters and digits digits."""
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_changed_byte_among_the_records_is_refused_by_name(halves, tmp_path):
    content = halves[0].read_bytes()
    for place in range(content.index(RECORD.encode()), len(content), 31):
        halves[0].write_bytes(flipped(content, place))
        assert_names_the_damaged_file(halves[0], tmp_path)


def test_changed_byte_before_the_records_is_refused_by_name(halves, tmp_path):
    """A proposal count that is too low would lower the k_limits of all later images (Q5) in silence."""
    content, let_through = halves[0].read_bytes(), {}
    for place in range(content.index(RECORD.encode())):
        changed = flipped(content, place)
        halves[0].write_bytes(changed)
        outcome = "no error"
        try:
            merge(Shard(1, 2), tmp_path)
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        if not outcome.startswith("HybridGLError") or str(halves[0]) not in outcome:
            let_through[changed[max(place - 16, 0) : place + 9]] = outcome
    assert let_through == {}


@pytest.mark.parametrize("which", [0, 1])
def test_file_of_other_settings_is_refused_by_name(which, halves, tmp_path):
    write(Shard(which + 1, 2), tmp_path, {**SETTINGS, "limit": 3})
    message = refusal(tmp_path)
    assert f"{halves[which]} was made with other settings" in message
    assert "--output DIR" in message
    assert str(halves[1 - which]) not in message


def test_file_of_a_machine_that_lacks_an_image_is_refused_by_name(halves, tmp_path):
    write(Shard(2, 2), tmp_path, image_errors={**FAULTS, "missing": [50, 10]})
    message = refusal(tmp_path)
    assert f"{halves[1]} was made with other images missing, damaged or of other size" in message


def test_settings_are_compared_as_json(halves, tmp_path):
    assert merge(Shard(1, 2), tmp_path, {**SETTINGS, "pair": [1, 2]})
    assert "other settings" in refusal(tmp_path, settings={**SETTINGS, "pair": [2, 1]})


def test_sample_in_two_shards_names_both_files(halves, tmp_path):
    halves[1].write_bytes(halves[0].read_bytes())
    message = refusal(tmp_path)
    assert "ref 1, sentence 0" in message
    assert str(halves[0]) in message
    assert str(halves[1]) in message


def test_missing_sample_is_counted_and_named(halves, tmp_path):
    variants = variants_of([30, 10])
    del variants[5, 1]
    write(Shard(2, 2), tmp_path, variants=variants)
    message = refusal(tmp_path)
    assert "1 sentences are missing, the first of them ref 5, sentence 1" in message
    assert str(tmp_path / "shards") in message


def test_missing_image_is_counted(halves, tmp_path):
    write(Shard(2, 2), tmp_path, counts=counts_of([30]))
    assert "0 sentences are missing, 0 are not of the split, 1 images are" in refusal(tmp_path)


def test_sample_of_other_data_is_counted(halves, tmp_path):
    smaller = split_of({1: 70, 2: 30, "three": 50, 4: 70, 6: 30})
    assert "0 sentences are missing, 2 are not of the split" in refusal(tmp_path, split=smaller)


def test_shard_under_the_name_of_another_number_is_refused(tmp_path):
    """Four shards of which two were renamed: their samples do not make a whole."""
    for index in (1, 2):
        write(Shard(index, 4), tmp_path).rename(Shard(index, 2).path(tmp_path))
    assert "4 sentences are missing, the first of them ref three" in refusal(tmp_path)
