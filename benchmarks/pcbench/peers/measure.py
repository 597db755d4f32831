"""The job behind `pcbench peers`: prepare, compare the results, then time pair by pair."""

import dataclasses
import hashlib
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcbench.images import chosen_images
from pcbench.latency.sweep import Progress
from pcbench.machine import machine_facts, versions
from pcbench.peers.checks import TOLERANCE_RELATIVE, Results, differences, require_equal
from pcbench.peers.contenders import BANK_FILE, CONTENDERS, FULL, OURS, PEERS, Absent, Request
from pcbench.peers.process import ContenderProcess, prepare
from pcbench.results import save_result
from pcbench.timing import BLOCK_ITEMS, WARM_UP_ITEMS, WARM_UP_NOTE, summary
from pcrun.bench import conditions
from pcrun.bundle.bundle import Bundle
from pcrun.bundle.manifest import MANIFEST_NAME, manifest_to_json
from pcrun.errors import PcError
from pcrun.machine.facts import versions as installed
from pcrun.machine.threads import available_cores

Say = Callable[[str], None]
# Threads of the process before may still spin.
_PAUSE_S = 0.1


@dataclass(frozen=True)
class Round:
    """One round of a pair: both in new processes, block by block in turns.

    Attributes:
        ours_ms, peer_ms: per image.
        ours_rss_mb, peer_rss_mb: largest resident memory.
    """

    ours_ms: list[float]
    peer_ms: list[float]
    ours_rss_mb: float | None
    peer_rss_mb: float | None

    @property
    def ratio(self) -> float:
        """Median of the peer over ours."""
        return float(np.median(self.peer_ms) / np.median(self.ours_ms))


def measure_peers(
    path: Path,
    images: Sequence[str],
    *,
    peers: Sequence[str] = (),
    provider: str,
    threads: int,
    weights: Path | None,
    rounds: int,
    max_images: int,
    output: Path,
    name: str,
    say: Say,
) -> dict[str, Any]:
    """Compare a bundle with what a user would deploy instead, and save every sample.

    Args:
        path: of the bundle, float32.
        images: files, folders, globs, or @FILE with one path a line.
        peers: names of `CONTENDERS`; all where empty.
        provider: of `pcrun`'s embedder.
        threads: of every contender; 0 is one per available core.
        weights: file of the backbone's weights, for anomalib.
        rounds: of each pair, each with new processes.
        max_images: how many images to use, evenly spread.
        output: result file.
        name: title in reports.
        say: called with lines for a person.

    Raises:
        PcError: the bundle cannot be compared, a peer gives other results, or none can take part.
    """
    bundle = Bundle.load(path)
    _require_comparable(bundle, weights)
    files = [str(file.resolve()) for file in chosen_images(images, max_images)]
    threads = threads or available_cores()
    before = conditions.snapshot()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / MANIFEST_NAME).write_bytes(manifest_to_json(bundle.manifest))
        np.save(Path(folder) / BANK_FILE, bundle.memory_bank)
        first = Request(
            OURS,
            str(path.resolve()),
            bundle.digest,
            tuple(files),
            threads,
            provider,
            str(weights.resolve()) if weights else None,
            folder,
        )
        facts, checks, absent = _compared(first, peers or PEERS, say)
        pairs = _timed_pairs(first, [peer for peer in checks if peer != OURS], rounds, say)
    meanwhile = conditions.between(before, conditions.snapshot(), cores=available_cores())
    result: dict[str, Any] = {
        "name": name,
        "machine": machine_facts(),
        "versions": versions() | installed(("anomalib", "timm", "torchvision")),
        "digest": bundle.digest,
        "backbone": bundle.manifest.embedding.backbone,
        "bank": bundle.manifest.memory_bank.count,
        "dim": bundle.manifest.memory_bank.dim,
        "image_score": bundle.manifest.scoring.image_score,
        "images": len(files),
        "threads": threads,
        "rounds": rounds,
        "warm_up": WARM_UP_NOTE,
        "tolerance": TOLERANCE_RELATIVE,
        "conditions": conditions.facts(meanwhile),
        "warnings": list(meanwhile.warnings),
        "ours": facts.pop(OURS),
        "checks": checks,
        "peers": facts,
        "absent": absent,
        "pairs": pairs,
    }
    save_result(output, "peers", result)
    return result


def _require_comparable(bundle: Bundle, weights: Path | None) -> None:
    spec = bundle.manifest.embedding
    if spec.precision != "fp32":
        raise PcError(
            f"{bundle.path} computes in {spec.precision}. Expected an fp32 bundle, because the peers compute "
            "in float32; build one with `pcexport build --precision fp32`."
        )
    if weights is None:
        return
    try:
        found = hashlib.sha256(weights.read_bytes()).hexdigest()
    except OSError as error:
        raise PcError(f"{weights} cannot be read ({error.strerror}). Check the path.") from error
    if spec.weights_sha256 is not None and found != spec.weights_sha256:
        raise PcError(
            f"{weights} is not the file that {bundle.path} was built with. Expected SHA-256 "
            f"{spec.weights_sha256[:16]}..., got {found[:16]}...; name that file, or leave --weights out."
        )


