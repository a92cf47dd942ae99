"""Captions of crops: beam search, and sampling that prefers the words of one object to the others'.

In *distinctive* sampling, what other masks of the image would say next is subtracted from what this
one would, in proportion to how alike they are; what is then drawn from is decided before, by the
truncation.

Both work on anything that scores the next token of prefixes (``PrefixScorer``). The hidden states
that a scorer gives are projected linearly to logits, so that a sum of the other masks' logits is
one projection of a sum of hidden states.

Source: Pseudo-RIS section 3.2; quirks P12 to P20 of docs/quirks.md.
Shapes: N masks, A chains, U prefixes of one length, D width, V vocabulary, T tokens of a caption, K
most probable ones. L is the number of tokens so far, the start among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridgl.models.coca import decode_tokens
from pseudo_ris.config import PseudoQuirks

__all__ = [
    "END",
    "MOST_TOKENS",
    "START",
    "TRUNCATIONS",
    "Draw",
    "PrefixScorer",
    "Truncation",
    "beam_search",
    "caption_texts",
    "drawn_by_generator",
    "drawn_by_numbers",
    "other_weights",
    "sample_chains",
    "step_probabilities",
]

START, END, ZERO = 49406, 49407, 0
"""Tokens of CLIP's vocabulary; 0 is "!", and what a finished caption is filled up with."""

_START_TEXT, _END_TEXT = "<start_of_text>", "<end_of_text>"

MOST_TOKENS = 30
"""Of a caption, start and end among them."""

_FIRST_END = 5
"""Tokens so far, from which on a caption may end."""

_MOST_DISTINCT = 30
"""Masks that are compared."""

_NUCLEUS_WIDTH = 256
"""Tokens among which those of a truncation by probability are looked for first."""

_BEAMS, _BEAMS_AS_RELEASED = 6, 2
_POOL = 2
"""Finished captions that beam search keeps."""


@dataclass(frozen=True, slots=True)
class Truncation:
    """Which tokens may be drawn: the most probable ones.

    Attributes:
        top_k: number of them, more at a tie; None does not limit it.
        top_p: probability that they reach together; None does not limit it.
    """

    top_k: int | None = None
    top_p: float | None = None

    def kept(self, logits_AV: Tensor) -> Tensor:
        """Tell which tokens may be drawn, bool, (A, V)."""
        if self.top_k is not None:
            least_A1 = logits_AV.topk(min(self.top_k, logits_AV.shape[1]), dim=1).values[:, -1:]
            return logits_AV >= least_A1
        if self.top_p is None:
            return torch.ones_like(logits_AV, dtype=torch.bool)
        return _nucleus(logits_AV, self.top_p)


def _nucleus(logits_AV: Tensor, top_p: float) -> Tensor:
    """Tell which tokens are the fewest most probable ones that reach a probability together."""
    total_A1 = logits_AV.logsumexp(dim=1, keepdim=True)
    width, vocabulary = _NUCLEUS_WIDTH, logits_AV.shape[1]
    while True:
        best = logits_AV.topk(min(width, vocabulary), dim=1)
        shares_AK = (best.values - total_A1).exp()
        kept_AK = shares_AK.cumsum(dim=1) - shares_AK < top_p
        kept_AK[:, 0] = True
        if width >= vocabulary or not bool(kept_AK[:, -1].any()):
            return torch.zeros_like(logits_AV, dtype=torch.bool).scatter(1, best.indices, kept_AK)
        width *= 8


TRUNCATIONS = (
    *(Truncation(top_k=k) for k in (5, 7, 9, 11, 13)),
    *(Truncation(top_p=p) for p in (0.4, 0.5, 0.6, 0.7, 0.8)),
)
"""Of the sampled captions of a crop, in their order."""


