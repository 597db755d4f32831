"""Facts about the machine and the software that a measurement must be read with."""

from pcrun.machine.facts import RUNTIME_PACKAGES, machine_facts
from pcrun.machine.facts import versions as installed

__all__ = ["machine_facts", "versions"]


def versions() -> dict[str, str]:
    """Versions of the installed packages that matter to a runtime or a build."""
    return installed((*RUNTIME_PACKAGES, "torch"))
