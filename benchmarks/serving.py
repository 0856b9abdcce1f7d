"""What sharing the user's tokens among 500 candidates saves.

    python benchmarks/serving.py --run runs/demo

Both ways give the same probabilities (checked); one thread; medians of interleaved
rounds. The other way repeats the user for every candidate, as a ranker without the
one-way mask must.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from timing import interleave, keep_result, ratio

from torchrec_adrec.batch import TowerInput
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.data.request import raw_user
from torchrec_adrec.schema import Side
from torchrec_adrec.serve.recommender import Recommender


def main() -> None:
    """Measure and keep."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--run", type=Path, required=True, help="a finished run")
    arguments.add_argument("--rounds", type=int, default=30)
    args = arguments.parse_args()
    recommender = Recommender.load(args.run)
    users = json.loads((args.run / "data/example_users.json").read_text())
    one = recommender.user_input(users[0])
    count = recommender.settings.candidates
    ids, scores = recommender.retriever.retrieve(one, count)
    raw = raw_user(users[0], recommender.encoder.schema)
    rows = recommender.scorer.rows(ids)
    cross = recommender.crosses.of(raw, rows)
    repeated = _repeat(recommender, one, len(ids))
    score = partial(recommender.scorer.score, rows=rows, scores=scores, cross=cross)
    once, each = score(one), score(repeated)
    assert all(np.allclose(once[n], each[n], atol=1e-6) for n in once | each)
    ways = {
        "user once": lambda: score(one),
        "user for every ad": lambda: score(repeated),
        "whole request": lambda: recommender.recommend(users[0]),
    }
    seconds = interleave(ways, args.rounds)
    keep_result(
        "serving",
        {
            "candidates": len(ids),
            "threads": torch.get_num_threads(),
            "milliseconds": {n: round(median(s) * 1e3, 2) for n, s in seconds.items()},
            "times_faster_once": round(
                ratio(seconds, "user for every ad", "user once"), 2
            ),
            "seconds": seconds,
        },
    )


def _repeat(recommender: Recommender, one: TowerInput, rows: int) -> TowerInput:
    schema = recommender.encoder.schema
    if schema.sequences:
        raise SystemExit("this benchmark repeats a user without a history")
    columns = {
        f.name: np.repeat(one.sparse[f.name].values().numpy(), rows)
        for f in schema.sparse_of(Side.USER)
    }
    dense = one.dense[0].numpy()
    for i, feature in enumerate(schema.dense_of(Side.USER)):
        columns[feature.name] = np.repeat(dense[i], rows)
    return tower_input(columns, schema, Side.USER)


if __name__ == "__main__":
    main()
