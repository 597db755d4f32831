"""`pcrun` as a line integrator meets it: arguments, the bundle that is meant, and help."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pcrun
from pcrun.backends.session import PROVIDERS
from pcrun.commands import options as cli_options
from pcrun.commands.run import find_bundle
from pcrun.commands.support import spread_values
from pcrun.errors import BundleError
from pcrun.scoring.scorer import EXACTNESS_LEVELS
from pcrun.search import SEARCH_NAMES
from pcrun.sinks.pictures import MAP_FORMATS
from pcrun.sinks.text import FORMATS
from pcrun.sources.view import ROTATIONS_DEG
from tests.contract.damage import forge
from tests.runtime.conftest import Run


class TestSpreadValues:
    @pytest.mark.parametrize(
        "given, spread",
        [
            ("--images a b c", "--images a --images b --images c"),
            ("--images a b --threads 2", "--images a --images b --threads 2"),
            ("--threads 2 --images a b", "--threads 2 --images a --images b"),
            ("--images a --images b c", "--images a --images b --images c"),
            ("--images=a b", "--images=a b"),
            ("--images --threads 2", "--images --threads 2"),
            ("--images a - b", "--images a --images - --images b"),
            ("--other a b", "--other a b"),
            ("", ""),
        ],
    )
    def test_table(self, given: str, spread: str) -> None:
        assert spread_values(given.split(), "--images") == spread.split()


class TestArguments:
    def test_version(self, run: Run) -> None:
        assert run("--version") == (0, f"pcrun, version {pcrun.__version__}\n", "")

    @pytest.mark.parametrize(
        "arguments, words",
        [
            (["--search", "exact", "--ef", "4"], "With --search exact it does nothing"),
            (["--search", "quantised", "--ef", "4"], "With --search quantised it does nothing"),
            (["--exactness", "full", "--search", "quantised"], "--exactness full needs an exact search"),
            (["--exactness", "full", "--search", "hnsw"], "--exactness full needs an exact search"),
            (["--exactness", "full", "--ef", "4"], "--exactness full needs an exact search"),
        ],
    )
    def test_options_that_contradict_each_other(self, run: Run, arguments: list[str], words: str) -> None:
        code, out, err = run("--bundle", "x.pcbundle", "--images", "a.png", *arguments)
        assert code == 2 and out == "" and words in err and "Traceback" not in err

    @pytest.mark.parametrize("flag", ["--help", "-h"])
    def test_help_names_every_option_and_the_exit_codes(self, run: Run, flag: str) -> None:
        code, out, err = run(flag)
        assert code == 0 and err == ""
        for word in (
            "--bundle",
            "--images",
            "--video",
            "--camera",
            "--fail-on-anomaly",
            "--search",
            "--exactness",
            "--no-profile",
            "selftest",
            "tune",
            "Exit codes",
        ):
            assert word in out

    def test_the_choices_are_those_of_the_runtime(self) -> None:
        """Written down twice, because --help must not wait for numpy."""
        assert ("auto", *SEARCH_NAMES) == cli_options.SEARCH_CHOICES
        assert cli_options.EXACTNESS_LEVELS == EXACTNESS_LEVELS
        assert ("auto", *PROVIDERS) == cli_options.PROVIDER_NAMES
        assert cli_options.FORMATS == FORMATS and cli_options.MAP_FORMATS == MAP_FORMATS
        assert cli_options.ROTATIONS_DEG == ROTATIONS_DEG

    def test_help_and_import_are_quiet_and_load_nothing_heavy(self) -> None:
        script = (
            "import sys, pcrun, pcrun.cli\n"
            "code = pcrun.cli.main(['selftest', '--help'])\n"
            "heavy = {'numpy', 'cv2', 'onnxruntime', 'hnswlib', 'torch'} & set(sys.modules)\n"
            "sys.exit(f'loaded {heavy}' if heavy else code)\n"
        )
        process = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
        )
        assert (process.returncode, process.stderr) == (0, "")

    def test_importing_everything_prints_nothing(self) -> None:
        script = "import pcrun; pcrun.AnomalyDetector, pcrun.Bundle; import pcrun.commands.run"
        process = subprocess.run(
            [sys.executable, "-W", "error", "-c", script],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (process.returncode, process.stdout, process.stderr) == (0, "", "")

    @pytest.mark.parametrize(
        "sources",
        [[], ["--images", "a.png", "--video", "v.mp4"], ["--video", "v.mp4", "--camera", "0"],
         ["--images", "a.png", "--camera", "0"]],
        ids=["none", "images+video", "video+camera", "images+camera 0"],
    )  # fmt: skip
    def test_exactly_one_source(self, run: Run, sources: list[str]) -> None:
        code, out, err = run("--bundle", "x.pcbundle", *sources)
        assert code == 2 and out == ""
        assert "exactly one of --images, --video, --camera, --watch or --stdin-frames" in err

    @pytest.mark.parametrize(
        "arguments, words",
        [
            (["--images", "x", "--map-format", "png"], "--map-format does nothing without --save-maps"),
            (["--images", "x", "--video-fps", "5"], "--video-fps does nothing without --save-video"),
            (["--images", "x", "--evidence-mb", "9"], "--evidence-mb does nothing without --evidence"),
            (["--images", "x", "--webhook-all"], "--webhook-all does nothing without --webhook"),
            (["--images", "x", "--mqtt-qos", "1"], "--mqtt-qos does nothing without --mqtt"),
            (["--images", "x", "--mqtt-retain"], "--mqtt-retain does nothing without --mqtt"),
            (["--images", "x", "--fps", "5"], "With --images it does nothing"),
            (["--watch", "x", "--stall-timeout", "5"], "With --watch it does nothing"),
            (["--stdin-frames", "8x8", "--prop", "GAIN=1"], "With --stdin-frames it does nothing"),
        ],
    )
    def test_an_option_that_would_do_nothing_is_refused(
        self, run: Run, arguments: list[str], words: str
    ) -> None:
        code, out, err = run("--bundle", "x.pcbundle", *arguments)
        assert code == 2 and out == "" and words in err

    @pytest.mark.parametrize("command", [[], ["doctor"], ["selftest"], ["bench"], ["tune"]])
    def test_a_bundle_without_its_option_is_explained(self, run: Run, command: list[str]) -> None:
        code, out, err = run(*command, "line.pcbundle")
        assert code == 2 and out == ""
        assert "Unexpected 'line.pcbundle'. A bundle is named with --bundle PATH." in err

    def test_help_of_a_run_has_sections_and_each_option_once(self, run: Run) -> None:
        _, out, _ = run("--help")
        sections = [line for line in out.splitlines() if re.fullmatch(r"\w.*:", line)]
        assert sections[0] == "Options:" and "Where results go:" in sections and "Commands:" in sections
        named = re.findall(r"^  (--[\w-]+)", out, re.MULTILINE)
        assert len(named) == len(set(named)) > 40

    def test_a_file_without_its_option_is_explained(self, run: Run) -> None:
        code, _, err = run("--bundle", "x.pcbundle", "part.png")
        assert code == 2
        assert "Unexpected 'part.png'. To score files say --images PATH...; commands: bench, " in err

    @pytest.mark.parametrize(
        "arguments, words",
        [
            (["--camera", "/dev/usb"], "'/dev/usb' is not the number of a camera, such as 0 or /dev/video0"),
            (["--threshold", "nan"], "'nan' is not a finite number"),
            (["--threshold", "inf"], "'inf' is not a finite number"),
            (["--threshold", "1e39"], "'1e39' is not a finite number"),
            (["--threshold", "high"], "'high' is not a number"),
            (["--threshold", "-0.5"], "'-0.5' is below 0, and no score is"),
            (["--pixel-threshold", "-inf"], "not a finite number"),
            (["--threads", "-1"], "--threads"),
            (["--camera", "-1"], "--camera"),
            (["--max-frames", "0"], "--max-frames"),
            (["--ef", "0"], "--ef"),
            (["--exactness", "most"], "--exactness"),
            (["--search", "annoy"], "--search"),
            (["--provider", "gpu"], "--provider"),
            (["--format", "xml"], "--format"),
            (["--map-format", "jpg"], "--map-format"),
            (["--images"], "--images"),
            (["--treshold", "1"], "--threshold"),
        ],
    )
    def test_a_wrong_value_is_named(self, run: Run, arguments: list[str], words: str) -> None:
        code, out, err = run("--bundle", "x.pcbundle", *arguments)
        assert code == 2 and out == "" and words in err


class TestFindBundle:
    @pytest.fixture(autouse=True)
    def _clean(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("PCRUN_BUNDLE", raising=False)
        monkeypatch.chdir(tmp_path)

    def test_the_one_given_comes_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PCRUN_BUNDLE", "/from/environment")
        Path("here.pcbundle").mkdir()
        assert find_bundle(Path("given")) == Path("given")

    def test_then_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PCRUN_BUNDLE", "/from/environment")
        Path("here.pcbundle").mkdir()
        assert find_bundle(None) == Path("/from/environment")

    def test_then_the_only_one_here(self) -> None:
        Path("here.pcbundle").mkdir()
        Path("other.zip").touch()
        assert find_bundle(None) == Path("here.pcbundle")

    def test_an_empty_variable_counts_as_unset(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PCRUN_BUNDLE", "")
        Path("here.pcbundle").touch()
        assert find_bundle(None) == Path("here.pcbundle")

    def test_none_at_all(self) -> None:
        with pytest.raises(BundleError, match=r"holds none\. Pass --bundle PATH or set \$PCRUN_BUNDLE"):
            find_bundle(None)

    def test_several_are_listed(self) -> None:
        for name in ("b.pcbundle", "a.pcbundle"):
            Path(name).mkdir()
        with pytest.raises(BundleError, match=r"holds 2 \(a\.pcbundle, b\.pcbundle\)"):
            find_bundle(None)


class TestSelftest:
    def test_a_good_bundle_passes(self, run: Run, tiny_bundle: Path) -> None:
        code, out, err = run("selftest", "--bundle", tiny_bundle)
        assert code == 0 and err == "" and "2 of 2 golden samples agree" in out

    def test_the_bundle_may_stand_before_the_command(self, run: Run, tiny_bundle: Path) -> None:
        assert run("--bundle", tiny_bundle, "selftest")[0] == 0

    def test_json(self, run: Run, tiny_bundle: Path) -> None:
        code, out, _ = run("selftest", "--bundle", tiny_bundle, "--json")
        report = json.loads(out)
        assert code == 0 and report["passed"] is True and len(report["checks"]) == 2

    def test_a_score_that_differs_is_exit_code_1(self, run: Run, tiny_bundle: Path) -> None:
        content = json.loads((tiny_bundle / "samples/expected.json").read_bytes())
        content["samples"][1]["image_score"] *= 1.01
        forge(tiny_bundle, "samples/expected.json", json.dumps(content).encode())

        code, out, _ = run("selftest", "--bundle", tiny_bundle)
        assert code == 1 and "DIFFERS" in out and "1 of 2 golden samples agree" in out

    def test_no_bundle_is_exit_code_2(self, run: Run) -> None:
        assert run("selftest", "--bundle", "gone.pcbundle")[0] == 2
