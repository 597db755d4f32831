"""Clips: frames in folders and in videos, labelled by frame or by pixel."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from pcexport.datasets import ImageRef, find_dataset
from pcexport.errors import BuildError
from tests.exporter.datasets.helpers import (
    boxes,
    found,
    grey_values,
    labels,
    normal_names,
    write_image,
    write_npy,
)

HW = (48, 64)
VALUES = (20, 60, 100, 140, 180)
MARKED = [0, 1, 1, 0]
BOX = (10, 5, 20, 8)


def write_video(path: Path, values: tuple[int, ...] = VALUES) -> Path:
    """A video whose frame i has the grey value values[i]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25.0, (HW[1], HW[0]))
    assert writer.isOpened()
    for value in values:
        writer.write(np.full((*HW, 3), value, np.uint8))
    writer.release()
    return path


def pixel_labels() -> np.ndarray:
    labels = np.zeros((len(MARKED), *HW), np.uint8)
    x, y, width, height = BOX
    for frame, marked in enumerate(MARKED):
        labels[frame, y : y + height, x : x + width] = marked
    return labels


@pytest.fixture
def campus(tmp_path: Path) -> Path:
    root = tmp_path / "campus"
    for clip, numbers in (("01_002", (2, 10, 1)), ("01_001", (0,))):
        for number in numbers:
            write_image(root / f"training/frames/{clip}/{number}.png", number, HW)
    for number in range(len(MARKED)):
        write_image(root / f"testing/frames/01_0014/{number:03d}.jpg", 10 * number, HW)
    write_npy(root / "test_frame_mask/01_0014.npy", np.array(MARKED))
    write_npy(root / "test_pixel_mask/01_0014.npy", pixel_labels())
    return root


def test_frames_come_in_the_order_of_their_numbers_with_their_labels_and_masks(campus: Path) -> None:
    dataset = found(campus, "frames")
    assert normal_names(dataset) == [
        "training/frames/01_001/0.png",
        *(f"training/frames/01_002/{number}.png" for number in (1, 2, 10)),
    ]
    assert grey_values(dataset, *dataset.normal) == [0, 1, 2, 10]
    assert [defect for _, defect in labels(dataset)] == [None, "anomaly", "anomaly", None]
    assert grey_values(dataset, *(image.ref for image in dataset.test)) == [0, 10, 20, 30]
    assert boxes(dataset) == [None, BOX, BOX, None]


def test_labels_may_lie_in_the_testing_folder(campus: Path) -> None:
    for name in ("test_frame_mask", "test_pixel_mask"):
        (campus / name).rename(campus / "testing" / name)
    assert boxes(found(campus, "frames")) == [None, BOX, BOX, None]


def test_pixel_labels_alone_label_the_frames(campus: Path) -> None:
    shutil.rmtree(campus / "test_frame_mask")
    assert [defect for _, defect in labels(found(campus, "frames"))] == [None, "anomaly", "anomaly", None]


def test_frame_labels_alone_draw_no_mask(campus: Path) -> None:
    shutil.rmtree(campus / "test_pixel_mask")
    dataset = found(campus, "frames")
    assert [image.is_defective for image in dataset.test] == [False, True, True, False]
    assert boxes(dataset) == [None] * 4


@pytest.mark.parametrize("folder", ["training/videos", "training/frames", "training"])
def test_training_videos_are_read_frame_by_frame(campus: Path, folder: str) -> None:
    shutil.rmtree(campus / "training")
    write_video(campus / folder / "01_001.avi")
    dataset = found(campus, "frames")
    assert [(image.path.name, image.frame) for image in dataset.normal] == [
        ("01_001.avi", number) for number in range(len(VALUES))
    ]
    assert grey_values(dataset, *dataset.normal) == pytest.approx(VALUES, abs=2)
    # Backwards and across, as golden samples and folds ask for them.
    some = (dataset.normal[3], dataset.normal[1], dataset.normal[1])
    assert grey_values(dataset, *some) == pytest.approx([140, 60, 60], abs=2)


