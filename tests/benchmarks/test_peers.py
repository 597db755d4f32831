"""`pcbench peers`: same results before any time counts, fair turns, and nobody missing in silence."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcbench.cli import main
from pcbench.peers import contenders, measure
from pcbench.peers.checks import Results, differences, require_equal
from pcbench.peers.command import PEER_NAMES
from pcbench.peers.contenders import BANK_FILE, CONTENDERS, FULL, OURS, PEERS, Absent, Request
from pcbench.peers.process import ContenderProcess
from pcbench.readme import render
from pcrun.bundle.bundle import Bundle
from pcrun.bundle.manifest import MANIFEST_NAME
from pcrun.detector import AnomalyDetector
from pcrun.errors import PcError
from pcrun.images.image_io import encode_png, read_image
from tests.contract.damage import edit_manifest
from tests.data.make_tiny_bundle import smooth_image, with_defect

BundleMaker = Callable[..., Path]
GRAPHS = ("onnxruntime", "openvino")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Normal and defective images of several sizes, and one of noise."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(5)
    for number, image_hw in enumerate([(32, 48), (75, 40), (20, 130), (64, 96)]):
        image = smooth_image(rng, image_hw)
        (folder / f"{number}a.png").write_bytes(encode_png(image))
        (folder / f"{number}b.png").write_bytes(encode_png(with_defect(image)))
    (folder / "noise.png").write_bytes(encode_png(rng.integers(0, 256, (40, 60, 3), np.uint8)))
    return folder


@pytest.fixture
def no_anomalib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes started from here cannot import anomalib, whether it is installed or not."""
    package = tmp_path / "hidden" / "anomalib"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('hidden by a test')\n")
    found = [str(Path(module.__file__).parents[1]) for module in (__import__("pcrun"), __import__("pcbench"))]
    monkeypatch.setenv("PYTHONPATH", ":".join([str(package.parent), *found]))


def request_for(bundle: Path, contender: str, images: Path, folder: Path) -> Request:
    opened = Bundle.load(bundle)
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST_NAME).write_bytes((bundle / MANIFEST_NAME).read_bytes())
    np.save(folder / BANK_FILE, opened.memory_bank)
    files = tuple(str(path) for path in sorted(images.iterdir()))
    return Request(contender, str(bundle), opened.digest, files, 1, "cpu", None, str(folder))


def outcomes(bundle: Path, contender: str, images: Path, folder: Path) -> Results:
    """What a contender says of all images, in this process."""
    request = request_for(bundle, contender, images, folder)
    prepare = CONTENDERS[contender].prepare
    if prepare is not None:
        prepare(request)
    run = CONTENDERS[contender].open(request).run
    found = [run(read_image(Path(path))) for path in request.images]
    return Results(np.array([o.image_score for o in found]), np.stack([o.anomaly_map for o in found]))


def peers(bundle: Path, images: Path, output: Path, *arguments: str) -> int:
    command = ["peers", "--bundle", str(bundle), str(images), "--name", "tiny", "-o", str(output)]
    return main([*command, "--rounds", "2", "--threads", "1", *arguments])


@pytest.mark.parametrize("contender", GRAPHS)
@pytest.mark.parametrize("image_score", ["max", "reweighted"])
@pytest.mark.parametrize("batch", [1, None])
def test_one_graph_gives_the_scores_and_maps_of_brute_force(
    made_bundle: BundleMaker,
    pictures: Path,
    tmp_path: Path,
    contender: str,
    image_score: str,
    batch: int | None,
) -> None:
    pytest.importorskip(contender, reason=f"{contender} is not installed")
    bundle = made_bundle(image_score=image_score, batch=batch)
    exact = AnomalyDetector.load(bundle, provider="cpu", threads=1, exactness="full", profile=False)
    found = outcomes(bundle, contender, pictures, tmp_path / "work")
    for path, score, heat in zip(sorted(pictures.iterdir()), found.scores, found.maps, strict=True):
        expected = exact(read_image(path))
        # Of distances much smaller than the vectors, |q|^2 - 2 q.r + |r|^2 loses digits.
        assert score == pytest.approx(expected.image_score, rel=1e-3)
        np.testing.assert_allclose(heat, expected.anomaly_map, atol=1e-3 * expected.anomaly_map.max())


