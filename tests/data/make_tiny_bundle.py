"""Makes a complete bundle of a few kilobytes, without torch: the stub that the runtime's tests run on.

Run as a script it writes the fixture of the current schema again, `tiny_schema3.pcbundle` beside this file. A
committed fixture is never regenerated once its schema was released: it must load forever, as do
`tiny_schema1.pcbundle` and `tiny_schema2.pcbundle`.
"""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path

import hnswlib
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pcrun.backends.session import OnnxEmbedder
from pcrun.bundle.bundle import GoldenSample, GoldenSamples, file_entry
from pcrun.bundle.manifest import (
    EMBEDDER_NAME,
    INDEX_NAME,
    MANIFEST_DIGEST_NAME,
    MANIFEST_NAME,
    MEMORY_BANK_NAME,
    NEIGHBOURS_NAME,
    REPORT_NAME,
    SAMPLES_NAME,
    SEARCH_BASIS_NAME,
    BaselineSpec,
    CalibrationSource,
    CoresetSpec,
    EmbeddingSpec,
    FileEntry,
    IndexSpec,
    Manifest,
    MemoryBankSpec,
    PastThresholds,
    ScoringSpec,
    SearchMeasurement,
    SearchSpec,
    SourceSpec,
    ThresholdSpec,
    write_manifest,
)
from pcrun.detector import NO_THRESHOLD, AnomalyDetector
from pcrun.images.image_io import encode_png
from pcrun.preprocess import PreprocessSpec
from pcrun.records import to_jsonable
from pcrun.scoring.open import map_geometry
from pcrun.scoring.scorer import PatchCoreScorer
from pcrun.search.exact import ExactSearch

SCHEMA1_FIXTURE = Path(__file__).with_name("tiny_schema1.pcbundle")
SCHEMA2_FIXTURE = Path(__file__).with_name("tiny_schema2.pcbundle")
SCHEMA3_FIXTURE = Path(__file__).with_name("tiny_schema3.pcbundle")
SCHEMA3_ARGUMENTS = {"image_score": "reweighted", "search_dim": 3, "calibrated": True}

