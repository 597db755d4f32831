"""A machine without network."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network and an empty torch.hub cache; returns the cache's checkpoint folder."""

    torch = pytest.importorskip("torch", reason="torch is not installed (extra: export)")
    from pcexport.backbones import download

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise URLError("no route to host (simulated)")

    monkeypatch.setattr(download, "urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    return Path(torch.hub.get_dir()) / "checkpoints"
