"""Whatever is wrong with a bundle: one line that names the file and says what to do, no crash, no score."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pcrun.bundle import Bundle
from pcrun.cli import main
from pcrun.detector import AnomalyDetector
from pcrun.errors import BundleError
from pcrun.manifest import (
    EMBEDDER_NAME,
    INDEX_NAME,
    MANIFEST_DIGEST_NAME,
    MANIFEST_NAME,
    MEMORY_BANK_NAME,
    NEIGHBOURS_NAME,
    REPORT_NAME,
    SAMPLES_NAME,
)
from tests.conftest import BundleMaker
from tests.contract.damage import (
    TouchesFile,
    edit_manifest,
    files_of,
    flipped,
    forge,
    npy_with_header,
    packed,
    replace_manifest,
    saved,
    write_zip,
)

hnswlib = pytest.importorskip("hnswlib", reason="hnswlib is not installed: the tiny bundle is made with it")
onnx = pytest.importorskip("onnx", reason="onnx is not installed: the tiny bundle is made with it")
from tests.data.make_tiny_bundle import M, embedder_onnx, make_index, smooth_image  # noqa: E402

FILES = (
    EMBEDDER_NAME,
    INDEX_NAME,
    MEMORY_BANK_NAME,
    NEIGHBOURS_NAME,
    REPORT_NAME,
    "samples/000.png",
    "samples/001.png",
    SAMPLES_NAME,
)
PARTS = (EMBEDDER_NAME, INDEX_NAME, MEMORY_BANK_NAME, NEIGHBOURS_NAME)  # those that Bundle.load looks into
ADVICE = re.compile(
    "[Cc]opy the bundle again|`pcexport (build|pack)`|do not use it|Upgrade patchcore-edge|check the path"
)
REWEIGHTED = {"image_score": "reweighted"}
OTHER_SEED = {**REWEIGHTED, "seed": 1}
OTHER_DIM = {**REWEIGHTED, "seed": 2, "dim": 12}
NO_DEADLINE = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

Refusal = Callable[[Path], str]


@pytest.fixture
def bundle(copied_bundle: BundleMaker) -> Path:
    """A sound bundle that has every kind of file."""
    return copied_bundle(**REWEIGHTED)


@pytest.fixture
def sigterm_kept() -> Iterator[None]:
    """`main` sets a handler for its process; here the process is pytest."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def cli_error(capsys: pytest.CaptureFixture[str], sigterm_kept: None) -> Callable[[list[str]], str]:
    """Runs `pcrun` in this process; it must end as every error does. Returns the message."""

    def run(arguments: list[str]) -> str:
        capsys.readouterr()
        code = main(arguments)
        out, err = capsys.readouterr()
        return error_message(code, out, err)

    return run


@pytest.fixture
def refusal(cli_error: Callable[[list[str]], str]) -> Refusal:
    """The message with which both `Bundle.load` and `pcrun` refuse a bundle."""

    def refuse(path: Path) -> str:
        with pytest.raises(BundleError) as caught:
            Bundle.load(path)
        message = str(caught.value)
        told = cli_error(["--bundle", str(path), "--images", "never-opened.png"])
        assert without_addresses(told) == without_addresses(message)
        assert ADVICE.search(message), message
        return message

    return refuse


def error_message(code: int, out: str, err: str) -> str:
    """Exit code 2, nothing on standard output, exactly one line on standard error."""
    assert (code, out) == (2, "")
    assert err.startswith("pcrun: error: ")
    assert err.count("\n") == 1 and err.endswith("\n"), err
    return err.removeprefix("pcrun: error: ").rstrip("\n")


def without_addresses(message: str) -> str:
    """A message without memory addresses: numpy shows objects that it could not parse."""
    return re.sub("0x[0-9a-f]+", "0x", message)


def load_or_message(path: Path) -> Bundle | str:
    """The bundle, or the one line with which it is refused; any other exception is a failure."""
    try:
        return Bundle.load(path)
    except BundleError as error:
        return one_line(str(error))


def one_line(message: str) -> str:
    assert message.isprintable(), message
    return message


def in_form(bundle: Path, form: str) -> Path:
    return packed(bundle) if form == "zip" else bundle


def test_the_bundle_is_sound_before_it_is_damaged(bundle: Path) -> None:
    assert set(files_of(bundle)) == {MANIFEST_NAME, MANIFEST_DIGEST_NAME, *FILES}
    assert Bundle.load(bundle).digest == Bundle.load(packed(bundle)).digest
    assert Bundle.load(packed(bundle, zipfile.ZIP_DEFLATED)).neighbours is not None


# --- damage that the manifest's hashes show ---

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[:-1],
    "halved": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "extended": lambda data: data + b"\0",
    "first byte": lambda data: flipped(data, 0),
    "tenth byte": lambda data: flipped(data, 9, bit=7),
    "middle byte": lambda data: flipped(data, len(data) // 2, bit=3),
    "last byte": lambda data: flipped(data, len(data) - 1),
}


