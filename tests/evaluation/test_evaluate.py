"""A split through a method: what the two passes leave, in any order and after any accident."""

from __future__ import annotations

import dataclasses
import itertools
import random
import shutil
import threading
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evaluation.evaluate import Evaluation
from evaluation.executors import serial
from evaluation.proposals import GroundTruthSource, NoSource
from hybridgl.devices import BatchSizes
from hybridgl.store import Store
from refer.dataset import Ref, Sentence
from refer.image_errors import find_image_errors
from refer.refer import load_refer
from tests.evaluation.factories import Blocks, MaskMethod, ToyConfig, ToyMethod
from tests.refer_factories import HW, LEFT_SENTENCES, RIGHT_SENTENCES


def evaluation_of(split, folder, method=None, source=None, **changes):
    quirks = {"overlapping_polygons_dropped": True, "top_k_shrinks_across_images": True}
    made_by = changes.pop("made_by", {"device": "cpu"})
    overwrite = changes.pop("overwrite", False)
    return Evaluation(
        method or ToyMethod(),
        source or Blocks(),
        split,
        Store(folder, overwrite=overwrite),
        made_by,
        **(quirks | changes),
    )


def filled(this, image_ids=None):
    """The same, after its first pass."""
    done = list(this.score_images(this.missing() if image_ids is None else image_ids))
    assert len(done) == len(set(done))
    return this


def records_of(this):
    return [record for record, _ in this.records()]


def limits_of(this):
    return [limit for _, limit in this.records()]


def by_sample(records):
    return {(record.ref_id, record.sent_id): record for record in records}


def scored(folder):
    return sorted(folder.rglob("scores/*/*.safetensors"))


@pytest.fixture(scope="module")
def whole(split, tmp_path_factory):
    """Folder of a store with everything of the default evaluation; read it only."""
    folder = tmp_path_factory.mktemp("whole")
    filled(evaluation_of(split, folder))
    return folder


@pytest.fixture(scope="module")
def expected(split, whole):
    """Records of the default evaluation."""
    return records_of(evaluation_of(split, whole))


@pytest.fixture
def copied(whole, tmp_path):
    """A copy of that store."""
    return shutil.copytree(whole, tmp_path / "store")


# Records.


def slow_overlap(first_HW, second_HW):
    pixels = list(zip(first_HW.ravel().tolist(), second_HW.ravel().tolist(), strict=True))
    return sum(a and b for a, b in pixels), sum(a or b for a, b in pixels)


@pytest.mark.parametrize("dropped", [True, False])
def test_records_hold_what_a_loop_over_pixels_counts(dropped, split, tmp_path):
    source = Blocks()
    this = filled(
        evaluation_of(split, tmp_path, source=source, overlapping_polygons_dropped=dropped)
    )
    found = by_sample(records_of(this))
    image = SimpleNamespace(hw=HW)
    for ref in split.refs:
        gt_mask_HW = split.gt_mask(ref, overlapping_polygons_dropped=dropped)
        masks_NHW = source.propose(ref.image_id, image).masks_NHW
        overlaps = [slow_overlap(mask_HW, gt_mask_HW) for mask_HW in masks_NHW]
        ious = [intersection / union for intersection, union in overlaps]
        for sentence in ref.sentences:
            record = found[ref.ref_id, sentence.sent_id]
            assert (record.image_id, record.sentence) == (ref.image_id, sentence.raw)
            assert (record.num_proposals, record.gt_area) == (5, gt_mask_HW.sum())
            assert record.oracle_iou == max(ious)
            assert record.chance_iou == pytest.approx(sum(ious) / 5)
            for variant, counts in record.predictions.items():
                index = counts.proposal
                assert counts.area == masks_NHW[index].sum()
                assert (counts.intersection, record.union(variant)) == overlaps[index]
    areas = {record.gt_area for record in found.values()}
    assert areas == ({768} if dropped else {768, 896})


def test_records_hold_what_was_read_off_the_sentence(split, expected):
    ref = split.refs[-1]
    assert [sentence.raw for sentence in ref.sentences] == RIGHT_SENTENCES
    found = by_sample(expected)
    record = found[ref.ref_id, ref.sentences[1].sent_id]
    assert (record.noun_phrase, record.num_other_nouns) == ("BLU", 2)
    assert (record.position, record.relation) == ("left", "within")
    assert [found[ref.ref_id, s.sent_id].truncated for s in ref.sentences] == [False, True]


