"""Mines negatives of the towers: what an earlier checkpoint retrieves for each click.

The lists are made once, before the first step, and stand in the folder of the stage
with a record of what they were made from. Which ads of them a step draws follows from
the seed and the step alone (`data.loader.mined`).
"""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from torchrec_adrec.arrays import Int64s
from torchrec_adrec.config.run import Config
from torchrec_adrec.config.train import RetrievalConfig
from torchrec_adrec.data.loader.mined import CLICKED, LISTS, MINED, ROWS
from torchrec_adrec.distributed.checkpoint import Checkpoint, open_checkpoint
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import CheckpointError, ConfigError, ManifestError, reason
from torchrec_adrec.evaluation.exact_search import ExcludedAds
from torchrec_adrec.runtime.files import (
    Origin,
    catalog_hash,
    check_hashes,
    vocabulary_hashes,
    write_hashes,
)
from torchrec_adrec.runtime.progress import Progress
from torchrec_adrec.training.click_search import ROW, ClickSearch

RECORD = "mined.json"

log = logging.getLogger(__name__)


class MinedFrom(BaseModel):
    """Tells, in `mined.json`, what lists were made from.

    Attributes:
        checkpoint: of the towers that searched.
        catalog: hash of the catalog, which counts the training rows of every ad.
        ranks: the first and the last place of a list.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: Origin
    catalog: str
    ranks: tuple[int, int]


def mine(config: Config, process: Process, data: Path, folder: Path) -> None:
    """Write the lists of all training clicks, if the settings ask for some. Collective.

    Lists that a run has written before it was interrupted stay.

    Args:
        config: of the run.
        process: this rank.
        data: a prepared data set.
        folder: of the stage.

    Raises:
        ConfigError: there are too few ads for the ranks.
        CheckpointError: the checkpoint is none of towers of these rows.
        ManifestError: lists that were written before have changed, or were made from
            something else.
    """
    if not config.retrieval.mined.per_click:
        return
    towers = open_checkpoint(Path(config.retrieval.mined.checkpoint))
    _check_towers(towers, data)
    source = MinedFrom(
        checkpoint=towers.origin,
        catalog=catalog_hash(data),
        ranks=config.retrieval.mined.ranks,
    )
    final, partial = folder / MINED, folder / f"{MINED}.partial"
    is_mined = final.exists()
    process.barrier()  # all have looked
    if is_mined:
        _check_source(final, source)
        return
    if process.is_first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    process.barrier()
    _write(partial, _search(config, process, data, towers), source, process)
    process.barrier()
    if process.is_first:
        (partial / RECORD).write_text(source.model_dump_json() + "\n")
        write_hashes(partial, [partial / n for n in (ROWS, CLICKED, LISTS, RECORD)])
        partial.rename(final)
    process.barrier()


def _check_towers(towers: Checkpoint, data: Path) -> None:
    """Refuse what is no towers, or has seen other rows than those to train on.

    Towers of other rows may have seen clicks that are held out here.
    """
    expected: dict[str, Any] = {
        "task": "retrieval",
        "vocabulary": vocabulary_hashes(data),
        "catalog": catalog_hash(data),
    }
    differing = [name for name in expected if towers.state.get(name) != expected[name]]
    if differing:
        raise CheckpointError(
            f"retrieval.mined.checkpoint {towers.path} does not fit: it has another"
            f" {', '.join(differing)} than the towers of {data}; train towers on these"
            " rows first, with this version"
        )


def _check_source(folder: Path, source: MinedFrom) -> None:
    """Refuse lists that were damaged, or made from something else."""
    check_hashes(folder)
    recorded = MinedFrom.model_validate_json((folder / RECORD).read_text())
    if recorded != source:
        raise ManifestError(
            f"{folder} was mined from {recorded}, expected {source}: the checkpoint,"
            f" the data or the ranks have changed; remove {folder.parent} and train"
            " again"
        )


def _search(
    config: Config, process: Process, data: Path, towers: Checkpoint
) -> ClickSearch:
    """Open the towers by the settings that they were trained with."""
    try:
        settings = RetrievalConfig.model_validate(towers.state["config"]["retrieval"])
    except ValidationError as error:
        raise CheckpointError(
            f"{towers.path} has settings of another version: {reason(error)}; train"
            " these towers again"
        ) from None
    searching = config.model_copy(update={"retrieval": settings})
    search = ClickSearch(searching, process, data, towers)
    last, ads = config.retrieval.mined.ranks[1], len(search.catalog) - 1
    if last > ads:
        raise ConfigError(
            f"retrieval.mined.ranks end at {last}, but beside the clicked one training"
            f" showed {ads} ads; set a last rank below"
        )
    return search


def _write(
    folder: Path, search: ClickSearch, source: MinedFrom, process: Process
) -> None:
    """Write the lists of all clicks; all ranks search, and the first one writes."""
    first, last = source.ranks
    shape, done, empty = (search.total, last - first + 1), 0, 0
    rows, clicked = np.empty(search.total, np.int64), np.empty(search.total, np.int32)
    lists = None
    if process.is_first:
        lists = np.lib.format.open_memmap(folder / LISTS, "w+", np.int32, shape)
    for clicks, places in _lists(search, first, last):
        chunk = slice(done, done + len(clicks))
        rows[chunk], clicked[chunk] = clicks[ROW].to_numpy(), search.places(clicks)
        if lists is not None:
            lists[chunk] = places
        done, empty = chunk.stop, empty + int((places[:, 0] < 0).sum())
    if empty == done:
        raise ConfigError(
            f"retrieval.mined.ranks begin at {first}, but no training click has so many"
            " ads that its user has not clicked; set a first rank below"
        )
    if lists is not None:
        lists.flush()
        np.save(folder / ROWS, rows)
        np.save(folder / CLICKED, clicked)
        log.info("mined %d clicks, %d of them without an ad to draw", done, empty)


def _lists(
    search: ClickSearch, first: int, last: int
) -> Iterator[tuple[pl.DataFrame, Int64s]]:
    """Yield clicks with the ads of their ranks, (Q, last - first + 1); -1 where none.

    Ads that a click's user is known to have clicked have no rank.
    """
    with Progress("mining negatives", search.total, "clicks") as progress:
        for clicks in search.clicks():
            known = search.known(clicks).sort("query")
            counts = np.bincount(known["query"].to_numpy(), minlength=len(clicks))
            starts = np.append(0, np.cumsum(counts))
            excluded = ExcludedAds(starts, known["ad"].to_numpy())
            # The search keeps the clicked ad among the candidates: one more is asked
            # for, and the clicked one goes to the end of the list.
            lists = search.lists(clicks, last + 1, excluded)
            is_clicked = lists == search.places(clicks)[:, None]
            order = np.argsort(is_clicked, axis=1, kind="stable")
            yield clicks, np.take_along_axis(lists, order, axis=1)[:, first - 1 : last]
            progress.advance(len(clicks))
