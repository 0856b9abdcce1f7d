"""Parts of an export: kept if whole and of the same towers, else made again."""

import errno
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trained_run import SETTINGS

from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import CheckpointError, ManifestError
from torchrec_adrec.evaluation.encode import NORM_TOLERANCE, encode_rows
from torchrec_adrec.export import encode
from torchrec_adrec.export.export import QUERIES, export
from torchrec_adrec.export.parts import Parts, rows_of_a_part, write_vectors
from torchrec_adrec.index.embeddings import Embeddings
from torchrec_adrec.index.manifest import (
    IndexManifest,
    load_vectors,
    vectors_in,
    vectors_of,
)
from torchrec_adrec.runs.stages import stage_folder
from torchrec_adrec.schema import AD_ID, Schema, Side
from torchrec_adrec.serve.proof import Proof
from torchrec_adrec.serve.recommender import Recommender
from torchrec_adrec.tasks.sharded import restore, restore_whole

SOURCE = {"checkpoint": "step 1 (weights 0)", "schema": "0"}


@pytest.mark.parametrize("ads", [1, 63, 64, 65, 4096, 100_000, 1_000_000, 10_000_000])
def test_parts_cover_all_ads_whatever_the_number_of_ranks(
    ads: int, tmp_path: Path
) -> None:
    parts = Parts(tmp_path, np.arange(ads), "fp32", SOURCE)
    slices = [parts.slice_of(number) for number in range(parts.count)]
    assert slices[0].start == 0 and slices[-1].stop == ads
    assert all(a.stop == b.start for a, b in pairwise(slices))
    assert all(0 < s.stop - s.start <= rows_of_a_part(ads) <= 32_768 for s in slices)


def test_some_ads_are_read_from_their_groups_of_rows_alone(tmp_path: Path) -> None:
    rng, ids = np.random.default_rng(0), np.arange(5_000) * 7 + 2**62
    vectors = rng.normal(size=(len(ids), 3)).astype(np.float32)
    for number, part in enumerate((slice(0, 3_000), slice(3_000, 5_000))):
        path = tmp_path / f"part-{number:05d}.parquet"
        write_vectors(path, ids[part], vectors[part])
        assert pq.ParquetFile(path).num_row_groups == 3 - number
        some = pq.read_table(path).slice(1_000, 100)
        expected = vectors[part][1_000:1_100]
        np.testing.assert_array_equal(vectors_in(some), expected)
    rows = rng.permutation(len(ids))[:200]
    np.testing.assert_array_equal(vectors_of(tmp_path, ids[rows]), vectors[rows])
    with pytest.raises(ManifestError, match=f"ad {ids[-1] + 1} of the catalog is not"):
        vectors_of(tmp_path, np.append(ids[rows], ids[-1] + 1))


def written(parts: Parts) -> None:
    for number in range(parts.count):
        rows = parts.slice_of(number)
        parts.write(number, np.ones((rows.stop - rows.start, 4), dtype=np.float32))


def test_a_part_is_kept_only_if_nothing_about_it_differs(tmp_path: Path) -> None:
    ids = np.arange(200) + 2**62
    parts = Parts(tmp_path, ids, "fp32", SOURCE)
    assert parts.missing() == [0, 1, 2, 3]
    written(parts)
    assert parts.missing() == []
    (tmp_path / "part-00001.parquet").unlink()
    path = tmp_path / "part-00002.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert parts.missing() == [1, 2]
    place = whole.index(np.ones(4, dtype=np.float32).tobytes())
    path.write_bytes(whole[:place] + b"\x01" + whole[place + 1 :])
    assert parts.missing() == [1, 2]  # a flipped byte of a vector
    path.write_bytes(whole)
    assert parts.missing() == [1]
    for other in (
        Parts(tmp_path, ids, "fp16", SOURCE),
        Parts(tmp_path, ids, "fp32", SOURCE | {"checkpoint": "step 2 (weights 1)"}),
        Parts(tmp_path, ids, "fp32", SOURCE | {"schema": "1"}),
        Parts(tmp_path, ids + 1, "fp32", SOURCE),
    ):
        assert other.missing() == [0, 1, 2, 3]


def test_a_part_of_lists_is_made_again_and_not_read(tmp_path: Path) -> None:
    """An older version wrote vectors as lists of numbers."""
    parts = Parts(tmp_path, np.arange(64), "fp32", SOURCE)
    source = json.dumps(SOURCE | {"dtype": "fp32"}, sort_keys=True).encode()
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(256, dtype="f4")), 4)
    table = pa.table({"ad_id": parts.ids, "vector": lists}, metadata={b"adrec": source})
    pq.write_table(table, parts.path(0))
    assert parts.missing() == [0]
    with pytest.raises(ManifestError, match="by another version: run `adrec export`"):
        load_vectors(tmp_path)


