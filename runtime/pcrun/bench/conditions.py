"""The state of the machine while something is measured: power, clock, heat, and who else uses it."""

import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_SYSTEM = Path("/sys")
_PROCESSES = Path("/proc")
# A larger share of all cores in other hands distorts what is measured.
FOREIGN_SHARE = 0.05


@dataclass(frozen=True)
class Snapshot:
    """Counters at one moment; None where the system does not tell.

    Attributes:
        at: monotonic seconds.
        own_s: processor time of this process.
        busy_s: of all processes together, stolen time included.
        throttled: thermal throttling events of all cores.
    """

    at: float
    own_s: float
    busy_s: float | None
    throttled: int | None


@dataclass(frozen=True)
class Conditions:
    """What was found before and after.

    Attributes:
        governor: of the processor's clock.
        power_mode: of a Jetson.
        temperature_c: hottest sensor afterwards.
        foreign_cores: cores that other processes used on average.
        throttled: whether the processor throttled meanwhile.
        warnings: everything that makes the measurement less trustworthy.
    """

    governor: str | None
    power_mode: str | None
    temperature_c: float | None
    foreign_cores: float | None
    throttled: bool | None
    warnings: tuple[str, ...] = field(default=())


def snapshot(system: Path = _SYSTEM, processes: Path = _PROCESSES) -> Snapshot:
    """Read the counters now."""
    times = os.times()
    return Snapshot(
        time.monotonic(),
        times.user + times.system + times.children_user + times.children_system,
        _busy_seconds(processes),
        _throttle_events(system),
    )


def between(before: Snapshot, after: Snapshot, *, cores: int, system: Path = _SYSTEM) -> Conditions:
    """What was going on between two moments."""
    seconds = max(after.at - before.at, 1e-9)
    foreign = None
    if before.busy_s is not None and after.busy_s is not None:
        foreign = max(0.0, (after.busy_s - before.busy_s) - (after.own_s - before.own_s)) / seconds
    throttled = None
    if before.throttled is not None and after.throttled is not None:
        throttled = after.throttled > before.throttled
    warnings = []
    if foreign is not None and foreign > FOREIGN_SHARE * cores:
        warnings.append(f"other processes used {foreign:.1f} of {cores} cores meanwhile")
    if throttled:
        warnings.append("the processor throttled because of heat")
    governor = _text(system / "devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor == "powersave":
        warnings.append("the processor's governor is powersave")
    return Conditions(
        governor, power_mode(), _hottest(system), foreign and round(foreign, 3), throttled, tuple(warnings)
    )


def power_mode() -> str | None:
    """What `nvpmodel` says, on a Jetson."""
    program = shutil.which("nvpmodel")
    if program is None:
        return None
    try:
        found = subprocess.run([program, "-q"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line.strip() for line in found.stdout.splitlines() if line.strip()]
    return lines[0].removeprefix("NV Power Mode:").strip() if lines else None


def gpu_memory_mb() -> float | None:
    """Memory of this process on NVIDIA GPUs, by nvidia-smi; None where that does not tell."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    own = [
        line.split(",")[1]
        for line in found.stdout.splitlines()
        if line.split(",")[0].strip() == str(os.getpid())
    ]
    try:
        return sum(map(float, own)) if own else None
    except ValueError:
        return None


def peak_resident_mb() -> float | None:
    """Largest resident memory of this process so far."""
    try:
        status = (_PROCESSES / "self" / "status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return round(int(peaks[0]) * 1024 / 1e6, 1) if peaks else None


def facts(conditions: Conditions) -> dict[str, Any]:
    """Plain types, without the warnings."""
    return {
        "governor": conditions.governor,
        "power_mode": conditions.power_mode,
        "temperature_c": conditions.temperature_c,
        "foreign_cores": conditions.foreign_cores,
        "throttled": conditions.throttled,
    }


def _busy_seconds(processes: Path) -> float | None:
    line = (_text(processes / "stat") or "").splitlines()[:1]
    fields = line[0].split()[1:] if line else []
    if len(fields) < 8:
        return None
    user, nice, system, _, _, interrupts, soft, stolen = map(int, fields[:8])
    ticks = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    return (user + nice + system + interrupts + soft + stolen) / ticks


def _throttle_events(system: Path) -> int | None:
    counters = sorted(system.glob("devices/system/cpu/cpu*/thermal_throttle/*_throttle_count"))
    counts = [int(text) for text in map(_text, counters) if text and text.isdecimal()]
    return sum(counts) if counts else None


def _hottest(system: Path) -> float | None:
    readings = []
    for path in system.glob("class/thermal/thermal_zone*/temp"):
        text = _text(path)
        if text and text.lstrip("-").isdecimal():
            readings.append(int(text) / 1000)
    return max(readings) if readings else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip() or None
    except OSError:
        return None
