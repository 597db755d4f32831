"""Opening a bundle: nothing in it is trusted until its hash and its header were checked.

`Bundle.load` reads a directory or one zip file (`pcexport pack`). It never unpickles, never runs anything
from the bundle, and hands bytes to a native loader only after they were checked here.
"""

import hashlib
import io
import json
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from pcrun.bundle.files import (
    BundleFiles,
    check_manifest_digest,
    open_files,
    read_manifest_bytes,
    read_verified,
)
from pcrun.bundle.hnsw_file import check_hnsw_file
from pcrun.bundle.manifest import (
    EMBEDDER_NAME,
    INDEX_NAME,
    LARGEST_COMPONENT,
    MEMORY_BANK_NAME,
    NEIGHBOURS_NAME,
    SAMPLES_NAME,
    SEARCH_BASIS_NAME,
    FileEntry,
    Manifest,
    parse_manifest,
)
from pcrun.bundle.onnx_file import TensorFacts, check_onnx
from pcrun.errors import BundleError
from pcrun.records import RecordError, from_mapping
from pcrun.search import SearchBasis
from pcrun.types import AnyArray, FloatArray, Int32Array

_DIFFERENT_BUILDS = "The files come from different builds; run `pcexport build` again."
_MAX_NPY_HEADER_BYTES = 4096
_ORTHONORMAL_TOLERANCE = 1e-4
# Of the largest component of the bank: the build's matrix product may have rounded differently.
_REDUCED_TOLERANCE = 1e-3
# What numpy's header parser raises on hostile headers; it falls back to the tokenizer.
_NPY_HEADER_ERRORS = (
    ValueError,
    SyntaxError,
    TypeError,
    MemoryError,
    RecursionError,
    tokenize.TokenError,
)


@dataclass(frozen=True)
class GoldenSample:
    """One image of the build and what it scored then; `pcrun selftest` replays it.

    Attributes:
        file: name of the PNG inside the bundle.
        label: "normal" or "defective".
        image_score: in L2 units.
        map_max: largest value of the anomaly map by exact search, L2 units.
        is_anomalous: verdict at the bundle's threshold.
    """

    file: str
    label: str
    image_score: float
    map_max: float
    is_anomalous: bool


@dataclass(frozen=True)
class GoldenSamples:
    """All golden samples and the largest relative difference of a score that counts as equal."""

    tolerance_relative: float
    samples: tuple[GoldenSample, ...]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        path: where it was read from.
        manifest: its facts.
        digest: SHA-256 (hex) of manifest.json, which holds the hashes of all other files: the bundle's
            identity.
        files: access to the files themselves.
        embedder: the bytes of embedder.onnx.
        memory_bank: (count, dim) float32, read-only.
        neighbours: (count, b) int32 ids of the nearest entries of each entry, itself first; None unless
            reweighted.
        search_basis: directions of search and verification, see `SearchSpec`; None for all dimensions.
    """

    path: Path
    manifest: Manifest
    digest: str
    files: BundleFiles
    embedder: bytes
    memory_bank: FloatArray
    neighbours: Int32Array | None
    search_basis: SearchBasis | None = None

    @classmethod
    def load(cls, path: str | Path) -> "Bundle":
        """Open and verify a bundle.

        Raises:
            BundleError: with its own sentence for each way in which a bundle can be wrong.
        """
        files = open_files(Path(path))
        manifest_bytes = read_manifest_bytes(files)
        manifest = parse_manifest(manifest_bytes)
        check_manifest_digest(files, manifest_bytes)
        contents = {name: read_verified(files, name, entry) for name, entry in sorted(manifest.files.items())}
        check_embedder(contents[EMBEDDER_NAME], manifest)
        rows = parse_memory_bank(contents[MEMORY_BANK_NAME], manifest)
        basis = None
        if manifest.search.dim is not None:
            columns = parse_search_basis(contents[SEARCH_BASIS_NAME], manifest)
            basis = SearchBasis(columns, manifest.search.dim)
        if manifest.memory_bank.index is not None:
            _check_index(contents[INDEX_NAME], rows, basis, manifest)
        neighbours = None
        if NEIGHBOURS_NAME in manifest.required_files():
            neighbours = parse_neighbours(contents[NEIGHBOURS_NAME], manifest)
        digest = hashlib.sha256(manifest_bytes).hexdigest()
        return cls(Path(path), manifest, digest, files, contents[EMBEDDER_NAME], rows, neighbours, basis)

    @property
    def has_golden_samples(self) -> bool:
        """Whether `golden_samples` gives any."""
        return SAMPLES_NAME in self.manifest.files

    def golden_samples(self) -> GoldenSamples:
        """The golden samples' expected results (the PNGs are read with `read`)."""
        if SAMPLES_NAME not in self.manifest.files:
            raise BundleError(f"{self.path} holds no golden samples. Run `pcexport build` again.")
        try:
            return from_mapping(GoldenSamples, json.loads(self.read(SAMPLES_NAME)), where="samples")
        except (RecordError, ValueError, RecursionError) as error:
            raise BundleError(
                f"{SAMPLES_NAME} cannot be understood: {error}. Run `pcexport build` again."
            ) from error

    def read(self, name: str) -> bytes:
        """Read one of the files listed in the manifest, verified again."""
        if name not in self.manifest.files:
            raise BundleError(f"{name} is not listed in the manifest of {self.path}. {_DIFFERENT_BUILDS}")
        return read_verified(self.files, name, self.manifest.files[name])


