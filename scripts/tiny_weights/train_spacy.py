"""Train the tiny spaCy pipeline that the library bundles, and measure it.

The treebank is written by the grammar of the shapes world (``refer.shapes.grammar``), gold heads
and all. Some pairs of content words (adjective and noun, noun and noun) never occur in the part
that is trained on, and every phrase that is measured holds such a pair: the scores are for word
combinations that the pipeline has not seen, in wording that it has.

Run ``python -m scripts.tiny_weights.train_spacy`` from the repository: seconds, on one core.
Source: spaCy's documentation of Tok2Vec, Tagger, DependencyParser and AttributeRuler.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import spacy
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import fix_random_seed
from tqdm import tqdm

import hybridgl
from refer.shapes.grammar import POS_OF_TAG, Expression, sample_phrase

__all__ = [
    "Recipe",
    "Scores",
    "Treebank",
    "build_pipeline",
    "main",
    "measure",
    "save",
    "train",
    "write_treebank",
]

_logger = logging.getLogger(__name__)

OUTPUT = Path(hybridgl.__file__).parent / "weights" / "tiny" / "spacy"
"""Where the library bundles the pipeline."""

REQUIRED_SCORE = 0.97
"""Least labelled attachment and noun-chunk score on unseen word combinations."""

_HELD_OUT_ONE_IN = 8
_CONTENT_DEPS = frozenset({"amod", "pobj", "conj", "dobj"})
_WIDTH = 48
_HASH_ROWS = {"NORM": 600, "PREFIX": 50, "SUFFIX": 300, "SHAPE": 30}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the pipeline is trained."""

    seed: int = 0
    """Of the treebank, the initial weights and the order of training."""
    num_train: int = 6000
    """Phrases to learn from."""
    num_test: int = 1500
    """Phrases to measure on."""
    epochs: int = 8
    """Times that each phrase is seen."""
    learn_rate: float = 0.003
    """Step size of Adam at the start; it falls linearly to zero."""
    batch_size: int = 64
    """Phrases per step."""
    dropout: float = 0.1
    """Share of activations dropped in training."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores on phrases with unseen word combinations, from 0 to 1."""

    unlabelled_attachment: float
    labelled_attachment: float
    part_of_speech: float
    noun_chunks_f1: float


@dataclass(frozen=True, slots=True)
class Treebank:
    """Phrases to learn from and phrases to measure on."""

    train: tuple[Expression, ...]
    test: tuple[Expression, ...]


def write_treebank(recipe: Recipe) -> Treebank:
    """Write phrases with distinct texts; those with a held-out word pair are for measuring."""
    rng = np.random.default_rng(np.random.SeedSequence((recipe.seed, recipe.num_train)))
    train: dict[str, Expression] = {}
    test: dict[str, Expression] = {}
    while len(train) < recipe.num_train or len(test) < recipe.num_test:
        phrase = sample_phrase(rng)
        part, size = (
            (test, recipe.num_test)
            if any(map(_is_held_out, _word_pairs(phrase)))
            else (train, recipe.num_train)
        )
        if len(part) < size:
            part.setdefault(phrase.text, phrase)
    return Treebank(tuple(train.values()), tuple(test.values()))


def _word_pairs(phrase: Expression) -> set[tuple[str, str]]:
    """Pairs of content words: adjective and its noun; main noun and each other noun."""
    words = phrase.words
    root = words[phrase.deps.index("ROOT")]
    return {
        (word, words[head] if dep == "amod" else root)
        for word, head, dep in zip(words, phrase.heads, phrase.deps, strict=True)
        if dep in _CONTENT_DEPS
    }


def _is_held_out(pair: tuple[str, str]) -> bool:
    return zlib.crc32(" ".join(pair).encode()) % _HELD_OUT_ONE_IN == 0


def build_pipeline(phrases: Sequence[Expression], seed: int) -> Language:
    """Build an untrained pipeline with the labels of the phrases."""
    fix_random_seed(seed)
    nlp = spacy.blank("en")
    nlp.add_pipe("tok2vec", config={"model": _TOK2VEC})
    nlp.add_pipe("tagger", config={"model": {"@architectures": "spacy.Tagger.v2", **_LISTENER}})
    nlp.add_pipe("parser", config={"model": {**_PARSER, **_LISTENER}, "min_action_freq": 1})
    ruler: Any = nlp.add_pipe("attribute_ruler")
    nlp.initialize(lambda: _examples(nlp, phrases))
    # Only now: initialize() clears the rules.
    for tag, pos in POS_OF_TAG.items():
        ruler.add(patterns=[[{"TAG": tag}]], attrs={"POS": pos})
    return nlp


_TOK2VEC = {
    "@architectures": "spacy.Tok2Vec.v2",
    "embed": {
        "@architectures": "spacy.MultiHashEmbed.v2",
        "width": _WIDTH,
        "attrs": list(_HASH_ROWS),
        "rows": list(_HASH_ROWS.values()),
        "include_static_vectors": False,
    },
    "encode": {
        "@architectures": "spacy.MaxoutWindowEncoder.v2",
        "width": _WIDTH,
        "depth": 3,
        "window_size": 1,
        "maxout_pieces": 2,
    },
}
_LISTENER = {
    "tok2vec": {
        "@architectures": "spacy.Tok2VecListener.v1",
        "width": _WIDTH,
        "upstream": "tok2vec",
    },
}
_PARSER = {
    "@architectures": "spacy.TransitionBasedParser.v2",
    "state_type": "parser",
    "extra_state_tokens": False,
    "hidden_width": 32,
    "maxout_pieces": 2,
    "use_upper": True,
}


