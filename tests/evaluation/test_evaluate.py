"""An evaluation from its arguments to its records: folders, k_limits of quirk Q5, and one split."""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

import hybridgl_main
from evaluation.evaluate import (
    all_k_limits,
    check_ground_truth,
    count_proposals,
    effective_k_limit,
    evaluate,
    in_dataset_order,
    k_limit_by_ref,
)
from evaluation.methods import check_run_arguments
from evaluation.proposals import GroundTruthSource, ProposalSource
from evaluation.run import run_name
from hybridgl.config import GuidanceConfig, Profile, ReferenceQuirks
from hybridgl.errors import DataError, HybridGLError
from hybridgl.guidance import choose
from hybridgl.language import ParsedExpression, Position, Relation
from hybridgl.masks import Proposals
from refer.arguments import check_split_arguments
from refer.dataset import ImageInfo, Ref, ReferSplit, Sentence
from refer.image_errors import find_image_errors
from refer.refer import load_refer
from tests.refer_factories import HW, LEFT_SENTENCES, RIGHT_SENTENCES, mini_refer

REFERENCE, CORRECTED = map(ReferenceQuirks.of, (Profile.REFERENCE, Profile.CORRECTED))


# Caps.


@dataclasses.dataclass
class Counting:
    """What the k_limits depend on of a method."""

    quirks: ReferenceQuirks
    most_candidates: int


def split_of(image_ids: list[int]) -> ReferSplit:
    """Refs 0, 1, ... of the images in turn, without sentences."""
    refs = tuple(Ref(i, (), image_id, ()) for i, image_id in enumerate(image_ids))
    images = {i: ImageInfo(i, "", 1, 1) for i in dict.fromkeys(image_ids)}
    return ReferSplit("mini", "val", "-", refs, images, {}, (), {})


def random_run(seed):
    """Refs of a few images, in any order, and the images' proposal counts."""
    rng = random.Random(seed)
    image_ids = [rng.randrange(8) for _ in range(rng.randrange(1, 20))]
    counts = {i: rng.choice([0, 1, 2, 3, 5, 6, 7, 40]) for i in dict.fromkeys(image_ids)}
    return split_of(image_ids), counts


def slow_candidate_counts(split, counts, wanted, *, shrinks):
    """Numbers of candidates by a loop that, as the released program, may forget the wanted one."""
    kept, by_ref = wanted, {}
    for ref in split.refs:
        count = counts[ref.image_id]
        now = min(kept if shrinks else wanted, count)
        by_ref[ref.ref_id] = now
        if count and shrinks:
            kept = now
    return by_ref


@pytest.mark.parametrize("quirks", [REFERENCE, CORRECTED], ids=["reference", "corrected"])
def test_caps_give_the_candidate_counts_of_a_loop_over_refs(quirks):
    for seed in range(200):
        split, counts = random_run(seed)
        k_limits = k_limit_by_ref(Counting(quirks, 6), split, counts)
        shrinks = quirks.top_k_shrinks_across_images
        for wanted in (1, 3, 6):
            expected = slow_candidate_counts(split, counts, wanted, shrinks=shrinks)
            came = {
                ref.ref_id: min(wanted, k_limits[ref.ref_id], counts[ref.image_id])
                for ref in split.refs
            }
            assert came == expected


def test_caps_by_hand():
    """The second image has one proposal; the first comes again after it, and one has none."""
    split = split_of([10, 20, 10, 30, 40])
    counts = {10: 9, 20: 1, 30: 0, 40: 4}
    assert k_limit_by_ref(Counting(REFERENCE, 6), split, counts) == {0: 6, 1: 1, 2: 1, 3: 1, 4: 1}
    assert k_limit_by_ref(Counting(CORRECTED, 6), split, counts) == {0: 6, 1: 1, 2: 6, 3: 1, 4: 4}
    assert k_limit_by_ref(Counting(REFERENCE, 1), split, counts) == dict.fromkeys(range(5), 1)


@pytest.mark.parametrize("most", [1, 3, 6])
def test_caps_of_a_ref_are_all_that_an_earlier_image_can_set_and_no_others(most):
    method, split = Counting(REFERENCE, most), split_of([1, 2])
    for count in range(9):
        possible = {
            k_limit_by_ref(method, split, {1: earlier, 2: count})[1] for earlier in range(1, 12)
        }
        assert set(all_k_limits(method, split, {2: count})[1]) == possible


