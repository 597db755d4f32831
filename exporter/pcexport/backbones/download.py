"""Pretrained weights from the network, failing soon and clearly where there is none."""

from __future__ import annotations

import http.client
import re
import sys
import threading
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch

from pcexport.backbones.weights import sha256_of
from pcexport.errors import BuildError

PROBE_TIMEOUT_S = 10.0
_HASH_IN_NAME = re.compile(r"-([a-f0-9]{8,})\.")


def fetch(url: str) -> tuple[Path, str]:
    """The file behind `url` in torch.hub's cache, downloaded if it is not there yet.

    Args:
        url: of a file named NAME-<first hex digits of its sha256>.pth, as torchvision's are.

    Returns:
        Path and hex sha256 of the file.

    Raises:
        BuildError: no network, a failed download, or a cached file whose hash is not the one in its name.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    found = _HASH_IN_NAME.search(path.name)
    prefix = found.group(1) if found else ""
    if not path.exists():
        _download(url, path, prefix)
    sha256 = sha256_of(path)
    if not sha256.startswith(prefix):
        raise BuildError(
            f"cached weights {path} are damaged: sha256 starts with {sha256[:8]}, expected {prefix}. "
            "Delete the file and build again."
        )
    return path, sha256


def _download(url: str, path: Path, hash_prefix: str) -> None:
    try:
        probe(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix or None, progress=sys.stderr.isatty())
    except (OSError, RuntimeError, http.client.HTTPException) as e:
        raise no_download(url, e) from e


def no_download(what: str, cause: Exception) -> BuildError:
    """The error for weights that cannot be fetched; `what` is their URL or hub id."""
    reason = (str(cause).strip().splitlines() or [""])[0]
    return BuildError(
        f"cannot download the pretrained weights {what} ({type(cause).__name__}: {reason}). "
        "Without a network, download them on another machine, copy the file here and pass --weights FILE."
    )


def probe(url: str, timeout_s: float = PROBE_TIMEOUT_S) -> None:
    """Return when the host answers; otherwise raise, an OSError as a rule, within about `timeout_s` seconds.

    torch.hub and the Hugging Face client set no limit of their own on a dead network (the latter was measured
    to retry for 47 s), and name resolution ignores socket timeouts: hence a thread with a deadline.
    """
    outcome: list[Exception | None] = []
    worker = threading.Thread(target=lambda: outcome.append(_ask(url, timeout_s)), daemon=True)
    worker.start()
    worker.join(timeout_s)
    if not outcome:
        raise TimeoutError(f"no answer within {timeout_s:g} s")
    if outcome[0] is not None:
        raise outcome[0]


def _ask(url: str, timeout_s: float) -> Exception | None:
    try:
        with urlopen(Request(url, method="HEAD", headers={"User-Agent": "torch.hub"}), timeout=timeout_s):
            return None
    except HTTPError:
        return None  # the host answered; what is wrong, if anything, the download itself will say
    except Exception as e:  # raised again by `probe`, in the caller's thread
        return e
