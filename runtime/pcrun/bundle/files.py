"""Reading a bundle's files from a directory or from one zip, by name, never outside of it."""

import hashlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Protocol

from pcrun.bundle.manifest import MANIFEST_DIGEST_NAME, MANIFEST_NAME, FileEntry, manifest_digest_line
from pcrun.errors import BundleError

_MAX_MANIFEST_BYTES = 16 * 2**20
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_COPY_AGAIN = "Copy the bundle again, or run `pcexport build` again."


class BundleFiles(Protocol):
    """Access to the files of one bundle."""

    path: Path

    def size(self, name: str) -> int:
        """Size in bytes; BundleError when the file is missing."""

    def read(self, name: str) -> bytes:
        """The whole content."""


class DirectoryFiles:
    """A bundle that is a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._root = path.resolve()

    def size(self, name: str) -> int:
        return self._locate(name).stat().st_size

    def read(self, name: str) -> bytes:
        try:
            with self._locate(name).open("rb") as file:
                return file.read()
        except OSError as error:
            raise BundleError(
                f"{name} in {self.path} cannot be read ({error.strerror or error}). Check its rights."
            ) from error

    def _locate(self, name: str) -> Path:
        try:
            located = (self._root / check_name(name)).resolve()
            found = located.is_file()
        except (OSError, RuntimeError) as error:  # a name too long for the file system; a loop of links
            raise BundleError(f"{name} in {self.path} cannot be read ({error}). {_COPY_AGAIN}") from error
        if not located.is_relative_to(self._root):
            raise BundleError(
                f"{name!r} leads out of the bundle {self.path}. Expected files inside it; do not use it."
            )
        if not found:
            raise BundleError(f"{name} is missing from {self.path}. {_COPY_AGAIN}")
        return located


class ZipFiles:
    """A bundle packed as one zip file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
            raise BundleError(
                f"{path} is neither a bundle directory nor a readable zip ({error}). {_COPY_AGAIN}"
            ) from error
        if any(info.compress_type not in _COMPRESSIONS for info in self._zip.infolist()):
            raise BundleError(
                f"{path} is compressed in an unusual way. Expected a zip that is stored or deflated; "
                "run `pcexport pack` again."
            )
        names = [info.filename for info in self._zip.infolist()]
        if len(set(names)) != len(names):
            raise BundleError(
                f"{path} holds two files of the same name. Expected one of each; do not use it."
            )

    def size(self, name: str) -> int:
        return self._info(name).file_size

    def read(self, name: str) -> bytes:
        info = self._info(name)
        try:
            return self._zip.read(info)
        except (
            zipfile.BadZipFile,
            OSError,
            EOFError,
            RuntimeError,
            NotImplementedError,
            ValueError,
            zlib.error,
        ) as error:
            raise BundleError(f"{name} in {self.path} is damaged ({error}). {_COPY_AGAIN}") from error

    def _info(self, name: str) -> zipfile.ZipInfo:
        try:
            return self._zip.getinfo(check_name(name))
        except KeyError:
            raise BundleError(f"{name} is missing from {self.path}. {_COPY_AGAIN}") from None


def open_files(path: Path) -> BundleFiles:
    """Open a bundle directory or zip.

    Raises:
        BundleError: nothing there, or neither of the two.
    """
    if path.is_dir():
        return DirectoryFiles(path)
    if path.is_file():
        return ZipFiles(path)
    raise BundleError(f"There is no bundle at {path}. Expected a .pcbundle directory or zip; check the path.")


def read_manifest_bytes(files: BundleFiles) -> bytes:
    """Read manifest.json, refusing absurd sizes before reading."""
    size = files.size(MANIFEST_NAME)
    if size > _MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{MANIFEST_NAME} has {size} bytes, expected at most {_MAX_MANIFEST_BYTES}. {_COPY_AGAIN}"
        )
    return files.read(MANIFEST_NAME)


def check_manifest_digest(files: BundleFiles, manifest: bytes) -> None:
    """Refuse a manifest that is not the one its builder hashed: a changed digit would change verdicts."""
    expected = manifest_digest_line(manifest)
    if files.size(MANIFEST_DIGEST_NAME) != len(expected) or files.read(MANIFEST_DIGEST_NAME) != expected:
        raise BundleError(
            f"{MANIFEST_NAME} does not match its SHA-256 in {MANIFEST_DIGEST_NAME} (damaged or edited). "
            f"{_COPY_AGAIN}"
        )


def read_verified(files: BundleFiles, name: str, entry: FileEntry) -> bytes:
    """Read one file after its size, and return it after its SHA-256, agreed with the manifest."""
    size = files.size(name)
    if size != entry.bytes:
        raise BundleError(f"{name} has {size} bytes, the manifest says {entry.bytes}. {_COPY_AGAIN}")
    data = files.read(name)
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise BundleError(
            f"{name} does not match its SHA-256 in the manifest (damaged or exchanged). {_COPY_AGAIN}"
        )
    return data


def check_name(name: str) -> str:
    """Refuse names that could leave the bundle on any platform."""
    path, windows = PurePosixPath(name), PureWindowsPath(name)
    unsafe = path.is_absolute() or windows.drive or windows.root or "\\" in name or ".." in path.parts
    if not name.isprintable() or not name or unsafe or str(path) != name:
        raise BundleError(
            f"The manifest names a file {name!r} outside the bundle. "
            "Expected plain relative names; do not use it."
        )
    return name


@contextmanager
def private_file(data: bytes) -> Iterator[Path]:
    """A file of this content that no other program sees, for libraries that can only load from a path."""
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir():
        descriptor = os.memfd_create("pcrun")
        try:
            with os.fdopen(os.dup(descriptor), "wb") as file:
                file.write(data)
            yield Path(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
        return
    with tempfile.TemporaryDirectory(prefix="pcrun-") as folder:
        path = Path(folder) / "content"
        path.write_bytes(data)
        yield path
