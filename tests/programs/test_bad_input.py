"""Bad input: the right result, or one line that says what was expected, what came and what to do.

Nothing half-written is left, and no traceback is shown.
"""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import shutil
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import spacy
import torch
from PIL import Image
from tqdm import tqdm

import hybridgl
import hybridgl_main
import save_attn_gem
from evaluation.records import read_records
from hybridgl.config import MethodConfig
from hybridgl.errors import HybridGLError
from hybridgl.images import MAX_ASPECT_RATIO, RgbImage
from hybridgl.masks import Proposals
from hybridgl.methods.hybridgl import HybridGL
from hybridgl.models.models import Models
from hybridgl.weights.registry import weight_set
from tests.factories_clip import clip_state, save_npz
from tests.refer_factories import HW, IMAGES_PER_SPLIT, mini_refer
from utils.runtime import run_program

CARRIED = Path(hybridgl.__file__).parent / "weights" / "tiny"
PROGRAMS = [save_attn_gem.main, hybridgl_main.main]

pytestmark = pytest.mark.usefixtures("without_figures")


@pytest.fixture
def refused(capsys, tmp_path):
    """Checks that a program refuses its arguments as it should, in all of these words."""

    def check(program, argv, *words):
        if program is save_attn_gem.main and "--output" in argv:
            at = argv.index("--output")
            argv = argv[:at] + argv[at + 2 :]
        capsys.readouterr()
        assert program(argv) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        assert line.startswith("error: ")
        for word in words:
            assert word in line
        assert not (tmp_path / "run").exists()
        assert not list(tmp_path.rglob("*.partial"))

    return check


@pytest.fixture
def refcoco(arguments, tmp_path):
    """Arguments for a small folder in RefCOCO's layout, which lies in ``tmp_path / "data"``."""
    mini_refer("refcoco").write(tmp_path / "data")
    more = ["--dataset", "refcoco", "--weights", "tiny", "--refer_data_root"]
    return [*arguments(tmp_path), *more, str(tmp_path / "data")]


def refcoco_images(tmp_path) -> list[Path]:
    """Those of the split val, in its order."""
    folder = tmp_path / "data" / "images" / "mscoco" / "images" / "train2014"
    return sorted(folder.iterdir(), reverse=True)[IMAGES_PER_SPLIT : 2 * IMAGES_PER_SPLIT]


def refs_of_val(tmp_path) -> tuple[Path, list, list]:
    """The refs file, what it holds, and those of the split val in it."""
    path = tmp_path / "data" / "refcoco" / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    return path, refs, [ref for ref in refs if ref["split"] == "val"]


# Arguments


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--dataset", "coco"], ["shapes", "refcoco+", "phrasecut"]),
        (["--weights", "huge"], ["tiny", "paper"]),
        (["--clip_model", "RN101"], ["ViT-B-16", "RN50"]),
        (["--sam_type", "vit_x"], ["vit_h", "tiny"]),
        (["--profile", "fixed"], ["reference", "corrected"]),
        (["--dtype", "float16"], ["float32", "bfloat16"]),
        (["--limit", "many"], ["int"]),
    ],
    ids=lambda value: value[0],
)
def test_wrong_choice_lists_the_right_ones(program, given, words, capsys):
    with pytest.raises(SystemExit) as stop:
        program(given)
    assert stop.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert given[0] in message
    for word in [*words, given[1]]:
        assert word in message


