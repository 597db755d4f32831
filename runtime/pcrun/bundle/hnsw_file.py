"""Every number of a saved hnswlib index, verified before hnswlib loads it.

`hnswlib.Index.load_index` trusts its file: a wrong element count, offset, link id or level makes native code
read or write outside its buffers. The layout below is that of `saveIndex` and `loadIndex` in hnswlib 0.8
(`hnswlib/hnswalg.h`), on machines with a 64-bit `size_t`, in the machine's own byte order:

    header     96 bytes, `_HEADER`
    level 0    count elements of size_data_per_element bytes:
               uint32 link count (low 16 bits; bit 16 marks the element as deleted), maxM0 uint32 link ids,
               dim float32 vector, uint64 label
    upper      per element: uint32 size in bytes, then for each level from 1 a uint32 link count and maxM
               uint32 link ids

`ef`, the space and the dimension are not in the file; the dimension follows from two offsets.
"""

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

import numpy as np

from pcrun.errors import BundleError
from pcrun.types import AnyArray, FloatArray, Int64Array

HnswBuffer: TypeAlias = bytes | memoryview | mmap.mmap

# offsetLevel0_, max_elements_, cur_element_count, size_data_per_element_, label_offset_, offsetData_,
# maxlevel_, enterpoint_node_, maxM_, maxM0_, M_, mult_, ef_construction_
_HEADER = struct.Struct("=6QiI3QdQ")

_LINK_BYTES = 4  # tableint, and the uint32 in front of each list
_LABEL_BYTES = 8  # labeltype is size_t
_DELETED_BIT = 1 << 16  # DELETE_MARK is bit 0 of the third byte
_MAX_M = 10_000  # hnswlib's own cap
_MAX_DIM = 1 << 20
_MAX_EF_CONSTRUCTION = 1 << 31
_MAX_LEVEL = 64  # -ln(U) / ln(M) stays below it for the smallest U > 0 that the generator gives and M = 2
_BLOCK_BYTES = 4 << 20  # of vectors or links looked at in one step; the largest temporary array

_REBUILD = "Rebuild the bundle with `pcexport build`."
_COPY = "The file is damaged: copy the bundle again, or rebuild it with `pcexport build`."


@dataclass(frozen=True)
class HnswHeader:
    """The header of a saved index, in plain words.

    Attributes:
        count: entries in the index.
        max_elements: entries there is room for after loading.
        dim: length of each vector (float32).
        m: links per element and upper level; level 0 has twice as many.
        ef_construction: width of the search at insertion.
        max_level: highest level, 0 when there is only the base level.
        entry_point: internal id of the element a search starts from.
        element_bytes: size of one level-0 element.
    """

    count: int
    max_elements: int
    dim: int
    m: int
    ef_construction: int
    max_level: int
    entry_point: int
    element_bytes: int

    @property
    def max_links0(self) -> int:
        """Links per element on level 0 (hnswlib's maxM0)."""
        return 2 * self.m

    @property
    def level0_end(self) -> int:
        """Position of the first byte after the level-0 elements."""
        return _HEADER.size + self.count * self.element_bytes


def read_hnsw_header(data: HnswBuffer, *, name: str) -> HnswHeader:
    """Read the header of a saved index; its numbers must agree with each other and with the file's length.

    Args:
        data: the whole file.
        name: the file's name, for messages.

    Returns:
        The header.

    Raises:
        BundleError: the file is too short or a number is impossible.
    """
    if len(data) < _HEADER.size:
        _fail(name, f"has {len(data)} bytes", f"Expected an hnswlib index, whose header has {_HEADER.size}.")
    fields = _HEADER.unpack_from(data)
    offset0, room, count, element_bytes, label_at, data_at, max_level, entry, max_m, max_m0, m, mult, ef = (
        fields
    )
    _expect(name, 2 <= m <= _MAX_M, f"says M = {m}", f"Expected 2 to {_MAX_M}.")
    _expect(
        name,
        (max_m, max_m0) == (m, 2 * m),
        f"says maxM = {max_m}, maxM0 = {max_m0}",
        f"Expected {m}, {2 * m}.",
    )
    _expect(name, m <= ef <= _MAX_EF_CONSTRUCTION, f"says ef_construction = {ef}", f"Expected at least {m}.")
    level_scale = 1.0 / math.log(m)
    _expect(
        name, math.isclose(mult, level_scale, rel_tol=1e-9), f"says mult = {mult}", f"Expected {level_scale}."
    )
    dim = _dim(name, m, offset0, data_at, label_at, element_bytes)
    _expect(name, count >= 1, "holds no entry", "Expected at least one.")
    smallest = _HEADER.size + count * (element_bytes + _LINK_BYTES)
    _expect(
        name,
        len(data) >= smallest,
        f"has {len(data)} bytes for {count} entries",
        f"Expected {smallest} or more.",
    )
    _expect(
        name, room == count, f"reserves room for {room} entries", f"Expected {count}, the number it holds."
    )
    _expect(
        name,
        0 <= max_level <= _MAX_LEVEL,
        f"says its highest level is {max_level}",
        f"Expected 0 to {_MAX_LEVEL}.",
    )
    _expect(name, entry < count, f"starts searches at element {entry}", f"Expected 0 to {count - 1}.")
    return HnswHeader(count, room, dim, m, ef, max_level, entry, element_bytes)


