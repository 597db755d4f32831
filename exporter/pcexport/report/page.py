"""Where pages come from: the templates, and how numbers and pictures are written in them."""

import base64
from pathlib import Path

import jinja2

from pcexport.report.format import (
    format_bytes,
    format_count,
    format_l2,
    format_rate,
    format_small,
    format_value,
    out_of,
)
from pcrun.images.image_io import encode_jpeg
from pcrun.types import UInt8Array


def page_environment() -> jinja2.Environment:
    """Templates of this package; every value is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        l2=format_l2,
        rate=format_rate,
        count=format_count,
        small=format_small,
        bytes=format_bytes,
        value=format_value,
    )
    environment.globals.update(out_of=out_of)
    return environment


def jpeg_address(image: UInt8Array, quality: int) -> str:
    """A (height, width, 3) uint8 BGR image as a `data:` address, for a page without external parts."""
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(image, quality)).decode()
