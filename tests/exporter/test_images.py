"""Reading the images of a build: what is left out, what is warned of, what the digest notices."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from pcexport.errors import BuildError
from pcexport.images import ImageReader
from pcrun.errors import SourceError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)


def write(path: Path, pixels: np.ndarray = PIXELS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


class Reading:
    """A reader and the warnings it gave."""

    def __init__(self, root: Path, *, strict: bool = False, white_level_16bit: int = 65535) -> None:
        self.warnings: list[str] = []
        self.reader = ImageReader(
            root, white_level_16bit=white_level_16bit, strict=strict, warn=self.warnings.append
        )

    def all(self, *paths: Path) -> list[np.ndarray | None]:
        return [image for _, image in self.reader.read_all(paths)]


def broken_files(root: Path) -> tuple[Path, ...]:
    whole = write(root / "whole.png").read_bytes()
    contents = {"text.png": b"not an image", "empty.png": b"", "cut.png": whole[: len(whole) // 2]}
    for name, content in contents.items():
        (root / name).write_bytes(content)
    return (*(root / name for name in contents), root / "gone.png")


def test_images_come_in_order_as_bgr(tmp_path: Path) -> None:
    paths = (write(tmp_path / "b.png"), write(tmp_path / "a.png", 255 - PIXELS))
    found = list(Reading(tmp_path).reader.read_all(paths))
    assert tuple(path for path, _ in found) == paths
    np.testing.assert_array_equal(found[0][1], PIXELS)
    np.testing.assert_array_equal(found[1][1], 255 - PIXELS)


def test_unreadable_images_are_named_counted_and_left_out(tmp_path: Path) -> None:
    broken, good = broken_files(tmp_path), tmp_path / "whole.png"
    reading = Reading(tmp_path)
    images = reading.all(broken[0], good, *broken[1:])
    assert [image is None for image in images] == [True, False, True, True, True]
    assert reading.reader.skipped == len(reading.warnings) == 4
    for path, warning in zip(broken, reading.warnings, strict=True):
        assert warning.startswith("left out: ") and str(path) in warning


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_strict_stops_at_the_first_unreadable_image(tmp_path: Path, which: int) -> None:
    broken = broken_files(tmp_path)[which]
    with pytest.raises(BuildError, match=rf"{broken.name}.*--strict"):
        Reading(tmp_path, strict=True).all(tmp_path / "whole.png", broken)


def test_strict_reads_good_images(tmp_path: Path) -> None:
    assert len(Reading(tmp_path, strict=True).all(write(tmp_path / "a.png"))) == 1


def test_read_names_the_file_in_its_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"gone\.png: cannot be read \(No such file"):
        Reading(tmp_path).reader.read(tmp_path / "gone.png")


def test_an_alpha_channel_is_warned_of_and_ignored(tmp_path: Path) -> None:
    with_alpha = np.dstack([PIXELS, np.zeros((6, 5), np.uint8)])
    reading = Reading(tmp_path)
    (image,) = reading.all(write(tmp_path / "a.png", with_alpha))
    np.testing.assert_array_equal(image, PIXELS)
    assert len(reading.warnings) == 1 and "a.png: its alpha channel is ignored" in reading.warnings[0]


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_a_dark_16_bit_image_is_warned_of(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", np.full((4, 4), 4000, np.uint16))
    reading = Reading(tmp_path)
    reading.all(path)
    assert len(reading.warnings) == 1
    assert (
        "largest value is 4000" in reading.warnings[0] and "--white-level-16bit 4095" in reading.warnings[0]
    )


def test_a_bright_16_bit_image_or_one_with_its_white_level_is_not(tmp_path: Path) -> None:
    bright = write(tmp_path / "bright.png", np.full((4, 4), 5000, np.uint16))
    dark = write(tmp_path / "dark.png", np.full((4, 4), 4000, np.uint16))
    dark_8bit = write(tmp_path / "dark8.png", np.full((4, 4), 3, np.uint8))
    plain, told = Reading(tmp_path), Reading(tmp_path, white_level_16bit=4095)
    plain.all(bright, dark_8bit)
    (image,) = told.all(dark)
    assert plain.warnings == told.warnings == []
    assert image is not None and image.max() == round(4000 / 4095 * 255)


def digest(root: Path, *names: str) -> str:
    reading = Reading(root)
    reading.all(*(root / name for name in names))
    return reading.reader.content_sha256


def test_the_digest_depends_on_content_order_name_and_number(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    write(tmp_path / "b.png", 255 - PIXELS)
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    digests = [
        digest(tmp_path),
        digest(tmp_path, "a.png"),
        digest(tmp_path, "copy.png"),
        digest(tmp_path, "b.png"),
        digest(tmp_path, "a.png", "b.png"),
        digest(tmp_path, "b.png", "a.png"),
        digest(tmp_path, "a.png", "a.png"),
    ]
    assert len(set(digests)) == len(digests)


def test_the_digest_does_not_depend_on_where_the_data_lie(tmp_path: Path) -> None:
    for root in ("here", "there"):
        write(tmp_path / root / "sub" / "a.png")
    assert digest(tmp_path / "here", "sub/a.png") == digest(tmp_path / "there", "sub/a.png")


def test_an_image_that_was_left_out_does_not_enter_the_digest(tmp_path: Path) -> None:
    broken_files(tmp_path)
    assert digest(tmp_path, "whole.png", "text.png") == digest(tmp_path, "whole.png")
