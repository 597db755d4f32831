"""Types of option values that click does not have."""

import re
from typing import TYPE_CHECKING, Any

import click

# ParamType is generic in click's newer versions only, so not at run time.
if TYPE_CHECKING:
    _AnyParamType = click.ParamType[Any]
else:
    _AnyParamType = click.ParamType


class RoiType(_AnyParamType):
    """x,y,w,h in whole pixels."""

    name = "x,y,w,h"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        numbers = re.fullmatch(r"(\d+),(\d+),(\d+),(\d+)", str(value))
        if not numbers:
            self.fail(f"{value!r} is not x,y,w,h in whole pixels, such as 100,50,640,480", param, ctx)
        x, y, width, height = map(int, numbers.groups())
        if width < 1 or height < 1:
            self.fail(f"{value!r} has no area", param, ctx)
        return x, y, width, height


class CameraType(_AnyParamType):
    """N or /dev/videoN."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = re.fullmatch(r"(?:/dev/video)?(\d+)", str(value))
        if not number:
            self.fail(f"{value!r} is not the number of a camera, such as 0 or /dev/video0", param, ctx)
        return int(number[1])


class FractionType(_AnyParamType):
    """k/n with 1 <= k <= n."""

    name = "k/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        numbers = re.fullmatch(r"(\d+)/(\d+)", str(value))
        if not numbers or not 1 <= int(numbers[1]) <= int(numbers[2]) <= 100_000:
            self.fail(f"{value!r} is not k/n with 1 <= k <= n, such as 3/5", param, ctx)
        return int(numbers[1]), int(numbers[2])


class WindowType(_AnyParamType):
    """0, or a number of verdicts that is enough for a comparison."""

    name = "n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if str(value).isdecimal() and (int(value) == 0 or 20 <= int(value) <= 10_000):
            return int(value)
        self.fail(f"{value!r} is not 0, or a number of verdicts from 20 to 10000", param, ctx)


class PropertyType(_AnyParamType):
    """NAME=VALUE, a capture property."""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name, equals, number = str(value).partition("=")
        try:
            if name and equals:
                return name.strip().upper(), float(number)
        except ValueError:
            pass
        self.fail(f"{value!r} is not NAME=VALUE with a number, such as EXPOSURE=-6", param, ctx)


class AddressType(_AnyParamType):
    """[HOST:]PORT; the loopback where no host is given."""

    name = "[HOST:]PORT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        host, _, port = str(value).rpartition(":")
        if not port.isdecimal() or not 0 <= int(port) <= 65535:
            self.fail(f"{value!r} is not [HOST:]PORT, such as 9100", param, ctx)
        return host.strip("[]") or "127.0.0.1", int(port)
