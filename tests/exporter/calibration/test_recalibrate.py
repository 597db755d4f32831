"""`pcexport calibrate`: new thresholds for a finished bundle, and everything else as it was."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pcexport.bundle_writer import pack_bundle
from pcexport.calibration import recalibrate
from pcexport.calibration.false_alarm_rate import choose_threshold
from pcexport.calibration.seen import SeenImages
from pcexport.calibration.thresholds import NormalScores
from pcexport.cli import main
from pcexport.progress import Steps
from pcrun.bundle.bundle import Bundle
from pcrun.bundle.manifest import REPORT_NAME, SAMPLES_NAME, SCHEMA_VERSION, BaselineSpec
from pcrun.cli import main as pcrun
from pcrun.selftest import run_selftest
from tests.conftest import BundleMaker
from tests.contract.damage import edit_manifest, files_of
from tests.contract.detectors import load

for needed in ("hnswlib", "onnx"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: the tiny bundle is made with it")
from tests.data.make_tiny_bundle import (  # noqa: E402
    SCHEMA1_FIXTURE,
    SCHEMA2_FIXTURE,
    smooth_image,
    with_defect,
)

CHANGED = {"manifest.json", "manifest.sha256", REPORT_NAME, SAMPLES_NAME}


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """What one call of `pcexport calibrate` did."""

    code: int
    path: Path
    out: str
    err: str

    @property
    def bundle(self) -> Bundle:
        return Bundle.load(self.path)


def write_images(folder: Path, count: int, *, seed: int = 5) -> Path:
    """A folder of normal images; seed 0 begins with those that the tiny bundle was made from."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for number in range(count):
        cv2.imwrite(str(folder / f"{number:03d}.png"), smooth_image(rng))
    return folder


@pytest.fixture
def normals(tmp_path: Path) -> Path:
    return write_images(tmp_path / "normals", 40)


@pytest.fixture
def calibrate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Calibrated]:
    def run(bundle: Path, data: Path | str, *flags: str, report: bool = False, **where: Path) -> Calibrated:
        output = where.get("output", tmp_path / "out" / "new.pcbundle")
        target = () if where.get("in_place") else ("-o", str(output))
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            if not report:  # most of the time
                patch.setattr(recalibrate, "write_report", lambda path, *args: path.write_text("report"))
            code = main(["calibrate", str(bundle), str(data), *target, "--provider", "cpu", *flags])
        captured = capsys.readouterr()
        return Calibrated(code, where.get("in_place", output), captured.out, captured.err)

    return run


def exact_peaks(bundle: Path, folder: Path) -> tuple[list[float], list[float]]:
    """Image scores and largest map values by brute force."""
    detector = load(bundle, exactness="full")
    peaks = [detector.peaks(cv2.imread(str(path))) for path in sorted(folder.iterdir())]
    return [image for image, _ in peaks], [pixel for _, pixel in peaks]


