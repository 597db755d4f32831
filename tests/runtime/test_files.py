"""Files that nobody sees half of."""

import os
import stat
from pathlib import Path

import pytest

from pcrun.errors import SinkError
from pcrun.files import write_file
from tests.runtime.sinks.results import names


class TestWriteFile:
    def test_replaces_what_was_there(self, tmp_path: Path) -> None:
        path = tmp_path / "a.bin"
        path.write_bytes(b"old")
        write_file(path, b"new")
        assert path.read_bytes() == b"new" and names(tmp_path) == ["a.bin"]

    def test_leaves_no_temporary_when_the_target_cannot_be_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").mkdir()
        with pytest.raises(SinkError, match=r"a\.png cannot be written"):
            write_file(tmp_path / "a.png", b"data")
        assert names(tmp_path) == ["a.png"]

    def test_leaves_no_temporary_and_the_old_file_when_interrupted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "a.bin"
        path.write_bytes(b"old")

        def interrupted(self: Path, target: Path) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_file(path, b"new")
        assert path.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(SinkError, match="No such file or directory"):
            write_file(tmp_path / "gone" / "a.png", b"data")

    def test_others_may_read_what_the_umask_allows(self, tmp_path: Path) -> None:
        before = os.umask(0o022)
        try:
            write_file(tmp_path / "a.png", b"data")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o644
