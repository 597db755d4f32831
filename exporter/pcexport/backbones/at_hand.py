"""Whether what a build asks for is at hand, before torch is imported and any image is read."""

from importlib.util import find_spec
from pathlib import Path

from pcexport.backbones.registry import TIMM_PREFIX, find_student
from pcexport.errors import BuildError

DEFAULT = "default"
UNTRAINED = "untrained"
TORCH_SUFFIXES = (".pth", ".pt")


def require_backbone(backbone: str, weights: str) -> None:
    """Refuse a backbone whose package, or a weights file that, is not there.

    Raises:
        BuildError: with what to do.
    """
    if find_student(backbone):
        return
    if backbone.startswith(TIMM_PREFIX) and find_spec("timm") is None:
        raise timm_is_missing(backbone)
    if weights not in (DEFAULT, UNTRAINED):
        weights_file(weights)


def timm_is_missing(backbone: str) -> BuildError:
    """What to do about it; `backbone` with its `timm:`."""
    return BuildError(
        f"backbone {backbone} needs the package timm, which is not installed. "
        "Install it: pip install 'patchcore-edge[timm]'"
    )


def weights_file(weights: str) -> Path:
    """The file that a user named as weights.

    Raises:
        BuildError: no such file, an empty one, or another suffix.
    """
    path = Path(weights).expanduser()
    if path.suffix.lower() not in (*TORCH_SUFFIXES, ".safetensors"):
        raise BuildError(
            f"weights {weights!r} is neither 'default', 'untrained' nor a .pth, .pt or .safetensors file. "
            "Pass --weights with one of these."
        )
    if not path.is_file():
        raise BuildError(
            f"weights file {path} does not exist or is not a file. Check the path given as --weights."
        )
    if not path.stat().st_size:
        raise BuildError(f"weights file {path} is empty. Expected a file of tensors; copy it again.")
    return path
