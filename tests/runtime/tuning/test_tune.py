"""`pcrun tune`: what is measured, what is chosen, what is stored, and what the next run makes of it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcrun.bundle.bundle import Bundle
from pcrun.detector import AnomalyDetector
from pcrun.errors import BackendError, BundleError, SourceError
from pcrun.search import SEARCH_NAMES
from pcrun.tuning import tune as tuning
from pcrun.tuning.profile import RunSettings, Trial, find_profile
from pcrun.tuning.tune import EF_CANDIDATES, GOLDEN, TuneContent, golden_content, tune
from tests.conftest import BundleMaker
from tests.contract.damage import edit_manifest, forge
from tests.runtime.conftest import Run

for needed in ("hnswlib", "onnx", "onnxruntime"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: the tiny bundle is made with it")
from tests.data.make_tiny_bundle import smooth_image  # noqa: E402

# Enough for the command; a trial of the tiny bundle takes milliseconds.
FRAMES = ("--frames", "6", "--provider", "cpu")
CONTENT = TuneContent((smooth_image(np.random.default_rng(0)),), "an image")


@pytest.fixture
def bundle(made_bundle: BundleMaker) -> Bundle:
    return Bundle.load(made_bundle())


class Clock:
    """Settings take the milliseconds that a rule says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rule: Any) -> None:
        self.scored: list[RunSettings] = []

        def milliseconds(detector: AnomalyDetector, images: Any) -> list[float]:
            assert detector.settings is not None
            self.scored += [detector.settings] * len(images)
            return [float(rule(detector.settings))] * len(images)

        monkeypatch.setattr(tuning, "_milliseconds", milliseconds)