def file_entry(data: bytes) -> FileEntry:
    """The manifest's entry for a file of this content."""
    return FileEntry(hashlib.sha256(data).hexdigest(), len(data))


def check_embedder(data: bytes, manifest: Manifest) -> None:
    """Compare the graph's inputs and outputs with the manifest, before any native code reads the graph."""
    facts = check_onnx(data, name=EMBEDDER_NAME)
    spec, (height, width) = manifest.embedding, manifest.preprocess.input_hw
    if len(facts.inputs) != 1 or len(facts.outputs) != 1:
        raise BundleError(
            f"{EMBEDDER_NAME} has {len(facts.inputs)} inputs and {len(facts.outputs)} outputs, "
            f"expected one of each. {_DIFFERENT_BUILDS}"
        )
    expected_input = TensorFacts(spec.input_name, "uint8", (spec.batch or "batch", height, width, 3))
    expected_output = TensorFacts(
        spec.output_name, "float32", (spec.batch or "batch", spec.patches, spec.dim)
    )
    _check_tensor(facts.inputs[0], expected_input)
    _check_tensor(facts.outputs[0], expected_output)


def _check_tensor(got: TensorFacts, expected: TensorFacts) -> None:
    # A dynamic batch is any symbol: its name carries no meaning.
    got_dims = tuple("batch" if isinstance(d, str) and i == 0 else d for i, d in enumerate(got.dims))
    if (got.name, got.elem_type, got_dims) != (expected.name, expected.elem_type, expected.dims):
        raise BundleError(
            f"{EMBEDDER_NAME} has {_described(got)}, the manifest says {_described(expected)}. "
            + _DIFFERENT_BUILDS
        )


def _described(tensor: TensorFacts) -> str:
    return f"{tensor.name!r} {tensor.elem_type} {list(tensor.dims)}"


def parse_memory_bank(data: bytes, manifest: Manifest) -> FloatArray:
    """The memory bank's rows, checked against the manifest: shape, type, finite values."""
    spec = manifest.memory_bank
    rows = _parse_npy(data, (spec.count, spec.dim), np.float32, MEMORY_BANK_NAME)
    # False for NaN too.
    if not (rows.min() >= -LARGEST_COMPONENT and rows.max() <= LARGEST_COMPONENT):
        raise BundleError(
            f"{MEMORY_BANK_NAME} holds values that are not finite or too large. Run `pcexport build` again."
        )
    return rows


