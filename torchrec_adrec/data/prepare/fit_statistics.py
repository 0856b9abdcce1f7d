"""The fit of the statistics: one more pass over the chunks, to count training rows.

All counts are whole numbers, so the statistics, their means and deviations do not
depend on the number of ranks or on how rows were cut into chunks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import polars as pl
from pydantic import BaseModel

from torchrec_adrec.arrays import Bools, Int64s
from torchrec_adrec.config.data import StatisticsConfig
from torchrec_adrec.data.column import Chunk
from torchrec_adrec.data.prepare.counts import Counter, Counts, load_counts
from torchrec_adrec.data.prepare.cross_switch import CrossSwitch, judge_crosses
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.prepare.pairs import (
    SAMPLE_ROWS,
    PairGain,
    Sample,
    across,
    choose_pairs,
    same_side,
    sample_rows,
)
from torchrec_adrec.data.prepare.spill import ChunkRef, map_chunks
from torchrec_adrec.data.prepare.statistics import Folds, Statistics
from torchrec_adrec.data.prepare.training_rows import TrainingRows
from torchrec_adrec.data.prepare.value_counts import ValueCounts
from torchrec_adrec.data.prepare.value_keys import KeyedColumn, Sources, ValueKeys
from torchrec_adrec.runtime.progress import Progress
from torchrec_adrec.runtime.ranks import Ranks
from torchrec_adrec.schema import DenseFeature, Schema, Side, Statistic

CELL = ("key", "fold")


class ChosenPairs(BaseModel):
    """The pairs that get statistics.

    Attributes:
        pairs: of columns of one side.
        cross: of an ad's and a user's column, and what validation says of them; None:
            none were asked for.
    """

    pairs: tuple[PairGain, ...] = ()
    cross: CrossSwitch | None = None

    @property
    def crosses(self) -> tuple[PairGain, ...]:
        """The crosses that stay."""
        return self.cross.pairs if self.cross and self.cross.is_kept else ()


def add_statistics(
    encoder: Encoder,
    keys: ValueKeys,
    config: StatisticsConfig,
    rows: TrainingRows,
    train_rows: int,
    ranks: Ranks,
) -> tuple[Encoder, ChosenPairs]:
    """Choose the pairs, count the training rows, and add the fitted statistics.

    Args:
        encoder: fitted, without statistics.
        keys: gives values their keys.
        config: which statistics to make.
        rows: the chunks with their training rows and folds.
        train_rows: the number of training rows.
        ranks: this rank and the others; all of them return the same.

    Returns:
        The encoder with statistics, and the chosen pairs.
    """
    path = rows.store.chunks[0].path.parent / "pairs"
    # One rank chooses for all: the others would only do the same work once more.
    if ranks.is_first:
        chosen = ChosenPairs()
        if config.pairs or config.cross_pairs:
            share = SAMPLE_ROWS / max(train_rows, 1)
            sample = sample_rows(encoder.schema, keys, rows, share)
            chosen = _choose(sample, encoder.schema, config)
        path.write_text(chosen.model_dump_json())
    ranks.barrier()
    chosen = ChosenPairs.model_validate_json(path.read_text())
    features = statistic_features(encoder.schema, config, _names(chosen.pairs))
    crosses = cross_features(encoder.schema, config, _names(chosen.crosses))
    # Made anew, because `model_copy` would check nothing.
    fields = {name: getattr(encoder.schema, name) for name in Schema.model_fields}
    fields |= {"dense": (*encoder.schema.dense, *features), "cross": crosses}
    all_features = (*features, *crosses)
    statistics = _counted(encoder.schema, keys, config, all_features, rows, ranks)
    return replace(encoder, schema=Schema(**fields), statistics=statistics), chosen


def _choose(sample: Sample, schema: Schema, config: StatisticsConfig) -> ChosenPairs:
    pairs = choose_pairs(sample, same_side(schema), config.pairs, config)
    if not config.cross_pairs:
        return ChosenPairs(pairs=tuple(pairs))
    crosses = choose_pairs(sample, across(schema), config.cross_pairs, config)
    switch = judge_crosses(sample, pairs, crosses, config)
    return ChosenPairs(pairs=tuple(pairs), cross=switch)


def _names(pairs: tuple[PairGain, ...]) -> list[Sources]:
    return [(pair.first, pair.second) for pair in pairs]


def _counted(
    schema: Schema,
    keys: ValueKeys,
    config: StatisticsConfig,
    features: tuple[DenseFeature, ...],
    rows: TrainingRows,
    ranks: Ranks,
) -> Statistics:
    """Count the training rows and fit the statistics of columns and pairs."""
    columns = list(dict.fromkeys(f.sources for f in features))
    labels = binary_labels(schema)

    def count_chunk(ref: ChunkRef) -> tuple[Counts, int]:
        chunk, train, folds = rows.load(ref)
        keyed = keys.of(chunk.columns, columns)
        counts = {
            str(number): _count(chunk, keyed[sources], train, folds, labels)
            for number, sources in enumerate(columns)
        }
        return counts, chunk.num_rows

    names = [str(number) for number in range(len(columns))]
    counter = Counter(names, CELL)
    with Progress("prepare: statistics", unit="rows") as progress:
        for counts, num_rows in map_chunks(rows.store.of(ranks), count_chunk):
            counter.add(counts)
            progress.advance(num_rows)
    raw = rows.store.chunks[0].path.parent
    counter.save(raw / f"statistics-{ranks.rank:05d}")
    ranks.barrier()
    frames = load_counts(sorted(raw.glob("statistics-*")), names, CELL)
    by_sources = dict(zip(columns, frames.values(), strict=True))
    fitted = fit(keys, labels, by_sources, features, config.min_count, rows.folds)
    return replace(fitted, keeps_folds=config.keep_folds)


def binary_labels(schema: Schema) -> tuple[str, ...]:
    """Return the names of the labels that have a rate."""
    return tuple(label.name for label in schema.labels if label.kind == "binary")


def statistic_features(
    schema: Schema, config: StatisticsConfig, pairs: Sequence[Sources]
) -> tuple[DenseFeature, ...]:
    """Return the features to make: of each side all columns, then its pairs.

    Names of columns hold no dots, so none can have the name of a statistic. A feature
    is named after what it is made of, as `C1.click.10`, a pair as
    `C1.C2.click.count`.
    """

    features: list[DenseFeature] = []
    for side in Side:
        scalars = schema.scalar_sources_of(side)
        of_side = [pair for pair in pairs if pair[0] in scalars]
        for sources in (*((name,) for name in scalars), *of_side):
            features += _features(schema, config, side, sources)
    return tuple(features)


def cross_features(
    schema: Schema, config: StatisticsConfig, crosses: Sequence[Sources]
) -> tuple[DenseFeature, ...]:
    """Return the features of crosses; of a user's candidates each has another value."""
    return tuple(
        feature
        for sources in crosses
        for feature in _features(schema, config, Side.AD, sources)
    )