class TestChoice:
    def test_every_engine_and_ef_is_tried(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        Clock(monkeypatch, lambda settings: 1)
        profile = tune(bundle, CONTENT, provider="cpu", images=6)
        tried = {(t.settings.search, t.settings.ef) for t in profile.trials}
        expected = {(name, None) for name in SEARCH_NAMES if name != "hnsw"}
        assert tried == expected | {("hnsw", ef) for ef in EF_CANDIDATES}
        assert {t.settings.spinning for t in profile.trials} == {True, False}
        # None twice.
        assert len({t.settings for t in profile.trials}) == len(profile.trials)

    @pytest.mark.parametrize("fastest", [("hnsw", 4), ("exact", None), ("exact_graph", None)], ids=str)
    def test_the_fastest_wins(
        self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, fastest: tuple[str, int | None]
    ) -> None:
        Clock(monkeypatch, lambda s: 5 - 2 * ((s.search, s.ef) == fastest) - (not s.spinning))
        profile = tune(bundle, CONTENT, provider="cpu", threads=2, images=6)
        assert (profile.settings.search, profile.settings.ef) == fastest
        assert not profile.settings.spinning
        assert (profile.median_ms, profile.p90_ms) == (2, 2)

    @pytest.mark.parametrize("fastest", [(8, 8), (8, 4), (8, 1), (4, 8), (4, 2)])
    def test_the_fastest_pair_of_threads_wins(
        self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, fastest: tuple[int, int]
    ) -> None:
        Clock(monkeypatch, lambda s: 5 - 2 * ((s.threads, s.search_threads) == fastest))
        settings = tune(bundle, CONTENT, provider="cpu", threads=8, images=6).settings
        assert (settings.threads, settings.search_threads) == fastest

    def test_never_more_threads_than_allowed(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        Clock(monkeypatch, lambda s: 10 - s.threads)
        profile = tune(bundle, CONTENT, provider="cpu", threads=3, images=6)
        assert {max(t.settings.threads, t.settings.search_threads) for t in profile.trials} <= {1, 3}

    def test_the_best_few_are_measured_again(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        """A first trial may be lucky: the last word has the comparison in turns."""
        lucky = 0

        def rule(settings: RunSettings) -> float:
            nonlocal lucky
            if settings.search != "exact":
                return 5
            lucky += 1
            return 1 if lucky <= 2 else 50

        Clock(monkeypatch, rule)
        profile = tune(bundle, CONTENT, provider="cpu", threads=1, images=6)
        first = next(t for t in profile.trials if t.settings.search == "exact")
        assert first.median_ms == 1 and profile.settings.search != "exact"

    def test_what_is_hopeless_is_given_up_early(
        self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = Clock(monkeypatch, lambda s: 100 if s.search == "exact" else 5)
        profile = tune(bundle, CONTENT, provider="cpu", threads=1, images=50)
        assert clock.scored.count(next(s for s in clock.scored if s.search == "exact")) < 10
        # It is in the list all the same.
        assert "exact" in {t.settings.search for t in profile.trials}

    def test_an_engine_that_does_not_work_here_is_left_out(
        self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*arguments: Any, **options: Any) -> None:
            raise BackendError("no")

        Clock(monkeypatch, lambda settings: 1)
        monkeypatch.setattr("pcrun.scoring.open.GraphSearch", refuse)
        profile = tune(bundle, CONTENT, provider="cpu", threads=1, images=6)
        assert "exact_graph" not in {t.settings.search for t in profile.trials}

    def test_an_unknown_provider_is_an_error(self, bundle: Bundle) -> None:
        with pytest.raises(BackendError, match="Unknown provider 'tpu'"):
            tune(bundle, CONTENT, provider="tpu")

    def test_trials_are_told_one_by_one(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        Clock(monkeypatch, lambda settings: 1)
        told: list[Trial] = []
        profile = tune(bundle, CONTENT, provider="cpu", threads=1, images=6, say=told.append)
        assert tuple(told) == profile.trials


class TestContent:
    def test_golden_samples_are_the_normal_ones(self, bundle: Bundle) -> None:
        content = golden_content(bundle)
        assert content.name == GOLDEN and [image.shape for image in content.images] == [(32, 48, 3)]

    def test_a_bundle_without_normal_ones_needs_images(self, tiny_bundle: Path) -> None:
        golden = json.loads((tiny_bundle / "samples/expected.json").read_bytes())
        golden["samples"] = [sample for sample in golden["samples"] if sample["label"] != "normal"]
        forge(tiny_bundle, "samples/expected.json", json.dumps(golden).encode())
        with pytest.raises(SourceError, match=r"no normal golden sample.*--images"):
            golden_content(Bundle.load(tiny_bundle))

    def test_a_bundle_without_any_says_so(self, tiny_bundle: Path) -> None:
        edit_manifest(tiny_bundle, lambda m: m["files"].pop("samples/expected.json"))
        with pytest.raises(BundleError, match="holds no golden samples"):
            golden_content(Bundle.load(tiny_bundle))

    def test_few_images_are_shown_again_and_again(
        self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = Clock(monkeypatch, lambda settings: 1)
        images = tuple(smooth_image(np.random.default_rng(seed)) for seed in range(4))
        profile = tune(bundle, TuneContent(images, "four"), provider="cpu", threads=1, images=10)
        assert (profile.images, profile.content) == (10, "four")
        assert clock.scored.count(profile.trials[0].settings) >= 10

    def test_a_bundle_without_thresholds_can_be_tuned(
        self, made_bundle: BundleMaker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Clock(monkeypatch, lambda settings: 1)
        assert tune(Bundle.load(made_bundle(thresholds=False)), CONTENT, provider="cpu", images=6).trials


class TestCommand:
    def test_a_real_run_stores_a_profile_that_the_next_run_uses(
        self, run: Run, tiny_bundle: Path, images: Path, profile_cache: Path
    ) -> None:
        # Of a named provider: another backend may be faster, and its scores differ by rounding.
        arguments = ("--bundle", tiny_bundle, "--images", images, "--provider", "cpu")
        before = run(*arguments)
        assert before[2] == ""

        code, out, err = run("tune", "--bundle", tiny_bundle, *FRAMES)
        assert code == 0 and err == ""
        (path,) = profile_cache.iterdir()
        assert f"stored as {path}" in out
        for name in SEARCH_NAMES:
            assert name in out
        profile = find_profile(Bundle.load(tiny_bundle), provider="cpu")
        assert profile is not None and profile.content == GOLDEN and profile.images == 6
        assert profile.settings in {trial.settings for trial in profile.trials}

        code, out, err = run(*arguments)
        assert code == 0 and err.count("\n") == 1 and ", device profile\n" in err
        assert f"search {profile.settings.search}" in err and f"threads {profile.settings.threads}" in err
        for line, earlier in zip(out.splitlines(), before[1].splitlines(), strict=True):
            now, then = json.loads(line), json.loads(earlier)
            assert now["search"] == profile.settings.search
            assert (now["verdict"], now["regions"]) == (then["verdict"], then["regions"])
            assert now["score"] == pytest.approx(then["score"], rel=1e-5)

        assert run(*arguments, "--no-profile")[2] == ""
        # Another request.
        assert "no device profile (`pcrun tune` makes one)" in run(*arguments[:-2])[2]

    def test_an_error_before_the_first_trial_leaves_no_head_of_a_table(
        self, run: Run, tiny_bundle: Path
    ) -> None:
        code, out, err = run("tune", "--bundle", tiny_bundle, "--provider", "cpu", "--precision", "bf16")
        assert code == 2 and out == "" and "does not compute in bf16" in err

    def test_json(self, run: Run, tiny_bundle: Path, profile_cache: Path) -> None:
        code, out, err = run("tune", "--bundle", tiny_bundle, *FRAMES, "--json")
        told = json.loads(out)
        assert code == 0 and err == "" and told["budget_met"] is True
        stored = json.loads(Path(told["profile_path"]).read_bytes())
        assert stored == {k: v for k, v in told.items() if k not in ("profile_path", "budget_met")}
        assert Path(told["profile_path"]).parent == profile_cache
        assert told["settings"]["search"] in SEARCH_NAMES and len(told["trials"]) >= len(SEARCH_NAMES)
        assert told["key"]["provider"] == "cpu"

    @pytest.mark.parametrize("as_json", [False, True])
    def test_budget(self, run: Run, tiny_bundle: Path, profile_cache: Path, as_json: bool) -> None:
        options = ("--json",) if as_json else ()
        code, out, err = run("tune", "--bundle", tiny_bundle, *FRAMES, "--budget-ms", 1e6, *options)
        assert code == 0 and err == ""
        code, out, err = run("tune", "--bundle", tiny_bundle, *FRAMES, "--budget-ms", 1e-6, *options)
        assert code == 1 and "the budget is 1e-06 ms" in err
        assert not as_json or json.loads(out)["budget_met"] is False
        # Too slow is still the fastest there is.
        assert len(list(profile_cache.iterdir())) == 1

    def test_images_to_measure_with(self, run: Run, tiny_bundle: Path, images: Path) -> None:
        code, out, _ = run("tune", "--bundle", tiny_bundle, *FRAMES, "--images", images, "--json")
        assert code == 0 and json.loads(out)["content"] == "2 images"

    def test_the_bundle_may_stand_before_the_command(self, run: Run, tiny_bundle: Path) -> None:
        assert run("--bundle", tiny_bundle, "tune", *FRAMES)[0] == 0

    def test_threads(self, run: Run, tiny_bundle: Path) -> None:
        _, out, _ = run("tune", "--bundle", tiny_bundle, *FRAMES, "--threads", 1, "--json")
        assert {trial["settings"]["threads"] for trial in json.loads(out)["trials"]} == {1}

    @pytest.mark.parametrize(
        "arguments, words",
        [
            (["--frames", "5"], "--frames"),
            (["--budget-ms", "0"], "--budget-ms"),
            (["--budget-ms", "-3"], "--budget-ms"),
            (["--budget-ms", "soon"], "--budget-ms"),
            (["--images", "gone.png"], "gone.png"),
            (["--provider", "tpu"], "--provider"),
            (["--search", "hnsw"], "--search"),
        ],
    )
    def test_wrong_use_is_named(
        self, run: Run, tiny_bundle: Path, profile_cache: Path, arguments: list[str], words: str
    ) -> None:
        code, out, err = run("tune", "--bundle", tiny_bundle, *arguments)
        assert code == 2 and out == "" and words in err and "Traceback" not in err
        assert not profile_cache.exists()

    def test_no_bundle(self, run: Run) -> None:
        code, out, err = run("tune", "--bundle", "gone.pcbundle")
        assert code == 2 and out == "" and "gone.pcbundle" in err and err.count("\n") == 1

    def test_a_folder_without_images(self, run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        code, out, err = run("tune", "--bundle", tiny_bundle, "--images", tmp_path / "empty")
        assert code == 2 and out == "" and err.startswith("pcrun: error: ") and err.count("\n") == 1

    def test_an_image_that_cannot_be_read(self, run: Run, tiny_bundle: Path, images: Path) -> None:
        (images / "a.png").write_bytes(b"no image")
        code, out, err = run("tune", "--bundle", tiny_bundle, "--images", images)
        assert code == 2 and out == "" and "a.png" in err and err.count("\n") == 1

    def test_a_cache_folder_that_cannot_be_made(
        self, run: Run, tiny_bundle: Path, images: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PCRUN_CACHE", str(images / "a.png"))
        code, out, err = run("tune", "--bundle", tiny_bundle, *FRAMES)
        assert code == 2 and "profile folder" in err and "$PCRUN_CACHE" in err and err.count("\n") == 1
        # Said before anything is measured.
        assert out == ""
        # Nothing of that stops a run.
        assert run("--bundle", tiny_bundle, "--images", images)[0] == 0

    def test_a_damaged_profile_is_a_warning_and_the_run_goes_on(
        self, run: Run, tiny_bundle: Path, images: Path, profile_cache: Path
    ) -> None:
        run("tune", "--bundle", tiny_bundle, *FRAMES)
        (path,) = profile_cache.iterdir()
        path.write_bytes(path.read_bytes()[:-20])
        code, out, err = run("--bundle", tiny_bundle, "--images", images, "--provider", "cpu")
        assert code == 0 and len(out.splitlines()) == 2
        assert err.startswith("pcrun: warning: The device profile") and err.count("\n") == 1

    def test_the_selftest_says_whether_it_used_a_profile(
        self, run: Run, tiny_bundle: Path, profile_cache: Path
    ) -> None:
        run("tune", "--bundle", tiny_bundle, *FRAMES)
        with_profile, without = (
            json.loads(run("selftest", "--bundle", tiny_bundle, "--provider", "cpu", "--json", *options)[1])
            for options in ((), ("--no-profile",))
        )
        assert (with_profile["profile"], without["profile"]) == (True, False)
        assert with_profile["passed"] and without["passed"]


def test_settings_of_a_profile_open_a_detector_with_exactly_them(bundle: Bundle) -> None:
    settings = RunSettings("cpu", "fp32", "hnsw", 3, 2, 1, spinning=False)
    detector = AnomalyDetector.with_settings(bundle, settings, limits=(1.0, 2.0))
    assert (detector.threshold, detector.pixel_threshold, detector.search) == (1.0, 2.0, "hnsw")
    assert detector.settings == settings and detector.exactness == "mask"
    exact = detector.with_exact_search()
    assert exact.settings == dataclasses.replace(settings, search="exact", ef=None)
    assert exact.exactness == "full"
