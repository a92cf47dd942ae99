from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hybridgl.models.clip import ClipEncoder
from refer.shapes.grammar import Expression
from refer.shapes.scene import COLORS, SHAPES, SIZES
from refer.shapes.world import training_scene
from scripts.tiny_weights import train_clip as trainer
from scripts.tiny_weights.clip_batches import (
    BACKGROUND_PATCH,
    PATCH,
    SIDE,
    UNUSED,
    GemScenes,
    Phase,
    ViewMix,
    global_local_crops,
    region_views,
    sample_batch,
)
from scripts.tiny_weights.clip_data import (
    ANY,
    Captions,
    attributes_of,
    described,
    fits_TN,
    noun_phrase,
    open_pool,
)


@pytest.fixture(scope="module")
def captions():
    return Captions(0, 3000)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return open_pool(tmp_path_factory.mktemp("pool"), 0, 4)


def phrase(words, heads, deps):
    blank = ("X",) * len(words)
    return Expression("attributes", " ".join(words), words, heads, deps, blank, blank)


def test_description_reads_the_first_noun_phrase_only():
    left_of_ring = phrase(
        ("small", "violet", "disc", "left", "of", "red", "ring"),
        (2, 2, 2, 2, 3, 6, 4),
        ("amod", "amod", "ROOT", "advmod", "prep", "amod", "pobj"),
    )
    assert described(left_of_ring) == attributes_of("circle", "purple", "small")
    assert noun_phrase(left_of_ring) == ("small", "violet", "disc")


def test_description_of_a_dot_is_a_small_circle():
    dot = phrase(("the", "dot"), (1, 1), ("det", "ROOT"))
    assert described(dot) == attributes_of("circle", None, "small")


def test_description_ignores_position_and_comparison():
    thing = phrase(("left", "bigger", "thing"), (2, 2, 2), ("amod", "amod", "ROOT"))
    assert described(thing) == (ANY, ANY, ANY)


def test_description_of_a_foreign_noun_is_none():
    assert described(phrase(("red", "car"), (1, 1), ("amod", "ROOT"))) is None


def test_captions_tell_only_what_is_true(captions):
    rng = np.random.default_rng(0)
    item = attributes_of("ring", "green", "large")
    for _ in range(50):
        told, words = captions.sample(rng, item)
        assert all(tells in (ANY, true) for tells, true in zip(told, item, strict=True))
        assert told != (ANY, ANY, ANY)
        assert not {"red", "star", "tiny"} & set(words[:2])


def test_opposite_captions_differ_in_one_attribute(captions):
    rng = np.random.default_rng(4)
    item = attributes_of("ring", "green", "large")
    for _ in range(50):
        (true, _), (wrong, _) = captions.sample_opposites(rng, item)
        assert all(tells in (ANY, value) for tells, value in zip(true, item, strict=True))
        assert sum(a != b for a, b in zip(true, wrong, strict=True)) == 1
        assert not fits_TN(torch.tensor([wrong]), torch.tensor([item])).any()


def test_compact_tokens_are_those_of_the_tokenizer(captions):
    import open_clip

    tokenizer = open_clip.SimpleTokenizer(context_length=77)
    rng = np.random.default_rng(1)
    for _ in range(50):
        _, words = captions.sample(rng, (3, 4, 0))
        rows = captions.tokens_TL([words])[0].tolist()
        expected = [token for token in tokenizer([" ".join(words)])[0].tolist() if token]
        assert [captions.token_ids[row] for row in rows] == expected


def test_phrase_fits_regions_that_have_all_it_tells():
    told_T3 = torch.tensor([[1, ANY, ANY], [1, 2, ANY], [ANY, 2, 0]])
    regions_N3 = torch.tensor([[1, 2, 1], [1, 3, 0], [4, 2, 0]])
    expected = [[True, True, False], [True, False, False], [False, False, True]]
    assert fits_TN(told_T3, regions_N3).tolist() == expected


def test_pool_holds_the_training_stream(pool):
    scene = training_scene(0, 2)
    assert (pool.images_NHW3[2] == scene.image_HW3).all()
    assert (pool.labels_NHW[2] == scene.labels_HW).all()
    assert pool.num_objects(2) == len(scene.objects)
    shape, color, size = pool.attributes_NK3[2, 0]
    assert (list(SHAPES)[shape], list(COLORS)[color], list(SIZES)[size]) == (
        scene.objects[0].shape,
        scene.objects[0].color,
        scene.objects[0].size,
    )


def test_crop_leaves_out_the_last_row_and_column_of_the_box():
    image_3HW = torch.zeros(3, 12, 12, dtype=torch.uint8)
    mask_HW = torch.zeros(12, 12, dtype=torch.bool)
    mask_HW[2:7, 3:8] = True
    image_3HW[:, 6], image_3HW[:, :, 7] = 255, 255
    crop_3RR = global_local_crops(image_3HW, mask_HW[None], 8)[0]
    assert torch.allclose(crop_3RR[0], torch.full((8, 8), -0.485 / 0.229))


