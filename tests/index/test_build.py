"""All ranks build the files of one index, and damaged or foreign files are refused."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import faiss
import numpy as np
import pytest
from built_index import D, K, N, built, corpus, exported, on_threads

from torchrec_adrec.errors import ConfigError, GateError, ManifestError
from torchrec_adrec.index.build import reshard
from torchrec_adrec.index.embeddings import Embeddings
from torchrec_adrec.index.gate_checks import check_ids
from torchrec_adrec.index.kinds import KINDS
from torchrec_adrec.index.kinds.kind import fastest
from torchrec_adrec.index.manifest import (
    IDS,
    EmbeddingManifest,
    Gate,
    IndexManifest,
    Layout,
)
from torchrec_adrec.index.pieces import (
    add,
    can_be_joined,
    cut,
    even_cuts,
    join,
    list_sizes,
)
from torchrec_adrec.index.sharded import ShardedIndex
from torchrec_adrec.runtime.files import sha256


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for a busy core make these small k-means slow."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("before", "after", "ranks"), [(1, 4, 2), (4, 3, 1), (3, 1, 2)]
)
def test_other_shards_of_the_same_index(
    kind: str, before: int, after: int, ranks: int, tmp_path: Path
) -> None:
    data = corpus()
    index = built(kind, before, tmp_path / "before", data)
    out = tmp_path / "after"
    out.mkdir()
    if not can_be_joined(index.shards[0].index):
        with pytest.raises(ConfigError, match="cannot be cut into other shards"):
            on_threads(
                1, lambda rank: reshard(tmp_path / "before", index.layout, 2, rank, out)
            )
        return
    layouts = on_threads(
        ranks,
        lambda rank: reshard(tmp_path / "before", index.layout, after, rank, out),
    )
    assert sorted(p.name for p in out.iterdir()) == [IDS, *layouts[0].names]
    again = ShardedIndex.open(out, layouts[0], index.kind)
    for expected, actual in zip(
        index.nearest(data.queries, K, fastest(index.kind)),
        again.nearest(data.queries, K, fastest(index.kind)),
        strict=True,
    ):
        np.testing.assert_array_equal(expected, actual)


FACTORIES = (
    "Flat",
    "IVF20,Flat",
    "IVF20,SQfp16",
    "IVF20,SQ8",
    "PCA4,IVF20,SQ8",
    "IVF20,PQ4x4fs",
    "IVF20,SQ8,Refine(SQfp16)",
    "PCA4,IVF20,SQ8,Refine(SQfp16)",
)


@pytest.mark.parametrize("factory", FACTORIES)
def test_every_structure_of_an_index_is_cut_and_joined(
    factory: str, tmp_path: Path
) -> None:
    """Codes are copied as they are, whatever encoded them."""
    data = corpus()
    vectors = data.vectors[np.argsort(data.ids)]
    whole = faiss.index_factory(D, factory, faiss.METRIC_INNER_PRODUCT)
    if not whole.is_trained:
        whole.train(vectors)
    empty = faiss.serialize_index(whole)
    add(whole, vectors, np.arange(N))
    rows, pieces = (0, 1100, 1100, N), []
    for first, stop in pairwise(rows):
        piece = faiss.deserialize_index(empty)
        if first < stop:
            add(piece, vectors[first:stop], np.arange(first, stop))
        pieces.append(piece)
    layout = Layout(rows=(0, 7, N), lists=even_cuts(list_sizes(pieces), 2))
    for number, name in enumerate(layout.names):
        shard = faiss.deserialize_index(empty)
        cut(pieces, Layout(rows=rows), shard, layout, number)
        faiss.write_index(shard, str(tmp_path / name))
    joined = join([tmp_path / name for name in layout.names], layout)
    assert joined.ntotal == N
    parameters: Any = None
    if "IVF" in factory:
        parameters = faiss.SearchParametersIVF()
        parameters.nprobe = 7
    if "Refine" in factory:
        lists, parameters = parameters, faiss.IndexRefineSearchParameters()
        parameters.k_factor, parameters.base_index_params = 2, lists
    expected, _ = whole.search(data.queries, K, params=parameters)
    actual, numbers = joined.search(data.queries, K, params=parameters)
    if "PCA" in factory:  # a matrix product of other rows at a time rounds otherwise
        np.testing.assert_allclose(actual, expected, rtol=0.05)
        return
    np.testing.assert_array_equal(actual, expected)
    assert all(len(set(row)) == K for row in numbers.tolist())


def test_a_joined_index_outlives_what_it_was_joined_from(tmp_path: Path) -> None:
    index = built("ivf_flat", 3, tmp_path, corpus())
    expected = index.search(corpus().queries, K)
    for path in tmp_path.glob("*.faiss"):
        path.unlink()  # as garbage collection of versions does
    for first, second in zip(expected, index.search(corpus().queries, K), strict=True):
        np.testing.assert_array_equal(first, second)


def test_lists_are_cut_into_even_ranges() -> None:
    sizes = np.array([5, 0, 3, 0, 0, 2, 7])
    for count in range(1, 9):
        cuts = even_cuts(sizes, count)
        assert len(cuts) == count + 1 and (cuts[0], cuts[-1]) == (0, 7)
        assert list(cuts) == sorted(cuts)
    assert even_cuts(np.zeros(3, np.int64), 2)[-1] == 3
    assert even_cuts(np.empty(0, np.int64), 4) == ()


def test_no_rank_reads_all_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read and kept at a time is one part of the export."""
    largest: list[int] = []
    read = Embeddings.read

    def watched(self: Embeddings, parts: range) -> Any:
        largest.append(len(parts))
        yield from read(self, parts)

    monkeypatch.setattr(Embeddings, "read", watched)
    built("ivf_flat", 3, tmp_path, corpus(), world_size=3)
    # 6 parts of 500 ads: two a rank for the sample, two a piece.
    assert largest == [2] * 6


