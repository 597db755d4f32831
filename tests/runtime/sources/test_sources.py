"""Frames from image files, videos and cameras: order, counts, and what is said when there are none."""

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from pcrun.errors import SourceError
from pcrun.sources import Event, Frame, Source
from pcrun.sources.files import ImageFiles, VideoFile, expand_images

GREY_STEP = 8


def write_image(path: Path, value: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ok, data = cv2.imencode(".png", np.full((6, 8, 3), value, np.uint8))
    assert ok
    path.write_bytes(data.tobytes())
    return path


def write_video(path: Path, frames: int) -> Path:
    """Motion JPEG, every frame in the grey GREY_STEP times its number (modulo 256)."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 48))
    assert writer.isOpened(), "this OpenCV cannot write motion JPEG"
    for index in range(frames):
        writer.write(np.full((48, 64, 3), GREY_STEP * index % 256, np.uint8))
    writer.release()
    return path


def images(*paths: object) -> ImageFiles:
    return ImageFiles(list(map(str, paths)), white_level_16bit=65535)


def frames_of(source: Source) -> list[Frame]:
    """All frames of a source that has no events."""
    items = list(source.items(threading.Event()))
    assert not any(isinstance(item, Event) for item in items)
    return items  # type: ignore[return-value]


class TestExpandImages:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name in ("b.png", "a.png", "sub/c.JPG", "sub/deep/d.tiff", "sub/deep/a.webp"):
            write_image(tmp_path / name)
        for name in ("notes.txt", "sub/Thumbs.db", "png"):
            (tmp_path / name).write_bytes(b"x")
        (tmp_path / "folder.png").mkdir()
        return tmp_path

    def names(self, folder: Path, pattern: str) -> list[str]:
        return [path.relative_to(folder).as_posix() for path in expand_images(pattern)]

    def test_folder_is_sorted_with_those_below_and_only_images(self, folder: Path) -> None:
        expected = ["a.png", "b.png", "sub/c.JPG", "sub/deep/a.webp", "sub/deep/d.tiff"]
        assert self.names(folder, str(folder)) == expected

    @pytest.mark.parametrize(
        "pattern, expected",
        [
            ("*.png", ["a.png", "b.png"]),
            ("sub/*", ["sub/c.JPG"]),
            ("sub/**/*", ["sub/c.JPG", "sub/deep/a.webp", "sub/deep/d.tiff"]),
            ("[b-z].png", ["b.png"]),
            ("?.png", ["a.png", "b.png"]),
        ],
    )
    def test_glob(self, folder: Path, pattern: str, expected: list[str]) -> None:
        assert self.names(folder, f"{folder}/{pattern}") == expected

    def test_a_named_file_is_taken_whatever_its_suffix(self, folder: Path) -> None:
        assert self.names(folder, str(folder / "notes.txt")) == ["notes.txt"]

    def test_a_file_name_with_brackets_is_no_pattern(self, tmp_path: Path) -> None:
        path = write_image(tmp_path / "part[1].png")
        assert expand_images(str(path)) == [path]

    def test_a_missing_path_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"There is no file or folder .*gone"):
            expand_images(str(tmp_path / "gone"))

    @pytest.mark.parametrize("pattern", ["", "/*.png", "/*.txt"], ids=["folder", "glob", "glob of texts"])
    def test_no_image_there_lists_the_suffixes(self, tmp_path: Path, pattern: str) -> None:
        (tmp_path / "notes.txt").write_text("x")
        with pytest.raises(SourceError, match=r"holds no images\. Expected files ending in .*\.png"):
            expand_images(f"{tmp_path}{pattern}")


class TestImageFiles:
    def test_paths_keep_the_given_order(self, tmp_path: Path) -> None:
        paths = [write_image(tmp_path / f"{name}.png", value) for name, value in (("z", 10), ("a", 20))]
        frames = frames_of(images(*paths))
        assert [(f.source, f.index, int(f.image[0, 0, 0])) for f in frames if f.image is not None] == [
            (str(paths[0]), 0, 10),
            (str(paths[1]), 1, 20),
        ]
        assert all(f.error is None and f.decode_ms > 0 for f in frames)

    def test_an_unreadable_file_is_a_frame_with_its_error_and_the_rest_goes_on(self, tmp_path: Path) -> None:
        write_image(tmp_path / "a.png")
        (tmp_path / "b.png").write_bytes(b"no image")
        write_image(tmp_path / "c.png")
        first, broken, last = frames_of(images(tmp_path))
        assert first.image is not None and last.image is not None
        assert broken.image is None and broken.index == 1 and broken.source.endswith("b.png")
        assert broken.error is not None and "b.png: not an image" in broken.error

    def test_a_file_that_vanished_after_the_listing_is_an_error_frame(self, tmp_path: Path) -> None:
        write_image(tmp_path / "a.png")
        source = images(tmp_path)
        (tmp_path / "a.png").unlink()
        (frame,) = frames_of(source)
        assert frame.image is None and "No such file" in str(frame.error)

    def test_a_bad_path_is_known_before_the_first_frame(self, tmp_path: Path) -> None:
        good = write_image(tmp_path / "a.png")
        with pytest.raises(SourceError, match="gone"):
            images(good, tmp_path / "gone")

    def test_a_named_image_that_is_missing_is_a_frame_with_an_error(self, tmp_path: Path) -> None:
        good = write_image(tmp_path / "a.png")
        found, missing = frames_of(images(good, tmp_path / "gone.png"))
        assert found.image is not None
        assert missing.image is None and "No such file" in str(missing.error)

    def test_a_dangling_link_in_a_folder_is_a_frame_with_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
        (frame,) = frames_of(images(tmp_path))
        assert frame.image is None and "No such file" in str(frame.error)

    def test_hidden_files_in_a_folder_are_not_frames(self, tmp_path: Path) -> None:
        good = write_image(tmp_path / "a.png")
        write_image(tmp_path / "._a.png")
        assert [frame.source for frame in frames_of(images(tmp_path))] == [str(good)]

    def test_white_level_reaches_the_decoder(self, tmp_path: Path) -> None:
        path = tmp_path / "raw.png"
        path.write_bytes(cv2.imencode(".png", np.full((2, 2), 4095, np.uint16))[1].tobytes())
        (frame,) = frames_of(ImageFiles([path], white_level_16bit=4095))
        assert frame.image is not None and frame.image.min() == 255


class TestVideoFile:
    def test_every_frame_once_and_in_order(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "v.avi", 30)
        frames = frames_of(VideoFile(path))
        assert [f.index for f in frames] == list(range(30))
        assert {f.source for f in frames} == {str(path)} and all(f.error is None for f in frames)
        greys = [float(f.image.mean()) for f in frames if f.image is not None]
        np.testing.assert_allclose(greys, GREY_STEP * np.arange(30), atol=GREY_STEP / 2 - 1)
        assert frames[0].image is not None and frames[0].image.shape == (48, 64, 3)

    def test_frames_do_not_share_memory(self, tmp_path: Path) -> None:
        frames = frames_of(VideoFile(write_video(tmp_path / "v.avi", 3)))
        assert frames[0].image is not None and frames[0].image.max() < GREY_STEP

    @pytest.mark.parametrize("share", [0.5, 0.8])
    def test_a_cut_video_ends_with_an_error(self, tmp_path: Path, share: float) -> None:
        whole = write_video(tmp_path / "v.avi", 60).read_bytes()
        cut = tmp_path / "cut.avi"
        cut.write_bytes(whole[: int(len(whole) * share)])
        *good, last = frames_of(VideoFile(cut))
        assert all(f.error is None for f in good) and len(good) < 60
        assert last.image is None and last.index == len(good)
        assert f"the video ended after {len(good)} of 60 frames" in str(last.error)

    def test_a_video_cut_within_its_head_cannot_be_opened(self, tmp_path: Path) -> None:
        cut = tmp_path / "cut.avi"
        cut.write_bytes(write_video(tmp_path / "v.avi", 20).read_bytes()[:500])
        with pytest.raises(SourceError, match=r"cut\.avi cannot be opened as a video"):
            VideoFile(cut)

    @pytest.mark.parametrize("content", [b"", b"no video at all\n" * 50], ids=["empty", "text"])
    def test_not_a_video(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "v.mp4"
        path.write_bytes(content)
        with pytest.raises(SourceError, match=r"v\.mp4 cannot be opened as a video"):
            VideoFile(path)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"There is no video file .*gone\.mp4"):
            VideoFile(tmp_path / "gone.mp4")

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="There is no video file"):
            VideoFile(tmp_path)

    @pytest.mark.parametrize("fps, taken", [(25, 30), (12.5, 15), (5, 6), (1000, 30), (10, 12)])
    def test_fps_takes_frames_of_the_videos_own_time(self, tmp_path: Path, fps: float, taken: int) -> None:
        path = write_video(tmp_path / "v.avi", 30)  # at 25 frames a second
        frames = frames_of(VideoFile(path, fps=fps))
        assert len(frames) == taken and all(f.error is None for f in frames)
        steps = np.diff([f.index for f in frames])
        assert steps.max() - steps.min() <= 1 and frames[0].index == 0
        # The index is the frame's own.
        for frame in frames:
            assert frame.image is not None
            assert abs(float(frame.image.mean()) - GREY_STEP * frame.index) < GREY_STEP / 2

    def test_a_stop_ends_it_between_two_frames(self, tmp_path: Path) -> None:
        stop = threading.Event()
        items = VideoFile(write_video(tmp_path / "v.avi", 30)).items(stop)
        next(items)
        stop.set()
        assert list(items) == []
