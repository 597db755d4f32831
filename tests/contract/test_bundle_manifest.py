"""A manifest that is damaged, forged or of another time is refused, and says which key is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcrun.bundle.bundle import Bundle
from pcrun.bundle.manifest import (
    EMBEDDER_NAME,
    INDEX_NAME,
    MANIFEST_DIGEST_NAME,
    MANIFEST_NAME,
    NEIGHBOURS_NAME,
    REPORT_NAME,
    SEARCH_BASIS_NAME,
)
from tests.contract.damage import (
    NO_DEADLINE,
    Refusal,
    edit_manifest,
    flipped,
    in_form,
    load_or_message,
    put,
    renamed,
    replace_manifest,
    without,
)

MANIFEST_EDITS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "newer schema": (put("schema_version", value=4), "schema version 4, this runtime reads up to 3. Upgrade"),
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
    "basis not listed": (without("files", SEARCH_BASIS_NAME), "does not list search_basis.npy"),
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
    "search in all dimensions": (
        put("search", "dim", value=8),
        "search.dim is 8, expected less than memory_bank.dim, 8",
    ),
    "search in more dimensions": (put("search", "dim", value=9), "search.dim is 9, expected less than"),
    "verification in fewer dimensions than search": (
        put("search", "basis_dim", value=2),
        "basis_dim must be null or at least dim, which is 3, got 2",
    ),
    "verification in more dimensions": (
        put("search", "basis_dim", value=9),
        "search.basis_dim is 9, expected at most memory_bank.dim, 8",
    ),
    "verification in others": (
        put("search", "basis_dim", value=4),
        "search_basis.npy holds float32 [8, 3], the manifest says float32 [8, 4]",
    ),
    "search in none": (put("search", "dim", value=0), "dim must be at least 1 or null, got 0"),
    "search in others": (
        put("search", "dim", value=4),
        "search_basis.npy holds float32 [8, 3], the manifest says float32 [8, 4]",
    ),
    "no search dimensions": (
        without("search", "dim"),
        "memory_bank.hnsw holds 200 vectors of 3 dimensions, the memory bank 200 of 8",
    ),
    "search dimensions as text": (put("search", "dim", value="3"), "manifest.search.dim: expected a whole"),
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
    "size of a file": (put("files", INDEX_NAME, "bytes", value=1), "memory_bank.hnsw has 13476 bytes"),
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
