"""The manifest: every fact of a bundle, typed. `docs/bundle.md` explains it field by field."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcrun.bundle.manifest_scoring import MAX_BASELINE as MAX_BASELINE
from pcrun.bundle.manifest_scoring import BaselineSpec as BaselineSpec
from pcrun.bundle.manifest_scoring import CalibrationSource as CalibrationSource
from pcrun.bundle.manifest_scoring import PastThresholds as PastThresholds
from pcrun.bundle.manifest_scoring import ScoringSpec as ScoringSpec
from pcrun.bundle.manifest_scoring import ThresholdSpec as ThresholdSpec
from pcrun.errors import BundleError
from pcrun.preprocess import PreprocessSpec
from pcrun.records import RecordError, from_mapping, to_jsonable
from pcrun.records import require as _require

# What each version added stands in docs/bundle.md.
SCHEMA_VERSION = 3
METHOD = "patchcore"

MANIFEST_NAME = "manifest.json"
MANIFEST_DIGEST_NAME = "manifest.sha256"
EMBEDDER_NAME = "embedder.onnx"
MEMORY_BANK_NAME = "memory_bank.npy"
INDEX_NAME = "memory_bank.hnsw"
SEARCH_BASIS_NAME = "search_basis.npy"
NEIGHBOURS_NAME = "neighbours.npy"
SAMPLES_NAME = "samples/expected.json"
REPORT_NAME = "report.html"

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
AGGREGATIONS = ("locally_aware", "reference")
# Of embeddings and memory bank: up to here the squared distance of 65536 components fits into float32.
LARGEST_COMPONENT = 1e16
_MAX_COUNT = 2**31 - 1


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle: its SHA-256 (hex) and its size."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class SourceSpec:
    """What the bundle was built from.

    Attributes:
        name: the data folder's own name (no path).
        layout: how the folder was read, for example "mvtec".
        images_bank: normal images whose patches were candidates for the memory bank.
        images_held_out: normal images kept aside for the threshold.
        images_skipped: unreadable images left out (each was named during the build).
        content_sha256: SHA-256 over the names and bytes of all readable normal images, in order.
        config: the complete build configuration.
    """

    name: str
    layout: str
    images_bank: int
    images_held_out: int
    images_skipped: int
    content_sha256: str
    config: dict[str, Any]


@dataclass(frozen=True)
class EmbeddingSpec:
    """What `embedder.onnx` computes.

    Attributes:
        backbone, layers: the network and the feature maps used, in the order of concatenation.
        weights_source, weights_sha256: where the weights came from; the hash of that file where there was
            one.
        aggregation: "locally_aware" (pool, upsample, concatenate) or "reference" (1024-d, original
            repository).
        neighbourhood: side of the square average over which a patch is locally aware.
        grid_height, grid_width: patches per image; row-major in the output.
        dim: length of a patch embedding.
        batch: images per call; None when any number is accepted.
        precision: arithmetic of the backbone: "fp32", "fp16", "bf16" (the graph is float32, its provider
            computes in bfloat16) or "int8" (quantised convolutions). The output is float32 always.
        mean_rgb, std_rgb: normalisation of images in [0, 1], for information: it is inside the graph.
        opset: ONNX opset of the graph.
        projected_from: length of a patch embedding before the PCA inside the graph; None without one.
        provider: what ran the graph when thresholds and golden samples were made; None where not recorded.
    """

    backbone: str
    layers: tuple[str, ...]
    weights_source: str
    weights_sha256: str | None
    aggregation: str
    neighbourhood: int
    grid_height: int
    grid_width: int
    dim: int
    batch: int | None
    precision: str
    mean_rgb: tuple[float, ...]
    std_rgb: tuple[float, ...]
    opset: int
    input_name: str = "image"
    output_name: str = "patch_embeddings"
    projected_from: int | None = None
    provider: str | None = None

    def __post_init__(self) -> None:
        _require(self.aggregation in AGGREGATIONS, f"aggregation must be one of {AGGREGATIONS}")
        _require(self.precision in PRECISIONS, f"precision must be one of {PRECISIONS}")
        for name in ("grid_height", "grid_width", "dim"):
            _require(1 <= getattr(self, name) <= 65536, f"{name} must be 1..65536, got {getattr(self, name)}")
        _require(
            self.batch is None or 1 <= self.batch <= 4096, f"batch must be 1..4096 or null, got {self.batch}"
        )

    @property
    def patches(self) -> int:
        """Patch embeddings per image."""
        return self.grid_height * self.grid_width


@dataclass(frozen=True)
class CoresetSpec:
    """How the memory bank's rows were chosen from `candidates` patch embeddings.

    No candidate is farther than `covering_radius` (L2) from its nearest chosen one, measured in the
    projected space of `projection_dim` dimensions (null for `random`).
    """

    method: str
    candidates: int
    projection_dim: int
    seed: int
    covering_radius: float | None


@dataclass(frozen=True)
class IndexSpec:
    """Parameters of the HNSW index; `ef` of a search is in `search`, hnswlib does not store it."""

    m: int
    ef_construction: int
    seed: int


@dataclass(frozen=True)
class MemoryBankSpec:
    """The memory bank: `count` float32 rows of length `dim`; distances are Euclidean ("l2")."""

    count: int
    dim: int
    coreset: CoresetSpec
    index: IndexSpec | None
    space: str = "l2"

    def __post_init__(self) -> None:
        _require(1 <= self.count <= _MAX_COUNT, f"count must be 1..{_MAX_COUNT}, got {self.count}")
        _require(1 <= self.dim <= 65536, f"dim must be 1..65536, got {self.dim}")
        _require(self.space == "l2", f"space must be 'l2', got {self.space!r}")


@dataclass(frozen=True)
class SearchMeasurement:
    """HNSW against exact search on normal images at one `ef`, before any verification.

    Attributes:
        recall_at_1: share of patches whose nearest entry was found.
        worst_image_score_error: largest relative excess of an unverified image score over the exact one.
        mean_distance_error: mean relative excess of an unverified patch score over the exact one.
    """

    ef: int
    recall_at_1: float
    worst_image_score_error: float
    mean_distance_error: float | None = None


@dataclass(frozen=True)
class SearchSpec:
    """Search settings of the bundle and what was measured for them.

    Attributes:
        ef: search width of the HNSW index where nothing better is known.
        measured: what each width gives, on `images` normal images.
        dim: neighbours are looked for among the rows times the first columns of search_basis.npy, this many;
            None for the rows themselves. Distances are always those of the full rows.
        basis_dim: columns of search_basis.npy, all of which verification uses; None: `dim`.
    """

    ef: int
    measured: tuple[SearchMeasurement, ...]
    images: int
    dim: int | None = None
    basis_dim: int | None = None

    def __post_init__(self) -> None:
        _require(1 <= self.ef <= 65536, f"ef must be 1..65536, got {self.ef}")
        _require(self.dim is None or self.dim >= 1, f"dim must be at least 1 or null, got {self.dim}")
        _require(
            self.basis_dim is None or self.basis_dim >= (self.dim or self.basis_dim + 1),
            f"basis_dim must be null or at least dim, which is {self.dim}, got {self.basis_dim}",
        )


@dataclass(frozen=True)
class ParitySpec:
    """The network in PyTorch against the float32 graph in onnxruntime.

    Attributes:
        images: normal images compared; 1, the check picture, for a student file.
        max_absolute_error: largest difference of one component.
        max_relative_error: largest ||a - b|| / ||a|| over all patches; for a student file, the largest
            difference in units of the embedding's root mean square.
        tolerance: what the build accepted.
        recorded_values: components compared with those that PyTorch gave when the student file was made; None
            where PyTorch ran, and all components were compared.
    """

    images: int
    max_absolute_error: float
    max_relative_error: float
    tolerance: float
    recorded_values: int | None = None


@dataclass(frozen=True)
class PrecisionSpec:
    """What a lower precision does to the scores of the calibration images, beside fp32.

    Both sides hold the same patches in their memory banks and choose their thresholds alike; only the
    arithmetic of the backbone differs.

    Attributes:
        reference: precision compared with.
        images: normal images scored.
        mean_score_drift, max_score_drift: |score - reference score| / reference threshold.
        flipped_verdicts: images that one side calls anomalous and the other does not.
        reference_auroc: image AUROC of the reference on the labelled test images (that of the bundle is in
            `accuracy`); None without.
    """

    reference: str
    images: int
    mean_score_drift: float
    max_score_drift: float
    flipped_verdicts: int
    reference_auroc: float | None = None


@dataclass(frozen=True)
class AccuracySpec:
    """Measured with the finished bundle through the runtime, where the data hold labelled test images.

    `false_alarms` and `misses` are None once `pcexport calibrate` has changed the threshold they belonged to.
    """

    images_normal: int
    images_defective: int
    image_auroc: float
    false_alarms: int | None
    misses: int | None


@dataclass(frozen=True)
class Manifest:
    """Everything a bundle says of itself (manifest.json)."""

    name: str
    files: dict[str, FileEntry]
    created_by: dict[str, str]
    source: SourceSpec
    preprocess: PreprocessSpec
    embedding: EmbeddingSpec
    memory_bank: MemoryBankSpec
    search: SearchSpec
    scoring: ScoringSpec
    parity: ParitySpec | None = None
    accuracy: AccuracySpec | None = None
    precision: PrecisionSpec | None = None
    schema_version: int = SCHEMA_VERSION
    method: str = METHOD

    def __post_init__(self) -> None:
        _require(
            self.embedding.dim == self.memory_bank.dim,
            f"embedding.dim is {self.embedding.dim} but memory_bank.dim is {self.memory_bank.dim}",
        )
        dim = self.search.dim
        _require(
            dim is None or dim < self.memory_bank.dim,
            f"search.dim is {dim}, expected less than memory_bank.dim, {self.memory_bank.dim}",
        )
        columns = self.search.basis_dim
        _require(
            columns is None or columns <= self.memory_bank.dim,
            f"search.basis_dim is {columns}, expected at most memory_bank.dim, {self.memory_bank.dim}",
        )
        for name in self.required_files():
            _require(name in self.files, f"files does not list {name}")

    def required_files(self) -> tuple[str, ...]:
        """Names of the files without which this bundle cannot be used."""
        names = [EMBEDDER_NAME, MEMORY_BANK_NAME]
        if self.memory_bank.index is not None:
            names.append(INDEX_NAME)
        if self.search.dim is not None:
            names.append(SEARCH_BASIS_NAME)
        if self.scoring.image_score == "reweighted":
            names.append(NEIGHBOURS_NAME)
        return tuple(names)


def manifest_to_json(manifest: Manifest) -> bytes:
    """Serialise, with sorted keys, so that equal manifests are equal bytes."""
    text = json.dumps(to_jsonable(manifest), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    # File names may hold bytes that are not UTF-8; in JSON they become "?".
    return (text + "\n").encode(errors="replace")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json and, beside it, its SHA-256 in the form of `sha256sum` (check with its `-c`)."""
    data = manifest_to_json(manifest)
    (folder / MANIFEST_NAME).write_bytes(data)
    (folder / MANIFEST_DIGEST_NAME).write_bytes(manifest_digest_line(data))


