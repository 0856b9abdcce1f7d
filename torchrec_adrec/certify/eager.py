"""Computes pairs of a user and an ad with the sharded models, as training judged them.

Nothing of serving is used here: rows are encoded like those of the data, and both sides
of every pair go through models that are sharded over the ranks.
"""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import numpy as np
import polars as pl
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from torchrec_adrec.arrays import Columns, Float32s, Float64s, Int64s
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.column import RawColumns
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.request import RawUser, raw_ads, raw_user
from torchrec_adrec.distributed.process import Process, process_group, unchanged_process
from torchrec_adrec.errors import StageError
from torchrec_adrec.export.ad_file import AdRows
from torchrec_adrec.runs.stage_settings import stage_settings
from torchrec_adrec.runtime.logs import silence_libraries
from torchrec_adrec.schema import AD_ID, Schema, Side
from torchrec_adrec.tasks.blend import ALONE, load_blend
from torchrec_adrec.tasks.calibration import load_calibrations
from torchrec_adrec.tasks.label_heads import prediction
from torchrec_adrec.tasks.sharded import restore

CATALOG = Path("catalog.parquet")  # for messages
BATCH = 1_024  # pairs of one step of a rank
LAUNCHERS_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
)


@dataclass(frozen=True)
class Pairs:
    """The pairs that are computed.

    Attributes:
        users: raw columns of each request.
        requests: (P,) the request of each pair.
        ads: (P,) ids.
    """

    users: Sequence[RawUser]
    requests: Int64s
    ads: Int64s


@dataclass(frozen=True)
class Computed:
    """What the models make of P pairs.

    Attributes:
        users, ads: vectors, (P, D) each.
        predictions: (P,) by label, calibrated and blended.
    """

    users: Float32s
    ads: Float32s
    predictions: dict[str, Float64s]

    @property
    def scores(self) -> Float32s:
        """The inner products, (P,)."""
        return np.asarray((self.users * self.ads).sum(axis=1))

    @classmethod
    def in_order(cls, parts: Sequence[tuple[Int64s, Self]], pairs: int) -> Self:
        """Put the pairs of all ranks into their order; some ranks repeat the first."""
        numbers = np.concatenate([rows for rows, _ in parts])
        _, first = np.unique(numbers, return_index=True)
        assert len(first) == pairs, "every pair is computed by some rank"
        computed = [part for _, part in parts]
        return cls(
            np.concatenate([part.users for part in computed])[first],
            np.concatenate([part.ads for part in computed])[first],
            {
                label: np.concatenate([part.predictions[label] for part in computed])[
                    first
                ]
                for label in computed[0].predictions
            },
        )


def compute(run: Path, pairs: Pairs) -> Computed:
    """Compute all pairs over all ranks of the launcher. Collective.

    Args:
        run: folder of the run.
        pairs: the same on every rank.

    Raises:
        ManifestError, CheckpointError: a part of the run is damaged.
    """
    silence_libraries()  # a process of its own has not done so yet
    with process_group("cpu") as process, unchanged_process(process.device):
        torch.set_float32_matmul_precision("highest")
        # Ranks take turns, and as many pairs each: a lookup waits for all of them.
        count, ranks = len(pairs.ads), process.world_size
        rows = np.arange(process.rank, -(-count // ranks) * ranks, ranks) % count
        local = _compute_rows(run, pairs, rows, process)
        parts: list[Any] = [None] * ranks
        dist.all_gather_object(parts, (rows, local))
    return Computed.in_order(parts, count)


def compute_on_ranks(run: Path, pairs: Pairs, ranks: int) -> Computed:
    """Compute all pairs in processes of their own, which share the models by gloo.

    Raises:
        StageError: a process failed; its own error stands above.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="spawn",
    )
    handlers = {number: signal.getsignal(number) for number in LAUNCHERS_SIGNALS}
    try:
        results = elastic_launch(config, compute)(run, pairs)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        raise StageError(f"rank {failure.local_rank} of {ranks} failed") from None
    finally:
        # The launcher takes signals for itself and does not give them back.
        for number, handler in handlers.items():
            signal.signal(number, handler)
    computed: Computed = results[0]
    return computed


def _compute_rows(run: Path, pairs: Pairs, rows: Int64s, process: Process) -> Computed:
    encoder, catalog = Encoder.load(run / "data"), load_catalog(run / "data")
    schema = encoder.schema
    settings = [stage_settings(run / task) for task in ("retrieval", "ranking")]
    towers, _ = restore("retrieval", run, schema, settings[0], process)
    ranker, checkpoint = restore("ranking", run, schema, settings[1], process)
    towers.eval(), ranker.eval()
    blend, calibrations = load_blend(checkpoint), load_calibrations(checkpoint)
    parts = []
    for first in range(0, len(rows), BATCH):
        user, ad, joined = _inputs(encoder, catalog, pairs, rows[first : first + BATCH])
        with torch.no_grad():
            of_users, of_ads, clicks = towers.module.model(user, ad)
            logits: Tensor = ranker.module.model(user, joined).double()
        if blend != ALONE:
            logits[:, 0] = blend.apply(logits[:, 0], clicks.double())
        predictions = {
            label.name: prediction(label, column, calibrations).numpy()
            for label, column in zip(schema.labels, logits.T, strict=True)
        }
        parts.append(Computed(of_users.numpy(), of_ads.numpy(), predictions))
    numbered = np.split(np.arange(len(rows)), range(BATCH, len(rows), BATCH))
    return Computed.in_order([*zip(numbered, parts, strict=True)], len(rows))


def _inputs(
    encoder: Encoder, catalog: pl.DataFrame, pairs: Pairs, rows: Int64s
) -> list[Any]:
    """Encode pairs: the users, the ads for the towers, the ads for the ranker."""
    schema = encoder.schema
    places = np.searchsorted(catalog[AD_ID].to_numpy(), pairs.ads[rows])
    ads = catalog[places]
    columns = {name: ads[name].to_numpy() for name in schema.columns_of(Side.AD)}
    users, crosses = [], []
    for row, number in enumerate(rows):
        raw = raw_user(pairs.users[pairs.requests[number]], schema)
        users.append(encoder.encode(raw, Side.USER))
        crosses.append(encoder.encode_cross(raw | _raw_ad(ads, row, schema)))
    user = tower_input(_stacked(users), schema, Side.USER)
    ad = tower_input(columns, schema, Side.AD)
    joined = tower_input(columns | _stacked(crosses), schema.joined, Side.AD)
    return [user, ad, joined]


def _raw_ad(ads: pl.DataFrame, row: int, schema: Schema) -> RawColumns:
    """Read the raw columns of an ad, from which crosses are made."""
    if not schema.cross:
        return {}
    return raw_ads(AdRows.of_catalog(ads[row : row + 1], schema, CATALOG).frame, schema)


def _stacked(rows: Sequence[Columns]) -> Columns:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
