"""A folder in which images arrive: each one is scored once, when it is complete."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pcrun.errors import SourceError
from pcrun.sources import Event, Frame
from pcrun.sources.files import is_image, read_frame

_POLL_S = 0.1
# A file that has not changed for so long is complete.
SETTLED_S = 0.5


class WatchedFolder:
    """New images of a folder, each once it is complete; those already there are left alone."""

    live = False

    def __init__(self, folder: str | Path, *, white_level_16bit: int, settled_s: float = SETTLED_S) -> None:
        """Remember what is there.

        Args:
            folder: folders below are not watched.
            white_level_16bit: see `read_image`.
            settled_s: a file whose size and time have not changed for so long is complete.

        Raises:
            SourceError: it is no folder.
        """
        self._folder = Path(folder)
        self.name = str(folder)
        self._white_level = white_level_16bit
        self._settled_s = settled_s
        try:
            self._known = dict(self._listed())
        except OSError as error:
            raise SourceError(
                f"{folder} cannot be watched ({error.strerror or error}). Expected a folder; make it first."
            ) from error

    def items(self, stop: threading.Event) -> Iterator[Frame | Event]:
        """See `Source.items`; ends only by `stop`."""
        index, waiting, lost = 0, dict[Path, tuple[tuple[int, int], float]](), False
        while not stop.is_set():
            try:
                listed = dict(self._listed())
            except OSError as error:
                # A network folder that went away comes back; what arrived meanwhile is scored then.
                if not lost:
                    yield Event("lost", self.name, {"reason": error.strerror or str(error)})
                lost = True
                stop.wait(1.0)
                continue
            if lost:
                lost = False
                yield Event("reconnected", self.name)
            # A file that was deleted may come again under the same name.
            self._known = {path: state for path, state in self._known.items() if path in listed}
            for path in self._complete(listed, waiting):
                yield read_frame(path, index, white_level_16bit=self._white_level)
                index += 1
            stop.wait(_POLL_S)

    def _complete(
        self, listed: dict[Path, tuple[int, int]], waiting: dict[Path, tuple[tuple[int, int], float]]
    ) -> list[Path]:
        """Files that have settled, oldest first; `waiting` holds those that have not."""
        now = time.monotonic()
        for path in list(waiting):
            if path not in listed:
                del waiting[path]
        for path, state in listed.items():
            if self._known.get(path) != state and waiting.get(path, (None,))[0] != state:
                waiting[path] = state, now
        ready = [
            path
            for path, (state, since) in waiting.items()
            if now - since >= self._settled_s and state[0] > 0
        ]
        ready.sort(key=lambda path: (listed[path][1], path.name))
        for path in ready:
            self._known[path] = waiting.pop(path)[0]
        return ready

    def _listed(self) -> Iterator[tuple[Path, tuple[int, int]]]:
        for path in self._folder.iterdir():
            if is_image(path):
                try:
                    state = path.stat()
                except FileNotFoundError:  # gone since it was listed
                    continue
                yield path, (state.st_size, state.st_mtime_ns)
