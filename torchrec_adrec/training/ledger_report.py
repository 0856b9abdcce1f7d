"""Audits a finished run: do its ledger's rows make whole epochs?"""

from pathlib import Path

from torchrec_adrec.config.run import load_config
from torchrec_adrec.data.loader.ledger import LEDGER, Audit, audit
from torchrec_adrec.data.loader.parquet import Reader
from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.distributed.checkpoint_files import latest
from torchrec_adrec.errors import DataError
from torchrec_adrec.runs.stages import CONFIG
from torchrec_adrec.schema import AD_ID
from torchrec_adrec.tasks.sharded import CHECKPOINTS


def audit_stage(folder: Path) -> list[Audit]:
    """Compare what a finished stage (RUN/TASK) read with what its epochs hold.

    Raises:
        DataError: the run kept no ledger.
    """
    last = latest(folder / CHECKPOINTS)  # the best one may be older than the last rows
    segments = last.state["ledger"] if last is not None else []
    if not segments:
        raise DataError(f"{folder} has no ledger; train with train.ledger=true")
    config = load_config(folder / CONFIG)
    reader = Reader(
        Split.open(folder.parent / "data/train"),
        (AD_ID,),
        config.train.batch_size,
        seed=config.seed,
        shuffle_window=config.train.shuffle_window,
    )
    return audit(folder / LEDGER, [(a, b, size) for a, b, size in segments], reader)
