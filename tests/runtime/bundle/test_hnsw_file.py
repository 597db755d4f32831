"""Damaged index files are refused before hnswlib, which would trust them, sees them."""

import math
import mmap
import struct
import subprocess
import sys
import tracemalloc
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pcrun.bundle.hnsw_file import check_hnsw_file, read_hnsw_header
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


@pytest.mark.parametrize(
    ("n", "dim", "m"), [(1, 4, 2), (1, 384, 16), (2, 3, 2), (300, 384, 32), (2000, 8, 4), (2000, 3, 16)]
)
def test_a_saved_index_is_accepted_and_described(n: int, dim: int, m: int) -> None:
    good = saved(n, dim, m)
    header = check_hnsw_file(good.data, good.rows, name=NAME)
    assert header == read_hnsw_header(good.data, name=NAME)
    assert (header.count, header.max_elements, header.dim, header.m) == (n, n, dim, m)
    assert (header.max_links0, header.ef_construction) == (2 * m, max(30, m))
    assert header.element_bytes == good.element_bytes
    assert header.max_level == max(level for _, level in good.upper())


def test_one_entry_may_stand_on_any_level() -> None:
    levels = set()
    for seed in range(30):
        good = saved(1, 2, 2, seed)
        levels.add(check_hnsw_file(good.data, good.rows, name=NAME).max_level)
    assert min(levels) == 0
    assert max(levels) >= 2


def test_labels_may_come_in_any_order() -> None:
    rows = np.random.default_rng(0).standard_normal((200, 6)).astype(np.float32)
    order = np.random.default_rng(1).permutation(200)
    data = save(build(rows[order], 4, labels=order))
    assert check_hnsw_file(data, rows, name=NAME).count == 200
    refused(data, rows[order], "another vector")


def test_an_index_built_with_several_threads_is_accepted() -> None:
    rows = np.random.default_rng(0).standard_normal((1500, 8)).astype(np.float32)
    index = hnswlib.Index("l2", 8)
    index.init_index(1500, M=4, ef_construction=30)
    index.add_items(rows, np.arange(1500), num_threads=4)
    assert check_hnsw_file(save(index), rows, name=NAME).count == 1500


def test_vectors_are_compared_as_bits() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    rows[3, 1], rows[4, 2] = 0.0, np.nan
    data = save(build(rows, 4))
    assert check_hnsw_file(data, rows, name=NAME).count == 50
    rows[3, 1] = -0.0
    refused(data, rows, "label 3")