@pytest.mark.parametrize("quirks", [REFERENCE, CORRECTED], ids=["reference", "corrected"])
def test_every_cap_that_is_set_is_among_those_that_a_shard_prepares(quirks):
    method = Counting(quirks, 6)
    for seed in range(200):
        split, counts = random_run(seed)
        k_limits = k_limit_by_ref(method, split, counts)
        some = {i: count for i, count in counts.items() if i % 2}
        prepared = all_k_limits(method, split, some)
        assert prepared.keys() == {ref.ref_id for ref in split.refs if ref.image_id in some}
        for ref_id, caps_of_ref in prepared.items():
            assert k_limits[ref_id] in caps_of_ref


def test_a_shard_prepares_one_cap_where_none_can_shrink():
    split, counts = split_of([1, 2, 3]), {1: 9, 2: 2, 3: 0}
    k_limits = all_k_limits(Counting(CORRECTED, 6), split, counts)
    assert {ref_id: list(caps_of_ref) for ref_id, caps_of_ref in k_limits.items()} == {
        0: [6],
        1: [2],
        2: [1],
    }


def test_effective_cap_changes_no_choice():
    config = GuidanceConfig()
    method = Counting(REFERENCE, max(config.num_candidates, config.num_context_masks))
    rng = np.random.default_rng(0)
    moved = 0
    for _ in range(300):
        count, k_limit = rng.integers(1, 12, 2).tolist()
        relation = list(Relation)[rng.integers(len(Relation))]
        given = (*rng.normal(size=(3, count)), rng.random((count, 4)), relation, config)
        choice = choose(*given, k_limit=k_limit)
        same = choose(*given, k_limit=effective_k_limit(method, count, k_limit))
        assert choice.candidates_K.tolist() == same.candidates_K.tolist()
        assert choice.final_K.tolist() == same.final_K.tolist()
        moved += choice.candidates_K.tolist() != choose(*given).candidates_K.tolist()
    assert moved > 30


# A split through a method.