class PrefixScorer(Protocol):
    """What reads prefixes that grow by a token a step."""

    def extend(self, parents_U: Tensor, tokens_U: Tensor) -> Tensor:
        """Add a token to prefixes of the step before; those that are no parents are forgotten.

        Args:
            parents_U: rows of the step before, in which a row may come several times; before the
                first step, the beginnings that the scorer was made with.
            tokens_U: token of each.

        Returns:
            Hidden states of what comes next, (U, N, D), for N masks that a prefix is scored for.
        """

    def project(self, hidden_AD: Tensor) -> Tensor:
        """Project hidden states to logits, linearly, float32, (A, V)."""


Draw = Callable[[Tensor, Sequence[int], int], Tensor]
"""Draws a token for each of some chains: from probabilities (A, V), the chains' numbers, and L."""


def drawn_by_numbers(uniform_AT: NDArray[np.float64]) -> Draw:
    """Draw by given numbers: the first token at which the running sum of shares exceeds them.

    Args:
        uniform_AT: between 0 and 1, one for every chain and number of tokens so far, float64.
    """

    def draw(probabilities_AV: Tensor, rows: Sequence[int], length: int) -> Tensor:
        sums_AV = probabilities_AV.double().cumsum(dim=1)
        wanted_A = torch.from_numpy(uniform_AT[list(rows), length]).to(sums_AV)
        wanted_A1 = (wanted_A * sums_AV[:, -1])[:, None]
        return torch.searchsorted(sums_AV, wanted_A1, right=True)[:, 0]

    return draw


def drawn_by_generator(generator: torch.Generator | None = None) -> Draw:
    """Draw with torch's generator, as released: the chains' order is part of the result.

    Args:
        generator: None is torch's own.
    """

    def draw(probabilities_AV: Tensor, rows: Sequence[int], length: int) -> Tensor:
        return torch.multinomial(probabilities_AV, 1, generator=generator)[:, 0]

    return draw


def step_probabilities(
    logits_AV: Tensor,
    others_AV: Tensor | None,
    truncations: Sequence[Truncation],
    length: int,
    quirks: PseudoQuirks,
) -> Tensor:
    """Compute what the next token of some chains is drawn from.

    Args:
        logits_AV: of the chain's own mask, (A, V).
        others_AV: weighted mean of the other masks' logits after the same tokens; None samples
            plainly.
        truncations: of each chain.
        length: L.
        quirks: P16: the end's probability is put back as it is, so that the sum is not 1.

    Returns:
        float32, (A, V).
    """
    if length < _FIRST_END:
        logits_AV = logits_AV.clone()
        logits_AV[:, END] = -torch.inf
    kept_AV = torch.empty_like(logits_AV, dtype=torch.bool)
    for truncation in dict.fromkeys(truncations):
        rows = [row for row, one in enumerate(truncations) if one == truncation]
        kept_AV[rows] = truncation.kept(logits_AV[rows])
    plain_AV = logits_AV.masked_fill(~kept_AV, -torch.inf).softmax(dim=1)
    if others_AV is None:
        return plain_AV
    distinct_AV = (logits_AV - others_AV).masked_fill(~kept_AV, -torch.inf).softmax(dim=1)
    end_A = plain_AV[:, END].clone()
    if not quirks.end_keeps_its_probability:
        # Where nothing but the end may be drawn, there is nothing to rescale.
        distinct_AV *= ((1 - end_A) / (1 - distinct_AV[:, END]).clamp(min=1e-12))[:, None]
    distinct_AV[:, END] = end_A
    return distinct_AV


def other_weights(similarity_NN: Tensor, quirks: PseudoQuirks) -> Tensor | None:
    """Return how much each mask counts against each other one, (N, N), or None for plain sampling.

    Args:
        similarity_NN: cosines of the masks' crops.
        quirks: P15, P17.
    """
    count = len(similarity_NN)
    too_many = count > _MOST_DISTINCT
    if count == 1 or (too_many and quirks.many_masks_are_not_distinct):
        return None
    weights_NN = similarity_NN.clone()
    weights_NN.fill_diagonal_(-torch.inf)
    if too_many:
        least_N1 = weights_NN.topk(_MOST_DISTINCT, dim=1).values[:, -1:]
        weights_NN[weights_NN < least_N1] = 0
    if not quirks.unlike_masks_attract:
        weights_NN = weights_NN.clamp(min=0)
    weights_NN.fill_diagonal_(0)
    return weights_NN / min(count - 1, _MOST_DISTINCT)


