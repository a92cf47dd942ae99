"""Whole runs with real models: sources of proposals, methods, their settings, and datasets."""

from __future__ import annotations

import json
import pickle
import re
import shutil

import msgspec
import numpy as np
import pytest
from pycocotools import mask as coco_mask

import hybridgl_main
from evaluation.records import read_records
from evaluation.report import BREAKDOWNS
from evaluation.run import Run, RunConfig
from hybridgl.config import SAM_SETTINGS, GuidanceConfig
from hybridgl.metrics import PROTOCOLS
from tests.factories_clip import resnet_clip_state, save_npz
from tests.programs.conftest import NUM_IMAGES, refcoco_arguments
from tests.refer_factories import HW, custom_coco, mini_phrasecut, mini_refer, write_images
from tests.run_folders import content_of, made_in, records_of, summary_of

METHODS = ("hybridgl", "global_local")
PROFILES = ("reference", "corrected")
EACH_PROFILE_OF_EACH = [
    ("hybridgl", "reference"),
    *(
        pytest.param(method, profile, marks=pytest.mark.slow)
        for method, profile in (
            ("hybridgl", "corrected"),
            ("global_local", "reference"),
            ("global_local", "corrected"),
        )
    ),
]

pytestmark = pytest.mark.usefixtures("without_figures", "each_model_loaded_once")


def run(argv):
    assert hybridgl_main.main([*map(str, argv)]) == 0


def prepared(argv):
    """The run of some arguments, ready to start."""
    arguments = hybridgl_main.build_parser().parse_args([*map(str, argv)])
    return Run(RunConfig.from_arguments(arguments, hybridgl_main.METHODS), hybridgl_main.METHODS)


def predictions_of(folder, variant="guided"):
    """The prediction of every sample with its counts, but for the score that led to it."""
    return {
        (r.ref_id, r.sent_id): msgspec.structs.replace(r.predictions[variant], score=None)
        for r in records_of(folder)
    }


@pytest.fixture(scope="module")
def common_store(stocked, tmp_path_factory):
    """A store for all runs that do not count what they find."""
    return shutil.copytree(stocked / "store", tmp_path_factory.mktemp("common") / "store")


@pytest.fixture
def given(arguments, common_store):
    """Arguments for a run into a folder, with the common store."""
    return lambda folder, *more: [*arguments(folder), "--store", common_store, *more]


@pytest.fixture(scope="module")
def finished(arguments, common_store, each_model_loaded_once, tmp_path_factory):
    """Folder of a run by method and profile; each made once."""
    made = {}

    def folder_of(method="hybridgl", profile="reference"):
        if (method, profile) not in made:
            folder = made[method, profile] = tmp_path_factory.mktemp(f"{method}-{profile}")
            more = ["--store", common_store, "--method", method, "--profile", profile]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("evaluation.run.draw_samples", lambda *_: None)
                run([*arguments(folder), *more])
        return made[method, profile]

    return folder_of


def compressed(mask_HW):
    rle = coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8))
    return {"size": list(map(int, rle["size"])), "counts": rle["counts"].decode("ascii")}


def uncompressed(mask_HW):
    pixels = np.concatenate([[False], mask_HW.T.ravel(), [not mask_HW[-1, -1]]])
    edges = np.flatnonzero(pixels[1:] != pixels[:-1])
    return {"size": list(mask_HW.shape), "counts": np.diff([0, *edges]).tolist()}


def box(x1, y1, x2, y2):
    mask_HW = np.zeros(HW, dtype=bool)
    mask_HW[y1:y2, x1:x2] = True
    return mask_HW


def write_masks(path, masks_by_image, encode=compressed):
    rows = [
        {"image_id": image_id, "segmentation": encode(mask_HW), "score": 0.5}
        for image_id, masks in masks_by_image.items()
        for mask_HW in masks
    ]
    path.write_text(json.dumps(rows))
    return path


# Sources of proposals.


@pytest.fixture(scope="module")
def sam_proposals(arguments, stocked):
    """SAM's proposals of every image of the world, from the store."""
    this = prepared(arguments(stocked))
    images = [(image_id, this.split.open_image(image_id)) for image_id in this.split.images]
    finishers = this.source.submit(images)
    return {image_id: finish() for (image_id, _), finish in zip(images, finishers, strict=True)}


