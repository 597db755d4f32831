"""Reading the images of a build: what is left out, what is warned of, what the digest notices."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from pcexport.datasets import Dataset, ImageRef
from pcexport.datasets import reader as images_module
from pcexport.datasets.reader import ImageReader
from pcexport.datasets.videos import count_frames
from pcexport.errors import BuildError
from pcexport.memory_bank.embed import embed_images
from pcrun.errors import SourceError
from pcrun.preprocess import PreprocessSpec

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
        return [image for _, image in self.reader.read_all(map(ImageRef, paths))]


def broken_files(root: Path) -> tuple[Path, ...]:
    whole = write(root / "whole.png").read_bytes()
    contents = {"text.png": b"not an image", "empty.png": b"", "cut.png": whole[: len(whole) // 2]}
    for name, content in contents.items():
        (root / name).write_bytes(content)
    return (*(root / name for name in contents), root / "gone.png")


def test_images_come_in_order_as_bgr(tmp_path: Path) -> None:
    paths = (write(tmp_path / "b.png"), write(tmp_path / "a.png", 255 - PIXELS))
    found = list(Reading(tmp_path).reader.read_all(map(ImageRef, paths)))
    assert tuple(image.path for image, _ in found) == paths
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
        Reading(tmp_path).reader.read(ImageRef(tmp_path / "gone.png"))


def test_an_alpha_channel_is_warned_of_and_ignored(tmp_path: Path) -> None:
    with_alpha = np.dstack([PIXELS, np.zeros((6, 5), np.uint8)])
    reading = Reading(tmp_path)
    (image,) = reading.all(write(tmp_path / "a.png", with_alpha))
    np.testing.assert_array_equal(image, PIXELS)
    assert len(reading.warnings) == 1 and "a.png: its alpha channel is ignored" in reading.warnings[0]


def test_a_folder_of_odd_images_is_warned_of_once_for_each_kind(tmp_path: Path) -> None:
    with_alpha = np.dstack([PIXELS, np.zeros((6, 5), np.uint8)])
    paths = [write(tmp_path / f"alpha{i}.png", with_alpha + i) for i in range(3)]
    paths += [write(tmp_path / f"dark{i}.png", np.full((4, 4), 4000 - i, np.uint16)) for i in range(3)]
    reading = Reading(tmp_path)
    reading.all(*paths)
    alpha, dark = reading.warnings
    assert "alpha0.png" in alpha and "dark0.png" in dark
    assert all("further such images are not named" in warning for warning in (alpha, dark))


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


def strip_of(root: Path, name: str = "strip.png") -> Path:
    return write(root / name, np.arange(4 * 12, dtype=np.uint8).reshape(4, 12))


def tiles_of(path: Path, *lefts: int) -> list[ImageRef]:
    return [ImageRef(path, (left, 1, 3, 2)) for left in lefts]


def test_a_tile_is_cut_from_its_image(tmp_path: Path) -> None:
    path = strip_of(tmp_path)
    (tile,) = tiles_of(path, 5)
    pixels = Reading(tmp_path).reader.read(tile)
    np.testing.assert_array_equal(pixels[:, :, 0], [[17, 18, 19], [29, 30, 31]])
    assert pixels.flags.c_contiguous


def test_tiles_of_one_image_decode_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    real = images_module.decode_image
    monkeypatch.setattr(
        images_module, "decode_image", lambda *args, **kwargs: decoded.append(1) or real(*args, **kwargs)
    )
    first, second = strip_of(tmp_path), strip_of(tmp_path, "other.png")
    reading = Reading(tmp_path)
    found = list(reading.reader.read_all([*tiles_of(first, 0, 3, 6), *tiles_of(second, 0, 3)]))
    assert len(found) == 5 and len(decoded) == 2


def test_a_tile_outside_its_image_is_left_out(tmp_path: Path) -> None:
    path = strip_of(tmp_path)
    reading = Reading(tmp_path)
    images = [image for _, image in reading.reader.read_all(tiles_of(path, 10, 0))]
    assert [image is None for image in images] == [True, False]
    assert "has 12x4 px, which does not hold the tile (10, 1, 3, 2)" in reading.warnings[0]


def part_digest(root: Path, *images: ImageRef) -> str:
    reading = Reading(root)
    assert all(image is not None for _, image in reading.reader.read_all(images))
    return reading.reader.content_sha256


def test_the_digest_of_tiles_depends_on_place_and_pixels_of_each(tmp_path: Path) -> None:
    path = strip_of(tmp_path)
    left, right = tiles_of(path, 0, 6)
    before = [part_digest(tmp_path, *which) for which in ([left], [right], [left, right], [right, left])]
    assert len({*before, digest(tmp_path, "strip.png")}) == 5
    same = tiles_of(write(tmp_path / "even.png", np.full((4, 12), 7, np.uint8)), 0, 6)
    assert part_digest(tmp_path, same[0]) != part_digest(tmp_path, same[1])
    pixels = np.arange(4 * 12, dtype=np.uint8).reshape(4, 12)
    pixels[1, 7] = 200
    write(path, pixels)
    assert part_digest(tmp_path, left) == before[0]
    assert part_digest(tmp_path, right) != before[1]


VALUES = (20, 60, 100, 140)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25.0, (64, 48))
    for value in VALUES:
        writer.write(np.full((48, 64, 3), value, np.uint8))
    writer.release()
    return path


def test_frames_of_a_video_are_read_by_number_in_any_order(video: Path) -> None:
    order = (2, 3, 0, 0, 3, 1)
    reader = Reading(video.parent).reader
    values = [reader.read(ImageRef(video, frame=number)).mean() for number in order]
    assert values == pytest.approx([VALUES[number] for number in order], abs=2)
    tile = reader.read(ImageRef(video, (8, 8, 16, 4), frame=1))
    assert tile.shape == (4, 16, 3) and tile.mean() == pytest.approx(VALUES[1], abs=2)


def test_frames_are_counted_by_decoding_them(video: Path) -> None:
    assert count_frames(video) == len(VALUES)


def test_a_frame_that_is_not_there_is_left_out(video: Path) -> None:
    reading = Reading(video.parent)
    frames = [
        ImageRef(video, frame=4),
        ImageRef(video, frame=1),
        ImageRef(video.with_name("gone.avi"), frame=0),
    ]
    assert [image is None for _, image in reading.reader.read_all(frames)] == [True, False, True]
    assert "clip.avi has no frame 4 that can be decoded; it ended after 4" in reading.warnings[0]
    assert "There is no video file" in reading.warnings[1]


def test_the_digest_of_frames_depends_on_their_number_and_pixels(video: Path) -> None:
    frames = [ImageRef(video, frame=number) for number in range(2)]
    digests = [
        part_digest(video.parent, *which) for which in ([frames[0]], [frames[1]], frames, frames[::-1])
    ]
    assert len(set(digests)) == 4
    assert digests[2] == part_digest(video.parent, *frames)


def test_a_video_that_ends_too_early_is_named(tmp_path: Path) -> None:
    path = tmp_path / "text.avi"
    path.write_bytes(b"text")
    with pytest.raises(SourceError, match=r"text\.avi cannot be opened as a video"):
        count_frames(path)


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


def test_copies_are_noticed_once_under_whatever_name(tmp_path: Path) -> None:
    first, other = write(tmp_path / "a.png"), write(tmp_path / "b.png", 255 - PIXELS)
    copy = write(tmp_path / "c.png")
    reading = Reading(tmp_path)
    reading.all(first, other, copy)
    reading.all(first, other, copy)
    assert reading.reader.copies == {copy: first}


def test_copies_and_tiny_images_are_embedded_with_a_warning(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), np.uint8)
    names = {"a": pixels[0], "b": pixels[1], "c": pixels[0], "tiny": pixels[0, :3, :3]}
    paths = [write(tmp_path / f"{name}.png", image) for name, image in names.items()]
    reading = Reading(tmp_path)
    embedded = embed_images(
        Dataset("parts", "flat", tmp_path, tuple(map(ImageRef, paths)), ()),
        reading.reader,
        SimpleNamespace(embed=lambda images: np.zeros((len(images), 4, 2), np.float32)),
        spec=SimpleNamespace(dim=2, batch=1, patches=4),
        preprocessing=PreprocessSpec(16, 16, 16, 16),
        folder=tmp_path,
        step=SimpleNamespace(advance_to=lambda done: None),
    )
    assert len(embedded.refs) == 4
    small, copies = reading.warnings
    assert "quarter of the input: 1 of 4" in small and "tiny.png with 3x3 px" in small
    assert "copies of others: 1 of 4" in copies and "c.png of " in copies
