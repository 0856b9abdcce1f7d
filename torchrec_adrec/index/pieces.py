"""One index cut into files that join to it again, the same for any number of files.

An index numbers its vectors 0, 1, ... in the order of the ads' ids. What a file holds
depends on the structure of the index:

- inverted lists: some of the lists, whole. Joined, they stay where they are in the
  mapped files, behind one coarse quantiser, and a search costs what one file costs.
- a table of codes (exact search, the second stage of a refined index): some rows.
  Joined, they are copied behind one another; a single file stays mapped.

An index that is neither, as a graph, cannot be joined: each file is searched.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.index.manifest import Layout

Assign = Callable[[Float32s], Int64s]  # (n, D) to the number of a list for each, (n,)
LISTS = 4  # `InvertedLists::SUBSET_TYPE_INVLIST`: a range of lists


def can_be_joined(index: Any) -> bool:
    """Whether several files of such an index make one index again."""
    return _lists(index) is not None or isinstance(_table(index), faiss.IndexFlatCodes)


def add(
    index: Any, vectors: Float32s, numbers: Int64s, assign: Assign | None = None
) -> None:
    """Add vectors under their numbers, which must follow those before.

    Args:
        index: an index of some kind.
        vectors: (n, D).
        numbers: (n,) of the whole index; a table keeps only their order.
        assign: finds the lists of vectors, for an index that is nothing but lists;
            None: FAISS does.
    """
    if isinstance(index, faiss.IndexRefine):
        add(faiss.downcast_index(index.base_index), vectors, numbers)
        index.refine_index.add(vectors)
        index.ntotal = index.refine_index.ntotal
    elif assign is not None:
        places = assign(vectors)
        pointers = [faiss.swig_ptr(array) for array in (vectors, numbers, places)]
        index.add_core(len(vectors), *pointers)
    elif _lists(index) is not None:
        index.add_with_ids(vectors, numbers)
    else:
        index.add(vectors)


def numbers_in(index: Any) -> Int64s:
    """Return the number of every vector that an index holds, in no order."""
    lists = _lists(index)
    if lists is None:
        return np.arange(index.ntotal)
    parts = [np.empty(0, dtype=np.int64)]
    for place in range(lists.nlist):
        size = lists.list_size(place)
        if size:
            # Copied, because the pointer shows memory that the index owns.
            parts.append(faiss.rev_swig_ptr(lists.get_ids(place), size).copy())
    return np.concatenate(parts)


def list_sizes(indexes: Iterable[Any]) -> Int64s:
    """Return the number of vectors in each inverted list, over several files."""
    sizes: list[Int64s] = []
    for index in indexes:
        lists = _lists(index)
        if lists is not None:
            counts = [lists.list_size(number) for number in range(lists.nlist)]
            sizes.append(np.array(counts, dtype=np.int64))
    return np.sum(sizes, axis=0, dtype=np.int64) if sizes else np.empty(0, np.int64)


def even_cuts(sizes: Int64s, count: int) -> tuple[int, ...]:
    """Cut consecutive lists into `count` ranges of about as many vectors each.

    >>> even_cuts(np.array([5, 1, 1, 1, 4]), 2)
    (0, 2, 5)
    """
    ends = np.concatenate([[0], np.cumsum(sizes)])
    targets = ends[-1] * np.arange(1, count) / count
    cuts = np.searchsorted(ends, targets).tolist() if len(sizes) else []
    return (0, *cuts, len(sizes)) if len(sizes) else ()


def cut(
    sources: Sequence[Any], old: Layout, target: Any, new: Layout, number: int
) -> None:
    """Fill an empty index with what one file is to hold; nothing is encoded again.

    Args:
        sources: the indexes of all files there are, mapped and not read.
        old: which rows each of them holds; lists may be in several, in order.
        target: an empty index of the same training.
        new: the layout of the files that are made.
        number: of the file, from 0.
    """
    ivf = _ivf(target)
    if ivf is not None:
        first, stop = new.lists[number : number + 2]
        if _packer(target) is None:
            for source in sources:
                _ivf(source).copy_subset_to(ivf, LISTS, first, stop)
        else:
            for place in range(first, stop):
                _copy_packed(sources, target, place)
    table = _table(target)
    if table is not None:
        first, stop = new.rows[number : number + 2]
        for place, source in enumerate(sources):
            start, end = old.rows[place : place + 2]
            low, high = max(first, start), min(stop, end)
            if low < high:
                table.add_sa_codes(_codes(_table(source))[low - start : high - start])
    _count(target)


def _packer(index: Any) -> Any:
    """Return what packs the codes of fast-scan lists, 32 vectors at a time, or None."""
    return getattr(faiss.downcast_InvertedLists(_lists(index)), "packer", None)


def _copy_packed(sources: Sequence[Any], target: Any, place: int) -> None:
    """Fill an empty list of packed codes with those of several files.

    FAISS would append to a block that is not full, but writes beyond the end of the
    list where the codes before are as many as a block has bytes. So all codes are
    unpacked, and packed once.

    Args:
        sources: the indexes of all files.
        target: the index whose list is filled.
        place: of the list.
    """
    packer, lists = _packer(target), _lists(target)
    ids, codes = [np.empty(0, np.int64)], [np.empty((0, packer.code_size), np.uint8)]
    for source in map(_lists, sources):
        size = source.list_size(place)
        if size:
            blocks = -(-size // packer.nvec)
            length = blocks * packer.block_size
            packed = faiss.rev_swig_ptr(source.get_codes(place), length)
            flat = np.empty((blocks * packer.nvec, packer.code_size), np.uint8)
            _each_block(packer.unpack_all, packed, flat, blocks)
            codes.append(flat[:size])
            ids.append(faiss.rev_swig_ptr(source.get_ids(place), size).copy())
    all_ids = np.concatenate(ids)
    size, blocks = len(all_ids), -(-len(all_ids) // packer.nvec)
    if size:
        flat = np.zeros((blocks * packer.nvec, packer.code_size), np.uint8)
        flat[:size] = np.concatenate(codes)
        packed = np.zeros(blocks * packer.block_size, np.uint8)
        _each_block(lambda p, f: packer.pack_all(f, p), packed, flat, blocks)
        lists.add_entries(place, size, faiss.swig_ptr(all_ids), faiss.swig_ptr(packed))


def _each_block(work: Any, packed: Any, flat: Any, blocks: int) -> None:
    pairs = zip(packed.reshape(blocks, -1), flat.reshape(blocks, -1), strict=True)
    for block, codes in pairs:
        work(faiss.swig_ptr(block), faiss.swig_ptr(codes))


def join(paths: Sequence[Path], layout: Layout) -> Any:
    """Open the files of an index as one, mapped into memory where that is possible.

    Args:
        paths: of all files, in order.
        layout: of these files.
    """
    if len(paths) == 1:
        return open_mapped(paths[0])
    parts = [open_mapped(path) for path in paths]
    # A file of its own, read and not mapped, because its contents are replaced.
    joined = faiss.read_index(str(paths[0]))
    table = _table(joined)
    if table is not None:
        for part in parts[1:]:
            table.add_sa_codes(_codes(_table(part)))
    if _ivf(joined) is not None:
        _stack(joined, parts, layout.lists)
    _count(joined)
    return joined


def open_mapped(path: Path) -> Any:
    """Open an index whose vectors stay in the file until they are looked at."""
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)


def _stack(joined: Any, parts: Sequence[Any], bounds: Sequence[int]) -> None:
    library: Any = faiss  # its type stubs know none of these
    ivf = _ivf(joined)
    slices = [
        library.SliceInvertedLists(_lists(part), bounds[number], bounds[number + 1])
        for number, part in enumerate(parts)
    ]
    pointers = library.InvertedListsPtrVector()
    for one in slices:
        pointers.push_back(one)
    lists = library.VStackInvertedLists(pointers.size(), pointers.data())
    ivf.replace_invlists(lists, False)
    # FAISS holds bare pointers: without these the files would be closed under it.
    library.add_to_referenced_objects(joined, (lists, slices, parts))


def _count(index: Any) -> None:
    """Set the number of vectors on every level of an index after its parts changed."""
    ivf, table = _ivf(index), _table(index)
    if ivf is not None:
        ivf.ntotal = ivf.invlists.compute_ntotal()
        base = index.base_index if isinstance(index, faiss.IndexRefine) else index
        base.ntotal = ivf.ntotal
    index.ntotal = ivf.ntotal if table is None else table.ntotal


def _ivf(index: Any) -> Any:
    ivf = faiss.try_extract_index_ivf(index)
    return None if ivf is None else faiss.downcast_index(ivf)


def _lists(index: Any) -> Any:
    ivf = _ivf(index)
    return None if ivf is None else ivf.invlists


def _table(index: Any) -> Any:
    """Return the table of codes that an index consists of, or refines with."""
    if isinstance(index, faiss.IndexRefine):
        return faiss.downcast_index(index.refine_index)
    return index if isinstance(index, faiss.IndexFlatCodes) else None


def _codes(table: Any) -> Any:
    """Return the codes of a table, (n, code size), as they lie in memory."""
    shape = table.ntotal, table.code_size
    if not table.ntotal:  # there is no memory to look at
        return np.empty(shape, dtype=np.uint8)
    return faiss.rev_swig_ptr(table.codes.data(), shape[0] * shape[1]).reshape(shape)