@pytest.mark.parametrize("form", ["directory", "zip"])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damage_of_any_file_is_refused(
    bundle: Path, refusal: Refusal, name: str, damage: str, form: str
) -> None:
    (bundle / name).write_bytes(DAMAGES[damage]((bundle / name).read_bytes()))
    message = refusal(in_form(bundle, form))
    assert message.startswith(name)
    assert "the manifest says" in message or "SHA-256" in message


@pytest.mark.parametrize("form", ["directory", "zip"])
@pytest.mark.parametrize("name", [MANIFEST_NAME, MANIFEST_DIGEST_NAME, *FILES])
def test_a_missing_file_is_named(bundle: Path, refusal: Refusal, name: str, form: str) -> None:
    (bundle / name).unlink()
    assert f"{name} is missing" in refusal(in_form(bundle, form))


@pytest.mark.parametrize("form", ["directory", "zip"])
@pytest.mark.parametrize("other", [OTHER_SEED, OTHER_DIM], ids=["other seed", "other dim"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_bundle_is_refused(
    bundle: Path, made_bundle: BundleMaker, refusal: Refusal, name: str, other: dict[str, Any], form: str
) -> None:
    shutil.copy(made_bundle(**other) / name, bundle / name)
    assert refusal(in_form(bundle, form)).startswith(name)


def test_the_manifest_of_another_bundle_fits_no_file(
    bundle: Path, made_bundle: BundleMaker, refusal: Refusal
) -> None:
    shutil.copy(made_bundle(**OTHER_SEED) / MANIFEST_NAME, bundle / MANIFEST_NAME)
    assert refusal(bundle).startswith(f"{MANIFEST_NAME} does not match its SHA-256 in {MANIFEST_DIGEST_NAME}")
    shutil.copy(made_bundle(**OTHER_SEED) / MANIFEST_DIGEST_NAME, bundle / MANIFEST_DIGEST_NAME)
    assert refusal(bundle).startswith(f"{EMBEDDER_NAME} does not match its SHA-256")


@NO_DEADLINE
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_refused(bundle: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(FILES))
    original = (bundle / name).read_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    (bundle / name).write_bytes(flipped(original, position, data.draw(st.integers(0, 7))))
    refused = load_or_message(bundle)
    (bundle / name).write_bytes(original)
    assert isinstance(refused, str) and refused.startswith(name)


# --- structural damage behind a hash that was forged to match ---


@pytest.mark.parametrize("damage", ["truncated", "halved", "emptied", "extended"])
@pytest.mark.parametrize("name", PARTS)
def test_a_forged_hash_does_not_hide_a_wrong_length(
    bundle: Path, refusal: Refusal, name: str, damage: str
) -> None:
    forge(bundle, name, DAMAGES[damage]((bundle / name).read_bytes()))
    assert name in refusal(bundle)


@pytest.mark.parametrize(
    "name, other, words",
    [
        (INDEX_NAME, OTHER_SEED, "another vector than the memory bank"),
        (INDEX_NAME, OTHER_DIM, "200 vectors of 12 dimensions, the memory bank 200 of 8"),
        (MEMORY_BANK_NAME, OTHER_SEED, "another vector than the memory bank"),
        (MEMORY_BANK_NAME, OTHER_DIM, "[200, 12], the manifest says float32 [200, 8]"),
        (EMBEDDER_NAME, OTHER_DIM, "[1, 96, 12], the manifest says 'patch_embeddings' float32 [1, 96, 8]"),
    ],
)
@pytest.mark.parametrize("form", ["directory", "zip"])
def test_parts_of_different_builds_are_refused(
    bundle: Path,
    made_bundle: BundleMaker,
    refusal: Refusal,
    name: str,
    other: dict[str, Any],
    words: str,
    form: str,
) -> None:
    forge(bundle, name, (made_bundle(**other) / name).read_bytes())
    message = refusal(in_form(bundle, form))
    assert words in message
    assert "different builds" in message or "same build" in message


def rows_of(data: bytes) -> np.ndarray:
    """The array in a .npy file that numpy itself wrote."""
    return np.frombuffer(data, np.float32, offset=128).reshape(200, 8).copy()


def with_value(value: float) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        rows = rows_of(data)
        rows[7, 3] = value
        return saved(rows)

    return change


def header(shape: str, descr: str = "'<f4'", fortran: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"


def with_header(text: str, version: tuple[int, int] = (1, 0)) -> Callable[[bytes], bytes]:
    return lambda data: npy_with_header(text, data[128:], version)


NO_HEADER = "no valid .npy header"
SAYS = "the manifest says float32 [200, 8]"
BANK_CHANGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "NaN": (with_value(math.nan), "not finite"),
    "infinity": (with_value(-math.inf), "not finite"),
    "squares overflow": (with_value(1e30), "too large"),
    "float64": (lambda data: saved(rows_of(data).astype(np.float64)), SAYS),
    "big-endian": (lambda data: saved(rows_of(data).astype(">f4")), SAYS),
    "fortran order": (lambda data: saved(np.asfortranarray(rows_of(data))), SAYS),
    "one row less": (lambda data: saved(rows_of(data)[:-1]), SAYS),
    "flat": (lambda data: saved(rows_of(data).ravel()), SAYS),
    "structured": (lambda data: saved(np.zeros(200, [("a", "<f4", (8,))])), SAYS),
    "huge count": (with_header(header(f"({2**62}, 8)")), SAYS),
    "huge both": (with_header(header(f"({2**62}, {2**62})")), SAYS),
    "negative count": (with_header(header("(-200, 8)")), SAYS),
    "true rows": (with_header(header("(200, True)")), ""),
    "payload short": (lambda data: data[:-4], "its header needs"),
    "payload long": (lambda data: data + bytes(32), "its header needs"),
    "no magic": (lambda data: b"\x93NUMPX" + data[6:], NO_HEADER),
    "magic only": (lambda data: data[:8], NO_HEADER),
    "version 9.9": (lambda data: data[:6] + b"\x09\x09" + data[8:], NO_HEADER),
    "header runs past the end": (lambda data: data[:8] + b"\xff\xff" + data[10:], NO_HEADER),
    "header announces 4 GiB": (lambda data: data[:6] + b"\x02\x00\xff\xff\xff\xff" + data[12:], NO_HEADER),
    "header of 5000 characters": (with_header(header("(200, 8)") + " " * 5000), NO_HEADER),
    "header not closed": (with_header("{'descr': ("), NO_HEADER),
    "header with an open string": (with_header("{'descr': '''"), NO_HEADER),
    "header calls a function": (with_header(header("__import__('os').getcwd()")), NO_HEADER),
    "header nested deeply": (with_header("(" * 1500 + ")" * 1500), NO_HEADER),
    "header is a list": (with_header("[]"), NO_HEADER),
    "header of another encoding": (with_header("\xff\xfe{}", version=(3, 0)), NO_HEADER),
    "no such type": (with_header(header("(200, 8)", descr="'<f3'")), NO_HEADER),
    "type is a number": (with_header(header("(200, 8)", descr="7")), NO_HEADER),
}


@pytest.mark.filterwarnings("ignore:Reading `.npy`:UserWarning")
@pytest.mark.parametrize("change", BANK_CHANGES)
def test_a_forged_memory_bank_is_refused(bundle: Path, refusal: Refusal, change: str) -> None:
    damage, words = BANK_CHANGES[change]
    forge(bundle, MEMORY_BANK_NAME, damage((bundle / MEMORY_BANK_NAME).read_bytes()))
    message = refusal(bundle)
    assert message.startswith(MEMORY_BANK_NAME) and words in message


def test_a_pickle_is_never_opened(bundle: Path, refusal: Refusal, tmp_path: Path) -> None:
    trap = tmp_path / "unpickled"
    objects = np.array([TouchesFile(trap)] * 8, dtype=object)
    forge(bundle, MEMORY_BANK_NAME, saved(objects, allow_pickle=True))
    assert f"holds object [8], {SAYS}" in refusal(bundle)
    assert not trap.exists()


def with_ids(change: Callable[[np.ndarray], Any]) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        ids = np.frombuffer(data, np.int32, offset=128).reshape(200, 3).copy()
        replaced = change(ids)
        return saved(ids if replaced is None else replaced)

    return damage


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda ids: ids.__setitem__((5, 2), 200), "outside the memory bank (0..199)"),
        (lambda ids: ids.__setitem__((0, 1), -1), "outside the memory bank (0..199)"),
        (lambda ids: ids.__setitem__((9, 1), 2**31 - 1), "outside the memory bank (0..199)"),
        (lambda ids: ids[::-1], "nearest to itself"),
        (lambda ids: ids.astype(np.int64), "holds int64 [200, 3], the manifest says int32 [200, 3]"),
        (lambda ids: ids[:, :2], "holds int32 [200, 2], the manifest says int32 [200, 3]"),
        (np.asfortranarray, "the manifest says int32 [200, 3]"),
    ],
    ids=["too large", "negative", "int32 max", "of other rows", "int64", "fewer", "fortran order"],
)
def test_forged_neighbours_are_refused(
    bundle: Path, refusal: Refusal, change: Callable[[np.ndarray], Any], words: str
) -> None:
    forge(bundle, NEIGHBOURS_NAME, with_ids(change)((bundle / NEIGHBOURS_NAME).read_bytes()))
    message = refusal(bundle)
    assert message.startswith(NEIGHBOURS_NAME) and words in message


