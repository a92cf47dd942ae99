"""HybridGL: scores against its parts one by one, results through the store, segments of images."""

from __future__ import annotations

import dataclasses
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.gpu.operations import RecordOperations
from hybridgl import gem, guidance, views
from hybridgl.config import (
    KNOWS_SHAPES_ONLY,
    SAM_SETTINGS,
    FusionConfig,
    FusionMode,
    GuidanceConfig,
    HybridGLConfig,
    Profile,
    ReferenceQuirks,
    TextConfig,
)
from hybridgl.devices import CPU_BATCHES
from hybridgl.errors import HybridGLError, SettingError, WeightsError
from hybridgl.fusion import mask_features
from hybridgl.images import RgbImage
from hybridgl.language import ParsedExpression, Position, Relation, expression_features
from hybridgl.masks import Proposals, mask_boxes_xywh
from hybridgl.methods import Scores
from hybridgl.methods.hybridgl import HybridGL
from hybridgl.store import Store
from refer.shapes.world import training_scene
from tests.factories_clip import clip_state, models_of, resnet_clip_state, save_npz
from tests.pretend_gpu import PretendGpu

HW = (40, 56)

EXPRESSIONS = [
    ParsedExpression(
        *("the cat left of a dog", "the cat", "cat", ("a dog", "a mat"), ("dog", "mat")),
        *(Position.LEFT, Relation.LEFT),
    ),
    ParsedExpression("the cat", "the cat", "cat", (), (), Position.NONE, Relation.BIG),
    ParsedExpression("a sofa on top", "a sofa", "sofa", (), (), Position.UP, Relation.UP),
    ParsedExpression("cat " * 90, "a cat", "cat", (), (), Position.NONE, Relation.NONE),
]
SENTENCES = [expression.sentence for expression in EXPRESSIONS]


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    return save_npz(tmp_path_factory.mktemp("clip") / "clip.npz", clip_state(sharpness=2.0))


@pytest.fixture(scope="module")
def models(clip_file):
    return models_of(clip_file, EXPRESSIONS)


@pytest.fixture
def no_models(tmp_path, models):
    """Knows what the models' files hold, and has none of them."""
    without = models_of(tmp_path / "gone.npz", ())
    for name in ("clip", "parser"):
        without.assume(name, models.sha256(name))
    return without