def test_wrong_fusion_mode_lists_the_right_ones(capsys):
    with pytest.raises(SystemExit) as stop:
        hybridgl_main.main(["--fusion_mode", "L2L"])
    assert stop.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "G2L, L2G, both, token_masking, attn_masking, crop, got 'L2L'" in message


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--split", "test"], ["train, val, testA, testB", "'test'"]),
        (["--dataset", "refcoco", "--split", "test"], ["testA", "split_by google"]),
        (["--dataset", "refcoco+", "--split_by", "umd"], ["unc", "'umd'"]),
        (["--dataset", "refcocog", "--split", "testA"], ["train, val, test", "'testA'"]),
        (["--dataset", "refcocog", "--splitBy", "google", "--split", "test"], ["train, val"]),
        (["--dataset", "phrasecut", "--split", "testA"], ["train, val, test, miniv", "'testA'"]),
        (["--limit", "0"], ["at least 1", "got 0"]),
        (["--device", "tpu"], ["auto, cpu, cuda", "'tpu'"]),
        (["--device", "cuda:99"], ["'cuda:99'", "--device cpu"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_wrong_name_is_refused_before_anything_is_written(
    program, given, words, arguments, refused, tmp_path
):
    argv = [*arguments(tmp_path), "--refer_data_root", str(tmp_path / "data"), *given]
    refused(program, argv, "Expected", *words)
    assert not list(tmp_path.iterdir())


def test_error_stands_on_a_line_of_its_own_below_a_progress_bar(capsys):
    def body():
        return [1 / number for number in tqdm([2, 1, 0])]

    assert run_program(body, expected=(ZeroDivisionError,)) == 2
    *_, bar, line = capsys.readouterr().err.splitlines()
    assert "2/3" in bar
    assert line == "error: division by zero"


def test_interruption_ends_with_a_line_and_the_usual_status(capsys):
    def body():
        raise KeyboardInterrupt

    assert run_program(body, expected=(ValueError,)) == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on from here\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": "huge"}, "weights among tiny, paper, got 'huge'"),
        ({"profile": "fixed"}, "profile 'reference' or 'corrected', got 'fixed'"),
        ({"fusion_mode": "L2L"}, "a fusion mode among G2L, .*, got 'L2L'"),
        ({"device": "tpu"}, "device auto, cpu, cuda or cuda:i, got 'tpu'"),
        ({"dtype": "float16"}, "dtype float32 or bfloat16, got 'float16'"),
    ],
    ids=lambda value: next(iter(value)),
)
def test_wrong_name_for_a_model_lists_the_right_ones(given, message):
    with pytest.raises(HybridGLError, match=message):
        HybridGL.from_pretrained(**given)


# Missing and damaged files


@pytest.mark.parametrize("program", PROGRAMS)
def test_missing_data_names_the_expected_files(program, arguments, refused, tmp_path):
    argv = [*arguments(tmp_path), "--dataset", "refcoco", "--weights", "tiny"]
    root = tmp_path / "data"
    argv += ["--refer_data_root", str(root)]
    refused(program, argv, f"{root}/refcoco/refs(unc).p", "no data folder", "refer/README.md")
    mini_refer("refcoco").write(root)
    (root / "refcoco" / "refs(unc).p").unlink()
    refused(program, argv, "neither", "refs(unc).p", "refer/README.md")
    (root / "refcoco" / "instances.json").unlink()
    refused(program, argv, "instances.json", "refer/README.md")


@pytest.mark.parametrize("program", PROGRAMS)
def test_all_images_missing_is_named(program, refcoco, refused, tmp_path):
    paths = refcoco_images(tmp_path)
    for path in paths:
        path.unlink()
    refused(program, refcoco, "3 images", "3 are missing", str(paths[0]), "refer/README.md")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("program", PROGRAMS)
def test_missing_annotation_is_named(program, refcoco, refused, tmp_path):
    path = tmp_path / "data" / "refcoco" / "instances.json"
    instances = json.loads(path.read_text())
    gone = refs_of_val(tmp_path)[2][0]["ann_id"]
    instances["annotations"] = [ann for ann in instances["annotations"] if ann["id"] != gone]
    path.write_text(json.dumps(instances))
    refused(program, refcoco, f"annotation {gone}, which it lacks", "the same release")


def test_broken_mask_is_named_before_any_work(refcoco, refused, tmp_path):
    path = tmp_path / "data" / "refcoco" / "instances.json"
    instances = json.loads(path.read_text())
    last = refs_of_val(tmp_path)[2][-1]["ann_id"]
    for annotation in instances["annotations"]:
        if annotation["id"] == last:
            annotation["segmentation"] = [[1, 2, 3, 4, 5]]
    path.write_text(json.dumps(instances))
    refused(hybridgl_main.main, refcoco, f"Annotation {last} of image")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("cut", ["instances.json", "refs(unc).p"])
def test_cut_annotation_file_is_named(cut, refcoco, refused, tmp_path):
    path = tmp_path / "data" / "refcoco" / cut
    path.write_bytes(path.read_bytes()[:-10])
    refused(hybridgl_main.main, refcoco, str(path), "cut short")