def with_number(code: str, position: int, value: float) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        size = struct.calcsize(code)
        return data[:position] + struct.pack(f"={code}", value) + data[position + size :]

    return change


ELEMENT_BYTES = 4 + 4 * 2 * M + 4 * 8 + 8  # link count, links, vector, label
INDEX_CHANGES = {
    "huge count": (with_number("Q", 16, 2**60), "entries"),
    "largest count": (with_number("Q", 16, 2**64 - 1), "entries"),
    "no entries": (with_number("Q", 16, 0), "no entry"),
    "room for more": (with_number("Q", 8, 2**40), "reserves room"),
    "huge element": (with_number("Q", 24, 2**62), "element"),
    "offset outside": (with_number("Q", 32, 2**63), "labels at offset"),
    "other M": (with_number("Q", 72, 5), "M"),
    "entry point outside": (with_number("I", 52, 200), "starts searches at element 200"),
    "level below zero": (with_number("i", 48, -1), "highest level is -1"),
    "level too high": (with_number("i", 48, 63), "highest level is 63"),
    "link outside": (with_number("I", 96 + 4, 200), "links to element 200"),
    "link far outside": (with_number("I", 96 + 3 * ELEMENT_BYTES + 4, 2**32 - 1), "links to element"),
    "too many links": (with_number("H", 96, 2 * M + 1), f"a list of {2 * M + 1} links"),
    "deleted entry": (with_number("B", 96 + 2, 1), "deleted"),
    "label outside": (with_number("Q", 96 + ELEMENT_BYTES - 8, 200), "label 200"),
    "label twice": (with_number("Q", 96 + ELEMENT_BYTES - 8, 1), "no entry with label 0"),
    "vector changed": (with_number("f", 96 + 4 + 8 * M, 0.125), "another vector"),
    "upper list too long": (with_number("I", 96 + 200 * ELEMENT_BYTES, 2**32 - 4), "upper links"),
}


