"""`pcexport eval` from end to end, on generated images and a real browser."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
pytest.importorskip("jinja2", reason="jinja2 is not installed")
from sklearn.metrics import average_precision_score, roc_auc_score

from pcexport import cli
from pcrun.detector import AnomalyDetector
from tests.browser import chromium, complaints
from tests.conftest import BundleMaker
from tests.data.make_tiny_bundle import DEFECT_XYWH, smooth_image, with_defect
from tests.exporter.report.test_report import _Page

Eval = Callable[..., tuple[int, str, str]]


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str]) -> Eval:
    """Runs the command; gives exit code, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.main(["eval", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """12 normal images and 9 with a bright square, as MVTec AD has them; one image cannot be read."""
    root, rng = tmp_path / "parts", np.random.default_rng(21)
    write(root / "train" / "good" / "0.png", smooth_image(rng))
    x, y, width, height = DEFECT_XYWH
    for number in range(12):
        write(root / "test" / "good" / f"{number:02d}.png", smooth_image(rng))
    for number in range(9):
        kind = "spot" if number % 3 else "glare"
        image = smooth_image(rng)
        mask = np.zeros(image.shape[:2], np.uint8)
        mask[y : y + height, x : x + width] = 255
        write(root / "test" / kind / f"{number:02d}.png", with_defect(image))
        write(root / "ground_truth" / kind / f"{number:02d}_mask.png", mask)
    return root


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_figures_are_those_of_the_exported_scores(
    tiny_bundle: Path, data: Path, tmp_path: Path, evaluate: Eval
) -> None:
    report = tmp_path / "out" / "report.html"
    code, out, err = evaluate(tiny_bundle, data, "-o", report, "--provider", "cpu")
    assert code == 0, err
    figures = json.loads(report.with_suffix(".json").read_text(encoding="utf-8"))
    rows = rows_of(report.with_suffix(".csv"))
    truth = [row["label"] == "defective" for row in rows]
    scores = [float(row["score"]) for row in rows]
    assert (len(truth), sum(truth)) == (21, 9)
    image = figures["metrics"]["image"]
    assert image["auroc"]["value"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert image["aupr"]["value"] == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    called = [row["verdict"] == "anomalous" for row in rows]
    found = figures["metrics"]["confusion"]
    assert found["true_positives"] == sum(c and t for c, t in zip(called, truth, strict=True))
    assert f"{image['auroc']['value']:.4f}" in out
    assert figures["images"]["defective"] == 9 and set(figures["metrics"]["classes"]) == {"glare", "spot"}


def test_scores_are_the_runtimes(tiny_bundle: Path, data: Path, tmp_path: Path, evaluate: Eval) -> None:
    report = tmp_path / "report.html"
    evaluate(tiny_bundle, data, "-o", report, "--provider", "cpu")
    detector = AnomalyDetector.load(tiny_bundle, provider="cpu")
    for row in rows_of(report.with_suffix(".csv")):
        image = cv2.imread(str(data / row["image"]))
        assert image is not None
        assert float(row["score"]) == pytest.approx(detector(image).image_score, rel=1e-6)


def test_the_report_needs_nothing_else(tiny_bundle: Path, data: Path, tmp_path: Path, evaluate: Eval) -> None:
    report = tmp_path / "report.html"
    evaluate(tiny_bundle, data, "-o", report)
    page = report.read_text(encoding="utf-8")
    parsed = _Page(page)
    assert not {"link", "iframe", "object"} & {tag for tag, _ in parsed.tags}
    for tag, attributes in parsed.tags:
        for name in ("src", "href", "srcset", "action"):
            assert name not in attributes or str(attributes[name]).startswith("data:image/jpeg;base64,"), tag
    assert "url(" not in page and "@import" not in page and "fetch(" not in page
    assert "NaN" not in page and ">nan<" not in page.lower()
    for name in ("Worst misses", "Worst false alarms", "Gallery", "ROC curve", "Latency", "Environment"):
        assert name in page


def test_images_without_labels(tiny_bundle: Path, data: Path, tmp_path: Path, evaluate: Eval) -> None:
    report = tmp_path / "report.html"
    code, out, err = evaluate(tiny_bundle, data / "test" / "spot", "-o", report)
    assert code == 0 and "no labelled images" in err
    figures = json.loads(report.with_suffix(".json").read_text(encoding="utf-8"))
    assert figures["metrics"] is None and figures["images"]["unlabelled"] == 6
    flagged = [row["verdict"] for row in rows_of(report.with_suffix(".csv"))].count("anomalous")
    assert f"{flagged} of 6" in out
    assert f"<b>{flagged} of 6</b> images would be called anomalous" in report.read_text(encoding="utf-8")


@pytest.mark.parametrize("missing", ["good", "glare spot"])
def test_one_kind_alone_is_marked_as_undefined(
    tiny_bundle: Path, data: Path, tmp_path: Path, evaluate: Eval, missing: str
) -> None:
    for kind in missing.split():
        for path in [*(data / "test" / kind).iterdir(), *(data / "ground_truth").glob(f"{kind}/*")]:
            path.unlink()
    report = tmp_path / "report.html"
    code, out, _ = evaluate(tiny_bundle, data, "-o", report)
    assert code == 0 and "not defined" in out
    page = report.read_text(encoding="utf-8")
    assert "not defined: there are no" in page and "nan" not in out.lower()


def test_a_mask_of_another_size(tiny_bundle: Path, data: Path, evaluate: Eval) -> None:
    write(data / "ground_truth" / "spot" / "01_mask.png", np.full((5, 7), 255, np.uint8))
    code, _, err = evaluate(tiny_bundle, data)
    assert code == 2 and "01_mask.png" in err and "7x5" in err


def test_defects_without_masks_are_counted(tiny_bundle: Path, data: Path, evaluate: Eval) -> None:
    (data / "ground_truth" / "spot" / "01_mask.png").unlink()
    code, _, err = evaluate(tiny_bundle, data)
    assert code == 0 and "1 defective image has no mask, 01.png: it is left out" in err


def test_images_of_the_bank_are_noticed(
    made_bundle: BundleMaker, tmp_path: Path, evaluate: Eval, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, folder = made_bundle(), tmp_path / "parts"
    rng = np.random.default_rng(4)
    for number in range(3):
        write(folder / f"{number}.png", smooth_image(rng))
    detector = AnomalyDetector.load(bundle, provider="cpu")
    image = cv2.imread(str(folder / "1.png"))
    assert image is not None
    of_the_bank = detector.embed(image).embeddings[:5]
    assert "memory bank" not in evaluate(bundle, folder, "--provider", "cpu")[2]

    # The same image, as if the bundle had been built from it: patches of it are at distance 0.
    real = AnomalyDetector.score

    def score(self: AnomalyDetector, embedded: Any) -> Any:
        result = real(self, embedded)
        if np.array_equal(embedded.embeddings[:5], of_the_bank):
            result.patch_scores.flat[:5] = 0
        return result

    monkeypatch.setattr(AnomalyDetector, "score", score)
    err = evaluate(bundle, folder, "--provider", "cpu")[2]
    assert "1 of the images are in the memory bank, the first 1.png" in err


def test_normal_images_to_build_from_are_not_taken_for_tests(
    tiny_bundle: Path, data: Path, evaluate: Eval
) -> None:
    for path in (data / "test" / "good").iterdir():
        path.unlink()
    code, _, err = evaluate(tiny_bundle, data)
    assert code == 0 and "the 1 normal images of parts are those that bundles are built from" in err


def test_an_unreadable_image_is_left_out_and_counted(tiny_bundle: Path, data: Path, evaluate: Eval) -> None:
    (data / "test" / "good" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    code, out, err = evaluate(tiny_bundle, data, "--json")
    assert code == 0 and "torn.png" in err
    assert json.loads(out)["images"]["skipped"] == 1
    code, _, err = evaluate(tiny_bundle, data, "--strict")
    assert code == 2 and "torn.png" in err


def test_bundles_side_by_side(made_bundle: BundleMaker, data: Path, tmp_path: Path, evaluate: Eval) -> None:
    one, other = made_bundle(), made_bundle(seed=5)
    report = tmp_path / "compared.html"
    code, out, err = evaluate("--compare", one, one, other, data, "-o", report)
    assert code == 0, err
    compared = json.loads(report.with_suffix(".json").read_text(encoding="utf-8"))
    assert len(compared) == 3
    same, different = compared[1]["differences"], compared[2]["differences"]
    assert {d["value"] for d in same.values()} == {0.0}
    # Nothing differs in any resample: there is no interval, and no certainty.
    assert {d["low"] for d in same.values()} == {None}
    aurocs = [bundle["metrics"]["image"]["auroc"]["value"] for bundle in compared]
    assert different["image_auroc"]["value"] == pytest.approx(aurocs[2] - aurocs[0])
    assert "side by side" in report.read_text(encoding="utf-8").lower() and "MB" in out


def test_bundles_of_one_name_are_told_apart_by_their_files(
    copied_bundle: BundleMaker, data: Path, tmp_path: Path, evaluate: Eval
) -> None:
    bundles = [copied_bundle().rename(tmp_path / f"{name}.pcbundle") for name in ("monday", "tuesday")]
    (tmp_path / "old").mkdir()
    older = copied_bundle().rename(tmp_path / "old" / "monday.pcbundle")
    report = tmp_path / "compared.html"
    code, out, _ = evaluate("--compare", *bundles, older, data, "-o", report)
    assert code == 0
    heads = [str(bundles[0]), "tuesday", str(older)]
    assert all(f">{head}</th>" in report.read_text(encoding="utf-8") for head in heads)
    assert "tuesday" in out
    compared = json.loads(report.with_suffix(".json").read_text(encoding="utf-8"))
    assert [row["bundle"]["file"] for row in compared] == ["monday", "tuesday", "monday"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["only.pcbundle"], "Expected BUNDLE DATA, got 1 argument."),
        (["a.pcbundle", "b.pcbundle", "data"], "Expected BUNDLE DATA, got 3"),
        (["--compare", "a.pcbundle", "data"], "Expected --compare BUNDLE BUNDLE"),
        (["a.pcbundle", "data", "-o", "report.txt"], "does not end in .html"),
        (["nothing.pcbundle", "nowhere"], "There is no folder nowhere"),
    ],
)
def test_wrong_use(evaluate: Eval, arguments: list[str], message: str) -> None:
    code, _, err = evaluate(*arguments)
    assert code == 2 and message in err


def test_the_slider_moves_the_verdicts(tiny_bundle: Path, data: Path, tmp_path: Path, evaluate: Eval) -> None:
    report = tmp_path / "report.html"
    evaluate(tiny_bundle, data, "-o", report)
    rows = rows_of(report.with_suffix(".csv"))

    def expected(threshold: float) -> list[int]:
        above = [row["label"] for row in rows if float(row["score"]) > threshold]
        return [above.count(label) for label in ("normal", "defective")]

    with chromium(tmp_path) as browser:
        browser.get(report.as_uri())

        def cell(identity: str) -> str:
            return str(browser.find_element("id", identity).text)

        before = cell("false-positives"), cell("true-positives")
        assert before == tuple(map(str, expected(float(rows[0]["threshold"]))))
        for place in (0, 350, 1000):
            script = "const s = document.getElementById('threshold'); s.value = arguments[0];"
            browser.execute_script(script + " s.dispatchEvent(new Event('input'))", place)
            chart: Any = browser.find_element("css selector", "#scores svg")
            low, high = (float(chart.get_attribute(f"data-{end}")) for end in ("low", "high"))
            wanted = expected(low + place / 1000 * (high - low))
            assert [int(cell("false-positives")), int(cell("true-positives"))] == wanted
        assert browser.find_elements("css selector", "#scores .moving")
        browser.find_element("id", "threshold-reset").click()
        assert (cell("false-positives"), cell("true-positives")) == before
        assert not browser.find_elements("css selector", "#scores .moving")
        assert complaints(browser) == []
