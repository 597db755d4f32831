"""Parts that are wrong inside, behind a hash that was forged to match."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcrun.bundle.bundle import Bundle
from pcrun.bundle.manifest import EMBEDDER_NAME, INDEX_NAME, MEMORY_BANK_NAME, NEIGHBOURS_NAME
from pcrun.detector import AnomalyDetector
from tests.conftest import BundleMaker
from tests.contract.damage import (
    DAMAGES,
    NO_DEADLINE,
    Refusal,
    TouchesFile,
    edit_manifest,
    flipped,
    forge,
    in_form,
    load_or_message,
    npy_with_header,
    saved,
)

hnswlib = pytest.importorskip("hnswlib", reason="hnswlib is not installed: the tiny bundle is made with it")
onnx = pytest.importorskip("onnx", reason="onnx is not installed: the tiny bundle is made with it")
from tests.data.make_tiny_bundle import M, embedder_onnx, make_index, smooth_image  # noqa: E402

# Index and memory bank hold the same bytes; test_bundle_basis.py has the bundles where they do not.
REWEIGHTED = {"image_score": "reweighted"}
OTHER_SEED = {**REWEIGHTED, "seed": 1}
OTHER_DIM = {**REWEIGHTED, "seed": 2, "dim": 12}
PARTS = (EMBEDDER_NAME, INDEX_NAME, MEMORY_BANK_NAME, NEIGHBOURS_NAME)


@pytest.fixture
def bundle(copied_bundle: BundleMaker) -> Path:
    """A sound bundle without a search basis."""
    return copied_bundle(**REWEIGHTED)


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
        scored = AnomalyDetector.load(loaded, provider="cpu", threads=1, search="hnsw", ef=1)(image)
        assert scored.image_score == pytest.approx(truth, rel=1e-6)
    forge(tiny_bundle, name, original)
