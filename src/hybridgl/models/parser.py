"""Parser through spaCy: sentences to parsed expressions, each distinct sentence parsed once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hybridgl.errors import SettingError, WeightsError
from hybridgl.language import ParsedExpression, clean_sentence, parse_expression
from hybridgl.timing import timer

__all__ = ["SpacyParser"]

_MAX_CHARACTERS = 10_000
"""Longest sentence that is parsed: expressions have a few dozen characters."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


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

        Raises:
            SettingError: a sentence is longer than 10,000 characters, or is not valid Unicode.
        """
        longest = max(sentences, key=len, default="")
        if len(longest) > _MAX_CHARACTERS:
            raise SettingError(
                f"Expected expressions of at most {_MAX_CHARACTERS:,} characters, got one of "
                f"{len(longest):,}, {longest[:40]!r}...; shorten it."
            )
        distinct = list(dict.fromkeys(sentences))
        for sentence in distinct:
            if _LONE_SURROGATE.search(sentence):
                raise SettingError(
                    f"Expected expressions in valid Unicode, got {sentence!r} with half of a "
                    f"character; decode it again."
                )
        cleaned = [clean_sentence(self._nlp.make_doc(s.lower())) for s in distinct]
        parsed = {
            sentence: parse_expression(
                doc, right_relation_never_matches=right_relation_never_matches
            )
            for sentence, doc in zip(distinct, self._nlp.pipe(cleaned), strict=True)
        }
        return [parsed[sentence] for sentence in sentences]
