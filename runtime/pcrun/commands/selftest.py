"""The job behind `pcrun selftest`."""

from pathlib import Path

from pcrun.bundle.bundle import Bundle
from pcrun.commands.run import find_bundle, warnings_on_stderr
from pcrun.commands.support import EXIT_OK, print_json
from pcrun.commands.tables import show, table_of
from pcrun.detector import AnomalyDetector, missing_limit
from pcrun.records import to_jsonable
from pcrun.selftest import SelftestReport, run_selftest

EXIT_SELFTEST_FAILED = 1


def selftest(
    bundle_path: Path | None,
    *,
    provider: str,
    precision: str | None,
    threads: int,
    no_profile: bool,
    as_json: bool,
    engine: Path | None = None,
) -> int:
    """Replay the golden samples and print what came out; returns the exit code."""
    bundle = Bundle.load(find_bundle(bundle_path))
    # A bundle without thresholds was recorded with an unreachable one.
    limit = missing_limit(bundle.manifest)
    with warnings_on_stderr():
        detector = AnomalyDetector.load(
            bundle,
            provider=provider,
            precision=precision,
            threads=threads,
            threshold=limit,
            pixel_threshold=limit,
            profile=not no_profile,
            engine=engine,
        )
    report = run_selftest(detector)
    if as_json:
        facts = {"passed": report.passed, "provider": detector.provider, "precision": detector.precision}
        facts["search"] = detector.search
        facts["profile"] = detector.profile is not None
        print_json({**facts, "digest": bundle.digest, **to_jsonable(report)})
    else:
        _print_selftest(report, detector)
    return EXIT_OK if report.passed else EXIT_SELFTEST_FAILED


def _print_selftest(report: SelftestReport, detector: AnomalyDetector) -> None:
    rows = [
        (
            check.sample.file,
            check.sample.label,
            f"{check.sample.image_score:.5f}",
            f"{check.image_score:.5f}",
            f"{check.relative_difference:.1e}",
            "ok" if check.passed else "DIFFERS",
        )
        for check in report.checks
    ]
    passed = sum(check.passed for check in report.checks)
    show(
        table_of(("sample", "label", "built", "here", "difference", "result"), rows, words=(0, 1, 5)),
        f"{passed} of {len(report.checks)} golden samples agree within {report.tolerance_relative:g} "
        f"(provider {detector.provider}, search {detector.search})",
    )
