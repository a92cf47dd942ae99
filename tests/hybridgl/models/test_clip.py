"""CLIP's adapter: files of every kind, texts of every kind, a plain forward against open_clip."""

from __future__ import annotations

import logging
import math

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from hybridgl.errors import WeightsError
from hybridgl.models import clip as module
from hybridgl.models.clip import (
    ClipEncoder,
    class_block,
    embed_patches,
    finish_block,
    qkv_heads,
    residual_block,
)
from tests.clip_oracle import SlowVision
from tests.factories_clip import (
    clip_encoder,
    clip_state,
    resnet_clip_state,
    save_npz,
    save_torchscript,
)

LONG = "cat " * 90


@pytest.fixture(scope="module")
def state():
    return clip_state(blocks=2)


@pytest.fixture(scope="module")
def shared_encoder(state):
    return clip_encoder(state)


@pytest.fixture
def encoder(shared_encoder, monkeypatch):
    monkeypatch.setattr(shared_encoder, "_truncated", set())
    monkeypatch.setattr(shared_encoder, "_text_features", {})
    return shared_encoder


@pytest.fixture(scope="module")
def torchscript(tmp_path_factory, state):
    return save_torchscript(tmp_path_factory.mktemp("clip") / "ViT-tiny.pt", state)


def save_state_dict(path, state):
    torch.save({name: value.half() for name, value in state.items()}, path)
    return path


def assert_same_features(encoder, other):
    texts = ["a red cat", "dogs"]
    assert torch.equal(encoder.encode_texts(texts), other.encode_texts(texts))
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(encoder.visual(image), other.visual(image))


def test_torchscript_archive_of_float16_weights_loads(encoder, torchscript):
    assert_same_features(encoder, ClipEncoder.from_file(torchscript))


def test_plain_state_dict_loads(encoder, state, tmp_path):
    assert_same_features(encoder, ClipEncoder.from_file(save_state_dict(tmp_path / "c.pt", state)))


def test_arrays_of_an_npz_load(encoder, state, tmp_path):
    assert_same_features(encoder, ClipEncoder.from_file(save_npz(tmp_path / "c.npz", state)))


def test_weights_compute_in_float32_and_without_gradients(torchscript):
    visual = ClipEncoder.from_file(torchscript).visual
    assert {p.dtype for p in visual.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in visual.parameters())


def test_geometry_is_read_off_the_weights(encoder):
    assert (encoder.image_size, encoder.grid) == (64, 4)
    assert encoder.logit_scale == pytest.approx(math.exp(4.6015625))
    larger = clip_encoder(clip_state(blocks=1, side=96, patch=32))
    assert (larger.image_size, larger.grid) == (96, 3)


def test_float32_weights_keep_all_their_bits(state, tmp_path):
    exact = {name: value.float() + 1e-6 for name, value in state.items()}
    torch.save(exact, tmp_path / "c.pt")
    encoder = ClipEncoder.from_file(tmp_path / "c.pt")
    assert torch.equal(encoder.visual.proj, exact["visual.proj"])
    assert not torch.equal(encoder.visual.proj, exact["visual.proj"].half().float())


def test_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"CLIP weights at .*gone\.pt, got no such file"):
        ClipEncoder.from_file(tmp_path / "gone.pt")


def test_folder_is_no_file(tmp_path):
    with pytest.raises(WeightsError, match="got no such file"):
        ClipEncoder.from_file(tmp_path)


@pytest.mark.parametrize("kind", ["torchscript", "state dict", "npz"])
@pytest.mark.parametrize("share", [0.1, 0.9])
def test_file_that_is_cut_short_is_refused(torchscript, state, tmp_path, kind, share):
    path = tmp_path / ("c.npz" if kind == "npz" else "c.pt")
    if kind == "torchscript":
        path.write_bytes(torchscript.read_bytes())
    elif kind == "npz":
        save_npz(path, state)
    else:
        save_state_dict(path, state)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(WeightsError, match=r"cannot be read .* cut short\); fetch it again"):
        ClipEncoder.from_file(path)


