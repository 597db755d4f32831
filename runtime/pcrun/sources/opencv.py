"""What OpenCV captures: local cameras, network streams, GStreamer pipelines; `live` keeps them alive."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import cv2

from pcrun.errors import SourceError
from pcrun.sources.urls import expanded, redacted
from pcrun.types import UInt8Array

_PROPERTY_PREFIX = "CAP_PROP_"
_FFMPEG_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"


class Device(Protocol):
    """Something that can be opened again and again."""

    @property
    def name(self) -> str:
        """As in results; no password in it."""

    def open(self) -> cv2.VideoCapture:
        """A new capture object; a failed one is never used again.

        Raises:
            SourceError: it cannot be opened now.
        """


@dataclass(frozen=True)
class CameraDevice:
    """A local camera by number.

    Attributes:
        number: as the operating system counts.
        properties: set after opening, by OpenCV's names without CAP_PROP_, for example {"EXPOSURE": -6.0}.
    """

    number: int
    properties: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """See `Device`."""
        return f"camera:{self.number}"

    def open(self) -> cv2.VideoCapture:
        """See `Device.open`."""
        capture = cv2.VideoCapture(self.number)
        _require_opened(
            capture,
            f"Camera {self.number} cannot be opened. Expected a connected camera that no other "
            "program uses; `pcrun doctor` lists those that give frames.",
        )
        set_properties(capture, self.properties, self.name)
        return capture


@dataclass(frozen=True)
class StreamDevice:
    """A network stream; RTSP runs over TCP unless $OPENCV_FFMPEG_CAPTURE_OPTIONS says otherwise.

    Attributes:
        url: rtsp, rtsps, http or https; `$NAME` in it is taken from the environment.
        timeout_s: for opening and for each frame.
        properties: see `CameraDevice`.
    """

    url: str
    timeout_s: float = 5.0
    properties: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """See `Device`."""
        return redacted(self.url)

    def open(self) -> cv2.VideoCapture:
        """See `Device.open`."""
        # Over UDP lost packets become grey smears, which would be scored as parts.
        os.environ.setdefault(_FFMPEG_OPTIONS, "rtsp_transport;tcp")
        timeout_ms = round(self.timeout_s * 1e3)
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, timeout_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, timeout_ms]
        capture = cv2.VideoCapture(expanded(self.url), cv2.CAP_FFMPEG, limits)
        _require_opened(
            capture,
            f"{self.name} cannot be opened. Expected a stream that answers within {self.timeout_s:g} s; "
            "check address, user, password and network.",
        )
        set_properties(capture, self.properties, self.name)
        return capture


@dataclass(frozen=True)
class GstreamerDevice:
    """A GStreamer pipeline that ends in an appsink with BGR frames."""

    pipeline: str

    @property
    def name(self) -> str:
        """See `Device`."""
        return f"gstreamer:{redacted(self.pipeline)}"

    def open(self) -> cv2.VideoCapture:
        """See `Device.open`."""
        if not has_gstreamer():
            raise SourceError(
                "This OpenCV was built without GStreamer. Expected one that has it, such as the system's "
                "(Debian and Jetson: python3-opencv) in an environment made with --system-site-packages."
            )
        capture = cv2.VideoCapture(expanded(self.pipeline), cv2.CAP_GSTREAMER)
        _require_opened(
            capture,
            f"GStreamer refuses the pipeline {redacted(self.pipeline)!r}. Try it with gst-launch-1.0; it "
            "must end in `video/x-raw,format=BGR ! appsink drop=1 max-buffers=1`.",
        )
        return capture


def _require_opened(capture: cv2.VideoCapture, problem: str) -> None:
    if not capture.isOpened():
        capture.release()
        raise SourceError(problem)


def has_gstreamer() -> bool:
    """Whether this OpenCV can run GStreamer pipelines."""
    # The list of backends names plugins too, whether they are there or not.
    return bool(cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER))


def check_property(name: str) -> int:
    """OpenCV's number of a property, by its name without CAP_PROP_.

    Raises:
        SourceError: there is none of that name.
    """
    number = getattr(cv2, _PROPERTY_PREFIX + name.upper().removeprefix(_PROPERTY_PREFIX), None)
    if not isinstance(number, int):
        raise SourceError(
            f"OpenCV has no capture property {name!r}. Expected a name such as EXPOSURE, FRAME_WIDTH or GAIN."
        )
    return number


def set_properties(capture: cv2.VideoCapture, properties: Mapping[str, float], name: str) -> None:
    """Set capture properties.

    Raises:
        SourceError: one is refused; the capture is released.
    """
    for key, value in properties.items():
        if not capture.set(check_property(key), value):
            capture.release()
            raise SourceError(f"{name} refuses {key}={value:g}. Leave it out or choose another value.")


def as_colour(image: UInt8Array) -> UInt8Array:
    """A captured frame as (height, width, 3) BGR."""
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image