def _dim(name: str, m: int, offset0: int, data_at: int, label_at: int, element_bytes: int) -> int:
    """Check the layout of one level-0 element (links, vector, label) and return the vector's length."""
    links_bytes = _LINK_BYTES + 2 * m * _LINK_BYTES
    _expect(name, offset0 == 0, f"puts links at offset {offset0}", "Expected 0.")
    _expect(
        name,
        data_at == links_bytes,
        f"puts vectors at offset {data_at}",
        f"Expected {links_bytes} for M = {m}.",
    )
    dim, rest = divmod(label_at - data_at, 4)
    whole = rest == 0 and 1 <= dim <= _MAX_DIM
    _expect(
        name, whole, f"puts labels at offset {label_at}", f"Expected {data_at} plus 4 per vector component."
    )
    total = label_at + _LABEL_BYTES
    _expect(name, element_bytes == total, f"says an element has {element_bytes} bytes", f"Expected {total}.")
    return int(dim)


def check_hnsw_file(data: HnswBuffer, rows: FloatArray, *, name: str, tolerance: float = 0.0) -> HnswHeader:
    """Verify a saved index completely against the memory bank it was built from.

    After this, loading these bytes with the returned dimension (space l2) and searching them stays inside
    hnswlib's buffers, and every label names the row of the bank that holds exactly the stored vector. The
    quality of the graph (recall) is not judged. Temporary memory: a few `_BLOCK_BYTES`, and about 30 bytes an
    entry.

    Args:
        data: the whole file; a mmap can be closed right afterwards, also when this raises.
        rows: (N, D) float32 memory bank, row i under label i.
        name: the file's name, for messages.
        tolerance: largest accepted difference of a stored number from the row's; 0 wants the same bytes.
            Rows that were computed here, from the bank and a basis, may differ from the build's by rounding.

    Returns:
        The header.

    Raises:
        BundleError: the file is damaged or belongs to another memory bank.
        ValueError: `rows` is not a two-dimensional float32 array.
    """
    if rows.ndim != 2 or rows.dtype != np.float32:
        raise ValueError(f"rows has shape {rows.shape} and dtype {rows.dtype}; expected (N, D) float32")
    try:
        return _check(memoryview(data).cast("B"), rows, name, tolerance)
    except BundleError as error:
        # The traceback's frames hold arrays over `data`;
        # while they live, a mmap cannot be closed (BufferError).
        raise error.with_traceback(None) from None


def _check(data: memoryview, rows: FloatArray, name: str, tolerance: float) -> HnswHeader:
    header = read_hnsw_header(data, name=name)
    if (header.count, header.dim) != rows.shape:
        raise BundleError(
            f"{name} holds {header.count} vectors of {header.dim} dimensions, the memory bank "
            f"{rows.shape[0]} of {rows.shape[1]}. Both must come from the same build. {_REBUILD}"
        )
    elements = np.frombuffer(data, dtype=_element_dtype(header), count=header.count, offset=_HEADER.size)
    labels = _check_labels(elements["label"], name)
    _check_links0(elements, header, name)
    _check_vectors(elements["vector"], rows, labels, name, tolerance)
    words, starts, levels = _read_upper(data, header, name)
    _check_levels(levels, header, name)
    for level in range(1, header.max_level + 1):
        _check_level(words, starts, levels, level, header, name)
    return header


def _element_dtype(header: HnswHeader) -> np.dtype[np.void]:
    return np.dtype(
        [
            ("links", "=u4"),
            ("ids", "=u4", (header.max_links0,)),
            ("vector", "=u4", (header.dim,)),  # float32 as bits: NaN and -0.0 compare like any other value
            ("label", "=u8"),
        ]
    )


def _check_labels(stored: AnyArray, name: str) -> Int64Array:
    """Return the labels of the elements in stored order, a permutation of 0 .. N-1."""
    count = len(stored)
    largest = int(stored.max())
    _expect(name, largest < count, f"has the label {largest}", f"Expected labels 0 to {count - 1}.")
    labels = stored.astype(np.int64)
    seen = np.zeros(count, dtype=np.bool_)
    seen[labels] = True
    if not seen.all():
        _fail(
            name,
            f"has no entry with label {int(np.argmin(seen))}",
            "Expected each row of the memory bank once.",
        )
    return labels