class TestThresholds:
    def test_they_are_the_order_statistics_of_the_bundles_own_scores(
        self, calibrate: Any, tiny_bundle: Path, normals: Path
    ) -> None:
        got = calibrate(tiny_bundle, normals, "--false-alarm-rate", "0.1").bundle.manifest.scoring
        for spec, scores in zip(
            (got.threshold, got.pixel_threshold), exact_peaks(tiny_bundle, normals), strict=True
        ):
            expected = choose_threshold(scores, rate=0.1, method="holdout")
            assert spec.value == pytest.approx(expected.value, rel=1e-6)
            assert dataclasses.replace(spec, value=0) == dataclasses.replace(expected, value=0)
            assert spec.images == 40 and spec.rank == 37

    def test_the_deployed_detector_judges_by_them(
        self, calibrate: Any, tiny_bundle: Path, normals: Path
    ) -> None:
        done = calibrate(tiny_bundle, normals, "--false-alarm-rate", "0.1")
        detector = load(done.path)
        assert detector.threshold == done.bundle.manifest.scoring.threshold.value
        flagged = [detector(cv2.imread(str(path))).is_anomalous for path in sorted(normals.iterdir())]
        assert sum(flagged) == 3  # 40 - 37

    def test_the_rate_left_out_is_that_of_the_bundle(
        self, calibrate: Any, tiny_bundle: Path, normals: Path
    ) -> None:
        before = Bundle.load(tiny_bundle).manifest.scoring.threshold
        after = calibrate(tiny_bundle, normals).bundle.manifest.scoring.threshold
        assert after.false_alarm_rate_requested == before.false_alarm_rate_requested == 0.05

    def test_everything_else_of_the_bundle_is_as_it_was(
        self, calibrate: Any, tiny_bundle: Path, normals: Path
    ) -> None:
        before = files_of(tiny_bundle)
        done = calibrate(tiny_bundle, normals)
        after = files_of(done.path)
        assert files_of(tiny_bundle) == before
        assert {name for name in before if before[name] != after[name]} <= CHANGED
        assert before.keys() == after.keys()
        old, new = Bundle.load(tiny_bundle).manifest, done.bundle.manifest
        assert dataclasses.replace(new, scoring=old.scoring, files=old.files) == old

    def test_the_baseline_is_that_of_the_same_images(
        self, calibrate: Any, tiny_bundle: Path, normals: Path
    ) -> None:
        baseline = calibrate(tiny_bundle, normals).bundle.manifest.scoring.baseline
        detector = load(tiny_bundle, exactness="full")
        results = [detector(cv2.imread(str(path))) for path in sorted(normals.iterdir())]
        assert (baseline.method, baseline.images) == ("holdout", 40)
        assert baseline.image_scores == pytest.approx(sorted(r.image_score for r in results), rel=1e-5)
        medians = sorted(float(np.median(r.patch_scores)) for r in results)
        assert baseline.patch_medians == pytest.approx(medians, rel=1e-5)

    def test_equal_inputs_give_equal_bytes(
        self, calibrate: Any, tiny_bundle: Path, normals: Path, tmp_path: Path
    ) -> None:
        first = calibrate(tiny_bundle, normals, report=True)
        copied = shutil.copytree(normals, tmp_path / "elsewhere" / "normals")
        again = calibrate(tiny_bundle, copied, output=tmp_path / "again.pcbundle", report=True)
        assert files_of(first.path) == files_of(again.path)

    def test_the_history_keeps_them_all_the_oldest_first(
        self, calibrate: Any, tiny_bundle: Path, normals: Path, tmp_path: Path
    ) -> None:
        built = Bundle.load(tiny_bundle).manifest.scoring
        first = calibrate(tiny_bundle, normals)
        other = write_images(tmp_path / "others", 30, seed=6)
        second = calibrate(first.path, other, output=tmp_path / "second.pcbundle").bundle.manifest.scoring
        once = first.bundle.manifest.scoring
        assert [past.threshold for past in second.history] == [built.threshold, once.threshold]
        assert [past.pixel_threshold for past in second.history] == [
            built.pixel_threshold,
            once.pixel_threshold,
        ]
        assert [past.calibrated_on for past in second.history] == [None, once.calibrated_on]
        assert (once.calibrated_on.name, second.calibrated_on.name) == ("normals", "others")

    def test_a_bundle_without_thresholds_gets_its_first_ones(
        self, calibrate: Any, copied_bundle: Any, normals: Path
    ) -> None:
        done = calibrate(copied_bundle(thresholds=False), normals, "--false-alarm-rate", "0.1")
        scoring = done.bundle.manifest.scoring
        assert scoring.threshold is not None and scoring.pixel_threshold is not None
        assert scoring.history == ()

    @pytest.mark.parametrize("fixture", [SCHEMA1_FIXTURE, SCHEMA2_FIXTURE], ids=lambda path: path.stem)
    def test_bundles_of_earlier_schemas(self, calibrate: Any, normals: Path, fixture: Path) -> None:
        done = calibrate(fixture, normals)
        assert done.bundle.manifest.schema_version == SCHEMA_VERSION
        assert run_selftest(load(done.path)).passed

    def test_sixteen_bits_are_read_by_the_bundles_white_level(
        self, calibrate: Any, tiny_bundle: Path, normals: Path, tmp_path: Path
    ) -> None:
        edit_manifest(tiny_bundle, lambda m: m["preprocess"].update(white_level_16bit=4095))
        twelve_bits = tmp_path / "twelve_bits"
        twelve_bits.mkdir()
        for path in normals.iterdir():
            image = np.rint(cv2.imread(str(path)) * (4095 / 255)).astype(np.uint16)
            cv2.imwrite(str(twelve_bits / path.name), image)
        values = [
            calibrate(
                tiny_bundle, data, output=tmp_path / f"{data.name}.pcbundle"
            ).bundle.manifest.scoring.threshold.value
            for data in (normals, twelve_bits)
        ]
        assert values[0] == pytest.approx(values[1], rel=1e-6)