# Height differs from width everywhere, so that mixing them up cannot go unseen.
NOT_LISTED = (MANIFEST_NAME, MANIFEST_DIGEST_NAME)
IMAGE_HW = (32, 48)
PATCH_PX = 4
GRID_HW = (IMAGE_HW[0] // PATCH_PX, IMAGE_HW[1] // PATCH_PX)
PATCHES = GRID_HW[0] * GRID_HW[1]
DEFAULT_DIM = 8
BANK_ROWS = 200
BANK_IMAGES = 12
CALIBRATION_IMAGES = 19
M, EF_CONSTRUCTION, EF = 4, 40, 16
REWEIGHTING_NEIGHBOURS = 3
MAP_SIGMA_PX = 2.0
DEFECT_XYWH = (28, 12, 8, 8)
TOLERANCE_RELATIVE = 1e-3


def make_tiny_bundle(
    path: Path,
    *,
    image_score: str = "max",
    with_index: bool = True,
    seed: int = 0,
    thresholds: bool = True,
    dim: int = DEFAULT_DIM,
    batch: int | None = 1,
    search_dim: int | None = None,
    basis_dim: int | None = None,
    calibrated: bool = False,
) -> Manifest:
    """Write a bundle directory at `path` (which must not exist) and return its manifest.

    Args:
        path: the new directory.
        image_score: "max" or "reweighted" (adds neighbours.npy).
        with_index: False leaves out the HNSW index.
        seed: of weights, images and memory bank.
        thresholds: False leaves them out, as `--calibration none` does.
        dim: length of a patch embedding.
        batch: images per call of the graph; None makes it dynamic.
        search_dim: adds search_basis.npy with so many columns, and the index is over the reduced rows.
        basis_dim: columns of search_basis.npy; None is `search_dim`.
        calibrated: the thresholds are said to come from `pcexport calibrate`, after higher ones of the build.
    """
    path.mkdir(parents=True)
    (path / "samples").mkdir()
    graph = embedder_onnx(seed=seed, dim=dim, batch=batch)
    embedding = _embedding_spec(dim, batch)
    embedder = OnnxEmbedder(graph, embedding, provider="cpu", threads=1)
    rng = np.random.default_rng(seed)
    rows = _memory_bank(embedder, rng)
    neighbours = nearest_rows(rows, REWEIGHTING_NEIGHBOURS) if image_score == "reweighted" else None
    basis = None if search_dim is None else principal_directions(rows, basis_dim or search_dim)

    (path / EMBEDDER_NAME).write_bytes(graph)
    (path / MEMORY_BANK_NAME).write_bytes(npy_bytes(rows))
    if basis is not None:
        (path / SEARCH_BASIS_NAME).write_bytes(npy_bytes(basis))
    if with_index:
        seen = rows if basis is None else rows @ np.ascontiguousarray(basis[:, :search_dim])
        make_index(seen, seed=seed).save_index(str(path / INDEX_NAME))
    if neighbours is not None:
        (path / NEIGHBOURS_NAME).write_bytes(npy_bytes(neighbours))
    (path / REPORT_NAME).write_text(f"<!doctype html><title>tiny {seed}</title>\n", encoding="utf-8")

    manifest = Manifest(
        name="tiny",
        files=_entries(path),
        created_by={"make_tiny_bundle": "1"},
        source=_source(seed),
        preprocess=PreprocessSpec(*IMAGE_HW, *IMAGE_HW),
        embedding=embedding,
        memory_bank=_bank_spec(dim, seed, with_index),
        search=SearchSpec(EF, (SearchMeasurement(EF, 1.0, 0.0),), 2, search_dim, basis_dim),
        scoring=ScoringSpec(image_score, 0 if neighbours is None else REWEIGHTING_NEIGHBOURS, MAP_SIGMA_PX),
    )
    scorer = PatchCoreScorer(
        rows, ExactSearch(rows, threads=1), map_geometry(manifest), neighbours=neighbours
    )
    detector = AnomalyDetector(
        manifest, embedder, scorer, threshold=NO_THRESHOLD, pixel_threshold=NO_THRESHOLD
    )
    if thresholds:
        manifest = dataclasses.replace(manifest, scoring=_calibrated(detector, rng))
    if calibrated:
        manifest = dataclasses.replace(manifest, scoring=_with_history(manifest.scoring))
    _write_samples(path, detector, rng)
    manifest = dataclasses.replace(manifest, files=_entries(path))
    write_manifest(path, manifest)
    return manifest


def embedder_onnx(*, seed: int, dim: int = DEFAULT_DIM, batch: int | None = 1) -> bytes:
    """A random graph: (batch, 32, 48, 3) uint8, one 4x4 convolution of stride 4, (batch, 96, dim) float32."""
    rng = np.random.default_rng([seed, dim])
    weights = rng.normal(size=(dim, 3, PATCH_PX, PATCH_PX)).astype(np.float32) / PATCH_PX
    initializers = [
        numpy_helper.from_array(np.float32(1 / 255), "scale"),
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(np.full(dim, 0.5, np.float32), "bias"),
        numpy_helper.from_array(np.array([0, dim, PATCHES], np.int64), "flat"),
    ]
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "Conv",
            ["nchw", "weights", "bias"],
            ["features"],
            strides=[PATCH_PX] * 2,
            kernel_shape=[PATCH_PX] * 2,
        ),
        helper.make_node("Relu", ["features"], ["active"]),
        helper.make_node("Reshape", ["active", "flat"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["patch_embeddings"], perm=[0, 2, 1]),
    ]
    size = "batch" if batch is None else batch
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [size, *IMAGE_HW, 3])
    output = helper.make_tensor_value_info("patch_embeddings", TensorProto.FLOAT, [size, PATCHES, dim])
    graph = helper.make_graph(nodes, "tiny", [image], [output], initializers)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def smooth_image(rng: np.random.Generator, image_hw: tuple[int, int] = IMAGE_HW) -> np.ndarray:
    """A random normal image: a few slow waves, (height, width, 3) uint8 BGR."""
    y, x = np.meshgrid(np.linspace(0, 1, image_hw[0]), np.linspace(0, 1, image_hw[1]), indexing="ij")
    image = np.full((*image_hw, 3), 110.0)
    for _ in range(3):
        frequency_y, frequency_x = rng.uniform(-1, 1, size=2)
        phases, strengths = rng.uniform(0, 2 * np.pi, size=3), rng.uniform(5, 20, size=3)
        angle = 2 * np.pi * (frequency_y * y + frequency_x * x)
        image += strengths * np.cos(angle[:, :, None] + phases)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def with_defect(image: np.ndarray) -> np.ndarray:
    """A copy with a bright square at `DEFECT_XYWH`."""
    x, y, width, height = DEFECT_XYWH
    defective = image.copy()
    defective[y : y + height, x : x + width] = 255
    return defective


def make_index(rows: np.ndarray, *, seed: int = 0) -> hnswlib.Index:
    """The HNSW index over all rows, room for exactly as many, the same bytes every time."""
    index = hnswlib.Index(space="l2", dim=rows.shape[1])
    index.init_index(max_elements=len(rows), ef_construction=EF_CONSTRUCTION, M=M, random_seed=seed)
    index.add_items(rows, np.arange(len(rows)), num_threads=1)
    return index


def nearest_rows(rows: np.ndarray, b: int) -> np.ndarray:
    """Ids of the `b` nearest rows of each row, itself first: (count, b) int32."""
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    np.fill_diagonal(distances, -1)
    return np.argsort(distances, axis=1, kind="stable")[:, :b].astype(np.int32)


def principal_directions(rows: np.ndarray, dim: int) -> np.ndarray:
    """The `dim` directions in which the rows vary most, as orthonormal columns: (row length, dim) float32."""
    _, _, directions = np.linalg.svd(rows.astype(np.float64) - rows.mean(axis=0), full_matrices=False)
    return np.ascontiguousarray(directions[:dim].T, np.float32)


