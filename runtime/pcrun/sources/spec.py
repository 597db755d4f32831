"""What people write for a source, and the source they get."""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pcrun.errors import SourceError
from pcrun.images.suffixes import VIDEO_SUFFIXES
from pcrun.sources import Source
from pcrun.sources.files import ImageFiles, VideoFile
from pcrun.sources.live import LiveSource
from pcrun.sources.opencv import CameraDevice, Device, GstreamerDevice, StreamDevice
from pcrun.sources.stdin import RawFrames
from pcrun.sources.urls import is_url
from pcrun.sources.watch import WatchedFolder

_SIZE = re.compile(r"(\d+)x(\d+)")


@dataclass(frozen=True)
class SourceOptions:
    """What applies to all sources of a run.

    Attributes:
        fps: at most so many frames a second from a live source or a video.
        stall_timeout_s: a live source that is silent for so long is opened anew.
        properties: of cameras, by OpenCV's names without CAP_PROP_.
    """

    fps: float | None = None
    stall_timeout_s: float = 5.0
    properties: Mapping[str, float] = field(default_factory=dict)


def open_source(text: str, options: SourceOptions, *, white_level_16bit: int) -> Source:
    """The source that a text names.

    Args:
        text: a camera number; a URL; "gstreamer:PIPELINE"; "watch:FOLDER"; "stdin:WIDTHxHEIGHT"; "video:FILE"
            or the name of a video file; else image files: a file, a folder or a glob pattern.
        options: of the run.
        white_level_16bit: of the bundle.

    Raises:
        SourceError: it cannot be understood, or is not there (live sources are tried when they run).
    """
    kind, _, rest = text.partition(":")
    if text.isdecimal():
        return _live(CameraDevice(int(text), options.properties), options)
    if kind == "camera" and rest.isdecimal():
        return _live(CameraDevice(int(rest), options.properties), options)
    if is_url(text):
        return _live(StreamDevice(text, options.stall_timeout_s, options.properties), options)
    if kind == "gstreamer":
        return _live(GstreamerDevice(rest), options)
    if options.properties:
        raise SourceError(f"{text} has no properties to set. Expected a camera or stream; leave --prop out.")
    if kind == "watch":
        return WatchedFolder(rest, white_level_16bit=white_level_16bit)
    if kind == "stdin":
        return raw_frames(rest)
    if kind == "video":
        return VideoFile(rest, fps=options.fps)
    if Path(text).suffix.lower() in VIDEO_SUFFIXES:
        return VideoFile(text, fps=options.fps)
    return ImageFiles([text], white_level_16bit=white_level_16bit)


def raw_frames(size: str) -> RawFrames:
    """Raw frames on standard input of a size written WIDTHxHEIGHT.

    Raises:
        SourceError: it is no size.
    """
    match = _SIZE.fullmatch(size)
    if not match:
        raise SourceError(f"{size!r} is no size of frames. Expected WIDTHxHEIGHT in pixels, such as 640x480.")
    return RawFrames(sys.stdin.buffer, width=int(match[1]), height=int(match[2]))


def _live(device: Device, options: SourceOptions) -> LiveSource:
    return LiveSource(device, stall_timeout_s=options.stall_timeout_s, fps=options.fps)
