"""Reading latencies back: files of `pcbench latency`, and reports of `pcrun bench`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcbench.latency.cell import PAIRED_BY
from pcbench.results import RESULTS_VERSION
from pcrun.bench.measure import BENCH_VERSION
from pcrun.errors import PcError
from pcrun.words import plural

# Queries of these follow each other; latencies of the others depend on when queries come.
COMPARED_SCENARIOS = ("single-stream", "multi-stream")


@dataclass(frozen=True)
class Measured:
    """One kind of image in one cell.

    Attributes:
        file: it was read from.
        asked: settings asked for, by the names of `PAIRED_BY`; those of a report of `pcrun bench` are the
            real ones.
        run: which of several processes with the same settings; 1 where there is one.
        content: kind of image.
        scenario: of `COMPARED_SCENARIOS`.
        result: that scenario's, as `pcrun.bench.measure` gave it.
        whole: all of the file.
    """

    file: str
    asked: dict[str, Any]
    run: int
    content: str
    scenario: str
    result: dict[str, Any]
    whole: dict[str, Any]

    @property
    def samples_ms(self) -> list[float]:
        """Latencies in the order of the queries."""
        samples: list[float] = self.result["samples_ms"]
        return samples

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for what may be compared."""
        return (*(self.asked[name] for name in PAIRED_BY), self.content, self.scenario)

    @property
    def has_random_weights(self) -> bool:
        """Whether the network was never trained: the manifest says "untrained" and the seed."""
        return str(self.whole["bundle"]["weights"]).startswith("untrained")

    @property
    def warnings(self) -> list[str]:
        """What makes it doubtful."""
        return [*self.whole.get("warnings", []), *self.result["warnings"]]


@dataclass(frozen=True)
class NotRun:
    """A cell that the machine could not run."""

    file: str
    asked: dict[str, Any]
    error: str
    whole: dict[str, Any]


def read_json(paths: Sequence[Path]) -> list[tuple[Path, Any]]:
    """The content of JSON files; of a folder, all of them by name.

    Raises:
        PcError: there is none, or one is not JSON.
    """
    files = [file for path in paths for file in (_in_order(path) if path.is_dir() else [path])]
    if not files:
        raise PcError(
            f"{', '.join(map(str, paths))} holds no JSON file. Expected results of pcbench latency."
        )
    loaded = []
    for file in files:
        if not file.exists():
            raise PcError(f"There is no {file}. Expected results of pcbench latency; check the path.")
        try:
            loaded.append((file, json.loads(file.read_text(encoding="utf-8"))))
        except (OSError, ValueError) as error:
            raise PcError(f"{file} cannot be read as JSON ({error}). Measure again.") from error
    return loaded


def _in_order(folder: Path) -> list[Path]:
    """By name without suffix, so that further runs of a cell follow the first."""
    return sorted(folder.glob("*.json"), key=lambda file: file.stem)


def is_latency(data: Any) -> bool:
    """Whether it comes from `pcbench latency` or `pcrun bench`."""
    return isinstance(data, dict) and (data.get("kind") == "latency" or "bench_version" in data)


def cells_of(file: Path, data: dict[str, Any]) -> list[Measured] | NotRun:
    """What such a file holds.

    Raises:
        PcError: it is of another version, or not complete.
    """
    expected = (("results_version", RESULTS_VERSION), ("bench_version", BENCH_VERSION))
    for key, version in expected:
        if data.get(key, version) != version:
            raise PcError(f"{file} has {key} {data[key]}, expected {version}. Measure again.")
    try:
        if data.get("error") is not None:
            return NotRun(file.name, {name: data["asked"][name] for name in PAIRED_BY}, data["error"], data)
        return [
            Measured(file.name, _asked(data, result), _run(data), content["name"], scenario, result, data)
            for content in data["contents"]
            for scenario, result in content["scenarios"].items()
            if scenario in COMPARED_SCENARIOS and _complete(result)
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise PcError(
            f"{file} is not a complete result of pcbench latency ({error!r}). Measure again."
        ) from error


def _asked(data: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    if "asked" in data:
        return {name: data["asked"][name] for name in PAIRED_BY}
    # By its file name, as a sweep does; older reports hold only the name inside the bundle.
    bundle = data["bundle"].get("file") or data["bundle"]["name"]
    real = {**data["settings"], "bundle": bundle, "batch": result.get("images_per_query", 1)}
    return {name: real[name] for name in PAIRED_BY}


def _run(data: dict[str, Any]) -> int:
    run: int = data["asked"].get("run", 1) if "asked" in data else 1
    return run


def _complete(result: dict[str, Any]) -> bool:
    for key in ("samples_ms", "latency_ms", "stages_ms", "warnings"):
        result[key]
    return True


def shown_threads(threads: int) -> str:
    """As "2 threads"; 0 is one per available core."""
    return f"{threads} {plural(threads, 'thread')}" if threads else "all cores"


def shown_settings(asked: dict[str, Any]) -> str:
    """As "bottle, cpu, 2 threads, mask, batch 8"; what is as by default is left out."""
    parts = [
        asked["bundle"],
        asked["provider"],
        shown_threads(asked["threads"]),
        *([asked["precision"]] if asked["precision"] != "bundle" else []),
        asked["exactness"],
        *([f"batch {asked['batch']}"] if asked["batch"] != 1 else []),
        *(["device profile"] if asked["device_profile"] else []),
    ]
    return ", ".join(parts)
