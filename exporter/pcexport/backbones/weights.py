"""Weights from a file: read without executing anything, and checked against what the backbone uses."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pcexport.backbones.at_hand import TORCH_SUFFIXES, weights_file
from pcexport.errors import BuildError

_SHOWN = 10
# What torch.save writes begins so: a zip file, or (before torch 1.6) a pickle.
_TORCH_BEGINS = (b"PK", b"\x80")


@dataclass(frozen=True)
class WeightsInfo:
    """Where weights came from, for the manifest.

    Attributes:
        source: a line for people: "untrained (seed 0)", "file X.pth", "torchvision ...IMAGENET1K_V1".
        sha256: hex digest of the file they were read from; None where there is no single file.
    """

    source: str
    sha256: str | None


def untrained_info(seed: int) -> WeightsInfo:
    """The origin of weights that no data ever touched."""
    return WeightsInfo(f"untrained (seed {seed})", None)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_weights(weights: str) -> tuple[dict[str, Tensor], WeightsInfo]:
    """Read a weights file that the user named.

    Args:
        weights: path of a .pth or .pt file (a state dict, or {"state_dict": it}) or of a .safetensors file.

    Returns:
        Tensors on the CPU by name, and the file's name and hash.

    Raises:
        BuildError: no such file, another suffix, unreadable, or holding more than tensors (then nothing of it
            is executed).
    """
    path = weights_file(weights)
    return read_tensors(path), WeightsInfo(f"file {path.name}", sha256_of(path))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a state-dict file by name, on the CPU. Raises BuildError as `read_weights` does."""
    content = _read_torch(path) if path.suffix.lower() in TORCH_SUFFIXES else _read_safetensors(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    tensors = (
        {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise BuildError(
            f"weights file {path} holds no named tensors ({type(content).__name__}). "
            "Expected a state dict; save one with torch.save(model.state_dict(), FILE)."
        )
    return tensors


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as e:
        _require_torch_begin(path, e)
        raise BuildError(
            f"weights file {path} was refused: it is damaged, or holds pickled objects other than tensors, "
            f"which could run code when loaded. Save only the tensors, torch.save(model.state_dict(), FILE), "
            f"or convert it to .safetensors. ({_first_line(e)})"
        ) from e
    except Exception as e:  # a damaged file fails in many ways, IndexError and struct.error among them
        _require_torch_begin(path, e)
        raise _unreadable(path, e) from e


def _require_torch_begin(path: Path, e: Exception) -> None:
    """Say so where a file that torch could not read is of another kind altogether."""
    with path.open("rb") as file:
        begin = file.read(16)
    if not begin.startswith(_TORCH_BEGINS):
        raise BuildError(
            f"weights file {path} is not one that torch.save wrote: it begins with {begin!r}. Expected a "
            "state dict; save one with torch.save(model.state_dict(), FILE), or check the path given as "
            "--weights."
        ) from e


def _read_safetensors(path: Path) -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as e:
        raise BuildError(f"{path} needs the package safetensors. Install it: pip install safetensors") from e
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as e:
        raise _unreadable(path, e) from e


def _unreadable(path: Path, e: Exception) -> BuildError:
    return BuildError(
        f"weights file {path} cannot be read: {_first_line(e)}. Expected a {path.suffix} file of tensors; "
        "it may be damaged or cut short, copy it again."
    )


def _first_line(e: Exception) -> str:
    said = (str(e).strip().splitlines() or [""])[0].partition(". ")[0].rstrip(".")
    return f"{type(e).__name__}: {said}" if said else type(e).__name__


def load_used(module: nn.Module, state: Mapping[str, Tensor], *, known: Iterable[str], origin: str) -> None:
    """Copy the weights that `module` uses into it; the file may hold more and may lack what is unused.

    Args:
        module: the backbone cut down to the used layers, with the parameter names of the full one.
        state: tensors by name.
        known: parameter names of the full backbone, to tell unused names from foreign ones in the message.
        origin: where `state` comes from, for the message.

    Raises:
        BuildError: lists *all* used names that are missing or whose shape or kind differs; `module` is
            unchanged then.
    """
    used = module.state_dict()
    # num_batches_tracked only counts training steps; many published files lack it.
    missing = [n for n in used if n not in state and not n.endswith("num_batches_tracked")]
    wrong = [_difference(n, state[n], used[n]) for n in used if n in state and not _fits(state[n], used[n])]
    if missing or wrong:
        foreign = sorted(set(state) - set(known))
        raise BuildError(_mismatch(origin, missing, wrong, foreign))
    module.load_state_dict({n: state[n] for n in used if n in state}, strict=False)


def _fits(given: Tensor, wanted: Tensor) -> bool:
    return given.shape == wanted.shape and given.is_floating_point() == wanted.is_floating_point()


def _difference(name: str, given: Tensor, wanted: Tensor) -> str:
    got, expected = (f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in (given, wanted))
    return f"{name} (file: {got}, expected {expected})"


def _mismatch(origin: str, missing: list[str], wrong: list[str], foreign: list[str]) -> str:
    parts = []
    if missing:
        parts.append(f"{len(missing)} used parameters are missing: {_shorten(missing)}")
    if wrong:
        parts.append(f"{len(wrong)} have another shape or type: {_shorten(wrong)}")
    if foreign:
        parts.append(f"names in the file that this backbone does not have: {_shorten(foreign, shown=3)}")
    return (
        f"{origin} does not fit this backbone and these layers; {'; '.join(parts)}. "
        "Use weights of the same architecture, or choose the backbone they belong to."
    )


def _shorten(names: list[str], *, shown: int = _SHOWN) -> str:
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")
