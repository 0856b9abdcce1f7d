"""What the parts that round make of the requests: told, and judged where they serve."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.data.request import RawUser, raw_user
from torchrec_adrec.index.answers import best_of, nothing
from torchrec_adrec.index.changes import Changes
from torchrec_adrec.index.manifest import IndexManifest, load_vectors
from torchrec_adrec.runs.stages import EXPORT, INDEX, stage_folder
from torchrec_adrec.serve.certificate import Comparison
from torchrec_adrec.serve.engines import ENGINES, EXACT, QUICK
from torchrec_adrec.serve.parts import Parts
from torchrec_adrec.serve.proof import positive
from torchrec_adrec.serve.rank_by import RankBy

TOP = 10
MEASURED = 50  # requests on which an engine is measured, all candidates of each


def compare_index(
    run: Path, parts: Parts, users: Sequence[RawUser], changes: Changes
) -> Comparison:
    """Compare the ten best ads of the index with those of the exported vectors.

    Args:
        run: folder of the run.
        parts: loaded.
        users: raw columns of the requests.
        changes: of the ads since the export.
    """
    manifest = IndexManifest.load(stage_folder(run, INDEX.name))
    queries = np.concatenate([parts.user_vector(user) for user in users])
    exact_ids, exact = nothing(len(queries))
    longest = 0.0
    for ids, vectors in _all_vectors(run, manifest, changes):
        scores = queries @ vectors.T
        rows: Int64s = np.broadcast_to(ids, scores.shape)
        exact_ids, exact = best_of([(exact_ids, exact), (rows, scores)], TOP)
        longest = max(longest, float(np.linalg.norm(vectors, axis=1).max()))
    indexed, scores = parts.retriever.index.search(queries, TOP)
    lengths = positive(np.linalg.norm(queries, axis=1) * np.float32(longest))
    # By place: where the index misses an ad, all below it move up.
    error: Float32s = np.abs(scores - exact).max(axis=1) / lengths
    return Comparison(
        name=f"index {manifest.kind} = exact search",
        count=len(queries),
        largest=float(error.max()),
        unit="the longest vector",
        allowed=None,
        overlap=_overlap(indexed, exact_ids),
    )


def _all_vectors(
    run: Path, manifest: IndexManifest, changes: Changes
) -> Iterator[tuple[Int64s, Float32s]]:
    """Read the vectors of all ads that there are, ids (n,) and (n, D) of a part."""
    for name in manifest.embeddings.parts:
        ids, vectors = load_vectors(run / EXPORT.name, name)
        kept = ~np.isin(ids, changes.touched)
        yield ids[kept], vectors[kept]
    if len(changes.ids):
        yield changes.ids, changes.vectors


@torch.inference_mode()
def compare_engines(parts: Parts, users: Sequence[RawUser]) -> list[Comparison]:
    """Measure every engine that rounds, on all candidates of some requests.

    Args:
        parts: loaded, the ranker in float32.
        users: raw columns of the requests.
    """
    scorer, schema = parts.scorer, parts.scorer.schema
    rank_by = RankBy.of(parts.settings.rank_by, schema, scorer.shown)
    head = scorer.ranker.head
    logits, best = {}, {}
    for name in QUICK:
        scorer.ranker.head = ENGINES[name](head, len(schema.labels))
        answers = [_answer(parts, rank_by, user) for user in users[:MEASURED]]
        logits[name] = torch.cat([answer[0] for answer in answers]).double()
        best[name] = [answer[1] for answer in answers]
    scorer.ranker.head = head
    return [
        Comparison(
            name=f"engine {name} = {EXACT}",
            count=logits[name].numel(),
            largest=(logits[name] - logits[EXACT]).abs().max().item(),
            unit="a logit of 1",
            allowed=None,
            overlap=_overlap(best[name], best[EXACT]),
        )
        for name in QUICK
        if name != EXACT
    ]


def _answer(
    parts: Parts, rank_by: RankBy, user: RawUser
) -> tuple[torch.Tensor, Int64s]:
    """Return the logits of a user's candidates, and the ids of the ten best."""
    ids, scores = parts.retrieve(user)
    rows = parts.scorer.rows(ids)
    cross = parts.crosses.of(raw_user(user, parts.encoder.schema), rows)
    encoded = parts.user_input(user)
    logits = parts.scorer.ranker.dense(*parts.scorer.inputs(encoded, rows, cross))
    predictions = parts.scorer.score(encoded, rows, scores, cross)
    order = np.lexsort((ids, -rank_by.score(predictions, rows)))
    return logits, ids[order[:TOP]]


def _overlap(
    lists: Sequence[Int64s] | Int64s, others: Sequence[Int64s] | Int64s
) -> float:
    """Return the share of ads that two lists of each request have in common."""
    pairs = zip(lists, others, strict=True)
    return float(np.mean([np.isin(a, b).mean() for a, b in pairs]))
