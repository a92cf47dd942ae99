"""Methods: each scores an image for its expressions, and chooses what an expression refers to.

A method is a subclass of ``Method`` with a way to score and one to choose. What it scores is stored
by whoever runs it, so that choosing again, under other settings or another limit, takes
microseconds.

Shapes: N proposals, H x W image pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hybridgl.config import MethodConfig
from hybridgl.guidance import Choice
from hybridgl.images import RgbImage
from hybridgl.language import ParsedExpression
from hybridgl.masks import Proposals
from hybridgl.models import Models
from hybridgl.store import Store

__all__ = ["Method", "Prediction", "Scores"]


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What a method computes for one expression: the input of ``choose``, storable and small.

    Attributes:
        arrays: by name; their meaning is the method's own.
        meta: JSON values by name, likewise.
    """

    arrays: Mapping[str, NDArray[Any]]
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What one expression refers to, by every variant of a method.

    Attributes:
        proposals: index of the predicted proposal by variant; empty where the image has none, or
            the method needs none.
        scores: what the predicted proposal was chosen by, by variant; NaN where it is undefined.
        masks: predicted mask by variant, bool, (H, W), of a method that needs no proposals.
        expression: what was read off the sentence; None where the method reads nothing off it.
        truncated: whether the sentence was too long for the text encoder, and cut.
        similarity_N: similarity of every proposal with the expression, float64; None where the
            method compares none.
        choice: candidates and their scores, for figures; None where nothing was guided.
        attention: draws the attention map of the noun phrase under its position prior, for a height
            and width: mean 1, float32, (H, W); None where the method has none.
    """

    proposals: Mapping[str, int] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    masks: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    expression: ParsedExpression | None = None
    truncated: bool = False
    similarity_N: NDArray[np.float64] | None = None
    choice: Choice | None = None
    attention: Callable[[tuple[int, int]], NDArray[np.float32]] | None = None


class Method(ABC):
    """Base of methods: what an evaluation needs of one.

    Args:
        models: the models that it computes with, each loaded at first use.
        config: its settings, a ``Config``.
        store: keeps the results of stages; None computes them every time.

    Attributes:
        name: as on the command line.
        variants: its ways of predicting; the last is the method.
        needs_proposals: whether it chooses among proposals; otherwise it predicts masks.
        models_needed: those of "clip", "sam" and "parser" that it computes with.
        Config: class of its settings.
    """

    name: ClassVar[str]
    variants: ClassVar[tuple[str, ...]]
    needs_proposals: ClassVar[bool] = True
    models_needed: ClassVar[tuple[str, ...]] = ()
    Config: ClassVar[type[MethodConfig]] = MethodConfig

    def __init__(self, models: Models, config: Any, store: Store | None = None) -> None:
        self.models = models
        self.config = config
        self.store = store

    @abstractmethod
    def score(
        self, image: RgbImage, sentences: Sequence[str], proposals: Proposals
    ) -> list[Scores]:
        """Compute everything that the predictions of one image's sentences depend on.

        Args:
            image: the image.
            sentences: raw, at least one.
            proposals: masks to choose from; none where the method needs none.

        Returns:
            One for every sentence.
        """

    @abstractmethod
    def choose(self, scores: Scores, /, *, k_limit: int | None = None) -> Prediction:
        """Predict what one sentence refers to, in microseconds and without a model.

        Args:
            scores: from ``score``.
            k_limit: running limit on top-k (quirk Q5); None limits it by the proposals alone.
        """

    def settings(self, *, late: bool = True) -> dict[str, Any]:
        """Return name and settings as JSON values.

        Args:
            late: include those that only ``choose`` reads.
        """
        return {"name": self.name, **self.config.json(late=late)}

    def load(self) -> None:
        """Load the models, so that a wrong file is found before any work.

        Raises:
            WeightsError: a file is damaged or of another architecture.
        """
        self.models.load(*self.models_needed)

    @property
    def skips_without_proposals(self) -> bool:
        """Whether samples without proposals are left out of the scores (quirk Q8)."""
        return False