class TestWhatDependsOnThem:
    def test_golden_samples_have_the_verdicts_of_the_new_threshold(
        self, calibrate: Any, copied_bundle: Any, normals: Path
    ) -> None:
        old = copied_bundle(thresholds=False)
        assert [s.is_anomalous for s in Bundle.load(old).golden_samples().samples] == [False, False]
        done = calibrate(old, normals, "--false-alarm-rate", "0.05")
        threshold = done.bundle.manifest.scoring.threshold.value
        samples = done.bundle.golden_samples().samples
        assert [s.is_anomalous for s in samples] == [s.image_score > threshold for s in samples]
        assert samples[1].label == "defective" and samples[1].is_anomalous
        assert pcrun(["selftest", "--bundle", str(done.path), "--provider", "cpu"]) == 0

    def test_scores_of_golden_samples_stay(self, calibrate: Any, tiny_bundle: Path, normals: Path) -> None:
        before, after = (
            [(s.file, s.label, s.image_score, s.map_max) for s in Bundle.load(path).golden_samples().samples]
            for path in (tiny_bundle, calibrate(tiny_bundle, normals).path)
        )
        assert before == after

    def test_the_report_shows_the_new_threshold_and_the_one_before(
        self, calibrate: Any, tiny_bundle: Path, normals: Path
    ) -> None:
        done = calibrate(tiny_bundle, normals, "--false-alarm-rate", "0.2", report=True)
        page = (done.path / REPORT_NAME).read_text(encoding="utf-8")
        old = Bundle.load(tiny_bundle).manifest.scoring.threshold.value
        new = done.bundle.manifest.scoring.threshold.value
        assert old != new
        assert re.search(rf"its score is above <b>{new:.4f}</b>", page)
        before = page[page.index("Thresholds before") :]
        assert f"{old:.4f}" in before and f"{old:.4f}" not in page.replace(before, "")
        assert "normal images of normals that gave the threshold" in page

    def test_counts_of_the_old_threshold_are_dropped_and_the_auroc_stays(
        self, calibrate: Any, tiny_bundle: Path, normals: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        measured = {
            "images_normal": 9,
            "images_defective": 8,
            "image_auroc": 0.9375,
            "false_alarms": 1,
            "misses": 2,
        }
        edit_manifest(tiny_bundle, lambda m: m.update(accuracy=measured))
        done = calibrate(tiny_bundle, normals, report=True)
        accuracy = done.bundle.manifest.accuracy
        assert (accuracy.image_auroc, accuracy.false_alarms, accuracy.misses) == (0.9375, None, None)
        page = (done.path / REPORT_NAME).read_text(encoding="utf-8")
        assert "0.9375" in page and "were flagged" not in page and "were not flagged" not in page
        assert main(["inspect", str(done.path)]) == 0
        shown = capsys.readouterr().out
        assert "image AUROC 0.9375" in shown and "misses" not in shown and "earlier thresholds" in shown

    def test_the_digest_is_new_and_tuning_again_is_advised(
        self, calibrate: Any, tiny_bundle: Path, normals: Path
    ) -> None:
        done = calibrate(tiny_bundle, normals, "--json")
        assert json.loads(done.out)["digest"] == done.bundle.digest != Bundle.load(tiny_bundle).digest
        assert json.loads(done.out)["had_profile"] is False
        assert "run `pcrun tune` where the new bundle runs." in done.err

    def test_a_profile_of_this_machine_is_said_to_be_lost(
        self, calibrate: Any, tiny_bundle: Path, normals: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tune = ["tune", "--bundle", str(tiny_bundle), "--provider", "cpu", "--frames", "6", "--threads", "1"]
        assert pcrun(tune) == 0
        done = calibrate(tiny_bundle, normals)
        assert "here too" in done.err
        assert load(done.path).profile is None


class TestOutput:
    def test_in_place_takes_force(self, calibrate: Any, tiny_bundle: Path, normals: Path) -> None:
        before = files_of(tiny_bundle)
        refused = calibrate(tiny_bundle, normals, in_place=tiny_bundle)
        assert refused.code == 2 and "--force" in refused.err and files_of(tiny_bundle) == before
        done = calibrate(tiny_bundle, normals, "--force", in_place=tiny_bundle)
        assert done.code == 0
        assert done.bundle.manifest.scoring.calibrated_on.name == "normals"

    def test_an_existing_output_takes_force_too(
        self, calibrate: Any, tiny_bundle: Path, normals: Path, copied_bundle: Any
    ) -> None:
        other = copied_bundle()
        refused = calibrate(tiny_bundle, normals, output=other)
        assert refused.code == 2 and "exists already" in refused.err

    def test_a_zip_gives_a_zip_with_the_same_content(
        self, calibrate: Any, tiny_bundle: Path, normals: Path, tmp_path: Path
    ) -> None:
        packed = tmp_path / "packed.zip"
        pack_bundle(tiny_bundle, packed, force=False)
        from_folder = calibrate(tiny_bundle, normals)
        from_zip = calibrate(packed, normals, "--force", in_place=packed)
        assert packed.is_file() and "(zip)" in from_zip.out and "(directory)" in from_folder.out
        assert from_zip.bundle.digest == from_folder.bundle.digest

    @pytest.mark.parametrize("kind", ["directory", "zip"])
    def test_a_bundle_that_does_not_repeat_its_samples_leaves_the_old_one(
        self, calibrate: Any, tiny_bundle: Path, normals: Path, monkeypatch: Any, kind: str
    ) -> None:
        if kind == "zip":
            pack_bundle(tiny_bundle, tiny_bundle.with_suffix(".zip"), force=False)
            shutil.rmtree(tiny_bundle)
            tiny_bundle = tiny_bundle.with_suffix(".zip")
        digest, beside = Bundle.load(tiny_bundle).digest, sorted(tiny_bundle.parent.iterdir())

        def wrong(detector: Any) -> Any:
            report = run_selftest(detector)
            checks = tuple(dataclasses.replace(check, passed=False) for check in report.checks)
            return dataclasses.replace(report, checks=checks)

        monkeypatch.setattr(recalibrate, "run_selftest", wrong)
        done = calibrate(tiny_bundle, normals, "--force", in_place=tiny_bundle)
        assert done.code == 2 and "does not repeat" in done.err and "The old bundle is unchanged" in done.err
        assert Bundle.load(tiny_bundle).digest == digest
        assert sorted(tiny_bundle.parent.iterdir()) == beside


class TestImages:
    def test_images_of_the_memory_bank_are_refused_by_name(
        self, calibrate: Any, tiny_bundle: Path, normals: Path, tmp_path: Path
    ) -> None:
        seen = write_images(tmp_path / "seen", 3, seed=0)
        for path in seen.iterdir():
            shutil.copy(path, normals / f"seen_{path.name}")
        done = calibrate(tiny_bundle, normals)
        assert done.code == 2 and not done.path.exists()
        assert "3 of the images are in the memory bank, the first " in done.err
        assert str(normals / "seen_000.png") in done.err and "did not see" in done.err

    def test_what_all_images_have_in_common_proves_nothing(self, tiny_bundle: Path) -> None:
        """Several images whose corner is one and the same entry of the bank."""
        detector = load(tiny_bundle, exactness="full")
        rng, (known, other) = np.random.default_rng(5), detector.bundle.memory_bank[[3, 7]]
        seen = SeenImages(detector)
        for name in "abc":
            embedded = detector.embed(smooth_image(rng))
            embedded.embeddings[0] = known
            result = detector.score(embedded)
            assert result.patch_scores.min() == 0
            seen.look(Path(name), embedded.embeddings, result.patch_scores)
        assert seen.found() == []
        embedded.embeddings[1] = other  # that nobody else has
        seen.look(Path("d"), embedded.embeddings, detector.score(embedded).patch_scores)
        assert seen.found() == [Path("d")]

    @pytest.mark.parametrize("count, rate, missing", [(40, "0.01", 59), (19, "0.02", 30), (2, "0.05", 17)])
    def test_too_few_for_the_rate_are_refused_with_the_number_that_is_missing(
        self, calibrate: Any, tiny_bundle: Path, tmp_path: Path, count: int, rate: str, missing: int
    ) -> None:
        images = write_images(tmp_path / "few", count)
        done = calibrate(tiny_bundle, images, "--false-alarm-rate", rate)
        assert done.code == 2 and f"{missing} more" in done.err and "--allow-shortage" in done.err
        allowed = calibrate(tiny_bundle, images, "--false-alarm-rate", rate, "--allow-shortage")
        assert allowed.code == 0 and allowed.bundle.manifest.scoring.threshold.rank == count
        assert "cannot support" in allowed.err

    def test_a_warning_says_how_many_more_would_make_it_certain(
        self, calibrate: Any, tiny_bundle: Path, normals: Path
    ) -> None:
        done = calibrate(tiny_bundle, normals, "--false-alarm-rate", "0.05")
        assert done.code == 0 and "59 images could bring the bound to it. That is 19 more." in done.err

    def test_enough_images_give_no_warning(self, calibrate: Any, tiny_bundle: Path, tmp_path: Path) -> None:
        done = calibrate(tiny_bundle, write_images(tmp_path / "many", 59), "--false-alarm-rate", "0.05")
        assert done.code == 0 and "warning" not in done.err

    def test_one_image_gives_no_threshold_whatever_is_allowed(
        self, calibrate: Any, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        done = calibrate(tiny_bundle, write_images(tmp_path / "one", 1), "--allow-shortage")
        assert done.code == 2 and "at least 2 are needed" in done.err

    def test_unreadable_images_are_named_counted_and_do_not_count(
        self, calibrate: Any, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        images = write_images(tmp_path / "some", 20)
        (images / "broken.png").write_bytes(b"no image")
        done = calibrate(tiny_bundle, images)
        assert "left out: " in done.err and "broken.png" in done.err
        scoring = done.bundle.manifest.scoring
        assert (scoring.threshold.images, scoring.calibrated_on.images_skipped) == (20, 1)
        (images / "000.png").write_bytes(b"no image")
        (images / "001.png").write_bytes(b"no image")
        refused = calibrate(tiny_bundle, images, "--force")
        assert refused.code == 2 and "18 normal images cannot support" in refused.err

    def test_of_a_labelled_layout_the_normal_test_images_are_taken(
        self, calibrate: Any, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        root = tmp_path / "part"
        for folder in ("train", "test"):
            (root / folder).mkdir(parents=True)
        write_images(root / "train" / "good", 12, seed=0)
        no_test = calibrate(tiny_bundle, root)
        assert no_test.code == 2 and "no normal test images" in no_test.err
        write_images(root / "test" / "good", 20)
        (root / "test" / "spot").mkdir()
        spot = with_defect(smooth_image(np.random.default_rng(1)))
        cv2.imwrite(str(root / "test" / "spot" / "000.png"), spot)
        scoring = calibrate(tiny_bundle, root).bundle.manifest.scoring
        assert scoring.threshold.images == 20 and scoring.calibrated_on.name == "part"
        assert scoring.threshold.value < load(tiny_bundle)(spot).image_score

    def test_a_quoted_glob(self, calibrate: Any, tiny_bundle: Path, normals: Path) -> None:
        done = calibrate(tiny_bundle, f"{normals}/00*.png", "--false-alarm-rate", "0.1")
        assert done.bundle.manifest.scoring.threshold.images == 10


@pytest.mark.parametrize("rate", ["0", "1", "-0.1", "nan", "many"])
def test_a_rate_that_is_none_is_refused(calibrate: Any, tiny_bundle: Path, normals: Path, rate: str) -> None:
    done = calibrate(tiny_bundle, normals, "--false-alarm-rate", rate)
    assert done.code == 2 and "Traceback" not in done.err and not done.path.exists()


@pytest.mark.parametrize(("factor", "warned"), [(1.0, False), (1.15, False), (1.6, True), (0.6, True)])
def test_images_of_other_parts_are_wondered_about(
    made_bundle: BundleMaker, factor: float, warned: bool
) -> None:
    manifest = Bundle.load(made_bundle()).manifest
    scores = [1.0, 1.1, 1.2]
    baseline = BaselineSpec("holdout", 3, tuple(scores), tuple(scores))
    manifest = dataclasses.replace(manifest, scoring=dataclasses.replace(manifest.scoring, baseline=baseline))
    steps = Steps(quiet=True)
    found = NormalScores([factor * score for score in scores], scores)
    recalibrate._warn_of_other_parts(manifest, found, steps)
    assert any("are these the same parts" in text for text in steps.warnings) == warned
