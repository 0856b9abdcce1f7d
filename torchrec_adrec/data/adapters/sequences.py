"""Interaction sets of the literature: a line a user, `user item item ...`.

S3-Rec's Amazon sets and the LightGCN split of Gowalla are files of this kind, plain or
.gz. They hold positives and ids alone. What the order of the items means only the
settings can say (`data.sequences.ordered`): a history that is made of items in the
order of their numbers would be no history.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from torchrec_adrec.config.data import DataConfig, SequencesConfig
from torchrec_adrec.data.adapters.adapter import Adapter, RawFiles
from torchrec_adrec.data.adapters.rows import ColumnRule, RawRows, good_rows
from torchrec_adrec.data.adapters.text_blocks import Block, blocks
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.data.dataset import DataSet, Negatives, raw_files
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.schema import Label, Schema, SequenceFeature, Side, SparseFeature

USER, ITEM, HISTORY, CLICK, PLACE = "user", "item", "history", "click", "row:place"
BROKEN = "\ufffd"  # what decoding puts in place of bytes that are no UTF-8
FILE_PLACES = 1 << 32  # a later file is later than every place of an earlier one


def schema(config: SequencesConfig) -> Schema:
    """The item, and of the user the history where there is an order, else the id."""
    item = SparseFeature(name=ITEM, side=Side.AD, source=ITEM, kind="text")
    user = SparseFeature(name=USER, side=Side.USER, source=USER, kind="text")
    history = SequenceFeature(
        name=HISTORY,
        side=Side.USER,
        source=HISTORY,
        max_length=config.length,
        shares_ids_with=ITEM,
    )
    return Schema(
        dense=(),
        sparse=(user, item) if config.has_user else (item,),
        sequences=(history,) if config.ordered else (),
        labels=(Label(name=CLICK),),
    )


def open_data(config: DataConfig) -> DataSet:
    """Find the files, and refuse a split that the order of the items does not allow.

    Raises:
        ConfigError: a file is missing, or the split needs an order that is not there.
    """
    files, settings = raw_files(config), config.sequences
    _check_split(config)
    return DataSet(
        schema=schema(settings),
        files=files,
        read=_Reader(files, settings.ordered, config.chunk_megabytes << 18).read,
        time=PLACE,
        user=USER,
        ad=ITEM,
        histories={HISTORY: ITEM} if settings.ordered else {},
        negatives=Negatives(settings.negatives, settings.negatives_by),
        copies={USER: (USER,)} if settings.has_user else {},
    )


def _check_split(config: DataConfig) -> None:
    by = config.split.by
    if by == "time":
        raise ConfigError(
            "data.split.by=time: the lines hold the order of one user's items, and no"
            " time by which two users compare; set data.split.by=leave_one_out, or"
            " files, user or random"
        )
    if by == "leave_one_out" and not config.sequences.ordered:
        raise ConfigError(
            "data.split.by=leave_one_out: data.sequences.ordered=false says that no"
            " item is the last one; set data.split.by=files or random"
        )


ADAPTER: Adapter = RawFiles(open_data)


@dataclass(frozen=True)
class _Reader:
    """Reads the lines.

    Attributes:
        files: in time order.
        ordered: whether the items of a line are.
        block_bytes: of text, held at a time; its rows take several times as much.
    """

    files: Sequence[Path]
    ordered: bool
    block_bytes: int

    def read(self, path: Path, bad: BadRows) -> Iterator[pl.DataFrame]:
        """`DataSet.read`."""
        first = self.files.index(path) * FILE_PLACES
        lines = _Lines()
        for block in blocks(path, self.block_bytes, bad):
            frame = lines.rows(block, path, bad)
            places = pl.int_ranges(pl.col(ITEM).list.len()) if self.ordered else 0
            place = pl.lit(first, dtype=pl.Int64) + places
            rows = frame.with_columns(place.alias(PLACE))
            yield rows.explode([ITEM, PLACE] if self.ordered else [ITEM]).with_columns(
                pl.lit(1.0, dtype=pl.Float32).alias(CLICK)
            )


@dataclass
class _Lines:
    """The lines of one file.

    Attributes:
        users: all that were read.
    """

    users: set[str] = field(default_factory=set)

    def rows(self, block: Block, path: Path, bad: BadRows) -> pl.DataFrame:
        """The users of a block's good lines, each with the list of his items."""
        text = block.text.decode(errors="replace").removesuffix("\n")
        frame = pl.DataFrame({"line": text.split("\n")}).with_columns(
            fields=pl.col("line").str.extract_all(r"\S+")
        )
        frame = frame.with_columns(
            pl.col("fields").list.first().alias(USER),
            items=pl.col("fields").list.slice(1),
        )
        # A second line of a user would begin at the first place again, and its items
        # would pass for the first ones of that user.
        known = pl.Series(list(self.users), dtype=pl.String).implode()
        repeated = ~pl.col(USER).is_first_distinct() | pl.col(USER).is_in(known)
        numbers = np.arange(block.first_line, block.first_line + len(frame))
        rules = (
            ColumnRule(
                ITEM,
                "line",
                pl.col("items"),
                (pl.col("items").list.len() == 0)
                | pl.col("line").str.contains(BROKEN, literal=True),
                "a user and one item or more in UTF-8, divided by spaces",
            ),
            ColumnRule(
                USER, USER, pl.col(USER), repeated, "a user without a line above"
            ),
        )
        good = good_rows(RawRows(frame, path, numbers, "line"), rules, bad)
        self.users.update(good[USER])
        return good