def test_refs_without_a_sentence_are_refused(refcoco, refused, tmp_path):
    path, refs, _ = refs_of_val(tmp_path)
    path.write_bytes(pickle.dumps([{**ref, "sentences": []} for ref in refs]))
    refused(hybridgl_main.main, refcoco, "Expected sentences in refcoco val", "6 refs without any")


def test_refs_of_one_image_without_a_sentence_are_a_problem_of_the_data(refcoco, tmp_path):
    path, refs, (first, *others) = refs_of_val(tmp_path)
    for ref in [first, *others]:
        if ref["image_id"] == first["image_id"]:
            ref["sentences"] = []
    path.write_bytes(pickle.dumps(refs))
    assert hybridgl_main.main(refcoco) == 0
    assert len(read_records(tmp_path / "run" / "records.jsonl")) == 10
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [problem for problem in summary["warnings"] if "2 of 6 refs" in problem]
    assert summary["counts"]["refs_without_sentences"] == 2


@pytest.mark.parametrize(
    ("program", "option"),
    [
        (save_attn_gem.main, "--clip_weights"),
        (hybridgl_main.main, "--clip_weights"),
        (hybridgl_main.main, "--sam_checkpoint"),
    ],
)
def test_missing_weights_are_named(program, option, arguments, refused, tmp_path):
    argv = [*arguments(tmp_path), option, str(tmp_path / "gone.pt")]
    refused(program, argv, f"Expected weights at {tmp_path / 'gone.pt'}", "check the path")
    assert not list(tmp_path.iterdir())


def test_missing_weights_of_the_paper_say_where_they_come_from(
    arguments, refused, tmp_path, monkeypatch
):
    monkeypatch.setenv("HYBRIDGL_WEIGHTS", str(tmp_path / "weights"))
    argv = arguments(tmp_path, "--weights", "paper")
    refused(hybridgl_main.main, argv, "sam_vit_h_4b8939.pth", "fetch it from https://")


@pytest.mark.parametrize("program", PROGRAMS)
def test_missing_spacy_model_is_named(program, arguments, refused, tmp_path):
    argv = [*arguments(tmp_path), "--spacy_model", "en_core_web_none"]
    refused(program, argv, "'en_core_web_none'", "python -m spacy download", "--spacy_model")
    assert not list(tmp_path.iterdir())


def test_damaged_spacy_model_is_named(arguments, refused, tmp_path):
    folder = Path(shutil.copytree(CARRIED / "spacy", tmp_path / "spacy"))
    path = folder / "parser" / "model"
    path.write_bytes(path.read_bytes()[:-100])
    argv = arguments(tmp_path, "--spacy_model", str(folder))
    refused(hybridgl_main.main, argv, "got none that can be loaded", str(folder))


def test_spacy_model_without_parts_of_speech_is_refused(arguments, refused, tmp_path):
    spacy.load(CARRIED / "spacy", exclude=["attribute_ruler"]).to_disk(tmp_path / "spacy")
    argv = arguments(tmp_path, "--spacy_model", str(tmp_path / "spacy"))
    refused(
        hybridgl_main.main,
        argv,
        "attribute_ruler and parser, got",
        "use --spacy_model en_core_web_lg",
    )


def test_wrong_weights_are_refused_before_any_work(arguments, refused, clip_file, tmp_path):
    def check(option, path, *words, more=()):
        argv = [*arguments(tmp_path), option, str(path), *more]
        refused(hybridgl_main.main, argv, str(path), *words)
        assert not (tmp_path / "store").exists()

    for path in (clip_file, CARRIED / "sam.npz"):
        cut = tmp_path / path.name
        cut.write_bytes(path.read_bytes()[:-1000])
    check("--clip_weights", tmp_path / "clip.npz", "cut short")
    check("--clip_weights", CARRIED / "sam.npz", "Expected OpenAI CLIP weights")
    more = ["--clip_model", "ViT-B-16"]
    check("--clip_weights", clip_file, "Expected CLIP ViT-B-16", "width 128", more=more)
    shallow = save_npz(tmp_path / "shallow.npz", clip_state(blocks=9))
    check("--clip_weights", shallow, "at least 10 vision blocks", "got 9", "Use ViT-B-16")
    check("--sam_checkpoint", tmp_path / "sam.npz", "cut short")
    check("--sam_checkpoint", clip_file, "got something without image_encoder")
    more = ["--sam_type", "vit_b"]
    check("--sam_checkpoint", CARRIED / "sam.npz", "vit_b", "got those of tiny", more=more)


