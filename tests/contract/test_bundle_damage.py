"""Whatever is wrong with a bundle's files: one line that names the file and says what to do."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcrun.bundle.bundle import Bundle
from pcrun.bundle.manifest import (
    EMBEDDER_NAME,
    MANIFEST_DIGEST_NAME,
    MANIFEST_NAME,
    MEMORY_BANK_NAME,
    REPORT_NAME,
)
from pcrun.cli import main
from pcrun.detector import AnomalyDetector
from pcrun.errors import BundleError
from tests.conftest import BundleMaker
from tests.contract.damage import (
    DAMAGES,
    FILES,
    NO_DEADLINE,
    OTHER_DIM,
    OTHER_SEED,
    Refusal,
    edit_manifest,
    error_message,
    files_of,
    flipped,
    in_form,
    load_or_message,
    packed,
    put,
    renamed,
    write_zip,
)


def test_the_bundle_is_sound_before_it_is_damaged(bundle: Path) -> None:
    assert set(files_of(bundle)) == {MANIFEST_NAME, MANIFEST_DIGEST_NAME, *FILES}
    assert Bundle.load(bundle).digest == Bundle.load(packed(bundle)).digest
    assert Bundle.load(packed(bundle, zipfile.ZIP_DEFLATED)).neighbours is not None


# --- damage that the manifest's hashes show ---


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


# --- a real process ---


def truncate_bank(bundle: Path) -> None:
    path = bundle / MEMORY_BANK_NAME
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "damage, arguments, words",
    [
        (truncate_bank, ["--images", "x.png"], "memory_bank.npy has 6527 bytes"),
        (lambda path: edit_manifest(path, put("schema_version", value=4)), ["selftest"], "Upgrade"),
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