@pytest.fixture(scope="module")
def sam_masks(sam_proposals):
    return {image_id: proposals.masks_NHW for image_id, proposals in sam_proposals.items()}


@pytest.fixture
def from_file(tmp_path):
    """Options for a run on masks from a file, for which SAM's weights are not needed."""

    def options(masks_by_image, **how):
        path = write_masks(tmp_path / "masks.json", masks_by_image, **how)
        missing = tmp_path / "there is no sam.pth"
        return ["--proposals", f"coco:{path}", "--sam_checkpoint", missing]

    return options


@pytest.mark.parametrize(("method", "profile"), EACH_PROFILE_OF_EACH)
def test_masks_of_sam_from_a_file_give_the_records_of_sam(
    method, profile, given, finished, sam_masks, from_file, tmp_path
):
    expected = finished(method, profile)
    encode = compressed if profile == "reference" else uncompressed
    more = ["--method", method, "--profile", profile, *from_file(sam_masks, encode=encode)]
    run(given(tmp_path, *more))
    assert content_of(tmp_path) == content_of(expected)
    # The masks are the same, and so are their features.
    kind = "features" if method == "hybridgl" else "global-local"
    assert summary_of(tmp_path)["store"]["found"][kind] == NUM_IMAGES
    assert kind not in made_in(tmp_path)
    settings = summary_of(tmp_path)["settings"]
    assert "sam" not in settings["models"]["sha256"]
    assert settings["proposals"]["source"] == "coco"


def test_masks_of_sam_from_a_file_have_the_boxes_of_sam(given, sam_proposals, from_file, tmp_path):
    masks = {image_id: proposals.masks_NHW for image_id, proposals in sam_proposals.items()}
    this = prepared(given(tmp_path, *from_file(masks)))
    for image_id, expected in sam_proposals.items():
        (finish,) = this.source.submit([(image_id, this.split.open_image(image_id))])
        found = finish()
        np.testing.assert_array_equal(found.masks_NHW, expected.masks_NHW)
        np.testing.assert_array_equal(found.boxes_xywh, expected.boxes_xywh)


def test_form_of_annotations_gives_the_records_of_results(
    given, finished, sam_masks, tmp_path, world
):
    path = write_masks(tmp_path / "masks.json", sam_masks)
    rows = json.loads(path.read_text())
    listed = json.loads((world / "shapes" / "instances.json").read_text())["images"]
    path.write_text(json.dumps({"images": listed, "annotations": rows, "categories": []}))
    run(given(tmp_path, "--proposals", f"coco:{path}"))
    assert content_of(tmp_path) == content_of(finished())


@pytest.mark.parametrize(
    "method", ["hybridgl", pytest.param("global_local", marks=pytest.mark.slow)]
)
def test_order_of_the_masks_moves_indices_only(
    method, given, finished, sam_masks, from_file, tmp_path
):
    backwards = {image_id: masks_NHW[::-1] for image_id, masks_NHW in sam_masks.items()}
    run(given(tmp_path, "--method", method, *from_file(backwards)))
    for record, other in zip(records_of(tmp_path), records_of(finished(method)), strict=True):
        for variant, counts in record.predictions.items():
            theirs = other.predictions[variant]
            assert counts.proposal == record.num_proposals - 1 - theirs.proposal
            assert (counts.area, counts.intersection) == (theirs.area, theirs.intersection)


@pytest.mark.slow
def test_images_without_an_entry_lower_no_limit(given, sam_masks, from_file, tmp_path):
    """Of later images (Q5); an image with many proposals does not either."""
    *_, small, last = sam_masks
    run(given(tmp_path, *from_file({i: m for i, m in sam_masks.items() if i != small})))
    empty = [record for record in records_of(tmp_path) if not record.num_proposals]
    assert {record.image_id for record in empty} == {small}
    assert summary_of(tmp_path)["counts"]["without_proposals"] == len(empty) > 0
    many = {**sam_masks, small: np.concatenate([sam_masks[small]] * 3)}
    run(given(tmp_path / "many", *from_file(many)))
    after = [
        [r for r in records_of(f) if r.image_id == last] for f in (tmp_path, tmp_path / "many")
    ]
    assert after[0] == after[1]