def test_pickle_that_calls_a_function_is_refused_and_not_run(refcoco, refused, tmp_path):
    called = tmp_path / "called"

    class Caller:
        def __reduce__(self):
            return (os.mkdir, (str(called),))

    path, refs, _ = refs_of_val(tmp_path)
    path.write_bytes(pickle.dumps([*refs, Caller()]))
    refused(hybridgl_main.main, refcoco, str(path), "mkdir, which was refused and not run")
    assert not called.exists()


# Images of a dataset


def png_that_claims(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def records_and_summary(tmp_path):
    folder = tmp_path / "run"
    summary = json.loads((folder / "summary.json").read_text())
    return read_records(folder / "records.jsonl"), summary


@pytest.mark.parametrize(
    ("content", "count"),
    [
        (None, "images_missing"),
        (b"", "images_damaged"),
        (b"<html>404 Not Found</html>", "images_damaged"),
        (png_that_claims(60_000, 60_000), "images_damaged"),
        ("truncated", "images_damaged"),
    ],
    ids=["missing", "empty", "text", "gigapixels", "truncated"],
)
def test_image_that_cannot_be_read_is_named_counted_and_scores_0(
    content, count, refcoco, tmp_path, capsys
):
    assert hybridgl_main.main(refcoco) == 0
    whole, _ = records_and_summary(tmp_path)
    path = refcoco_images(tmp_path)[1]
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-200] if content == "truncated" else content)
    assert save_attn_gem.main([*refcoco[: refcoco.index("--output")], *refcoco[-6:]]) == 0
    assert hybridgl_main.main(refcoco) == 0
    records, summary = records_and_summary(tmp_path)
    gone = [record for record in records if record.image_missing]
    assert len(records) == len(whole) == 15
    assert len(gone) == 5
    assert {record.picks["guided"].index for record in gone} == {None}
    assert all(record.target_area > 0 for record in gone)
    kept = [record for record in whole if record.image_id != gone[0].image_id]
    assert [record for record in records if not record.image_missing] == kept
    assert summary["counts"][count] == 1
    (line,) = [line for line in summary["warnings"] if path.name in line]
    assert f"note: {line}" in capsys.readouterr().out


