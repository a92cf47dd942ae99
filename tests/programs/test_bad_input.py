"""Bad input of the programs: the right result, or one line that says what was expected and got.

Nothing half-written is left, and no traceback is shown.
"""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import spacy
from PIL import Image
from tqdm import tqdm

import hybridgl
import hybridgl_main
import save_attn_gem
from evaluation.records import read_records
from hybridgl.images import RgbImage
from hybridgl.program import run_program
from tests.factories_clip import clip_state, resnet_clip_state, save_npz
from tests.programs.conftest import refcoco_arguments
from tests.refer_factories import (
    HW,
    IMAGES_PER_SPLIT,
    mini_refer,
    png_that_claims,
    with_orientation,
)
from tests.run_folders import summary_of

BUNDLED = Path(hybridgl.__file__).parent / "weights" / "tiny"
PROGRAMS = [save_attn_gem.main, hybridgl_main.main]

pytestmark = pytest.mark.usefixtures("without_figures", "each_model_loaded_once")


def for_program(program, argv):
    """The arguments that a program has among those of stage 2."""
    argv = [*map(str, argv)]
    for flag in ("--output", "--proposals") if program is save_attn_gem.main else ():
        while flag in argv:
            at = argv.index(flag)
            argv = argv[:at] + argv[at + 2 :]
    return argv


def files_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def refused(capsys, tmp_path):
    """Checks that a program refuses its arguments in all of these words, and writes nothing."""

    def check(program, argv, *words):
        before = files_in(tmp_path)
        capsys.readouterr()
        assert program(for_program(program, argv)) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        *warnings, line = printed.err.splitlines()
        assert all(warning.startswith("WARNING: ") for warning in warnings)
        assert line.startswith("error: ")
        for word in words:
            assert str(word) in line
        assert files_in(tmp_path) == before

    return check


@pytest.fixture
def fresh(arguments, tmp_path):
    """Arguments for a small RefCOCO of which nothing is stored."""
    mini_refer("refcoco").write(tmp_path / "data")
    return refcoco_arguments(arguments, tmp_path)


def refcoco_images(tmp_path):
    """Those of the split val, in its order."""
    folder = tmp_path / "data" / "images" / "mscoco" / "images" / "train2014"
    return sorted(folder.iterdir(), reverse=True)[IMAGES_PER_SPLIT : 2 * IMAGES_PER_SPLIT]


def refs_of_val(tmp_path):
    """The refs file, what it holds, and those of the split val in it."""
    path = tmp_path / "data" / "refcoco" / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    return path, refs, [ref for ref in refs if ref["split"] == "val"]


