"""Stored parses of all sentences that the benchmark reads, for machines without spaCy.

Example:
    python -m benchmarks.gpu.parses
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from benchmarks.data import SENTENCES
from hybridgl.errors import DataError
from hybridgl.language import ParsedExpression
from hybridgl.models.parser import SpacyParser
from hybridgl.weights.registry import weight_set
from refer.refer import load_refer
from refer.shapes.world import write_world

__all__ = [
    "FILE",
    "MOST_SCENES",
    "StoredParser",
    "parsed",
    "sentences",
    "stored_sentences",
]

FILE = Path(__file__).with_name("parses.json")

MOST_SCENES = 100
"""Of the shapes world."""

_FIELDS = [field.name for field in dataclasses.fields(ParsedExpression)]


class StoredParser(SpacyParser):
    """Gives back what the bundled parser has read, with quirk Q4, and reads nothing itself.

    Args:
        model: name or folder of the pipeline that it stands for.
    """

    def __init__(self, model: str | Path) -> None:
        self.name = f"stored parses of {Path(model).name}"

    def parse(
        self, sentences: Sequence[str], *, right_relation_never_matches: bool
    ) -> list[ParsedExpression]:
        """Look sentences up.

        Raises:
            DataError: one is not in the file, or quirk Q4 is not wanted.
        """
        stored = _stored()
        absent = [sentence for sentence in sentences if sentence not in stored]
        if absent or not right_relation_never_matches:
            raise DataError(
                f"Expected sentences of the benchmark in {FILE}, as quirk Q4 has them, got "
                f"{absent[:1]}; write the file again with `python -m benchmarks.gpu.parses`."
            )
        return [stored[sentence] for sentence in sentences]


@lru_cache(maxsize=1)
def _stored() -> dict[str, ParsedExpression]:
    rows = json.loads(FILE.read_text(encoding="utf-8"))
    return {
        sentence: ParsedExpression.from_json(dict(zip(_FIELDS, values, strict=True)))
        for sentence, values in rows.items()
    }


def stored_sentences() -> list[str]:
    """Return the sentences of the file."""
    return list(_stored())


def sentences(folder: Path) -> list[str]:
    """Return every sentence that the benchmark may read, each once.

    Args:
        folder: empty; the shapes world is written there.
    """
    write_world(folder, sizes={"val": MOST_SCENES})
    split = load_refer(folder, "shapes", "val", check_counts=False)
    raws = (one.raw for ref in split.refs for one in ref.sentences)
    return list(dict.fromkeys([*raws, *SENTENCES]))


def parsed(texts: Iterable[str]) -> str:
    """Return the parses of sentences as JSON, a line for each."""
    parser = SpacyParser(weight_set("tiny").spacy_model)
    distinct = list(texts)
    expressions = parser.parse(distinct, right_relation_never_matches=True)
    lines = (
        f"{json.dumps(text)}: {json.dumps(list(expression.json().values()))}"
        for text, expression in zip(distinct, expressions, strict=True)
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    """Write the file."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        FILE.write_text(parsed(sentences(Path(folder))), encoding="utf-8")


if __name__ == "__main__":
    main()
