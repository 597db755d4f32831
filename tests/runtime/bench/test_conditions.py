"""The state of the machine, read from made-up files and from this one."""

import os
import time
from pathlib import Path

import pytest

from pcrun.bench.conditions import Snapshot, between, facts, peak_resident_mb, snapshot


def machine(folder: Path, *, throttled: int = 0, governor: str = "performance") -> Path:
    """A made-up /sys."""
    files = {
        "devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": throttled,
        "devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": 3,
        "devices/system/cpu/cpu0/cpufreq/scaling_governor": governor,
        "class/thermal/thermal_zone0/temp": 40_000,
        "class/thermal/thermal_zone1/temp": 51_500,
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return folder


def test_what_is_read(tmp_path: Path) -> None:
    system = machine(tmp_path)
    before = snapshot(system)
    found = facts(between(before, snapshot(system), cores=4, system=system))
    assert found["governor"] == "performance" and found["temperature_c"] == 51.5
    assert found["throttled"] is False and before.throttled == 3


def test_throttling_meanwhile_is_a_warning(tmp_path: Path) -> None:
    system = machine(tmp_path)
    before = snapshot(system)
    machine(tmp_path, throttled=2)
    found = between(before, snapshot(system), cores=4, system=system)
    assert found.throttled is True
    assert "the processor throttled because of heat" in found.warnings


def test_a_governor_that_saves_power_is_a_warning(tmp_path: Path) -> None:
    system = machine(tmp_path, governor="powersave")
    found = between(snapshot(system), snapshot(system), cores=4, system=system)
    assert "the processor's governor is powersave" in found.warnings


def test_other_processes_are_a_warning_and_this_one_is_not() -> None:
    before = Snapshot(at=100.0, own_s=10.0, busy_s=500.0, throttled=None)
    alone = Snapshot(at=110.0, own_s=29.0, busy_s=519.1, throttled=None)
    assert (
        between(before, alone, cores=4).warnings == ()
        or "governor" in between(before, alone, cores=4).warnings[0]
    )
    crowded = Snapshot(at=110.0, own_s=29.0, busy_s=531.0, throttled=None)
    found = between(before, crowded, cores=4)
    assert found.foreign_cores == pytest.approx(1.2)
    assert "other processes used 1.2 of 4 cores meanwhile" in found.warnings


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    empty = tmp_path / "nothing"
    before = snapshot(empty, empty)
    found = facts(between(before, snapshot(empty, empty), cores=2, system=empty))
    assert before.busy_s is None and before.throttled is None
    assert found["governor"] is found["temperature_c"] is found["throttled"] is found["foreign_cores"] is None


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="processor times are in /proc")
def test_own_work_is_not_taken_for_somebody_elses() -> None:
    before, started = snapshot(), time.process_time()
    while time.process_time() < started + 0.3:
        sum(range(1000))
    after = snapshot()
    assert after.own_s - before.own_s > 0.25
    assert after.busy_s is not None and before.busy_s is not None
    assert after.busy_s - before.busy_s >= (after.own_s - before.own_s) - 0.1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are in /proc")
def test_peak_memory_rises() -> None:
    before = peak_resident_mb()
    block = bytearray(os.urandom(1)) * 300_000_000
    after = peak_resident_mb()
    assert before is not None and after is not None and after >= before
    del block
