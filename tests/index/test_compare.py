"""Kinds side by side; one that cannot reach the target says so and is no row."""

from pathlib import Path

import faiss
from built_index import K, clustered_corpus

from torchrec_adrec.evaluation.pictures import kinds_picture
from torchrec_adrec.index.compare import compare, file_bytes
from torchrec_adrec.index.kinds import KINDS


def test_every_kind_is_measured_or_refused(tmp_path: Path) -> None:
    data = clustered_corpus()
    rows = list(compare(KINDS, data.exported(), data.queries, K, 0.98))
    assert [row.kind for row in rows] == list(KINDS)
    measured = [row for row in rows if not row.refusal]
    # Four of eight directions lose too much.
    assert {row.kind for row in rows} - {row.kind for row in measured} <= {
        "pca_ivf_sq8_refined",
        "ivf_rabitq_refined",
        "ivf_sq8",
    }
    for row in measured:
        assert row.recall is not None and row.recall >= 0.98
        assert set(row.search) == set(KINDS[row.kind](**row.build).search_grid())
        assert row.milliseconds["p50"] <= row.milliseconds["p99"]
    refused = next(row for row in rows if row.kind == "pca_ivf_sq8_refined")
    assert "below index.target_recall 0.98" in refused.refusal
    kinds_picture([row.model_dump() for row in measured], "title", tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    index = faiss.IndexFlatIP(8)
    index.add(clustered_corpus().vectors)
    faiss.write_index(index, str(tmp_path / "index"))
    assert file_bytes(index) == (tmp_path / "index").stat().st_size