def npy_bytes(array: np.ndarray) -> bytes:
    """The array as a .npy file without pickle."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _memory_bank(embedder: OnnxEmbedder, rng: np.random.Generator) -> np.ndarray:
    patches = np.concatenate([_embed(embedder, smooth_image(rng)) for _ in range(BANK_IMAGES)])
    return np.ascontiguousarray(patches[rng.choice(len(patches), BANK_ROWS, replace=False)])


def _embed(embedder: OnnxEmbedder, image_bgr: np.ndarray) -> np.ndarray:
    return embedder.embed(np.ascontiguousarray(image_bgr[:, :, ::-1])[None])[0]


def _calibrated(detector: AnomalyDetector, rng: np.random.Generator) -> ScoringSpec:
    """Baseline and thresholds (the largest scores) of fresh normal images; the detector takes them too."""
    results = [detector(smooth_image(rng)) for _ in range(CALIBRATION_IMAGES)]
    baseline = BaselineSpec(
        "holdout",
        CALIBRATION_IMAGES,
        tuple(sorted(r.image_score for r in results)),
        tuple(sorted(float(np.median(r.patch_scores)) for r in results)),
    )
    image = _threshold([r.image_score for r in results])
    pixel = _threshold([float(r.anomaly_map.max()) for r in results])
    detector.threshold, detector.pixel_threshold = image.value, pixel.value
    return dataclasses.replace(
        detector.manifest.scoring, threshold=image, pixel_threshold=pixel, baseline=baseline
    )


def _with_history(scoring: ScoringSpec) -> ScoringSpec:
    assert scoring.threshold is not None and scoring.pixel_threshold is not None
    higher = (
        dataclasses.replace(spec, value=spec.value * 2)
        for spec in (scoring.threshold, scoring.pixel_threshold)
    )
    source = CalibrationSource("smooth", images_skipped=0, content_sha256="1" * 64)
    return dataclasses.replace(scoring, calibrated_on=source, history=(PastThresholds(*higher),))


def _threshold(scores: list[float]) -> ThresholdSpec:
    n = len(scores)
    return ThresholdSpec(
        value=float(max(scores)),
        method="holdout",
        images=n,
        rank=n,
        false_alarm_rate_requested=1 / (n + 1),
        false_alarm_rate_expected=1 / (n + 1),
        false_alarm_rate_upper_95=1 - 0.05 ** (1 / n),
    )


def _write_samples(folder: Path, detector: AnomalyDetector, rng: np.random.Generator) -> None:
    normal = smooth_image(rng)
    while detector(normal).is_anomalous:  # a new normal image is one in twenty times
        normal = smooth_image(rng)
    samples = []
    for name, label, image in (
        ("samples/000.png", "normal", normal),
        ("samples/001.png", "defective", with_defect(smooth_image(rng))),
    ):
        (folder / name).write_bytes(encode_png(image))
        result = detector(image)
        map_max = float(result.anomaly_map.max())
        samples.append(GoldenSample(name, label, result.image_score, map_max, result.is_anomalous))
    expected = to_jsonable(GoldenSamples(TOLERANCE_RELATIVE, tuple(samples)))
    (folder / SAMPLES_NAME).write_text(
        json.dumps(expected, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def _entries(folder: Path) -> dict[str, FileEntry]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in NOT_LISTED)
    return {p.relative_to(folder).as_posix(): file_entry(p.read_bytes()) for p in files}


def _embedding_spec(dim: int, batch: int | None) -> EmbeddingSpec:
    return EmbeddingSpec(
        backbone="tiny_conv",
        layers=("relu",),
        weights_source="random",
        weights_sha256=None,
        aggregation="locally_aware",
        neighbourhood=1,
        grid_height=GRID_HW[0],
        grid_width=GRID_HW[1],
        dim=dim,
        batch=batch,
        precision="fp32",
        mean_rgb=(0.0, 0.0, 0.0),
        std_rgb=(1.0, 1.0, 1.0),
        opset=17,
        provider="cpu",
    )


def _bank_spec(dim: int, seed: int, with_index: bool) -> MemoryBankSpec:
    coreset = CoresetSpec("random", BANK_IMAGES * PATCHES, dim, seed, covering_radius=None)
    return MemoryBankSpec(
        BANK_ROWS, dim, coreset, IndexSpec(M, EF_CONSTRUCTION, seed) if with_index else None
    )


def _source(seed: int) -> SourceSpec:
    return SourceSpec(
        name="smooth",
        layout="generated",
        images_bank=BANK_IMAGES,
        images_held_out=CALIBRATION_IMAGES,
        images_skipped=0,
        content_sha256="0" * 64,
        config={"seed": seed},
    )


if __name__ == "__main__":
    shutil.rmtree(SCHEMA3_FIXTURE, ignore_errors=True)
    make_tiny_bundle(SCHEMA3_FIXTURE, **SCHEMA3_ARGUMENTS)
    print(SCHEMA3_FIXTURE)
