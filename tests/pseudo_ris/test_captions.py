"""Captions on tables of logits: quirks both ways, slow oracles, and what must not matter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hybridgl.config import Profile
from pseudo_ris.captions import (
    END,
    START,
    TRUNCATIONS,
    Truncation,
    beam_search,
    caption_texts,
    drawn_by_generator,
    drawn_by_numbers,
    other_weights,
    sample_chains,
    step_probabilities,
)
from pseudo_ris.config import PseudoQuirks

REFERENCE, CORRECTED = (PseudoQuirks.of(profile) for profile in Profile)
IDS = [0, 320, 736, 2368, 1929, 518, END]
VOCABULARY = 49408


class Table:
    """Scores tokens by the last one alone: a table for every image."""

    def __init__(self, seed, images):
        generator = torch.Generator().manual_seed(seed)
        count = max(max(some) for some in images) + 1
        self.table_NCC = 2 * torch.randn(count, len(IDS), len(IDS), generator=generator)
        self.images = images
        self.calls = []

    def extend(self, parents_U, tokens_U):
        self.calls.append(len(parents_U))
        self.images = [self.images[parent] for parent in parents_U.tolist()]
        columns = [IDS.index(t) if t in IDS else -1 for t in tokens_U.tolist()]
        rows = zip(self.images, columns, strict=True)
        return torch.stack([self.table_NCC[images, column] for images, column in rows])

    def project(self, hidden_AC):
        logits_AV = torch.full((len(hidden_AC), VOCABULARY), -60.0)
        logits_AV[:, IDS] = hidden_AC
        return logits_AV


def sampled(count, quirks=REFERENCE, seed=3, **how):
    generator = np.random.default_rng(seed)
    uniform_AT = generator.random((count * len(TRUNCATIONS), 30))
    similarity_NN = torch.from_numpy(generator.uniform(-0.2, 1, (count, count))).float()
    table = Table(seed, [list(range(count))])
    draw = drawn_by_numbers(uniform_AT)
    return sample_chains(table, similarity_NN, TRUNCATIONS, draw, quirks, **how), table


def test_chains_begin_and_end_and_have_four_words_at_least():
    tokens_AT, _ = sampled(4, CORRECTED)
    assert (tokens_AT[:, 0] == START).all()
    assert not (tokens_AT[:, :5] == END).any()
    assert (tokens_AT == END).sum(axis=1).tolist() == [1] * 40


@pytest.mark.parametrize("quirks", [REFERENCE, CORRECTED])
def test_a_part_of_the_chains_gives_what_all_give(quirks):
    whole, _ = sampled(4, quirks)
    for rows in ([0], [5, 17, 39], list(range(20, 40))):
        part, _ = sampled(4, quirks, rows=rows)
        length = part.shape[1]
        np.testing.assert_array_equal(part, whole[rows, :length])
        assert not whole[rows, length:].any()


def test_prefixes_that_chains_share_are_computed_once():
    tokens_AT, table = sampled(4)
    for length, calls in enumerate(table.calls, start=1):
        prefixes = {tuple(row[:length]) for row in tokens_AT if row[length - 1] not in (0, END)}
        assert calls == len(prefixes)
    assert table.calls[0] == 1


def test_permuted_masks_permute_their_captions():
    generator = np.random.default_rng(5)
    uniform = generator.random((1, 10, 4, 30))
    similarity = generator.uniform(0, 1, (4, 4))
    order = [2, 0, 3, 1]

    def captions(numbers, alike, table):
        draw = drawn_by_numbers(numbers.reshape(40, 30))
        alike = torch.from_numpy(alike.copy()).float()
        return sample_chains(table, alike, TRUNCATIONS, draw, CORRECTED)

    plain = captions(uniform[0], similarity, Table(7, [[0, 1, 2, 3]]))
    permuted = captions(uniform[0][:, order], similarity[np.ix_(order, order)], Table(7, [order]))
    rows = np.arange(40).reshape(10, 4)[:, order].ravel()
    np.testing.assert_array_equal(permuted, plain[rows])


def test_plain_sampling_asks_nothing_of_the_others():
    alone = other_weights(torch.ones(1, 1), REFERENCE)
    assert alone is None
    distinct, plain = (sampled(4, CORRECTED, distinctive=d)[0] for d in (True, False))
    assert not np.array_equal(distinct, plain)


def test_more_than_30_masks_are_sampled_plainly_by_quirk_p15():
    similarity_NN = torch.from_numpy(np.random.default_rng(0).uniform(0.1, 1, (33, 33))).float()
    assert other_weights(similarity_NN, REFERENCE) is None
    weights_NN = other_weights(similarity_NN, CORRECTED)
    assert (weights_NN > 0).sum(dim=1).tolist() == [30] * 33
    assert torch.allclose(weights_NN[weights_NN > 0], similarity_NN[weights_NN > 0] / 30)


def test_unlike_masks_attract_by_quirk_p17():
    similarity_NN = torch.tensor([[1.0, -0.5], [-0.5, 1.0]])
    assert other_weights(similarity_NN, REFERENCE).tolist() == [[0, -0.5], [-0.5, 0]]
    assert other_weights(similarity_NN, CORRECTED).tolist() == [[0, 0], [0, 0]]


def test_the_end_keeps_its_probability_and_the_others_are_rescaled_but_for_quirk_p16():
    logits_1V = torch.full((1, VOCABULARY), -60.0)
    logits_1V[0, [320, 736, END]] = torch.tensor([1.0, 0.5, 0.0])
    others_1V = torch.zeros_like(logits_1V)
    others_1V[0, 320] = 3.0
    plain = logits_1V.softmax(dim=1)[0, END]
    for quirks, total in ((REFERENCE, None), (CORRECTED, 1.0)):
        found = step_probabilities(logits_1V, others_1V, [Truncation()], 6, quirks)[0]
        assert found[END] == pytest.approx(float(plain), abs=1e-6)
        assert found[320] < found[736]
        assert total is None or found.sum() == pytest.approx(total, abs=1e-5)
    assert step_probabilities(logits_1V, others_1V, [Truncation()], 4, CORRECTED)[0, END] == 0


@pytest.mark.parametrize("top_p", [0.1, 0.4, 0.8, 0.999])
def test_truncation_by_probability_keeps_the_fewest_tokens_that_reach_it(top_p):
    logits_AV = 3 * torch.randn(6, 3000, generator=torch.Generator().manual_seed(0))
    kept_AV = Truncation(top_p=top_p).kept(logits_AV)
    for logits_V, kept_V in zip(logits_AV, kept_AV, strict=True):
        shares, order = logits_V.double().softmax(dim=0).sort(descending=True)
        needed = int((shares.cumsum(dim=0) < top_p).sum()) + 1
        assert set(order[:needed].tolist()) == set(kept_V.nonzero()[:, 0].tolist())


def test_truncation_by_number_keeps_ties():
    logits_1V = torch.tensor([[3.0, 1.0, 2.0, 2.0, 0.0]])
    assert Truncation(top_k=2).kept(logits_1V).tolist() == [[True, False, True, True, False]]


def test_token_zero_ends_a_caption_by_quirk_p20():
    released, _ = sampled(3, replace(CORRECTED, token_zero_ends=True), seed=11)
    corrected, _ = sampled(3, CORRECTED, seed=11)
    zeros = [0 in row[row != END][:4] for row in released]
    assert any(zeros)
    for row in corrected:
        end = row.tolist().index(END)
        assert not row[end + 1 :].any()
    texts = caption_texts(released, REFERENCE)
    assert any(text.endswith("!!") for text in texts)
    assert all(text == text.strip() for text in caption_texts(corrected, CORRECTED))


def test_draws_by_number_are_the_first_token_whose_share_exceeds_it():
    probabilities_AV = torch.tensor([[0.0, 0.2, 0.0, 0.6], [0.5, 0.0, 0.5, 0.0]])
    uniform_AT = np.array([[0.0, 0.249], [0.0, 0.5]])
    draw = drawn_by_numbers(uniform_AT)
    assert draw(probabilities_AV, [0, 1], 0).tolist() == [1, 0]
    assert draw(probabilities_AV, [0, 1], 1).tolist() == [1, 2]


def test_draws_by_generator_depend_on_its_seed_alone():
    probabilities_AV = torch.rand(4, 50, generator=torch.Generator().manual_seed(1))
    first, second = (
        drawn_by_generator(torch.Generator().manual_seed(7))(probabilities_AV, range(4), 1)
        for _ in range(2)
    )
    assert torch.equal(first, second)


def slow_candidates(table, image, beams, quirks):
    """All beams with one token more, the best first."""
    candidates = []
    for tokens, score in beams:
        row = table[image, IDS.index(tokens[-1]) if tokens[-1] in IDS else -1]
        if not quirks.beams_add_logits:
            unused = torch.full((VOCABULARY - len(IDS),), -60.0)
            row = torch.cat([row, unused]).log_softmax(0)
        candidates += [
            (score + float(row[column]), [*tokens, token])
            for column, token in enumerate(IDS)
            if token != END or len(tokens) >= 5
        ]
    return sorted(candidates, key=lambda one: -one[0])


def slow_best(table, image, width, quirks):
    """Plain beam search on one table, all candidates at once."""
    beams, finished = [([START], 0.0)], []
    for length in range(1, 30):
        candidates = slow_candidates(table, image, beams, quirks)
        kept = candidates[: 2 * width]
        ended = [(s / length, t[:-1]) for s, t in kept[:width] if t[-1] == END]
        for one in ended:
            finished = sorted([*finished, one])[-2:]
        beams = [(t, s) for s, t in kept if t[-1] != END][:width]
        if len(finished) == 2 and finished[0][0] >= candidates[0][0] / (length + 1):
            return finished[-1][1]
    finished = sorted([*finished, *((score / 30, tokens) for tokens, score in beams)])[-2:]
    return finished[-1][1]


@pytest.mark.parametrize(
    "quirks",
    [REFERENCE, CORRECTED, replace(REFERENCE, beams_add_logits=False)],
    ids=["reference", "corrected", "log-probabilities of two beams"],
)
def test_beam_search_equals_a_slow_one_by_quirks_p12_and_p13(quirks):
    width = 2 if quirks.beam_groups_are_copies else 6
    for seed in range(3):
        table = Table(seed, [[0], [1], [2]])
        found = beam_search(table, 3, quirks)
        for image, row in enumerate(found.tolist()):
            tokens = row[: row.index(END)] if END in row else row
            assert tokens == slow_best(table.table_NCC, image, width, quirks)