@pytest.mark.parametrize("change", INDEX_CHANGES)
def test_a_forged_index_is_refused(bundle: Path, refusal: Refusal, change: str) -> None:
    damage, words = INDEX_CHANGES[change]
    forge(bundle, INDEX_NAME, damage((bundle / INDEX_NAME).read_bytes()))
    message = refusal(bundle)
    assert message.startswith(INDEX_NAME) and words in message


def test_an_index_of_half_the_rows_is_refused(bundle: Path, refusal: Refusal, tmp_path: Path) -> None:
    rows = rows_of((bundle / MEMORY_BANK_NAME).read_bytes())
    make_index(rows[:100]).save_index(str(tmp_path / "half.hnsw"))
    forge(bundle, INDEX_NAME, (tmp_path / "half.hnsw").read_bytes())
    assert "holds 100 vectors of 8 dimensions, the memory bank 200" in refusal(bundle)


def test_an_index_with_other_parameters_is_refused(bundle: Path, refusal: Refusal) -> None:
    edit_manifest(bundle, lambda m: m["memory_bank"]["index"].__setitem__("m", M + 1))
    assert f"{INDEX_NAME} has M={M}, the manifest says {M + 1}" in refusal(bundle)


def embedder(change: Callable[[Any], None]) -> bytes:
    model = onnx.load_from_string(embedder_onnx(seed=0))
    change(model)
    return model.SerializeToString()


def keep_weights_outside(model: Any) -> None:
    weights = next(t for t in model.graph.initializer if t.name == "weights")
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="../weights.bin")


def two_outputs(model: Any) -> None:
    model.graph.output.append(model.graph.output[0])


EMBEDDER_CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "external data": (keep_weights_outside, "'../weights.bin'"),
    "custom operator": (lambda m: setattr(m.graph.node[1], "domain", "evil.ops"), "'evil.ops'"),
    "compiled engine": (
        lambda m: (
            setattr(m.graph.node[1], "domain", "com.microsoft"),
            setattr(m.graph.node[1], "op_type", "EPContext"),
        ),
        "EPContext",
    ),
    "no graph": (lambda m: m.ClearField("graph"), "no graph"),
    "two outputs": (two_outputs, "2 outputs, expected one"),
    "no input": (lambda m: m.graph.ClearField("input"), "0 inputs"),
    "float input": (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 1), "'image' float32"),
    "height and width exchanged": (
        lambda m: m.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("image", 2, [1, 48, 32, 3])),
        "[1, 48, 32, 3], the manifest says 'image' uint8 [1, 32, 48, 3]",
    ),
    "other batch": (
        lambda m: m.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("image", 2, [2, 32, 48, 3])),
        "[2, 32, 48, 3]",
    ),
    "no shape": (
        lambda m: m.graph.output[0].type.tensor_type.ClearField("shape"),
        "the manifest says 'patch_embeddings'",
    ),
    "input name of two lines": (lambda m: setattr(m.graph.input[0], "name", "a\nb"), r"'a\nb' uint8"),
}


@pytest.mark.parametrize("change", EMBEDDER_CHANGES)
def test_a_forged_embedder_is_refused(bundle: Path, refusal: Refusal, change: str) -> None:
    damage, words = EMBEDDER_CHANGES[change]
    forge(bundle, EMBEDDER_NAME, embedder(damage))
    message = refusal(bundle)
    assert message.startswith(EMBEDDER_NAME) and words in message