@pytest.mark.parametrize("error", ["too large", "damaged in the middle"])
@pytest.mark.parametrize("proposals", ["sam", "gt"])
def test_image_that_turns_out_to_be_unreadable_is_named_and_counted(
    error, proposals, refcoco, tmp_path, caplog, capsys
):
    path = refcoco_images(tmp_path)[1]
    if error == "too large":
        path.write_bytes(png_that_claims(8_000, 7_000))
    else:
        noise = np.random.default_rng(0).integers(0, 256, (*HW, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, "PNG")
        content = bytearray(buffer.getvalue())
        content[2000:2200] = bytes(200)
        path.write_bytes(content)
    stage_1 = [*refcoco[: refcoco.index("--output")], *refcoco[-6:]]
    assert save_attn_gem.main(stage_1) == 0
    assert "in 2 images" in capsys.readouterr().out
    assert hybridgl_main.main([*refcoco, "--proposals", proposals]) == 0
    records, summary = records_and_summary(tmp_path)
    assert sum(record.image_missing for record in records) == 5
    assert (len(records), summary["counts"]["images_damaged"]) == (15, 1)
    (line,) = [line for line in summary["warnings"] if "cannot be decoded" in line]
    assert path.name in line
    assert f"note: {line}" in capsys.readouterr().out
    assert "Nothing is predicted for it" in caplog.text


def test_image_of_another_size_than_annotated_is_resized_named_and_counted(refcoco, tmp_path):
    path = refcoco_images(tmp_path)[1]
    with Image.open(path) as image:
        larger = image.resize((2 * HW[1], 2 * HW[0]))
    larger.save(path)
    assert hybridgl_main.main(refcoco) == 0
    records, summary = records_and_summary(tmp_path)
    assert summary["counts"]["images_of_other_size"] == 1
    assert [line for line in summary["warnings"] if path.name in line]
    of_image = [record for record in records if str(record.image_id) in path.name]
    assert len(of_image) == 5
    assert max(record.best_iou for record in of_image) > 0.7


def test_orientation_tag_turns_a_image_of_ones_own_but_not_one_of_a_dataset(refcoco, tmp_path):
    paths = refcoco_images(tmp_path)
    assert hybridgl_main.main(refcoco) == 0
    records = (tmp_path / "run" / "records.jsonl").read_bytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    segment, content = exif.tobytes(), paths[0].read_bytes()
    tag = b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    paths[0].write_bytes(content[:2] + tag + content[2:])
    assert hybridgl_main.main([*refcoco, "--overwrite"]) == 0
    assert (tmp_path / "run" / "records.jsonl").read_bytes() == records
    turned = RgbImage(paths[0])
    assert turned.hw == (HW[1], HW[0])
    stored = RgbImage(paths[0], apply_orientation=False)
    np.testing.assert_array_equal(turned.pixels_HW3, np.rot90(stored.pixels_HW3, -1))


def test_images_without_proposals_count_as_empty_masks(refcoco, tmp_path, capsys):
    for path in refcoco_images(tmp_path)[:2]:
        Image.new("RGB", HW[::-1], (128, 128, 128)).save(path)
    assert hybridgl_main.main(refcoco) == 0
    records = read_records(tmp_path / "run" / "records.jsonl")
    empty = [record for record in records if record.num_proposals == 0]
    assert (len(records), len(empty)) == (15, 10)
    for record in empty:
        assert list(record.picks) == ["pure", "guided", "no_gem"]
        for pick in record.picks.values():
            assert (pick.index, pick.intersection, pick.union) == (None, 0, record.target_area)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["counts"]["without_proposals"] == 10
    assert "15 samples, 10 without proposals" in capsys.readouterr().out


def test_figures_of_odd_samples_are_drawn(refcoco, tmp_path, monkeypatch):
    """No proposal, mathematical signs, emoji, a sentence that is long, one that is blank."""
    monkeypatch.undo()
    Image.new("RGB", HW[::-1], (128, 128, 128)).save(refcoco_images(tmp_path)[0])
    path, refs, refs_val = refs_of_val(tmp_path)
    raws = ["$5 and $\\frac", "🔴 on the left", "red " * 300, " "]
    for ref, raw in zip(refs_val, raws, strict=False):
        ref["sentences"] = [{**ref["sentences"][0], "raw": raw}]
    path.write_bytes(pickle.dumps(refs))
    monkeypatch.setattr("evaluation.report._FIGURES_OF_EACH_SORT", 2)
    assert hybridgl_main.main(refcoco) == 0
    assert len(list((tmp_path / "run" / "figures").iterdir())) == 7


@pytest.mark.parametrize(
    ("raw", "words"),
    [("x" * 10**6, "10,000 characters, got one of 1,000,000"), ("\ud83d", "valid Unicode")],
    ids=["a million characters", "half a character"],
)
@pytest.mark.parametrize("program", PROGRAMS)
def test_sentence_that_cannot_be_parsed_is_refused(program, raw, words, refcoco, refused, tmp_path):
    path, refs, refs_val = refs_of_val(tmp_path)
    refs_val[0]["sentences"][0]["raw"] = raw
    path.write_bytes(pickle.dumps(refs))
    refused(program, refcoco, words)


# Store and output


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("place", ["file", "file/below"])
def test_store_in_the_place_of_a_file_is_refused(program, place, arguments, refused, tmp_path):
    (tmp_path / "file").write_text("precious")
    argv = [*arguments(tmp_path, "--limit", "1"), "--store", str(tmp_path / place)]
    refused(program, argv, str(tmp_path / place), "--store DIR")
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_output_in_the_place_of_a_file_is_refused(place, arguments, refused, tmp_path):
    (tmp_path / "file").write_text("precious")
    argv = [*arguments(tmp_path), "--output", str(tmp_path / place)]
    words = f"Expected a folder for the output, got the file {tmp_path / 'file'}"
    refused(hybridgl_main.main, argv, words, "--output DIR")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_output_that_cannot_be_written_is_refused(arguments, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    refused(hybridgl_main.main, arguments(tmp_path), f"got {tmp_path}", "--output DIR")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("program", PROGRAMS)
def test_full_disk_leaves_nothing_half_written(program, arguments, refused, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    argv = arguments(tmp_path, "--limit", "1")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        refused(program, argv, "Cannot write", "No space left on device", "free space")
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert hybridgl_main.main(argv) == 0
    # Everything is stored, so the output is the first thing to be written.
    shutil.rmtree(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert hybridgl_main.main(argv) == 2
    assert not list((tmp_path / "run").iterdir())


# Images of one's own


class FourQuarters:
    """Stands for SAM: the quarters of any image that has them, best first, at most ``most``."""

    def __init__(self, most=4):
        self.most = most

    def propose(self, image_HW3, _config):
        height, width, _ = image_HW3.shape
        rows, columns = np.indices((height, width))
        upper, left = rows < height // 2, columns < width // 2
        quarters = [upper & left, upper & ~left, ~upper & left, ~upper & ~left]
        masks = np.stack([quarter for quarter in quarters if quarter.any()])[: self.most]
        return Proposals(
            masks_NHW=masks,
            boxes_xywh=np.array([box_of(mask_HW) for mask_HW in masks]),
            predicted_iou=np.ones(len(masks), np.float32),
            stability=np.ones(len(masks), np.float32),
        )

    def submit(self, images, config):
        return [partial(self.propose, image_HW3, config) for image_HW3 in images]


def box_of(mask_HW):
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    return columns[0], rows[0], columns[-1] - columns[0], rows[-1] - rows[0]


def model_of(clip_file: Path, proposer=None) -> HybridGL:
    weights = weight_set("tiny", clip_weights=clip_file)
    models = Models(weights, device=torch.device("cpu"))
    if proposer:
        models.proposer = proposer
    return HybridGL(models, MethodConfig())


@pytest.fixture(scope="module")
def model(clip_file) -> HybridGL:
    return model_of(clip_file, FourQuarters())


@pytest.fixture
def colours() -> Image.Image:
    """Blocks of random colours, 32 x 24 pixels."""
    blocks = np.random.default_rng(0).integers(0, 256, (4, 4, 3))
    return Image.fromarray(np.kron(blocks, np.ones((6, 8, 1))).astype(np.uint8))


def assert_same_result(first, second):
    np.testing.assert_array_equal(first.mask, second.mask)
    np.testing.assert_array_equal(first.scores, second.scores)
    np.testing.assert_array_equal(first.attention_map, second.attention_map)


def test_path_pil_image_and_array_give_the_same(model, colours, tmp_path):
    colours.save(tmp_path / "a.png")
    sources = [tmp_path / "a.png", str(tmp_path / "a.png"), colours, np.array(colours)]
    first, *others = model.segment_all(sources, ["the red block"] * 4)
    for other in others:
        assert_same_result(first, other)


@pytest.mark.parametrize(
    ("convert", "extension"),
    [
        (lambda image: image.convert("L"), "png"),
        (lambda image: image.convert("1"), "png"),
        (lambda image: image.convert("LA"), "png"),
        (lambda image: image.convert("RGBA"), "png"),
        (lambda image: image.quantize(16), "png"),
        (lambda image: image.quantize(16), "gif"),
        (lambda image: image.convert("CMYK"), "tif"),
        (lambda image: image.convert("YCbCr"), "tif"),
    ],
    ids=["greyscale", "bilevel", "grey and alpha", "RGBA", "palette", "GIF", "CMYK", "YCbCr"],
)
def test_kinds_of_images_give_what_their_rgb_version_gives(
    model, colours, convert, extension, tmp_path
):
    image = convert(colours)
    path = tmp_path / f"image.{extension}"
    image.save(path)
    with Image.open(path) as opened:
        rgb = opened.convert("RGB")
        expression = "the red block on the left"
        for source in (path, opened):
            assert_same_result(model.segment(source, expression), model.segment(rgb, expression))


@pytest.mark.parametrize("kind", ["RGBA", "palette", "palette of bytes"])
def test_transparent_parts_are_laid_over_white(kind, tmp_path):
    red_and_clear = Image.new("RGBA", (8, 4), (0, 200, 0, 0))
    red_and_clear.paste((200, 0, 0, 255), (0, 0, 4, 4))
    image = red_and_clear
    if kind != "RGBA":
        image = Image.new("P", (8, 4), 1)
        image.putpalette([200, 0, 0, 0, 200, 0])
        image.paste(0, (0, 0, 4, 4))
        image.info["transparency"] = 1 if kind == "palette" else bytes([255, 0])
    image.save(tmp_path / "a.png")
    pixels_HW3 = RgbImage(tmp_path / "a.png").pixels_HW3
    assert pixels_HW3[:, :4].reshape(-1, 3).tolist() == [[200, 0, 0]] * 16
    assert pixels_HW3[:, 4:].reshape(-1, 3).tolist() == [[255, 255, 255]] * 16


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    deep_HW = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(deep_HW).save(tmp_path / name)
        pixels_HW3 = RgbImage(tmp_path / name).pixels_HW3
        for channel in range(3):
            np.testing.assert_array_equal(pixels_HW3[..., channel].ravel(), np.arange(256))


def test_float_pixels_are_refused(model, tmp_path):
    Image.new("F", (8, 8), 0.5).save(tmp_path / "a.tif")
    with pytest.raises(
        HybridGLError, match=r"Expected integer pixels in .*a\.tif, got floats\. Convert"
    ):
        model.segment(tmp_path / "a.tif", "a star")


def test_images_that_differ_in_palette_alone_are_not_taken_for_one(model, colours):
    image = colours.quantize(16)
    other = image.copy()
    other.putpalette([255 - value for value in image.getpalette()])
    first, second = model.segment_all([image, other], ["the red block"] * 2)
    assert not np.array_equal(first.scores, second.scores)


@pytest.mark.parametrize("extension", ["png", "jpg", "gif", "tif", "bmp", "webp"])
def test_truncated_image_is_refused_wherever_it_is_cut(colours, extension, tmp_path):
    path = tmp_path / f"a.{extension}"
    colours.save(path)
    content = path.read_bytes()
    for share in (0.02, 0.1, 0.3, 0.5, 0.7):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(HybridGLError, match=rf"Expected a (whole )?image in {path}"):
            RgbImage(path).pixels_HW3  # noqa: B018


def test_truncated_pil_image_is_refused(colours):
    buffer = io.BytesIO()
    colours.save(buffer, "PNG")
    lazy = Image.open(io.BytesIO(buffer.getvalue()[:-40]))
    with pytest.raises(HybridGLError, match="Expected a whole image in the PIL image"):
        RgbImage(lazy)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gone.png", r"Expected an image at .*gone\.png, found no such file. Check the path"),
        (".", "cannot read it: Is a directory. Check the path"),
        ("a\0b", "cannot read it: embedded null byte"),
        (None, "Expected an image as a path, a PIL image .* got NoneType"),
        ([[0, 0, 0]], "got list"),
        (np.zeros((4, 4)), r"shape \(H, W, 3\) and dtype uint8, got \(4, 4\) float64. Convert"),
        (np.zeros((4, 4, 3)), r"got \(4, 4, 3\) float64"),
        (np.zeros((4, 4, 4), np.uint8), r"got \(4, 4, 4\) uint8"),
        (np.zeros((3, 4, 4), np.uint8), r"got \(3, 4, 4\) uint8"),
        (np.zeros((0, 4, 3), np.uint8), "Expected an image with pixels in the array, got 4 x 0"),
        (np.zeros((1, 1000, 3), np.uint8), "at most 100 to 1 in the array, got 1000 x 1 pixels"),
        (np.zeros((1000, 1, 3), np.uint8), "at most 100 to 1 in the array, got 1 x 1000 pixels"),
    ],
)
def test_source_that_is_no_image_is_refused(model, source, message):
    with pytest.raises(HybridGLError, match=message):
        model.segment(source, "a star")


def test_gigapixels_are_refused_without_being_decoded(model, tmp_path):
    (tmp_path / "a.png").write_bytes(png_that_claims(60_000, 60_000))
    with pytest.raises(HybridGLError, match="Expected an image of at most 50,000,000 pixels"):
        model.segment(tmp_path / "a.png", "a star")


@pytest.mark.parametrize("hw", [(1, 1), (2, 1), (3, 5), (1, MAX_ASPECT_RATIO), (400, 4)])
def test_extreme_shapes_give_a_result(clip_file, hw):
    """Through SAM itself, whose own preprocessing has to cope with them."""
    pixels_HW3 = np.random.default_rng(0).integers(0, 256, (*hw, 3), dtype=np.uint8)
    result = model_of(clip_file).segment(pixels_HW3, "the red star on the left")
    assert result.mask.shape == result.attention_map.shape == hw
    assert np.isfinite(result.attention_map).all()
    assert np.isfinite(result.scores).all()


def test_longest_shape_that_is_taken_still_has_rows_in_the_input_of_sam():
    assert 256 / MAX_ASPECT_RATIO > 1


# Expressions


@pytest.mark.parametrize("expression", ["", "  \t\n", "\N{NO-BREAK SPACE}", None, 3])
def test_empty_expression_is_refused(model, colours, expression):
    with pytest.raises(HybridGLError, match="Expected an expression in words, got"):
        model.segment(colours, expression)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("x" * 10**6, r"at most 10,000 characters, got one of 1,000,000, 'xxx.*shorten it"),
        ("red \ud83d star", "in valid Unicode"),
    ],
    ids=["a million characters", "half a character"],
)
def test_expression_that_cannot_be_parsed_is_refused(model, colours, expression, message):
    with pytest.raises(HybridGLError, match=message):
        model.segment(colours, expression)