def _features(
    schema: Schema, config: StatisticsConfig, side: Side, sources: Sources
) -> Iterator[DenseFeature]:
    """Yield the statistics of a column or a pair."""
    strengths = config.strengths if len(sources) == 1 else (config.pair_strength,)
    for label in binary_labels(schema):
        for strength in (*strengths, None):
            kind = "count" if strength is None else f"{strength:g}"
            yield DenseFeature(
                name=".".join((*sources, label, kind)),
                side=side,
                source=sources[0],
                statistic=Statistic(
                    label=label,
                    strength=strength,
                    paired_with=sources[1] if len(sources) > 1 else None,
                ),
            )


def _count(
    chunk: Chunk,
    column: KeyedColumn,
    train: Bools,
    folds: Int64s,
    labels: tuple[str, ...],
) -> pl.DataFrame:
    """Count the training rows of a chunk by key and fold.

    Returns:
        `key`, `fold`, `rows`, and for each label the rows in which it was observed and
        the positive ones.
    """
    counted = {"key": column.keys[column.codes[train]], "fold": folds[train]}
    counted["rows"] = np.ones(len(counted["key"]), dtype=np.int64)
    for label in labels:
        values = chunk.labels[label][train]
        counted[f"observed:{label}"] = (~np.isnan(values)).astype(np.int64)
        counted[f"sum:{label}"] = (values == 1).astype(np.int64)
    return pl.DataFrame(counted).group_by(CELL).agg(pl.all().sum())


def fit(
    keys: ValueKeys,
    labels: tuple[str, ...],
    frames: dict[Sources, pl.DataFrame],
    features: tuple[DenseFeature, ...],
    min_count: int,
    folds: Folds,
) -> Statistics:
    """Fit the statistics on the counts of all ranks.

    Args:
        keys: gives values their keys.
        labels: the binary labels.
        frames: by column or pair, the counts by key and fold, in that order.
        features: the statistics to make.
        min_count: a key with fewer rows is dropped.
        folds: gives each training row its fold.
    """
    some = next(iter(frames.values()))
    rates = tuple(
        int(some[f"sum:{name}"].sum()) / max(int(some[f"observed:{name}"].sum()), 1)
        for name in labels
    )
    counts = {
        sources: _value_counts(frame, labels, min_count, folds.count)
        for sources, frame in frames.items()
    }
    unscaled = {feature.name: (0.0, 1.0) for feature in features}
    statistics = Statistics(keys, labels, rates, counts, unscaled, folds)
    scales = {f.name: _scale(statistics, f, frames[f.sources]) for f in features}
    return replace(statistics, scales=scales)


def _value_counts(
    frame: pl.DataFrame, labels: tuple[str, ...], min_count: int, folds: int
) -> ValueCounts:
    counted = [f"{kind}:{name}" for name in labels for kind in ("observed", "sum")]
    totals = frame.group_by("key").agg(pl.col("rows", *counted).sum()).sort("key")
    # Dropped alike for training rows and for all others: a rare value must not look
    # known in one place and new in the other.
    totals = totals.filter(pl.col("rows") >= min_count)
    positions = totals.select("key").with_row_index("position")
    cells = frame.join(positions, on="key", maintain_order="left").select(
        *counted, cell=pl.col("position").cast(pl.Int64) * folds + pl.col("fold")
    )
    return ValueCounts(
        totals["key"].to_numpy(),
        totals.select(counted).to_numpy(),
        cells["cell"].to_numpy(),
        cells.select(counted).to_numpy(),
        folds,
    )


def _scale(
    statistics: Statistics, feature: DenseFeature, frame: pl.DataFrame
) -> tuple[float, float]:
    """Return the mean and deviation of what the training rows see of a feature."""
    counts = statistics.counts[feature.sources]
    values = statistics.raw(
        feature, counts.of(frame["key"].to_numpy(), frame["fold"].to_numpy())
    )
    rows = frame["rows"].to_numpy()
    mean = float((values * rows).sum() / rows.sum())
    deviation = float(((values - mean) ** 2 * rows).sum() / rows.sum()) ** 0.5
    # Where all rows have one value, only chance sets the folds apart. To divide by
    # that deviation would make the row's fold, and so its label, a visible number.
    is_constant = frame["key"].n_unique() == 1 or deviation == 0
    return mean, 1.0 if is_constant else deviation