def _examples(nlp: Language, phrases: Sequence[Expression]) -> list[Example]:
    return [Example(nlp.make_doc(p.text), _gold_doc(nlp, p)) for p in phrases]


def _gold_doc(nlp: Language, phrase: Expression) -> Doc:
    return Doc(
        nlp.vocab,
        words=list(phrase.words),
        tags=list(phrase.tags),
        pos=list(phrase.pos),
        heads=list(phrase.heads),
        deps=list(phrase.deps),
    )


def train(phrases: Sequence[Expression], recipe: Recipe) -> Language:
    """Train a pipeline on phrases with gold parses."""
    nlp = build_pipeline(phrases, recipe.seed)
    examples = _examples(nlp, phrases)
    optimizer = nlp.resume_training()
    order = random.Random(recipe.seed)
    steps_per_epoch = -(-len(examples) // recipe.batch_size)
    bar = tqdm(total=recipe.epochs * steps_per_epoch, desc="spaCy", unit="step")
    for _ in range(recipe.epochs):
        order.shuffle(examples)
        for first in range(0, len(examples), recipe.batch_size):
            # Step size decreases linearly to zero.
            optimizer.learn_rate = recipe.learn_rate * (1 - bar.n / bar.total)
            batch = examples[first : first + recipe.batch_size]
            nlp.update(batch, sgd=optimizer, drop=recipe.dropout)
            bar.update()
    bar.close()
    return nlp


def measure(nlp: Language, phrases: Sequence[Expression]) -> Scores:
    """Score the pipeline's own reading of the texts against the gold parses, token by token.

    Raises:
        ValueError: the tokenizer splits a text into other words than the treebank.
    """
    tokens = heads = labelled = pos = gold_chunks = found_chunks = shared_chunks = 0
    for phrase, doc in zip(phrases, nlp.pipe(phrase.text for phrase in phrases), strict=True):
        if tuple(token.text for token in doc) != phrase.words:
            raise ValueError(
                f"expected the tokens {phrase.words}, got {[token.text for token in doc]}: "
                "change the grammar's wording"
            )
        right = [token.head.i == head for token, head in zip(doc, phrase.heads, strict=True)]
        tokens += len(right)
        heads += sum(right)
        labelled += sum(
            token.dep_ == dep for token, dep, ok in zip(doc, phrase.deps, right, strict=True) if ok
        )
        pos += sum(token.pos_ == gold for token, gold in zip(doc, phrase.pos, strict=True))
        gold = {(chunk.start, chunk.end) for chunk in _gold_doc(nlp, phrase).noun_chunks}
        found = {(chunk.start, chunk.end) for chunk in doc.noun_chunks}
        gold_chunks += len(gold)
        found_chunks += len(found)
        shared_chunks += len(gold & found)
    return Scores(
        unlabelled_attachment=heads / tokens,
        labelled_attachment=labelled / tokens,
        part_of_speech=pos / tokens,
        noun_chunks_f1=2 * shared_chunks / (gold_chunks + found_chunks),
    )


def save(nlp: Language, recipe: Recipe, scores: Scores, output: Path) -> None:
    """Write the pipeline to a folder, in place of what is there, all of it or nothing."""
    nlp.meta.update(
        name="tiny_shapes",
        version="1",
        description="Parses the expressions of the shapes world and phrases worded like them.",
        license="Apache-2.0",
        spacy_version=">=3.7,<4",
        performance={key: round(value, 4) for key, value in asdict(scores).items()},
        notes="made by python -m scripts.tiny_weights.train_spacy with "
        f"{json.dumps(asdict(recipe))}",
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".spacy-", dir=output.parent) as folder:
        built = Path(folder) / "built"
        # The vocabulary is that of the treebank; the labels are in the components as well.
        nlp.to_disk(built, exclude=["vocab"])
        if output.exists():
            output.rename(Path(folder) / "old")
        built.rename(output)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, measure, and write the pipeline if it is good enough."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the pipeline")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = Recipe(seed=options.seed)
    treebank = write_treebank(recipe)
    start = time.perf_counter()
    nlp = train(treebank.train, recipe)
    _logger.info("trained in %.0f s", time.perf_counter() - start)
    scores = measure(nlp, treebank.test)
    for name, score in asdict(scores).items():
        _logger.info("%s on unseen word combinations: %.4f", name, score)
    if min(scores.labelled_attachment, scores.noun_chunks_f1) < REQUIRED_SCORE:
        _logger.error("expected scores of at least %s: nothing is written", REQUIRED_SCORE)
        return 1
    save(nlp, recipe, scores, options.output)
    size = sum(path.stat().st_size for path in options.output.rglob("*") if path.is_file())
    _logger.info("wrote %s: %d bytes", options.output, size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