class Halves(ProposalSource):
    """Proposes the left and the right half, and a pixel; of one image nothing."""

    def __init__(self, without=()):
        self.without = without
        self.asked: list[int] = []

    def count(self, image_id):
        self.asked.append(image_id)
        return 0 if image_id in self.without else 3

    def propose(self, image_id, image):
        if image_id in self.without:
            return Proposals.empty(image.hw)
        masks_NHW = np.zeros((3, *image.hw), dtype=bool)
        masks_NHW[0, :, : HW[1] // 2] = masks_NHW[1, :, HW[1] // 2 :] = masks_NHW[2, 0, 0] = True
        ones = np.ones(3, dtype=np.float32)
        return Proposals(masks_NHW, np.zeros((3, 4), dtype=np.int64), ones, ones)


class ByTheCap:
    """Picks the last proposal that the k_limit lets through, and always the first."""

    picks = ("first", "last")
    most_candidates = 3
    models = SimpleNamespace(clip=SimpleNamespace(is_truncated=lambda text: text == "blue"))

    def __init__(self, quirks=REFERENCE):
        self.quirks = quirks
        self.scored: list[list[str]] = []

    def parse(self, sentences):
        return [
            ParsedExpression(
                raw.lower(), raw[:3], "", (), ("x", "y"), Position.LEFT, Relation.WITHIN
            )
            for raw in sentences
        ]

    def score(self, image, proposals, expressions):
        assert image.pixels_HW3.shape == (*HW, 3)
        self.scored.append([expression.sentence for expression in expressions])
        return [len(proposals)] * len(expressions)

    def choose(self, count, k_limit):
        picks = {"first": 0, "last": min(count, k_limit) - 1} if count else {}
        return SimpleNamespace(picks=picks)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    mini_refer().write(folder)
    return folder


@pytest.fixture
def split(root):
    """Three images; first a ref of each image's left object, then of the right ones, backwards."""
    return load_refer(root, "refcoco", "val", check_counts=False)


def evaluated(split, method=None, source=None, k_limits=(3,), counts=None):
    source = source or Halves()
    counts = counts or count_proposals(source, split, split.images)
    wanted = {ref.ref_id: k_limits for ref in split.refs}
    return evaluate(method or ByTheCap(), source, split, counts, wanted)


def slow_overlap(first_HW, second_HW):
    pixels = list(zip(first_HW.ravel().tolist(), second_HW.ravel().tolist(), strict=True))
    return sum(a and b for a, b in pixels), sum(a or b for a, b in pixels)


@pytest.mark.parametrize("quirks", [REFERENCE, CORRECTED], ids=["reference", "corrected"])
def test_records_hold_what_a_loop_over_pixels_counts(split, quirks):
    source = Halves()
    variants = evaluated(split, ByTheCap(quirks), source)
    image = SimpleNamespace(hw=HW)
    for ref in split.refs:
        gt_mask_HW = split.gt_mask(
            ref, overlapping_polygons_dropped=quirks.overlapping_polygons_dropped
        )
        masks_NHW = source.propose(ref.image_id, image).masks_NHW
        overlaps = [slow_overlap(mask_HW, gt_mask_HW) for mask_HW in masks_NHW]
        ious = [intersection / union for intersection, union in overlaps]
        for sentence in ref.sentences:
            record = variants[ref.ref_id, sentence.sent_id][3]
            assert (record.ref_id, record.sent_id) == (ref.ref_id, sentence.sent_id)
            assert (record.image_id, record.sentence) == (ref.image_id, sentence.raw)
            assert record.num_proposals == 3
            assert record.target_area == gt_mask_HW.sum()
            assert record.best_iou == max(ious)
            assert record.random_iou == pytest.approx(sum(ious) / 3)
            for name, index in (("first", 0), ("last", 2)):
                pick = record.picks[name]
                assert (pick.index, pick.area) == (index, masks_NHW[index].sum())
                assert (pick.intersection, pick.union) == overlaps[index]


def test_records_hold_what_was_read_off_the_sentence(split):
    variants = evaluated(split)
    ref = split.refs[-1]
    assert [sentence.raw for sentence in ref.sentences] == RIGHT_SENTENCES
    record = variants[ref.ref_id, ref.sentences[1].sent_id][3]
    assert (record.noun_phrase, record.num_other_nouns) == ("BLU", 2)
    assert (record.position, record.relation) == ("left", "within")
    assert [variants[ref.ref_id, s.sent_id][3].truncated for s in ref.sentences] == [False, True]


def test_each_image_is_scored_once_with_all_its_sentences(split):
    method = ByTheCap()
    variants = evaluated(split, method, k_limits=(1, 2, 3))
    expected = [sentence.lower() for sentence in (*LEFT_SENTENCES, *RIGHT_SENTENCES)]
    assert method.scored == [expected] * 3
    assert len(variants) == 15
    for of_cap in variants.values():
        assert {k_limit: record.picks["last"].index for k_limit, record in of_cap.items()} == {
            1: 0,
            2: 1,
            3: 2,
        }


def test_images_that_are_not_asked_for_are_not_looked_at(split):
    first, _, third = split.images
    variants = evaluated(split, counts={third: 3})
    assert {record.image_id for of_cap in variants.values() for record in of_cap.values()} == {
        third
    }
    whole = evaluated(split)
    assert variants == {key: whole[key] for key in variants}
    backwards = evaluated(split, counts={third: 3, first: 3})
    assert backwards == {
        key: of_cap for key, of_cap in whole.items() if of_cap[3].image_id in (first, third)
    }


@pytest.fixture
def with_faults(root, tmp_path):
    """The split without the file of its first image, and with half of that of its third."""
    folder = shutil.copytree(root, tmp_path / "data")
    split = load_refer(folder, "refcoco", "val", check_counts=False)
    first, _, third = split.images
    split.image_path(first).unlink()
    path = split.image_path(third)
    path.write_bytes(path.read_bytes()[:500])
    return split


def test_image_that_is_known_to_be_unreadable_is_not_counted_and_has_no_pick(
    split, with_faults, caplog
):
    first, second, third = split.images
    known = dataclasses.replace(with_faults, image_errors=find_image_errors(with_faults))
    assert (known.image_errors.missing, known.image_errors.corrupt) == ((first,), (third,))
    source = Halves()
    counts = count_proposals(source, known, split.images)
    assert counts == {first: 0, second: 3, third: 0}
    assert source.asked == [second]
    variants, whole = evaluated(known, counts=counts), evaluated(split)
    assert list(variants) == list(whole)
    for sample, of_cap in variants.items():
        record = of_cap[3]
        assert record.image_missing == (record.image_id != second)
        if record.image_id == second:
            assert of_cap == whole[sample]
            continue
        assert (record.num_proposals, record.target_area) == (0, whole[sample][3].target_area)
        for pick in record.picks.values():
            assert (pick.index, pick.intersection, pick.union) == (None, 0, record.target_area)
    assert caplog.messages == []


def test_image_that_turns_out_to_be_unreadable_is_named_and_has_no_pick(split, with_faults, caplog):
    first, second, third = split.images
    variants = evaluated(with_faults, counts=dict.fromkeys(split.images, 3))
    records = [of_cap[3] for of_cap in variants.values()]
    missing = {record.image_id: record.image_missing for record in records}
    assert missing == {first: True, second: False, third: True}
    for image_id in (first, third):
        name = split.images[image_id].file_name
        assert sum(name in message for message in caplog.messages) == 1


def test_image_that_turns_out_to_be_unreadable_lowers_no_cap(split, with_faults):
    """Counts decide the k_limits of later images (Q5), and the records say what the counts are."""
    source = GroundTruthSource(with_faults, overlapping_polygons_dropped=True)
    counts = count_proposals(source, with_faults, split.images)
    variants = evaluated(with_faults, source=source, counts=counts)
    in_records = {of_cap[3].image_id: of_cap[3].num_proposals for of_cap in variants.values()}
    assert counts == in_records


def test_image_without_proposals_has_no_pick_but_is_not_missing(split):
    second = list(split.images)[1]
    variants = evaluated(split, source=Halves(without=[second]))
    for record in (of_cap[3] for of_cap in variants.values()):
        assert not record.image_missing
        nothing = record.image_id == second
        assert record.num_proposals == (0 if nothing else 3)
        assert (record.picks["last"].index is None) == nothing


def test_image_of_refs_without_sentences_is_passed_over(split):
    first = next(iter(split.images))
    refs = tuple(
        dataclasses.replace(ref, sentences=()) if ref.image_id == first else ref
        for ref in split.refs
    )
    method = ByTheCap()
    variants = evaluated(dataclasses.replace(split, refs=refs), method)
    assert (len(method.scored), len(variants)) == (2, 10)


def test_records_come_in_the_order_of_the_split_under_the_cap_of_their_ref(split):
    variants = evaluated(split, k_limits=(1, 2, 3))
    k_limits = {ref.ref_id: 1 + place % 3 for place, ref in enumerate(split.refs)}
    records = in_dataset_order(split, variants, k_limits)
    assert [(record.ref_id, record.sent_id) for record in records] == [
        (ref.ref_id, sentence.sent_id) for ref in split.refs for sentence in ref.sentences
    ]
    assert all(record.picks["last"].index == k_limits[record.ref_id] - 1 for record in records)
    assert Counter(record.image_id for record in records) == dict.fromkeys(split.images, 5)


def test_broken_truth_is_found_without_a_image(tmp_path):
    data = mini_refer()
    referred = next(ref["ann_id"] for ref in data.refs if ref["split"] == "val")
    for annotation in data.instances["annotations"]:
        if annotation["id"] == referred:
            annotation["segmentation"] = [[1, 2, 3, 4, 5]]
    data.write(tmp_path, with_images=False)
    broken = load_refer(tmp_path, "refcoco", "val", check_counts=False)
    with pytest.raises(DataError, match=f"Annotation {referred} of image"):
        check_ground_truth(broken)
    check_ground_truth(load_refer(tmp_path, "refcoco", "testA", check_counts=False))


def test_sentence_ids_need_not_be_unique_beyond_their_ref():
    """PhraseCut's tasks have one sentence each, always number 0."""
    refs = [Ref(f"{i}__0", (), 5, (Sentence(0, f"no. {i}"),)) for i in range(3)]
    variants = {(ref.ref_id, 0): {1: ref.sentences[0].raw} for ref in refs}
    split = dataclasses.replace(split_of([5]), refs=tuple(refs))
    assert in_dataset_order(split, variants, dict.fromkeys((r.ref_id for r in refs), 1)) == [
        "no. 0",
        "no. 1",
        "no. 2",
    ]


# Arguments and folders.


def parsed(*given):
    return hybridgl_main.build_parser().parse_args(given)


def name_of(*given):
    arguments = parsed(*given)
    return run_name(arguments, check_split_arguments(arguments))


VALUES = {
    "dataset": ["refcoco", "refcoco+", "refcocog", "phrasecut"],
    "split": ["train"],
    "limit": ["1", "12"],
    "weights": ["paper", "tiny"],
    "clip_model": ["ViT-B-32", "RN50"],
    "clip_weights": ["weights/mine.pt"],
    "sam_type": ["vit_b", "tiny"],
    "sam_checkpoint": ["weights/sam-mine.pth"],
    "sam_settings": ["phrasecut"],
    "spacy_model": ["en_core_web_sm"],
    "profile": ["corrected"],
    "dtype": ["bfloat16"],
    "compile": [""],
    "method": ["global_local"],
    "mixing_weight": ["0.5", "0.25"],
    "proposals": ["gt", "coco:a/masks.json", "coco:gt.json"],
    "fusion_mode": ["L2G", "both", "token_masking", "attn_masking", "crop"],
    "masking_block": ["8", "10"],
    "sentence_weight": ["0", "1"],
    "without": ["position", "coherence", "relationship", "coherence position"],
    "alpha": ["0", "0.5"],
    "num_candidates": ["1", "6"],
    "num_context_masks": ["3", "12"],
    "coherence_weights": ["1 1.95 1.5", "1.8 1 1.5", "1.8 1.95 1"],
}
"""Values other than the default, of every argument that decides the records."""

ELSEWHERE = {
    "split_by": "in the name of the split, see below",
    "device": "not known from the arguments; a run on another device is refused the same folder",
    "protocol": "scores the same records",
    "shard": "the shards of a run share its folder",
    "output": "the folder itself",
    "refer_data_root": "where, not what",
    "store": "where, not what",
    "overwrite": "how, not what",
    "keep_tokens": "how, not what",
}


def test_every_argument_is_known_to_decide_the_records_or_not_to():
    assert vars(parsed()).keys() == VALUES.keys() | ELSEWHERE.keys()


def test_every_setting_has_a_folder_name_of_its_own():
    given_by_name: dict[str, list[str]] = {name_of(): ["(none)"]}
    for option, values in VALUES.items():
        for value in values:
            given = (f"--{option}", *value.split())
            given_by_name.setdefault(name_of(*given), []).append(" ".join(given))
    same = {name: given for name, given in given_by_name.items() if len(given) > 1}
    assert same == {}


def test_folder_names_by_hand():
    assert name_of() == "shapes-val-G2L-reference"
    google = ("--dataset", "refcocog", "--split_by", "google", "--limit", "5")
    assert name_of(*google) == "refcocog-google-val-first-5-G2L-reference"
    baseline = ("--method", "global_local", "--profile", "corrected", "--mixing_weight", "0.5")
    assert name_of(*baseline) == "shapes-val-global_local-corrected-mixing_weight-0.5"
    without = name_of("--without", "coherence", "position", "--alpha", "0.25")
    assert without == "shapes-val-G2L-reference-without-coherence-position-alpha-0.25"


@pytest.mark.parametrize(
    "given",
    [
        ["--protocol", "lavt"],
        ["--shard", "2/3"],
        ["--store", "elsewhere"],
        ["--refer_data_root", "elsewhere"],
        ["--overwrite"],
        ["--split", "val"],
        ["--fusion_mode", "G2L"],
        ["--alpha", "0.60"],
        ["--num_candidates", "3"],
        ["--proposals", "sam"],
        ["--coherence_weights", "1.8", "1.95", "1.5"],
    ],
    ids=lambda given: given[0],
)
def test_what_changes_no_record_or_is_the_default_changes_no_name(given):
    assert name_of(*given) == name_of()


def test_order_of_the_terms_left_out_does_not_matter():
    assert name_of("--without", "coherence", "position") == name_of(
        "--without", "position", "coherence"
    )


def test_name_is_one_folder():
    name = name_of("--proposals", "coco:/data/a b/masks.v2.json", "--clip_weights", "/x/y/mine.pt")
    assert "masks.v2" in name
    assert "mine" in name
    assert "/" not in name


@pytest.mark.parametrize("proposals", ["SAM", "coco", "coco:", "file.json", "gt:", ""])
def test_other_sources_of_proposals_are_refused(proposals):
    with pytest.raises(
        HybridGLError, match=r"Expected --proposals sam, coco:FILE or gt|at '', found"
    ):
        check_run_arguments(parsed("--proposals", proposals))


@pytest.mark.parametrize("weight", ["-0.1", "1.1", "nan", "inf"])
def test_mixing_weight_has_to_be_a_share(weight):
    with pytest.raises(HybridGLError, match="Expected --mixing_weight from 0 to 1, got"):
        check_run_arguments(parsed("--mixing_weight", weight))
    for right in ("0", "1", "0.85"):
        check_run_arguments(parsed("--mixing_weight", right))