def swapped(manifest: EmbeddingManifest, folder: Path) -> None:
    names = list(manifest.parts)
    parts = {name: manifest.parts[name] for name in (names[1], names[0], *names[2:])}
    manifest.model_copy(update={"parts": parts}).save(folder)


def doubled(manifest: EmbeddingManifest, folder: Path) -> None:
    first, second, *_ = manifest.parts
    (folder / second).write_bytes((folder / first).read_bytes())
    files = manifest.files | {second: manifest.files[first]}
    manifest.model_copy(update={"files": files}).save(folder)


def miscounted(manifest: EmbeddingManifest, folder: Path) -> None:
    parts = manifest.parts | {"part-00000.parquet": 499, "part-00001.parquet": 501}
    manifest.model_copy(update={"parts": parts}).save(folder)


def short(manifest: EmbeddingManifest, folder: Path) -> None:
    manifest.model_copy(update={"count": N - 1}).save(folder)


def cut_off(manifest: EmbeddingManifest, folder: Path) -> None:
    path = folder / "part-00002.parquet"
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (swapped, "3000 distinct ads in 3000 rows.*in rising order"),
        (doubled, "2500 distinct ads in 3000 rows"),
        (miscounted, "holds 500 ads, expected 499"),
        (short, "the parts hold 3000 ads, the manifest says 2999"),
        (cut_off, r"part-00002\.parquet: expected sha256"),
    ],
)
def test_a_faulty_export_is_not_indexed(
    fault: Callable[[EmbeddingManifest, Path], None],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def damaged(*args: Any) -> Embeddings:
        fault(exported(*args).manifest, args[1])
        return Embeddings.open(args[1])

    monkeypatch.setattr("built_index.exported", damaged)
    with pytest.raises(ManifestError, match=message):
        built("exact", 2, tmp_path, corpus())


def loadable(index: ShardedIndex, folder: Path) -> IndexManifest:
    """As much of a manifest as opening an index reads."""
    names, gate = (*index.layout.names, IDS), cast(Any, Gate)
    return IndexManifest.model_construct(
        embeddings=EmbeddingManifest.load(folder),
        kind=index.kind.name,
        build=dict(vars(index.kind)),
        search=index.setting,
        count=N,
        layout=index.layout,
        files={name: sha256(folder / name) for name in names},
        gate=gate.model_construct(filtered=()),
    )


@pytest.mark.parametrize("name", ["shard-00001.faiss", IDS])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_or_flipped_file_is_refused(kind: str, name: str, tmp_path: Path) -> None:
    manifest = loadable(built(kind, 2, tmp_path, corpus()), tmp_path)
    ShardedIndex.load(tmp_path, manifest)
    whole = (tmp_path / name).read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for content in (whole[:-10], flipped):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ManifestError, match=f"{name}: expected sha256"):
            ShardedIndex.load(tmp_path, manifest)
    (tmp_path / name).unlink()
    with pytest.raises(ManifestError, match="found no file"):
        ShardedIndex.load(tmp_path, manifest)


def test_counts_widths_and_metrics_that_do_not_fit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = loadable(built("exact", 2, tmp_path, corpus()), tmp_path)
    embeddings = manifest.embeddings
    wider = embeddings.model_copy(update={"dim": 16})
    more = embeddings.model_copy(update={"count": N + 1})
    for update, message in (
        ({"count": N - 1}, "hold 3000 ads, the manifest says 2999"),
        ({"embeddings": more}, "exported were 3001"),
        ({"embeddings": wider}, "width 8, exported were 16"),
    ):
        with pytest.raises(ManifestError, match=message):
            ShardedIndex.load(tmp_path, manifest.model_copy(update=update))
    monkeypatch.setattr(faiss, "IndexFlatIP", faiss.IndexFlatL2)
    other = tmp_path / "l2"
    manifest = loadable(built("exact", 2, other, corpus()), other)
    with pytest.raises(ManifestError, match="another metric than the inner product"):
        ShardedIndex.load(other, manifest)


def test_ids_of_another_catalog_are_refused(tmp_path: Path) -> None:
    index = built("exact", 2, tmp_path, corpus())
    np.save(tmp_path / IDS, index.ids()[:-1])
    with pytest.raises(ManifestError, match=r"hold 3000 ads, ids\.npy names 2999"):
        ShardedIndex.open(tmp_path, index.layout, index.kind)


def test_lists_that_hold_an_ad_twice_and_another_one_never_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counts are right and so are the ids beside the index."""

    def halved(index: Any, vectors: Any, numbers: Any, assign: Any) -> None:
        add(index, vectors, numbers - numbers % 2, assign)

    monkeypatch.setattr("torchrec_adrec.index.build.add", halved)
    data = corpus()
    index = built("ivf_flat", 2, tmp_path, data)
    assert index.count == N
    with pytest.raises(GateError, match="hold 1500 distinct ads in 3000 entries"):
        check_ids(index, data.exported())
