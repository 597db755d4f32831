"""The last step of a build: the device profile of the machine that built, so that its first start is fast."""

from pathlib import Path

from pcexport.config import BuildConfig
from pcexport.progress import Steps
from pcrun.bundle.bundle import Bundle
from pcrun.errors import PcError
from pcrun.tuning.profile import DeviceProfile, save_profile
from pcrun.tuning.tune import golden_content, tune

# Per trial; `pcrun tune` takes more.
_IMAGES = 16


def tune_here(path: Path, config: BuildConfig, steps: Steps) -> DeviceProfile | None:
    """Measure the finished bundle on this machine and store its profile; None where that cannot be done.

    The bundle is complete without: what goes wrong here is a warning.
    """
    with steps.step("tune"):
        try:
            bundle = Bundle.load(path)
            profile = tune(
                bundle,
                golden_content(bundle),
                provider=config.provider,
                threads=config.threads,
                images=_IMAGES,
            )
            save_profile(profile)
        except PcError as error:
            steps.warn(f"no device profile was stored: {error}")
            return None
    return profile
