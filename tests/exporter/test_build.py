"""`pcexport` end to end, with untrained weights on small generated parts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (extra: export)")

import torch

from pcexport import build as build_module
from pcexport.bundle_writer import publish, staging_folder
from pcexport.cli import main
from pcexport.demo.parts import generate_parts
from pcexport.graph import network as network_module
from pcrun.bundle.bundle import Bundle
from pcrun.bundle.manifest import SCHEMA_VERSION
from pcrun.cli import main as pcrun
from pcrun.detector import AnomalyDetector

NORMALS, TEST_GOOD = 14, 2
QUICK = ("--weights", "untrained", "--image-size", "64", "--parity-images", "1")
STEPS = ["trace", "parity", "embed", "project", "coreset", "index", "calibrate (kfold)", "evaluate",
         "golden samples and report", "verify", "tune"]  # fmt: skip


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "parts"
    generate_parts(root, train=NORMALS, test_good=TEST_GOOD, test_per_defect=1, size_px=128)
    return root


@pytest.fixture(scope="session")
def traced() -> dict:
    """Graphs traced in this session; a trace is most of a small build's time."""
    return {}


@pytest.fixture
def quick_trace(monkeypatch: pytest.MonkeyPatch, traced: dict) -> Iterator[None]:
    """Trace each network once a session, on one thread: with more, torch and onnxruntime fight for the cores.

    That equal traces are equal bytes is tested without this.
    """
    keys = ("backbone", "layers", "weights", "aggregation", "neighbourhood", "grid", "batch", "opset", "seed")

    def once(config, preprocessing):
        key = (*(getattr(config, name) for name in keys), preprocessing.input_hw)
        if key not in traced:
            traced[key] = network_module.trace_network(config, preprocessing)
        return traced[key]

    monkeypatch.setattr(build_module, "trace_network", once)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclasses.dataclass(frozen=True)
class Built:
    """What one call of `pcexport build` did."""

    code: int
    path: Path
    out: str
    err: str

    @property
    def manifest(self):
        return Bundle.load(self.path).manifest

    def assert_refused(self, message: str) -> None:
        """Exit code 2, one clear last line, and nothing left beside the output."""
        assert self.code == 2, self.err
        last = self.err.strip().splitlines()[-1]
        assert last.startswith("pcexport: error: ") and message in last, self.err
        assert "Traceback" not in self.err
        assert self.out == ""
        assert not self.path.exists()
        assert left_beside(self.path) == []


def left_beside(path: Path) -> list[str]:
    """Names in the output's folder, hidden ones included."""
    return sorted(p.name for p in path.parent.iterdir() if p != path) if path.parent.exists() else []


