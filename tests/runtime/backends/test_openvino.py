"""The embedder in OpenVINO: the same numbers, the precision that was asked for, nothing sent anywhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("openvino", reason="openvino is not installed (extra: openvino)")

from pcrun import AnomalyDetector, BackendError, Bundle, BundleError
from pcrun.backends import openvino_session as openvino_module
from pcrun.backends.embedder import GraphEmbedder
from pcrun.backends.openvino_session import OpenVinoEmbedder, import_openvino
from pcrun.backends.session import open_embedder, resolve_precision, resolve_provider
from pcrun.cli import main
from pcrun.tuning.tune import golden_content, tune
from tests.conftest import BundleMaker
from tests.data.make_tiny_bundle import IMAGE_HW, smooth_image


def has_bfloat16() -> bool:
    return "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(), reason="this processor has no bfloat16")


@pytest.fixture
def bundle(made_bundle: BundleMaker) -> Bundle:
    return Bundle.load(made_bundle())


@pytest.fixture
def images() -> np.ndarray:
    rng = np.random.default_rng(3)
    return np.stack([smooth_image(rng) for _ in range(5)])


def opened(bundle: Bundle, provider: str = "openvino", precision: str | None = None) -> GraphEmbedder:
    embedder = open_embedder(
        bundle.embedder, bundle.manifest.embedding, provider=provider, precision=precision, threads=1
    )
    assert isinstance(embedder, GraphEmbedder)
    return embedder


def largest_error(reference: np.ndarray, other: np.ndarray) -> float:
    return float((np.linalg.norm(reference - other, axis=2) / np.linalg.norm(reference, axis=2)).max())


# What it computes


@pytest.mark.parametrize("batch", [1, 3, None])
def test_openvino_gives_the_embeddings_of_onnxruntime(
    made_bundle: BundleMaker, images: np.ndarray, batch: int | None
) -> None:
    bundle = Bundle.load(made_bundle(batch=batch))
    reference, other = opened(bundle, "cpu"), opened(bundle)
    assert (other.provider, other.precision, other.threads) == ("openvino", "fp32", 1)
    assert largest_error(reference.embed(images), other.embed(images)) < 1e-4


def test_a_result_is_not_overwritten_by_the_next_call(bundle: Bundle, images: np.ndarray) -> None:
    embedder = opened(bundle)
    first = embedder.embed(images[:1])
    kept = first.copy()
    embedder.embed(images[1:2])
    assert np.array_equal(first, kept)


def test_it_may_be_called_from_several_threads(bundle: Bundle, images: np.ndarray) -> None:
    embedder = opened(bundle)
    expected = [embedder.embed(image[None]) for image in images]
    results: list[bool] = []

    def work(number: int) -> None:
        results.extend(
            np.array_equal(embedder.embed(images[number][None]), expected[number]) for _ in range(20)
        )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 80 and all(results)


@needs_bfloat16
def test_bfloat16_is_another_arithmetic_and_float32_is_never_replaced_by_it(
    bundle: Bundle, images: np.ndarray
) -> None:
    reference = opened(bundle, "cpu").embed(images)
    coarse = opened(bundle, precision="bf16")
    assert coarse.precision == "bf16"
    assert 1e-4 < largest_error(reference, coarse.embed(images)) < 0.05
    # By itself OpenVINO takes bfloat16 on such a processor.
    assert largest_error(reference, opened(bundle).embed(images)) < 1e-5


# What it refuses


def test_output_of_another_shape_is_refused(made_bundle: BundleMaker, bundle: Bundle) -> None:
    other = Bundle.load(made_bundle(dim=12))
    embedder = OpenVinoEmbedder(other.embedder, bundle.manifest.embedding, threads=1)
    with pytest.raises(BundleError, match=r"float32 \[1, 96, 12\], the manifest says float32 \[1, 96, 8\]"):
        embedder.embed(np.zeros((1, *IMAGE_HW, 3), np.uint8))


def test_output_that_is_not_finite_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = np.full((1, 96, 8), np.nan, np.float32)
    monkeypatch.setattr(OpenVinoEmbedder, "_compute", lambda self, images: broken)
    with pytest.raises(BackendError, match="values on openvino that are not finite"):
        opened(bundle).embed(np.zeros((1, *IMAGE_HW, 3), np.uint8))


def test_an_image_of_another_size_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="openvino failed on the embedder"):
        opened(bundle).embed(np.zeros((1, 16, 16, 3), np.uint8))


def test_a_graph_that_is_none_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match=r"openvino [\d.]+\S* cannot open the embedder"):
        OpenVinoEmbedder(b"no graph", bundle.manifest.embedding)


def test_a_negative_number_of_threads_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="threads must be 0"):
        OpenVinoEmbedder(bundle.embedder, bundle.manifest.embedding, threads=-1)


def fake_openvino(capabilities: list[str], actual: str) -> SimpleNamespace:
    """An openvino whose compiled models compute in `actual`."""
    hint = SimpleNamespace(to_string=lambda: actual)
    compiled = SimpleNamespace(get_property=lambda name: hint, create_infer_request=lambda: None)
    core = SimpleNamespace(
        get_property=lambda device, name: capabilities,
        read_model=lambda model: model,
        compile_model=lambda model, device, options: compiled,
    )
    return SimpleNamespace(Core=lambda: core, __version__="0")


@pytest.mark.parametrize("asked, actual", [("fp32", "bf16"), ("bf16", "f32")])
def test_another_precision_than_asked_for_is_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, asked: str, actual: str
) -> None:
    monkeypatch.setattr(openvino_module, "import_openvino", lambda: fake_openvino(["BF16"], actual))
    with pytest.raises(BackendError, match=f"was asked for, but openvino computes in {actual}"):
        OpenVinoEmbedder(bundle.embedder, bundle.manifest.embedding, precision=asked)


def test_bfloat16_on_a_processor_without_it_is_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_module, "import_openvino", lambda: fake_openvino(["FP32", "INT8"], "bf16"))
    with pytest.raises(BackendError, match=r"This processor has no bfloat16.*--precision fp32"):
        OpenVinoEmbedder(bundle.embedder, bundle.manifest.embedding, precision="bf16")


def test_a_missing_package_is_an_error_with_the_line_that_installs_it(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"not installed.*pip install 'patchcore-edge\[openvino\]'"):
        resolve_provider("openvino")
    with pytest.raises(BackendError, match=r"cannot be imported.*pip install 'patchcore-edge\[openvino\]'"):
        import_openvino()
    assert main(["selftest", "--bundle", str(tiny_bundle), "--provider", "openvino"]) == 2
    assert "patchcore-edge[openvino]" in capsys.readouterr().err


# Which precision runs where


@pytest.mark.parametrize(
    "stored, provider, wanted, precision",
    [
        ("fp32", "cpu", None, "fp32"),
        ("fp32", "openvino", None, "fp32"),
        ("fp32", "openvino", "bf16", "bf16"),
        ("bf16", "openvino", None, "bf16"),
        ("int8", "cpu", None, "int8"),
        ("int8", "openvino", None, "int8"),
        ("fp16", "cuda", None, "fp16"),
    ],
)
def test_precisions_that_run(stored: str, provider: str, wanted: str | None, precision: str) -> None:
    assert resolve_precision(stored, provider, wanted) == precision


@pytest.mark.parametrize(
    "stored, provider, wanted, message",
    [
        ("bf16", "cpu", None, "'cpu' does not compute in bf16.*--provider openvino"),
        ("fp32", "cuda", "bf16", "'cuda' does not compute in bf16"),
        ("int8", "openvino", "bf16", "computes in int8, bf16 was asked for"),
        ("int8", "cpu", "fp32", "computes in int8, fp32 was asked for"),
        ("bf16", "openvino", "fp32", "computes in bf16, fp32 was asked for"),
    ],
)
def test_precisions_that_are_refused(stored: str, provider: str, wanted: str | None, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        resolve_precision(stored, provider, wanted)


# Another arithmetic than the build's


def test_another_backend_is_measured_against_the_golden_samples(tiny_bundle: Path) -> None:
    with pytest.warns(UserWarning, match=r"runs on openvino fp32.*2 golden samples differ by at most"):
        detector = AnomalyDetector.load(tiny_bundle, provider="openvino")
    assert detector.change is not None
    assert detector.change.samples == 2 and detector.change.largest_difference < 1e-4
    assert AnomalyDetector.load(tiny_bundle, provider="cpu").change is None


@needs_bfloat16
def test_a_bfloat16_run_says_how_far_scores_move_and_passes_the_selftest(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--bundle", str(tiny_bundle), "--provider", "openvino", "--precision", "bf16"]
    assert main(["selftest", *flags]) == 0
    captured = capsys.readouterr()
    (moved,) = re.findall(r"runs on openvino bf16.* differ by at most (\S+) \(relative\)", captured.err)
    assert 1e-5 < float(moved) < 0.05
    assert "2 of 2 golden samples agree within 0.05" in captured.out


@pytest.mark.parametrize("factor", [0.2, 1.2])
def test_a_backend_that_changes_the_result_is_refused(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    right = OpenVinoEmbedder._compute
    monkeypatch.setattr(OpenVinoEmbedder, "_compute", lambda self, images: factor * right(self, images))
    with pytest.raises(BackendError, match=r"on openvino fp32 gives other results.*samples/00"):
        AnomalyDetector.load(tiny_bundle, provider="openvino")
    # `tune` passes it over.
    profile = tune(Bundle.load(tiny_bundle), golden_content(Bundle.load(tiny_bundle)), images=6)
    assert {trial.settings.provider for trial in profile.trials} == {"cpu"}


def test_tuning_tries_openvino_where_the_provider_is_left_open(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    profile = tune(bundle, golden_content(bundle), images=6)
    tried = {trial.settings.provider for trial in profile.trials}
    assert tried == {"cpu", "openvino"}
    only = tune(bundle, golden_content(bundle), provider="cpu", images=6)
    assert {trial.settings.provider for trial in only.trials} == {"cpu"}


# Nothing is sent

USE_BOTH = """
import sys
from pcrun import AnomalyDetector
for provider in ("cpu", "openvino"):
    AnomalyDetector.load({bundle!r}, provider=provider, profile=False)
print("reporting:", *[name for name in sys.modules if "telemetry" in name or "tools.ovc" in name])
"""


def test_neither_backend_leaves_an_identity_or_loads_what_reports(tiny_bundle: Path, tmp_path: Path) -> None:
    """Left alone, both report each process over the network, under an identity kept in the home folder."""
    home = tmp_path / "home"
    home.mkdir()
    silenced = {"CI", "ORT_DISABLE_TELEMETRY"}
    environment = {name: value for name, value in os.environ.items() if name not in silenced}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", USE_BOTH.format(bundle=str(tiny_bundle))],
        env=environment | {"HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == ["reporting:"]
    assert list(home.iterdir()) == []