def parse_search_basis(data: bytes, manifest: Manifest) -> FloatArray:
    """Directions of search and verification, checked: shape, type, orthonormal columns."""
    columns = manifest.search.basis_dim or manifest.search.dim
    assert columns is not None  # the caller asks only then
    basis = _parse_npy(data, (manifest.memory_bank.dim, columns), np.float32, SEARCH_BASIS_NAME)
    bounded = bool(np.abs(basis).max() <= 1 + _ORTHONORMAL_TOLERANCE)  # False for NaN too
    if not bounded or not np.allclose(basis.T @ basis, np.eye(columns), atol=_ORTHONORMAL_TOLERANCE):
        raise BundleError(
            f"{SEARCH_BASIS_NAME} does not hold orthonormal columns. Run `pcexport build` again."
        )
    return basis


def parse_neighbours(data: bytes, manifest: Manifest) -> Int32Array:
    """The neighbour lists of the memory bank's rows, every id inside the bank."""
    count = manifest.memory_bank.count
    shape = (count, min(manifest.scoring.neighbours, count))
    ids = _parse_npy(data, shape, np.int32, NEIGHBOURS_NAME)
    if ids.min() < 0 or ids.max() >= count:
        raise BundleError(
            f"{NEIGHBOURS_NAME} names entries outside the memory bank (0..{count - 1}). {_DIFFERENT_BUILDS}"
        )
    if not np.array_equal(ids[:, 0], np.arange(count)):
        raise BundleError(
            f"{NEIGHBOURS_NAME} does not name each entry as the nearest to itself. {_DIFFERENT_BUILDS}"
        )
    return ids


def _check_index(data: bytes, rows: FloatArray, basis: SearchBasis | None, manifest: Manifest) -> None:
    if basis is None:
        header = check_hnsw_file(memoryview(data), rows, name=INDEX_NAME)
    else:
        tolerance = max(float(np.abs(rows).max()) * _REDUCED_TOLERANCE, float(np.finfo(np.float32).tiny))
        header = check_hnsw_file(memoryview(data), rows @ basis.search, name=INDEX_NAME, tolerance=tolerance)
    spec = manifest.memory_bank.index
    assert spec is not None  # the caller asks only then
    if header.m != spec.m:
        raise BundleError(f"{INDEX_NAME} has M={header.m}, the manifest says {spec.m}. {_DIFFERENT_BUILDS}")


def _parse_npy(data: bytes, shape: tuple[int, ...], dtype: Any, name: str) -> AnyArray:
    """Parse .npy bytes of an exactly known shape and type, without pickle, copying once."""
    head = io.BytesIO(data[: _MAX_NPY_HEADER_BYTES + 32])
    try:
        version = npy_format.read_magic(head)
        read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        got_shape, fortran, got_dtype = read(head)
    except _NPY_HEADER_ERRORS as error:
        raise BundleError(f"{name} has no valid .npy header ({error}). Copy the bundle again.") from error
    expected_dtype = np.dtype(dtype)
    if got_shape != shape or got_dtype != expected_dtype or fortran:
        order = " in Fortran order" if fortran else ""
        raise BundleError(
            f"{name} holds {got_dtype} {list(got_shape)}{order}, the manifest says {expected_dtype} "
            f"{list(shape)}. {_DIFFERENT_BUILDS}"
        )
    expected_bytes = head.tell() + int(np.prod(shape, dtype=object)) * expected_dtype.itemsize
    if len(data) != expected_bytes:
        raise BundleError(
            f"{name} has {len(data)} bytes, its header needs {expected_bytes}. Copy the bundle again."
        )
    # A private copy: a file changed on disk later must not change scores that were verified.
    array = np.frombuffer(data, expected_dtype, offset=head.tell()).reshape(shape).copy()
    array.flags.writeable = False
    return array
