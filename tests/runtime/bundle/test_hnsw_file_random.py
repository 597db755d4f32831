"""Index files damaged at random, and what a check costs: memory, open files."""

import math
import mmap
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pcrun.bundle.hnsw_file import check_hnsw_file
from pcrun.errors import BundleError
from tests.runtime.bundle.index_files import NAME, SMALL, saved


@pytest.mark.parametrize("cut", [0, 8])
def test_a_mmap_can_be_closed_after_the_check(tmp_path: Path, cut: int) -> None:
    good = saved(*SMALL)
    path = tmp_path / NAME
    path.write_bytes(good.data[: len(good.data) - cut])
    failed = None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        try:
            check_hnsw_file(mapped, good.rows, name=NAME)
        except BundleError as error:
            failed = error  # keeps the traceback alive while the mmap closes
    assert (failed is not None) == (cut > 0)


def test_a_memoryview_of_other_items_is_read_as_bytes() -> None:
    good = saved(*SMALL)
    view = memoryview(np.frombuffer(good.data, dtype=np.uint32))
    assert check_hnsw_file(view, good.rows, name=NAME).count == len(good.rows)


def test_memory_stays_far_below_the_size_of_the_bank() -> None:
    n, dim, m = 40_000, 384, 2
    rows = np.random.default_rng(0).random((n, dim), dtype=np.float32)
    element = np.dtype([("links", "u4", 1 + 2 * m), ("vector", "f4", dim), ("label", "u8")])
    elements = np.zeros(n, dtype=element)
    elements["vector"], elements["label"] = rows, np.arange(n)
    header = struct.pack(
        "6QiI3QdQ",
        0,
        n,
        n,
        element.itemsize,
        element.itemsize - 8,
        4 + 8 * m,
        0,
        0,
        m,
        2 * m,
        m,
        1 / math.log(m),
        9,
    )
    data = b"".join((header, elements.tobytes(), bytes(4 * n)))
    tracemalloc.start()
    try:
        check_hnsw_file(data, rows, name=NAME)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32e6 < rows.nbytes


USE_IN_HNSWLIB = """
import sys, numpy as np, hnswlib
from pathlib import Path
rows = np.load(sys.argv[1])
for path in sorted(Path(sys.argv[2]).iterdir()):
    index = hnswlib.Index("l2", rows.shape[1])
    index.load_index(str(path))
    for ef, k in ((1, 1), (50, 1), (300, 5)):
        index.set_ef(ef)
        try:
            labels, _ = index.knn_query(rows, k=k, num_threads=1)
        except RuntimeError:  # a graph in pieces may hold fewer than k entries within reach
            continue
        assert labels.max() < len(rows)
    print(path.name)
"""


def use_in_hnswlib(files: list[bytes], rows: np.ndarray, folder: Path) -> None:
    """Load and search each file in a process of its own, which must end well."""
    (folder / "files").mkdir()
    np.save(folder / "rows.npy", rows)
    for number, data in enumerate(files):
        (folder / "files" / f"{number:03d}").write_bytes(data)
    command = [sys.executable, "-c", USE_IN_HNSWLIB, str(folder / "rows.npy"), str(folder / "files")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == len(files)


def test_random_byte_flips_are_refused_or_harmless(tmp_path: Path) -> None:
    good = saved(120, 2, 12)  # many unused link slots, so that some flips are harmless
    accepted: dict[bytes, None] = {}

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(
        st.lists(st.tuples(st.integers(0, len(good.data) - 1), st.integers(1, 255)), min_size=1, max_size=3)
    )
    def flip(changes: list[tuple[int, int]]) -> None:
        data = bytearray(good.data)
        for position, mask in changes:
            data[position] ^= mask
        try:
            check_hnsw_file(bytes(data), good.rows, name=NAME)
        except BundleError:
            return
        accepted[bytes(data)] = None

    flip()
    assert accepted, "no flip was harmless: the example no longer tests what hnswlib does with them"
    use_in_hnswlib(list(accepted)[:20], good.rows, tmp_path)


def test_accepted_graphs_with_random_links_are_safe_to_search(tmp_path: Path) -> None:
    good = saved(*SMALL)
    rng = np.random.default_rng(0)
    files = []
    for _ in range(5):
        data = bytearray(good.data)
        for element in range(len(good.rows)):
            links = int(rng.integers(0, 2 * good.m + 1))
            ids = rng.integers(0, len(good.rows), 2 * good.m)
            ids[links:] = 2**32 - 1  # unused slots: hnswlib may prefetch through them, never read
            struct.pack_into(f"{1 + 2 * good.m}I", data, good.element(element), links, *ids.tolist())
        check_hnsw_file(bytes(data), good.rows, name=NAME)
        files.append(bytes(data))
    use_in_hnswlib(files, good.rows, tmp_path)