@pytest.mark.filterwarnings("ignore:Reading `.npy`:UserWarning")
@NO_DEADLINE
@given(data=st.data())
def test_a_forged_flip_in_any_part_raises_only_bundle_errors(bundle: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(PARTS))
    original = (bundle / name).read_bytes()
    # Headers are where it matters most.
    position = data.draw(st.integers(0, 127) | st.integers(0, len(original) - 1))
    forge(bundle, name, flipped(original, position, data.draw(st.integers(0, 7))))
    load_or_message(bundle)
    forge(bundle, name, original)


@pytest.mark.filterwarnings("ignore:Reading `.npy`:UserWarning")
@NO_DEADLINE
@given(data=st.data())
def test_a_forged_flip_in_bank_or_index_is_refused_or_changes_no_image_score(
    tiny_bundle: Path, data: st.DataObject
) -> None:
    image = smooth_image(np.random.default_rng(5))
    truth = AnomalyDetector.load(tiny_bundle, provider="cpu", threads=1, exactness="full")(image).image_score
    name = data.draw(st.sampled_from([INDEX_NAME, MEMORY_BANK_NAME]))
    original = (tiny_bundle / name).read_bytes()
    position = data.draw(st.integers(0, 400) | st.integers(0, len(original) - 1))
    forge(tiny_bundle, name, flipped(original, position, data.draw(st.integers(0, 7))))
    loaded = load_or_message(tiny_bundle)
    if isinstance(loaded, Bundle):
        scored = AnomalyDetector.load(loaded, provider="cpu", threads=1, ef=1)(image)
        assert scored.image_score == pytest.approx(truth, rel=1e-6)
    forge(tiny_bundle, name, original)


# --- the manifest ---


