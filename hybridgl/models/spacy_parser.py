"""spaCy: sentences to parsed expressions, each distinct sentence parsed once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import spacy

from hybridgl.errors import UserError
from hybridgl.language import ParsedExpression, clean_sentence, parse_expression

__all__ = ["SpacyParser"]

_LOG = logging.getLogger(__name__)

_MAX_CHARACTERS = 10_000
"""Longest sentence that is parsed: expressions have a few dozen characters."""


class SpacyParser:
    """A spaCy pipeline with tagger and parser, and the rules that read its parses.

    Args:
        model: name of an installed pipeline, or the folder of one.

    Attributes:
        name: name and version of the pipeline.

    Raises:
        UserError: no such pipeline, or one without a parser.
    """

    def __init__(self, model: str | Path) -> None:
        try:
            self._nlp: Any = spacy.load(model, exclude=["ner", "lemmatizer", "textcat"])
        except (OSError, ValueError, ImportError) as error:
            raise UserError(
                f"Expected a spaCy pipeline {str(model)!r}, cannot load it "
                f"({str(error).splitlines()[0]}). Install it with "
                f"`python -m spacy download en_core_web_lg`, or name another with --spacy_model."
            ) from error
        if not self._nlp.has_pipe("parser"):
            raise UserError(
                f"Expected a spaCy pipeline with a parser, got {str(model)!r} with "
                f"{self._nlp.pipe_names}. Use en_core_web_lg."
            )
        meta = self._nlp.meta
        self.name = f"{meta['lang']}_{meta['name']} {meta['version']}"

    def parse(
        self, sentences: Sequence[str], *, right_relation_never_matches: bool
    ) -> list[ParsedExpression]:
        """Parse raw sentences: clean each by a first parse, read the rules off a second.

        Args:
            sentences: any strings; blank ones give empty expressions.
            right_relation_never_matches: quirk Q4.

        Raises:
            UserError: a sentence is longer than 10,000 characters.
        """
        longest = max(sentences, key=len, default="")
        if len(longest) > _MAX_CHARACTERS:
            raise UserError(
                f"Expected expressions of at most {_MAX_CHARACTERS:,} characters, got one of "
                f"{len(longest):,}: {longest[:40]!r}..."
            )
        distinct = list(dict.fromkeys(sentences))
        cleaned = [clean_sentence(doc) for doc in self._docs([s.lower() for s in distinct])]
        parsed = {
            sentence: parse_expression(
                doc, right_relation_never_matches=right_relation_never_matches
            )
            for sentence, doc in zip(distinct, self._docs(cleaned), strict=True)
        }
        return [parsed[sentence] for sentence in sentences]

    def _docs(self, texts: list[str]) -> list[Any]:
        return list(self._nlp.pipe(texts))