@pytest.mark.parametrize(("change", "accepted"), [(0.0, True), (0.9, True), (-0.9, True), (1.1, False)])
def test_a_tolerance_is_kept(change: float, accepted: bool) -> None:
    good = saved(*SMALL)
    rows = good.rows.copy()
    rows[7, 2] += np.float32(change * 1e-3)
    if accepted:
        assert check_hnsw_file(good.data, rows, name=NAME, tolerance=1e-3).count == len(rows)
    else:
        with pytest.raises(BundleError, match="another vector than the memory bank under label 7"):
            check_hnsw_file(good.data, rows, name=NAME, tolerance=1e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_tolerance_covers_what_is_no_number(value: float) -> None:
    good = saved(*SMALL)
    damaged = good.with_value(good.vector(3), "f", value)
    with pytest.raises(BundleError, match="another vector than the memory bank"):
        check_hnsw_file(damaged, good.rows, name=NAME, tolerance=1e30)


@pytest.mark.parametrize("layout", ["fortran", "strided", "read-only"])
def test_rows_may_have_any_memory_layout(layout: str) -> None:
    good = saved(*SMALL)
    rows = good.rows
    if layout == "fortran":
        rows = np.asfortranarray(rows)
    elif layout == "strided":
        rows = np.repeat(rows, 2, axis=0)[::2]
    else:
        rows = rows.copy()
        rows.flags.writeable = False
    assert check_hnsw_file(good.data, rows, name=NAME).count == len(rows)


def wrong_values(good: Saved, field: str, value: float) -> list[float]:
    if field == "ef_construction_":
        return [0, good.m - 1, 2**60]  # otherwise free: it is used for insertion only
    if field == "enterpoint_node_":
        levels = [level for _, level in good.upper()]
        return [levels.index(0), len(good.rows), 2**31, 2**32 - 1]
    if field == "maxlevel_":
        return [-(2**31), -1, value - 1, value + 1, 2**31 - 1]
    if field == "mult_":
        return [0.0, -value, value * 1.001, math.nan, math.inf]
    return [0, value - 1, value + 1, 2 * value, 2**32 + value, 2**60, 2**63, 2**64 - 1]


@pytest.mark.parametrize("field", FIELDS)
def test_each_header_field_is_checked(field: str) -> None:
    good = saved(*SMALL)
    position, code = FIELDS[field]
    (value,) = struct.unpack_from(code, good.data, position)
    for wrong in wrong_values(good, field, value):
        if wrong != value and not (code == "Q" and wrong < 0):
            refused(good.with_value(position, code, wrong), good.rows)


@pytest.mark.parametrize("field", FIELDS)
def test_the_header_alone_shows_most_lies(field: str) -> None:
    good = saved(*SMALL)
    position, code = FIELDS[field]
    (value,) = struct.unpack_from(code, good.data, position)
    wrong = {"maxlevel_": -1, "enterpoint_node_": 300, "mult_": 1.0, "ef_construction_": 0}.get(
        field, value + 4
    )
    with pytest.raises(BundleError, match=NAME):
        read_hnsw_header(good.with_value(position, code, wrong), name=NAME)


def test_a_level_no_index_reaches_is_refused() -> None:
    good = saved(*SMALL)
    with pytest.raises(BundleError, match="highest level is 65"):
        read_hnsw_header(good.with_value(48, "i", 65), name=NAME)


def test_an_index_without_entries_is_refused() -> None:
    index = hnswlib.Index("l2", 5)
    index.init_index(10, M=3)
    refused(save(index), np.zeros((0, 5), np.float32), "holds no entry")


def test_two_header_fields_that_agree_on_a_lie_are_refused() -> None:
    good = saved(*SMALL)
    data = bytearray(good.data)
    struct.pack_into("QQ", data, 8, 2**60, 2**60)  # max_elements_ and cur_element_count
    refused(bytes(data), good.rows, "bytes for")
    struct.pack_into("QQ", data, 8, 200, 200)  # shorter, so that level 0 would end early
    refused(bytes(data), good.rows)


def test_the_header_of_a_huge_dimension_is_refused() -> None:
    good = saved(*SMALL)
    data = bytearray(good.data)
    links = 4 + 8 * good.m
    struct.pack_into("QQQ", data, 24, links + 4 * 2**58 + 8, links + 4 * 2**58, links)
    refused(bytes(data), good.rows, "labels at offset")


@pytest.mark.parametrize("element", [0, 17, 299])
@pytest.mark.parametrize("target", [300, 2**31, 2**32 - 1])
def test_a_link_out_of_range_is_refused_on_level_0(element: int, target: int) -> None:
    good = saved(*SMALL)
    refused(good.with_value(good.element(element) + 4, "I", target), good.rows, "level 0.*links to element")


@pytest.mark.parametrize("count", [7, 255, 65535, 2**24, 2**31])
def test_a_link_count_out_of_range_is_refused_on_level_0(count: int) -> None:
    good = saved(*SMALL)
    refused(good.with_value(good.element(11), "I", count), good.rows)


def test_a_slot_beyond_the_link_count_may_hold_anything() -> None:
    good = saved(*SMALL)
    for element in range(len(good.rows)):
        (links,) = struct.unpack_from("I", good.data, good.element(element))
        if links < 2 * good.m:
            break
    data = good.with_value(good.element(element) + 4 + 4 * links, "I", 2**32 - 1)
    assert check_hnsw_file(data, good.rows, name=NAME).count == len(good.rows)


def test_deleted_entries_are_refused() -> None:
    good = saved(*SMALL)
    index = build(good.rows, good.m)
    index.mark_deleted(5)
    refused(save(index), good.rows, "marked as deleted")


@pytest.mark.parametrize("label", [8, 300, 2**32, 2**63, 2**64 - 1])
def test_labels_must_be_a_permutation(label: int) -> None:
    good = saved(*SMALL)
    refused(good.with_value(good.label(9), "Q", label), good.rows, "label")


def test_a_label_twice_is_noticed_even_where_the_vectors_are_equal() -> None:
    rows = np.repeat(saved(*SMALL).rows[:20], 2, axis=0)
    good = Saved(save(build(rows, 3)), rows, 3)
    refused(good.with_value(good.label(1), "Q", 0), rows, "no entry with label 1")


@pytest.mark.parametrize("element", [0, 150, 299])
@pytest.mark.parametrize("component", [0, 4])
def test_one_bit_of_a_vector_is_noticed(element: int, component: int) -> None:
    good = saved(*SMALL)
    position = good.vector(element) + 4 * component
    data = good.with_value(position, "B", good.data[position] ^ 1)
    refused(data, good.rows, f"label {element}")


def tall(good: Saved) -> tuple[int, int, int]:
    """(element, position of its first upper list, its level) of some element above level 0."""
    for element, (position, level) in enumerate(good.upper()):
        if level:
            return element, position + 4, level
    raise AssertionError("no upper level in the example")


def test_upper_links_are_checked() -> None:
    good = saved(*SMALL)
    _, lists, _ = tall(good)
    assert struct.unpack_from("I", good.data, lists)[0] > 0
    ground = next(index for index, (_, level) in enumerate(good.upper()) if level == 0)
    refused(good.with_value(lists + 4, "I", 300), good.rows, "level 1.*links to element 300")
    refused(good.with_value(lists + 4, "I", 2**32 - 1), good.rows, "level 1")
    refused(
        good.with_value(lists + 4, "I", ground), good.rows, f"element {ground}. Expected an element of this"
    )
    refused(good.with_value(lists, "I", good.m + 1), good.rows, "list of 4 links")
    refused(good.with_value(lists, "I", 65535), good.rows, "list of 65535 links")


def test_a_link_to_an_element_missing_on_a_higher_level_is_refused() -> None:
    good = saved(2000, 8, 4)
    levels = [level for _, level in good.upper()]
    short = levels.index(1)
    for position, level in good.upper():
        second = position + 4 + 4 * (good.m + 1)
        if level >= 2 and struct.unpack_from("I", good.data, second)[0]:
            refused(good.with_value(second + 4, "I", short), good.rows, f"level 2.*element {short}")
            return
    raise AssertionError("no second level in the example")


@pytest.mark.parametrize("size", [1, 4, 15, 17, 2**16, 2**31, 2**32 - 1])
def test_sizes_of_upper_lists_are_checked(size: int) -> None:
    good = saved(*SMALL)
    ground = next(position for position, level in good.upper() if level == 0)
    refused(good.with_value(ground, "I", size), good.rows)
    refused(good.with_value(tall(good)[1] - 4, "I", size), good.rows)


def test_a_file_of_any_other_length_is_refused() -> None:
    good = saved(*SMALL)
    cuts = np.random.default_rng(3).integers(0, len(good.data), 300).tolist()
    for cut in [0, 1, 95, 96, 97, len(good.data) - 1, len(good.data) - 4, *cuts]:
        refused(good.data[:cut], good.rows)
    for extra in (b"\0", b"\0" * 4, b"\0" * 16, b"\xff" * 4096):
        refused(good.data + extra, good.rows)


def test_an_index_of_another_build_is_refused() -> None:
    good = saved(*SMALL)
    refused(good.data, saved(300, 6, 3).rows, "300 vectors of 5 dimensions.*300 of 6")
    refused(good.data, good.rows[:-1], "300 vectors of 5 dimensions.*299 of 5")
    refused(good.data, saved(300, 5, 3, seed=8).rows, "another vector")


def test_an_index_with_room_left_is_refused() -> None:
    rows = saved(*SMALL).rows
    index = hnswlib.Index("l2", 5)
    index.init_index(1000, M=3)
    index.add_items(rows, np.arange(len(rows)), num_threads=1)
    refused(save(index), rows, "room for 1000")


def test_garbage_is_refused() -> None:
    rng = np.random.default_rng(0)
    for size in (0, 10, 96, 5000):
        refused(rng.integers(0, 256, size, dtype=np.uint8).tobytes(), saved(*SMALL).rows)
        refused(bytes(size), saved(*SMALL).rows)


def test_rows_of_a_wrong_kind_are_the_callers_error() -> None:
    good = saved(*SMALL)
    for rows in (good.rows.astype(np.float64), good.rows[0], good.rows.astype(">f4")):
        with pytest.raises(ValueError, match=r"expected \(N, D\) float32"):
            check_hnsw_file(good.data, rows, name=NAME)


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
