"""Which backbones there are: one table, and a folder of student files. No torch is imported at module level.

A backbone outside of both is accepted too: any torchvision classification CNN when its layers are named, any
`timm:NAME`, and any student file by its path.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pcexport.errors import BuildError

TIMM_PREFIX = "timm:"
# NAME.onnx here is the backbone NAME: it is shipped, and needs no torch.
STUDENTS = Path(__file__).with_name("students")
STUDENT_SUFFIX = ".onnx"
# torchvision's transformers give token sequences or channels-last maps, never (B, C, H, W); timm's do.
_TOKEN_MODELS = ("vit_", "swin_")


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone by name.

    Attributes:
        name: the name a recipe uses: torchvision's, or `timm:` and timm's.
        default_layers: layers used when none are given, shallow first. torchvision: dotted node names; timm:
            indices of `forward_intermediates`. Empty means that the loader chooses (timm only).
        family: the library that builds it.
        note: one line for people: embedding dims with the default layers and their strides in pixels.
        image_multiple: image height and width in pixels must be multiples of this; 1 allows any size.
    """

    name: str
    default_layers: tuple[str, ...]
    family: Literal["torchvision", "timm"]
    note: str
    image_multiple: int


def _cnn(name: str, layers: tuple[str, ...], note: str) -> BackboneSpec:
    return BackboneSpec(name, layers, "torchvision", note, image_multiple=1)


_MID = ("layer2", "layer3")
_TABLE = (
    _cnn("resnet18", _MID, "128+256 = 384-d, strides 8 and 16; small and quick, a good first choice"),
    _cnn("resnet34", _MID, "128+256 = 384-d, strides 8 and 16"),
    _cnn("resnet50", _MID, "512+1024 = 1536-d, strides 8 and 16"),
    _cnn("resnet101", _MID, "512+1024 = 1536-d, strides 8 and 16"),
    _cnn("wide_resnet50_2", _MID, "512+1024 = 1536-d, strides 8 and 16; the paper's backbone"),
    _cnn("mobilenet_v2", ("features.6", "features.13"), "32+96 = 128-d, strides 8 and 16; for small CPUs"),
    _cnn(
        "mobilenet_v3_large",
        ("features.6", "features.12"),
        "40+112 = 152-d, strides 8 and 16; for small CPUs",
    ),
    _cnn("mobilenet_v3_small", ("features.3", "features.8"), "24+48 = 72-d, strides 8 and 16; the quickest"),
    _cnn("efficientnet_b0", ("features.3", "features.5"), "40+112 = 152-d, strides 8 and 16"),
    _cnn(
        "regnet_y_400mf", ("trunk_output.block2", "trunk_output.block3"), "104+208 = 312-d, strides 8 and 16"
    ),
    _cnn("convnext_tiny", ("features.3", "features.5"), "192+384 = 576-d, strides 8 and 16"),
    BackboneSpec(
        "timm:vit_small_patch14_dinov2.lvd142m",
        ("11",),
        "timm",
        "DINOv2: 384-d, stride 14; self-supervised, strong on textures, heavy on a CPU",
        image_multiple=14,
    ),
)
_BY_NAME = {spec.name: spec for spec in _TABLE}


def list_backbones() -> tuple[BackboneSpec, ...]:
    """The backbones with tested default layers, in table order."""
    return _TABLE


def student_files() -> tuple[Path, ...]:
    """The shipped student files, sorted; each is named like its backbone."""
    return tuple(sorted(STUDENTS.glob(f"*{STUDENT_SUFFIX}")))


def list_students() -> tuple[str, ...]:
    """Names of the shipped students."""
    return tuple(path.stem for path in student_files())


def is_student_file(name: str) -> bool:
    """Whether a backbone is given as the path of a student file."""
    return name.endswith(STUDENT_SUFFIX)


def find_student(name: str) -> Path | None:
    """The student file behind a backbone's name or path (which need not exist); None for other backbones."""
    if is_student_file(name):
        return Path(name)
    return STUDENTS / f"{name}{STUDENT_SUFFIX}" if name in list_students() else None


def find_backbone(name: str, layers: Sequence[str] | None = None) -> BackboneSpec:
    """Look a backbone up that torch builds (`find_student` knows the others).

    Args:
        name: a name of `list_backbones`, another torchvision classification CNN, or `timm:NAME`.
        layers: layers to read instead of the default ones; required for a torchvision CNN outside the table.

    Returns:
        Its spec; with `layers` given, `default_layers` holds them.

    Raises:
        BuildError: unknown name (the message names the nearest known one), or layers needed and not given.
    """
    chosen = tuple(str(layer) for layer in layers or ())
    if name in _BY_NAME:
        spec = _BY_NAME[name]
        return replace(spec, default_layers=chosen) if chosen else spec
    if name.startswith(TIMM_PREFIX) and len(name) > len(TIMM_PREFIX):
        # The patch size of an unlisted model is known only once it is built; timm_family checks it there.
        return BackboneSpec(name, chosen, "timm", "any timm model", image_multiple=1)
    return _other_torchvision(name, chosen)


def _other_torchvision(name: str, layers: tuple[str, ...]) -> BackboneSpec:
    others = _torchvision_names()
    if name not in others:
        known = nearest(name, {*_BY_NAME, *list_students(), *others}, n=1)[0]
        raise BuildError(
            f"unknown backbone {name!r}; the nearest known one is {known!r}. "
            "See `pcexport backbones`; timm's models are written timm:NAME, student files by their path."
        )
    if name.startswith(_TOKEN_MODELS):
        raise BuildError(
            f"torchvision's {name} does not give (batch, channels, height, width) maps. "
            "Use timm's version of it, written timm:NAME."
        )
    if not layers:
        raise BuildError(
            f"backbone {name!r} has no default layers here; name the layers to read, shallow first, "
            "for example two at strides 8 and 16 (resnet18 uses layer2 and layer3)."
        )
    return _cnn(name, layers, "another torchvision CNN")


def _torchvision_names() -> frozenset[str]:
    """Names of torchvision's classification models; empty where torchvision is not installed."""
    try:
        import torchvision
    except ImportError:
        return frozenset()
    return frozenset(torchvision.models.list_models(module=torchvision.models))


def nearest(word: str, known: Iterable[str], *, n: int = 3) -> list[str]:
    """The `n` known words most like `word`, nearest first (never empty unless `known` is)."""
    return difflib.get_close_matches(word, sorted(known), n=n, cutoff=0.0)
