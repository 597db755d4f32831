"""What a student file says of itself, and the picture on which its writer and its reader are compared."""

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from pcrun.records import RecordError, from_mapping, require, to_jsonable
from pcrun.types import UInt8Array

# The entry of the ONNX file's metadata that makes it a student.
METADATA_KEY = "pcexport.student"
FORMAT = 1

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_LOW_31_BITS = 0x7FFFFFFF


@dataclass(frozen=True)
class CheckValues:
    """What the torch module gave for the check picture when the student was made.

    Attributes:
        height, width: of `check_picture`, in pixels.
        positions: (patch, channel) pairs.
        values: of the embedding at these positions.
        scale: root mean square of the whole embedding; errors are relative to it.
    """

    height: int
    width: int
    positions: tuple[tuple[int, ...], ...]
    values: tuple[float, ...]
    scale: float

    def __post_init__(self) -> None:
        require(bool(self.positions), "positions must hold at least one (patch, channel)")
        require(all(len(pair) == 2 for pair in self.positions), "positions must be (patch, channel) pairs")
        require(
            len(self.positions) == len(self.values),
            f"{len(self.positions)} positions do not go with {len(self.values)} values",
        )
        require(self.scale > 0, f"scale must be above 0, got {self.scale}")


@dataclass(frozen=True)
class StudentFacts:
    """The metadata of a student file, one JSON object.

    Attributes:
        format: of this record; a reader refuses newer ones.
        student: its name.
        teacher, teacher_weights_sha256, layers: the backbone that it learned to imitate, the hash of that
            one's weights file where there was one, and the feature maps.
        dim: length of a patch embedding.
        stride: pixels from one patch to the next.
        image_multiple: image height and width in pixels must be multiples of this.
        neighbourhood: side of the average around each patch, inside the graph.
        mean_rgb, std_rgb: normalisation of images in [0, 1], inside the graph.
        data: the images it was trained on, in the words of who trained it.
        steps, loss, seed: of the training, the loss being the last one.
        versions: of the packages that trained and wrote it.
        check: values to compare with.
    """

    format: int
    student: str
    teacher: str
    teacher_weights_sha256: str | None
    layers: tuple[str, ...]
    dim: int
    stride: int
    image_multiple: int
    neighbourhood: int
    mean_rgb: tuple[float, ...]
    std_rgb: tuple[float, ...]
    data: dict[str, Any]
    steps: int
    loss: float
    seed: int
    versions: dict[str, str]
    check: CheckValues

    def __post_init__(self) -> None:
        require(
            _NAME.fullmatch(self.student) is not None, f"student must be a short name, got {self.student!r}"
        )
        require(bool(self.layers), "layers must name at least one feature map")
        for name, high in (("dim", 65536), ("stride", 256), ("image_multiple", 4096), ("neighbourhood", 15)):
            value = getattr(self, name)
            require(1 <= value <= high, f"{name} must be 1..{high}, got {value}")
        require(self.neighbourhood % 2 == 1, f"neighbourhood must be odd, got {self.neighbourhood}")
        require(
            self.image_multiple % self.stride == 0,
            f"image_multiple must be a multiple of the stride {self.stride}, got {self.image_multiple}",
        )
        require(len(self.mean_rgb) == 3 and len(self.std_rgb) == 3, "mean_rgb and std_rgb hold 3 values each")
        require(all(value > 0 for value in self.std_rgb), "std_rgb must be above 0")
        self._check_positions()

    def _check_positions(self) -> None:
        check = self.check
        for name, size in (("height", check.height), ("width", check.width)):
            require(
                0 < size <= 4096 and size % self.image_multiple == 0,
                f"check.{name} must be a multiple of {self.image_multiple} up to 4096, got {size}",
            )
        grid_height, grid_width = self.grid_hw((check.height, check.width))
        for patch, channel in check.positions:
            require(
                0 <= patch < grid_height * grid_width and 0 <= channel < self.dim,
                f"check.positions has ({patch}, {channel}) outside of {grid_height * grid_width} patches of "
                f"{self.dim} channels",
            )

    def grid_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Patches in height and width for an image size in pixels."""
        return image_hw[0] // self.stride, image_hw[1] // self.stride

    @property
    def note(self) -> str:
        """One line for people."""
        return (
            f"{self.dim}-d, stride {self.stride}; distilled from {self.teacher} {','.join(self.layers)}; "
            f"needs no torch; sizes in multiples of {self.image_multiple} px"
        )

    def to_json(self) -> str:
        """The value of the metadata entry."""
        return json.dumps(to_jsonable(self), sort_keys=True)


def parse_facts(text: str) -> StudentFacts:
    """Read the value of the metadata entry.

    Raises:
        RecordError: it is no JSON object, of a newer format, or lacks or misnames a key.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{METADATA_KEY} is not valid JSON ({error})") from error
    number = data.get("format") if isinstance(data, dict) else None
    # Read before any other key: those of a newer format are not known here.
    if isinstance(number, int) and number > FORMAT:
        raise RecordError(
            f"{METADATA_KEY} has format {number}, this pcexport reads formats up to {FORMAT}: upgrade "
            "patchcore-edge"
        )
    if number != FORMAT or isinstance(number, bool):
        raise RecordError(f"{METADATA_KEY} must be a mapping with format {FORMAT}, got format {number!r}")
    return from_mapping(StudentFacts, data, where=METADATA_KEY)


def check_picture(height: int, width: int) -> UInt8Array:
    """The picture whose embedding is recorded in a student file.

    Whole numbers only, no random generator: the same bytes with every version of numpy. Smooth gradients, a
    disc and stripes with sharp edges, and a texture. It may never change: files that exist hold values of it.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    radius = min(height, width) // 4
    disc = (x - width // 3) ** 2 + (y - height // 2) ** 2 <= radius**2
    stripes = (x > 2 * width // 3) & ((x // 6 + y // 10) % 2 == 0)
    channels = []
    for channel in range(3):
        gradient = x * (70 + 30 * channel) // width + y * (130 - 30 * channel) // height
        edges = 60 * (disc ^ (channel == 1)) - 50 * stripes
        channels.append(gradient + edges + _texture(x, y, channel))
    return np.clip(np.stack(channels, axis=2), 0, 255).astype(np.uint8)


def _texture(x: Any, y: Any, channel: int) -> Any:
    """Whole numbers 0..31 that look random; all products stay below 2^63."""
    mixed = (x * 73856093) ^ (y * 19349663) ^ ((channel + 1) * 83492791)
    for shift in (13, 11):
        mixed = (((mixed & _LOW_31_BITS) ^ ((mixed & _LOW_31_BITS) >> shift)) * 1274126177) & _LOW_31_BITS
    return mixed >> 26