def _compared(
    first: Request, peers: Sequence[str], say: Say
) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """Let everybody score all images once.

    Returns:
        By name: facts and differences of those who take part, reasons of those who do not.
    """
    facts: dict[str, Any] = {}
    checks: dict[str, Any] = {}
    absent: dict[str, str] = {}
    results: dict[str, Results] = {}
    # The exact maps are needed, whoever is asked for.
    for contender in dict.fromkeys((OURS, FULL, *peers)):
        title, request = CONTENDERS[contender].title, dataclasses.replace(first, contender=contender)
        say(f"{title}: opening it, comparing its results")
        try:
            facts[contender], results[contender] = _results(request)
        except Absent as reason:
            absent[contender] = str(reason)
            say(f"{title} is absent: {reason}")
            continue
        found = differences(results[contender], results[OURS], results.get(FULL, results[OURS]).maps)
        if CONTENDERS[contender].same_results and contender != OURS:
            require_equal(title, found)
        if contender == OURS or contender not in peers:
            continue
        random_weights = facts[contender].get("weights") == "random"
        checks[contender] = {"required": CONTENDERS[contender].same_results} | (
            dict.fromkeys(found) if random_weights else found
        )
    if not checks:
        raise PcError("No peer can take part: " + "; ".join(f"{n}: {reason}" for n, reason in absent.items()))
    return {name: facts[name] for name in (OURS, *checks)}, checks, absent


def _results(request: Request) -> tuple[dict[str, Any], Results]:
    if CONTENDERS[request.contender].prepare is not None:
        prepare(request)
    with ContenderProcess(request) as process:
        return process.facts, Results(*process.scored(request.file("results.npz")))


def _timed_pairs(first: Request, peers: Sequence[str], rounds: int, say: Say) -> list[dict[str, Any]]:
    progress = Progress(len(peers) * rounds)
    pairs = []
    for peer in peers:
        request = dataclasses.replace(first, contender=peer)
        found = []
        for number in range(rounds):
            started = time.monotonic()
            found.append(_round(first, request, number))
            progress.add(time.monotonic() - started, failed=False)
            say(
                f"{progress}: {CONTENDERS[peer].title}, round {number + 1}: "
                f"{np.median(found[-1].peer_ms):.1f} ms, pcrun {np.median(found[-1].ours_ms):.1f} ms"
            )
        pairs.append(_pair(peer, found))
    return pairs


def _round(ours: Request, peer: Request, number: int) -> Round:
    """Time one round; who begins changes with every block, and from round to round."""
    samples: dict[str, list[float]] = {ours.contender: [], peer.contender: []}
    with ContenderProcess(ours) as our_process, ContenderProcess(peer) as peer_process:
        turns = [(ours.contender, our_process), (peer.contender, peer_process)]
        items = range(len(ours.images))
        for block, start in enumerate(range(0, len(items), BLOCK_ITEMS)):
            part = items[start : start + BLOCK_ITEMS]
            for name, process in turns if (block + number) % 2 == 0 else reversed(turns):
                time.sleep(_PAUSE_S)
                samples[name] += process.timed(part, warm_up=part[:WARM_UP_ITEMS])
        return Round(
            samples[ours.contender],
            samples[peer.contender],
            our_process.peak_rss_mb(),
            peer_process.peak_rss_mb(),
        )


def _pair(peer: str, rounds: Sequence[Round]) -> dict[str, Any]:
    ours = [ms for part in rounds for ms in part.ours_ms]
    theirs = [ms for part in rounds for ms in part.peer_ms]
    ratios = [part.ratio for part in rounds]
    return {
        "peer": peer,
        "title": CONTENDERS[peer].title,
        "ours": summary(ours) | {"peak_rss_mb": _largest([part.ours_rss_mb for part in rounds])},
        "theirs": summary(theirs) | {"peak_rss_mb": _largest([part.peer_rss_mb for part in rounds])},
        # Not of all samples together: where the machine's speed changes between rounds, that lies outside.
        "ratio": round(float(np.median(ratios)), 4),
        "ratio_least": round(min(ratios), 4),
        "ratio_most": round(max(ratios), 4),
        "round_ratios": [round(ratio, 4) for ratio in ratios],
        "samples_ms": {"ours": [r.ours_ms for r in rounds], "theirs": [r.peer_ms for r in rounds]},
    }


def _largest(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known else None
