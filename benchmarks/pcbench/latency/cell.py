"""One cell of a sweep: a bundle and the settings it is measured with."""

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pcrun.bench.content import Content, file_content, golden_contents
from pcrun.bundle.bundle import Bundle
from pcrun.errors import BundleError

_Value = TypeVar("_Value", str, int)

# The bundle's own precision.
STORED_PRECISION = "bundle"
# What two cells of different sweeps are paired by.
PAIRED_BY = ("bundle", "provider", "threads", "precision", "exactness", "batch", "device_profile")


@dataclass(frozen=True)
class Settings:
    """What is asked for, as a result file holds it.

    Attributes:
        bundle: its file name without suffix; unique within a sweep.
        provider: as in `pcrun`.
        threads: 0 leaves them open.
        precision: "bundle" is the bundle's own.
        exactness: as in `pcrun`.
        batch: images per query.
        device_profile: whether one may be used.
        duration_s, queries: shortest time and fewest queries of each kind of image.
        run: 1 and up: the same measurement again, in another process.
    """

    bundle: str
    provider: str
    threads: int
    precision: str
    exactness: str
    batch: int
    device_profile: bool
    duration_s: float
    queries: int
    run: int = 1

    @property
    def name(self) -> str:
        """The cell's file name without suffix."""
        threads = f"{self.threads}threads" if self.threads else "threads"
        parts = (self.bundle, self.provider, threads, self.precision, self.exactness, f"batch{self.batch}")
        again = (f"run{self.run}",) if self.run > 1 else ()
        return "-".join((*parts, *(("profile",) if self.device_profile else ()), *again))


@dataclass(frozen=True)
class Cell:
    """Settings and where what they need lies.

    Attributes:
        settings: asked for.
        path: of the bundle.
        digest: of the bundle.
    """

    settings: Settings
    path: Path
    digest: str


@dataclass(frozen=True)
class Axes:
    """The values that a sweep combines; see `Settings`."""

    providers: Sequence[str]
    threads: Sequence[int]
    precisions: Sequence[str]
    exactness: Sequence[str]
    batches: Sequence[int]
    device_profile: bool = False
    duration_s: float = 10.0
    queries: int = 100
    runs: int = 1


def plan(bundles: Sequence[Path], axes: Axes) -> list[Cell]:
    """Every combination, the bundle changing slowest; each value of an axis once.

    All of it again for each further run: the runs of one cell lie apart in time, as those of two sweeps do.

    Raises:
        BundleError: a bundle is damaged, or two have one name.
    """
    labels = [label_of(path) for path in bundles]
    for label in labels:
        if labels.count(label) > 1:
            raise BundleError(
                f"Two bundles are called {label}. Expected a name of its own for each, because results are "
                "filed and paired by it; rename one."
            )
    digests = {path: Bundle.load(path).digest for path in bundles}
    cells = []
    named = list(zip(labels, bundles, strict=True))
    for run, (label, path) in itertools.product(range(1, axes.runs + 1), named):
        for provider, threads in itertools.product(unique(axes.providers), unique(axes.threads)):
            for precision, exactness in itertools.product(unique(axes.precisions), unique(axes.exactness)):
                for batch in unique(axes.batches):
                    settings = Settings(
                        label, provider, threads, precision, exactness, batch,
                        axes.device_profile, axes.duration_s, axes.queries, run,
                    )  # fmt: skip
                    cells.append(Cell(settings, path, digests[path]))
    return cells


def unique(values: Sequence[_Value]) -> list[_Value]:
    """Each value once, in the order given."""
    return list(dict.fromkeys(values))


def label_of(bundle: Path) -> str:
    """A bundle's file name without suffix."""
    return bundle.resolve().name.removesuffix(".zip").removesuffix(".pcbundle")


def contents_of(bundle: Bundle, images: Sequence[str], defective: Sequence[str]) -> list[Content]:
    """What is scored: files, or the golden samples where none are given; kinds apart.

    Raises:
        SourceError: an image cannot be read, or the bundle holds no golden samples.
    """
    white_level = bundle.manifest.preprocess.white_level_16bit
    given = [
        dataclasses.replace(file_content(paths, white_level_16bit=white_level), name=name)
        for name, paths in (("images", images), ("defective images", defective))
        if paths
    ]
    return given or golden_contents(bundle)


def content_sha256(contents: Sequence[Content]) -> str:
    """Equal for equal images in the same order."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(f"{content.name} {len(content.items)}\n".encode())
        for item in content.items:
            assert item.data is not None  # files and golden samples alone
            digest.update(hashlib.sha256(item.data).digest())
    return digest.hexdigest()


def request_of(cell: Cell, images: Sequence[str], defective: Sequence[str]) -> dict[str, Any]:
    """What a worker must know, as plain types."""
    return {
        "settings": dataclasses.asdict(cell.settings),
        "path": str(cell.path),
        "digest": cell.digest,
        "images": list(images),
        "defective": list(defective),
    }
