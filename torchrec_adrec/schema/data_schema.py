"""All columns of a data set, and the one order of their keys."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from torchrec_adrec.errors import SchemaError, reason
from torchrec_adrec.schema.contract import RESERVED, Frozen
from torchrec_adrec.schema.features import (
    Bag,
    DenseFeature,
    SequenceFeature,
    Side,
    SparseFeature,
    VectorFeature,
)
from torchrec_adrec.schema.labels import Label


class Schema(Frozen):
    """All columns of a data set.

    The order of `sparse`, then `sequences`, is every KJT's key order. In the numbers of
    a batch (`TowerInput.dense`) the vectors come first, then `dense`. The first label
    is the click.

    Examples:
        >>> schema = Schema(
        ...     dense=(DenseFeature(name="age", side=Side.USER, source="age"),),
        ...     sparse=(
        ...         SparseFeature(
        ...             name="city", side=Side.USER, source="city", kind="text"
        ...         ),
        ...         SparseFeature(
        ...             name="brand", side=Side.AD, source="brand", kind="text"
        ...         ),
        ...     ),
        ...     sequences=(
        ...         SequenceFeature(
        ...             name="seen", side=Side.USER, source="seen_brands", max_length=2
        ...         ),
        ...     ),
        ...     labels=(Label(name="click"),),
        ... )
        >>> [feature.name for feature in schema.bags_of(Side.USER)]
        ['city', 'seen']
        >>> schema.columns_of(Side.USER)
        ('age', 'city', 'seen:0', 'seen:1')
    """

    dense: tuple[DenseFeature, ...]
    sparse: tuple[SparseFeature, ...]
    sequences: tuple[SequenceFeature, ...] = ()
    labels: tuple[Label, ...]
    vectors: tuple[VectorFeature, ...] = Field(default=(), exclude_if=lambda x: not x)
    # Statistics of an ad's column paired with a user's. No tower may read them, or an
    # ad's vector would depend on the user: `joined` hands them to the ranker.
    cross: tuple[DenseFeature, ...] = Field(default=(), exclude_if=lambda x: not x)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [f.name for f in (*self.dense, *self.cross, *self.bags, *self.vectors)]
        counts = Counter((*names, *self.label_names))
        # The catalog keeps an ad's raw values as `raw_...`, to show them.
        reserved = [name for name in counts if name in RESERVED or name[:4] == "raw_"]
        if reserved:
            raise ValueError(
                f"{reserved} are columns that `prepare` writes; rename them"
            )
        repeated = [name for name, count in counts.items() if count > 1]
        if repeated:
            raise ValueError(f"column names must be unique, found twice: {repeated}")
        return self

    @model_validator(mode="after")
    def _both_sides_have_features(self) -> Self:
        for side in Side:
            others = (*self.numbers_of(side), *self.vectors_of(side))
            # A user may be a history and nothing else; a set alone names no ad.
            lists = self.sequences_of(side) if side == Side.USER else ()
            if not (self.sparse_of(side) or others or lists):
                raise ValueError(f"the {side}'s side needs an id, a number or a vector")
        # An ad's id is made of its values: in another order they would be another ad.
        if any(f.side == Side.AD and f.ordered for f in self.sequences):
            raise ValueError(
                "a sequence describes a user; what an ad has several of is a set"
                " (`kind: list`)"
            )
        if not self.labels or self.labels[0].kind != "binary":
            raise ValueError("the first label must be binary: the click")
        return self

    @model_validator(mode="after")
    def _one_history_of_ads(self) -> Self:
        # Known positives are read from one sequence and compared with the ads by id.
        shared = [f for f in self.sequences if f.shares_ids_with is not None]
        kinds = {f.name: f.kind for f in self.sparse_of(Side.AD)}
        same_kind = all(kinds.get(str(f.shares_ids_with)) == f.kind for f in shared)
        if len(shared) > 1 or not same_kind:
            names = {f.name: f.shares_ids_with for f in shared}
            raise ValueError(
                f"{names}: one sequence may share the ids of an ad's feature of its"
                f" own kind; the ad's are {kinds}"
            )
        return self

    @model_validator(mode="after")
    def _statistics_have_columns_and_labels(self) -> Self:
        # They add no raw column of their own, so requests and ads need none either.
        binary = {label.name for label in self.labels if label.kind == "binary"}
        users = self.scalar_sources_of(Side.USER)
        for feature in (*self.dense, *self.cross):
            if feature.statistic is not None:
                columns = set(self.scalar_sources_of(feature.side))
                if feature in self.cross:
                    columns.update(users)
                lost = {feature.statistic.label} - binary
                lost |= set(feature.sources) - columns
                if lost:
                    raise ValueError(
                        f"{feature.name}: {sorted(lost)} are neither scalar columns of"
                        f" the {feature.side}'s side nor binary labels"
                    )
        return self

    @model_validator(mode="after")
    def _crosses_join_an_ad_and_a_user(self) -> Self:
        users, ads = (self.scalar_sources_of(side) for side in Side)
        for feature in self.cross:
            first, *second = feature.sources
            joins = first in ads and len(second) == 1 and second[0] in users
            if feature.side != Side.AD or not joins:
                raise ValueError(
                    f"{feature.name}: a cross is a number of the ad, made of an ad's"
                    f" column and a user's, found {feature.sources}"
                )
        return self

    @property
    def history(self) -> SequenceFeature | None:
        """The sequence that has the ids of an ad's feature, if there is one."""
        users = self.sequences_of(Side.USER)
        shared = [f for f in users if f.shares_ids_with is not None]
        return shared[0] if shared else None

    def items_of(self, side: Side) -> str | None:
        """The key of one side whose ids are those of the history: it, or the item."""
        if self.history is None:
            return None
        return self.history.name if side == Side.USER else self.history.shares_ids_with

    @property
    def joined(self) -> "Schema":
        """The schema of a model that sees user and ad together, as the ranker does.

        What depends on both is a number of the ad, behind the ad's own: of a user's
        candidates each has another.
        """
        joined = {"dense": (*self.dense, *self.cross), "cross": ()}
        return self.model_copy(update=joined) if self.cross else self

    def dense_of(self, side: Side) -> tuple[DenseFeature, ...]:
        """The dense features of one side, in order."""
        return self._dense[side]

    def numbers_of(self, side: Side) -> tuple[DenseFeature, ...]:
        """The dense features of one side that are its raw numbers, in order."""
        return self._raw_and_statistics[side][0]

    def statistics_of(self, side: Side) -> tuple[DenseFeature, ...]:
        """The dense features of one side that are statistics, in order."""
        return self._raw_and_statistics[side][1]

    # Statistics make hundreds of dense features, which every request reads several
    # times: to sort them out each time took a tenth of encoding a user.
    @cached_property
    def _dense(self) -> dict[Side, tuple[DenseFeature, ...]]:
        return {s: tuple(f for f in self.dense if f.side == s) for s in Side}

    @cached_property
    def _raw_and_statistics(self) -> dict[Side, list[tuple[DenseFeature, ...]]]:
        return {
            side: [
                tuple(f for f in dense if (f.statistic is not None) == is_statistic)
                for is_statistic in (False, True)
            ]
            for side, dense in self._dense.items()
        }

    def model_copy(
        self, *, update: Mapping[str, Any] | None = None, deep: bool = False
    ) -> Self:
        """Copy the schema, without what was sorted out of the features before."""
        copied = super().model_copy(update=update, deep=deep)
        for name in ("_dense", "_raw_and_statistics"):
            copied.__dict__.pop(name, None)
        return copied

    def sparse_of(self, side: Side) -> tuple[SparseFeature, ...]:
        """The sparse features of one side, in key order."""
        return tuple(f for f in self.sparse if f.side == side)

    def sequences_of(self, side: Side) -> tuple[SequenceFeature, ...]:
        """The sequences of one side, in key order."""
        return tuple(f for f in self.sequences if f.side == side)

    def vectors_of(self, side: Side) -> tuple[VectorFeature, ...]:
        """The vectors of one side, in order."""
        return tuple(f for f in self.vectors if f.side == side)

    def fields_of(self, side: Side) -> tuple[Bag | VectorFeature, ...]:
        """All features of one side that a model reads as a vector each, in order."""
        return (*self.bags_of(side), *self.vectors_of(side))

    def dense_names_of(self, side: Side) -> tuple[str, ...]:
        """The feature of each of a side's numbers in a batch; a vector has many."""
        vectors = (name for f in self.vectors_of(side) for name in [f.name] * f.width)
        return (*vectors, *(f.name for f in self.dense_of(side)))

    @property
    def dense_alone(self) -> tuple[DenseFeature, ...]:
        """The raw numbers whose source is not the source of a sparse feature too."""
        with_ids = {f.source for f in self.sparse}
        numbers = (f for f in self.dense if f.statistic is None)
        return tuple(f for f in numbers if f.source not in with_ids)

    @property
    def bags(self) -> tuple[Bag, ...]:
        """All features that have a table, in key order."""
        return (*self.sparse, *self.sequences)

    def bags_of(self, side: Side) -> tuple[Bag, ...]:
        """All features of one side that have a table, in key order."""
        return (*self.sparse_of(side), *self.sequences_of(side))

    def sources_of(self, side: Side) -> tuple[str, ...]:
        """The raw columns that a side is made from, each once."""
        # A number may be read twice: as it is, and in buckets as an id. Statistics are
        # made of columns that are here already, and must not change their order: ad
        # ids depend on it.
        features = (*self.numbers_of(side), *self.fields_of(side))
        return tuple(dict.fromkeys(f.source for f in features))

    def shown_of(self, side: Side) -> tuple[str, ...]:
        """The raw columns of a side that people can read: all but vectors."""
        unreadable = {f.source for f in self.vectors_of(side) if f.encoder is None}
        return tuple(n for n in self.sources_of(side) if n not in unreadable)

    def scalar_sources_of(self, side: Side) -> tuple[str, ...]:
        """The raw columns of a side that hold one id or number per row, each once."""
        sources = [f.source for f in self.numbers_of(side)]
        sources += [f.source for f in self.sparse_of(side)]
        return tuple(dict.fromkeys(sources))

    def columns_of(self, side: Side) -> tuple[str, ...]:
        """The Parquet columns of a side, without labels and ad ids."""
        plain = (*self.dense_of(side), *self.sparse_of(side))
        lists = [name for f in self.sequences_of(side) for name in f.columns]
        vectors = [f.name for f in self.vectors_of(side)]
        return (*(f.name for f in plain), *lists, *vectors)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels' Parquet columns."""
        return tuple(label.name for label in self.labels)

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change with every name, order, side or table size."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write the schema as JSON."""
        path.write_text(self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Schema":
        """Read a schema that `save` wrote.

        Raises:
            SchemaError: the file is missing or is no schema.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise SchemaError(
                f"{path} is not a readable schema: {reason(error)}"
            ) from error