@pytest.fixture
def build(parts: Path, tmp_path: Path, capsys, quick_trace) -> Callable[..., Built]:
    def run(
        *flags: str, data: Path | str = parts, name: str = "part.pcbundle", report: bool = False
    ) -> Built:
        output = tmp_path / "out" / name
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            if not report:  # half the time of a small build
                patch.setattr(build_module, "write_report", lambda path, *args: path.write_text("report"))
            quick = [*QUICK, "--threads", "1", "--no-tune"]
            code = main(["build", str(data), "-o", str(output), *quick, *flags])
        captured = capsys.readouterr()
        return Built(code, output, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def plain(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One bundle, made by the unchanged command with `--json`; its summary stands beside it."""
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch, (folder / "summary.json").open("w") as stream:
        patch.setattr(sys, "stdout", stream)
        code = main(["build", str(parts), "-o", str(folder / "part.pcbundle"), *QUICK, "--json"])
    assert code == 0
    return folder / "part.pcbundle"


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def scores_of(bundle: Path, images: Path, capsys) -> list[float]:
    capsys.readouterr()
    assert pcrun(["--bundle", str(bundle), "--images", str(images), "--format", "jsonl"]) == 0
    return [json.loads(line)["score"] for line in capsys.readouterr().out.splitlines()]


# What a build makes


def test_a_build_gives_a_bundle_that_opens_and_passes_its_selftest(plain: Path, capsys) -> None:
    manifest = Bundle.load(plain).manifest
    assert set(contents(plain)) == {"manifest.json", "manifest.sha256", *manifest.files}
    assert {"embedder.onnx", "memory_bank.npy", "memory_bank.hnsw", "report.html"} <= set(manifest.files)
    assert (manifest.name, manifest.source.name, manifest.source.layout) == ("part", "parts", "mvtec")
    assert (manifest.source.images_bank, manifest.source.images_held_out, manifest.source.images_skipped) == (
        14,
        0,
        0,
    )
    assert manifest.embedding.weights_source.startswith("untrained")
    assert manifest.parity is not None and manifest.parity.max_relative_error < 1e-4
    assert manifest.scoring.threshold is not None and manifest.scoring.threshold.images == NORMALS
    assert manifest.accuracy is not None and manifest.accuracy.images_normal == TEST_GOOD
    assert pcrun(["selftest", "--bundle", str(plain)]) == 0
    assert "4 of 4 golden samples agree" in capsys.readouterr().out


def test_nothing_is_left_beside_a_finished_bundle(plain: Path) -> None:
    assert left_beside(plain) == ["summary.json"]


def test_json_holds_the_seconds_of_every_step_and_the_manifest(plain: Path) -> None:
    summary = json.loads(plain.with_name("summary.json").read_text())
    assert list(summary["seconds"]) == STEPS
    assert all(seconds >= 0 for seconds in summary["seconds"].values()) and summary["seconds"]["trace"] > 0
    assert summary["manifest"] == json.loads((plain / "manifest.json").read_text())
    assert summary["digest"] == Bundle.load(plain).digest
    assert summary["bytes"] == sum(path.stat().st_size for path in plain.rglob("*") if path.is_file())
    assert summary["bundle"] == str(plain)
    assert summary["profile"]["key"]["bundle"] == summary["digest"]
    assert any("14 normal images cannot support" in warning for warning in summary["warnings"])


def test_two_builds_are_equal_in_every_byte_of_every_file(plain: Path, parts: Path, tmp_path: Path) -> None:
    again = tmp_path / "elsewhere" / "part.pcbundle"
    assert main(["build", str(parts), "-o", str(again), *QUICK, "--no-tune"]) == 0  # traced anew
    assert contents(again) == contents(plain)


def test_a_copy_of_the_data_in_another_place_gives_equal_bytes(
    plain: Path, parts: Path, build, tmp_path: Path
) -> None:
    copied = tmp_path / "moved" / "parts"
    shutil.copytree(parts, copied)
    assert contents(build("--threads", "0", data=copied, report=True).path) == contents(plain)


def test_another_seed_gives_another_bundle(plain: Path, build) -> None:
    first, other = contents(plain), contents(build("--seed", "1", report=True).path)
    assert {name for name in first if first[name] != other[name]} >= {
        "embedder.onnx", "memory_bank.npy", "memory_bank.hnsw", "manifest.json", "report.html"
    }  # fmt: skip


def test_the_summary_is_the_only_standard_output(build) -> None:
    built = build()
    assert built.code == 0
    assert built.out.startswith(str(built.path)) and "seconds per step" in built.out
    assert "trace: " in built.err and "needs about" in built.err


def test_names_with_brackets_are_shown_as_they_are(parts: Path, build, tmp_path: Path, capsys) -> None:
    data = tmp_path / "lot[red]"
    shutil.copytree(parts / "train" / "good", data)
    built = build(data=data, name="part[bold].pcbundle")
    assert built.code == 0
    assert "lot[red] (flat)" in built.out and "part[bold].pcbundle" in built.out
    assert main(["inspect", str(built.path)]) == 0
    assert "lot[red] (flat)" in capsys.readouterr().out


# Images that are odd or broken


def with_exif_rotation(jpeg: bytes) -> bytes:
    """Insert an EXIF block that says: rotate by 90 degrees clockwise (orientation 6)."""
    tiff = b"II*\0\x08\0\0\0" + b"\x01\0" + b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0" + b"\0\0\0\0"
    payload = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + (len(payload) + 2).to_bytes(2, "big") + payload + jpeg[2:]


@pytest.fixture
def mixed(parts: Path, tmp_path: Path) -> Path:
    """The normal parts and, among them, one of each odd kind."""
    root = tmp_path / "mixed"
    shutil.copytree(parts / "train" / "good", root)
    pixels = cv2.imread(str(root / "000.png"))
    grey = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    whole = (root / "000.png").read_bytes()
    (root / "020_corrupt.png").write_bytes(whole[: len(whole) // 2])
    (root / "021_empty.png").write_bytes(b"")
    cv2.imwrite(str(root / "022_16bit.png"), pixels.astype(np.uint16) * 257)
    cv2.imwrite(str(root / "023_grey.png"), grey)
    cv2.imwrite(str(root / "024_alpha.png"), np.dstack([pixels, grey]))
    jpeg = cv2.imencode(".jpg", pixels[:, :96])[1].tobytes()
    (root / "025_rotated.jpg").write_bytes(with_exif_rotation(jpeg))
    return root


def test_odd_images_are_used_and_broken_ones_named_and_counted(mixed: Path, build) -> None:
    built = build("--json", data=mixed, report=True)
    assert built.code == 0
    source = built.manifest.source
    assert (source.images_bank, source.images_skipped) == (NORMALS + 4, 2)
    warnings = json.loads(built.out)["warnings"]
    left_out = [warning for warning in warnings if warning.startswith("left out")]
    assert len(left_out) == 2 and "020_corrupt.png" in left_out[0] and "021_empty.png" in left_out[1]
    assert any("024_alpha.png" in warning and "alpha" in warning for warning in warnings)
    assert all(warning in built.err for warning in warnings)


def test_an_exif_rotated_image_is_embedded_upright(parts: Path, build, tmp_path: Path) -> None:
    pixels = cv2.imread(str(parts / "train" / "good" / "000.png"))
    jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    for name, data in (("turned", with_exif_rotation(jpeg)), ("plain", jpeg)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "a.jpg").write_bytes(data)
    turned = build("--calibration", "none", "--coreset-ratio", "1", data=tmp_path / "turned").path
    detector = AnomalyDetector.load(turned, threshold=1.0, pixel_threshold=1.0)
    upright = cv2.rotate(cv2.imread(str(tmp_path / "plain" / "a.jpg")), cv2.ROTATE_90_CLOCKWISE)
    assert detector(upright).image_score < 1e-2 * detector(pixels).image_score


@pytest.mark.parametrize("name", ["020_corrupt.png", "021_empty.png"])
def test_strict_stops_and_leaves_nothing(mixed: Path, build, name: str) -> None:
    for other in {"020_corrupt.png", "021_empty.png"} - {name}:
        (mixed / other).unlink()
    build("--strict", data=mixed).assert_refused(name)


def test_a_folder_of_unreadable_images_is_refused(build, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"x")
    build(data=tmp_path / "bad").assert_refused("None of the 1 normal images could be read")


# Where the output goes


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any real step of a build fails the test."""
    for name in ("find_dataset", "trace_network", "embed_images"):
        monkeypatch.setattr(build_module, name, lambda *args, name=name: pytest.fail(f"{name} was called"))


def test_an_existing_output_is_refused_before_any_work_and_stays(
    plain: Path, parts: Path, no_work, capsys
) -> None:
    before = contents(plain)
    assert main(["build", str(parts), "-o", str(plain), *QUICK]) == 2
    assert "exists already" in capsys.readouterr().err and contents(plain) == before


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_folder_that_is_no_bundle_is_never_replaced(
    parts: Path, tmp_path: Path, no_work, capsys, force
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dear.jpg").write_bytes(b"x")
    assert main(["build", str(parts), "-o", str(tmp_path / "photos"), *QUICK, *force]) == 2
    assert "pcexport: error: " in capsys.readouterr().err
    assert (tmp_path / "photos" / "dear.jpg").read_bytes() == b"x"


def test_an_interrupt_while_replacing_keeps_the_old_bundle(tmp_path: Path, monkeypatch) -> None:
    old, new = tmp_path / "a.pcbundle", tmp_path / "staged"
    for folder, text in ((old, "old"), (new, "new")):
        folder.mkdir()
        (folder / "manifest.json").write_text(text)
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self == new:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(new, old)
    assert (old / "manifest.json").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pcbundle", "staged"]


def test_a_failed_build_removes_the_folders_it_made(parts: Path, tmp_path: Path, no_work) -> None:
    (tmp_path / "kept").mkdir()
    output = tmp_path / "kept" / "new" / "deep" / "a.pcbundle"
    with pytest.raises(RuntimeError), staging_folder(output):
        raise RuntimeError
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_corrupt_defective_image_is_no_golden_sample(parts: Path, build, tmp_path: Path) -> None:
    copied = tmp_path / "parts"
    shutil.copytree(parts, copied)
    broken = copied / "test" / "chip" / "000.png"
    broken.write_bytes(broken.read_bytes()[:100])
    built = build(data=copied)
    assert built.code == 0
    labels = [sample.label for sample in Bundle.load(built.path).golden_samples().samples]
    assert labels.count("defective") == 2


def test_a_full_disk_is_one_line(build, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build_module, "embed_images", full)
    built = build()
    assert built.code == 2 and "No space left on device" in built.err
    assert "Traceback" not in built.err


def test_force_replaces_the_old_bundle_entirely(build) -> None:
    first = build("--image-score", "reweighted")
    (first.path / "stray.txt").write_text("old")
    assert build("--force").code == 0
    assert set(contents(first.path)) == {"manifest.json", "manifest.sha256", *first.manifest.files}
    assert first.manifest.scoring.image_score == "max"
    assert left_beside(first.path) == []


def test_a_failed_build_with_force_keeps_the_old_bundle(build, mixed: Path) -> None:
    old = build()
    before = contents(old.path)
    assert build("--force", "--strict", data=mixed).code == 2
    assert contents(old.path) == before and left_beside(old.path) == []


def test_an_output_that_cannot_be_written_is_refused(parts: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert main(["build", str(parts), "-o", str(tmp_path / "file" / "x.pcbundle"), *QUICK]) == 2
    assert "cannot be written" in capsys.readouterr().err


# Builds that must stop


def test_a_parity_failure_stops_the_build(build) -> None:
    build("--parity-tolerance", "1e-12").assert_refused("PyTorch and ONNX differ by")


def test_a_disk_that_is_too_small_is_said_before_embedding(build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    monkeypatch.setattr(build_module, "embed_images", lambda *a, **k: pytest.fail("embedded without space"))
    build().assert_refused("0.0 GB are free")


def test_a_bundle_that_does_not_repeat_its_samples_is_not_published(
    build, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = build_module.write_samples

    def shifted(folder, *args):
        names = real(folder, *args)
        expected = folder / "samples" / "expected.json"
        data = json.loads(expected.read_text())
        data["samples"][0]["image_score"] *= 1.01
        expected.write_text(json.dumps(data))
        return names

    monkeypatch.setattr(build_module, "write_samples", shifted)
    build().assert_refused("does not repeat its own golden samples")


def test_embeddings_that_are_not_finite_stop_the_build(build, monkeypatch: pytest.MonkeyPatch) -> None:
    real = build_module.open_embedder

    def with_nan(*args):
        embedder, parity = real(*args)

        class Broken:
            provider = embedder.provider

            def embed(self, images):
                return embedder.embed(images) * np.float32("nan")

        return Broken(), parity

    monkeypatch.setattr(build_module, "open_embedder", with_nan)
    build().assert_refused("values that are not finite")


_INTERRUPTED = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell starts children that ignore it
import pcexport.memory_bank.embed as embed
real = embed.preprocess
def slow(*args):
    print("PREPARING", file=sys.stderr, flush=True)
    time.sleep(1)
    return real(*args)
embed.preprocess = slow
from pcexport.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGINT is sent the POSIX way")
def test_sigint_while_embedding_leaves_nothing_and_exits_with_130(parts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "part.pcbundle"
    command = [sys.executable, "-c", _INTERRUPTED, "build", str(parts), "-o", str(output), *QUICK]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "PREPARING" in line:
                break
        assert [name for name in left_beside(output) if name.startswith(".part.pcbundle.partial-")]
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130, rest
    assert rest.strip().splitlines()[-1] == "pcexport: interrupted" and "Traceback" not in rest
    assert not output.exists() and left_beside(output) == []


# Choices


def test_holdout_keeps_images_out_of_the_bank_and_scores_them_with_the_bundle(build) -> None:
    built = build("--calibration", "holdout", "--holdout-fraction", "0.3")
    source, scoring = built.manifest.source, built.manifest.scoring
    assert (source.images_held_out, source.images_bank) == (4, 10)
    assert (scoring.threshold.method, scoring.threshold.images) == ("holdout", 4)
    assert built.manifest.memory_bank.coreset.candidates == 10 * built.manifest.embedding.patches


def test_the_holdout_threshold_is_the_largest_score_of_the_held_out_images(build, parts: Path) -> None:
    from pcexport.calibration.false_alarm_rate import plan_calibration
    from pcexport.config import BuildConfig

    built = build("--calibration", "holdout", "--holdout-fraction", "0.3")
    plan = plan_calibration(NORMALS, BuildConfig(calibration="holdout", holdout_fraction=0.3))
    detector = AnomalyDetector.load(built.path, exactness="full")
    images = sorted((parts / "train" / "good").iterdir())
    results = [detector(cv2.imread(str(images[i]))) for i in plan.folds[0]]
    assert detector.threshold == pytest.approx(max(r.image_score for r in results), rel=1e-5)
    assert detector.pixel_threshold == pytest.approx(
        max(float(r.anomaly_map.max()) for r in results), rel=1e-5
    )
    baseline = built.manifest.scoring.baseline
    assert baseline.image_scores == pytest.approx(sorted(r.image_score for r in results), rel=1e-5)
    # As the search of the build found them: not smaller, and hardly larger.
    found = np.array(baseline.patch_medians) / sorted(float(np.median(r.patch_scores)) for r in results)
    assert (found > 1 - 1e-5).all() and (found < 1.05).all()


def test_kfold_uses_every_image_for_both(build) -> None:
    built = build("--calibration", "kfold", "--folds", "3", "--false-alarm-rate", "0.3")
    manifest = built.manifest
    assert (manifest.source.images_held_out, manifest.source.images_bank) == (0, NORMALS)
    threshold = manifest.scoring.threshold
    assert (threshold.method, threshold.images, threshold.rank) == ("kfold", NORMALS, 11)
    assert manifest.memory_bank.coreset.candidates == NORMALS * manifest.embedding.patches
    baseline = manifest.scoring.baseline
    assert (baseline.method, baseline.images) == ("kfold", NORMALS)
    assert len(baseline.image_scores) == len(baseline.patch_medians) == NORMALS
    # The threshold is one of these scores.
    assert baseline.image_scores[threshold.rank - 1] == pytest.approx(threshold.value, rel=1e-6)


def test_without_calibration_there_is_no_threshold_and_pcrun_asks_for_one(build, parts: Path, capsys) -> None:
    built = build("--calibration", "none", report=True)
    assert built.code == 0 and built.manifest.scoring.threshold is None
    assert built.manifest.scoring.baseline is None
    assert "no threshold was chosen" in built.err
    images = str(parts / "test" / "good")
    assert pcrun(["--bundle", str(built.path), "--images", images]) == 2
    assert "--threshold" in capsys.readouterr().err
    assert pcrun(["selftest", "--bundle", str(built.path)]) == 0


def test_without_an_index_scores_are_the_same(plain: Path, build, parts: Path, capsys) -> None:
    built = build("--index", "none")
    assert not (built.path / "memory_bank.hnsw").exists() and built.manifest.memory_bank.index is None
    images = parts / "test" / "good"
    assert scores_of(built.path, images, capsys) == pytest.approx(scores_of(plain, images, capsys), rel=1e-5)


def test_a_random_coreset_is_recorded_and_differs_from_the_greedy_one(plain: Path, build) -> None:
    built = build("--coreset", "random", "--coreset-size", "20")
    spec = built.manifest.memory_bank
    assert (spec.coreset.method, spec.count, spec.coreset.covering_radius) == ("random", 20, None)
    greedy = {row.tobytes() for row in Bundle.load(plain).memory_bank}
    assert {row.tobytes() for row in Bundle.load(built.path).memory_bank} != greedy


def test_bank_rows_are_unprojected_embeddings_of_the_normal_images(plain: Path, parts: Path) -> None:
    from pcrun.backends.session import OnnxEmbedder
    from pcrun.preprocess import preprocess

    bundle = Bundle.load(plain)
    embedder = OnnxEmbedder(bundle.embedder, bundle.manifest.embedding)
    images = [cv2.imread(str(path)) for path in sorted((parts / "train" / "good").iterdir())]
    prepared = np.stack([preprocess(image, bundle.manifest.preprocess) for image in images])
    candidates = embedder.embed(prepared).reshape(-1, bundle.manifest.embedding.dim)
    distances = np.linalg.norm(bundle.memory_bank[:, None] - candidates[None], axis=2).min(axis=1)
    assert distances.max() < 1e-4 * np.linalg.norm(candidates, axis=1).mean()


def brute_force_eq7(bundle: Bundle, embeddings: np.ndarray, b: int) -> float:
    """Image score of Eq. 7 in float64, from the definition; m_test, m* and N_b as in the paper."""
    bank = bundle.memory_bank.astype(np.float64)
    distances = np.linalg.norm(embeddings[:, None].astype(np.float64) - bank[None], axis=2)
    m_test = int(distances.min(axis=1).argmax())
    m_star = int(distances[m_test].argmin())
    s_star = distances[m_test, m_star]
    nearest = np.linalg.norm(bank - bank[m_star], axis=1).argsort(kind="stable")[:b]
    return (1 - np.exp(s_star) / np.exp(distances[m_test, nearest]).sum()) * s_star


def test_reweighted_scores_equal_brute_force_eq_7(build, parts: Path) -> None:
    from pcrun.backends.session import OnnxEmbedder
    from pcrun.preprocess import preprocess

    built = build("--image-score", "reweighted", "--neighbours", "5", "--coreset-size", "60")
    bundle = Bundle.load(built.path)
    assert np.load(built.path / "neighbours.npy").shape == (60, 5)
    detector = AnomalyDetector.load(bundle)
    embedder = OnnxEmbedder(bundle.embedder, bundle.manifest.embedding)
    for path in sorted((parts / "test").glob("*/*.png")):
        image = cv2.imread(str(path))
        embeddings = embedder.embed(preprocess(image, bundle.manifest.preprocess)[None])[0]
        score = detector(image).image_score
        assert score == pytest.approx(brute_force_eq7(bundle, embeddings, 5), rel=1e-4)
        assert score < detector(image).patch_scores.max()
    assert bundle.manifest.scoring.threshold.value < bundle.manifest.scoring.pixel_threshold.value * 10


@pytest.mark.parametrize("batch, expected", [("dynamic", None), ("4", 4)])
def test_other_batches_give_the_same_scores(
    plain: Path, build, parts: Path, capsys, batch: str, expected
) -> None:
    built = build("--batch", batch)  # 14 images: the last batch of 4 is padded
    assert built.code == 0 and built.manifest.embedding.batch == expected
    images = parts / "test" / "good"
    assert scores_of(built.path, images, capsys) == pytest.approx(scores_of(plain, images, capsys), rel=1e-3)


def test_embedding_with_torch_gives_the_same_bank_within_parity(plain: Path, build) -> None:
    built = build("--embed-with", "torch")
    assert built.manifest.source.config["embed_with"] == "torch"
    with_torch, with_onnx = Bundle.load(built.path).memory_bank, Bundle.load(plain).memory_bank
    np.testing.assert_allclose(with_torch, with_onnx, rtol=1e-3, atol=1e-4 * np.abs(with_onnx).max())


def test_another_backbone_and_size(build, parts: Path) -> None:
    built = build("--backbone", "mobilenet_v3_small", "--image-size", "64x96", "--golden-samples", "1")
    assert built.code == 0
    manifest = built.manifest
    assert manifest.embedding.backbone == "mobilenet_v3_small" and manifest.preprocess.input_hw == (64, 96)
    assert (manifest.embedding.grid_height, manifest.embedding.grid_width) == (8, 12)
    result = AnomalyDetector.load(built.path)(cv2.imread(str(parts / "test" / "good" / "000.png")))
    assert result.anomaly_map.shape == (64, 96)


def test_a_crop_is_what_the_network_sees(build, parts: Path) -> None:
    built = build("--image-size", "80", "--crop-size", "64", "--resize-mode", "keep_aspect")
    spec = built.manifest.preprocess
    assert (spec.resize_height_px, spec.input_hw, spec.keep_aspect) == (80, (64, 64), True)


@pytest.mark.parametrize(
    "recipe, backbone, size", [("fast", "mobilenet_v3_small", "64x96"), ("jetson", "resnet18", "64")]
)
def test_a_named_recipe_is_used_and_flags_win_over_it(build, recipe: str, backbone: str, size: str) -> None:
    built = build("--config", recipe, "--image-size", size, "--coreset-ratio", "0.02")
    config = built.manifest.source.config
    assert built.code == 0
    assert (config["backbone"], config["image_size"], config["coreset_ratio"]) == (backbone, size, 0.02)


def test_evaluation_can_be_left_out(build) -> None:
    built = build("--no-evaluate", "--json")
    assert built.manifest.accuracy is None and "evaluate" not in json.loads(built.out)["seconds"]


def test_two_normal_images_are_enough(build, parts: Path, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    for name in ("000.png", "001.png"):
        shutil.copy(parts / "train" / "good" / name, tmp_path / "two" / name)
    built = build(data=tmp_path / "two")
    assert built.code == 0 and built.manifest.scoring.threshold.images == 2


def test_one_normal_image_is_refused(build, parts: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(parts / "train" / "good" / "000.png", tmp_path / "one")
    build(data=tmp_path / "one").assert_refused("1 normal image cannot give a threshold")


# Looking at bundles and packing them


def test_inspect_shows_a_table_of_facts(plain: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "600")  # narrower tables fold long values
    assert main(["inspect", str(plain)]) == 0
    shown = capsys.readouterr().out
    bundle = Bundle.load(plain)
    for fact in ("resnet18 layer2,layer3", "8x8 patches of 384-d", bundle.digest, "embedder.onnx", "torch 2"):
        assert fact in shown


def test_inspect_json_is_the_manifest_and_the_digest(plain: Path, capsys) -> None:
    assert main(["inspect", str(plain), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown.pop("digest") == Bundle.load(plain).digest
    assert shown == json.loads((plain / "manifest.json").read_text())
    assert shown["schema_version"] == SCHEMA_VERSION


def test_a_packed_bundle_scores_like_the_directory(plain: Path, parts: Path, tmp_path: Path, capsys) -> None:
    packed = tmp_path / "part.zip"
    assert main(["pack", str(plain), "-o", str(packed)]) == 0
    images = parts / "test" / "good"
    assert scores_of(packed, images, capsys) == scores_of(plain, images, capsys)
    assert Bundle.load(packed).digest == Bundle.load(plain).digest
    assert pcrun(["selftest", "--bundle", str(packed)]) == 0
    assert main(["inspect", str(packed)]) == 0


def test_packing_twice_gives_equal_bytes_with_the_manifest_first(plain: Path, tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        assert main(["pack", str(plain), "-o", str(tmp_path / name)]) == 0
    os.utime(plain / "manifest.json", (0, 0))
    assert main(["pack", str(plain), "-o", str(tmp_path / "b.zip"), "--force"]) == 0
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist()[0] == "manifest.json"
    assert left_beside(tmp_path / "a.zip") == ["b.zip"]


@pytest.mark.parametrize("here", [False, True])
def test_pack_names_the_zip_after_the_bundle(plain: Path, tmp_path: Path, monkeypatch, here: bool) -> None:
    copied = shutil.copytree(plain, tmp_path / "part.pcbundle")
    monkeypatch.chdir(copied)
    assert main(["pack", "." if here else str(copied)]) == 0
    assert Bundle.load(tmp_path / "part.pcbundle.zip").digest == Bundle.load(plain).digest


def test_a_damaged_bundle_is_not_packed(plain: Path, tmp_path: Path, capsys) -> None:
    copied = shutil.copytree(plain, tmp_path / "part.pcbundle")
    data = bytearray((copied / "report.html").read_bytes())
    data[10] ^= 1
    (copied / "report.html").write_bytes(bytes(data))
    assert main(["pack", str(copied)]) == 2
    assert "report.html does not match its SHA-256" in capsys.readouterr().err
    assert left_beside(copied) == []


# Wrong uses


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["build"], "Missing argument 'DATA'"),
        (["build", "{parts}"], "Missing option '-o'"),
        (["build", "{tmp}/gone", "-o", "{tmp}/x"], "There is no folder"),
        (["build", "{tmp}", "-o", "{tmp}/x"], "no known layout"),
        (["build", "{parts}", "-o", "{tmp}/x", "--bakbone", "a"], "--backbone"),
        (["build", "{parts}", "-o", "{tmp}/x", "--backbone", "resnet19"], "'resnet18'"),
        (["build", "{parts}", "-o", "{tmp}/x", "--config", "fats"], "Did you mean 'fast'?"),
        (["build", "{parts}", "-o", "{tmp}/x", "--seed", "one"], "'one' is not a valid integer"),
        (["build", "{parts}", "-o", "{tmp}/x", "--seed", "-1"], "seed must be at least 0"),
        (["build", "{parts}", "-o", "{tmp}/x", "--layout", "odd"], "'odd' is not one of"),
        (["build", "{parts}", "-o", "{tmp}/x", "--image-size", "big"], "must look like 224 or 224x320"),
        (["build", "{parts}", "-o", "{tmp}/x", "--image-size", "5000"], "must be 1..4096"),
        (["build", "{parts}", "-o", "{tmp}/x", "--crop-size", "500"], "must fit into the resized image"),
        (["build", "{parts}", "-o", "{tmp}/x", "--weights", "{tmp}/gone.pth"], "gone.pth does not exist"),
        (["inspect"], "Missing argument 'BUNDLE'"),
        (["inspect", "{tmp}/gone"], "There is no bundle at"),
        (["inspect", "{parts}"], "manifest.json is missing"),
        (["inspect", "{parts}/train/good/000.png"], "neither a bundle directory nor a readable zip"),
        (["pack"], "Missing argument 'BUNDLE'"),
        (["pack", "{tmp}/gone"], "is not a bundle directory"),
        (["pack", "{parts}"], "manifest.json is missing"),
        (["pack", "{plain}", "-o", "{parts}"], "is a folder"),
        (["pack", "{plain}", "-o", "{parts}", "--force"], "is a folder"),
        (["pack", "{plain}", "-o", "{parts}/train/good/000.png"], "exists already"),
        (["pack", "{plain}", "-o", "{parts}/train/good/000.png/x.zip"], "cannot be written"),
        (["backbones", "extra"], "unexpected extra argument"),
        (["demo", "extra"], "unexpected extra argument"),
        (["demo", "--out", "{parts}/train/good/000.png"], "is a file"),
    ],
    ids=lambda value: " ".join(value).replace("{", "").replace("}", "") if isinstance(value, list) else None,
)
def test_a_wrong_use_ends_with_one_clear_line(
    arguments: list[str], message: str, parts: Path, plain: Path, tmp_path: Path, capsys
) -> None:
    before = contents(parts)
    (tmp_path / "not_an_image.txt").write_text("x")
    places = {"parts": parts, "plain": plain, "tmp": tmp_path}
    code = main([argument.format(**places) for argument in arguments])
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    lines = captured.err.strip().splitlines()
    errors = [line for line in lines if "rror: " in line]
    assert errors == lines[-1:] and message in lines[-1]
    assert "Traceback" not in captured.err
    assert contents(parts) == before
    assert [path.name for path in tmp_path.iterdir()] == ["not_an_image.txt"]


def test_debug_shows_the_trace(tmp_path: Path, capsys) -> None:
    command = ["build", str(tmp_path / "gone"), "-o", str(tmp_path / "x")]
    for flags, shown in (([], False), (["--debug"], True)):
        assert main([*command, *flags]) == 2
        assert ("Traceback" in capsys.readouterr().err) == shown
