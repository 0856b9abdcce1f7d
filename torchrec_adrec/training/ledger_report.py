"""Audits a finished run: do its ledger's rows make whole epochs?"""

from pathlib import Path

from torchrec_adrec.data.loader.ledger import LEDGER, Audit, audit
from torchrec_adrec.data.loader.parquet import Reader
from torchrec_adrec.data.loader.sampled_split import training_split
from torchrec_adrec.distributed.checkpoint_files import latest
from torchrec_adrec.errors import DataError
from torchrec_adrec.runs.stage_settings import stage_settings
from torchrec_adrec.schema import AD_ID, Schema
from torchrec_adrec.tasks.sharded import CHECKPOINTS
from torchrec_adrec.training.batch_source import negative_rate
from torchrec_adrec.training.retrieved_rows import retrieved_rows


def audit_stage(folder: Path) -> list[Audit]:
    """Compare what a finished stage (RUN/TASK) read with what its epochs hold.

    Raises:
        DataError: the run kept no ledger.
    """
    last = latest(folder / CHECKPOINTS)  # the best one may be older than the last rows
    segments = last.state["ledger"] if last is not None else []
    if last is None or not segments:
        raise DataError(f"{folder} has no ledger; train with train.ledger=true")
    config, data = stage_settings(folder), folder.parent / "data"
    rate = negative_rate(folder.name, config.ranking)
    retrieved = retrieved_rows(folder.name, config.ranking, folder)
    schema = Schema.load(data / "schema.json")
    reader = Reader(
        training_split(data, schema, rate, config.seed, last.trained_on, retrieved),
        (AD_ID,),
        config.train.batch_size,
        seed=config.seed,
        shuffle_window=config.train.shuffle_window,
    )
    return audit(folder / LEDGER, [(a, b, size) for a, b, size in segments], reader)
