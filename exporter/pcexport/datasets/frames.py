"""Clips of video: frames in folders or video files, labelled by frame or by pixel."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pcexport.datasets.files import (
    folders_in,
    images_in,
    name_of,
    natural_order,
    refs,
    repeated,
    require_none,
)
from pcexport.datasets.types import Dataset, ImageRef, TestImage
from pcexport.errors import BuildError
from pcrun.images.suffixes import VIDEO_SUFFIXES

if TYPE_CHECKING:
    from pcrun.types import BoolArray

_FRAME_LABELS, _PIXEL_LABELS = "test_frame_mask", "test_pixel_mask"
_ANOMALY = "anomaly"


@dataclass(frozen=True)
class _Clip:
    """Consecutive frames of one camera, in order."""

    name: str
    frames: tuple[ImageRef, ...]


class FrameFolders:
    """ShanghaiTech Campus (Liu et al., 2018), and other clips brought into its folders."""

    name = "frames"
    title = "Clips (ShanghaiTech Campus)"
    expects = """\
training/frames/CLIP/*.jpg        normal frames; or videos: training/videos/CLIP.avi
testing/frames/CLIP/*.jpg         frames to test on; or testing/videos/CLIP.avi
test_frame_mask/CLIP.npy          (frames,): 0 for normal; here or in testing/
test_pixel_mask/CLIP.npy          (frames, height, width): 0 for normal; one of the two will do"""
    normals = "training/frames/CLIP/, training/videos/ or training/CLIP/"

    def matches(self, root: Path) -> bool:
        """See `Layout.matches`."""
        return (root / "training").is_dir() and (root / "testing").is_dir()

    def read(self, root: Path) -> Dataset:
        """See `Layout.read`; frames of videos are counted, which decodes them once."""
        normal = tuple(frame for clip in _clips(root / "training") for frame in clip.frames)
        clips = _clips(root / "testing")
        by_frame, by_pixel = (_label_files(root, name) for name in (_FRAME_LABELS, _PIXEL_LABELS))
        _require_same_clips([clip.name for clip in clips], by_frame.keys(), by_pixel.keys(), root)
        test = [
            image
            for clip in clips
            for image in _labelled(clip, by_frame.get(clip.name), by_pixel.get(clip.name))
        ]
        return Dataset(name_of(root), self.name, root, normal, tuple(test))


def _clips(folder: Path) -> list[_Clip]:
    """Every folder of frames and every video, by name, numbers in names by their value."""
    places = [place for place in (folder / "frames", folder / "videos") if place.is_dir()] or [folder]
    found = [clip for place in places for clip in (*_folder_clips(place), *_video_clips(place))]
    require_none(
        repeated(clip.name for clip in found),
        f"{folder} holds {{n}} clips twice, the first {{first}}.",
        "Expected frames or a video of each clip; remove one of the two.",
    )
    return sorted(found, key=lambda clip: natural_order(Path(clip.name)))


def _folder_clips(place: Path) -> list[_Clip]:
    ordered = {folder: sorted(images_in(folder), key=natural_order) for folder in folders_in(place)}
    return [_Clip(folder.name, refs(images)) for folder, images in ordered.items() if images]


def _video_clips(place: Path) -> list[_Clip]:
    # OpenCV: not needed to list the layouts.
    from pcexport.datasets.videos import count_frames

    if not place.is_dir():
        return []
    videos = sorted(
        p for p in place.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES and not p.name.startswith(".")
    )
    return [
        _Clip(path.stem, tuple(ImageRef(path, frame=number) for number in range(count_frames(path))))
        for path in videos
    ]


def _label_files(root: Path, name: str) -> dict[str, Path]:
    """Clip -> its file of labels."""
    places = [place for place in (root / name, root / "testing" / name) if place.is_dir()]
    if len(places) > 1:
        raise BuildError(f"{root} holds {name}/ and testing/{name}/. Expected one of them; remove the other.")
    return {path.stem: path for place in places for path in sorted(place.glob("*.npy"))}


def _require_same_clips(
    clips: list[str], by_frame: Iterable[str], by_pixel: Iterable[str], root: Path
) -> None:
    labelled = {*by_frame, *by_pixel}
    require_none(
        [name for name in clips if name not in labelled],
        f"{{n}} clips in {root / 'testing'} have no labels, the first {{first}}.",
        f"Expected CLIP.npy in {_FRAME_LABELS}/ or {_PIXEL_LABELS}/; copy the labels, or remove the clips.",
    )
    require_none(
        sorted(labelled - set(clips)),
        f"{{n}} clips of {root} have labels but no frames, the first {{first}}.",
        "Expected testing/frames/CLIP/ or testing/videos/CLIP.avi; copy the frames, or remove the labels.",
    )


def _labelled(clip: _Clip, by_frame: Path | None, by_pixel: Path | None) -> list[TestImage]:
    marked = _marked_frames(by_pixel, clip) if by_pixel else None
    anomalous = _frame_labels(by_frame, clip) if by_frame else marked
    assert anomalous is not None  # `_require_same_clips`
    if marked is not None:
        require_none(
            [frame.name for frame, a, b in zip(clip.frames, anomalous, marked, strict=True) if a != b],
            f"{{n}} frames of clip {clip.name} have labels that contradict their pixels in {by_pixel}, the "
            "first {first}.",
            "Expected marked pixels in every anomalous frame and in no other; correct the labels.",
        )
    return [
        TestImage(
            frame.path,
            _ANOMALY if label else None,
            (ImageRef(by_pixel, frame=number),) if by_pixel and label else (),
            frame=frame.frame,
        )
        for number, (frame, label) in enumerate(zip(clip.frames, anomalous, strict=True))
    ]


def _frame_labels(path: Path, clip: _Clip) -> "BoolArray":
    """(frames,) bool: the anomalous ones."""
    from pcexport.datasets.masks import read_npy

    labels = read_npy(path)
    if labels.shape != (len(clip.frames),):
        raise BuildError(
            f"{path} has shape {labels.shape}, its clip {len(clip.frames)} frames. Expected one label per "
            "frame; copy the frames again or correct the labels."
        )
    return labels != 0


def _marked_frames(path: Path, clip: _Clip) -> "BoolArray":
    """(frames,) bool: those with a marked pixel."""
    import numpy as np

    from pcexport.datasets.masks import read_npy

    masks = read_npy(path)
    if masks.ndim != 3 or len(masks) != len(clip.frames):
        raise BuildError(
            f"{path} has shape {masks.shape}, its clip {len(clip.frames)} frames. Expected (frames, height, "
            "width); transpose or correct it."
        )
    # One by one: the masks of a long clip need not fit into memory.
    return np.array([bool(np.any(mask)) for mask in masks], bool)
