"""Reading images the same way at build time and on the device.

Colour order is BGR, as everywhere in OpenCV; the one conversion to RGB happens in `pcrun.preprocess`.
"""

from pathlib import Path

import cv2
import numpy as np

from pcrun.errors import SinkError, SourceError
from pcrun.types import AnyArray, UInt8Array

FULL_WHITE_16BIT = 65535

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_COLOUR_TYPE_OFFSET = 25
_PNG_TYPES_WITH_ALPHA = (4, 6)


def read_image(path: Path, *, white_level_16bit: int = FULL_WHITE_16BIT) -> UInt8Array:
    """Read one image file, upright (EXIF orientation applied), as 8-bit colour.

    Grey images get three equal channels; an alpha channel is ignored. 16-bit values are divided by
    `white_level_16bit` (never by the brightest pixel found: a scale guessed from content would change with
    it).

    Args:
        path: image file in any format OpenCV decodes.
        white_level_16bit: the 16-bit value that becomes 255, for example 4095 for 12-bit camera data.

    Returns:
        (height, width, 3) uint8, BGR.

    Raises:
        SourceError: missing, empty, truncated, undecodable, or of a depth other than 8 or 16 bits.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(
            f"{path} cannot be read ({error.strerror or error}). Check the path and its rights."
        ) from error
    try:
        return decode_image(data, white_level_16bit=white_level_16bit)
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from error


def decode_image(data: bytes, *, white_level_16bit: int = FULL_WHITE_16BIT) -> UInt8Array:
    """Decode an encoded image held in memory; see `read_image` for the rules and the result."""
    if not data:
        raise SourceError("the file is empty. Expected an image; remove it or write it again.")
    if _is_truncated(data):
        raise SourceError("the file ends too early (truncated). Expected a complete image; copy it again.")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise SourceError(
            f"OpenCV refuses the image ({error.err or error}). Expected an ordinary image file."
        ) from error
    if pixels is None:
        raise SourceError("not an image that OpenCV can decode. Expected PNG, JPEG, BMP, TIFF or WebP.")
    return _to_uint8(pixels, white_level_16bit)


def has_alpha(data: bytes) -> bool:
    """Whether encoded PNG bytes hold an alpha channel (which `decode_image` ignores)."""
    return (
        data.startswith(_PNG_SIGNATURE)
        and len(data) > _PNG_COLOUR_TYPE_OFFSET
        and data[_PNG_COLOUR_TYPE_OFFSET] in _PNG_TYPES_WITH_ALPHA
    )


def as_bgr(image: AnyArray) -> UInt8Array:
    """Check an image given through the API and return it as (height, width, 3) uint8 BGR.

    Args:
        image: (height, width, 3) BGR or (height, width) grey, uint8.

    Raises:
        ValueError: any other dtype or shape, or no pixels; nothing is converted by guessing.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        got = getattr(image, "dtype", type(image).__name__)
        raise ValueError(f"image must be a numpy array of uint8 (0..255), got {got}. Convert it explicitly.")
    if image.size == 0:
        raise ValueError(f"image has no pixels: its shape is {image.shape}.")
    if image.ndim == 2:
        return np.repeat(image[:, :, None], 3, axis=2)
    if image.ndim == 3 and image.shape[2] == 3:
        return image
    raise ValueError(
        f"image must have shape (height, width, 3) BGR or (height, width) grey, got {image.shape}."
    )


def encode_png(image: AnyArray) -> bytes:
    """Encode (height, width[, 3]) uint8 or uint16 pixels (BGR) as PNG, without loss."""
    return _encoded(image, "PNG", ".png", ())


def encode_jpeg(image: UInt8Array, quality: int) -> bytes:
    """Encode (height, width, 3) uint8 pixels (BGR) as JPEG of a quality from 0 to 100."""
    return _encoded(image, "JPEG", ".jpg", (cv2.IMWRITE_JPEG_QUALITY, quality))


def _encoded(image: AnyArray, name: str, suffix: str, options: tuple[int, ...]) -> bytes:
    ok, encoded = cv2.imencode(suffix, image, options)
    if not ok:
        raise SinkError(
            f"OpenCV could not encode an image of shape {image.shape} and type {image.dtype} as {name}."
        )
    data: bytes = encoded.tobytes()
    return data


def _is_truncated(data: bytes) -> bool:
    """Whether JPEG or PNG data lack their end marker: decoders fill the missing part with grey, silently."""
    if data.startswith(b"\xff\xd8"):
        # Entropy-coded data cannot hold a bare marker, so the last end-of-image must follow the last scan's
        # start; an embedded EXIF thumbnail has both before it.
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda") or b"\xff\xda" not in data
    if data.startswith(_PNG_SIGNATURE):
        return data.rfind(b"IEND") < 0
    return False


def _to_uint8(pixels: AnyArray, white_level_16bit: int) -> UInt8Array:
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels[:, :, :3])
    if pixels.dtype == np.uint16:
        scaled = pixels[:, :, :3].astype(np.float32) * np.float32(255.0 / white_level_16bit)
        rounded: UInt8Array = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
        return rounded
    raise SourceError(f"pixels are {pixels.dtype}. Expected 8 or 16 bits a channel; convert the image first.")