@pytest.mark.parametrize("name", ["c.pt", "c.npz"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", bytes(1000)])
def test_garbage_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read"):
        ClipEncoder.from_file(path)


def test_pickle_that_calls_a_function_is_refused_and_not_called(tmp_path):
    class Caller:
        def __reduce__(self):
            return (open, (str(tmp_path / "called"), "w"))

    torch.save({"text_projection": Caller()}, tmp_path / "c.pt")
    with pytest.raises(WeightsError, match="cannot be read"):
        ClipEncoder.from_file(tmp_path / "c.pt")
    assert not (tmp_path / "called").exists()


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save({"image_encoder.pos_embed": torch.zeros(3)}, tmp_path / "sam.pth")
    held = r"without text_projection: it holds image_encoder\.pos_embed; give another file with"
    with pytest.raises(WeightsError, match=rf"Expected CLIP weights in .*{held}"):
        ClipEncoder.from_file(tmp_path / "sam.pth")


def test_resnet_has_no_vision_transformer(tmp_path):
    encoder = ClipEncoder.from_file(save_npz(tmp_path / "c.npz", resnet_clip_state()))
    assert encoder.resnet is not None
    assert (encoder.image_size, encoder.grid) == (64, 2)
    with pytest.raises(
        WeightsError, match=r"Expected a CLIP vision transformer, got a ResNet.*B-16"
    ):
        _ = encoder.visual


def test_image_features_of_a_resnet_are_those_of_its_parts():
    encoder = clip_encoder(resnet_clip_state())
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tower = encoder.resnet
    with torch.inference_mode():
        x = tower.stem(images)
        for layer in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
            x = layer(x)
        expected = tower.attnpool(x)
    assert torch.equal(encoder.encode_images(images), expected)


def test_resnet_of_another_size_than_expected_is_refused(tmp_path):
    path = save_npz(tmp_path / "c.npz", resnet_clip_state())
    came = r"got a ResNet of width 16, 1 \+ 1 \+ 1 \+ 1 blocks, embedding 64"
    with pytest.raises(WeightsError, match=rf"Expected CLIP RN50 in .*, {came}"):
        ClipEncoder.from_file(path, architecture="RN50")


def test_weights_without_any_vision_tower_are_refused(state, tmp_path):
    bare = {name: value for name, value in state.items() if not name.startswith("visual.")}
    with pytest.raises(WeightsError, match=r"got something without visual\.conv1\.weight: it"):
        ClipEncoder.from_file(save_npz(tmp_path / "c.npz", bare))


@pytest.mark.parametrize(
    "change",
    [
        {"visual.ln_post.weight": None},
        {"logit_scale": None},
        {"visual.extra": torch.zeros(2)},
        {"visual.proj": torch.zeros(64, 64)},
        {"visual.conv1.weight": torch.zeros(64, 768)},
        {"visual.conv1.weight": torch.zeros(32, 3, 16, 16)},
        {"visual.conv1.weight": torch.zeros(64, 3, 0, 0)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_weights_that_do_not_fit_together_are_refused(state, tmp_path, change):
    changed = {name: value for name, value in {**state, **change}.items() if value is not None}
    refusal = r"whole CLIP in OpenAI's layout in .*, got some that none can be|, got a vision trans"
    with pytest.raises(WeightsError, match=refusal):
        ClipEncoder.from_file(save_npz(tmp_path / "c.npz", changed))


def test_another_size_than_the_expected_architecture_is_refused(state, tmp_path):
    path = save_npz(tmp_path / "c.npz", state)
    came = "got a vision transformer of patch 16, width 128, 2 blocks, embedding 64"
    expected = rf"Expected CLIP ViT-B-16 in .*, {came}"
    with pytest.raises(WeightsError, match=expected):
        ClipEncoder.from_file(path, architecture="ViT-B-16")


def test_another_known_architecture_is_named(tmp_path):
    slim = {
        "text_projection": torch.zeros(1),
        "visual.proj": torch.zeros(768, 512),
        "visual.conv1.weight": torch.zeros(768, 3, 32, 32),
        **{
            f"visual.transformer.resblocks.{index}.ln_1.weight": torch.zeros(1)
            for index in range(12)
        },
    }
    path = save_npz(tmp_path / "c.npz", slim)
    with pytest.raises(
        WeightsError, match=r"CLIP ViT-B-16 in .*, got ViT-B-32; choose --clip_model"
    ):
        ClipEncoder.from_file(path, architecture="ViT-B-16")


def test_repeated_texts_are_computed_once(encoder, monkeypatch):
    batches = []
    encode = encoder._encode
    monkeypatch.setattr(
        encoder, "_encode", lambda texts: batches.append(len(texts)) or encode(texts)
    )
    features = encoder.encode_texts(["a cat", "a dog", "a cat"])
    encoder.encode_texts(["a dog", "a bird"])
    assert batches == [2, 1]
    assert torch.equal(features[0], features[2])
    assert not torch.allclose(features[0], features[1])


def test_size_of_a_text_batch_does_not_matter(encoder, monkeypatch):
    texts = ["a cat", "a dog on the left", "", "two red chairs", "who"]
    together = encoder.encode_texts(texts)
    monkeypatch.setattr(module, "_TEXTS_PER_BATCH", 2)
    monkeypatch.setattr(encoder, "_text_features", {})
    torch.testing.assert_close(encoder.encode_texts(texts), together, atol=1e-5, rtol=0)


def test_features_are_those_of_open_clip(encoder):
    texts = ["a cat", "Dogs"]
    tokens = open_clip.get_tokenizer("ViT-B-16")(texts)
    assert torch.equal(encoder.tokenize(texts), tokens)
    expected = encoder._model.encode_text(tokens)
    torch.testing.assert_close(encoder.encode_texts(texts), expected, atol=1e-5, rtol=0)


def test_texts_are_tokenised_as_start_words_end_padding(encoder):
    tokens = encoder.tokenize(["a photo of a cat."])
    assert tokens.shape == (1, 77)
    assert tokens[0, :9].tolist() == [49406, 320, 1125, 539, 320, 2368, 269, 49407, 0]


def test_no_texts_give_no_features(encoder):
    assert encoder.encode_texts([]).shape == (0, 64)


@pytest.mark.parametrize("text", ["", " ", "猫は左", "🐈⬅️", "naïve café", "&amp; <b>"])
def test_odd_texts_have_finite_features(encoder, text):
    assert encoder.encode_texts([text]).isfinite().all()


def test_long_text_is_cut_at_77_tokens(encoder):
    cut = "cat " * 75
    assert torch.equal(encoder.encode_texts([LONG]), encoder.encode_texts([cut]))
    assert encoder.tokenize([LONG])[0, -1] == 49407


@pytest.mark.parametrize(("words", "truncated"), [(75, False), (76, True)])
def test_text_that_fills_the_context_is_not_truncated(encoder, words, truncated):
    assert encoder.is_truncated("cat " * words) == truncated
    encoder.encode_texts(["cat " * words])
    assert encoder.num_truncated == truncated


def test_truncation_warns_once_and_is_counted(encoder, caplog):
    with caplog.at_level(logging.WARNING):
        encoder.encode_texts([LONG, LONG, LONG + "dog", "a cat"])
        encoder.encode_texts([LONG, LONG + "chair"])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "longer than CLIP's 77 tokens" in caplog.text
    assert encoder.num_truncated == 3


@pytest.mark.parametrize("side", [64, 128, 32])
def test_patches_enter_the_first_block_as_the_formula_says(encoder, state, side):
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    tokens = embed_patches(encoder.visual, images)
    slow = SlowVision(state)
    for image, got in zip(images, tokens, strict=True):
        torch.testing.assert_close(got, slow.embed(image).float(), atol=1e-5, rtol=0)


def test_heads_are_split_as_the_formula_says(encoder, state):
    block = encoder.visual.transformer.resblocks[1]
    normed = torch.randn(1, 17, 128, generator=torch.Generator().manual_seed(1))
    expected = SlowVision(state).heads(1, normed[0].double())
    for got, heads in zip(qkv_heads(block, normed), expected, strict=True):
        assert got.shape == (1, 2, 17, 64)
        torch.testing.assert_close(got[0], torch.stack(heads).float(), atol=1e-5, rtol=0)


def test_whole_tower_equals_the_formula(encoder, state):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    slow = SlowVision(state)
    for image, got in zip(images, encoder.visual(images), strict=True):
        torch.testing.assert_close(got, slow.encode(image).float(), atol=1e-5, rtol=0)


LENGTHS = [*range(19), 30, 31, 38, 39, 40, 70, 71, 72, 73, 74, 75, 76, 77, 90]
"""Words of a text, each a token; 75 fill the context."""


def texts_of_all_lengths():
    words = ["cat", "dog", "left", "red", "two"]
    return [" ".join(words[(n + i) % 5] for i in range(n)) for n in LENGTHS]


def assert_features_of_open_clip(encoder, texts):
    with torch.inference_mode():
        expected = encoder._model.encode_text(encoder.tokenize(texts))
    got = encoder.encode_texts(texts)
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_texts_of_every_length_get_open_clips_features_at_the_whole_context(encoder):
    texts = texts_of_all_lengths()
    assert encoder.is_truncated(texts[-1])
    assert_features_of_open_clip(encoder, texts)


@pytest.mark.parametrize("number", range(0, len(LENGTHS), 3))
def test_a_text_alone_gets_open_clips_feature(encoder, number):
    assert_features_of_open_clip(encoder, texts_of_all_lengths()[number : number + 1])


def test_texts_in_any_order_and_more_than_once_get_open_clips_features(encoder):
    texts = texts_of_all_lengths()
    order = torch.randperm(3 * len(texts), generator=torch.Generator().manual_seed(0))
    shuffled = [texts[index % len(texts)] for index in order.tolist()]
    assert_features_of_open_clip(encoder, shuffled)
    assert_features_of_open_clip(encoder, shuffled[::-1])
    assert_features_of_open_clip(encoder, [*shuffled[:5], "a new one", *shuffled[5:9]])


@pytest.mark.parametrize("per_batch", [1, 2, 3, 5])
def test_texts_in_batches_get_open_clips_features(encoder, monkeypatch, per_batch):
    monkeypatch.setattr(module, "_TEXTS_PER_BATCH", per_batch)
    assert_features_of_open_clip(encoder, texts_of_all_lengths()[::-1])


def test_words_that_mean_the_start_or_end_of_a_text_get_open_clips_features(encoder):
    assert_features_of_open_clip(
        encoder,
        ["a <end_of_text> cat", "<start_of_text>", "<end_of_text>", "cat <start_of_text> dog"],
    )


def test_kept_features_are_not_changed_by_who_gets_them(encoder):
    first = encoder.encode_texts(["a cat", "a dog"])
    expected = first.clone()
    with torch.inference_mode():
        first.zero_()
    assert torch.equal(encoder.encode_texts(["a cat", "a dog"]), expected)


def test_features_are_forgotten_where_too_many_are_kept_and_come_again(encoder, monkeypatch):
    monkeypatch.setattr(module, "_MOST_KEPT_TEXTS", 3)
    texts = texts_of_all_lengths()[:8]
    for start in range(0, 8, 2):
        assert_features_of_open_clip(encoder, [texts[0], *texts[start : start + 2]])
        assert len(encoder._text_features) <= 3 + 3
    assert_features_of_open_clip(encoder, texts)


@pytest.mark.parametrize("size", [1, 3, 9])
def test_image_features_are_those_of_open_clip(encoder, size):
    images = torch.randn(size, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = encoder._model.encode_image(images)
    torch.testing.assert_close(encoder.encode_images(images), expected, atol=1e-5, rtol=0)


def test_no_images_have_no_features(encoder):
    assert encoder.encode_images(torch.zeros(0, 3, 64, 64)).shape == (0, 64)


@pytest.fixture
def tokens():
    return torch.randn(3, 17, 128, generator=torch.Generator().manual_seed(3))


def test_a_residual_block_is_that_of_open_clip(encoder, tokens):
    block = encoder.visual.transformer.resblocks[0]
    torch.testing.assert_close(residual_block(block, tokens), block(tokens), atol=1e-5, rtol=0)


def test_a_masked_residual_block_is_that_of_open_clip(encoder, tokens):
    block = encoder.visual.transformer.resblocks[0]
    causal = torch.ones(17, 17, dtype=torch.bool).tril()
    added = torch.zeros(17, 17).masked_fill(~causal, float("-inf"))
    torch.testing.assert_close(
        residual_block(block, tokens, causal), block(tokens, attn_mask=added), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("masked", [True, False])
def test_the_class_token_alone_is_the_first_of_its_block(encoder, tokens, masked):
    block = encoder.visual.transformer.resblocks[1]
    visible = torch.rand(3, 1, 1, 17, generator=torch.Generator().manual_seed(4)) < 0.5
    visible[..., 0] = True
    mask = visible if masked else None

    got = class_block(block, tokens, mask)

    assert got.dtype is torch.float32
    whole = residual_block(block, tokens, mask)[:, 0]
    torch.testing.assert_close(got, whole, atol=1e-5, rtol=0)
    unmasked = residual_block(block, tokens)[:, 0]
    assert ((got - unmasked).abs().max() > 0.01) == masked


def test_parts_of_a_block_leave_their_tokens_as_they_are(encoder, tokens):
    block, before = encoder.visual.transformer.resblocks[0], tokens.clone()
    heads = qkv_heads(block, tokens)
    kept = [part.clone() for part in heads]
    attended = torch.nn.functional.scaled_dot_product_attention(*heads)
    finish_block(block, tokens, attended)
    residual_block(block, tokens)
    class_block(block, tokens)
    assert torch.equal(tokens, before)
    assert all(torch.equal(*pair) for pair in zip(heads, kept, strict=True))


# The activation.


def clip_of_open_clip(state, vision, *, quick_gelu):
    """Open_clip's own CLIP with these weights."""
    text = open_clip.CLIPTextCfg(width=64, heads=1, layers=2)
    model = open_clip.CLIP(64, vision, text, quick_gelu=quick_gelu)
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("activation", ["gelu", "quickgelu"])
@pytest.mark.parametrize("tower", ["transformer", "ResNet"])
def test_features_are_those_of_open_clip_with_either_activation(activation, tower):
    if tower == "ResNet":
        state = resnet_clip_state()
        vision = open_clip.CLIPVisionCfg(layers=(1, 1, 1, 1), width=16, image_size=64)
    else:
        state = clip_state(blocks=2)
        vision = open_clip.CLIPVisionCfg(layers=2, width=128, patch_size=16, image_size=64)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    texts = ["a cat", "the red chair on the left"]
    tokens = open_clip.get_tokenizer("ViT-B-32")(texts)

    encoder = ClipEncoder(state, torch.device("cpu"), activation)

    with torch.inference_mode():
        same, other = (
            clip_of_open_clip(state, vision, quick_gelu=quick)
            for quick in (activation == "quickgelu", activation != "quickgelu")
        )
        got_texts, got_images = encoder.encode_texts(texts), encoder.encode_images(images)
        torch.testing.assert_close(got_texts, same.encode_text(tokens), atol=1e-5, rtol=0)
        torch.testing.assert_close(got_images, same.encode_image(images), atol=1e-5, rtol=0)
        assert (got_texts - other.encode_text(tokens)).abs().max() > 0.001
        moved = (got_images - other.encode_image(images)).abs().max() > 0.001
        assert moved == (tower == "transformer"), "a ResNet has no such activation"


def test_parts_of_blocks_have_the_activation_of_their_block(state, tokens):
    encoder = ClipEncoder(state, torch.device("cpu"), "gelu")
    block = encoder.visual.transformer.resblocks[1]
    expected = block(tokens)
    torch.testing.assert_close(residual_block(block, tokens), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(class_block(block, tokens), expected[:, 0], atol=1e-5, rtol=0)
    heads = qkv_heads(block, block.ln_1(tokens))
    attended = torch.nn.functional.scaled_dot_product_attention(*heads)
    torch.testing.assert_close(finish_block(block, tokens, attended), expected, atol=1e-5, rtol=0)


def test_activation_of_a_file_is_that_which_is_asked_for(state, tmp_path):
    path = save_npz(tmp_path / "c.npz", state)
    gelu, quick = (ClipEncoder.from_file(path, activation=a) for a in ("gelu", "quickgelu"))
    assert_same_features(gelu, ClipEncoder(state, torch.device("cpu"), "gelu"))
    assert_same_features(quick, ClipEncoder.from_file(path))
    assert not torch.equal(gelu.encode_texts(["a cat"]), quick.encode_texts(["a cat"]))
    named = ClipEncoder.from_file(save_npz(tmp_path / "laion2b.npz", state))
    assert torch.equal(named.encode_texts(["a dog"]), gelu.encode_texts(["a dog"]))


# Weights that fit, and are of a model that computes otherwise.


@pytest.mark.parametrize(
    ("changes", "received"),
    [
        ({"width": 1280}, "width 1280, 1 blocks, embedding 64, whose heads have 80; give ViT-B"),
        ({"width": 1408}, "whose heads have 88"),
        ({"width": 96}, "width 96, 1 blocks, embedding 64, and texts of width 64"),
        ({"text_width": 96}, "and texts of width 96"),
    ],
    ids=str,
)
def test_heads_of_another_width_are_refused(tmp_path, changes, received):
    path = save_npz(tmp_path / "c.npz", clip_state(**{"blocks": 1, "text_blocks": 1} | changes))
    with pytest.raises(WeightsError, match=f"attention heads of 64 channels .*{received}"):
        ClipEncoder.from_file(path)


def test_another_vocabulary_is_refused(state, tmp_path):
    other = {**state, "token_embedding.weight": torch.zeros(32000, 64)}
    with pytest.raises(WeightsError, match="got one of 32,000 tokens, which has another tokenizer"):
        ClipEncoder.from_file(save_npz(tmp_path / "c.npz", other))


# Files of training programs; what kinds there are, see tests/hybridgl/weights/test_states.py.


def test_checkpoint_of_a_training_program_loads(encoder, state, tmp_path):
    below = {f"module.{name}": value for name, value in state.items()}
    torch.save({"epoch": 3, "state_dict": below, "lr": np.float64(1e-4)}, tmp_path / "c.pt")
    assert_same_features(encoder, ClipEncoder.from_file(tmp_path / "c.pt"))


def test_safetensors_load(encoder, state, tmp_path):
    save_file(state, tmp_path / "open_clip_model.safetensors")
    assert_same_features(encoder, ClipEncoder.from_file(tmp_path / "open_clip_model.safetensors"))


def test_of_two_clips_that_of_the_architecture_is_taken(state, tmp_path, monkeypatch):
    monkeypatch.setitem(module._ARCHITECTURES, "toy", module._Tower.of(state))
    student = {f"student.{name}": value for name, value in state.items()}
    teacher = {f"teacher.{name}": value for name, value in clip_state(blocks=1).items()}
    torch.save(student | teacher, tmp_path / "c.pt")
    encoder = ClipEncoder.from_file(tmp_path / "c.pt", architecture="toy")
    assert len(encoder.visual.transformer.resblocks) == 2
    with pytest.raises(WeightsError, match=r"got 2 of them: student\.\*, teacher\.\*; save the"):
        ClipEncoder.from_file(tmp_path / "c.pt")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["text_model.encoder.layers.0.mlp.fc1.weight"], "layout of Hugging Face's transformers"),
        (["visual.conv1.weight", "text.transformer.resblocks.0.ln_1.bias"], "text tower of anoth"),
        (["image_encoder.patch_embed.proj.weight"], "got a SAM; give another file with --clip"),
    ],
)
def test_layout_of_another_clip_is_named(tmp_path, names, said):
    torch.save({name: torch.zeros(1) for name in names}, tmp_path / "c.pt")
    with pytest.raises(WeightsError, match=f"Expected CLIP weights in .*{said}"):
        ClipEncoder.from_file(tmp_path / "c.pt")