@pytest.mark.parametrize(("method", "profile"), EACH_PROFILE_OF_EACH)
def test_annotated_objects_leave_nothing_to_wish(method, profile, refcoco, tmp_path):
    run([*refcoco, "--method", method, "--profile", profile])
    records = records_of(tmp_path)
    assert len(records) == 15
    for record in records:
        assert record.num_proposals == 2  # the crowd is left out
        assert record.oracle_iou == 1
    larger = max(record.gt_area for record in records)
    assert larger == (768 if profile == "reference" else 896)
    assert summary_of(tmp_path)["scores"]["oracle"] == {"mIoU": 100}
    assert "sam" not in summary_of(tmp_path)["settings"]["models"]["names"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("profile", ["reference", "corrected"])
def test_an_empty_mask_and_one_of_the_whole_image_have_finite_scores_but_for_quirk_10(
    method, profile, refcoco, tmp_path
):
    masks = [box(0, 0, 0, 0), box(0, 0, 96, 64), box(5, 5, 6, 6), box(8, 16, 32, 48)]
    first = next(iter(prepared(refcoco).split.images))
    path = write_masks(tmp_path / "masks.json", {first: masks})
    argv = [*refcoco, "--proposals", f"coco:{path}", "--method", method, "--limit", 1]
    argv += ["--profile", profile]
    run(argv)
    quirk = profile == "reference"
    for scores in prepared(argv).evaluation.result(first).scores:
        assert len(scores.arrays["similarity_N"]) == 4
        coherence_N = scores.arrays.get("coherence_N", np.zeros(4))
        undefined = [quirk, quirk, False, False] if method == "hybridgl" else [False] * 4
        assert np.isnan(coherence_N).tolist() == undefined
        others = [array for name, array in scores.arrays.items() if name != "coherence_N"]
        assert all(np.isfinite(array).all() for array in others)


# Methods.


def test_baseline_runs_with_either_tower(refcoco, clip_file, tmp_path, capsys):
    resnet_file = save_npz(tmp_path / "resnet.npz", resnet_clip_state())
    predictions = []
    for clip in (clip_file, resnet_file):
        folder = tmp_path / clip.stem
        more = ["--method", "global_local", "--clip_weights", clip, "--output", folder / "run"]
        run([*refcoco, *more])
        summary = summary_of(folder)
        assert summary["settings"]["method"]["name"] == "global_local"
        assert summary["setting"].startswith(f"global_local, reference profile, CLIP {clip.name}")
        assert list(summary["scores"]) == ["features", "chance", "oracle"]
        assert "gem" not in {**summary["store"]["found"], **summary["store"]["made"]}
        assert {tuple(record.predictions) for record in records_of(folder)} == {("features",)}
        assert "published, Global-Local CLIP" in capsys.readouterr().out
        predictions.append(predictions_of(folder, "features"))
    assert predictions[0].keys() == predictions[1].keys()
    assert predictions[0] != predictions[1]


@pytest.mark.parametrize("profile", PROFILES)
def test_baseline_alone_skips_images_without_proposals_by_quirk_8(
    profile, refcoco, tmp_path, capsys
):
    _, empty, _ = images = list(prepared(refcoco).split.images)
    masks = {i: [box(8, 16, 32, 48), box(56, 16, 80, 48)] for i in images if i != empty}
    path = write_masks(tmp_path / "masks.json", masks)
    for method in METHODS:
        folder = tmp_path / method
        more = ["--method", method, "--profile", profile, "--proposals", f"coco:{path}"]
        run([*refcoco, *more, "--output", folder / "run"])
        printed = capsys.readouterr().out
        skipped = method == "global_local" and profile == "reference"
        records = records_of(folder)
        assert len(records) == 15
        kept = [r for r in records if r.num_proposals or not skipped]
        assert len(kept) == (10 if skipped else 15)
        scores, counts = summary_of(folder)["scores"], summary_of(folder)["counts"]
        ious = [record.iou("features") for record in kept]
        assert scores["features"]["mIoU"] == pytest.approx(100 * np.mean(ious))
        oracle = [record.oracle_iou for record in kept]
        assert scores["oracle"]["mIoU"] == pytest.approx(100 * np.mean(oracle))
        assert (counts["sentences"], counts["without_proposals"]) == (15, 5)
        assert counts["left_out"] == (5 if skipped else 0)
        assert ("5 of them left out (Q8)" in printed) == skipped


def test_mixing_weight_reuses_both_parts_of_the_features(given, finished, tmp_path):
    predictions = {}
    default = finished("global_local")
    for weight in ("0", "0.95", "1"):
        folder = tmp_path / weight
        run(given(folder, "--method", "global_local", "--mixing_weight", weight))
        assert summary_of(folder)["settings"]["method"]["mixing_weight"] == float(weight)
        assert "global-local" not in made_in(folder)
        predictions[weight] = predictions_of(folder, "features")
    assert predictions["0"] != predictions["1"]
    assert predictions["0.95"] == predictions_of(default, "features")


def test_methods_of_a_split_share_the_stored_proposals_and_parses(arguments, copied):
    run([*arguments(copied), "--method", "global_local"])
    found = {"proposals": NUM_IMAGES, "parses": NUM_IMAGES}
    assert found.items() <= summary_of(copied)["store"]["found"].items()
    made = {"global-local": NUM_IMAGES, "scores": NUM_IMAGES}
    assert {name: made_in(copied).get(name) for name in made} == made


# Settings, from their flags to the numbers that they act on.


def judged(argv):
    """By sentence: what is read off it, and every number that leads to its prediction."""
    this = prepared(argv)
    rows = {}
    for image_id, refs in this.split.refs_by_image().items():
        sentences = [sentence for ref in refs for sentence in ref.sentences]
        image = this.split.open_image(image_id)
        (finish,) = this.source.submit([(image_id, image)])
        scored = this.method.score(image, [sentence.raw for sentence in sentences], finish())
        for sentence, scores in zip(sentences, scored, strict=True):
            prediction, arrays = this.method.choose(scores), scores.arrays
            choice = prediction.choice
            other = arrays.get("other_noun_similarity_N")
            rows[sentence.sent_id] = {
                "expression": prediction.expression,
                "similarity": arrays["similarity_N"].tolist(),
                "other": None if other is None else other.tolist(),
                "coherence": arrays["coherence_N"].tolist(),
                "map": prediction.attention is not None,
                "candidates": choice.candidates_K.tolist(),
                "relation": choice.relation_K.tolist(),
                "final": choice.final_K.tolist(),
                "features": choice.features,
                "guided": choice.guided,
            }
    return rows


@pytest.fixture(scope="module")
def plain(arguments, common_store, each_model_loaded_once, tmp_path_factory):
    """``judged`` with the default settings."""
    return judged([*arguments(tmp_path_factory.mktemp("plain")), "--store", common_store])


def changed(rows, plain, *names):
    """Sentences that are not the same in one of these."""
    return {i for i in plain if any(rows[i][name] != plain[i][name] for name in names)}


def softmax(values):
    powers = np.exp(np.array(values) - max(values))
    return powers / powers.sum()


def test_settings_have_sentences_to_act_on(plain):
    """What the tests of single settings below rely on."""
    expressions = [row["expression"] for row in plain.values()]
    assert {"big", "small", "none", "left"} <= {e.relation.value for e in expressions}
    assert {"left", "none"} <= {e.position.value for e in expressions}
    assert {True, False} == {bool(e.other_nouns) for e in expressions}
    assert {True, False} == {e.noun_phrase == e.sentence for e in expressions}


def test_without_position_changes_the_attention_of_position_words_alone(given, plain, tmp_path):
    rows = judged(given(tmp_path, "--without", "position"))
    horizontal = {
        i for i, row in plain.items() if row["expression"].position.value in ("left", "right")
    }
    assert changed(rows, plain, "coherence") == horizontal
    assert changed(rows, plain, "similarity", "other", "relation", "candidates") == set()
    assert changed(rows, plain, "final") == horizontal


def test_without_position_acts_on_vertical_words_in_corrected(given, tmp_path):
    corrected = ["--profile", "corrected"]
    whole = judged(given(tmp_path, *corrected))
    rows = judged(given(tmp_path, *corrected, "--without", "position"))
    placed = {i for i, row in whole.items() if row["expression"].position.value != "none"}
    vertical = {i for i, row in whole.items() if row["expression"].position.value == "down"}
    assert changed(rows, whole, "coherence") == placed > vertical > set()


def test_without_relationship_leaves_coherence_to_decide(given, plain, tmp_path):
    rows = judged(given(tmp_path, "--without", "relationship"))
    kept = ("similarity", "other", "coherence", "candidates", "relation")
    assert changed(rows, plain, *kept) == set()
    for row in rows.values():
        shown = [0.6 * row["coherence"][index] for index in row["candidates"]]
        assert row["final"] == pytest.approx(shown)
        assert row["guided"] == row["candidates"][int(np.argmax(shown))]


def test_without_coherence_leaves_relations_to_decide_and_needs_no_map(given, plain, tmp_path):
    rows = judged(given(tmp_path, "--without", "coherence"))
    assert changed(rows, plain, "similarity", "other", "candidates", "relation") == set()
    for row in rows.values():
        assert not any(row["coherence"])
        assert not row["map"]
        assert row["final"] == pytest.approx(0.4 * softmax(row["relation"]))
    assert all(row["map"] for row in plain.values())


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_alpha_is_the_share_of_coherence(alpha, given, plain, tmp_path):
    rows = judged(given(tmp_path, "--alpha", alpha))
    kept = ("similarity", "other", "coherence", "candidates", "relation")
    assert changed(rows, plain, *kept) == set()
    for row in rows.values():
        coherence = np.array([row["coherence"][index] for index in row["candidates"]])
        mixed = (1 - alpha) * softmax(row["relation"]) + alpha * coherence
        assert row["final"] == pytest.approx(mixed)


@pytest.mark.parametrize("count", [1, 5, 100])
def test_number_of_candidates_is_the_number_of_masks_to_choose_from(count, given, plain, tmp_path):
    rows = judged(given(tmp_path, "--num_candidates", count))
    assert changed(rows, plain, "similarity", "other", "coherence", "features") == set()
    for i, row in rows.items():
        best_first = np.argsort(-np.array(row["similarity"]), kind="stable").tolist()
        assert row["candidates"] == best_first[:count]
        assert plain[i]["candidates"] == best_first[:3]


def test_number_of_context_masks_acts_where_there_are_other_nouns(given, plain, tmp_path):
    rows = judged(given(tmp_path, "--num_context_masks", 1))
    assert changed(rows, plain, "similarity", "other", "coherence", "candidates") == set()
    others = {i for i, row in plain.items() if row["expression"].other_nouns}
    assert set() < changed(rows, plain, "relation") <= others
    unrelated = {i for i in others if plain[i]["expression"].relation.value == "none"}
    for i in unrelated:
        count = min(6, len(plain[i]["similarity"]))
        assert plain[i]["relation"] == pytest.approx(count * np.array(rows[i]["relation"]))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_each_coherence_weight_acts_on_its_relation(place, given, plain, tmp_path):
    weights = list(GuidanceConfig().coherence_weights)
    weights[place] = 1.0
    rows = judged(given(tmp_path, "--coherence_weights", *weights))
    kinds = {"big": 1, "small": 2}
    expected = {
        i for i, row in plain.items() if kinds.get(row["expression"].relation.value, 0) == place
    }
    assert changed(rows, plain, "coherence") == expected > set()
    assert changed(rows, plain, "similarity", "other", "candidates", "relation") == set()


@pytest.mark.parametrize("weight", [0, 1])
def test_sentence_weight_acts_where_the_noun_phrase_is_not_the_sentence(
    weight, given, plain, tmp_path
):
    rows = judged(given(tmp_path, "--sentence_weight", weight))
    longer = {
        i for i, row in plain.items() if row["expression"].noun_phrase != row["expression"].sentence
    }
    assert changed(rows, plain, "other", "coherence") == set()
    for i, row in rows.items():
        same = np.allclose(row["similarity"], plain[i]["similarity"], rtol=0, atol=1e-4)
        assert same == (i not in longer)
    assert 0 < len(longer) < len(plain)


@pytest.mark.slow
def test_masking_block_changes_features_and_no_attention(given, plain, tmp_path):
    rows = judged(given(tmp_path, "--masking_block", 8))
    assert changed(rows, plain, "similarity") == set(plain)
    assert changed(rows, plain, "coherence") == set()


def test_without_any_term_the_guided_prediction_is_that_of_the_features(given, finished, tmp_path):
    run(given(tmp_path, "--without", "relationship", "coherence", "position"))
    features = predictions_of(tmp_path, "features")
    assert predictions_of(tmp_path, "guided") == features
    default = finished()
    assert features == predictions_of(default, "features") != predictions_of(default, "guided")


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("setting", [("--without", "coherence"), ("--alpha", "0")])
def test_without_coherence_and_alpha_0_are_the_prediction_by_relations(
    setting, profile, given, finished, tmp_path
):
    run(given(tmp_path, "--profile", profile, *setting))
    default = finished("hybridgl", profile)
    relations = predictions_of(default, "relations")
    assert predictions_of(tmp_path, "guided") == relations
    assert predictions_of(tmp_path, "relations") == relations
    assert relations != predictions_of(default, "guided")
    assert relations != predictions_of(default, "features")


def test_without_coherence_no_map_is_computed(arguments, copied):
    shutil.rmtree(copied / "store" / "v2" / "gem")
    run([*arguments(copied), "--without", "coherence"])
    assert not (copied / "store" / "v2" / "gem").exists()
    assert not {"proposals", "parses", "features"} & set(made_in(copied))


def test_one_candidate_leaves_no_choice(given, finished, tmp_path):
    run(given(tmp_path, "--num_candidates", "1"))
    features = predictions_of(finished(), "features")
    for variant in ("features", "relations", "guided"):
        assert predictions_of(tmp_path, variant) == features


def test_late_settings_find_every_score_and_the_others_every_stage(arguments, copied):
    late = ["--alpha", "0.3", "--num_candidates", "5", "--num_context_masks", "4"]
    run([*arguments(copied), *late])
    assert summary_of(copied)["store"] == {"found": {"scores": NUM_IMAGES}, "made": {}}
    more = ["--without", "position", "--coherence_weights", "1.5", "1.6", "1.7"]
    more += ["--sentence_weight", "0.9", "--output", copied / "more" / "run"]
    run([*arguments(copied), *late, *more])
    assert made_in(copied / "more") == {"scores": NUM_IMAGES}
    settings = summary_of(copied / "more")["settings"]["method"]
    assert settings["guidance"]["without"] == ["position"]
    assert (settings["guidance"]["alpha"], settings["text"]["sentence_weight"]) == (0.3, 0.9)


@pytest.mark.parametrize(
    ("method", "given_settings"),
    [
        ("hybridgl", "--alpha 0 --num_candidates 1 --num_context_masks 1 --masking_block 0"),
        ("hybridgl", "--alpha 1 --num_candidates 999 --coherence_weights 2 0 2"),
        ("hybridgl", "--sentence_weight 1 --masking_block 11 --num_context_masks 999"),
        ("global_local", "--mixing_weight 0 --sentence_weight 0 --masking_block 0"),
        ("global_local", "--mixing_weight 1 --sentence_weight 1 --masking_block 11"),
    ],
)
def test_values_at_the_ends_of_their_ranges_are_taken(method, given_settings, given, tmp_path):
    this = prepared(given(tmp_path, "--method", method, *given_settings.split()))
    this.method.load()
    assert this.method.settings()["name"] == method


# Reports.


def tables_of(report):
    """Header and rows of every table, by the header's first cell."""
    tables = {}
    lines = report.splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not above.startswith("|"):
                title = cells[0]
                assert title not in tables
                tables[title] = []
            tables[title].append(cells)
    return tables


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_report_has_a_table_for_every_breakdown(protocol, given, finished, tmp_path):
    shutil.copytree(finished() / "run", tmp_path / "run")
    run(given(tmp_path, "--protocol", protocol))
    summary = summary_of(tmp_path)
    tables = tables_of((tmp_path / "run" / "report.md").read_text())
    assert list(tables) == [groups.title for groups in BREAKDOWNS.values()]
    mean = PROTOCOLS[protocol].mean_name
    for name, groups in BREAKDOWNS.items():
        header, delimiters, *rows = tables[groups.title]
        # A delimiter of the table needs a hyphen.
        assert len(header) == len(delimiters)
        assert [cell for cell in delimiters if not re.fullmatch(r":?-+:?", cell)] == []
        shown = {row[0]: dict(zip(header[1:], map(float, row[1:]), strict=True)) for row in rows}
        assert shown == summary["breakdowns"][name]
        assert ("P@0.5 guided" in header) == (protocol != "lisa")
        last = list(shown)[-1]
        assert last == "all" or len(shown) == 1
        assert shown[last]["n"] == summary["counts"]["sentences"]
        assert shown[last][f"{mean} guided"] == round(summary["scores"]["guided"][mean], 2)
        if len(shown) > 1:
            parts = [row["n"] for group, row in shown.items() if group != "all"]
            assert sum(parts) == summary["counts"]["sentences"]


def test_program_prints_the_first_table_alone(given, finished, tmp_path, capsys):
    shutil.copytree(finished() / "run", tmp_path / "run")
    capsys.readouterr()
    run(given(tmp_path))
    assert list(tables_of(capsys.readouterr().out)) == ["kind"]


# Datasets.


@pytest.fixture
def phrasecut(given, tmp_path):
    """Arguments for a small PhraseCut, with the bundled weights."""
    mini_phrasecut().write(tmp_path / "data" / "phrasecut")
    data = ["--dataset", "phrasecut", "--weights", "tiny", "--refer_data_root", tmp_path / "data"]
    return lambda *more: given(tmp_path, *data, *more)


@pytest.mark.parametrize("method", METHODS)
def test_phrasecut_on_its_annotated_objects(method, phrasecut, tmp_path):
    more = ["--method", method, "--proposals", "gt", "--protocol", "phrasecut"]
    run(phrasecut(*more, "--sam_checkpoint", tmp_path / "none"))
    records, summary = records_of(tmp_path), summary_of(tmp_path)
    tasks = sorted(mini_phrasecut().tasks, key=lambda task: task["image_id"])
    assert [record.ref_id for record in records] == [task["task_id"] for task in tasks]
    assert {record.num_proposals for record in records} == {3}
    assert [record.kind for record in records] == ["seen", "unseen", "unseen"] * 3
    # A phrase for one object has its ground truth among the proposals; one for several has not.
    assert [record.oracle_iou == 1 for record in records] == [True, False, False] * 3
    kinds = summary["breakdowns"]["kind"]
    assert {kind: row["n"] for kind, row in kinds.items()} == {"seen": 3, "unseen": 6, "all": 9}
    # Nine samples: the column n has one digit.
    tables = tables_of((tmp_path / "run" / "report.md").read_text())
    assert [row[:2] for row in tables["kind"][2:]] == [["seen", "3"], ["unseen", "6"], ["all", "9"]]
    assert all("-" in cell for cell in tables["kind"][1])
    (whole,), parser = summary["warnings"], summary["notes"][-1]
    assert whole.startswith("Not the whole of phrasecut val")
    assert parser.startswith("Sentences were read by en_tiny_shapes 1 under spaCy")


def test_phrasecut_on_masks_of_a_file_and_in_shards(phrasecut, tmp_path):
    image_ids = dict.fromkeys(task["image_id"] for task in mini_phrasecut().tasks)
    boxes = [box(8, 16, 33, 49), box(56, 16, 81, 49), box(30, 0, 60, 9)]
    masks = {i: boxes[: 3 - place] for place, i in enumerate(image_ids)}
    path = write_masks(tmp_path / "masks.json", masks)
    argv = phrasecut("--proposals", f"coco:{path}", "--store", tmp_path / "one")
    run(argv)
    records = records_of(tmp_path)
    assert [record.num_proposals for record in records] == [3, 3, 3, 2, 2, 2, 1, 1, 1]
    assert [record.oracle_iou for record in records[::3]] == [1, 1, 1]
    output = ["--output", tmp_path / "shards" / "run", "--store", tmp_path / "two"]
    for more in (["--shard", "2/2"], ["--shard", "1/2"], []):
        run([*argv, *output, *more])
    assert content_of(tmp_path / "shards") == content_of(tmp_path)


def test_phrasecut_has_settings_of_sam_of_its_own(phrasecut, tmp_path, monkeypatch):
    settings = prepared(phrasecut()).settings["proposals"]
    assert settings["points_per_side"] == SAM_SETTINGS["phrasecut"].points_per_side == 64
    # With few prompts, so that SAM takes a moment only.
    few = {**SAM_SETTINGS, "phrasecut": SAM_SETTINGS["shapes"]}
    monkeypatch.setattr("hybridgl.config.SAM_SETTINGS", few)
    run(phrasecut("--without", "coherence"))
    assert max(record.oracle_iou for record in records_of(tmp_path)) > 0.5


@pytest.mark.parametrize("method", METHODS)
def test_custom_file_in_coco_form(method, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "birds.json"
    path.write_text(json.dumps(custom_coco()))
    write_images(tmp_path / "images", ["a.jpg", "b.jpg"])
    argv = given(tmp_path, "--dataset", path, "--weights", "tiny", "--proposals", "gt")
    at = argv.index("--output")
    run([*argv[:at], *argv[at + 2 :], "--method", method])
    mode = "G2L" if method == "hybridgl" else method
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith(f"birds-all-{mode}-reference")
    records = read_records(folder / "records.jsonl")
    assert [(r.ref_id, r.num_proposals) for r in records] == [(10, 2), (10, 2), ("twelve", 1)]
    assert {record.dataset for record in records} == {"birds"}
    assert {record.oracle_iou for record in records} == {1.0}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["warnings"] == []
    assert "published" not in (folder / "report.md").read_text()


@pytest.fixture
def birds(refcoco, tmp_path):
    """A custom folder in REFER form: that of RefCOCO under another name."""
    folder = (tmp_path / "data" / "refcoco").rename(tmp_path / "birds")
    (tmp_path / "data" / "images/mscoco/images/train2014").rename(folder / "images")
    return folder


def test_custom_folder_in_refer_form_gives_the_records_of_the_dataset(
    given, birds, refcoco_stocked, tmp_path
):
    custom = ["--dataset", birds, "--split", "val", "--weights", "tiny", "--proposals", "gt"]
    run(given(tmp_path, *custom))
    named, by_path = records_of(refcoco_stocked), records_of(tmp_path)
    assert {record.dataset for record in by_path} == {"birds"}
    assert [(r.ref_id, r.sent_id, r.predictions) for r in by_path] == [
        (r.ref_id, r.sent_id, r.predictions) for r in named
    ]
    assert summary_of(tmp_path)["warnings"] == []


def test_custom_folder_with_one_split_needs_no_more_than_its_path(given, birds, tmp_path):
    refs = pickle.loads((birds / "refs(unc).p").read_bytes())
    (birds / "refs(unc).p").unlink()
    only = [ref for ref in refs if ref["split"] == "testB"]
    (birds / "refs(mine).json").write_text(json.dumps(only))
    run(given(tmp_path, "--dataset", birds, "--weights", "tiny", "--proposals", "gt"))
    settings = summary_of(tmp_path)["settings"]
    assert (settings["dataset"], settings["split"], settings["split_by"]) == (
        "birds",
        "testB",
        "mine",
    )


def test_every_dataset_in_refer_form_runs(arguments, tmp_path):
    """But RefCOCO, which most tests are about."""
    for dataset in ("refcoco+", "refcocog"):
        mini_refer(dataset).write(tmp_path / "data")
        more = ["--dataset", dataset, "--without", "coherence", "--limit", "1"]
        folder = tmp_path / dataset
        run([*refcoco_arguments(arguments, tmp_path, *more), "--output", folder / "run"])
        assert len(records_of(folder)) == 5
