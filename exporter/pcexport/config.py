"""The build configuration: every key of a recipe, its default, its meaning, and the flag made from it."""

import dataclasses
import importlib.resources
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcexport.backbones.registry import is_student_file
from pcexport.datasets import LAYOUTS
from pcexport.errors import BuildError
from pcrun.commands.options import PROVIDER_NAMES
from pcrun.commands.shared_options import FALSE_ALARM_RATE_HELP, LAYOUT_HELP, PROVIDER_HELP, STRICT_HELP
from pcrun.records import RecordError, from_mapping, nearest_name, to_jsonable

DEFAULT_RECIPE = "default"
_SIZE = re.compile(r"^(\d+)(?:x(\d+))?$")


def _key(default: Any, text: str, *, choices: tuple[str, ...] = (), in_bundle: bool = True) -> Any:
    return dataclasses.field(
        default=default, metadata={"help": text, "choices": choices, "in_bundle": in_bundle}
    )


@dataclass(frozen=True)
class BuildConfig:
    """All choices of a build. A flag is named like its key, with dashes."""

    layout: str = _key(
        "auto",
        LAYOUT_HELP,
        choices=("auto", *LAYOUTS),
    )
    white_level_16bit: int = _key(
        65535, "Value of 16-bit images that counts as white (4095 for 12-bit cameras)."
    )
    strict: bool = _key(False, STRICT_HELP, in_bundle=False)

    backbone: str = _key(
        "resnet18",
        "Backbone of the embedder; `pcexport backbones` lists them, `timm:NAME` takes one from timm, "
        "NAME.onnx is a student.",
    )
    layers: tuple[str, ...] | None = _key(
        None,
        "Feature maps to use, comma separated; the first one sets the grid; left out: the backbone's.",
    )
    weights: str = _key(
        "default",
        "Weights of the backbone: `default` (downloaded once), a .pth or .safetensors file, or `untrained`.",
    )

    image_size: str = _key("224", "Size after resizing in pixels: 224 or HEIGHTxWIDTH.")
    crop_size: str | None = _key(None, "Centred crop after resizing: 224 or HEIGHTxWIDTH; left out: no crop.")
    resize_mode: str = _key(
        "stretch",
        "How images are resized: `stretch` the whole image, or `keep_aspect` and cover the size.",
        choices=("stretch", "keep_aspect"),
    )
    aggregation: str = _key(
        "locally_aware",
        "How patches are made of feature maps: `locally_aware` (pool, upsample, concatenate) or `reference` "
        "(1024-d, original repository).",
        choices=("locally_aware", "reference"),
    )
    neighbourhood: int = _key(3, "Side of the square average around each patch; 1 for none.")
    grid: str | None = _key(None, "Patch grid: 32 or HEIGHTxWIDTH; left out: the first layer's.")
    batch: str = _key("1", "Images per embedder call: a number (static graph) or `dynamic`.")
    opset: int = _key(18, "ONNX opset of the graph.")
    precision: str = _key(
        "fp32",
        "Arithmetic of the backbone: `fp32`, `fp16` (GPUs), `int8` (CPUs) or `bf16` (OpenVINO).",
        choices=("fp32", "fp16", "int8", "bf16"),
    )
    quantisation_images: int = _key(64, "Normal images that give the ranges of `int8`.")
    int8_activations: str = _key(
        "unsigned",
        "What `int8` rounds activations to: `unsigned` (CPUs) or `signed` (TensorRT takes nothing else).",
        choices=("unsigned", "signed"),
    )
    project: int | None = _key(
        None, "Dimensions to which a PCA inside the graph shortens patch embeddings; left out: no PCA."
    )
    allow_flips: bool = _key(
        False,
        "Go on when precision or projection change the verdict on a calibration image.",
        in_bundle=False,
    )

    coreset: str = _key("kcenter", "How the memory bank is chosen.", choices=("kcenter", "random"))
    coreset_ratio: float = _key(0.01, "Share of all patch embeddings kept in the memory bank.")
    coreset_size: int | None = _key(None, "Number of patch embeddings kept; left out: by the ratio.")
    projection: str = _key(
        "pca",
        "Space in which the coreset is selected: `pca`, `random` (Gaussian, as in the paper) or `none`.",
        choices=("pca", "random", "none"),
    )
    projection_dim: int = _key(128, "Dimensions of that space.")

    search_dim: str = _key(
        "auto",
        "Dimensions in which neighbours are looked for (distances are those of all): a number, `full`, or "
        "`auto`, the fewest that keep most of the variance.",
    )
    index: str = _key("hnsw", "Index written beside the memory bank.", choices=("hnsw", "none"))
    hnsw_m: int = _key(16, "Links per entry of the HNSW graph.")
    hnsw_ef_construction: int = _key(200, "Search width while the HNSW graph is built.")
    ef: int | None = _key(
        None, "Search width of the HNSW index; left out: the smallest with distances within 2 % on average."
    )

    image_score: str = _key(
        "max", "Score of an image: `max` or `reweighted` (Eq. 7).", choices=("max", "reweighted")
    )
    neighbours: int = _key(9, "Neighbours of an entry in Eq. 7 (b).")
    map_sigma_px: float = _key(4.0, "Gaussian smoothing of the anomaly map, in input pixels.")

    calibration: str = _key(
        "auto",
        "Normal images for the threshold: `holdout`, `kfold`, `auto` (kfold below 1000 images) or `none`.",
        choices=("auto", "holdout", "kfold", "none"),
    )
    holdout_fraction: float = _key(0.2, "Share of the normal images held out for the threshold.")
    folds: int = _key(5, "Folds of `kfold`.")
    false_alarm_rate: float = _key(0.01, f"{FALSE_ALARM_RATE_HELP}.")

    golden_samples: int = _key(4, "Golden samples stored in the bundle for `pcrun selftest`.")
    parity_images: int = _key(8, "Images on which PyTorch and ONNX are compared.")
    parity_tolerance: float = _key(1e-3, "Largest accepted relative difference between PyTorch and ONNX.")
    evaluate: bool = _key(
        True, "Score the labelled test images, where there are any, with the finished bundle."
    )

    tune: bool = _key(
        True,
        "Find the fastest settings for this machine at the end, as `pcrun tune` does, and store them as its "
        "device profile.",
        in_bundle=False,
    )

    seed: int = _key(0, "Seed of everything random.")
    provider: str = _key("auto", PROVIDER_HELP, choices=PROVIDER_NAMES)
    embed_with: str = _key(
        "auto",
        "What runs the embedder during the build: `onnxruntime`, `torch`, or `auto`: torch only where it "
        "alone has CUDA.",
        choices=("auto", "onnxruntime", "torch"),
    )
    threads: int = _key(
        0,
        "Threads to use, for the embedder and the searches; 0 is one per available core.",
        in_bundle=False,
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            choices = field.metadata["choices"]
            if choices and getattr(self, field.name) not in choices:
                value = getattr(self, field.name)
                raise ValueError(f"{field.name} must be one of {', '.join(choices)}; got {value!r}.")
        self._check_ranges()

    def _check_ranges(self) -> None:
        for name, (low, high, open_low, open_high) in FLOAT_RANGES.items():
            _between(name, getattr(self, name), low, high, open_low=open_low, open_high=open_high)
        for name, (low, high) in INTEGER_RANGES.items():
            value = getattr(self, name)
            if value is not None:
                _between(name, value, low, high)
        if self.neighbourhood % 2 == 0:
            raise ValueError(f"neighbourhood must be odd, got {self.neighbourhood}")
        for name in ("image_size", "crop_size", "grid"):
            try:
                parse_size(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        parse_batch(self.batch)
        parse_search_dim(self.search_dim)

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width after resizing."""
        size = parse_size(self.image_size)
        assert size is not None  # image_size has a default and cannot be None
        return size

    @property
    def crop_hw(self) -> tuple[int, int]:
        """Height and width of the embedder's input."""
        return parse_size(self.crop_size) or self.image_hw

    def facts(self) -> dict[str, Any]:
        """The keys that shape the bundle, for the manifest; files are named without their folders."""
        kept = {f.name for f in dataclasses.fields(self) if f.metadata["in_bundle"]}
        values = {key: value for key, value in to_jsonable(self).items() if key in kept}
        if self.weights not in ("default", "untrained"):
            values["weights"] = Path(self.weights).name
        if is_student_file(self.backbone):
            values["backbone"] = Path(self.backbone).name
        return values


# Key -> least and largest value.
INTEGER_RANGES = {
    "white_level_16bit": (1, 65535),
    "neighbourhood": (1, 15),
    "opset": (17, 24),
    "quantisation_images": (1, 4096),
    "project": (1, 65536),
    "coreset_size": (1, 2**31 - 1),
    "projection_dim": (1, 65536),
    "hnsw_m": (2, 128),
    "hnsw_ef_construction": (8, 4096),
    "ef": (1, 65536),
    "neighbours": (1, 1024),
    "folds": (2, 100),
    "golden_samples": (1, 64),
    "parity_images": (1, 1024),
    "seed": (0, 2**31 - 1),
    "threads": (0, 1024),
}
# Key -> least and largest value, and whether each of them is excluded.
FLOAT_RANGES = {
    "coreset_ratio": (0, 1, True, False),
    "map_sigma_px": (0, 256, False, False),
    "holdout_fraction": (0, 1, True, True),
    "false_alarm_rate": (0, 1, True, True),
    "parity_tolerance": (0, 1, True, False),
}


def _between(
    name: str, value: float, low: float, high: float, *, open_low: bool = False, open_high: bool = False
) -> None:
    if not (low < value if open_low else low <= value) or not (value < high if open_high else value <= high):
        raise ValueError(
            f"{name} must be {'above' if open_low else 'at least'} {low} and "
            f"{'below' if open_high else 'at most'} {high}, got {value}"
        )


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Parse "224" or "224x320" (height x width, in pixels or patches); None stays None.

    Raises:
        ValueError: anything else.
    """
    if text is None:
        return None
    match = _SIZE.match(text)
    if not match or int(match[1]) == 0 or match[2] == "0":
        raise ValueError(f"a size must look like 224 or 224x320 (height x width), got {text!r}")
    return int(match[1]), int(match[2] or match[1])


def parse_batch(text: str) -> int | None:
    """Parse the batch: a number, or None for "dynamic"."""
    if text == "dynamic":
        return None
    if not text.isdigit() or not 1 <= int(text) <= 4096:
        raise ValueError(f"batch must be a number from 1 to 4096 or 'dynamic', got {text!r}")
    return int(text)


def parse_search_dim(text: str) -> int | None:
    """Parse the dimensions of search: a number, 0 for "full", None for "auto"."""
    if text == "auto":
        return None
    if text == "full":
        return 0
    if not text.isdigit() or not 1 <= int(text) <= 65536:
        raise ValueError(f"search_dim must be a number from 1 to 65536, 'full' or 'auto', got {text!r}")
    return int(text)


def recipe_names() -> list[str]:
    """Names of the recipes installed with the package."""
    folder = importlib.resources.files("pcexport.recipes")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_config(recipe: str | None, overrides: Mapping[str, Any]) -> BuildConfig:
    """Combine defaults, a recipe and flags; a flag wins over the recipe, the recipe over the default.

    Args:
        recipe: path of a YAML file, or the name of an installed recipe; None for the `default` recipe.
        overrides: keys given as flags.

    Raises:
        BuildError: unreadable recipe, unknown key (the nearest known one is named), wrong type or range.
    """
    values = {**_read_recipe(recipe or DEFAULT_RECIPE), **overrides}
    try:
        return from_mapping(
            BuildConfig, {key: _coerce(key, value) for key, value in values.items()}, where="config"
        )
    except RecordError as error:
        raise BuildError(
            f"{error} (recipe {recipe or DEFAULT_RECIPE!r} and flags). Run `pcexport build --help`."
        ) from error


def _read_recipe(recipe: str) -> dict[str, Any]:
    import yaml

    try:
        data = yaml.safe_load(_recipe_text(recipe))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise BuildError(f"Recipe {recipe} is not valid YAML: {' '.join(str(error).split())}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise BuildError(f"Recipe {recipe} holds no mapping. Expected lines such as `backbone: resnet18`.")
    return {str(key): value for key, value in data.items()}


def _recipe_text(recipe: str) -> str:
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise BuildError(
                f"There is no recipe file {recipe}. Expected a YAML file or one of: {_listed()}."
            )
        return path.read_text(encoding="utf-8")
    if recipe not in recipe_names():
        hint = nearest_name(recipe, recipe_names())
        raise BuildError(f"There is no recipe {recipe!r}.{hint} Expected a YAML file or one of: {_listed()}.")
    return (
        importlib.resources.files("pcexport.recipes").joinpath(f"{recipe}.yaml").read_text(encoding="utf-8")
    )


def _listed() -> str:
    return ", ".join(recipe_names())


def _coerce(key: str, value: Any) -> Any:
    """Accept what people write in YAML and on the command line: 224 for a size, "a,b" for a list."""
    if (
        key in ("image_size", "crop_size", "grid", "batch", "search_dim")
        and isinstance(value, int)
        and not isinstance(value, bool)
    ):
        return str(value)
    if key == "layers" and isinstance(value, (str, int)):
        return [part.strip() for part in str(value).split(",") if part.strip()]
    if key == "layers" and isinstance(value, list):
        return [str(item) for item in value]
    return value