def test_records_come_in_the_order_of_the_split(split, expected):
    assert [(record.ref_id, record.sent_id) for record in expected] == [
        (ref.ref_id, sentence.sent_id) for ref in split.refs for sentence in ref.sentences
    ]
    assert Counter(record.image_id for record in expected) == dict.fromkeys(split.images, 5)


def test_each_image_is_scored_once_with_all_its_sentences(split, tmp_path):
    method, source = ToyMethod(), Blocks()
    this = filled(evaluation_of(split, tmp_path, method, source))
    assert len(records_of(this)) == 15
    assert method.scored == [[*LEFT_SENTENCES, *RIGHT_SENTENCES]] * 3
    assert source.asked == list(split.images)
    assert this.missing() == []


def test_sentence_ids_need_not_be_unique_beyond_their_ref(split, tmp_path):
    """PhraseCut's tasks have one sentence each, always number 0."""
    refs = tuple(
        Ref(f"{place}__0", ref.ann_ids, ref.image_id, (Sentence(0, f"no. {place}"),))
        for place, ref in enumerate(split.refs)
    )
    records = records_of(evaluation_of(dataclasses.replace(split, refs=refs), tmp_path))
    assert [record.sentence for record in records] == [f"no. {place}" for place in range(6)]
    assert [record.ref_id for record in records] == [f"{place}__0" for place in range(6)]


