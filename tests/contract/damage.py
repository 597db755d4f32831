"""Tools to damage a bundle: on its own, or with a manifest that is forged to match."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pcrun.bundle import file_entry
from pcrun.manifest import MANIFEST_DIGEST_NAME, MANIFEST_NAME, manifest_digest_line

Change = Callable[[bytes], bytes]


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
