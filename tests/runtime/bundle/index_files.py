"""Real index files, and where their parts are."""

import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from pcrun.bundle.hnsw_file import check_hnsw_file
from pcrun.errors import BundleError

hnswlib = pytest.importorskip("hnswlib", reason="hnswlib is not installed: there is no index to check")


NAME = "memory_bank.hnsw"
HEADER_BYTES = 96
# Field -> (position, struct code), written down from hnswlib's saveIndex, apart from the code under test.
FIELDS = {
    "offsetLevel0_": (0, "Q"),
    "max_elements_": (8, "Q"),
    "cur_element_count": (16, "Q"),
    "size_data_per_element_": (24, "Q"),
    "label_offset_": (32, "Q"),
    "offsetData_": (40, "Q"),
    "maxlevel_": (48, "i"),
    "enterpoint_node_": (52, "I"),
    "maxM_": (56, "Q"),
    "maxM0_": (64, "Q"),
    "M_": (72, "Q"),
    "mult_": (80, "d"),
    "ef_construction_": (88, "Q"),
}


@dataclass(frozen=True)
class Saved:
    """A real index file, the rows it was built from, and where its parts are."""

    data: bytes
    rows: np.ndarray
    m: int

    @property
    def element_bytes(self) -> int:
        return 4 + 8 * self.m + 4 * self.rows.shape[1] + 8

    def element(self, index: int) -> int:
        """Position of the level-0 element: its link count."""
        return HEADER_BYTES + index * self.element_bytes

    def vector(self, index: int) -> int:
        return self.element(index) + 4 + 8 * self.m

    def label(self, index: int) -> int:
        return self.element(index) + self.element_bytes - 8

    def upper(self) -> list[tuple[int, int]]:
        """(position of the size field, highest level) of each element."""
        found, position = [], self.element(len(self.rows))
        for _ in range(len(self.rows)):
            (size,) = struct.unpack_from("I", self.data, position)
            found.append((position, size // (4 + 4 * self.m)))
            position += 4 + size
        return found

    def with_value(self, position: int, code: str, value: float) -> bytes:
        changed = bytearray(self.data)
        struct.pack_into(code, changed, position, value)
        return bytes(changed)


@cache
def saved(n: int, dim: int, m: int, seed: int = 7) -> Saved:
    rows = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return Saved(save(build(rows, m, seed)), rows, m)


def build(rows: np.ndarray, m: int, seed: int = 7, labels: np.ndarray | None = None):
    index = hnswlib.Index("l2", rows.shape[1])
    index.init_index(len(rows), M=m, ef_construction=30, random_seed=seed)
    index.add_items(rows, np.arange(len(rows)) if labels is None else labels, num_threads=1)
    return index


def save(index) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / NAME
        index.save_index(str(path))
        return path.read_bytes()


def refused(data: bytes, rows: np.ndarray, match: str | None = None) -> str:
    """The file must be refused with a message that names it and says what to do."""
    with pytest.raises(BundleError, match=match) as caught:
        check_hnsw_file(data, rows, name=NAME)
    message = str(caught.value)
    assert message.startswith(NAME)
    assert "pcexport build" in message
    return message


SMALL = (300, 5, 3)