def _check_links0(elements: AnyArray, header: HnswHeader, name: str) -> None:
    slots = np.arange(header.max_links0, dtype=np.uint32)
    for start, stop in _blocks(header.count, 4 * header.max_links0):
        links = elements["links"][start:stop]
        if (links & _DELETED_BIT).any():
            raise BundleError(
                f"{name} has entries that are marked as deleted. A bundle's index holds none. {_REBUILD}"
            )
        _check_lists(links, elements["ids"][start:stop], slots, header.count, f"{name} (level 0)")


def _check_lists(links: AnyArray, ids: AnyArray, slots: AnyArray, count: int, name: str) -> None:
    """Check link counts (n,) and link ids (n, room) of one level; slots beyond a count may hold anything."""
    most = int(links.max())
    _expect(name, most <= len(slots), f"has a list of {most} links", f"Expected at most {len(slots)}.")
    wrong = (ids >= count) & (slots < links[:, None])
    if wrong.any():
        _fail(name, f"links to element {int(ids[wrong][0])}", f"Expected ids 0 to {count - 1}.")


def _check_vectors(
    stored: AnyArray, rows: FloatArray, labels: Int64Array, name: str, tolerance: float
) -> None:
    for start, stop in _blocks(len(stored), 4 * rows.shape[1]):
        wanted = np.ascontiguousarray(rows[labels[start:stop]])
        if tolerance:
            difference = np.ascontiguousarray(stored[start:stop]).view(np.float32) - wanted
            same = (np.abs(difference) <= tolerance).all(axis=1)  # False for NaN too
        else:
            same = (stored[start:stop] == wanted.view(np.uint32)).all(axis=1)
        if not same.all():
            label = int(labels[start + int(np.argmin(same))])
            raise BundleError(
                f"{name} holds another vector than the memory bank under label {label}. Both must hold the "
                "same bytes; one is damaged or they come from different builds: copy the bundle again, or "
                "rebuild it with `pcexport build`."
            )


def _read_upper(data: memoryview, header: HnswHeader, name: str) -> tuple[AnyArray, Int64Array, Int64Array]:
    """Walk the upper link lists up to the last byte of the file.

    Returns:
        words: the section after level 0 as uint32.
        starts: (N,) index into words of each element's first upper list.
        levels: (N,) highest level of each element.
    """
    spare = (len(data) - header.level0_end) % _LINK_BYTES
    _expect(name, spare == 0, f"ends with {spare} odd bytes", "Expected whole link lists.")
    words = data[header.level0_end :].cast("I")
    total, list_words = len(words), header.m + 1
    starts, levels = np.zeros((2, header.count), dtype=np.int64)
    pos = 0
    for element in range(header.count):
        if pos >= total:
            _fail(
                name,
                f"ends before the upper links of element {element}",
                f"Expected {header.count} elements.",
            )
        size = words[pos]
        pos += 1
        if size == 0:
            continue
        level, rest = divmod(size, _LINK_BYTES * list_words)
        if rest or level > header.max_level or pos + level * list_words > total:
            _fail(
                name,
                f"gives element {element} {size} bytes of upper links",
                "Expected whole lists inside the file.",
            )
        starts[element], levels[element] = pos, level
        pos += level * list_words
    _expect(name, pos == total, f"has {4 * (total - pos)} bytes after its last list", "Expected none.")
    return np.frombuffer(words, dtype=np.uintc), starts, levels


def _check_levels(levels: Int64Array, header: HnswHeader, name: str) -> None:
    highest, entry_level = int(levels.max()), int(levels[header.entry_point])
    if highest != header.max_level or entry_level != header.max_level:
        fact = f"says its highest level is {header.max_level}"
        _fail(
            name,
            fact,
            f"Its elements reach {highest}, its entry point {entry_level}; all three must be equal.",
        )


def _check_level(
    words: AnyArray, starts: Int64Array, levels: Int64Array, level: int, header: HnswHeader, name: str
) -> None:
    slots = np.arange(header.m, dtype=np.uint32)
    members = np.flatnonzero(levels >= level)
    firsts = starts[members] + (level - 1) * (header.m + 1)
    where = f"{name} (level {level})"
    for start, stop in _blocks(len(firsts), 8 * header.m):
        links = words[firsts[start:stop]]
        ids = words[firsts[start:stop, None] + 1 + slots]
        _check_lists(links, ids, slots, header.count, where)
        used = slots < links[:, None]
        # Slots in use are proven < count; the others may hold anything and must not index `levels`.
        absent = levels[np.where(used, ids, 0)] < level
        if (absent & used).any():
            _fail(
                where, f"links to element {int(ids[absent & used][0])}", "Expected an element of this level."
            )


def _blocks(count: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    step = max(1, _BLOCK_BYTES // row_bytes)
    for start in range(0, count, step):
        yield start, min(start + step, count)


def _expect(name: str, holds: bool, fact: str, expected: str) -> None:
    if not holds:
        _fail(name, fact, expected)


def _fail(name: str, fact: str, expected: str) -> NoReturn:
    raise BundleError(f"{name} {fact}. {expected} {_COPY}")
