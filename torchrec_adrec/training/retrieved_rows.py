"""Rows of retrieved ads that nobody was shown: the ranker's unobserved negatives.

Logged rows hold the ads that some system has shown. A request ranks the best of the
whole catalog, most of which no user like this one was ever shown. So for each training
click some of the ads that the towers retrieve for its user become rows too: without a
click, and with a weight; every other label counts as not observed.

They are made once, before the first step, as files like those of a split. So the
reader, the ledger and a run that goes on see rows as any others, and the same ones.
"""

import shutil
from pathlib import Path

from torchrec_adrec.config.run import Config
from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.data.loader.sampled_split import RetrievedRows
from torchrec_adrec.distributed.checkpoint_files import Checkpoint
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.runtime.files import check_hashes, write_hashes
from torchrec_adrec.training.retrieved_ads import RetrievedAds

RETRIEVED = "retrieved"  # their folder, inside that of the stage


def retrieved_rows(
    task: str, config: RankingConfig, folder: Path
) -> RetrievedRows | None:
    """Return where a stage's rows of retrieved ads are; None: it has none.

    Args:
        task: only a ranker has some.
        config: says whether, and how much they count.
        folder: of the stage.
    """
    settings = config.retrieved_negatives
    if task != "ranking" or not settings.per_click:
        return None
    return RetrievedRows(folder / RETRIEVED, settings.weight)


def draw_retrieved_rows(
    config: Config,
    process: Process,
    data: Path,
    folder: Path,
    towers: Checkpoint | None,
) -> RetrievedRows | None:
    """Draw the rows, if a ranker's settings ask for some. Collective.

    Rows that a run has drawn before it was interrupted stay.

    Args:
        config: of the run.
        process: this rank.
        data: a prepared data set.
        folder: of the stage.
        towers: the retrieval checkpoint that searches.

    Raises:
        ConfigError: there are no towers, the data lack what the rows need, or no row
            could be drawn.
        ManifestError: rows that were drawn before have changed.
    """
    retrieved = retrieved_rows("ranking", config.ranking, folder)
    if retrieved is None:
        return None
    is_drawn = retrieved.folder.exists()
    process.barrier()  # all have looked
    if is_drawn:
        check_hashes(retrieved.folder)
        return retrieved
    if towers is None:
        raise ConfigError(
            "ranking.retrieved_negatives needs the towers: run `adrec train retrieval`"
        )
    partial = retrieved.folder.with_name(f"{RETRIEVED}.partial")
    if process.is_first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    process.barrier()
    count = RetrievedAds(config, process, data, towers).write(partial)
    process.barrier()
    if not count:
        raise ConfigError(
            f"ranking.retrieved_negatives: no candidate of any training click of"
            f" {data} is an ad that its user has not clicked; set candidates higher,"
            " or per_click to 0"
        )
    if process.is_first:
        write_hashes(partial, sorted(partial.glob("part-*.parquet")))
        partial.rename(retrieved.folder)
    process.barrier()
    return retrieved
