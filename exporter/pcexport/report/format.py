"""Numbers of the report as people read them; a missing or undefined one is a dash."""

import math
from typing import Any

from pcrun.bundle.manifest import ThresholdSpec

_ABSENT = "–"


def format_l2(value: float | None) -> str:
    """Four significant digits: 2.346, 12,346, 0.01235."""
    if value is None or not math.isfinite(value):
        return _ABSENT
    if value != 0 and abs(value) < 1e-4:
        return format_small(value)
    digits = 3 if value == 0 else min(7, max(0, 3 - math.floor(math.log10(abs(value)))))
    return f"{value:,.{digits}f}"


def format_rate(value: float | None) -> str:
    """Percent with two decimals; what is not 0 or 1 is never shown as 0 % or 100 %."""
    if value is None or not math.isfinite(value):
        return _ABSENT
    if value in (0, 1):
        return f"{value:.0%}"
    if 0 < value < 0.0001:
        return "<0.01%"
    return ">99.99%" if 0.9999 < value < 1 else f"{value:.2%}"


def format_count(value: float) -> str:
    """A whole number with thousands separators."""
    return f"{value:,.0f}"


def format_small(value: float | None) -> str:
    """Two significant digits, with a power of ten where the number is small: 3.1 × 10⁻⁶."""
    if value is None or not math.isfinite(value):
        return _ABSENT
    if value == 0 or abs(value) >= 1e-3:
        return f"{value:.2g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa} × 10{power}"


def format_bytes(value: int) -> str:
    """Decimal units, three digits."""
    if value < 1000:
        return f"{value} B"
    size = value / 1000
    for unit in ("kB", "MB"):
        if size < 999.5:
            return f"{size:#.3g}".rstrip(".") + f" {unit}"
        size /= 1000
    return f"{size:,.2f} GB"


def format_value(value: Any) -> str:
    """A configuration value as a person would write it."""
    if value is None:
        return _ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(format_value(item) for item in value)
    return str(value)


def out_of(threshold: ThresholdSpec) -> tuple[int, int, int]:
    """Both false-alarm rates as counts: (expected, at most with 95 % confidence, of how many)."""
    rate, upper = threshold.false_alarm_rate_expected, threshold.false_alarm_rate_upper_95
    total = next((n for n in (100, 1_000, 10_000, 100_000) if rate * n >= 5), 1_000_000)
    return round(rate * total), min(total, math.ceil(upper * total - 1e-9)), total
