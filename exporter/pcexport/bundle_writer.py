"""Writing a bundle: into a hidden folder beside its target,
renamed when everything is checked, or not at all.
"""

import contextlib
import io
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pcexport.errors import BuildError
from pcrun.bundle.bundle import Bundle, file_entry
from pcrun.bundle.manifest import MANIFEST_DIGEST_NAME, MANIFEST_NAME, FileEntry, Manifest
from pcrun.commands.support import undisturbed
from pcrun.types import AnyArray

_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can hold: equal bundles give equal zips


@contextmanager
def staging_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output` for a build in progress; it is gone afterwards, whatever happened."""
    missing = [parent for parent in output.absolute().parents if not parent.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.partial-", dir=output.parent))
    except OSError as error:
        raise BuildError(
            f"{output.parent} cannot be written ({error.strerror or error}). Choose another -o."
        ) from error
    try:
        yield folder
    finally:
        with undisturbed():
            _remove(folder, missing)


def _remove(folder: Path, made: list[Path]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    # Folders made for an output that did not come about go too; rmdir refuses those that hold something.
    with contextlib.suppress(OSError):
        for parent in made:
            parent.rmdir()


def check_output(output: Path, *, force: bool) -> None:
    """Refuse an existing target before hours are spent, unless it may be replaced."""
    if output.exists() and not force:
        raise BuildError(
            f"{output} exists already. Expected a new name; "
            "pass --force to replace it when the build is done."
        )
    if output.exists() and not _looks_like_a_bundle(output):
        raise BuildError(f"{output} is not a bundle: it will not be replaced. Choose another -o.")


def _looks_like_a_bundle(path: Path) -> bool:
    """Whether replacing `path` loses nothing but a bundle; an empty folder counts as one."""
    if path.is_dir():
        return (path / MANIFEST_NAME).is_file() or not any(path.iterdir())
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return MANIFEST_NAME in archive.namelist()


def publish(staged: Path, output: Path) -> None:
    """Move a finished file or folder to its place; an old one goes only when the new one stands."""
    # mkdtemp makes folders private; a bundle is read by whoever runs the line.
    if staged.is_dir():
        staged.chmod(0o755)
    if not output.exists() or (staged.is_file() and output.is_file()):
        staged.replace(output)
        return
    with undisturbed():
        old = Path(tempfile.mkdtemp(prefix=f".{output.name}.old-", dir=output.parent))
        output.rename(old / output.name)
        try:
            staged.rename(output)
        except BaseException:
            (old / output.name).rename(output)
            old.rmdir()
            raise
        shutil.rmtree(old, ignore_errors=True)


def write_npy(path: Path, array: AnyArray) -> None:
    """Save an array without pickle."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    path.write_bytes(buffer.getvalue())


def list_files(folder: Path, names: list[str]) -> dict[str, FileEntry]:
    """Hash the named files of a folder for the manifest."""
    return {name: file_entry((folder / name).read_bytes()) for name in sorted(names)}


def pack_bundle(bundle_path: Path, output: Path, *, force: bool) -> int:
    """Put a verified bundle directory into one zip, uncompressed (its content hardly compresses).

    Returns:
        Size of the zip in bytes.

    Raises:
        BundleError: the bundle is not sound.
        BuildError: it is packed already, or the target exists.
    """
    if not bundle_path.is_dir():
        raise BuildError(f"{bundle_path} is not a bundle directory. Expected one; a zip is packed already.")
    bundle = Bundle.load(bundle_path)
    if output.is_dir():
        raise BuildError(f"{output} is a folder. Expected the name of a zip file; choose another -o.")
    if output.exists() and not force:
        raise BuildError(f"{output} exists already. Expected a new name; pass --force to replace it.")
    with staging_folder(output) as folder:
        staged = write_zip(bundle_path, folder / output.name, bundle.manifest)
        Bundle.load(staged)
        staged.replace(output)
    return output.stat().st_size


def write_zip(folder: Path, path: Path, manifest: Manifest) -> Path:
    """Put the files of a bundle directory into one zip, always the same bytes; gives its path."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in [MANIFEST_NAME, MANIFEST_DIGEST_NAME, *sorted(manifest.files)]:
            info = zipfile.ZipInfo(name, _ZIP_DATE)
            info.external_attr = 0o644 << 16
            archive.writestr(info, (folder / name).read_bytes())
    return path
