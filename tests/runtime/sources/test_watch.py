"""Watched folders: each file once, whole, and nothing that was there before."""

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from pcrun.errors import SourceError
from pcrun.sources import Event, Frame
from pcrun.sources.watch import WatchedFolder

SETTLED_S = 0.15


def png(value: int) -> bytes:
    return cv2.imencode(".png", np.full((6, 8, 3), value, np.uint8))[1].tobytes()


def write(path: Path, value: int) -> None:
    path.write_bytes(png(value))


class Watch:
    """Runs the source in a thread and collects what it gives."""

    def __init__(self, folder: Path) -> None:
        self.items: list[Frame | Event] = []
        self._stop = threading.Event()
        self._source = WatchedFolder(folder, white_level_16bit=65535, settled_s=SETTLED_S)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.items.extend(())
        for item in self._source.items(self._stop):
            self.items.append(item)

    def wait_for(self, condition: Callable[["Watch"], bool]) -> None:
        deadline = time.monotonic() + 10
        while not condition(self):
            assert time.monotonic() < deadline, self.items
            time.sleep(0.01)

    def values(self) -> list[int]:
        return [int(i.image[0, 0, 0]) for i in self.items if isinstance(i, Frame) and i.image is not None]

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)
        assert not self._thread.is_alive()


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


def test_new_files_and_not_those_already_there(watched: Path) -> None:
    write(watched / "old.png", 1)
    watch = Watch(watched)
    write(watched / "a.png", 10)
    watch.wait_for(lambda w: 10 in w.values())
    write(watched / "b.png", 20)
    watch.wait_for(lambda w: 20 in w.values())
    watch.close()
    assert watch.values() == [10, 20]
    assert [i.index for i in watch.items if isinstance(i, Frame)] == [0, 1]


def test_a_file_that_is_still_being_written_waits(watched: Path) -> None:
    watch = Watch(watched)
    data = png(30)
    with (watched / "slow.png").open("wb") as file:
        for start in range(0, len(data), 20):
            file.write(data[start : start + 20])
            file.flush()
            time.sleep(SETTLED_S / 3)
            assert watch.items == []
    watch.wait_for(lambda w: w.values() == [30])
    watch.close()


def test_a_file_that_is_moved_in_is_taken_once(watched: Path, tmp_path: Path) -> None:
    watch = Watch(watched)
    write(tmp_path / "made.png", 40)
    (tmp_path / "made.png").rename(watched / "moved.png")
    watch.wait_for(lambda w: w.values() == [40])
    time.sleep(3 * SETTLED_S)
    watch.close()
    assert watch.values() == [40]


def test_a_name_that_comes_again_with_another_content_is_another_part(watched: Path) -> None:
    watch = Watch(watched)
    for value in (50, 60):
        write(watched / "part.png", value)
        watch.wait_for(lambda w, value=value: value in w.values())  # type: ignore[misc]
    (watched / "part.png").unlink()
    time.sleep(0.3)
    write(watched / "part.png", 70)
    watch.wait_for(lambda w: 70 in w.values())
    watch.close()
    assert watch.values() == [50, 60, 70]


def test_several_at_once_in_the_order_of_their_times(watched: Path, tmp_path: Path) -> None:
    watch = Watch(watched)
    for age, (name, value) in enumerate([("c", 3), ("a", 1), ("b", 2)]):
        made = tmp_path / f"{name}.png"
        write(made, value)
        os.utime(made, (1e9 + age, 1e9 + age))
        made.rename(watched / made.name)
    watch.wait_for(lambda w: len(w.values()) == 3)
    watch.close()
    assert watch.values() == [3, 1, 2]


def test_what_is_no_image_is_left_alone_and_a_broken_one_is_an_error(watched: Path) -> None:
    watch = Watch(watched)
    (watched / "notes.txt").write_text("x")
    (watched / ".hidden.png").write_bytes(png(1))
    (watched / "empty.png").write_bytes(b"")  # somebody is about to write it
    (watched / "broken.png").write_bytes(b"no image")
    watch.wait_for(lambda w: len(w.items) == 1)
    time.sleep(3 * SETTLED_S)
    watch.close()
    (frame,) = watch.items
    assert isinstance(frame, Frame) and frame.image is None and "broken.png: not an image" in str(frame.error)


def test_a_folder_that_goes_away_and_comes_back(watched: Path) -> None:
    watch = Watch(watched)
    shutil.rmtree(watched)
    watch.wait_for(lambda w: any(isinstance(i, Event) and i.name == "lost" for i in w.items))
    watched.mkdir()
    write(watched / "after.png", 80)
    watch.wait_for(lambda w: w.values() == [80])
    watch.close()
    assert [i.name for i in watch.items if isinstance(i, Event)] == ["lost", "reconnected"]


@pytest.mark.parametrize("name", ["gone", "file.txt"])
def test_no_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(SourceError, match=f"{name} cannot be watched"):
        WatchedFolder(tmp_path / name, white_level_16bit=65535)
