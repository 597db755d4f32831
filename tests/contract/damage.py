"""Tools to damage a bundle: on its own, or with a manifest that is forged to match."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings

from pcrun.bundle.bundle import Bundle, file_entry
from pcrun.bundle.manifest import (
    EMBEDDER_NAME,
    INDEX_NAME,
    MANIFEST_DIGEST_NAME,
    MANIFEST_NAME,
    MEMORY_BANK_NAME,
    NEIGHBOURS_NAME,
    REPORT_NAME,
    SAMPLES_NAME,
    SEARCH_BASIS_NAME,
    manifest_digest_line,
)
from pcrun.errors import BundleError

Change = Callable[[bytes], bytes]
Edit = Callable[[dict[str, Any]], None]
Refusal = Callable[[Path], str]

# A bundle with every kind of file, and two of other builds.
FULL = {"image_score": "reweighted", "search_dim": 3}
OTHER_SEED = {**FULL, "seed": 1}
OTHER_DIM = {**FULL, "seed": 2, "dim": 12}
FILES = (
    EMBEDDER_NAME,
    INDEX_NAME,
    MEMORY_BANK_NAME,
    NEIGHBOURS_NAME,
    REPORT_NAME,
    "samples/000.png",
    "samples/001.png",
    SAMPLES_NAME,
    SEARCH_BASIS_NAME,
)
# Those that Bundle.load looks into.
PARTS = (EMBEDDER_NAME, INDEX_NAME, MEMORY_BANK_NAME, NEIGHBOURS_NAME, SEARCH_BASIS_NAME)
ADVICE = re.compile(
    "[Cc]opy the bundle again|`pcexport (build|pack)`|do not use it|Upgrade patchcore-edge|check the path"
)
DAMAGES: dict[str, Change] = {
    "truncated": lambda data: data[:-1],
    "halved": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "extended": lambda data: data + b"\0",
    "first byte": lambda data: flipped(data, 0),
    "tenth byte": lambda data: flipped(data, 9, bit=7),
    "middle byte": lambda data: flipped(data, len(data) // 2, bit=3),
    "last byte": lambda data: flipped(data, len(data) - 1),
}
# For properties that damage a file of the test's own copy and repair it.
NO_DEADLINE = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def files_of(bundle: Path) -> dict[str, bytes]:
    """Every file of a bundle directory by name, manifest included."""
    return {
        p.relative_to(bundle).as_posix(): p.read_bytes() for p in sorted(bundle.rglob("*")) if p.is_file()
    }


def edit_manifest(bundle: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest's JSON in place, and its digest with it."""
    manifest = json.loads((bundle / MANIFEST_NAME).read_bytes())
    edit(manifest)
    replace_manifest(bundle, json.dumps(manifest).encode())


def replace_manifest(bundle: Path, data: bytes) -> None:
    """Write a manifest and the digest that belongs to it."""
    (bundle / MANIFEST_NAME).write_bytes(data)
    (bundle / MANIFEST_DIGEST_NAME).write_bytes(manifest_digest_line(data))


def forge(bundle: Path, name: str, data: bytes) -> None:
    """Replace a file and make the manifest's hash and size agree."""
    (bundle / name).write_bytes(data)
    edit_manifest(bundle, lambda m: m["files"].__setitem__(name, dataclasses.asdict(file_entry(data))))


def flipped(data: bytes, position: int, bit: int = 0) -> bytes:
    """A copy with one bit of one byte changed."""
    return data[:position] + bytes([data[position] ^ (1 << bit)]) + data[position + 1 :]


def write_zip(path: Path, members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> Path:
    """A zip of these members, in this order, whatever their names are."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=compression)
    return path


def packed(bundle: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    """The directory as one zip beside it, without the checks of `pcexport pack`."""
    return write_zip(bundle.with_suffix(".zip"), list(files_of(bundle).items()), compression)


def npy_with_header(header: str, payload: bytes, version: tuple[int, int] = (1, 0)) -> bytes:
    """A .npy file whose header text is given word for word."""
    text = header.encode() + b"\n"
    size = len(text).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + size + text + payload


def saved(array: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    """The array as np.save writes it (any dtype, any memory order)."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


class TouchesFile:
    """Unpickling it leaves a file behind: the proof that nothing was unpickled is that there is none."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


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
    """The bundle as a "directory", which it is, or as a "zip" beside it."""
    return packed(bundle) if form == "zip" else bundle


def put(*path: str, value: Any) -> Edit:
    """Set one key of the manifest, however deep."""

    def edit(manifest: dict[str, Any]) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value

    return edit


def renamed(name: str) -> Edit:
    """List the report under another name."""

    def edit(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = manifest["files"].pop(REPORT_NAME)

    return edit


def without(*path: str) -> Edit:
    """Leave one key of the manifest out, however deep."""

    def edit(manifest: dict[str, Any]) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        del manifest[path[-1]]

    return edit
