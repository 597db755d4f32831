"""Image files decode to the same upright 8-bit BGR pixels whatever their format; damaged ones are refused."""

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from pcrun.errors import SourceError
from pcrun.images.image_io import as_bgr, decode_image, encode_png, has_alpha, read_image


def picture(height: int = 48, width: int = 80) -> np.ndarray:
    """Smooth colours, different in every channel and corner."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    channels = [x / width * 200 + 20, y / height * 180 + 40, (x + y) / (height + width) * 150 + 60]
    return np.rint(np.dstack(channels)).astype(np.uint8)


def encoded(pixels: np.ndarray, suffix: str, *flags: int) -> bytes:
    ok, data = cv2.imencode(suffix, pixels, list(flags))
    assert ok
    return data.tobytes()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def handmade_png(
    width: int, height: int, depth: int, colour_type: int, rows: list[bytes], *extra: bytes
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    raw = b"".join(b"\0" + row for row in rows)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", header),
            *extra,
            png_chunk(b"IDAT", zlib.compress(raw)),
            png_chunk(b"IEND", b""),
        ]
    )


def with_exif(jpeg: bytes, orientation: int, *, byte_order: str = ">", thumbnail: bytes = b"") -> bytes:
    """Insert an APP1 segment with one tag, the orientation, and optionally a thumbnail behind it."""
    mark = b"MM" if byte_order == ">" else b"II"
    entry = struct.pack(f"{byte_order}HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = mark + struct.pack(f"{byte_order}HIH", 42, 8, 1) + entry + struct.pack(f"{byte_order}I", 0)
    content = b"Exif\0\0" + tiff + thumbnail
    assert jpeg[:2] == b"\xff\xd8"
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


def handmade_tiff(pixels: np.ndarray, sample_format: int, rows_per_strip: int) -> bytes:
    """Uncompressed grey TIFF, directory first: what is cut off at its end is pixels, not structure."""
    height, width = pixels.shape
    item = pixels.dtype.itemsize
    strips = -(-height // rows_per_strip)
    tables_at = 8 + 2 + 10 * 12 + 4
    pixels_at = tables_at + 8 * strips
    offsets = [pixels_at + i * rows_per_strip * width * item for i in range(strips)]
    counts = [min(rows_per_strip, height - i * rows_per_strip) * width * item for i in range(strips)]
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8 * item), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, strips, tables_at if strips > 1 else offsets[0]), (277, 3, 1, 1),
        (278, 4, 1, rows_per_strip), (279, 4, strips, tables_at + 4 * strips if strips > 1 else counts[0]),
        (339, 3, 1, sample_format),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + struct.pack("<I", 0)
    tables = struct.pack(f"<{strips}I", *offsets) + struct.pack(f"<{strips}I", *counts)
    return head + tables + pixels.tobytes()


class TestFormats:
    @pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm"])
    def test_lossless_colour_is_exact(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"image{suffix}"
        path.write_bytes(encoded(picture(), suffix))
        read = read_image(path)
        assert read.dtype == np.uint8 and read.flags.c_contiguous
        np.testing.assert_array_equal(read, picture())

    def test_lossless_webp_is_exact(self, tmp_path: Path) -> None:
        path = tmp_path / "image.webp"
        path.write_bytes(encoded(picture(), ".webp", cv2.IMWRITE_WEBP_QUALITY, 101))
        np.testing.assert_array_equal(read_image(path), picture())

    def test_jpeg_keeps_channel_order(self, tmp_path: Path) -> None:
        path = tmp_path / "image.jpg"
        path.write_bytes(encoded(picture(), ".jpg", cv2.IMWRITE_JPEG_QUALITY, 100))
        difference = np.abs(read_image(path).astype(int) - picture())
        assert difference.max() <= 6

    @pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".pgm"])
    def test_grey_gets_three_equal_channels(self, tmp_path: Path, suffix: str) -> None:
        grey = picture()[:, :, 0].copy()
        path = tmp_path / f"grey{suffix}"
        path.write_bytes(encoded(grey, suffix))
        np.testing.assert_array_equal(read_image(path), np.dstack([grey] * 3))

    @pytest.mark.parametrize("suffix", [".png", ".tiff"])
    def test_alpha_neither_multiplies_nor_blends(self, suffix: str) -> None:
        alpha = np.linspace(0, 255, 48 * 80).reshape(48, 80).astype(np.uint8)
        data = encoded(np.dstack([picture(), alpha]), suffix)
        np.testing.assert_array_equal(decode_image(data), picture())

    def test_grey_with_alpha(self) -> None:
        data = handmade_png(4, 3, 8, 4, [bytes([100, 0] * 4)] * 3)
        np.testing.assert_array_equal(decode_image(data), np.full((3, 4, 3), 100))

    def test_palette_with_transparency(self) -> None:
        colours = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255])
        extra = [png_chunk(b"PLTE", colours), png_chunk(b"tRNS", bytes(3))]
        data = handmade_png(3, 1, 8, 3, [bytes([0, 1, 2])], *extra)
        np.testing.assert_array_equal(decode_image(data), [[[0, 0, 255], [0, 255, 0], [255, 0, 0]]])

    def test_one_bit_png_spans_black_to_white(self) -> None:
        np.testing.assert_array_equal(
            decode_image(handmade_png(4, 1, 1, 0, [bytes([0b10100000])]))[0, :, 0], [255, 0, 255, 0]
        )

    @pytest.mark.parametrize(
        "data, expected",
        [
            (encoded(np.zeros((2, 2, 4), np.uint8), ".png"), True),
            (handmade_png(4, 3, 8, 4, [bytes(8)] * 3), True),
            (encoded(picture(), ".png"), False),
            (encoded(picture(), ".jpg"), False),
            (b"\x89PNG\r\n\x1a\n", False),
            (b"", False),
        ],
        ids=["rgba", "grey+alpha", "rgb", "jpeg", "signature only", "empty"],
    )
    def test_has_alpha(self, data: bytes, expected: bool) -> None:
        assert has_alpha(data) is expected


class TestSixteenBits:
    VALUES = np.array([[0, 1, 128, 129, 257, 4095, 4096, 30000, 65534, 65535]], np.uint16)

    @pytest.mark.parametrize("suffix", [".png", ".tiff"])
    @pytest.mark.parametrize(
        "white, expected",
        [
            # 128 / 65535 * 255 = 0.498, 129 / 65535 * 255 = 0.502
            (65535, [0, 0, 0, 1, 1, 16, 16, 117, 255, 255]),
            (4095, [0, 0, 8, 8, 16, 255, 255, 255, 255, 255]),
        ],
    )
    def test_grey_is_divided_by_the_white_level(self, suffix: str, white: int, expected: list[int]) -> None:
        read = decode_image(encoded(self.VALUES, suffix), white_level_16bit=white)
        np.testing.assert_array_equal(read, np.dstack([np.array([expected])] * 3))

    @pytest.mark.parametrize("suffix", [".png", ".tiff"])
    def test_colour_keeps_its_channels_apart(self, suffix: str) -> None:
        pixels = np.dstack([self.VALUES, self.VALUES[:, ::-1], np.full_like(self.VALUES, 2570)])
        read = decode_image(encoded(pixels, suffix))
        expected = np.rint(pixels.astype(np.float64) * 255 / 65535)
        np.testing.assert_array_equal(read, expected)
        assert read[0, 0].tolist() == [0, 255, 10]

    def test_sixteen_bit_alpha_is_ignored(self) -> None:
        row = struct.pack(">4H", 0x8080, 0x4040, 0x1010, 0) * 4
        read = decode_image(handmade_png(4, 1, 16, 6, [row]))
        np.testing.assert_array_equal(read, np.tile([0x10, 0x40, 0x80], (1, 4, 1)))

    def test_the_brightest_pixel_does_not_set_the_scale(self) -> None:
        dark = encoded(np.full((2, 2), 1000, np.uint16), ".png")
        mixed = encoded(np.array([[1000, 60000]], np.uint16), ".png")
        assert decode_image(dark)[0, 0, 0] == decode_image(mixed)[0, 0, 0] == 4

    def test_white_level_leaves_eight_bit_images_alone(self) -> None:
        np.testing.assert_array_equal(
            decode_image(encoded(picture(), ".png"), white_level_16bit=4095), picture()
        )


# What the camera stored for an upright picture, by EXIF orientation (TIFF 6.0, tag 274).
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda upright: np.rot90(upright, -1),
}


class TestOrientation:
    @pytest.mark.parametrize("byte_order", [">", "<"])
    @pytest.mark.parametrize("orientation", list(STORED))
    def test_jpeg_comes_out_upright(self, orientation: int, byte_order: str) -> None:
        upright = np.zeros((32, 64, 3), np.uint8)
        upright[:16, :32], upright[:16, 32:], upright[16:, :32] = (250, 10, 10), (10, 250, 10), (10, 10, 250)
        stored = np.ascontiguousarray(STORED[orientation](upright))
        jpeg = encoded(stored, ".jpg", cv2.IMWRITE_JPEG_QUALITY, 100)
        read = decode_image(with_exif(jpeg, orientation, byte_order=byte_order))
        assert read.shape == upright.shape
        # Away from the edges between the quarters, where JPEG's halved chroma blurs.
        inside = np.s_[4::8, 4::8]
        assert np.abs(read[inside].astype(int) - upright[inside]).max() <= 8

    def test_unknown_orientation_is_taken_as_stored(self) -> None:
        jpeg = encoded(picture(), ".jpg")
        np.testing.assert_array_equal(decode_image(with_exif(jpeg, 0)), decode_image(jpeg))


class TestDamage:
    def refused(self, data: bytes) -> bool:
        try:
            decode_image(data)
        except SourceError:
            return True
        return False

    @pytest.mark.parametrize(
        "flags",
        [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)],
        ids=["baseline", "progressive", "restart markers"],
    )
    @pytest.mark.parametrize("thumbnail", [False, True], ids=["plain", "with EXIF thumbnail"])
    def test_truncated_jpeg_is_never_accepted(self, flags: tuple[int, ...], thumbnail: bool) -> None:
        jpeg = encoded(picture(), ".jpg", *flags)
        small = encoded(picture(16, 24), ".jpg") if thumbnail else b""
        whole = with_exif(jpeg, 1, thumbnail=small)
        np.testing.assert_array_equal(decode_image(whole), decode_image(jpeg))
        accepted = [end for end in range(len(whole)) if not self.refused(whole[:end])]
        assert accepted == []
        # Within the pixels the refusal must be ours: OpenCV up to 4.10 fills the rest with grey.
        for end in range(whole.rindex(b"\xff\xda") + 2, len(whole) - 1, 5):
            with pytest.raises(SourceError, match="truncated"):
                decode_image(whole[:end])

    @pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".webp", ".pgm", ".jp2"])
    def test_truncated_file_is_never_accepted(self, suffix: str) -> None:
        whole = encoded(picture()[:, :, 0].copy() if suffix == ".pgm" else picture(), suffix)
        assert not self.refused(whole)
        # The last bytes of a PNG are the checksum of its empty end chunk, those of a WebP may be padding.
        ends = range(0, len(whole) - 5, max(1, len(whole) // 150))
        assert [end for end in ends if not self.refused(whole[:end])] == []

    @pytest.mark.parametrize("rows_per_strip", [24, 5])
    def test_tiff_with_missing_strips_is_refused(self, rows_per_strip: int) -> None:
        grey = picture(24, 32)[:, :, 0].copy()
        whole = handmade_tiff(grey, 1, rows_per_strip)
        np.testing.assert_array_equal(decode_image(whole)[:, :, 0], grey)
        assert [end for end in range(0, len(whole), 7) if not self.refused(whole[:end])] == []

    def test_flipped_bit_anywhere_in_png_pixels_is_refused(self) -> None:
        whole = encoded(picture(24, 32), ".png")
        start = whole.index(b"IDAT") + 4
        accepted = []
        for position in range(start, whole.index(b"IEND") - 8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << position % 8
            if not self.refused(bytes(damaged)):
                accepted.append(position)
        assert accepted == []

    def test_png_with_too_few_rows_is_refused(self) -> None:
        whole = handmade_png(4, 3, 8, 2, [bytes(12)] * 3)
        short = handmade_png(4, 3, 8, 2, [bytes(12)] * 2)
        assert decode_image(whole).shape == (3, 4, 3)
        assert self.refused(short)

    @pytest.mark.parametrize("dtype, sample_format", [(np.float32, 3), (np.float64, 3), (np.int32, 2)])
    def test_tiff_of_another_depth_is_refused(self, dtype: type, sample_format: int) -> None:
        assert self.refused(handmade_tiff(np.ones((4, 5), dtype), sample_format, 4))
        assert self.refused(encoded(np.ones((4, 5, 3), dtype), ".tiff"))

    def test_depth_message_names_the_type(self) -> None:
        with pytest.raises(SourceError, match=r"pixels are float32.*8 or 16 bits"):
            decode_image(encoded(np.ones((4, 5, 3), np.float32), ".hdr"))


class TestReadImage:
    def test_path_with_spaces_and_umlauts(self, tmp_path: Path) -> None:
        folder = tmp_path / "Größe 10 µm"
        folder.mkdir()
        path = folder / "teil – 图 1.png"
        path.write_bytes(encoded(picture(), ".png"))
        np.testing.assert_array_equal(read_image(path), picture())

    def test_content_counts_not_the_suffix(self, tmp_path: Path) -> None:
        path = tmp_path / "really_a_png.jpg"
        path.write_bytes(encoded(picture(), ".png"))
        np.testing.assert_array_equal(read_image(path), picture())

    @pytest.mark.parametrize(
        "content, reason",
        [
            (b"", "empty"),
            (b"hello, this is text\n" * 20, "not an image"),
            (encoded(picture(), ".png")[:-40], "truncated"),
            (encoded(picture(), ".jpg")[:-40], "truncated"),
        ],
        ids=["empty", "text", "cut png", "cut jpeg"],
    )
    def test_message_names_the_file_and_the_reason(self, tmp_path: Path, content: bytes, reason: str) -> None:
        path = tmp_path / "part_0042.png"
        path.write_bytes(content)
        with pytest.raises(SourceError, match=reason) as caught:
            read_image(path)
        assert str(path) in str(caught.value)

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"gone\.png cannot be read \(No such file"):
            read_image(tmp_path / "gone.png")

    def test_directory(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"cannot be read \(Is a directory"):
            read_image(tmp_path)

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
    def test_file_without_read_permission(self, tmp_path: Path) -> None:
        path = tmp_path / "secret.png"
        path.write_bytes(encoded(picture(), ".png"))
        path.chmod(0)
        with pytest.raises(SourceError, match="Permission denied"):
            read_image(path)


class TestAsBgr:
    def test_colour_is_passed_on_unchanged(self) -> None:
        image = picture()
        assert as_bgr(image) is image

    def test_grey_is_repeated(self) -> None:
        grey = picture()[:, :, 1]
        np.testing.assert_array_equal(as_bgr(grey), np.dstack([grey] * 3))

    @pytest.mark.parametrize(
        "image, message",
        [
            (np.zeros((4, 5, 3), np.float32), "got float32"),
            (np.zeros((4, 5, 3), np.uint16), "got uint16"),
            (np.zeros((4, 5), bool), "got bool"),
            ([[1, 2], [3, 4]], "got list"),
            (None, "got NoneType"),
            (np.zeros((4, 5, 4), np.uint8), r"got \(4, 5, 4\)"),
            (np.zeros((4, 5, 1), np.uint8), r"got \(4, 5, 1\)"),
            (np.zeros((3, 4, 5), np.uint8), r"got \(3, 4, 5\)"),
            (np.zeros((1, 4, 5, 3), np.uint8), r"got \(1, 4, 5, 3\)"),
            (np.zeros(12, np.uint8), r"got \(12,\)"),
            (np.zeros((0, 5, 3), np.uint8), "no pixels"),
            (np.zeros((0, 0), np.uint8), "no pixels"),
        ],
    )
    def test_everything_else_is_refused(self, image: object, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            as_bgr(image)


class TestEncodePng:
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_no_value_is_lost(self, dtype: type) -> None:
        pixels = (np.arange(6 * 7 * 3) * 517 % 65536).reshape(6, 7, 3).astype(dtype)
        read = cv2.imdecode(np.frombuffer(encode_png(pixels), np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(read, pixels)
