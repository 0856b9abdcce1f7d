"""A question that was measured, and what is shown of its result (`page.py`)."""

from dataclasses import dataclass

CRITEO = "adrec prepare --config configs/criteo_kaggle.yaml --out RUN data.raw=FILE"


@dataclass(frozen=True)
class Table:
    """Some figures of a result file.

    Attributes:
        title: what they are, with their unit.
        path: keys that lead to them; `*` stands for every key, which is then a row.
        swap: let the keys of `*` be columns.
    """

    title: str
    path: tuple[str, ...]
    swap: bool = False


@dataclass(frozen=True)
class Question:
    """One result file.

    Attributes:
        text: what was asked.
        result: name of the file below benchmarks/results, without its ending.
        commands: that write it again.
        tables: what is shown of it.
    """

    text: str
    result: str
    commands: tuple[str, ...]
    tables: tuple[Table, ...]