def test_windows_run_from_the_box_to_the_whole_image(pool):
    scene = training_scene(0, 1)
    shares = {
        reach: region_views(
            pool,
            1,
            range(len(scene.objects)),
            np.random.default_rng(0),
            ViewMix(crop_share=0.0, reach=reach),
        ).masks_N1RR.mean(dim=(1, 2, 3))
        for reach in (0.0, 0.5, math.inf)
    }
    covered = torch.tensor([scene.mask_HW(i).mean() for i in range(len(scene.objects))])
    assert torch.allclose(shares[math.inf], covered.float(), atol=0.01)
    assert (shares[math.inf] < shares[0.5]).all()
    assert (shares[0.5] < shares[0.0]).all()
    assert (shares[0.0] > 0.2).all()


def test_contrast_equals_a_slow_loop():
    rng = np.random.default_rng(2)
    scores_AB = rng.normal(size=(4, 5))
    positive_AB = np.array([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    rows = []
    for scores, positive in zip(scores_AB, positive_AB, strict=True):
        logs = [score - np.log(sum(np.exp(scores))) for score in scores]
        chosen = [log for log, is_positive in zip(logs, positive, strict=True) if is_positive]
        if chosen:
            rows.append(-sum(chosen) / len(chosen))
    found = trainer.contrast(torch.tensor(scores_AB), torch.tensor(positive_AB, dtype=torch.bool))
    assert float(found) == pytest.approx(np.mean(rows))


def test_attention_map_loss_prefers_the_owners_patches():
    scenes = GemScenes(
        images_B3RR=torch.empty(0),
        owners_BP=torch.tensor([[0, 1, BACKGROUND_PATCH, UNUSED]]),
        attributes_K3=torch.tensor([[0, 0, 0], [1, 1, 0]]),
        told_T3=torch.tensor([[0, ANY, ANY], [1, ANY, ANY]]),
        tokens_TL=torch.empty(0),
        scene_of_T=torch.tensor([0, 0]),
    )
    texts_TE = torch.eye(4)[:2]
    right_BPE, swapped_BPE = torch.eye(4)[None, [0, 1, 2, 0]], torch.eye(4)[None, [1, 0, 2, 0]]
    scale = torch.tensor(10.0)
    right = trainer.gem_loss(right_BPE, texts_TE, scale, scenes)
    swapped = trainer.gem_loss(swapped_BPE, texts_TE, scale, scenes)
    assert float(right) < 0.01 < 5 < float(swapped)


def test_exported_file_scores_texts_as_the_trained_model(captions, tmp_path):
    torch.manual_seed(0)
    learner = trainer.Learner(len(captions.token_ids)).eval()
    trainer.export(learner.clip, captions.token_ids, tmp_path / "clip.npz")
    words = ("the", "small", "red", "circle", "left", "of", "the", "ring")
    with torch.inference_mode():
        trained_TE = learner.text_features(captions.tokens_TL([words, words[:4]]))
    encoder = ClipEncoder.from_file(tmp_path / "clip.npz")
    exported_TE = encoder.encode_texts([" ".join(words), " ".join(words[:4])])
    assert (F.cosine_similarity(trained_TE, exported_TE) > 0.9999).all()
    assert encoder.image_size == SIDE


def test_second_phase_draws_masked_regions_and_whole_scenes(pool, captions):
    batch = sample_batch(
        pool, captions, np.random.default_rng(3), replace(TINY, masked_scenes=1, gem_scenes=1), 0.5
    )
    assert batch.masked is not None
    assert batch.gem is not None
    single, masked = len(batch.views.images_N3RR), len(batch.masked.local_N3RR)
    assert len(batch.attributes_N3) == single + masked
    assert batch.gem.images_B3RR.shape == (1, 3, 2 * SIDE, 2 * SIDE)
    assert batch.gem.owners_BP.shape == (1, (2 * SIDE // PATCH) ** 2)
    assert int(batch.gem.owners_BP.max()) < len(batch.gem.attributes_K3)


TINY = Phase(steps=2, crop_shares=(0.5, 0.5), scenes=1)


@pytest.mark.slow
def test_interrupted_training_ends_with_the_same_weights(pool, tmp_path, monkeypatch):
    first = trainer.Round(learning_rate=1e-3, warmup=1, phases=(TINY,))
    second = replace(first, phases=(replace(TINY, masked_scenes=1, gem_scenes=1),))
    monkeypatch.setattr(trainer, "ROUNDS", (first, second))
    monkeypatch.setattr(trainer, "NUM_PHRASES", 3000)
    monkeypatch.setattr(trainer, "CHECKPOINT_EVERY", 1)
    trainer.train(tmp_path / "whole", 0, 4, tmp_path / "whole.npz")
    step = trainer.train_step

    def interrupted(*arguments):
        if arguments[-1] == 3:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(trainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(tmp_path / "parts", 0, 4, tmp_path / "parts.npz")
    monkeypatch.setattr(trainer, "train_step", step)
    trainer.train(tmp_path / "parts", 0, 4, tmp_path / "parts.npz")
    with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "parts.npz") as parts:
        assert all((whole[name] == parts[name]).all() for name in whole.files)
