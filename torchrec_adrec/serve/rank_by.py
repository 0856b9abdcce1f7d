"""The order of the served ads: a formula over predictions and columns of the catalog.

`recommend.rank_by` is read when a recommender is loaded, so a name that does not exist,
or a price that some ad lacks, is an error before the first request and not a wrong list
after it.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Columns, Float32s, Float64s, Int64s
from torchrec_adrec.config.formula import Formula
from torchrec_adrec.errors import ConfigError, PredictionError
from torchrec_adrec.schema import AD_ID, RANK_SCORE, SCORE, Schema


@dataclass(frozen=True)
class Ranked:
    """The candidates of one user, (n,) each.

    Attributes:
        ids, rows: of the ads, and where they stand in the catalog.
        scores: inner products of the towers.
        predictions: of each label.
    """

    ids: Int64s
    rows: Int64s
    scores: Float32s
    predictions: Mapping[str, Float64s]


@dataclass(frozen=True)
class RankBy:
    """Computes the number by which ads are ordered, the highest first.

    Attributes:
        formula: over the names of labels and of the catalog's numbers.
        columns: (N,) each, the catalog's numbers that the formula names.
    """

    formula: Formula
    columns: Mapping[str, Float64s]

    @classmethod
    def of(cls, text: str | None, schema: Schema, shown: pl.DataFrame) -> "RankBy":
        """Read a formula, with the catalog that its names come from.

        Args:
            text: the formula; None: the click alone, which is the first label.
            schema: names the labels.
            shown: the catalog's raw columns, one row an ad.

        Raises:
            ConfigError: a name that is neither a label nor a number of the catalog, or
                both; or a number that is missing for some ads.
        """
        formula = Formula.parse(text) if text else _name(schema.labels[0].name)
        catalog = shown.drop(AD_ID)
        numbers = [n for n in catalog.columns if catalog[n].dtype.is_numeric()]
        labels = schema.label_names
        unknown = [n for n in formula.names if n not in (*labels, *numbers)]
        if unknown:
            raise ConfigError(
                f"recommend.rank_by: {unknown} in {formula.text!r}, expected"
                f" predictions {list(labels)} or numbers of the catalog {numbers}"
            )
        ambiguous = [n for n in formula.names if n in labels and n in numbers]
        if ambiguous:
            raise ConfigError(
                f"recommend.rank_by: {ambiguous} are labels and columns of the catalog;"
                " rename one of them in the data"
            )
        names = [n for n in formula.names if n in numbers]
        return cls(formula, {n: _complete(catalog[n]) for n in names})

    @property
    def is_label(self) -> bool:
        """Whether the formula is the name of one label, as it is by default."""
        return self.formula.names == (self.formula.text.strip(),) and not self.columns

    def best(self, ads: Ranked, top: int) -> tuple[pl.DataFrame, Int64s]:
        """Return the `top` ads, in order, as they are served; and their rows."""
        rank_scores = self.score(ads.predictions, ads.rows)
        # By id where numbers are equal: the order in which an index returns its ads is
        # its own affair, and the same request must have the same answer. Not by polars,
        # whose threads take a hundred times as long to be woken.
        best = np.lexsort((ads.ids, -rank_scores))[:top]
        columns: Columns = {AD_ID: ads.ids, **ads.predictions, SCORE: ads.scores}
        if not self.is_label:
            columns[RANK_SCORE] = rank_scores
        table = pl.DataFrame({name: column[best] for name, column in columns.items()})
        return table, ads.rows[best]

    def score(self, predictions: Mapping[str, Float64s], rows: Int64s) -> Float64s:
        """Compute the formula for some ads, (n,).

        Args:
            predictions: (n,) of each label.
            rows: (n,) rows of the catalog.

        Raises:
            PredictionError: a result is not finite, as after a division by 0.
        """
        numbers = {name: column[rows] for name, column in self.columns.items()}
        with np.errstate(all="ignore"):
            score = self.formula.value({**predictions, **numbers})
        wrong = ~np.isfinite(score)
        if wrong.any():
            raise PredictionError(
                f"recommend.rank_by: {self.formula.text!r} is not finite for"
                f" {int(wrong.sum())} of {len(score)} ads (one is {score[wrong][0]:g});"
                " write a formula that divides by nothing that may be 0"
            )
        return np.asarray(score, dtype=np.float64)


def _name(label: str) -> Formula:
    """Return the formula of one name; it is not parsed, as it may hold a hyphen."""
    return Formula(label, ast.Name(label, ast.Load(), lineno=1, col_offset=0))


def _complete(column: pl.Series) -> Float64s:
    """Return a column of the catalog whose every ad has a number."""
    numbers = column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    missing = int((~np.isfinite(numbers)).sum())
    if missing:
        # Any number in its place would move the ad up or down without a word.
        raise ConfigError(
            f"recommend.rank_by: {column.name} is missing for {missing} of"
            f" {len(column)} ads of the catalog; fill it in the data, or leave it out"
        )
    return np.asarray(numbers, dtype=np.float64)
