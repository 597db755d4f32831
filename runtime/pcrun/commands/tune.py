"""The job behind `pcrun tune`: measure, store, and show what was measured."""

from collections.abc import Callable
from pathlib import Path

from pcrun.bundle.bundle import Bundle
from pcrun.commands.run import find_bundle, say, warnings_on_stderr
from pcrun.commands.support import EXIT_OK, print_json
from pcrun.images.image_io import read_image
from pcrun.records import to_jsonable
from pcrun.sources.files import expand_images
from pcrun.tuning.profile import DeviceProfile, RunSettings, Trial, make_profile_folder, save_profile
from pcrun.tuning.tune import TuneContent, golden_content, tune

EXIT_OVER_BUDGET = 1
_COLUMNS = f"{'search':<12} {'ef':>3} {'provider':<13} {'threads':>7} {'search threads':>14} {'spinning':<8}"


def tune_here(
    bundle: Path | None,
    *,
    provider: str,
    precision: str | None,
    threads: int,
    images: tuple[str, ...],
    budget_ms: float | None,
    frames: int,
    as_json: bool,
) -> int:
    """Tune a bundle on this machine and store the profile; returns the exit code."""
    opened = Bundle.load(find_bundle(bundle))
    content = _read_content(opened, images) if images else golden_content(opened)
    make_profile_folder()  # minutes of measuring must not end with "cannot be made"
    with warnings_on_stderr():
        profile = tune(
            opened,
            content,
            provider=provider,
            precision=precision,
            threads=threads,
            images=frames,
            say=(lambda trial: None) if as_json else _trial_printer(),
        )
    path = save_profile(profile)
    met = budget_ms is None or profile.p90_ms <= budget_ms
    if as_json:
        print_json({"profile_path": str(path), "budget_met": met, **to_jsonable(profile)})
    else:
        _print_choice(profile, path)
    if not met:
        say(f"the fastest settings need {profile.p90_ms:.1f} ms (p90), the budget is {budget_ms:g} ms")
    return EXIT_OK if met else EXIT_OVER_BUDGET


def _read_content(bundle: Bundle, images: tuple[str, ...]) -> TuneContent:
    white_level = bundle.manifest.preprocess.white_level_16bit
    files = [file for path in images for file in expand_images(path)]
    return TuneContent(
        tuple(read_image(file, white_level_16bit=white_level) for file in files), f"{len(files)} images"
    )


def _trial_printer() -> Callable[[Trial], None]:
    """Prints each trial; the head above the first, since an error may come before it."""
    head = [f"{_COLUMNS} {'median ms':>9} {'p90 ms':>8}"]

    def print_trial(trial: Trial) -> None:
        while head:
            print(head.pop())
        print(f"{_described(trial.settings)} {trial.median_ms:>9.2f} {trial.p90_ms:>8.2f}", flush=True)

    return print_trial


def _print_choice(profile: DeviceProfile, path: Path) -> None:
    print("fastest, measured again in turns with the runners-up:")
    print(f"{_described(profile.settings)} {profile.median_ms:>9.2f} {profile.p90_ms:>8.2f}")
    print(f"stored as {path}; `pcrun` uses it for this bundle from now on")


def _described(settings: RunSettings) -> str:
    ef = settings.ef if settings.ef else "-"
    spinning = "yes" if settings.spinning else "no"
    provider = f"{settings.provider} {settings.precision}"
    return (
        f"{settings.search:<12} {ef:>3} {provider:<13} {settings.threads:>7} "
        f"{settings.search_threads:>14} {spinning:<8}"
    )
