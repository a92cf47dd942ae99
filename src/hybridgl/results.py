"""What ``HybridGL.segment`` gives back: small, because masks stay packed until they are asked for.

Masks are kept as COCO's run lengths, which all results of an image share, and an attention map as
the cosines that it is drawn from. So results of many images fit into memory, whatever their size,
and travel between processes.

Shapes: N proposals, H x W image pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hybridgl.errors import HybridGLError
from hybridgl.language import ParsedExpression, Position, Relation
from hybridgl.masks import Proposals, decode_rle
from hybridgl.methods import Prediction

__all__ = ["Candidate", "PackedProposals", "Segmentation"]


class PackedProposals:
    """Proposals of an image, a hundredth of their size.

    Args:
        proposals: to be packed.

    Attributes:
        hw: height and width of the image, in pixels.
    """

    __slots__ = ("_arrays", "_meta", "hw")

    def __init__(self, proposals: Proposals) -> None:
        self.hw = proposals.hw
        self._arrays, self._meta = proposals.to_entry()

    def __len__(self) -> int:
        return len(self._meta["rle"])

    def box(self, index: int) -> tuple[int, int, int, int]:
        """Return the box of a mask, x, y, w, h in pixels."""
        x, y, w, h = self._arrays["boxes_xywh"][index].tolist()
        return x, y, w, h

    def mask(self, index: int | None) -> NDArray[np.bool_]:
        """Draw a mask, bool, (H, W); an empty one for None."""
        if index is None:
            return np.zeros(self.hw, dtype=np.bool_)
        mask_HW: NDArray[np.bool_] = decode_rle([self._meta["rle"][index]], self.hw)[0]
        return mask_HW

    def unpacked(self) -> Proposals:
        """Draw all masks."""
        return Proposals.from_entry(self._arrays, self._meta)


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One of the masks among which the guidance chose.

    Attributes:
        index: of its proposal.
        box: x, y, w, h in pixels.
        similarity: scaled cosine with the expression.
        relation: relation score before softmax.
        coherence: coherence score.
        score: final score.
        chosen: whether it is the prediction.
    """

    index: int
    box: tuple[int, int, int, int]
    similarity: float
    relation: float
    coherence: float
    score: float
    chosen: bool
    _packed: PackedProposals = field(repr=False)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The mask, bool, (H, W), drawn at each access."""
        return self._packed.mask(self.index)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Segmentation:
    """What an expression refers to in an image.

    Masks and the attention map are drawn at each access: keep what you use more than once.

    Attributes:
        expression: noun phrase, other nouns, position and relation.
        error: why there is no result: the image cannot be read, or the expression has no words.
            Asking such a result for a mask or a map raises it.
        matches: whether there is a prediction: False without proposals, where its similarity is
            below ``reject_below``, and after an error.
        box: x, y, w, h of the prediction in pixels; None where nothing matches.
        similarity: scaled cosine of the prediction with the expression: how well the two go
            together, whatever else is in the image. Where nothing matches, that of what would have
            been predicted; None without proposals.
        score: final score of the prediction among the candidates, likewise.
        candidates: the masks that the guidance chose from, best similarity first.
        similarities: scaled cosine of every proposal with the expression, float64, (N,).
        unmet_words: words of the expression that CLIP has never met; only the bundled one has any.
    """

    expression: ParsedExpression
    error: HybridGLError | None = None
    matches: bool = False
    box: tuple[int, int, int, int] | None = None
    similarity: float | None = None
    score: float | None = None
    candidates: tuple[Candidate, ...] = ()
    similarities: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0), repr=False)
    unmet_words: tuple[str, ...] = ()
    _packed: PackedProposals | None = field(default=None, repr=False)
    _features: int | None = field(default=None, repr=False)
    _attention: Callable[[tuple[int, int]], NDArray[np.float32]] | None = field(
        default=None, repr=False
    )

    @classmethod
    def of(
        cls,
        prediction: Prediction,
        expression: ParsedExpression,
        packed: PackedProposals,
        *,
        reject_below: float | None = None,
        unmet_words: tuple[str, ...] = (),
    ) -> Self:
        """Build a result from a prediction.

        Args:
            prediction: of HybridGL.
            expression: that it is of.
            packed: proposals of the image.
            reject_below: least similarity of a match; None takes any.
            unmet_words: as the attribute.
        """
        choice, similarity_N = prediction.choice, prediction.similarity_N
        result = cls(
            expression=expression,
            similarities=np.zeros(0) if similarity_N is None else similarity_N,
            unmet_words=unmet_words,
            _packed=packed,
            _attention=prediction.attention,
        )
        if choice is None:
            return result
        similarity = float(result.similarities[choice.guided])
        matches = reject_below is None or similarity >= reject_below
        candidates = tuple(
            Candidate(
                index=int(index),
                box=packed.box(index),
                similarity=float(result.similarities[index]),
                relation=float(relation),
                coherence=float(choice.coherence_N[index]),
                score=float(final),
                chosen=matches and bool(index == choice.guided),
                _packed=packed,
            )
            for index, relation, final in zip(
                choice.candidates_K, choice.relation_K, choice.final_K, strict=True
            )
        )
        return dataclasses.replace(
            result,
            matches=matches,
            box=packed.box(choice.guided) if matches else None,
            similarity=similarity,
            score=choice.score_of(choice.guided, choice.final_K),
            candidates=candidates,
            _features=choice.features,
        )

    @classmethod
    def failed(cls, sentence: str, error: HybridGLError) -> Self:
        """Build the result of what cannot be segmented.

        Args:
            sentence: the expression as it was given.
            error: why not.
        """
        unread = ParsedExpression(
            sentence=sentence,
            noun_phrase=sentence,
            head_noun=sentence,
            other_noun_phrases=(),
            other_nouns=(),
            position=Position.NONE,
            relation=Relation.NONE,
        )
        return cls(expression=unread, error=error)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The predicted mask, bool, (H, W); empty where nothing matches."""
        chosen = (one.index for one in self.candidates if one.chosen)
        return self._proposals.mask(next(chosen, None))

    @property
    def features_mask(self) -> NDArray[np.bool_]:
        """The mask that mask features alone predict, bool, (H, W)."""
        return self._proposals.mask(self._features)

    @property
    def proposals(self) -> Proposals:
        """All masks of the image."""
        return self._proposals.unpacked()

    @property
    def attention_map(self) -> NDArray[np.float32] | None:
        """GEM map of the noun phrase under the position prior, mean 1, float32, (H, W).

        None where the settings need none.
        """
        hw = self._proposals.hw
        return self._attention(hw) if self._attention else None

    @property
    def _proposals(self) -> PackedProposals:
        if self.error is not None:
            raise self.error
        assert self._packed is not None
        return self._packed
