"""Frozen dataclasses to and from JSON, checked key by key.

The manifest's and the configuration's one parser.
"""

import dataclasses
import difflib
import sys
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


class RecordError(ValueError):
    """A mapping does not fit its dataclass; the message names the key."""


def to_jsonable(record: Any) -> Any:
    """Turn a dataclass (nested ones included) into dicts, lists, strings and numbers."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {f.name: to_jsonable(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, dict):
        return {str(key): to_jsonable(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [to_jsonable(value) for value in record]
    return record


def from_mapping(cls: type[T], data: Any, *, where: str) -> T:
    """Build a dataclass from a mapping.

    Args:
        cls: a dataclass whose fields are bool, int, float, str, Optional, tuple[X, ...], dict[str, X] or
            dataclasses.
        data: what JSON or YAML gave.
        where: the dotted name for messages, for example "scoring.threshold".

    Raises:
        RecordError: unknown or missing keys, wrong types, values the dataclass itself refuses.
    """
    if not isinstance(data, dict):
        raise RecordError(f"{where}: expected a mapping, got {_shown(data)}")
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls))}
    _refuse_unknown(data, fields, where)
    hints = typing.get_type_hints(cls)
    values = {key: _convert(hints[key], value, f"{where}.{key}") for key, value in data.items()}
    missing = [name for name, f in fields.items() if name not in values and _is_required(f)]
    if missing:
        raise RecordError(f"{where}: missing {', '.join(missing)}")
    try:
        return cls(**values)
    except RecordError:
        raise
    except ValueError as error:
        raise RecordError(f"{where}: {error}") from error


def require(condition: bool, message: str) -> None:
    """Raise ValueError unless the condition holds: what a dataclass says of its own values."""
    if not condition:
        raise ValueError(message)


def nearest_name(name: str, known: typing.Iterable[str]) -> str:
    """A hint such as " Did you mean 'layers'?" or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def _refuse_unknown(data: dict[Any, Any], known: typing.Iterable[str], where: str) -> None:
    for key in data:
        if key not in known:
            raise RecordError(f"{where}: unknown key {str(key)!r}.{nearest_name(str(key), known)}")


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise RecordError(f"{where}: expected a list, got {_shown(value)}")
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise RecordError(f"{where}: expected a mapping, got {_shown(value)}")
        return {str(key): _convert(args[1], item, f"{where}.{_plain(key)}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_mapping(typing.cast(type[Any], hint), value, where=where)
    return _convert_scalar(hint, value, where)


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        # Also refuses NaN, and whole numbers beyond every float, which cannot be converted.
        if not abs(value) <= sys.float_info.max:
            raise RecordError(f"{where}: expected a finite number, got {_shown(value)}")
        return float(value)
    # bool is a subclass of int, yet `true` for a count is a mistake.
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    raise RecordError(f"{where}: expected {names.get(hint, hint)}, got {_shown(value)}")


def _plain(key: Any) -> str:
    # A key is free text here: no line break or escape sequence of it may reach a message.
    return str(key) if str(key).isprintable() else repr(key)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