@pytest.mark.parametrize(
    "expression",
    [
        "the red star " * 33,
        "左边的红色圆圈",
        "la estrella roja a la izquierda",
        "🔴⭐ on the left",
        "?!...",
        "{} {0} %s",
        "a\0b",
        "\N{ZERO WIDTH SPACE}",
        "the red\nstar",
    ],
)
def test_odd_expression_gives_a_result(model, colours, expression):
    result = model.segment(colours, expression)
    assert result.mask.any()
    assert result.expression.noun_phrase
    assert np.isfinite(result.scores).all()


def test_long_expression_is_cut_and_counted(clip_file, colours, caplog):
    model = model_of(clip_file, FourQuarters())
    model.segment(colours, "the red star " * 33)
    assert model.clip.num_truncated > 0
    assert "longer than CLIP's 77 tokens" in caplog.text


def test_images_and_expressions_must_pair_up(model, colours):
    with pytest.raises(HybridGLError, match=r"as many images as expressions, got 1 and 2\. Repeat"):
        model.segment_all([colours], ["a", "b"])


def test_nothing_to_segment_gives_nothing(model):
    assert model.segment_all([], []) == []


# The method at its limits


def test_no_proposals_give_an_empty_mask(clip_file):
    grey_HW3 = np.full((64, 96, 3), 128, np.uint8)
    result = model_of(clip_file).segment(grey_HW3, "the red star on the left")
    assert not result.mask.any()
    assert not result.pure_mask.any()
    assert (result.box, result.candidates, len(result.scores)) == (None, (), 0)
    assert result.attention_map.shape == (64, 96)


@pytest.mark.parametrize("most", [1, 2])
def test_fewer_masks_than_candidates(clip_file, colours, most):
    result = model_of(clip_file, FourQuarters(most)).segment(colours, "the star left of the dot")
    assert len(result.candidates) == len(result.scores) == most
    assert result.mask.any()


def test_constant_heat_map_favours_no_mask(clip_file, colours, monkeypatch):
    model = model_of(clip_file, FourQuarters())
    monkeypatch.setattr(
        model, "patch_similarity", lambda _, phrases: torch.full((len(phrases), 8, 8), 0.25)
    )
    result = model.segment(colours, "the star on the left")
    assert not result.attention_map.any()
    assert {candidate.coherence for candidate in result.candidates} == {0.0}
    best = max(result.candidates, key=lambda candidate: candidate.relation)
    np.testing.assert_array_equal(result.mask, best.mask)