def manifest_digest_line(data: bytes) -> bytes:
    """The content of manifest.sha256 for these bytes of manifest.json."""
    return f"{hashlib.sha256(data).hexdigest()}  {MANIFEST_NAME}\n".encode()


def parse_manifest(data: bytes) -> Manifest:
    """Parse and check manifest.json.

    Raises:
        BundleError: not JSON, a newer schema, another method, or any key that is unknown, missing or of a
            wrong type.
    """
    try:
        raw = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST_NAME} is not valid JSON ({error}). Copy the bundle again.") from error
    if not isinstance(raw, dict):
        raise BundleError(f"{MANIFEST_NAME} holds no JSON object. Copy the bundle again.")
    _check_version(raw)
    try:
        return from_mapping(Manifest, raw, where="manifest")
    except RecordError as error:
        raise BundleError(
            f"{MANIFEST_NAME} does not fit schema {SCHEMA_VERSION}: {error}. {_REBUILD}"
        ) from error


_REBUILD = "Run `pcexport build` again."


def _check_version(raw: dict[str, Any]) -> None:
    version = raw.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(
            f"{MANIFEST_NAME} has schema_version {version!r}, expected a whole number. {_REBUILD}"
        )
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"The bundle has schema version {version}, this runtime reads up to {SCHEMA_VERSION}. "
            "Upgrade patchcore-edge on this machine."
        )
    if raw.get("method") != METHOD:
        raise BundleError(
            f"The bundle's method is {raw.get('method')!r}, this runtime knows {METHOD!r}. {_REBUILD}"
        )


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number a manifest may hold")