def test_one_graph_without_smoothing_is_only_upsampled(
    tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    edit_manifest(tiny_bundle, lambda manifest: manifest["scoring"].update(map_sigma_px=0.0))
    ours = outcomes(tiny_bundle, FULL, pictures, tmp_path / "work")
    graph = outcomes(tiny_bundle, "onnxruntime", pictures, tmp_path / "work")
    np.testing.assert_allclose(graph.maps, ours.maps, atol=1e-4 * ours.maps.max())


@pytest.mark.parametrize("part", ["scores", "maps"])
def test_a_planted_difference_is_refused(part: str) -> None:
    rng = np.random.default_rng(0)
    ours = Results(rng.uniform(1, 2, 7), rng.uniform(0, 2, (7, 4, 6)).astype(np.float32))
    require_equal("a peer", differences(ours, ours, ours.maps))
    planted = getattr(ours, part).copy()
    planted[3] *= 1.001
    found = differences(dataclasses.replace(ours, **{part: planted}), ours, ours.maps)
    with pytest.raises(PcError, match="differ from pcrun's"):
        require_equal("a peer", found)


def test_not_a_number_is_no_equal_score() -> None:
    ours = Results(np.ones(2), np.ones((2, 3, 3), np.float32))
    broken = dataclasses.replace(ours, scores=np.array([1.0, np.nan]))
    with pytest.raises(PcError, match="image scores of a peer"):
        require_equal("a peer", differences(broken, ours, ours.maps))


def test_nothing_is_timed_or_written_when_a_peer_gives_other_results(
    tiny_bundle: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = measure._results

    def planted(request: Request) -> tuple[dict[str, Any], Results]:
        facts, results = real(request)
        factor = 1.01 if request.contender == "onnxruntime" else 1.0
        return facts, dataclasses.replace(results, scores=results.scores * factor)

    def timed(*arguments: Any) -> Any:
        raise AssertionError("it was timed")

    monkeypatch.setattr(measure, "_results", planted)
    monkeypatch.setattr(measure, "_timed_pairs", timed)
    assert peers(tiny_bundle, pictures, tmp_path / "x.json", "--peer", "onnxruntime") == 2
    assert "one ONNX graph, onnxruntime differ from pcrun's by 0.01" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


@pytest.mark.usefixtures("no_anomalib")
def test_a_pair_keeps_every_sample_and_the_absent_are_named(
    tiny_bundle: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    # As a bundle of a network that anomalib has.
    edit_manifest(
        tiny_bundle,
        lambda manifest: (
            manifest["embedding"].update(neighbourhood=3, backbone="resnet18"),
            manifest["scoring"].update(map_sigma_px=4.0),
        ),
    )
    output = tmp_path / "results" / "peers.json"
    assert peers(tiny_bundle, pictures, output) == 0
    result = json.loads(output.read_text(encoding="utf-8"))
    assert result["kind"] == "peers" and str(tmp_path) not in output.read_text(encoding="utf-8")
    assert [pair["peer"] for pair in result["pairs"]] == ["pcrun-full", *GRAPHS] == list(result["checks"])
    for pair in result["pairs"]:
        ours, theirs = pair["samples_ms"]["ours"], pair["samples_ms"]["theirs"]
        assert [len(samples) for samples in (*ours, *theirs)] == [9] * 4
        ratios = [np.median(b) / np.median(a) for a, b in zip(ours, theirs, strict=True)]
        assert pair["round_ratios"] == pytest.approx(ratios, abs=1e-4)
        assert pair["ratio_least"] == pytest.approx(min(ratios), abs=1e-4)
        assert pair["ratio_most"] == pytest.approx(max(ratios), abs=1e-4)
        assert pair["ratio"] == pytest.approx(np.median(ratios), abs=1e-4)
        assert pair["theirs"]["peak_rss_mb"] > 30 and pair["ours"]["peak_rss_mb"] > 30
        assert result["checks"][pair["peer"]]["max_score_difference"] <= result["tolerance"]
    assert result["ours"]["exactness"] == "mask" and result["ours"]["device_profile"] is False
    assert result["ours"]["settings"]["threads"] == result["threads"] == 1
    assert result["peers"]["openvino"]["precision"] == "fp32"
    assert list(result["absent"]) == [name for name in PEERS if name.startswith("anomalib")]
    assert all("hidden by a test" in reason for reason in result["absent"].values())
    shown = capsys.readouterr()
    assert shown.out.count("absent: anomalib") == 3 and "benchmarks/peers/README.md" in shown.out
    assert "6/6: one ONNX graph, OpenVINO, round 2" in shown.err
    assert_readme_shows(result, render(output.parent))


def assert_readme_shows(result: dict[str, Any], text: str) -> None:
    for pair in result["pairs"]:
        row = next(line for line in text.splitlines() if f" {pair['title']} |" in line)
        assert f"| {pair['ratio']:.2f} ({pair['ratio_least']:.2f} .. {pair['ratio_most']:.2f}) |" in row
    assert "Absent: anomalib, PyTorch (tiny)" in text and "no device profile" in text


@pytest.mark.usefixtures("no_anomalib")
def test_without_any_peer_the_reasons_are_the_error(
    tiny_bundle: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert peers(tiny_bundle, pictures, tmp_path / "x.json", "--peer", "anomalib-onnx") == 2
    error = capsys.readouterr().err
    assert "No peer can take part: anomalib-onnx: anomalib's PatchCore has no setting" in error
    assert "the neighbourhood is 1" in error


def test_who_begins_changes_with_every_block_and_round(
    tiny_bundle: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[tuple[str, list[int], list[int]]] = []

    class Recorded:
        def __init__(self, request: Request) -> None:
            self.name = request.contender

        def __enter__(self) -> Recorded:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def timed(self, items: range, *, warm_up: range) -> list[float]:
            order.append((self.name, list(items), list(warm_up)))
            return [1.0] * len(items)

        def peak_rss_mb(self) -> float:
            return 1.0

    monkeypatch.setattr(measure, "ContenderProcess", Recorded)
    monkeypatch.setattr(measure, "BLOCK_ITEMS", 4)
    monkeypatch.setattr(measure, "WARM_UP_ITEMS", 2)
    monkeypatch.setattr(measure, "_PAUSE_S", 0)
    ours = request_for(tiny_bundle, OURS, pictures, tmp_path / "work")
    for number in range(2):
        measure._round(ours, dataclasses.replace(ours, contender=FULL), number)
    first, second = [OURS, FULL], [FULL, OURS]
    names = [name for name, _, _ in order]
    assert names == [*first, *second, *first, *second, *first, *second]
    assert [(items, warm_up) for _, items, warm_up in order[:6:2]] == [
        ([0, 1, 2, 3], [0, 1]),
        ([4, 5, 6, 7], [4, 5]),
        ([8], [8]),
    ]


def test_a_process_that_dies_is_an_error_with_its_last_words(
    tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    request = request_for(tiny_bundle, "nobody", pictures, tmp_path / "work")
    with pytest.raises(PcError, match="nobody: its process ended with code 1: KeyError"):
        ContenderProcess(request)


def test_a_bundle_that_changes_meanwhile_is_refused(
    tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    request = request_for(tiny_bundle, OURS, pictures, tmp_path / "work")
    edit_manifest(tiny_bundle, lambda manifest: manifest.update(name="another"))
    with pytest.raises(PcError, match="has changed since"):
        ContenderProcess(request)


def test_without_onnx_the_one_graph_is_absent(
    tiny_bundle: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_for(tiny_bundle, "onnxruntime", pictures, tmp_path / "work")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(Absent, match="pip install onnx"):
        contenders._prepare_graph(request)


def test_only_float32_bundles_of_one_image_are_compared(
    copied_bundle: BundleMaker, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three = copied_bundle(batch=3)
    assert peers(three, pictures, tmp_path / "x.json", "--peer", "onnxruntime") == 2
    assert "takes 3 images at a time" in capsys.readouterr().err
    edit_manifest(three, lambda manifest: manifest["embedding"].update(precision="int8"))
    assert peers(three, pictures, tmp_path / "x.json") == 2
    assert "Expected an fp32 bundle" in capsys.readouterr().err


def test_weights_of_another_build_are_refused(
    tiny_bundle: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_manifest(tiny_bundle, lambda manifest: manifest["embedding"].update(weights_sha256="1" * 64))
    (tmp_path / "other.pth").write_bytes(b"other")
    arguments = ("--weights", str(tmp_path / "other.pth"))
    assert peers(tiny_bundle, pictures, tmp_path / "x.json", *arguments) == 2
    assert "is not the file that" in capsys.readouterr().err


def test_the_command_line_knows_every_peer() -> None:
    assert PEER_NAMES == PEERS


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize("path", ["torch", "onnx", "openvino"])
def test_anomalib_with_our_bank_scores_nearly_as_we_do(tmp_path: Path, realdata_dir: Path, path: str) -> None:
    pytest.importorskip("anomalib", reason="anomalib is not installed: it has an environment of its own")
    weights = realdata_dir / "weights" / "resnet18_torchvision_conv1-layer3.pth"
    images = sorted((realdata_dir / "mtd" / "MT_Free" / "Imgs").glob("*.jpg"))[:30]
    (tmp_path / "good").mkdir()
    for image in images:
        (tmp_path / "good" / image.name).write_bytes(image.read_bytes())
    from pcexport.cli import main as pcexport

    bundle = tmp_path / "tiles.pcbundle"
    command = ["build", str(tmp_path / "good"), "-o", str(bundle), "--weights", str(weights)]
    assert pcexport([*command, "--calibration", "none", "--no-evaluate", "--no-tune", "--index", "none"]) == 0
    tested = tmp_path / "tested"
    tested.mkdir()
    for image in sorted((realdata_dir / "mtd" / "MT_Blowhole" / "Imgs").glob("*.jpg"))[:6]:
        (tested / image.name).write_bytes(image.read_bytes())
    output = tmp_path / "peers.json"
    chosen = ("--peer", f"anomalib-{path}", "--weights", str(weights))
    assert peers(bundle, tested, output, *chosen) == 0
    result = json.loads(output.read_text(encoding="utf-8"))
    assert result["absent"] == {}
    check = result["checks"][f"anomalib-{path}"]
    # Its own resizing changes scores a little; a wrong bank, backbone or order of channels would by far more.
    assert 0 < check["mean_score_difference"] < 0.05
