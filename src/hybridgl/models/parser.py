"""Parser through spaCy: sentences to parsed expressions, each distinct sentence parsed once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hybridgl.errors import WeightsError
from hybridgl.language import ParsedExpression, check_unicode, clean_sentence, parse_expression
from hybridgl.timing import timer

__all__ = ["SpacyParser"]

_MOST_CHARACTERS = 1_000
"""Of a sentence that are parsed: CLIP reads 77 tokens, and long parses take time and memory."""

_logger = logging.getLogger(__name__)


class SpacyParser:
    """SpaCy pipeline with tagger and parser, and the rules that read its parses.

    Args:
        model: name of an installed pipeline, or the folder of one.

    Attributes:
        name: name and version of the pipeline.

    Raises:
        WeightsError: no such pipeline, a damaged one, or one of another language or without the
            components that noun phrases are read from.
    """

    def __init__(self, model: str | Path) -> None:
        try:
            import spacy

            self._nlp: Any = spacy.load(model, exclude=["ner", "lemmatizer", "textcat"])
        except Exception as error:  # a damaged folder can fail in any of its components
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise WeightsError(
                f"Expected a spaCy pipeline {str(model)!r}, got none that can be loaded "
                f"({reason}); install one with `python -m spacy download en_core_web_lg`, or name "
                f"another with --spacy_model."
            ) from error
        meta = self._nlp.meta
        missing = {"tagger", "attribute_ruler", "parser"} - set(self._nlp.pipe_names)
        if meta["lang"] != "en" or missing:
            raise WeightsError(
                f"Expected an English spaCy pipeline with tagger, attribute_ruler and parser, got "
                f"{str(model)!r} of language {meta['lang']!r} with {self._nlp.pipe_names}; "
                f"use --spacy_model en_core_web_lg."
            )
        self.name = f"{meta['lang']}_{meta['name']} {meta['version']}"

    @timer("parse")
    def parse(
        self, sentences: Sequence[str], *, right_relation_never_matches: bool
    ) -> list[ParsedExpression]:
        """Parse raw sentences: clean each by its tokens, read the rules off a parse of that.

        Args:
            sentences: any strings; blank ones give empty expressions.
            right_relation_never_matches: quirk Q4.

        Those of more than 1,000 characters are cut at the last word before; such sentences are
        longer than CLIP's context too, and are counted there.

        Raises:
            SettingError: a sentence is not valid Unicode.
        """
        distinct = list(dict.fromkeys(sentences))
        for sentence in distinct:
            check_unicode(sentence)
        cleaned = [clean_sentence(self._nlp.make_doc(_cut(s).lower())) for s in distinct]
        parsed = {
            sentence: parse_expression(
                doc, right_relation_never_matches=right_relation_never_matches
            )
            for sentence, doc in zip(distinct, self._nlp.pipe(cleaned), strict=True)
        }
        return [parsed[sentence] for sentence in sentences]


def _cut(sentence: str) -> str:
    """Cut a long sentence at a word."""
    if len(sentence) <= _MOST_CHARACTERS:
        return sentence
    _logger.warning(
        "A sentence of %d characters, %r..., is cut after %d.",
        len(sentence),
        sentence[:40],
        _MOST_CHARACTERS,
    )
    kept = sentence[:_MOST_CHARACTERS]
    words = kept if sentence[_MOST_CHARACTERS].isspace() else kept.rpartition(" ")[0]
    return words or kept
