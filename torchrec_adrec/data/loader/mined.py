"""Draws the mined negatives of a step: ads of the list of each of its clicks.

`training.mine` writes the lists, one for each training click, in the order of the rows:

    rows.npy      (C,)    int64, the click's number in the training split, rising
    clicked.npy   (C,)    int32, the place of its ad among those that training showed
    lists.npy     (C, R)  int32, the places of the ads to draw from; -1 behind the last
"""

from pathlib import Path
from typing import Any

import numpy as np

from torchrec_adrec.arrays import Columns, Int64s
from torchrec_adrec.data.keys import salt, salted_hash
from torchrec_adrec.data.loader.negatives import shown_ads
from torchrec_adrec.data.loader.parquet import StepRows
from torchrec_adrec.errors import ConfigError, DataError
from torchrec_adrec.schema import AD_ID, LOG_Q, Schema

MINED = "mined"  # the folder of the lists, inside that of the stage
ROWS, CLICKED, LISTS = "rows.npy", "clicked.npy", "lists.npy"


class MinedAds:
    """Draws ads for the clicked rows of a step.

    What is drawn for a row follows from the seed, the step and the row's number: it is
    the same on any number of ranks, and after a resume.

    Args:
        folder: of the stage.
        data: folder of the prepared data set.
        schema: of the ad's columns.
        per_click: ads of one click.
        seed: of the run.

    Raises:
        ConfigError: no lists were mined.
    """

    def __init__(
        self, folder: Path, data: Path, schema: Schema, per_click: int, seed: int
    ) -> None:
        self._arguments = folder, data, schema, per_click, seed
        if not (folder / MINED).exists():
            raise ConfigError(
                f"{folder / MINED} is missing: the lists of retrieval.mined are written"
                " before a training begins, by `adrec train retrieval`"
            )
        self.columns = shown_ads(data, schema)
        self.per_click, self.seed = per_click, seed
        self.click = schema.label_names[0]
        self.rows = np.load(folder / MINED / ROWS)
        self.clicked = np.load(folder / MINED / CLICKED)
        # The lists may be larger than memory; of a step only a few are read.
        self.lists = np.load(folder / MINED / LISTS, mmap_mode="r")

    def __reduce__(self) -> tuple[Any, ...]:
        """Let the process that reads open the files: a copy would hold all lists."""
        return type(self), self._arguments

    def of_step(self, step: int, rows: StepRows) -> Columns:
        """The columns of the ads of a step, (B * per_click,), row by row.

        Every row has as many, so that a step has the same shapes on all ranks; those of
        a row without a click are its own ad, and no loss reads them. `LOG_Q` is the log
        of how likely a draw is this ad; infinite where there was none to draw.

        Raises:
            DataError: a clicked row has no list, or that of another ad.
        """
        is_click = (rows.columns[self.click] == 1) & (rows.weights > 0)
        clicks = np.flatnonzero(is_click)
        ids = rows.columns[AD_ID]
        places = np.searchsorted(self.columns[AD_ID], ids)
        lists = self.lists[self._lists_of(rows, clicks, places)]
        counts = (lists >= 0).sum(axis=1)
        drawn = np.repeat(places[:, None], self.per_click, axis=1)
        has_ads = counts > 0
        drawn[clicks[has_ads]] = np.take_along_axis(
            lists[has_ads],
            self._draws(step, rows.numbers[clicks[has_ads]], counts[has_ads]),
            axis=1,
        )
        chance = np.full((len(ids), self.per_click), np.inf)
        chance[clicks[has_ads]] = -np.log(counts[has_ads])[:, None]
        columns = {name: values[drawn.ravel()] for name, values in self.columns.items()}
        columns[LOG_Q] = chance.ravel().astype(np.float32)
        return columns

    def _draws(self, step: int, numbers: Int64s, counts: Int64s) -> Int64s:
        """Draw places of the lists of rows, (Q, per_click), each below its count."""
        draws = numbers[:, None] * self.per_click + np.arange(self.per_click)
        hashes = salted_hash(draws, salt(f"mined negatives {self.seed} {step}"))
        return (hashes % counts[:, None].astype(np.uint64)).astype(np.int64)

    def _lists_of(self, rows: StepRows, clicks: Int64s, places: Int64s) -> Int64s:
        """The number of the list of each click."""
        numbers = rows.numbers[clicks]
        lists = np.searchsorted(self.rows, numbers).clip(max=len(self.rows) - 1)
        # A list of another row would go unnoticed: its ads look as good as any.
        wrong = self.rows[lists] != numbers
        wrong |= self.clicked[lists] != places[clicks]
        if wrong.any():
            number = int(numbers[np.argmax(wrong)])
            raise DataError(
                f"{rows.split.locate(number)}: the list that was mined for training"
                f" row {number} is of another row or ad; the data have changed since:"
                f" remove {self._arguments[0]} and train again"
            )
        return lists