def test_testing_videos_are_labelled_too(campus: Path) -> None:
    shutil.rmtree(campus / "testing/frames")
    write_video(campus / "testing/videos/01_0014.avi", VALUES[: len(MARKED)])
    dataset = found(campus, "frames")
    assert [image.name for image in dataset.test][:2] == ["01_0014.avi#frame=0", "01_0014.avi#frame=1"]
    assert boxes(dataset) == [None, BOX, BOX, None]


def test_folders_of_frames_may_lie_directly_in_training(campus: Path) -> None:
    (campus / "training/frames/01_001").rename(campus / "training/01_001")
    shutil.rmtree(campus / "training/frames")
    assert normal_names(found(campus, "frames")) == ["training/01_001/0.png"]


def test_frame_labels_that_contradict_the_pixels_are_refused(campus: Path) -> None:
    write_npy(campus / "test_frame_mask/01_0014.npy", np.array([1, 1, 0, 0]))
    with pytest.raises(BuildError, match=r"2 frames of clip 01_0014 have labels .* the first 000\.jpg"):
        find_dataset(str(campus))


@pytest.mark.parametrize(
    "name, array, message",
    [
        ("test_frame_mask", np.zeros(5), r"shape \(5,\), its clip 4 frames. Expected one label per frame"),
        ("test_frame_mask", np.zeros((4, 1)), r"shape \(4, 1\)"),
        ("test_pixel_mask", np.zeros((48, 64, 4)), r"shape \(48, 64, 4\).*transpose"),
        ("test_pixel_mask", np.zeros((4, 48)), r"Expected \(frames, height, width\)"),
        ("test_frame_mask", np.array(["a"] * 4), "holds <U1"),
    ],
)
def test_labels_of_another_shape_are_refused(
    campus: Path, name: str, array: np.ndarray, message: str
) -> None:
    write_npy(campus / name / "01_0014.npy", array)
    with pytest.raises(BuildError, match=message):
        find_dataset(str(campus))


class Exploding:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple:
        return (pytest.fail, ("it was unpickled",))


def test_pickled_labels_are_refused_and_never_run(campus: Path) -> None:
    write_npy(campus / "test_frame_mask/01_0014.npy", np.array([Exploding()] * 4, object))
    with pytest.raises(BuildError, match="cannot be read as an array"):
        find_dataset(str(campus))


def test_clips_without_labels_are_refused(campus: Path) -> None:
    write_image(campus / "testing/frames/01_0015/000.jpg")
    with pytest.raises(BuildError, match=r"1 clips in .*testing have no labels, the first 01_0015"):
        find_dataset(str(campus))


def test_labels_without_a_clip_are_refused(campus: Path) -> None:
    write_npy(campus / "test_frame_mask/09_0001.npy", np.zeros(3))
    with pytest.raises(BuildError, match="have labels but no frames, the first 09_0001"):
        find_dataset(str(campus))


def test_a_clip_as_frames_and_as_video_is_refused(campus: Path) -> None:
    write_video(campus / "training/videos/01_001.avi")
    with pytest.raises(BuildError, match="1 clips twice, the first 01_001"):
        find_dataset(str(campus))


def test_a_mask_of_another_size_than_its_frame_is_refused(campus: Path) -> None:
    write_npy(campus / "test_pixel_mask/01_0014.npy", pixel_labels()[:, ::2, ::2])
    with pytest.raises(BuildError, match=r"01_0014\.npy#frame=1 has 32x24 px, its image 001\.jpg 64x48"):
        boxes(find_dataset(str(campus)))


def test_the_frame_of_a_clip_and_that_of_its_mask_are_apart() -> None:
    assert ImageRef(Path("a.npy"), frame=3).name == "a.npy#frame=3"
    assert ImageRef(Path("a.avi"), (1, 2, 3, 4), 3).name == "a.avi#frame=3&xywh=1,2,3,4"
