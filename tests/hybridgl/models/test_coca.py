"""CoCa against open_clip's own modules, called whole: small ones, random weights."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.coca_model import CoCa, MultimodalCfg

from hybridgl.errors import WeightsError
from hybridgl.models.coca import Coca, CocaHeads, CocaScorer

HEADS = CocaHeads(vision_width=16, text_width=16, pooler_heads=2)


@pytest.fixture(scope="module")
def model():
    """Open_clip's model, with random weights wherever it has none of its own."""
    torch.manual_seed(0)
    text = {"context_length": 40, "vocab_size": 90, "width": 32, "heads": 2, "layers": 2}
    made = CoCa(
        32,
        MultimodalCfg(**text),
        open_clip.CLIPTextCfg(**text, embed_cls=True, output_tokens=True),
        open_clip.CLIPVisionCfg(
            layers=2,
            width=48,
            head_width=16,
            patch_size=8,
            image_size=32,
            attentional_pool=True,
            attn_pooler_queries=5,
            attn_pooler_heads=2,
            output_tokens=True,
        ),
    )
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def coca(model):
    return Coca(model.state_dict(), HEADS)


@pytest.fixture(scope="module")
def crops():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def whole_logits(model, tokens_UT, image_tokens_UTD):
    """Logits after the last token, from open_clip's modules over all positions."""
    length = tokens_UT.shape[1]
    x_UTD = model.text.token_embedding(tokens_UT) + model.text.positional_embedding[:length]
    mask_TT = torch.full((length, length), -torch.inf).triu(1)
    for block in model.text.transformer.resblocks:
        x_UTD = block(x_UTD, attn_mask=mask_TT)
    return model.text_decoder(image_tokens_UTD, x_UTD)[:, -1]


def test_images_have_the_tokens_and_latents_of_open_clip(model, coca, crops):
    images = coca.encode_images(crops)
    pooled, tokens = model.visual(crops)
    torch.testing.assert_close(images.tokens_NTD, tokens, atol=1e-5, rtol=0)
    torch.testing.assert_close(images.latents_NE, F.normalize(pooled, dim=-1), atol=1e-5, rtol=0)
    assert (coca.image_size, images.tokens_NTD.shape[1]) == (32, 4)


def test_each_image_alone_gives_the_logits_of_whole_texts(model, coca, crops):
    images = coca.encode_images(crops)
    scorer = CocaScorer(coca, images, together=False)
    tokens_NT = torch.tensor([[7, 1, 0, 4], [7, 5, 5, 0], [7, 2, 3, 1]])
    for length in range(1, 5):
        hidden_N1D = scorer.extend(torch.arange(3), tokens_NT[:, length - 1])
        expected = whole_logits(model, tokens_NT[:, :length], images.tokens_NTD)
        torch.testing.assert_close(scorer.project(hidden_N1D[:, 0]), expected, atol=1e-4, rtol=0)


def test_prefixes_that_branch_swap_and_end_are_read_with_all_images(model, coca, crops):
    images = coca.encode_images(crops)
    scorer = CocaScorer(coca, images, together=True)
    texts = [[7]]
    for parents, tokens in (
        ([0], None),
        ([0, 0, 0], [1, 2, 3]),
        ([2, 0, 0, 1], [4, 5, 6, 4]),
        ([0, 1, 2, 3], [8, 8, 9, 8]),
        ([3, 1], [2, 2]),
    ):
        if tokens is not None:
            texts = [[*texts[p], t] for p, t in zip(parents, tokens, strict=True)]
        hidden_UND = scorer.extend(torch.tensor(parents), torch.tensor([one[-1] for one in texts]))
        for place, text in enumerate(texts):
            expected = whole_logits(model, torch.tensor([text] * 3), images.tokens_NTD)
            found = scorer.project(hidden_UND[place])
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_weights_come_from_a_file_and_others_are_refused(model, coca, crops, tmp_path):
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    path, cut = tmp_path / "coca.npz", tmp_path / "short.npz"
    np.savez(path, **state)
    again = Coca.from_file(path, heads=HEADS)
    images = (one.encode_images(crops) for one in (coca, again))
    torch.testing.assert_close(*(one.latents_NE for one in images), atol=1e-5, rtol=0)
    with pytest.raises(WeightsError, match=r"Expected CoCa weights at .*, got no such file; give"):
        Coca.from_file(tmp_path / "none.pt")
    np.savez(cut, **{name: array for name, array in state.items() if "attn.1." not in name})
    with pytest.raises(WeightsError, match="Expected the weights of a whole CoCa in"):
        Coca.from_file(cut, heads=HEADS)