def put(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set one key of the manifest, however deep."""

    def edit(manifest: dict[str, Any]) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value

    return edit


def renamed(name: str) -> Callable[[dict[str, Any]], None]:
    """List the report under another name."""

    def edit(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = manifest["files"].pop(REPORT_NAME)

    return edit


def without(*path: str) -> Callable[[dict[str, Any]], None]:
    def edit(manifest: dict[str, Any]) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        del manifest[path[-1]]

    return edit


MANIFEST_EDITS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "newer schema": (put("schema_version", value=2), "schema version 2, this runtime reads up to 1. Upgrade"),
    "schema 0": (put("schema_version", value=0), "schema_version 0"),
    "schema as text": (put("schema_version", value="1"), "schema_version '1'"),
    "schema true": (put("schema_version", value=True), "schema_version True"),
    "no schema": (without("schema_version"), "schema_version None"),
    "other method": (put("method", value="padim"), "'padim'"),
    "unknown key": (put("treshold", value=1), "unknown key 'treshold'"),
    "unknown key deeper": (put("scoring", "treshold", value=1), "Did you mean 'threshold'?"),
    "unknown key of two lines": (put("a\nb", value=1), r"unknown key 'a\nb'"),
    "missing section": (without("embedding"), "missing embedding"),
    "missing key": (without("memory_bank", "count"), "manifest.memory_bank: missing count"),
    "missing hash": (without("files", REPORT_NAME, "sha256"), "missing sha256"),
    "file not listed": (without("files", EMBEDDER_NAME), "does not list embedder.onnx"),
    "index not listed": (without("files", INDEX_NAME), "does not list memory_bank.hnsw"),
    "neighbours not listed": (without("files", NEIGHBOURS_NAME), "does not list neighbours.npy"),
    "text for a number": (put("search", "ef", value="16"), "manifest.search.ef: expected a whole number"),
    "true for a number": (put("search", "ef", value=True), "expected a whole number, got True"),
    "fraction for a count": (put("memory_bank", "count", value=200.0), "expected a whole number, got 200.0"),
    "list for a section": (put("scoring", value=[]), "manifest.scoring: expected a mapping"),
    "null for a section": (put("search", value=None), "manifest.search: expected a mapping"),
    "text for a list": (put("embedding", "layers", value="relu"), "expected a list"),
    "number for a file": (put("files", "a\nb", value=3), r"manifest.files.'a\nb': expected a mapping"),
    "NaN": (put("scoring", "map_sigma_px", value=math.nan), "NaN is not a number"),
    "infinity": (put("scoring", "map_sigma_px", value=math.inf), "Infinity is not a number"),
    "number beyond floats": (put("scoring", "map_sigma_px", value=10**400), "expected a finite number"),
    "negative sigma": (put("scoring", "map_sigma_px", value=-1), "map_sigma_px must be 0..256"),
    "count 0": (put("memory_bank", "count", value=0), "count must be 1.."),
    "count beyond int32": (put("memory_bank", "count", value=2**31), "count must be 1.."),
    "other count": (put("memory_bank", "count", value=199), "[200, 8], the manifest says float32 [199, 8]"),
    "huge count": (put("memory_bank", "count", value=2**31 - 1), "the manifest says float32 [2147483647, 8]"),
    "other dim": (put("memory_bank", "dim", value=9), "embedding.dim is 8 but memory_bank.dim is 9"),
    "other space": (put("memory_bank", "space", value="cosine"), "space must be 'l2', got 'cosine'"),
    "ef 0": (put("search", "ef", value=0), "ef must be 1..65536"),
    "other grid": (put("embedding", "grid_width", value=13), "float32 [1, 104, 8]"),
    "other batch": (put("embedding", "batch", value=2), "[2, 32, 48, 3]"),
    "batch open": (put("embedding", "batch", value=None), "['batch', 32, 48, 3]"),
    "crop larger than the image": (
        put("preprocess", "crop_height_px", value=33),
        "must fit into the resized",
    ),
    "other crop": (put("preprocess", "crop_height_px", value=31), "[1, 31, 48, 3]"),
    "unknown score": (put("scoring", "image_score", value="mean"), "image_score must be one of"),
    "no neighbours": (put("scoring", "neighbours", value=0), "neighbours belong to 'reweighted'"),
    "other neighbours": (put("scoring", "neighbours", value=4), "the manifest says int32 [200, 4]"),
    "size of a file": (put("files", INDEX_NAME, "bytes", value=1), "memory_bank.hnsw has 17476 bytes"),
    "parent folder": (renamed("../report.html"), "'../report.html' outside the bundle"),
    "parent folder inside": (renamed("samples/../report.html"), "outside the bundle"),
    "absolute path": (renamed("/etc/hostname"), "'/etc/hostname' outside the bundle"),
    "backslashes": (renamed("..\\report.html"), "outside the bundle"),
    "drive letter": (renamed("C:report.html"), "'C:report.html' outside the bundle"),
    "share": (renamed("//server/share"), "outside the bundle"),
    "no name": (renamed(""), "'' outside the bundle"),
    "dot": (renamed("./report.html"), "outside the bundle"),
    "NUL in a name": (renamed("a\0b"), r"'a\x00b' outside the bundle"),
    "two lines in a name": (renamed("a\nb"), r"'a\nb' outside the bundle"),
    "half a character": (renamed("\ud800"), r"'\ud800' outside the bundle"),
    "name too long": (renamed("x" * 5000), "x" * 100),
    "a folder": (renamed("samples"), "samples"),
}


@pytest.mark.parametrize("form", ["directory", "zip"])
@pytest.mark.parametrize("edit", MANIFEST_EDITS)
def test_a_wrong_manifest_is_refused(bundle: Path, refusal: Refusal, edit: str, form: str) -> None:
    change, words = MANIFEST_EDITS[edit]
    edit_manifest(bundle, change)
    message = refusal(in_form(bundle, form))
    assert words in message


MANIFEST_TEXTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "emptied": (lambda data: b"", "not valid JSON"),
    "truncated": (lambda data: data[: len(data) // 2], "not valid JSON"),
    "extended": (lambda data: data + b"}", "not valid JSON"),
    "not JSON": (lambda data: b"name: tiny", "not valid JSON"),
    "not UTF-8": (lambda data: data.replace(b"tiny", b"\xff\xfe"), "not valid JSON"),
    "a list": (lambda data: b"[]", "no JSON object"),
    "a number": (lambda data: b"1", "no JSON object"),
    "nested deeply": (lambda data: b"[" * 200_000, "not valid JSON"),
    "endless number": (
        lambda data: data.replace(b'"count": 200', b'"count": ' + b"9" * 10_000),
        "not valid JSON",
    ),
    "float overflow": (lambda data: data.replace(b'"map_sigma_px": 2.0', b'"map_sigma_px": 1e999'), "finite"),
    "zeros": (lambda data: bytes(1000), "not valid JSON"),
    "gigantic": (lambda data: data + b" " * (16 * 2**20), "expected at most"),
}


@pytest.mark.parametrize("form", ["directory", "zip"])
@pytest.mark.parametrize("change", MANIFEST_TEXTS)
def test_an_unreadable_manifest_is_refused(bundle: Path, refusal: Refusal, change: str, form: str) -> None:
    damage, words = MANIFEST_TEXTS[change]
    (bundle / MANIFEST_NAME).write_bytes(damage((bundle / MANIFEST_NAME).read_bytes()))
    message = refusal(in_form(bundle, form))
    assert message.startswith(MANIFEST_NAME) and words in message


@NO_DEADLINE
@given(data=st.data())
def test_a_changed_byte_in_the_manifest_is_refused(bundle: Path, data: st.DataObject) -> None:
    original = (bundle / MANIFEST_NAME).read_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    changed = bytes([data.draw(st.sampled_from(b'"{}[],:.-+eE0 \\\n') | st.integers(0, 255))])
    damaged = original[:position] + changed + original[position + 1 :]
    (bundle / MANIFEST_NAME).write_bytes(damaged)
    assert isinstance(load_or_message(bundle), Bundle) == (damaged == original)
    (bundle / MANIFEST_NAME).write_bytes(original)


@NO_DEADLINE
@given(data=st.data())
def test_a_forged_manifest_raises_only_bundle_errors(bundle: Path, data: st.DataObject) -> None:
    original = (bundle / MANIFEST_NAME).read_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    changed = bytes([data.draw(st.sampled_from(b'"{}[],:.-+eE0 \\\n') | st.integers(0, 255))])
    replace_manifest(bundle, original[:position] + changed + original[position + 1 :])
    load_or_message(bundle)
    replace_manifest(bundle, original)


DIGEST_DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda data: b"",
    "truncated": lambda data: data[:-1],
    "extended": lambda data: data + b"\n",
    "changed": lambda data: flipped(data, 3),
    "gigantic": lambda data: data * 100_000,
}


@pytest.mark.parametrize("change", DIGEST_DAMAGES)
def test_a_damaged_digest_of_the_manifest_is_refused(bundle: Path, refusal: Refusal, change: str) -> None:
    path = bundle / MANIFEST_DIGEST_NAME
    path.write_bytes(DIGEST_DAMAGES[change](path.read_bytes()))
    assert f"does not match its SHA-256 in {MANIFEST_DIGEST_NAME}" in refusal(bundle)


# --- where the files are ---


@pytest.mark.parametrize("name", [MANIFEST_NAME, MEMORY_BANK_NAME, "samples/000.png"])
def test_a_link_that_leaves_the_bundle_is_refused(bundle: Path, refusal: Refusal, name: str) -> None:
    outside = bundle.parent / "outside"
    (bundle / name).rename(outside)
    (bundle / name).symlink_to(outside)
    assert f"'{name}' leads out of the bundle" in refusal(bundle)


def test_a_linked_folder_that_leaves_the_bundle_is_refused(bundle: Path, refusal: Refusal) -> None:
    outside = bundle.parent / "outside"
    (bundle / "samples").rename(outside)
    (bundle / "samples").symlink_to(outside, target_is_directory=True)
    assert "leads out of the bundle" in refusal(bundle)


def test_a_link_inside_the_bundle_is_followed(bundle: Path) -> None:
    (bundle / MEMORY_BANK_NAME).rename(bundle / "rows")
    (bundle / MEMORY_BANK_NAME).symlink_to("rows")
    assert Bundle.load(bundle).memory_bank.shape == (200, 8)


def test_a_loop_of_links_is_refused(bundle: Path, refusal: Refusal) -> None:
    (bundle / MEMORY_BANK_NAME).unlink()
    (bundle / MEMORY_BANK_NAME).symlink_to(MEMORY_BANK_NAME)
    assert refusal(bundle).startswith(MEMORY_BANK_NAME)


def test_an_unreadable_file_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BundleError, match=r"manifest\.json in .* cannot be read \(Permission denied\)"):
        Bundle.load(bundle)


def test_no_bundle_at_all(refusal: Refusal, tmp_path: Path) -> None:
    assert "There is no bundle at" in refusal(tmp_path / "nowhere.pcbundle")
    (tmp_path / "empty.pcbundle").mkdir()
    assert "manifest.json is missing" in refusal(tmp_path / "empty.pcbundle")


# --- zips ---


def test_two_zip_members_of_one_name_are_refused(bundle: Path, refusal: Refusal) -> None:
    members = [*files_of(bundle).items(), (MEMORY_BANK_NAME, b"which of the two?")]
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = write_zip(bundle.with_suffix(".zip"), members)
    assert "two files of the same name" in refusal(path)


@pytest.mark.parametrize("name", ["../report.html", "/report.html"])
def test_a_zip_member_outside_is_refused_when_listed(bundle: Path, refusal: Refusal, name: str) -> None:
    edit_manifest(bundle, renamed(name))
    files = files_of(bundle)
    files[name] = files.pop(REPORT_NAME)
    path = write_zip(bundle.with_suffix(".zip"), list(files.items()))
    assert "outside the bundle" in refusal(path)


def test_a_zip_member_outside_that_is_not_listed_is_never_written(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    path = write_zip(tmp_path / "inner" / "a.zip", [*files_of(bundle).items(), ("../evil", b"evil")])
    before = set(tmp_path.rglob("*"))
    AnomalyDetector.load(path, provider="cpu", threads=1)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_unusual_compression_is_refused(bundle: Path, refusal: Refusal, compression: int) -> None:
    assert "stored or deflated" in refusal(packed(bundle, compression))


@pytest.mark.parametrize("damage", ["truncated", "halved", "emptied", "first bytes only"])
def test_a_damaged_zip_is_refused(bundle: Path, refusal: Refusal, damage: str) -> None:
    path = packed(bundle)
    changes = {**DAMAGES, "first bytes only": lambda data: data[:4]}
    path.write_bytes(changes[damage](path.read_bytes()))
    assert "neither a bundle directory nor a readable zip" in refusal(path)


def test_an_encrypted_zip_is_refused(bundle: Path, refusal: Refusal) -> None:
    path = packed(bundle)
    data = bytearray(path.read_bytes())
    directory = data.find(b"PK\x01\x02")
    while directory >= 0:
        data[directory + 8] |= 1
        directory = data.find(b"PK\x01\x02", directory + 1)
    path.write_bytes(data)
    assert "encrypted" in refusal(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@NO_DEADLINE
@given(data=st.data())
def test_a_flip_in_a_zip_is_refused_or_changes_nothing(
    bundle: Path, compression: int, data: st.DataObject
) -> None:
    sound = Bundle.load(bundle)
    path = packed(bundle, compression)
    original = path.read_bytes()
    # The directory at the end is 3 % of the bytes and has most of the ways to go wrong.
    directory = original.find(b"PK\x01\x02")
    position = data.draw(st.integers(directory, len(original) - 1) | st.integers(0, len(original) - 1))
    path.write_bytes(flipped(original, position, data.draw(st.integers(0, 7))))
    loaded = load_or_message(path)
    if isinstance(loaded, Bundle):
        assert loaded.digest == sound.digest
        assert np.array_equal(loaded.memory_bank, sound.memory_bank)
        assert bytes(loaded.embedder) == bytes(sound.embedder)


# --- golden samples ---


def expected(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda golden: golden["samples"][0].update(changes)


GOLDEN_EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unknown key": (lambda g: g.update(extra=1), "unknown key 'extra'"),
    "missing key": (lambda g: g["samples"][1].pop("image_score"), "missing image_score"),
    "no tolerance": (lambda g: g.pop("tolerance_relative"), "missing tolerance_relative"),
    "score as text": (expected(image_score="0.5"), "samples.samples[0].image_score: expected a number"),
    "score NaN": (expected(image_score=math.nan), "expected a finite number"),
    "score null": (expected(map_max=None), "expected a number, got None"),
    "verdict as number": (expected(is_anomalous=0), "expected true or false"),
    "no samples": (lambda g: g.update(samples=[]), "holds no golden samples"),
    "file not listed": (expected(file="samples/999.png"), "samples/999.png is not listed"),
    "file outside": (expected(file="../secret.png"), "../secret.png is not listed"),
}


@pytest.mark.parametrize("edit", GOLDEN_EDITS)
def test_wrong_golden_samples_end_the_selftest(
    bundle: Path, cli_error: Callable[[list[str]], str], edit: str
) -> None:
    change, words = GOLDEN_EDITS[edit]
    golden = json.loads((bundle / SAMPLES_NAME).read_bytes())
    change(golden)
    forge(bundle, SAMPLES_NAME, json.dumps(golden).encode())
    message = cli_error(["selftest", "--bundle", str(bundle), "--provider", "cpu"])
    assert words in message and ADVICE.search(message)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"[" * 200_000, b"\xff"], ids=["empty", "cut", "list", "nested", "not UTF-8"]
)
def test_unreadable_golden_samples_end_the_selftest(
    bundle: Path, cli_error: Callable[[list[str]], str], data: bytes
) -> None:
    forge(bundle, SAMPLES_NAME, data)
    message = cli_error(["selftest", "--bundle", str(bundle), "--provider", "cpu"])
    assert message.startswith(f"{SAMPLES_NAME} cannot be understood") and ADVICE.search(message)


@pytest.mark.parametrize("damage", ["emptied", "halved", "first byte"])
def test_an_unreadable_golden_image_ends_the_selftest(
    bundle: Path, cli_error: Callable[[list[str]], str], damage: str
) -> None:
    name = "samples/001.png"
    forge(bundle, name, DAMAGES[damage]((bundle / name).read_bytes()))
    message = cli_error(["selftest", "--bundle", str(bundle), "--provider", "cpu"])
    assert message.startswith(name) and ADVICE.search(message)


def test_a_bundle_without_golden_samples_says_so(bundle: Path, cli_error: Callable[[list[str]], str]) -> None:
    edit_manifest(bundle, without("files", SAMPLES_NAME))
    assert "holds no golden samples" in cli_error(["selftest", "--bundle", str(bundle), "--provider", "cpu"])


# --- a real process ---


def truncate_bank(bundle: Path) -> None:
    path = bundle / MEMORY_BANK_NAME
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "damage, arguments, words",
    [
        (truncate_bank, ["--images", "x.png"], "memory_bank.npy has 6527 bytes"),
        (lambda path: edit_manifest(path, put("schema_version", value=2)), ["selftest"], "Upgrade"),
        (
            lambda path: edit_manifest(path, renamed("../x")),
            ["selftest", "--json"],
            "'../x' outside the bundle",
        ),
    ],
    ids=["truncated bank", "newer schema", "parent folder"],
)
def test_a_real_process_ends_with_one_line(
    bundle: Path, damage: Callable[[Path], None], arguments: list[str], words: str
) -> None:
    damage(bundle)
    command = [sys.executable, "-m", "pcrun.cli", "--bundle", str(bundle), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert words in error_message(ended.returncode, ended.stdout, ended.stderr)


def test_debug_shows_the_trace(bundle: Path, sigterm_kept: None, capsys: pytest.CaptureFixture[str]) -> None:
    truncate_bank(bundle)
    assert main(["--bundle", str(bundle), "--images", "x.png", "--debug"]) == 2
    trace = capsys.readouterr().err
    assert trace.startswith("Traceback") and "memory_bank.npy has 6527 bytes" in trace
