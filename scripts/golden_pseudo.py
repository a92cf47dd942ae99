"""Compare Pseudo-RIS with golden vectors: inputs, and what its released program makes of them.

* ``matching``: masks of two sources, and which of the second stands for each of the first;
* ``crops_scores``: images, masks, crops; logits, scores of captions, files;
* ``language.json``: parses, nouns and prompts;
* ``steps``, ``chains``, ``beams``: sampling and beam search on given logits;
* ``coca_tiny``, ``clip_tiny_text``: weights; ``coca_forward``, ``clip_forward``: what they give;
* ``loader.json``: which captions are kept;
* ``whole``: everything together.

Most are pairs of a JSON file and an ``.npz``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hybridgl.models.clip import ClipEncoder
from hybridgl.models.coca import Coca, CocaHeads, CocaImages, CocaScorer
from hybridgl.views import CLIP_MEAN, CLIP_STD, normalise
from pseudo_ris.annotations import (
    CaptionedMask,
    released_csv,
    released_lines,
    released_summary,
    released_text,
)
from pseudo_ris.captions import (
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
from pseudo_ris.crops import CROP_KINDS, mask_crops
from pseudo_ris.distinctiveness import caption_noun, caption_scores, noun_prompt
from pseudo_ris.filtering import CaptionFilter, caption_pool
from pseudo_ris.masks import match_masks
from scripts.golden import Comparison, FolderReport, errors, read_json, read_npz, unpack

__all__ = ["compare_pseudo", "is_pseudo"]

_MARK = "beams.json"
"""Only folders of Pseudo-RIS have it."""

_COCA, _CLIP = "coca_tiny.npz", "clip_tiny_text.npz"

_QUIRKS = PseudoQuirks()

_VOCABULARY = 49408
_UNUSED_LOGIT = -60.0
"""Of tokens that the vectors have no column of."""

_STEP = 16
"""The vectors hold every 16th row and column of a crop."""

_SIDE = 224

_CROPS, _FEATURES, _PROBABILITIES, _SCORES, _TINY_SCORES = 1e-6, 5e-5, 1e-5, 1e-6, 2e-3
"""Largest errors; the last one is relative."""

_NAME, _SCORER = "distinctive_captions_cc3m", "RN50"

_RULES = {
    "doc": CaptionFilter.DISTINCTIVE,
    "plain": CaptionFilter.ALL,
    "beam": CaptionFilter.BEAM,
}

_Array = NDArray[Any]


def is_pseudo(folder: Path) -> bool:
    """Tell whether a folder holds vectors of Pseudo-RIS."""
    return (folder / _MARK).is_file()


def compare_pseudo(folder: Path, device: torch.device) -> FolderReport:
    """Compare everything in a folder that there is a counterpart of.

    Args:
        folder: of golden vectors.
        device: where tensors are computed.
    """
    rows: list[Comparison] = []
    not_compared = ["loader.npz (training has no counterpart yet)"]
    for compare, files in _COMPARES.items():
        absent = [name for name in files if not (folder / name).is_file()]
        if absent:
            not_compared.append(f"{files[0]} (the folder lacks {', '.join(absent)})")
        elif compare is _language and find_spec("spacy") is None:
            not_compared.append(f"{files[0]} (spaCy is not installed)")
        else:
            rows += compare(folder, device)
    if find_spec("pandas") is None:
        not_compared.append("table of crops_scores.json (pandas is not installed)")
    return FolderReport(tuple(rows), tuple(not_compared))


def _exact(path: Path, subject: str, matches: Sequence[bool]) -> Comparison:
    return Comparison(path.name, subject, len(matches), sum(map(bool, matches)))


def _pair(folder: Path, name: str, kind: type) -> tuple[Path, Any, dict[str, _Array]]:
    path = folder / f"{name}.json"
    return path, read_json(path, kind), read_npz(path.with_suffix(".npz"))


def _same(found: _Array, expected: Any) -> bool:
    return np.array_equal(found, np.asarray(expected))


def _matching(folder: Path, _: torch.device) -> Iterator[Comparison]:
    path, cases, arrays = _pair(folder, "matching", list)
    matches = []
    for case in cases:
        found, drawn = (
            unpack(arrays[f"{case['id']}/{name}"], (count, case["height"], case["width"]))
            for name, count in (("cutler", case["n_cutler"]), ("sam", case["n_sam"]))
        )
        matches.append(_same(match_masks(found, drawn, _QUIRKS), case["index"] or []))
    yield _exact(path, "indices", matches)


def _crops(folder: Path, device: torch.device) -> Iterator[Comparison]:
    path, content, arrays = _pair(folder, "crops_scores", dict)
    for number, kind in enumerate(CROP_KINDS):
        pairs: list[tuple[Tensor, _Array]] = []
        for image in content["images"]:
            key = image["id"]
            shape = (image["n_masks"], image["height"], image["width"])
            masks_NHW = unpack(arrays[f"{key}/masks"], shape)[image["kept"]]
            crops_N3RR = mask_crops(arrays[f"{key}/image"], masks_NHW, kind, _SIDE, _QUIRKS, device)
            sample = crops_N3RR[:, :, ::_STEP, ::_STEP]
            pairs += [
                (sample, arrays[f"{key}/crop{number}_sample"]),
                (crops_N3RR.mean(dim=(2, 3)), arrays[f"{key}/crop{number}_mean"]),
            ]
        yield errors(path, f"crops of kind {number}", *pairs, tolerance=_CROPS)


def _scores(folder: Path, _: torch.device) -> Iterator[Comparison]:
    path, content, arrays = _pair(folder, "crops_scores", dict)
    # The files hold the first mask's captions alone; text and table are compared as far as that.
    first = json.loads(content["json_first_line"])
    for number, run in enumerate(content["runs"]):
        masks = []
        for entry in run["entries"]:
            noun_NS = arrays[f"{entry['key']}/v"]
            caption_NS = arrays.get(f"{entry['key']}/u", noun_NS)
            mask = 0 if entry["one_mask"] else entry["seg_id"]
            masks.append(
                CaptionedMask(
                    image_file=f"COCO_train2014_{entry['img_id']:012d}.jpg",
                    image_id=entry["img_id"],
                    mask_id=entry["seg_id"],
                    captions=tuple(first["pseudo_caption"]),
                    scores=caption_scores(caption_NS, noun_NS, mask, _QUIRKS),
                    single=bool(entry["one_mask"]),
                )
            )
        pairs = [
            (mask.scores.distinctiveness, arrays[f"{entry['key']}/doc"])
            for mask, entry in zip(masks, run["entries"], strict=True)
        ]
        subject = f"scores in {run['precision']}, run {number}"
        yield errors(path, subject, *pairs, tolerance=_SCORES)
        summary = released_summary(masks, name=_NAME, scorer=_SCORER)
        yield _exact(path, f"summary of run {number}", [summary == run["summary"]])
        if not number:
            yield from _files(path, masks, content)


def _files(path: Path, masks: Sequence[CaptionedMask], content: Any) -> Iterator[Comparison]:
    lines = released_lines(masks)
    same = [lines.startswith(content["json_first_line"] + "\n")]
    yield _exact(path, "first line", same)
    yield _exact(path, "text", [released_text(masks).startswith(content["text_head"])])
    if find_spec("pandas"):
        yield _exact(path, "table", [released_csv(lines).startswith(content["csv_head"])])


def _language(folder: Path, _: torch.device) -> Iterator[Comparison]:
    import spacy
    from spacy.tokens import Doc

    path = folder / "language.json"
    vocabulary = spacy.blank("en").vocab
    matches: dict[str, list[bool]] = {"head_noun": [], "noun_phrase": [], "prompt": []}
    for case in read_json(path, list):
        words = case["words"]
        spaces = [True] * (len(words) - 1) + [case["text"].endswith(" ")] * bool(words)
        parse = {name: case[name] for name in ("heads", "deps", "pos")}
        read = caption_noun(Doc(vocabulary, words, spaces, **parse), case["text"], _QUIRKS)
        for name, found in matches.items():
            found.append(getattr(read, name) == case[name])
    for name, found in matches.items():
        yield _exact(path, name.replace("_", " "), found)


def _steps(folder: Path, device: torch.device) -> Iterator[Comparison]:
    path, cases, arrays = _pair(folder, "steps", list)
    pairs = []
    for case in cases:
        if not case["forced_eos"]:
            pairs.append((_step(case, arrays, device), arrays[f"{case['id']}/probs"]))
    yield errors(path, "probabilities", *pairs, tolerance=_PROBABILITIES)


def _step(case: Any, arrays: dict[str, _Array], device: torch.device) -> Tensor:
    """Compute what the chains that are not done draw from, the columns of the vectors alone."""
    key, count, ids = case["id"], case["num_masks"], case["ids"]
    truncations = [Truncation(top_k=k) for k in case["top_k"]]
    truncations += [Truncation(top_p=p) for p in case["top_p"]]
    rows = np.flatnonzero(~arrays[f"{key}/done"]).tolist()
    logits_NRC = torch.from_numpy(arrays[f"{key}/logits"]).to(device)
    masks = [row % count for row in rows]
    weights_NN = other_weights(torch.from_numpy(arrays[f"{key}/similarity"]).to(device), _QUIRKS)
    others_AV = None
    if weights_NN is not None:
        mixed_AC = torch.einsum("an,nac->ac", weights_NN[masks], logits_NRC[:, rows])
        others_AV = _spread(mixed_AC, ids)
    probabilities_AV = step_probabilities(
        _spread(logits_NRC[masks, rows], ids),
        others_AV,
        [truncations[row // count] for row in rows],
        case["length"],
        _QUIRKS,
    )
    return probabilities_AV[:, ids]


def _spread(columns_AC: Tensor, ids: Sequence[int]) -> Tensor:
    """Put columns to their places in the vocabulary, (A, V)."""
    logits_AV = columns_AC.new_full((len(columns_AC), _VOCABULARY), _UNUSED_LOGIT)
    logits_AV[:, list(ids)] = columns_AC
    return logits_AV


class _Table:
    """Scores tokens by the last one and the number of tokens so far, as the vectors do."""

    def __init__(
        self,
        arrays: dict[str, _Array],
        case: Any,
        images: Sequence[Sequence[int]],
        device: torch.device,
    ) -> None:
        self._table = torch.from_numpy(arrays[f"{case['id']}/table"]).to(device)
        self._position = torch.from_numpy(arrays[f"{case['id']}/position"]).to(device)
        self._ids = case["ids"]
        self._column = {token: column for column, token in enumerate(self._ids)}
        self._column[START] = self._table.shape[1] - 1
        self._images = [list(some) for some in images]
        self._length = 0

    def extend(self, parents_U: Tensor, tokens_U: Tensor) -> Tensor:
        """Look up what comes next."""
        self._length += 1
        self._images = [self._images[parent] for parent in parents_U.tolist()]
        columns = [self._column[token] for token in tokens_U.tolist()]
        position = self._position[self._length % len(self._position)]
        found = [
            self._table[some, column] for some, column in zip(self._images, columns, strict=True)
        ]
        return torch.stack(found) + position

    def project(self, hidden_AD: Tensor) -> Tensor:
        """Put columns to their places."""
        return _spread(hidden_AD, self._ids)


def _chains(folder: Path, device: torch.device) -> Iterator[Comparison]:
    path, cases, arrays = _pair(folder, "chains", list)
    matches = []
    for case in cases:
        key, count = case["id"], case["num_masks"]
        tokens = sample_chains(
            _Table(arrays, case, [range(count)], device),
            torch.from_numpy(arrays[f"{key}/similarity"]).to(device),
            TRUNCATIONS,
            drawn_by_numbers(arrays[f"{key}/uniform"]),
            _QUIRKS,
        )
        matches.append(_same(tokens, arrays[f"{key}/tokens"]))
    yield _exact(path, "tokens", matches)


def _beams(folder: Path, device: torch.device) -> Iterator[Comparison]:
    path, content, arrays = _pair(folder, "beams", dict)
    matches = []
    for case in content["cases"]:
        count = case["num_masks"]
        table = _Table(arrays, case, [[image] for image in range(count)], device)
        matches.append(_same(beam_search(table, count, _QUIRKS, device), case["sequences"]))
    yield _exact(path, "tokens", matches)


def _coca(folder: Path, device: torch.device) -> Coca:
    config = read_json(folder / "coca_tiny.json", dict)["config"]
    text, vision = config["text_cfg"], config["vision_cfg"]
    heads = CocaHeads(
        vision_width=vision["head_width"],
        text_width=text["width"] // text["heads"],
        pooler_heads=vision["attn_pooler_heads"],
    )
    state = {k: torch.from_numpy(v) for k, v in read_npz(folder / _COCA).items()}
    return Coca(state, heads, device)


def _clip(folder: Path, device: torch.device) -> ClipEncoder:
    arrays = read_npz(folder / _CLIP)
    return ClipEncoder({name: torch.from_numpy(array) for name, array in arrays.items()}, device)


def _images(arrays: dict[str, _Array], device: torch.device) -> Tensor:
    pixels = torch.from_numpy(arrays["images"]).to(device).permute(0, 3, 1, 2).float() / 255
    enlarged = pixels.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    return normalise(enlarged, CLIP_MEAN, CLIP_STD)


def _coca_forward(folder: Path, device: torch.device) -> Iterator[Comparison]:
    path, coca = folder / "coca_forward.npz", _coca(folder, device)
    arrays, content = read_npz(path), read_json(folder / "coca_tiny.json", dict)
    close = partial(errors, path, tolerance=_FEATURES)
    images = coca.encode_images(_images(arrays, device))
    yield close("latents", (images.latents_NE, arrays["latents"]))
    yield close("image tokens", (images.tokens_NTD[:, ::3], arrays["image_tokens"]))
    rolled = CocaImages(images.tokens_NTD.roll(-1, dims=0), images.latents_NE)
    for name, some in (("logits", images), ("logits_rolled", rolled)):
        scorer = CocaScorer(coca, some, together=False)
        parents_U = torch.arange(len(some.tokens_NTD), device=device)
        tokens_LU = torch.from_numpy(arrays["tokens"]).to(device).T
        logits = [scorer.project(scorer.extend(parents_U, one)[:, 0]) for one in tokens_LU]
        found = torch.stack(logits, dim=1)[:, :, arrays["ids"].tolist()]
        yield close(name, (found, arrays[name]))
    beams = beam_search(CocaScorer(coca, images, together=False), len(parents_U), _QUIRKS, device)
    yield _exact(path, "tokens of beams", [_same(beams, arrays["beam/tokens"])])
    texts = [caption_texts(beams, _QUIRKS) == content["beam_captions"]]
    drawn = drawn_by_numbers(arrays["chain/uniform"])
    chains = _sampled(coca, images, 3, TRUNCATIONS, drawn)
    yield _exact(path, "tokens of chains", [_same(chains, arrays["chain/tokens"])])
    texts.append(caption_texts(chains, _QUIRKS) == content["chain_captions"])
    yield _exact(path, "captions", texts)
    if str(arrays["torch_chain/version"]) == torch.__version__ and device.type == "cpu":
        truncations = [Truncation(top_k=k) for k in (5, 9)]
        truncations += [Truncation(top_p=p) for p in (0.5, 0.8)]
        generator = torch.Generator().manual_seed(int(arrays["torch_chain/seed"]))
        chains = _sampled(coca, images, 2, truncations, drawn_by_generator(generator))
        same = [_same(chains, arrays["torch_chain/tokens"])]
        yield _exact(path, "tokens by torch's generator", same)


def _sampled(
    coca: Coca, images: CocaImages, count: int, truncations: Sequence[Truncation], draw: Any
) -> NDArray[np.int64]:
    """Sample captions of the first images."""
    some = CocaImages(images.tokens_NTD[:count], images.latents_NE[:count])
    similarity_NN = some.latents_NE @ some.latents_NE.T
    scorer = CocaScorer(coca, some, together=True)
    return sample_chains(scorer, similarity_NN, truncations, draw, _QUIRKS)


def _clip_forward(folder: Path, device: torch.device) -> Iterator[Comparison]:
    path, clip = folder / "clip_forward.npz", _clip(folder, device)
    arrays = read_npz(path)
    close = partial(errors, path, tolerance=_FEATURES)
    texts = [str(text) for text in arrays["texts"]]
    tokens = [_same(*pair) for pair in zip(clip.tokenize(texts), arrays["tokens"], strict=True)]
    yield _exact(path, "tokens", tokens)
    images_BE = clip.encode_images(_images(arrays, device))
    texts_LE = clip.encode_texts(texts)
    yield close("image features", (images_BE, arrays["image_features"]))
    yield close("text features", (texts_LE, arrays["text_features"]))
    yield close("logits", (_logits(clip, images_BE, texts), arrays["logits"]))


def _logits(clip: ClipEncoder, images_NE: Tensor, texts: Sequence[str]) -> Tensor:
    cosines_NS = F.normalize(images_NE, dim=-1) @ F.normalize(clip.encode_texts(texts), dim=-1).T
    return clip.logit_scale * cosines_NS


def _loader(folder: Path, _: torch.device) -> Iterator[Comparison]:
    path = folder / "loader.json"
    content = read_json(path, dict)
    matches = []
    for case in content["cases"]:
        row, rule = content["rows"][case["row"]], _RULES[case["mode"]]
        single, scores = bool(row["one_mask"]), row["doc"]
        pool = caption_pool(scores, rule, 1, _QUIRKS, single_mask=single)
        expected = case["pool"] if rule is not CaptionFilter.BEAM else case["captions"]
        same = sorted(pool.indices) == sorted(expected)
        if single and rule is CaptionFilter.DISTINCTIVE:  # equal scores may stand in any order
            same = same and [scores[i] for i in pool.indices] == [scores[i] for i in expected]
        passed = rule is not CaptionFilter.DISTINCTIVE or case["how"] == "filtered"
        matches.append(same and pool.passed == passed)
    yield _exact(path, "captions that are kept", matches)


def _whole(folder: Path, device: torch.device) -> Iterator[Comparison]:
    path, content, arrays = _pair(folder, "whole", dict)
    coca, clip = _coca(folder, device), _clip(folder, device)
    calls = itertools.count()
    masks: list[CaptionedMask] = []
    tokens: list[bool] = []
    logits: list[tuple[Tensor, _Array]] = []
    for number, image in enumerate(content["images"]):
        shape = (image["n_masks"], image["height"], image["width"])
        all_NHW = unpack(arrays[f"{number}/masks"], shape)
        kept_NHW = all_NHW[[bool(mask.any() and not mask.all()) for mask in all_NHW]]
        count = len(kept_NHW)
        captions: list[list[str]] = [[] for _ in kept_NHW]
        seen_NE = []
        for kind in CROP_KINDS:
            call = next(calls)
            crops_N3RR = mask_crops(
                arrays[f"{number}/image"], kept_NHW, kind, _SIDE, _QUIRKS, device
            )
            seen_NE.append(clip.encode_images(crops_N3RR))
            images = coca.encode_images(crops_N3RR)
            beams = beam_search(CocaScorer(coca, images, together=False), count, _QUIRKS, device)
            drawn = drawn_by_numbers(arrays[f"call{call}/uniform"])
            chains = _sampled(coca, images, count, TRUNCATIONS, drawn)
            tokens += [_same(beams, arrays[f"call{call}/beam"])]
            tokens += [_same(chains, arrays[f"call{call}/tokens"])]
            beam_texts, chain_texts = (caption_texts(some, _QUIRKS) for some in (beams, chains))
            for mask, said in enumerate(captions):
                said += [beam_texts[mask], *chain_texts[mask::count]]
        for mask, said in enumerate(captions):
            key = f"{image['img_id']}/{mask}"
            prompts = [noun_prompt(content["nouns"][caption]) for caption in said]
            caption_NS = _logits(clip, seen_NE[-1], said)
            noun_NS = _logits(clip, seen_NE[0], prompts)
            logits.append((noun_NS, arrays[f"{key}/v"]))
            if count > 1:
                logits.append((caption_NS, arrays[f"{key}/u"]))
            scores = caption_scores(caption_NS.cpu().numpy(), noun_NS.cpu().numpy(), mask, _QUIRKS)
            file, image_id = image["img_name"], image["img_id"]
            masks.append(CaptionedMask(file, image_id, mask, tuple(said), scores, count == 1))
    yield _exact(path, "tokens", tokens)
    yield errors(path, "logits", *logits, tolerance=_FEATURES)
    expected = [json.loads(line) for line in content["jsonl"].splitlines()]
    found_rows = [mask.released() for mask in masks]
    scores_of = [
        (np.array(a["doc"]), np.array(b["doc"])) for a, b in zip(found_rows, expected, strict=True)
    ]
    relative = [(a / b, np.ones_like(b)) for a, b in scores_of]
    yield errors(path, "scores, relative", *relative, tolerance=_TINY_SCORES)
    for row in (*found_rows, *expected):
        row["doc"] = None
    yield _exact(path, "lines", [a == b for a, b in zip(found_rows, expected, strict=True)])
    yield _exact(path, "text", [released_text(masks).startswith(content["text_head"])])


_COMPARES: Mapping[Callable[[Path, torch.device], Iterator[Comparison]], tuple[str, ...]] = {
    _matching: ("matching.json", "matching.npz"),
    _crops: ("crops_scores.json", "crops_scores.npz"),
    _scores: ("crops_scores.json", "crops_scores.npz"),
    _language: ("language.json",),
    _steps: ("steps.json", "steps.npz"),
    _chains: ("chains.json", "chains.npz"),
    _beams: ("beams.json", "beams.npz"),
    _coca_forward: ("coca_forward.npz", "coca_tiny.json", _COCA),
    _clip_forward: ("clip_forward.npz", _CLIP),
    _loader: ("loader.json",),
    _whole: ("whole.json", "whole.npz", "coca_tiny.json", _COCA, _CLIP),
}
"""What compares, and the files that it reads; the first one is named in the report."""
