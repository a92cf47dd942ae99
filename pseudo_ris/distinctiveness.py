"""How well a caption tells its object from the others: scores of captions, and their head nouns.

Source: Pseudo-RIS section 3.3; quirks P21 and P24 of docs/quirks.md.
Shapes: N masks of one image, S captions of one mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybridgl.language import Doc
from pseudo_ris.config import PseudoQuirks

__all__ = ["CaptionNoun", "CaptionScores", "caption_noun", "caption_scores", "noun_prompt"]

_ARTICLES = frozenset({"a", "an", "the"})

_LEAST_LOGIT = 1e-3
"""Below it, logits are taken for it: products and quotients of negative ones say nothing."""


@dataclass(frozen=True, slots=True)
class CaptionNoun:
    """What a caption is about.

    Attributes:
        head_noun: root of the noun chunk of its head; the whole caption where none is found.
        noun_phrase: that chunk, likewise.
        found: whether a chunk was found.
    """

    head_noun: str
    noun_phrase: str
    found: bool

    @property
    def prompt(self) -> str:
        """Text that its object is compared with."""
        return noun_prompt(self.head_noun)


def caption_noun(doc: Doc, caption: str, quirks: PseudoQuirks) -> CaptionNoun:
    """Find what a caption is about: the first token that is its own head, or what hangs on it.

    Args:
        doc: parse of the caption.
        caption: as it is, its trailing blank included.
        quirks: P21: only the head's first child is looked at; otherwise its children in turn, then
            the first chunk of all.
    """
    chunks = list(doc.noun_chunks)
    chunk_of = {token.i: chunk for chunk in chunks for token in chunk}
    head = next((token for token in doc if token.head.i == token.i), None)
    candidates = [] if head is None else [head, *head.children]
    if quirks.nouns_of_first_child_only:
        candidates = candidates[:2]
    found = [chunk_of[token.i] for token in candidates if token.i in chunk_of]
    if not quirks.nouns_of_first_child_only:
        found += chunks
    if not found:
        return CaptionNoun(caption, caption, found=False)
    return CaptionNoun(found[0].root.text, found[0].text, found=True)


def noun_prompt(noun: str) -> str:
    """Word a noun as CLIP's training texts are.

    >>> noun_prompt("dog"), noun_prompt("the dog")
    ('a photo of a dog', 'a photo of the dog')
    """
    article = "" if noun.split(" ")[0] in _ARTICLES else "a "
    return f"a photo of {article}{noun}"


@dataclass(frozen=True, slots=True, eq=False)
class CaptionScores:
    """Scores of the captions of one mask.

    Attributes:
        distinctiveness: float, (S,): above 1, the caption with its noun fits no other mask as well;
            of an image with one mask, ``correctness``.
        uniqueness: float, (S,): of the caption's similarity alone; empty for one mask.
        correctness: float, (S,): similarity of the mask and the caption's noun.
    """

    distinctiveness: NDArray[np.floating]
    uniqueness: NDArray[np.floating]
    correctness: NDArray[np.floating]


def caption_scores(
    caption_logits_NS: NDArray[np.floating],
    noun_logits_NS: NDArray[np.floating],
    mask: int,
    quirks: PseudoQuirks,
) -> CaptionScores:
    """Score the captions of one mask against all masks of its image.

    Args:
        caption_logits_NS: similarity of every mask's widest crop with every caption, (N, S).
        noun_logits_NS: similarity of every mask's object alone with every caption's noun, (N, S).
        mask: index of the mask.
        quirks: P24: negative similarities count as they are.

    Returns:
        In the number format of the logits.
    """
    if not quirks.negative_scores_multiply:
        caption_logits_NS = np.maximum(caption_logits_NS, _LEAST_LOGIT)
        noun_logits_NS = np.maximum(noun_logits_NS, _LEAST_LOGIT)
    correctness_S = noun_logits_NS[mask]
    if len(noun_logits_NS) == 1:
        return CaptionScores(correctness_S, correctness_S[:0], correctness_S)
    products_NS = caption_logits_NS * noun_logits_NS
    others = np.arange(len(products_NS)) != mask
    return CaptionScores(
        distinctiveness=products_NS[mask] / products_NS[others].max(axis=0),
        uniqueness=caption_logits_NS[mask] / caption_logits_NS[others].max(axis=0),
        correctness=correctness_S,
    )