@torch.inference_mode()
def sample_chains(
    scorer: PrefixScorer,
    similarity_NN: Tensor,
    truncations: Sequence[Truncation],
    draw: Draw,
    quirks: PseudoQuirks,
    *,
    distinctive: bool = True,
    rows: Sequence[int] | None = None,
) -> NDArray[np.int64]:
    """Sample a caption of every mask under every truncation.

    Chains with the same tokens so far are one prefix of the scorer.

    Args:
        scorer: with one beginning, scored for all N masks.
        similarity_NN: cosines of the masks' crops.
        truncations: chain r has truncation r // N and mask r % N.
        draw: draws tokens.
        quirks: P15 to P17, P20.
        distinctive: subtract what other masks would say.
        rows: of the chains that are sampled; None samples all.

    Returns:
        Tokens from the start on, filled up with 0, int64, (A, length of the longest).
    """
    count = len(similarity_NN)
    chains = list(range(count * len(truncations))) if rows is None else list(rows)
    weights_NN = other_weights(similarity_NN, quirks) if distinctive else None
    ends = (END, ZERO) if quirks.token_zero_ends else (END,)
    tokens = [[START] for _ in chains]
    active = list(range(len(chains)))
    device = similarity_NN.device
    prefix_of = dict.fromkeys(active, 0)
    parents, added = [0], [START]
    for length in range(1, MOST_TOKENS):
        if length == MOST_TOKENS - 1:
            for place in active:
                tokens[place].append(END)
            break
        hidden_UND = scorer.extend(
            torch.tensor(parents, device=device), torch.tensor(added, device=device)
        )
        prefixes = torch.tensor([prefix_of[place] for place in active], device=device)
        masks = torch.tensor([chains[place] % count for place in active], device=device)
        own_AV = scorer.project(hidden_UND[prefixes, masks])
        others_AV = None
        if weights_NN is not None:
            mixed_AD = torch.einsum("an,and->ad", weights_NN[masks], hidden_UND[prefixes])
            others_AV = scorer.project(mixed_AD)
        some = [truncations[chains[place] // count] for place in active]
        probabilities_AV = step_probabilities(own_AV, others_AV, some, length, quirks)
        drawn = draw(probabilities_AV, [chains[place] for place in active], length).tolist()
        for place, token in zip(active, drawn, strict=True):
            tokens[place].append(token)
        grown = {
            place: (prefix_of[place], token)
            for place, token in zip(active, drawn, strict=True)
            if token not in ends
        }
        active = list(grown)
        if not active:
            break
        distinct = list(dict.fromkeys(grown.values()))
        number = {prefix: place for place, prefix in enumerate(distinct)}
        prefix_of = {place: number[prefix] for place, prefix in grown.items()}
        parents, added = ([prefix[i] for prefix in distinct] for i in (0, 1))
    return _filled_up(tokens)


@torch.inference_mode()
def beam_search(
    scorer: PrefixScorer, num_masks: int, quirks: PseudoQuirks, device: torch.device | str = "cpu"
) -> NDArray[np.int64]:
    """Caption every mask by beam search.

    Args:
        scorer: with one beginning for every mask, scored for it alone.
        num_masks: N.
        quirks: P12: scores are sums of logits; P13: two beams.
        device: of the scorer.

    Returns:
        Tokens from the start on, filled up with 0, int64, (N, length of the longest).
    """
    width = _BEAMS_AS_RELEASED if quirks.beam_groups_are_copies else _BEAMS
    searches = [_Beams() for _ in range(num_masks)]
    parents, added = list(range(num_masks)), [START] * num_masks
    for length in range(1, MOST_TOKENS):
        hidden_U1D = scorer.extend(
            torch.tensor(parents, device=device), torch.tensor(added, device=device)
        )
        scores_UV = scorer.project(hidden_U1D[:, 0])
        if not quirks.beams_add_logits:
            scores_UV = scores_UV.log_softmax(dim=1)
        if length < _FIRST_END:
            scores_UV[:, END] = -torch.inf
        parents, added, row = [], [], 0
        for search in searches:
            if not search.open:
                continue
            rows = range(row, row := row + len(search.open))
            kept = search.step(scores_UV[rows.start : rows.stop], length, width)
            parents += [rows[beam] for beam, _ in kept]
            added += [token for _, token in kept]
        if not parents:
            break
    return _cut([search.best() for search in searches])


class _Beams:
    """Beam search of one mask.

    Attributes:
        open: tokens and score of every open beam.
    """

    def __init__(self) -> None:
        self.open: list[tuple[list[int], float]] = [([START], 0.0)]
        self._finished: list[tuple[float, list[int]]] = []

    def step(self, scores_BV: Tensor, length: int, width: int) -> list[tuple[int, int]]:
        """Add a token; return the parent among the open beams and the token of each new one."""
        start_B1 = torch.tensor([[score] for _, score in self.open], device=scores_BV.device)
        candidates = (start_B1 + scores_BV).flatten().topk(2 * width)
        vocabulary = scores_BV.shape[1]
        beams: list[tuple[list[int], float]] = []
        kept: list[tuple[int, int]] = []
        scores, places = candidates.values.tolist(), candidates.indices.tolist()
        for rank, (score, place) in enumerate(zip(scores, places, strict=True)):
            beam, token = divmod(place, vocabulary)
            if token == END:
                if rank < width:
                    self._finish(score / length, self.open[beam][0])
                continue
            beams.append(([*self.open[beam][0], token], score))
            kept.append((beam, token))
            if len(beams) == width:
                break
        done = len(self._finished) == _POOL and self._finished[0][0] >= scores[0] / (length + 1)
        self.open = [] if done else beams
        if length == MOST_TOKENS - 1:
            for tokens, score in self.open:
                self._finish(score / MOST_TOKENS, tokens)
            self.open = []
        return kept if self.open else []

    def _finish(self, score: float, tokens: list[int]) -> None:
        """Keep a finished caption if it is one of the best; the worst comes first."""
        if len(self._finished) < _POOL or score > self._finished[0][0]:
            self._finished.append((score, tokens))
            self._finished.sort(key=lambda entry: entry[0])
            del self._finished[:-_POOL]

    def best(self) -> list[int]:
        """Return the best finished caption, without its end; of equal ones the later."""
        return self._finished[-1][1]


def caption_texts(tokens_AT: NDArray[np.int64], quirks: PseudoQuirks) -> list[str]:
    """Write captions as text.

    Args:
        tokens_AT: from ``beam_search`` or ``sample_chains``.
        quirks: P20: what a caption is filled up with is written too, unless it has an end; it ends
            in a blank.
    """
    texts = [decode_tokens(row).split(_END_TEXT)[0] for row in tokens_AT.tolist()]
    texts = [text.replace(_START_TEXT, "") for text in texts]
    return texts if quirks.token_zero_ends else [text.strip() for text in texts]


def _cut(captions: Sequence[list[int]]) -> NDArray[np.int64]:
    """End captions where there is room for an end."""
    length = min(max(map(len, captions)) + 1, MOST_TOKENS)
    return _filled_up([[*tokens, END][:length] for tokens in captions])


def _filled_up(captions: Sequence[list[int]]) -> NDArray[np.int64]:
    filled = np.full((len(captions), max(map(len, captions), default=0)), ZERO, dtype=np.int64)
    for row, tokens in zip(filled, captions, strict=True):
        row[: len(tokens)] = tokens
    return filled