def test_vectors_are_those_of_their_ads(
    run: Path, process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a part takes several steps; and the last one may not fail unheard."""
    schema, catalog = Schema.load(run / "data/schema.json"), load_catalog(run / "data")
    tower = restore_whole("retrieval", run, schema)[0].model.ad_tower
    parts = Parts(tmp_path, catalog[AD_ID].to_numpy(), "fp32", SOURCE)
    monkeypatch.setattr(encode, "WRITERS", 2)
    assert parts.count > encode.WRITERS
    encode.encode_parts(tower, catalog, schema, "cosine", 7, parts, process)
    ids, vectors = load_vectors(tmp_path)
    np.testing.assert_array_equal(ids, parts.ids)
    expected = encode_rows(tower, catalog, schema, Side.AD, process)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    parts.path(parts.count - 1).unlink()
    monkeypatch.setattr(Parts, "write", lambda *_: (tmp_path / "none/x").write_text(""))
    with pytest.raises(FileNotFoundError):
        encode.encode_parts(tower, catalog, schema, "cosine", 7, parts, process)


def test_a_vector_that_half_floats_do_not_reach_is_refused(tmp_path: Path) -> None:
    vectors = np.full((1, 4), 7e4, dtype=np.float32)
    with pytest.raises(CheckpointError, match="a vector holds 70000, half floats end"):
        write_vectors(tmp_path / "part", np.arange(1), vectors, "fp16")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def config() -> Config:
    return load_config(None, SETTINGS)


def exported(run: Path, config: Config, process: Process, out: Path) -> Any:
    out.mkdir(exist_ok=True)
    schema = Schema.load(run / "data/schema.json")
    model, towers = restore("retrieval", run, schema, config, process)
    export(model, towers, run / "data", config, process, out)
    return load_vectors(out)


def test_an_export_that_was_stopped_goes_on(
    run: Path,
    config: Config,
    process: Process,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was finished is kept, and nothing else is: the result is the same."""
    ids, vectors = load_vectors(run / "export")
    _, queries = load_vectors(run / "export", QUERIES)
    # Of a rank that there is no longer: the users of all ranks are in those of fewer.
    write_vectors(tmp_path / "queries-00001.parquet", ids[:3], vectors[:3])
    write = Parts.write
    numbers: list[int] = []
    most = 2

    def count(self: Parts, number: int, vectors: Any) -> None:
        if len(numbers) == most:
            raise OSError(errno.ENOSPC, "")
        numbers.append(number)
        write(self, number, vectors)

    monkeypatch.setattr(Parts, "write", count)
    with pytest.raises(OSError, match="Errno 28"):
        exported(run, config, process, tmp_path)
    assert not (tmp_path / "manifest.json").exists()
    most = 1000
    again_ids, again = exported(run, config, process, tmp_path)
    parts = Embeddings.open(run / "export").manifest.parts
    assert len(parts) > 2 and sorted(numbers) == list(range(len(parts)))
    np.testing.assert_array_equal(again_ids, ids)
    np.testing.assert_allclose(again, vectors, atol=1e-6)
    _, again_queries = load_vectors(tmp_path, QUERIES)
    np.testing.assert_allclose(again_queries, queries, atol=1e-6)
    assert sorted(tmp_path.glob("queries*")) == [tmp_path / QUERIES]
    assert not list(tmp_path.glob("*.partial"))


def test_half_floats_are_near_and_are_served(
    run: Path, config: Config, process: Process, tmp_path: Path
) -> None:
    _, vectors = load_vectors(run / "export")
    half = load_config(None, [*SETTINGS, "export.dtype=fp16"])
    _, rounded = exported(run, half, process, tmp_path)
    manifest = Embeddings.open(tmp_path).manifest
    assert manifest.dtype == "fp16" and rounded.dtype == np.float32
    assert 0 < np.abs(rounded - vectors).max() < 1e-3
    # Serving compares what it encodes with what was exported.
    served = Recommender.load(run)
    towers, loaded = restore_whole("retrieval", run, served.encoder.schema)
    indexed = IndexManifest.load(stage_folder(run, "index"))
    proof = Proof(
        served.user_input,
        served.retriever,
        served.scorer,
        towers.model.ad_tower,
        loaded,
        indexed.model_copy(update={"embeddings": manifest}),
        tmp_path,
    )
    proof.check()
    full = manifest.model_copy(update={"dtype": "fp32"})
    with pytest.raises(ManifestError, match="gives other ads"):
        replace(proof, manifest=indexed.model_copy(update={"embeddings": full})).check()
    norms = np.linalg.norm(rounded, axis=1)
    np.testing.assert_allclose(norms, 1, atol=NORM_TOLERANCE)


def test_vectors_that_cannot_be_compared_are_not_written(
    run: Path,
    config: Config,
    process: Process,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encode, "encode_rows", lambda *args: encode_rows(*args) * 2)
    with pytest.raises(CheckpointError, match="not of length 1"):
        exported(run, config, process, tmp_path)
    assert not list(tmp_path.glob("part-*"))
