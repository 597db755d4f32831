"""The unit file: what systemd makes of it, and what it promises."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).resolve().parents[2] / "packaging" / "pcrun@.service"


def section(name: str) -> dict[str, str]:
    parser = configparser.RawConfigParser(strict=False, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNIT, encoding="utf-8")
    return dict(parser[name])


def test_it_is_watched_restarted_and_reloadable() -> None:
    service = section("Service")
    assert service["Type"] == "notify" and service["Restart"] == "always"
    assert int(service["WatchdogSec"]) >= 10 and "-HUP" in service["ExecReload"]
    # Longer than the runtime gives its sinks to hand on what waits.
    assert int(service["TimeoutStopSec"]) > 10


def test_it_has_no_rights_it_does_not_need() -> None:
    service = section("Service")
    assert service["DynamicUser"] == "yes" and service["NoNewPrivileges"] == "yes"
    assert service["ProtectSystem"] == "strict" and service["CapabilityBoundingSet"] == ""


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_understands_every_line() -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", str(UNIT)], capture_output=True, text=True, check=False, timeout=60
    )
    complaints = [
        line for line in (done.stdout + done.stderr).splitlines() if "is not executable" not in line and line
    ]
    assert complaints == []