def results_of(tmp_path):
    folder = tmp_path / "run"
    summary = json.loads((folder / "summary.json").read_text())
    return read_records(folder / "records.jsonl"), summary


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
        (["--shard", "0/3"], ["i from 1 to n, such as 2/8"]),
        (["--shard", "4/3"], ["i from 1 to n, such as 2/8"]),
        (["--shard", "1/99999"], ["n below 10,000"]),
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


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--fusion_mode", "L2L"], ["G2L, L2G, both, token_masking, attn_masking, crop", "'L2L'"]),
        (["--without", "gem"], ["relationship", "coherence", "position", "'gem'"]),
        (["--method", "gem"], ["hybridgl", "global_local", "'gem'"]),
        (["--protocol", "coco"], ["zero-shot", "lavt", "lisa", "phrasecut", "'coco'"]),
        (["--proposals", "masks.json"], ["sam, coco:FILE or gt", "'masks.json'"]),
    ],
    ids=lambda value: value[0],
)
def test_wrong_choice_of_a_run_lists_the_right_ones(given, words, capsys):
    with pytest.raises(SystemExit) as stop:
        hybridgl_main.main(given)
    assert stop.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    for word in [given[0], *words]:
        assert word in message


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
        (["--device", "mps"], ["'mps', which is not supported", "--device cpu"]),
        (["--device", "cuda:99"], ["'cuda:99'", "--device cpu"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_wrong_name_is_refused_before_anything_is_read(
    program, given, words, arguments, refused, tmp_path
):
    argv = arguments(tmp_path, "--refer_data_root", tmp_path / "data", *given)
    refused(program, argv, "Expected", *words)


@pytest.mark.parametrize(
    "given",
    [
        ["--alpha", "1.01"],
        ["--method", "global_local", "--mixing_weight", "nan"],
        ["--method", "global_local", "--alpha", "0.5"],
        ["--mixing_weight", "0.5"],
    ],
    ids=" ".join,
)
def test_wrong_setting_is_refused_before_anything_is_read(given, arguments, refused, tmp_path):
    argv = arguments(tmp_path, "--refer_data_root", tmp_path / "data", *given)
    refused(hybridgl_main.main, argv, "Expected", given[-2].lstrip("-"), "got ")


def test_error_stands_on_a_line_of_its_own_below_a_progress_bar(capsys):
    def body():
        for number in tqdm([2, 1, 0]):
            if not number:
                raise OSError("division by zero")

    assert run_program(body) == 2
    *_, bar, line = capsys.readouterr().err.splitlines()
    assert "2/3" in bar
    assert line == "error: division by zero"


def test_interruption_ends_with_a_line_and_the_usual_status(capsys):
    def body():
        raise KeyboardInterrupt

    assert run_program(body) == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on from here\n"


def test_a_reader_that_has_read_enough_is_no_error():
    """As in `program | head`."""
    command = [sys.executable, "-m", "hybridgl", "download", "--list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        program.stdout.close()
        assert program.stderr.read() == b""
    assert program.returncode == 0


# Missing and damaged files


@pytest.mark.parametrize("program", PROGRAMS)
def test_missing_data_names_the_expected_files(program, arguments, refused, tmp_path):
    argv = refcoco_arguments(arguments, tmp_path)
    root = tmp_path / "data"
    refused(program, argv, f"{root}/refcoco/refs(unc).p", "no data folder", "refer/README.md")
    mini_refer("refcoco").write(root)
    (root / "refcoco" / "refs(unc).p").unlink()
    refused(program, argv, "neither", "refs(unc).p", "refer/README.md")
    (root / "refcoco" / "instances.json").unlink()
    refused(program, argv, "instances.json", "refer/README.md")


@pytest.mark.parametrize("program", PROGRAMS)
def test_all_images_missing_is_named(program, fresh, refused, tmp_path):
    paths = refcoco_images(tmp_path)
    for path in paths:
        path.unlink()
    refused(program, fresh, "3 images", "3 missing", paths[0], "refer/README.md")


@pytest.mark.parametrize("program", PROGRAMS)
def test_missing_annotation_is_named(program, fresh, refused, tmp_path):
    path = tmp_path / "data" / "refcoco" / "instances.json"
    instances = json.loads(path.read_text())
    gone = refs_of_val(tmp_path)[2][0]["ann_id"]
    instances["annotations"] = [ann for ann in instances["annotations"] if ann["id"] != gone]
    path.write_text(json.dumps(instances))
    refused(program, fresh, f"annotation {gone} for ref", "got none", "the same release")


@pytest.mark.parametrize("program", PROGRAMS)
def test_broken_mask_is_refused_strictly_before_any_work(program, fresh, refused, tmp_path):
    path = tmp_path / "data" / "refcoco" / "instances.json"
    instances = json.loads(path.read_text())
    last = refs_of_val(tmp_path)[2][-1]["ann_id"]
    for annotation in instances["annotations"]:
        if annotation["id"] == last:
            annotation["segmentation"] = [[1, 2, 3, 4, 5]]
    path.write_text(json.dumps(instances))
    refused(program, [*fresh, "--strict"], f"Annotation {last} of image")


@pytest.mark.parametrize(
    ("cut", "words"), [("instances.json", "Expected whole JSON"), ("refs(unc).p", "cut short")]
)
def test_cut_annotation_file_is_named(cut, words, fresh, refused, tmp_path):
    path = tmp_path / "data" / "refcoco" / cut
    path.write_bytes(path.read_bytes()[:-10])
    refused(hybridgl_main.main, fresh, path, words)


def test_refs_without_a_sentence_are_refused(fresh, refused, tmp_path):
    path, refs, _ = refs_of_val(tmp_path)
    path.write_bytes(pickle.dumps([{**ref, "sentences": []} for ref in refs]))
    refused(hybridgl_main.main, fresh, "Expected sentences in refcoco val", "6 refs without any")


def test_refs_of_one_image_without_a_sentence_are_warned_of(fresh, tmp_path, capsys):
    path, refs, (first, *others) = refs_of_val(tmp_path)
    for ref in [first, *others]:
        if ref["image_id"] == first["image_id"]:
            ref["sentences"] = []
    path.write_bytes(pickle.dumps(refs))
    assert hybridgl_main.main([*fresh, "--without", "coherence"]) == 0
    records, summary = results_of(tmp_path)
    assert len(records) == 10
    assert [warning for warning in summary["warnings"] if "2 of 6 refs" in warning]
    assert summary["counts"]["refs_without_sentences"] == 2
    assert "missing or corrupt" not in capsys.readouterr().err


def test_pickle_that_calls_a_function_is_refused_and_not_run(fresh, refused, tmp_path):
    called = tmp_path / "called"

    class Caller:
        def __reduce__(self):
            return (os.mkdir, (str(called),))

    path, refs, _ = refs_of_val(tmp_path)
    path.write_bytes(pickle.dumps([*refs, Caller()]))
    refused(hybridgl_main.main, fresh, path, "mkdir, which was refused and not run")
    assert not called.exists()


@pytest.mark.parametrize(
    ("program", "option"),
    [
        (save_attn_gem.main, "--clip_weights"),
        (hybridgl_main.main, "--clip_weights"),
        (hybridgl_main.main, "--sam_checkpoint"),
    ],
)
def test_missing_weights_are_named(program, option, arguments, refused, tmp_path):
    argv = arguments(tmp_path, option, tmp_path / "gone.pt")
    refused(program, argv, f"Expected weights at {tmp_path / 'gone.pt'}", "check the path")


def test_sam_is_not_asked_for_where_it_takes_no_part(refcoco, tmp_path):
    assert hybridgl_main.main([*refcoco, "--sam_checkpoint", str(tmp_path / "gone.pth")]) == 0


def test_missing_weights_of_the_paper_say_where_they_come_from(
    arguments, refused, tmp_path, monkeypatch
):
    monkeypatch.setenv("HYBRIDGL_WEIGHTS", str(tmp_path / "weights"))
    argv = arguments(tmp_path, "--weights", "paper", "--spacy_model", BUNDLED / "spacy")
    refused(hybridgl_main.main, argv, "sam_vit_h_4b8939.pth", "run `hybridgl download paper`.")


def test_each_method_has_the_clip_that_it_was_published_with(
    arguments, refused, tmp_path, monkeypatch
):
    monkeypatch.setenv("HYBRIDGL_WEIGHTS", str(tmp_path / "weights"))
    for method, file in (("hybridgl", "ViT-B-16.pt"), ("global_local", "ViT-B-32.pt")):
        argv = arguments(tmp_path, "--weights", "paper", "--method", method, "--proposals", "gt")
        at = argv.index("--clip_weights")
        argv = [*argv[:at], *argv[at + 2 :], "--spacy_model", BUNDLED / "spacy"]
        refused(hybridgl_main.main, argv, tmp_path / "weights" / file)


@pytest.mark.parametrize("program", PROGRAMS)
def test_missing_spacy_model_is_named(program, arguments, refused, tmp_path):
    argv = arguments(tmp_path, "--spacy_model", "en_core_web_none")
    refused(program, argv, "'en_core_web_none'", "python -m spacy download", "--spacy_model")


def test_damaged_spacy_model_is_named(arguments, refused, tmp_path):
    folder = shutil.copytree(BUNDLED / "spacy", tmp_path / "spacy")
    path = folder / "parser" / "model"
    path.write_bytes(path.read_bytes()[:-100])
    refused(hybridgl_main.main, arguments(tmp_path, "--spacy_model", folder), folder)


def test_spacy_model_without_parts_of_speech_is_refused(arguments, refused, tmp_path):
    folder = tmp_path / "spacy"
    spacy.load(BUNDLED / "spacy", exclude=["attribute_ruler"]).to_disk(folder)
    argv = arguments(tmp_path, "--spacy_model", folder)
    refused(hybridgl_main.main, argv, "attribute_ruler and parser, got", "en_core_web_lg")


@pytest.fixture(scope="module")
def weights(clip_file, tmp_path_factory):
    """Files that are no weights of the option that they are given to."""
    folder = tmp_path_factory.mktemp("weights")
    for path in (clip_file, BUNDLED / "sam.npz"):
        (folder / path.name).write_bytes(path.read_bytes()[:-1000])
    save_npz(folder / "shallow.npz", clip_state(blocks=9))
    save_npz(folder / "resnet.npz", resnet_clip_state())
    return folder


@pytest.mark.parametrize(
    ("option", "file", "words", "more"),
    [
        ("--clip_weights", "clip.npz", ["clip.npz", "cut short"], []),
        ("--clip_weights", BUNDLED / "sam.npz", ["Expected CLIP weights"], []),
        ("--clip_weights", None, ["CLIP ViT-B-16", "width 128"], ["--clip_model", "ViT-B-16"]),
        ("--clip_weights", "shallow.npz", ["at least 10 vision blocks", "got 9", "ViT-B-16"], []),
        ("--clip_weights", None, ["got 12", "--masking_block"], ["--masking_block", "12"]),
        ("--clip_weights", "resnet.npz", ["vision transformer", "a ResNet", "ViT-B-16"], []),
        ("--sam_checkpoint", "sam.npz", ["sam.npz", "cut short"], []),
        ("--sam_checkpoint", None, ["Expected weights of SAM tiny in", "clip.npz"], []),
        ("--sam_checkpoint", BUNDLED / "sam.npz", ["vit_b", "tiny"], ["--sam_type", "vit_b"]),
    ],
)
def test_wrong_weights_are_refused_before_any_work(
    option, file, words, more, arguments, refused, clip_file, weights, tmp_path
):
    path = clip_file if file is None else weights / file
    argv = arguments(tmp_path, option, path, *more)
    refused(hybridgl_main.main, argv, *words)


@pytest.mark.parametrize("file", ["shallow.npz", "resnet.npz"])
def test_wrong_clip_is_refused_by_stage_1(file, arguments, refused, weights, tmp_path):
    argv = arguments(tmp_path, "--clip_weights", weights / file)
    refused(save_attn_gem.main, argv, "vision", "ViT-B-16")


def test_masking_block_beyond_the_last_is_refused_by_the_baseline(arguments, refused, tmp_path):
    """The random CLIP has as many blocks as ViT-B-16, so that another CLIP is no remedy."""
    argv = arguments(tmp_path, "--method", "global_local", "--masking_block", "12")
    refused(hybridgl_main.main, argv, "got 12", "--masking_block")


# Images of a dataset


def damaged_in_the_middle():
    """A PNG file whose head and end are whole."""
    noise = np.random.default_rng(0).integers(0, 256, (*HW, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[2000:2200] = bytes(200)
    return bytes(content)


UNREADABLE = {
    "missing": None,
    "empty": b"",
    "text": b"<html>404 Not Found</html>",
    "gigapixels": png_that_claims(60_000, 60_000),
    "truncated": "truncated",
    "too large": png_that_claims(8_000, 7_000),
    "damaged in the middle": damaged_in_the_middle(),
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_image_that_cannot_be_read_is_named_counted_and_scores_0(
    content, refcoco, refcoco_stocked, tmp_path, capsys
):
    whole, _ = results_of(refcoco_stocked)
    path = refcoco_images(tmp_path)[1]
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-200] if content == "truncated" else content)
    assert save_attn_gem.main(for_program(save_attn_gem.main, refcoco)) == 0
    assert "in 2 images" in capsys.readouterr().out
    assert hybridgl_main.main(refcoco) == 0
    records, summary = results_of(tmp_path)
    gone = [record for record in records if record.image_error]
    assert len(records) == len(whole) == 15
    assert len(gone) == 5
    assert {record.predictions["guided"].proposal for record in gone} == {None}
    assert all(record.gt_area > 0 for record in gone)
    kept = [record for record in whole if record.image_id != gone[0].image_id]
    assert [record for record in records if not record.image_error] == kept
    count = "images_missing" if content is None else "images_corrupt"
    assert summary["counts"][count] == 1
    lines = [line for line in summary["warnings"] if path.name in line]
    printed = capsys.readouterr().out
    assert lines
    assert all(f"note: {line}" in printed for line in lines)


def test_image_of_another_size_than_annotated_is_resized_named_and_counted(refcoco, tmp_path):
    path = refcoco_images(tmp_path)[1]
    with Image.open(path) as image:
        larger = image.resize((2 * HW[1], 2 * HW[0]))
    larger.save(path)
    assert hybridgl_main.main([*refcoco, "--without", "coherence"]) == 0
    records, summary = results_of(tmp_path)
    assert summary["counts"]["images_of_other_size"] == 1
    assert [line for line in summary["warnings"] if path.name in line]
    of_image = [record for record in records if str(record.image_id) in path.name]
    assert len(of_image) == 5
    assert {record.oracle_iou for record in of_image} == {1}
    assert {record.predictions["guided"].proposal for record in of_image} <= {0, 1}


def test_orientation_tag_turns_no_image_of_a_dataset(refcoco, refcoco_stocked, tmp_path):
    path = refcoco_images(tmp_path)[0]
    path.write_bytes(with_orientation(path.read_bytes(), 6))
    assert RgbImage(path).hw == (HW[1], HW[0])
    assert hybridgl_main.main(refcoco) == 0
    assert results_of(tmp_path)[0] == results_of(refcoco_stocked)[0]


def test_images_without_proposals_count_as_empty_masks(fresh, tmp_path, capsys):
    for path in refcoco_images(tmp_path)[:2]:
        Image.new("RGB", HW[::-1], (128, 128, 128)).save(path)
    argv = [*fresh, "--proposals", "sam", "--without", "coherence"]
    assert hybridgl_main.main(argv) == 0
    records, summary = results_of(tmp_path)
    empty = [record for record in records if record.num_proposals == 0]
    assert (len(records), len(empty)) == (15, 10)
    for record in empty:
        assert list(record.predictions) == ["features", "relations", "guided"]
        for variant, counts in record.predictions.items():
            assert (counts.proposal, counts.intersection) == (None, 0)
            assert record.union(variant) == record.gt_area
    assert summary["counts"]["without_proposals"] == 10
    assert summary["counts"]["left_out"] == 0  # quirk Q8 is Global-Local CLIP's
    assert "15 samples, 10 without proposals" in capsys.readouterr().out


@pytest.mark.slow
def test_figures_of_odd_samples_are_drawn(fresh, tmp_path, monkeypatch):
    """No proposal, mathematical signs, emoji, a sentence that is long, one that is blank."""
    monkeypatch.undo()
    Image.new("RGB", HW[::-1], (128, 128, 128)).save(refcoco_images(tmp_path)[0])
    path, refs, refs_val = refs_of_val(tmp_path)
    raws = ["$5 and $\\frac", "🔴 on the left", "red " * 300, " "]
    for ref, raw in zip(refs_val, raws, strict=False):
        ref["sentences"] = [{**ref["sentences"][0], "raw": raw}]
    path.write_bytes(pickle.dumps(refs))
    monkeypatch.setattr("evaluation.samples._FIGURES_OF_EACH_SORT", 2)
    assert hybridgl_main.main([*fresh, "--proposals", "sam"]) == 0
    assert len(list((tmp_path / "run" / "figures").iterdir())) == 7


def test_sentence_of_a_million_characters_is_cut_and_counted(fresh, tmp_path, caplog):
    path, refs, refs_val = refs_of_val(tmp_path)
    refs_val[0]["sentences"][0]["raw"] = "the red star " * 10**5
    path.write_bytes(pickle.dumps(refs))
    assert hybridgl_main.main(fresh) == 0
    assert summary_of(tmp_path)["counts"]["truncated"] == 1
    assert "A sentence of 1300000 characters, 'the red star" in caplog.text


@pytest.mark.parametrize("program", PROGRAMS)
def test_sentence_that_cannot_be_parsed_is_refused(program, fresh, tmp_path, capsys):
    path, refs, refs_val = refs_of_val(tmp_path)
    refs_val[0]["sentences"][0]["raw"] = "\ud83d"
    path.write_bytes(pickle.dumps(refs))
    assert program(for_program(program, fresh)) == 2
    assert "valid Unicode" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.rglob("*.partial"))


# Store and output


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("place", ["file", "file/below"])
def test_store_in_the_place_of_a_file_is_refused(program, place, arguments, refused, tmp_path):
    (tmp_path / "file").write_text("precious")
    argv = arguments(tmp_path, "--limit", "1", "--store", tmp_path / place)
    words = f"Expected a folder for --store, got the file {tmp_path / 'file'}"
    refused(program, argv, words, "--store DIR")


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_output_in_the_place_of_a_file_is_refused(place, arguments, refused, tmp_path):
    (tmp_path / "file").write_text("precious")
    argv = arguments(tmp_path, "--output", tmp_path / place)
    words = f"Expected a folder for --output, got the file {tmp_path / 'file'}"
    refused(hybridgl_main.main, argv, words, "--output DIR")


def test_output_that_cannot_be_written_is_refused(arguments, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    refused(hybridgl_main.main, arguments(tmp_path), f"got {tmp_path}", "--output DIR")


def full(_descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("program", PROGRAMS)
def test_full_disk_leaves_nothing_half_written(program, fresh, refused, monkeypatch):
    monkeypatch.setattr(os, "fsync", full)
    words = "Cannot write", "No space left on device", "--store DIR"
    refused(program, [*fresh, "--limit", "1"], *words)


def test_full_disk_of_the_output_is_named(refcoco, refused, tmp_path, monkeypatch):
    """Everything is stored, so that the output is the first thing to be written."""
    monkeypatch.setattr(os, "fsync", full)
    refused(hybridgl_main.main, refcoco, "Cannot write", "No space left", "--output DIR")
    monkeypatch.undo()
    monkeypatch.setattr("evaluation.run.draw_samples", lambda *_: None)
    assert hybridgl_main.main(refcoco) == 0