@pytest.fixture(scope="module")
def image():
    return RgbImage(np.random.default_rng(1).integers(0, 256, (*HW, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def proposals():
    masks_NHW = np.zeros((5, *HW), dtype=bool)
    for row, (top, left, height, width) in enumerate(
        [(3, 10, 27, 40), (0, 0, 12, 12), (25, 30, 10, 20), (5, 40, 30, 1), (0, 0, 40, 56)]
    ):
        masks_NHW[row, top : top + height, left : left + width] = True
    return proposals_of(masks_NHW)


def proposals_of(masks_NHW):
    ones = np.ones(len(masks_NHW), dtype=np.float32)
    return Proposals(masks_NHW, mask_boxes_xywh(masks_NHW), ones, ones)


def assert_same_scores(first, second):
    for one, other in zip(first, second, strict=True):
        assert one.meta == other.meta
        assert one.arrays.keys() == other.arrays.keys()
        for name, array in one.arrays.items():
            np.testing.assert_array_equal(array, other.arrays[name])


@pytest.mark.parametrize("profile", list(Profile))
def test_scores_are_those_of_the_parts_one_by_one(models, image, proposals, profile):
    quirks = ReferenceQuirks.of(profile)
    config = HybridGLConfig(quirks=quirks, text=TextConfig(sentence_weight=0.3))
    model, clip = HybridGL(models, config), models.clip
    image_3HW, blurred_3HW = (
        torch.from_numpy(pixels).permute(2, 0, 1)
        for pixels in (image.pixels_HW3, views.blur_background(image.pixels_HW3))
    )
    masks = torch.from_numpy(proposals.masks_NHW)
    with torch.inference_mode():
        features = mask_features(
            clip.visual,
            views.local_views(image_3HW, masks, 64, quirks),
            views.global_views(image_3HW, blurred_3HW, masks, 64, quirks),
            views.patch_coverage(masks, 4),
            config.fusion,
            attention_masking_skips_last_block=quirks.attention_masking_skips_last_block,
        )
        texts = expression_features(clip.encode_texts, EXPRESSIONS, config.text)
        prompts = [f"a photo of a {read.noun_phrase}." for read in EXPRESSIONS]
        patches = gem.patch_features(clip.visual, gem.gem_input(image.pil, 128)[None], config.gem)
        sims = gem.patch_similarity(patches[0], clip.encode_texts(prompts))
    scored = model.score(image, SENTENCES, proposals)
    for row, (read, scores) in enumerate(zip(EXPRESSIONS, scored, strict=True)):
        arrays = scores.arrays
        cosines = torch.cosine_similarity(features, texts.expression_SE[row])
        close = {"rtol": 0, "atol": 1e-4}
        np.testing.assert_allclose(arrays["similarity_N"], clip.logit_scale * cosines, **close)
        assert ("other_noun_similarity_N" in arrays) == bool(read.other_noun_phrases)
        if read.other_noun_phrases:
            cosines = torch.cosine_similarity(features, texts.other_nouns_SE[row])
            np.testing.assert_allclose(
                arrays["other_noun_similarity_N"], clip.logit_scale * cosines, **close
            )
        np.testing.assert_allclose(arrays["patch_similarity_gg"], sims[row], **close)
        prior = guidance.position_prior(
            read.position, HW, vertical_priors_disabled=quirks.vertical_priors_disabled
        )
        attention = guidance.weighted_attention(
            gem.attention_map(sims[row : row + 1], 128, HW), [prior]
        )
        weight = guidance.outside_weight(read.relation, config.guidance)
        quirk = quirks.undefined_scores_win
        coherence = guidance.coherence_scores(
            attention, masks, [weight], undefined_scores_win=quirk
        )[0]
        assert coherence.isnan().tolist() == [False] * 4 + [quirk]  # it covers the image
        np.testing.assert_allclose(arrays["coherence_N"], coherence, **close)
        assert arrays["boxes_xywh"].tolist() == proposals.boxes_xywh.tolist()
        prediction = model.choose(scores)
        np.testing.assert_allclose(prediction.attention(HW), attention[0], **close)
        assert prediction.expression == read
        assert prediction.truncated == (row == 3)


def test_choosing_needs_no_model_and_what_was_stored_serves_other_late_settings(
    models, no_models, image, proposals, tmp_path
):
    config = HybridGLConfig()
    scored = HybridGL(models, config).score(image, SENTENCES, proposals)
    store = Store(tmp_path / "store")
    for scores in scored:
        store.save("scores", "0" * 64, scores.arrays, scores.meta)
        entry = store.load("scores", "0" * 64)
        stored = Scores(entry.arrays, entry.meta)
        read = ParsedExpression.from_json(scores.meta["expression"])
        for changed in ({}, {"alpha": 0.0}, {"num_candidates": 2, "num_context_masks": 1}):
            some = dataclasses.replace(config, guidance=GuidanceConfig(**changed))
            for k_limit in (None, 1):
                prediction = HybridGL(no_models, some).choose(stored, k_limit=k_limit)
                expected = guidance.choose(
                    scores.arrays["similarity_N"],
                    scores.arrays.get("other_noun_similarity_N"),
                    scores.arrays["coherence_N"],
                    scores.arrays["boxes_xywh"],
                    read.relation,
                    some.guidance,
                    k_limit=k_limit,
                )
                assert prediction.proposals == {
                    variant: getattr(expected, variant) for variant in HybridGL.variants
                }
                np.testing.assert_array_equal(prediction.choice.final_K, expected.final_K)


@pytest.mark.parametrize("hw", [HW, (17, 90)])
def test_attention_is_drawn_at_any_size_without_a_model(models, no_models, image, proposals, hw):
    scores = HybridGL(models, HybridGLConfig()).score(image, SENTENCES, proposals)
    drawn = [HybridGL(no_models, HybridGLConfig()).choose(one).attention(hw) for one in scores]
    for attention_HW in drawn:
        assert attention_HW.shape == hw
        assert attention_HW.dtype == np.float32
        assert attention_HW.mean() == pytest.approx(1)
    # "left" is 0 at the right end; without a position word, the same phrase is not.
    assert (drawn[0][:, -1] == 0).all()
    assert (drawn[1][:, -1] > 0).any()


def test_terms_that_are_left_out_cost_and_change_nothing(models, image, proposals):
    def scored(*without):
        config = HybridGLConfig(guidance=GuidanceConfig(without=without))
        model = HybridGL(models, config)
        scores = model.score(image, SENTENCES[:1], proposals)[0]
        return scores.arrays, model.choose(scores)

    plain, _ = scored()
    arrays, prediction = scored("coherence")
    assert "patch_similarity_gg" not in arrays
    assert prediction.attention is None
    assert not arrays["coherence_N"].any()
    arrays, prediction = scored("position")
    assert (prediction.attention(HW)[:, -1] > 0).any()
    assert not np.array_equal(arrays["coherence_N"], plain["coherence_N"])
    np.testing.assert_array_equal(arrays["similarity_N"], plain["similarity_N"])


def test_image_without_proposals_has_no_prediction_but_its_attention(models, image):
    model = HybridGL(models, HybridGLConfig())
    for scores in model.score(image, SENTENCES, Proposals.empty(HW)):
        prediction = model.choose(scores)
        assert prediction.proposals == {}
        assert prediction.choice is None
        assert len(prediction.similarity_N) == 0
        assert prediction.attention(HW).mean() == pytest.approx(1)


def test_permuted_proposals_permute_scores_and_predictions(models, image, proposals):
    model, order = HybridGL(models, HybridGLConfig()), np.array([4, 0, 3, 1, 2])
    permuted = proposals_of(proposals.masks_NHW[order])
    for one, other in zip(
        model.score(image, SENTENCES, proposals),
        model.score(image, SENTENCES, permuted),
        strict=True,
    ):
        for name in ("similarity_N", "coherence_N"):
            np.testing.assert_allclose(one.arrays[name][order], other.arrays[name], atol=1e-4)
        before, after = model.choose(one).proposals, model.choose(other).proposals
        assert before == {variant: order[index] for variant, index in after.items()}


def test_chunks_of_masks_and_maps_do_not_matter(models, image, proposals, monkeypatch):
    model = HybridGL(models, HybridGLConfig())
    whole = model.score(image, SENTENCES, proposals)
    monkeypatch.setattr(models.batches, "sizes", dataclasses.replace(CPU_BATCHES, masks=2))
    monkeypatch.setattr("hybridgl.methods.hybridgl._MAPS_PER_CHUNK", 3)
    for one, other in zip(whole, model.score(image, SENTENCES, proposals), strict=True):
        for name, array in one.arrays.items():
            np.testing.assert_allclose(other.arrays[name], array, rtol=0, atol=1e-4)


class Waits(PretendGpu):
    """Counts the calls in which a host would wait for its GPU."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        blocking = func is torch.Tensor.to and isinstance(args[1], torch.device)
        blocking = blocking and not (kwargs or {}).get("non_blocking")
        self.count += blocking or func in (torch.Tensor.cpu, torch.Tensor.item)
        return super().__torch_function__(func, types, args, kwargs)


def test_a_gpu_is_awaited_no_more_often_for_more_masks_or_sentences(
    clip_file, image, proposals, monkeypatch
):
    """In chunks of one mask, and of one attention map."""
    counts = []
    for masks, sentences in ((2, 2), (5, 2), (2, 5)):
        models = models_of(clip_file, EXPRESSIONS)
        model = HybridGL(models, HybridGLConfig())
        _ = model.clip, models.batches
        some = proposals_of(proposals.masks_NHW[:masks])
        expected = model.score(image, SENTENCES[:sentences], some)
        models.batches.sizes = dataclasses.replace(CPU_BATCHES, masks=1)
        models.clip._text_features.clear()
        with monkeypatch.context() as patch, Waits() as waits, RecordOperations() as recorded:
            for one in (models, models.clip):  # which other tests may share
                patch.setattr(one, "device", torch.device("cuda"))
            found = model.score(image, SENTENCES[:sentences], some)
        for one, other in zip(expected, found, strict=True):
            for name, array in one.arrays.items():
                np.testing.assert_allclose(other.arrays[name], array, rtol=0, atol=1e-4)
        assert len(recorded.names) > 500
        counts.append((waits.count, len(recorded.waiting)))
    assert counts[0] == counts[1] == counts[2]
    assert counts[0][0] == 5


@pytest.mark.parametrize("mode", list(FusionMode))
def test_features_through_stored_tokens_are_the_same(
    models, no_models, image, proposals, tmp_path, mode
):
    config = HybridGLConfig(fusion=FusionConfig(fusion_mode=mode))
    store = Store(tmp_path / "store", keep_tokens=True)
    plain = HybridGL(models, config).features(image, proposals)
    assert torch.equal(HybridGL(models, config, store).features(image, proposals), plain)
    assert len(store.keys("tokens")) == 1 + mode.reads_global_view
    again = HybridGL(no_models, config, Store(store.root))
    assert torch.equal(again.features(image, proposals), plain)


# Through the store


def test_everything_that_is_stored_needs_no_model(models, no_models, image, proposals, tmp_path):
    store = Store(tmp_path / "store")
    first = HybridGL(models, HybridGLConfig(), store)
    expressions = first.parse(SENTENCES)
    features = first.features(image, proposals)
    phrases = [expression.noun_phrase for expression in expressions]
    sims = first.patch_similarity(image, phrases)
    assert {kind: len(store.keys(kind)) for kind in ("parses", "features", "gem", "tokens")} == {
        "parses": 1,
        "features": 1,
        "gem": 3,
        "tokens": 0,
    }
    again = HybridGL(no_models, HybridGLConfig(), Store(store.root))
    assert again.parse(SENTENCES) == expressions == EXPRESSIONS
    assert torch.equal(again.features(image, proposals), features)
    assert torch.equal(again.patch_similarity(image, phrases), sims)


def test_parses_are_keyed_by_sentences_parser_and_quirk(models, no_models, tmp_path):
    store = Store(tmp_path / "store")
    twice = [SENTENCES[1], SENTENCES[0], SENTENCES[1]]
    HybridGL(models, HybridGLConfig(), store).parse(twice)
    assert models.parser.calls[-1] == ([SENTENCES[1], SENTENCES[0]], True)
    again = HybridGL(no_models, HybridGLConfig(), Store(store.root))
    assert [read.sentence for read in again.parse(twice)] == twice
    corrected = HybridGLConfig(quirks=ReferenceQuirks.of(Profile.CORRECTED))
    with pytest.raises(KeyError):
        again.parse(SENTENCES[:1])
    with pytest.raises(KeyError):
        HybridGL(no_models, corrected, store).parse(twice)
    HybridGL(models, corrected, store).parse(twice)
    assert models.parser.calls[-1] == ([SENTENCES[1], SENTENCES[0]], False)
    no_models.assume("parser", "1" * 64)
    with pytest.raises(KeyError):
        again.parse(twice)


def test_stores_with_other_phrases_of_one_image_lose_nothing_when_copied(
    models, no_models, image, tmp_path
):
    phrases = {"one": ["the cat", "a sofa"], "other": ["a mat", "the cat"]}
    made = {}
    for name, some in phrases.items():
        made[name] = HybridGL(models, HybridGLConfig(), Store(tmp_path / name)).patch_similarity(
            image, some
        )
    shutil.copytree(tmp_path / "one", tmp_path / "other", dirs_exist_ok=True)
    merged = HybridGL(no_models, HybridGLConfig(), Store(tmp_path / "other"))
    for name, some in phrases.items():
        torch.testing.assert_close(merged.patch_similarity(image, some), made[name])


def test_only_phrases_that_are_missing_are_made_in_one_pass(models, image, tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    model = HybridGL(models, HybridGLConfig(), store)
    passes = []

    def patch_features(*arguments):
        passes.append(1)
        return gem.patch_features(*arguments)

    monkeypatch.setattr(model, "_patch_features", patch_features)
    model.patch_similarity(image, ["the cat"])
    written = store.path("gem", store.keys("gem")[0])
    before = written.stat().st_mtime_ns
    sims = model.patch_similarity(image, ["a mat", "the cat", "a sofa", "a mat"])
    assert len(passes) == 2
    assert store.misses["gem"] == len(store.keys("gem")) == 3
    assert written.stat().st_mtime_ns == before
    assert torch.equal(sims[0], sims[3])
    again = HybridGL(models, HybridGLConfig(), None).patch_similarity(image, ["a sofa"])
    torch.testing.assert_close(again[0], sims[2])


@pytest.mark.parametrize(
    ("changed", "kinds"),
    [
        ({"fusion": FusionConfig(fusion_mode=FusionMode.CROP)}, {"features"}),
        ({"fusion": FusionConfig(masking_block=10)}, {"features"}),
        ({"text": TextConfig(sentence_weight=0.1)}, set()),
        ({"guidance": GuidanceConfig(alpha=0.1)}, set()),
        ({"quirks": ReferenceQuirks(global_view_imagenet_statistics=False)}, {"features"}),
        ({"quirks": ReferenceQuirks(vertical_priors_disabled=False)}, set()),
        ({"quirks": ReferenceQuirks(right_relation_never_matches=False)}, {"parses"}),
    ],
)
def test_changed_setting_makes_only_what_depends_on_it_again(
    models, image, proposals, tmp_path, changed, kinds
):
    store = Store(tmp_path / "store")
    HybridGL(models, HybridGLConfig(), store).score(image, SENTENCES, proposals)
    other = Store(store.root)
    HybridGL(models, HybridGLConfig(**changed), other).score(image, SENTENCES, proposals)
    assert set(other.misses) == kinds


def test_scores_do_not_depend_on_the_store(models, image, proposals, tmp_path):
    store = Store(tmp_path / "store")
    plain = HybridGL(models, HybridGLConfig()).score(image, SENTENCES, proposals)
    for _ in range(2):
        stored = HybridGL(models, HybridGLConfig(), store).score(image, SENTENCES, proposals)
        assert_same_scores(stored, plain)


# What it refuses, and what it says of itself


@pytest.mark.parametrize(
    ("fusion", "needed"),
    [
        (FusionConfig(masking_block=12), 13),
        (FusionConfig(masking_block=11, fusion_mode=FusionMode.ATTENTION_MASKING), 13),
    ],
)
def test_clip_with_too_few_blocks_is_refused(models, fusion, needed):
    message = rf"at least {needed} vision blocks in .*clip\.npz, got 12; use ViT-B-16, or a lower"
    with pytest.raises(WeightsError, match=message):
        HybridGL(models, HybridGLConfig(fusion=fusion)).clip  # noqa: B018


def test_resnet_is_refused(tmp_path):
    path = save_npz(tmp_path / "clip.npz", resnet_clip_state())
    with pytest.raises(WeightsError, match="Expected a CLIP vision transformer, got a ResNet; use"):
        HybridGL(models_of(path), HybridGLConfig()).clip  # noqa: B018


def test_settings_are_name_and_config():
    model = HybridGL(models_of(Path("gone.npz")), HybridGLConfig())
    assert model.settings() == {"name": "hybridgl", **HybridGLConfig().json()}
    assert "alpha" not in model.settings(late=False)["guidance"]


@pytest.mark.parametrize(
    "given",
    [
        {"weights": "huge"},
        {"profile": "released"},
        {"fusion_mode": "g2l"},
        {"device": "tpu"},
        {"dtype": "float16"},
    ],
)
def test_wrong_name_is_refused(given):
    with pytest.raises(SettingError, match=f"got '{next(iter(given.values()))}'"):
        HybridGL.from_pretrained(**given)


# One image for its user, with the bundled weights


@pytest.fixture(scope="module")
def tiny():
    return HybridGL.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="module")
def scene():
    return training_scene(1, 3).image_HW3


def assert_same_segmentation(first, second):
    for field in ("mask", "features_mask", "attention_map", "similarities"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))
    assert (first.box, first.expression) == (second.box, second.expression)


def test_result_names_its_choice_among_all_proposals(tiny, scene):
    result = tiny.segment(scene, "the red thing on the left")
    (chosen,) = [candidate for candidate in result.candidates if candidate.chosen]
    assert result.matches
    assert (result.similarity, result.score) == (chosen.similarity, chosen.score)
    assert chosen.score == max(candidate.score for candidate in result.candidates)
    assert result.box == chosen.box
    assert len(result.proposals) == len(result.similarities)
    for candidate in result.candidates:
        np.testing.assert_array_equal(candidate.mask, result.proposals.masks_NHW[candidate.index])
        assert candidate.similarity == result.similarities[candidate.index]
    np.testing.assert_array_equal(result.mask, chosen.mask)


def test_nothing_matches_below_a_similarity(tiny, scene):
    """The same candidates with the same scores, none of them chosen."""
    found = tiny.segment(scene, "the red thing on the left")
    for limit, matches in ((found.similarity, True), (found.similarity + 1e-6, False)):
        result = tiny.segment(scene, "the red thing on the left", reject_below=limit)
        assert result.matches is matches
        assert result.mask.any() == matches
        assert (result.box is not None) == matches
        assert any(candidate.chosen for candidate in result.candidates) == matches
        assert (result.similarity, result.score) == (found.similarity, found.score)
        np.testing.assert_array_equal(result.similarities, found.similarities)
    (limited,) = tiny.segment_all([scene], ["the red thing on the left"], reject_below=1e9)
    assert not limited.matches


def test_settings_are_given_by_the_names_of_their_flags(tmp_path):
    plain = HybridGL.from_pretrained("tiny", device="cpu")
    assert plain.config == HybridGLConfig(quirks=ReferenceQuirks.of(Profile.CORRECTED))
    model = HybridGL.from_pretrained(
        "tiny",
        profile="reference",
        device="cpu",
        fusion_mode="G2L&L2G",
        alpha=0.25,
        without="position",
        sam_settings="phrasecut",
        dtype="bfloat16",
    )
    assert model.config.fusion.fusion_mode is FusionMode.BOTH
    assert model.config.quirks == ReferenceQuirks()
    assert (model.config.guidance.alpha, model.config.guidance.without) == (0.25, ("position",))
    assert model._sam.config == SAM_SETTINGS["phrasecut"]
    assert model.models.dtype is torch.bfloat16
    clip = tmp_path / "other.npz"
    with pytest.raises(WeightsError, match=f"weights at {clip}, got no such file; check the path"):
        HybridGL.from_pretrained("tiny", clip_weights=clip)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"alfa": 0.5}, r"Expected settings among .*alpha.*, got 'alfa'; choose one of them"),
        ({"alpha": 2}, "Expected alpha from 0 to 1, got 2"),
        ({"alpha": "much"}, r"Expected alpha as --help has it, got 'much' \(.*\); give another"),
        ({"profile": "improved"}, "Expected the profile 'reference' or 'corrected'"),
        ({"fusion_mode": "G3L"}, "Expected fusion_mode as --help has it"),
        ({"without": "sense"}, "Expected without among relationship, coherence, position"),
    ],
)
def test_wrong_settings_are_named(given, words):
    with pytest.raises(SettingError, match=words):
        HybridGL.from_pretrained("tiny", **given)


def test_tiny_weights_are_asked_for_and_say_what_they_know(caplog, monkeypatch, tmp_path):
    monkeypatch.setenv("HYBRIDGL_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError, match=r"run `hybridgl download paper`\.$"):
        HybridGL.from_pretrained(device="cpu")
    assert caplog.messages == []
    model = HybridGL.from_pretrained("tiny", device="cpu")
    assert caplog.messages == [KNOWS_SHAPES_ONLY]
    image = np.full((64, 64, 3), 200, dtype=np.uint8)
    met, unmet = model.segment_all(
        [image, image], ["the Red circle", "a zeppelin in the red circle"]
    )
    assert met.unmet_words == ()
    assert unmet.unmet_words == ("zeppelin",)


def test_red_square_is_found(tiny):
    image = np.full((224, 256, 3), 140, dtype=np.uint8)
    image[60:120, 40:100] = (214, 38, 40)
    result = tiny.segment(image, "the red square on the left")
    expected = np.zeros((224, 256), dtype=bool)
    expected[60:120, 40:100] = True
    assert (result.mask & expected).sum() / (result.mask | expected).sum() > 0.9
    assert result.expression.noun_phrase == "the red square"
    assert result.expression.position is Position.LEFT
    assert result.attention_map.shape == result.features_mask.shape == (224, 256)
    assert result.attention_map.dtype == np.float32


def test_result_is_one_of_the_candidates_with_the_best_score(tiny, scene):
    result = tiny.segment(scene, "the thing on the left")
    best = max(result.candidates, key=lambda candidate: candidate.score)
    np.testing.assert_array_equal(result.mask, best.mask)
    assert result.box == best.box
    assert len(result.candidates) == min(3, len(result.similarities))
    similarities = [candidate.similarity for candidate in result.candidates]
    assert similarities == sorted(result.similarities.tolist(), reverse=True)[:3]
    np.testing.assert_array_equal(result.features_mask, result.candidates[0].mask)
    columns = np.flatnonzero(result.mask.any(axis=0))
    assert result.box[0] == columns[0]
    assert result.box[0] + result.box[2] == columns[-1]


def test_many_expressions_give_what_each_gives_alone_in_their_order(tiny, scene, monkeypatch):
    images = [scene, scene[:, ::-1].copy(), scene]
    expressions = ["the thing on the left", "the red thing", "the thing on the right"]
    computed = []
    score = tiny.score

    def counted(image, sentences, proposals):
        computed.append(list(sentences))
        return score(image, sentences, proposals)

    with monkeypatch.context() as patch:
        patch.setattr(tiny, "score", counted)
        together = tiny.segment_all(images, expressions)
    assert computed == [[expressions[0], expressions[2]], [expressions[1]]]
    for image, expression, result in zip(images, expressions, together, strict=True):
        alone = tiny.segment(image, expression)
        np.testing.assert_array_equal(result.mask, alone.mask)
        np.testing.assert_allclose(result.similarities, alone.similarities, atol=1e-3)
        np.testing.assert_allclose(result.attention_map, alone.attention_map, atol=1e-3)
        assert result.expression == alone.expression


def test_store_gives_the_same_segmentation(tiny, scene, tmp_path):
    store = Store(tmp_path / "store")
    again = Store(store.root)
    plain, *others = (
        HybridGL(tiny.models, tiny.config, some, proposals=tiny._sam.config).segment(
            scene, "the thing on the left"
        )
        for some in (None, store, again)
    )
    for other in others:
        assert_same_segmentation(plain, other)
    assert (
        store.misses == again.hits == dict.fromkeys(("proposals", "parses", "gem", "features"), 1)
    )
    assert not again.misses


def test_image_without_proposals_gives_an_empty_mask(tiny):
    result = tiny.segment(np.full((48, 64, 3), 128, np.uint8), "the red star on the left")
    assert not result.mask.any()
    assert not result.features_mask.any()
    assert (result.box, result.candidates, len(result.similarities)) == (None, (), 0)
    assert result.attention_map.shape == (48, 64)


def test_without_coherence_there_is_no_attention_map(tiny, scene):
    config = dataclasses.replace(tiny.config, guidance=GuidanceConfig(without=("coherence",)))
    model = HybridGL(tiny.models, config, proposals=tiny._sam.config)
    assert model.segment(scene, "the red thing").attention_map is None


@pytest.mark.parametrize("expression", ["", " \t\n", None, 3])
def test_expression_without_words_is_refused_before_any_work(expression):
    model = HybridGL(models_of(Path("gone.npz")), HybridGLConfig())
    with pytest.raises(SettingError, match=r"Expected an expression in words, got .*; say"):
        model.segment_all(["gone.png", "gone.png"], ["a star", expression])


def test_images_and_expressions_must_pair_up(tiny, scene):
    words = "as many images as expressions, or one for all, got 1 and 2; repeat"
    with pytest.raises(HybridGLError, match=words):
        tiny.segment_all([scene], ["a", "b"])
    with pytest.raises(HybridGLError, match="a list of expressions, got the text 'a star'; put"):
        tiny.segment_all([scene], "a star")
    assert tiny.segment_all([], []) == []


def test_one_image_stands_for_all_expressions_and_any_iterable_will_do(tiny, scene, tmp_path):
    expressions = ["the red thing on the left", "the blue thing"]
    pairs = tiny.segment_all([scene, scene], expressions)
    path = tmp_path / "scene.png"
    Image.fromarray(scene).save(path)
    for images in (scene, Image.fromarray(scene), path, str(path), (scene for _ in range(2))):
        results = tiny.segment_all(images, (text for text in expressions))
        for one, other in zip(pairs, results, strict=True):
            np.testing.assert_array_equal(one.mask, other.mask)


# At the limits, with the quarters of an image for proposals


class FourQuarters:
    """Stands for SAM: the quarters of any image that has them, best first, at most ``most``."""

    def __init__(self, most=4):
        self.most = most

    def submit(self, images, _config):
        return [partial(self._propose, image_HW3.shape[:2]) for image_HW3 in images]

    def _propose(self, hw):
        rows, columns = np.indices(hw)
        upper, left = rows < hw[0] // 2, columns < hw[1] // 2
        quarters = [upper & left, upper & ~left, ~upper & left, ~upper & ~left]
        masks = [quarter for quarter in quarters if quarter.any()]
        return proposals_of(np.stack(masks[: self.most]))


def quarters_model(clip_file, most=4):
    models = models_of(clip_file)
    models.__dict__["sam"] = FourQuarters(most)
    return HybridGL(models, HybridGLConfig())


@pytest.fixture(scope="module")
def quarters(clip_file):
    return quarters_model(clip_file)


@pytest.mark.parametrize("hw", [(1, 1), (2, 1), (3, 5), (1, 100), (400, 4)])
def test_extreme_shapes_give_a_result(clip_file, hw):
    """Through SAM itself, whose own preprocessing has to cope with them."""
    pixels_HW3 = np.random.default_rng(0).integers(0, 256, (*hw, 3), dtype=np.uint8)
    result = HybridGL(models_of(clip_file), HybridGLConfig()).segment(
        pixels_HW3, "the red star on the left"
    )
    assert result.mask.shape == result.attention_map.shape == hw
    assert np.isfinite(result.attention_map).all()
    assert np.isfinite(result.similarities).all()


@pytest.mark.parametrize(
    "expression",
    [
        "the red star " * 33,
        "左边的红色圆圈",
        "la estrella roja a la izquierda",
        "🔴⭐ on the left",
        "?!...",
        "{} {0} %s",
        "a\0b",
        "\N{ZERO WIDTH SPACE}",
        "the red\nstar",
    ],
)
def test_odd_expression_gives_a_result(quarters, image, expression):
    result = quarters.segment(image.pixels_HW3, expression)
    assert result.mask.any()
    assert result.expression.noun_phrase
    assert np.isfinite(result.similarities).all()


def test_expression_with_half_a_character_is_refused(quarters, image):
    with pytest.raises(SettingError, match=r"in valid Unicode, got .*; decode it again"):
        quarters.segment(image.pixels_HW3, "red \ud83d star")


def test_long_expression_is_cut_and_counted(clip_file, image, caplog, monkeypatch):
    model = quarters_model(clip_file)
    # Other tests share the loaded CLIP, which says it once and keeps the features of texts.
    monkeypatch.setattr(model.clip, "_truncated", set())
    model.segment(image.pixels_HW3, "the red star that is cut " * 33)
    assert model.clip.num_truncated > 0
    assert "longer than CLIP's 77 tokens" in caplog.text


@pytest.mark.parametrize("most", [1, 2])
def test_fewer_masks_than_candidates(clip_file, image, most):
    result = quarters_model(clip_file, most).segment(image.pixels_HW3, "the star left of the dot")
    assert len(result.candidates) == len(result.similarities) == most
    assert result.mask.any()


def test_constant_attention_map_favours_no_mask(quarters, image, monkeypatch):
    monkeypatch.setattr(
        quarters, "patch_similarity", lambda _, phrases: torch.full((len(phrases), 8, 8), 0.25)
    )
    corrected = HybridGL(
        quarters.models, HybridGLConfig(quirks=ReferenceQuirks.of(Profile.CORRECTED))
    )
    monkeypatch.setattr(corrected, "_sam", quarters._sam)
    monkeypatch.setattr(corrected, "patch_similarity", quarters.patch_similarity)
    result = quarters.segment(image.pixels_HW3, "the star on the left")
    assert not result.attention_map.any()
    np.testing.assert_array_equal(result.mask, result.features_mask)  # quirk Q10
    result = corrected.segment(image.pixels_HW3, "the star on the left")
    assert not result.attention_map.any()
    assert {candidate.coherence for candidate in result.candidates} == {0.0}
    best = max(result.candidates, key=lambda candidate: candidate.relation)
    np.testing.assert_array_equal(result.mask, best.mask)


def test_images_that_differ_in_palette_alone_have_other_scores(quarters, image):
    one = image.pil.quantize(16)
    other = one.copy()
    other.putpalette([255 - value for value in one.getpalette()])
    first, second = quarters.segment_all([one, other], ["the red block"] * 2)
    assert not np.array_equal(first.similarities, second.similarities)