def test_method_without_proposals_is_scored_by_its_own_masks(split, tmp_path):
    this = filled(evaluation_of(split, tmp_path, MaskMethod(), NoSource()))
    upper_HW = np.zeros(HW, dtype=bool)
    upper_HW[: HW[0] // 2] = True
    for record in records_of(this):
        ref = next(ref for ref in split.refs if ref.ref_id == record.ref_id)
        gt_mask_HW = split.gt_mask(ref, overlapping_polygons_dropped=True)
        counts = record.predictions["mask"]
        assert (counts.proposal, counts.area) == (None, upper_HW.sum())
        assert (counts.intersection, record.union("mask")) == slow_overlap(upper_HW, gt_mask_HW)
        assert (record.num_proposals, record.oracle_iou, record.chance_iou) == (None, None, None)
        assert record.noun_phrase is None


# Quirk Q5: the limit on top-k that images with few proposals leave behind.


def slow_limits(split, counts, *, shrinks):
    """The limit of every ref, by a loop that keeps the smallest count so far."""
    kept, limits = None, {}
    for ref in split.refs:
        count = counts[ref.image_id]
        if shrinks and count:
            kept = count if kept is None or count < kept else kept
        limits[ref.ref_id] = kept
    return limits


def predicted_by_hand(evaluation, most, limits):
    """For every sample the proposal ``last``, from the scores as they are stored."""
    found = {}
    for ref in evaluation.split.refs:
        scores = evaluation.result(ref.image_id).scores
        refs = evaluation.split.refs_by_image()[ref.image_id]
        samples = [(one.ref_id, sentence.sent_id) for one in refs for sentence in one.sentences]
        for sentence in ref.sentences:
            row = samples.index((ref.ref_id, sentence.sent_id))
            order = np.argsort(-scores[row].arrays["similarity_N"], kind="stable").tolist()
            limit = min(most, len(order), limits[ref.ref_id] or len(order))
            found[ref.ref_id, sentence.sent_id] = order[limit - 1] if order else None
    return found


@pytest.mark.parametrize("shrinks", [True, False])
def test_limits_are_those_of_a_loop_over_refs(shrinks, split, tmp_path):
    moved = 0
    for number, counts in enumerate(itertools.product((0, 1, 2, 5), repeat=3)):
        if number % 5:  # a fifth of the 64 cases
            continue
        by_image = dict(zip(split.images, counts, strict=True))
        this = evaluation_of(
            split,
            tmp_path,
            ToyMethod(config=ToyConfig(most=4)),
            Blocks(by_image),
            top_k_shrinks_across_images=shrinks,
        )
        limits = slow_limits(split, by_image, shrinks=shrinks)
        made = list(this.records())
        assert [limit for _, limit in made] == [limits[record.ref_id] for record, _ in made]
        predicted = {
            (record.ref_id, record.sent_id): record.predictions["last"].proposal
            for record, _ in made
        }
        assert predicted == predicted_by_hand(this, 4, limits)
        free = predicted_by_hand(this, 4, dict.fromkeys(limits))
        moved += predicted != free
    assert (moved > 2) == shrinks


def test_limits_by_hand(split, tmp_path):
    """The second image has one proposal, the third none; their refs come again, backwards."""
    _, second, third = split.images
    source = Blocks({second: 1, third: 0})
    this = evaluation_of(split, tmp_path, source=source)
    limit_of = {record.ref_id: limit for record, limit in this.records()}
    left_refs, right_refs = split.refs[:3], split.refs[3:]
    assert [limit_of[ref.ref_id] for ref in left_refs] == [5, 1, 1]
    assert [limit_of[ref.ref_id] for ref in right_refs] == [1, 1, 1]
    proposals = {r.sent_id: r.predictions["last"].proposal for r in records_of(this)}
    of_first = [s.sent_id for s in left_refs[0].sentences]
    free = evaluation_of(split, tmp_path, source=source, top_k_shrinks_across_images=False)
    unlimited = {r.sent_id: r.predictions["last"].proposal for r in records_of(free)}
    assert [proposals[i] for i in of_first] == [unlimited[i] for i in of_first]
    assert proposals != unlimited
    assert set(limits_of(free)) == {None}


def test_images_without_proposals_lower_no_limit(split, tmp_path):
    first = next(iter(split.images))
    assert limits_of(evaluation_of(split, tmp_path, source=Blocks({first: 0})))[:3] == [None] * 3
    assert limits_of(evaluation_of(split, tmp_path, source=Blocks({first: 2})))[:3] == [2] * 3


def test_refs_without_sentences_lower_no_limit(split, tmp_path):
    """The released loop goes through sentences, and never meets such a ref."""
    first = split.refs[0].image_id
    silent_refs = tuple(
        dataclasses.replace(ref, sentences=()) if ref.image_id == first else ref
        for ref in split.refs
    )
    for name, refs, limits in (("loud", split.refs, {2}), ("silent", silent_refs, {5})):
        this = evaluation_of(
            dataclasses.replace(split, refs=refs), tmp_path / name, source=Blocks({first: 2})
        )
        assert set(limits_of(filled(this))) == limits


def test_image_that_turns_out_to_be_unreadable_lowers_no_limit(split, unreadable, tmp_path):
    """Counts decide the limits of later images (Q5), and the records say what the counts are."""
    source = GroundTruthSource(unreadable, overlapping_polygons_dropped=True)
    first, second, third = unreadable.images
    known = dataclasses.replace(unreadable, image_errors=find_image_errors(unreadable))
    made = list(evaluation_of(known, tmp_path, source=source).records())
    counts = {record.image_id: record.num_proposals for record, _ in made}
    assert counts == {first: 0, second: 2, third: 0}
    assert [limit for _, limit in made] == [None] * 3 + [2] * 12


@pytest.mark.parametrize("shrinks", [True, False])
def test_order_of_the_refs_matters_by_quirk_5_alone(shrinks, split, tmp_path):
    first, second, _ = split.images
    source = Blocks({second: 1, first: 3})
    plain = by_sample(
        records_of(
            evaluation_of(split, tmp_path, source=source, top_k_shrinks_across_images=shrinks)
        )
    )
    moved = 0
    for seed in range(4):
        refs = tuple(random.Random(seed).sample(split.refs, len(split.refs)))
        images = {ref.image_id: split.images[ref.image_id] for ref in refs}
        shuffled = dataclasses.replace(split, refs=refs, images=images)
        this = evaluation_of(
            shuffled, tmp_path / str(seed), source=source, top_k_shrinks_across_images=shrinks
        )
        found = by_sample(records_of(this))
        assert found.keys() == plain.keys()
        for sample, record in found.items():
            assert record.predictions["first"] == plain[sample].predictions["first"]
        moved += found != plain
    assert (moved > 0) == shrinks


# The first pass: any order, any part, any accident.


@pytest.mark.parametrize("seed", range(3))
def test_images_in_any_order_and_parts_give_the_same_store(seed, split, whole, expected, tmp_path):
    image_ids = random.Random(seed).sample(list(split.images), 3)
    for part in (image_ids[:1], image_ids[1:]):
        filled(evaluation_of(split, tmp_path), part)
    this = evaluation_of(split, tmp_path)
    assert this.missing() == []
    assert records_of(this) == expected
    for path in scored(tmp_path):
        assert path.read_bytes() == (whole / path.relative_to(tmp_path)).read_bytes()
    assert len(scored(tmp_path)) == len(scored(whole)) == 3


def test_stores_merge_by_copying_one_over_the_other(split, expected, tmp_path):
    for place, image_id in enumerate(split.images):
        filled(evaluation_of(split, tmp_path / str(place)), [image_id])
    for place in range(3):
        shutil.copytree(tmp_path / str(place), tmp_path / "all", dirs_exist_ok=True)
    method = ToyMethod()
    this = evaluation_of(split, tmp_path / "all", method)
    assert this.missing() == []
    assert records_of(this) == expected
    assert method.scored == []


def test_only_the_images_that_are_asked_for_are_missing_and_scored(split, tmp_path):
    first, second, third = split.images
    method = ToyMethod()
    this = evaluation_of(split, tmp_path, method)
    assert this.missing() == [first, second, third]
    assert this.missing([third, second]) == [third, second]
    assert list(this.score_images([second])) == [second]
    assert this.missing() == [first, third]
    assert len(method.scored) == 1


def test_executor_runs_the_work(split, expected, tmp_path):
    """In two parts, the second one first, as several workers would."""
    parts = []

    def two_workers(work, image_ids):
        image_ids = list(image_ids)
        for part in (image_ids[1:], image_ids[:1]):
            parts.append(part)
            yield from serial(work, part)

    this = evaluation_of(split, tmp_path)
    done = list(this.score_images(this.missing(), two_workers))
    assert done == list(itertools.chain(*parts))
    assert records_of(this) == expected


@pytest.mark.parametrize("stage", ["propose", "score", "save"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_killed_at_any_image_and_stage_the_rest_is_made_later(
    stage, at, split, expected, tmp_path, monkeypatch
):
    calls = itertools.count()

    def dying(function):
        def call(*arguments, **named):
            if next(calls) == at:
                raise KeyboardInterrupt
            return function(*arguments, **named)

        return call

    method, source = ToyMethod(), Blocks()
    this = evaluation_of(split, tmp_path, method, source)
    owner, name = {
        "propose": (source, "propose"),
        "score": (method, "score"),
        "save": (this.store, "save"),
    }[stage]
    monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    with pytest.raises(KeyboardInterrupt):
        filled(this)
    again = ToyMethod()
    this = evaluation_of(split, tmp_path, again)
    missing = this.missing()
    assert len(missing) + len(scored(tmp_path)) == 3
    assert records_of(filled(this)) == expected
    assert len(again.scored) == len(missing)


def test_on_a_gpu_masks_are_made_from_a_thread_of_their_own(split, tmp_path):
    """The same records, while two threads have work for the device."""
    threads = {}

    class Noted(Blocks):
        def submit(self, images):
            threads["masks"] = threading.current_thread()
            return super().submit(images)

    class NotedMethod(ToyMethod):
        def score(self, *arguments):
            threads["scores"] = threading.current_thread()
            return super().score(*arguments)

    found = {}
    for device in ("cpu", "cuda"):
        this = evaluation_of(split, tmp_path / device, NotedMethod(), Noted())
        _ = this.method.models.batches
        this.method.models.device = torch.device(device)
        found[device] = records_of(filled(this))
        assert (threads["masks"] is threads["scores"]) == (device == "cpu")
        assert threads["scores"] is threading.main_thread()
    assert found["cpu"] == found["cuda"]


def test_compiled_models_get_work_from_one_thread(split, tmp_path, monkeypatch):
    """In torch 2.11 no thread may run what is compiled while another compiles."""
    this = evaluation_of(split, tmp_path)
    models = this.method.models
    _ = models.batches
    models.device, models.compiles = torch.device("cuda"), True
    submit, threads = Blocks.submit, set()

    def noted(*arguments):
        threads.add(threading.current_thread())
        return submit(*arguments)

    monkeypatch.setattr(Blocks, "submit", noted)
    filled(this)
    assert threads == {threading.main_thread()}


def test_whoever_goes_on_takes_up_the_batch_sizes_of_the_run(split, tmp_path):
    first, *rest = split.images
    begun = evaluation_of(split, tmp_path)
    begun.method.models.batches.sizes = BatchSizes(64, 32, 4)
    filled(begun, [first])

    other = filled(evaluation_of(split, tmp_path))

    assert other.method.models.batches.sizes == BatchSizes(64, 32, 4)
    records_of(other)
    sizes = {"masks": 64, "points": 32, "images": 4}
    assert other.batch_sizes_json() == [{"sizes": sizes, "images": 1 + len(rest)}]


def test_images_for_which_memory_ran_out_are_counted(split, tmp_path):
    class Narrow(ToyMethod):
        """Has no room for more than 8 masks from its second image on."""

        def score(self, *arguments):
            if self.scored:
                self.models.batches.run(self._room, "masks")
            return super().score(*arguments)

        def _room(self):
            if self.models.batches.sizes.masks > 8:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    this = filled(evaluation_of(split, tmp_path, Narrow()))
    records_of(this)
    found = [(one["sizes"]["masks"], one["images"]) for one in this.batch_sizes_json()]
    assert found == [(8, 2), (16, 1)]


def test_second_pass_makes_what_the_first_has_not(split, expected, tmp_path):
    method = ToyMethod()
    assert records_of(evaluation_of(split, tmp_path, method)) == expected
    assert len(method.scored) == 3


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "deleted", "swapped"])
def test_damaged_entry_is_made_again(damage, split, whole, expected, copied, caplog):
    first, second, _ = scored(copied)
    content = bytearray(first.read_bytes())
    if damage == "deleted":
        first.unlink()
    elif damage == "swapped":
        first.write_bytes(second.read_bytes())
    else:
        content[len(content) // 2] ^= 4
        first.write_bytes({"flipped": content, "cut": content[:-20], "empty": b""}[damage])
    method = ToyMethod()
    this = evaluation_of(split, copied, method)
    assert records_of(filled(this)) == expected
    assert len(method.scored) == 1
    assert first.read_bytes() == (whole / first.relative_to(copied)).read_bytes()
    assert (str(first) in caplog.text) == (damage != "deleted")


def test_overwriting_store_makes_everything_again_once(split, expected, copied):
    method = ToyMethod()
    this = evaluation_of(split, copied, method, overwrite=True)
    assert this.missing() == list(split.images)
    assert records_of(filled(this)) == expected
    assert len(method.scored) == 3


def test_result_comes_back_as_it_was_stored(split, copied, tmp_path):
    stored = evaluation_of(split, copied)
    fresh = evaluation_of(split, tmp_path / "fresh")
    for image_id in split.images:
        one, other = (this.result(image_id) for this in (stored, fresh))
        assert (one.error, other.error) == ("", "")
        for left, right in zip(one.scores, other.scores, strict=True):
            assert left.meta == right.meta
            np.testing.assert_array_equal(left.arrays["similarity_N"], right.arrays["similarity_N"])


def test_result_of_a_method_without_arrays_keeps_a_row_for_every_sentence(split, tmp_path):
    this = filled(evaluation_of(split, tmp_path, MaskMethod(), NoSource()))
    image_id = next(iter(split.images))
    assert [one.meta for one in this.result(image_id).scores] == [{"hw": list(HW)}] * 5


# What decides a result, and what does not.


def changed_image(split, tmp_path):
    """The split with another file for its first image."""
    folder = tmp_path / "images"
    shutil.copytree(split.image_path(next(iter(split.images))).parent, folder)
    path = folder / next(iter(split.images.values())).file_name
    path.write_bytes(split.image_path(list(split.images)[2]).read_bytes())
    return dataclasses.replace(split, image_roots=(folder,))


CHANGES = {
    "setting of the score": {"method": ToyMethod(config=ToyConfig(sharpness=2.0))},
    "other proposals": {"source": Blocks({0: 1})},
    "other models": {"made_by": {"device": "cuda"}},
    "Q9": {"overlapping_polygons_dropped": False},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_results_of_other_settings_are_not_used(change, split, whole):
    assert evaluation_of(split, whole, **change).missing() == list(split.images)


def test_results_of_other_data_are_not_used(split, whole, tmp_path):
    first = next(iter(split.images))
    assert evaluation_of(changed_image(split, tmp_path), whole).missing() == [first]
    other_file = dataclasses.replace(split, sha256_by_file={"refs(unc).p": "0" * 64})
    assert evaluation_of(other_file, whole).missing() == list(split.images)
    other_part = dataclasses.replace(split, split="testA")
    assert evaluation_of(other_part, whole).missing() == list(split.images)


@pytest.mark.parametrize(
    "change",
    [
        {"method": ToyMethod(config=ToyConfig(most=1))},
        {"top_k_shrinks_across_images": False},
    ],
    ids=["late setting", "Q5"],
)
def test_what_only_choices_depend_on_finds_every_result(change, split, whole, expected):
    this = evaluation_of(split, whole, **change)
    assert this.missing() == []
    assert [r.predictions["first"] for r in records_of(this)] == [
        r.predictions["first"] for r in expected
    ]


def test_part_of_a_split_finds_the_results_of_the_whole(split, whole, expected):
    limited = split.limited(2)
    this = evaluation_of(limited, whole)
    assert this.missing() == []
    found = by_sample(records_of(this))
    assert len(found) == 10
    assert all(by_sample(expected)[sample] == record for sample, record in found.items())


def test_images_elsewhere_are_the_same_data(split, whole, tmp_path):
    folder = split.image_roots[0]
    shutil.copytree(folder, tmp_path / "moved")
    moved = dataclasses.replace(split, image_roots=(tmp_path / "moved",))
    assert evaluation_of(moved, whole).missing() == []


# Images that cannot be read.


@pytest.fixture
def unreadable(data_root, tmp_path):
    """The split without the file of its first image, and with half of that of its third."""
    folder = shutil.copytree(data_root, tmp_path / "data")
    split = load_refer(folder, "refcoco", "val", check_counts=False)
    first, _, third = split.images
    split.image_path(first).unlink()
    path = split.image_path(third)
    path.write_bytes(path.read_bytes()[:500])
    return split


def test_image_that_is_known_to_be_unreadable_is_not_scored_and_has_no_prediction(
    split, expected, unreadable, tmp_path, caplog
):
    first, second, third = split.images
    known = dataclasses.replace(unreadable, image_errors=find_image_errors(unreadable))
    assert (known.image_errors.missing, known.image_errors.corrupt) == ((first,), (third,))
    source = Blocks()
    this = evaluation_of(known, tmp_path / "store", source=source)
    assert this.missing() == [second]
    found, whole = by_sample(records_of(this)), by_sample(expected)
    assert source.asked == [second]
    assert list(found) == list(whole)
    for sample, record in found.items():
        assert record.image_error == (record.image_id != second)
        if record.image_id == second:
            assert record == whole[sample]
            continue
        assert (record.num_proposals, record.oracle_area, record.chance_iou) == (0, 0, 0)
        assert (record.gt_area, record.gt_area_480) == (
            whole[sample].gt_area,
            whole[sample].gt_area_480,
        )
        for variant, counts in record.predictions.items():
            assert (counts.proposal, counts.intersection) == (None, 0)
            assert record.union(variant) == record.gt_area
    assert caplog.messages == []


def test_image_that_turns_out_to_be_unreadable_is_named_once_and_has_no_prediction(
    split, expected, data_root, tmp_path, caplog
):
    """Its end is whole, so that it is found when it is decoded."""
    folder = shutil.copytree(data_root, tmp_path / "data")
    this_split = load_refer(folder, "refcoco", "val", check_counts=False)
    _, second, _ = this_split.images
    path = this_split.image_path(second)
    content = path.read_bytes()
    path.write_bytes(content[:2] + b"no image" + content[-200:])
    method = ToyMethod()
    this = filled(evaluation_of(this_split, tmp_path / "store", method))
    records = records_of(this)
    assert {record.image_id: record.image_error for record in records} == {
        image_id: image_id == second for image_id in split.images
    }
    assert sum(path.name in message for message in caplog.messages) == 1
    assert "Nothing is predicted for it" in caplog.text
    assert len(method.scored) == 2
    # It is not kept: what cannot be read today may be read tomorrow.
    path.write_bytes(content)
    again = evaluation_of(this_split, tmp_path / "store", method)
    assert again.missing() == [second]
    assert records_of(again) == expected
    assert len(method.scored) == 3


def test_image_without_proposals_has_no_prediction_but_is_no_error(split, tmp_path):
    _, second, _ = split.images
    for record in records_of(evaluation_of(split, tmp_path, source=Blocks({second: 0}))):
        assert not record.image_error
        nothing = record.image_id == second
        assert record.num_proposals == (0 if nothing else 5)
        assert (record.predictions["last"].proposal is None) == nothing
        assert (record.oracle_iou == 0) == nothing


def test_image_of_refs_without_sentences_has_no_scores_and_no_record(split, tmp_path, caplog):
    first = next(iter(split.images))
    refs = tuple(
        dataclasses.replace(ref, sentences=()) if ref.image_id == first else ref
        for ref in split.refs
    )
    method = ToyMethod()
    this = evaluation_of(dataclasses.replace(split, refs=refs), tmp_path, method)
    assert len(records_of(this)) == 10
    assert this.result(first).scores == []
    assert len(method.scored) == 2
    assert caplog.messages == []
