"""A contender's own process: `python -m pcbench.peers.worker prepare|run`, lines of JSON on both pipes.

The first line in is the `Request`, the first line out says {"ready": facts}, {"absent": reason} or
{"error": message}. Then each line in is an order, each line out its answer, and between them the process
waits for its pipe and uses no processor.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np

from pcbench.peers.contenders import CONTENDERS, Absent, Opened, Request
from pcrun.bench.conditions import peak_resident_mb
from pcrun.errors import PcError
from pcrun.images.image_io import read_image
from pcrun.types import UInt8Array


def main(step: str) -> int:
    """Prepare files, or run a contender until told to stop."""
    answers = _own_channel()
    request = Request.from_json(sys.stdin.readline())
    # Some libraries write caches into the current folder.
    os.chdir(request.folder)
    try:
        if step == "prepare":
            prepare = CONTENDERS[request.contender].prepare
            if prepare is not None:
                prepare(request)
            _say(answers, {"ready": {}})
            return 0
        opened, images = _opened(request)
    except Absent as error:
        _say(answers, {"absent": str(error)})
        return 0
    except PcError as error:
        _say(answers, {"error": str(error)})
        return 0
    _say(answers, {"ready": opened.facts})
    for line in sys.stdin:
        _say(answers, _obeyed(json.loads(line), opened, images))
    return 0


def _own_channel() -> TextIO:
    """The pipe to the parent; whatever libraries print goes to standard error instead."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return channel


def _say(channel: TextIO, answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=channel, flush=True)


def _opened(request: Request) -> tuple[Opened, list[UInt8Array]]:
    # For resizing, which is part of every contender's work.
    cv2.setNumThreads(request.threads)
    white_level = request.manifest().preprocess.white_level_16bit
    images = [read_image(Path(path), white_level_16bit=white_level) for path in request.images]
    return CONTENDERS[request.contender].open(request), images


def _obeyed(order: dict[str, Any], opened: Opened, images: list[UInt8Array]) -> dict[str, Any]:
    if order["do"] == "score":
        outcomes = [opened.run(image) for image in images]
        np.savez(
            order["file"],
            scores=np.array([outcome.image_score for outcome in outcomes], np.float64),
            maps=np.stack([outcome.anomaly_map for outcome in outcomes]),
        )
        return {}
    if order["do"] == "time":
        return {"ms": _timed(opened, images, order["warm_up"], order["items"])}
    return {"peak_rss_mb": peak_resident_mb()}


def _timed(opened: Opened, images: list[UInt8Array], warm_up: list[int], items: list[int]) -> list[float]:
    """Milliseconds of each item, after the warm-up."""
    for item in warm_up:
        opened.run(images[item])
    samples = []
    for item in items:
        started = time.perf_counter()
        opened.run(images[item])
        samples.append(round((time.perf_counter() - started) * 1e3, 4))
    return samples


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
