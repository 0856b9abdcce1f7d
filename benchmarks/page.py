"""Write docs/benchmarks.md from benchmarks/results: one page of all that was measured.

python benchmarks/page.py
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from question import Question, Table
from questions import SECTIONS
from seeds import shown
from timing import RESULTS

PAGE = Path(__file__).parents[1] / "docs/benchmarks.md"
QUIET = 4  # load above which two cores were shared with other work
HEAD = """# Benchmarks

Every figure here was written by a script below `benchmarks/` into a file below
[benchmarks/results](../benchmarks/results), and this page is made of these files alone:

```bash
make bench    # measures what takes minutes, then writes this page
python benchmarks/page.py    # the page alone, of the files that are there
```

Ratios are of runs that took turns on one machine (`benchmarks/timing.py`); compare
absolute figures of one table only. A high load says that the cores were shared: times
of such a table are too long, ratios hold. Where a table says mean (deviation), it is
over the seeds. Lessons and failures are in [benchmarks/LOG.md](../benchmarks/LOG.md).
"""
Cells = dict[str, str]


class OldFormatError(Exception):
    """A result without something that its script writes today."""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(RESULTS))
    print(PAGE)


def page(results: Path) -> str:
    """Return the page of the result files of a folder."""
    lines = [HEAD]
    for title, questions in SECTIONS.items():
        lines += [f"## {title}", ""]
        for question in questions:
            lines += section(question, results)
    named = {q.result for questions in SECTIONS.values() for q in questions}
    others = sorted(p for p in results.glob("*.json") if p.stem not in named)
    if others:
        lines += [
            "## Results of other or earlier scripts",
            "",
            "No question above has these files; they are kept as they were measured.",
            "",
            *(f"- `benchmarks/results/{p.name}`, {machine(read(p))}" for p in others),
        ]
    return "\n".join(lines).rstrip() + "\n"


def read(path: Path) -> dict[str, Any]:
    """Read a result file."""
    return dict(json.loads(path.read_text()))


def section(question: Question, results: Path) -> Iterator[str]:
    """Yield the part of the page on one question."""
    yield from (f"### {question.text}", "")
    path = results / f"{question.result}.json"
    if not path.exists():
        yield from ("Not measured here; this measures it:", "")
        yield from commands(question)
        return
    result = read(path)
    yield f"`benchmarks/results/{path.name}`, {machine(result)}."
    if "note" in result:
        yield f"{result['note']}"
    yield ""
    for table in question.tables:
        try:
            grid = grid_of(result, table)
        except OldFormatError as error:
            yield from (
                f"**Older than its script:** the file has no `{error}`, so"
                f" “{table.title}” is missing here; the command below writes it again.",
                "",
            )
            continue
        yield from markdown(table.title, grid)
    yield from commands(question)


def commands(question: Question) -> Iterator[str]:
    """Yield the commands that print the figures again."""
    yield from ("```bash", *question.commands, "```", "")


def machine(result: dict[str, Any]) -> str:
    """Say where and when a result was measured, with which versions."""
    where = result.get("machine", {})
    parts = [where.get("date", "no date")]
    if "card" in where:
        parts.append(where["card"])
    elif "cores" in where:
        parts.append(f"{where['cores']} cores of {where['processor']}")
    if "load" in where:
        load = where["load"]
        parts.append(f"load {load:.1f}" + (", busy" if load > QUIET else ""))
    versions = [
        f"{name} {where[name]}" for name in ("torch", "torchrec") if name in where
    ]
    parts.append(", ".join(versions) or "versions not kept")
    if "seeds" in result:
        parts.append(f"seeds {', '.join(map(str, result['seeds']))}")
    return "; ".join(parts)


def grid_of(result: dict[str, Any], table: Table) -> dict[str, Cells]:
    """Return row -> column -> text of a table.

    Raises:
        OldFormatError: the result has no such figures.
    """
    value = _follow(result, table.path)
    if not isinstance(value, dict | list):
        return {"": {"": cell(value)}}
    rows = value if isinstance(value, dict) else _rows_of_list(value)
    grid = {name: _cells(row) for name, row in rows.items()}
    grid = {name: cells for name, cells in grid.items() if cells}
    if not grid:
        raise OldFormatError(".".join(table.path))
    if table.swap:
        columns = dict.fromkeys(c for cells in grid.values() for c in cells)
        return {c: {n: grid[n][c] for n in grid if c in grid[n]} for c in columns}
    return grid


def _follow(value: Any, path: Sequence[str]) -> Any:
    for place, key in enumerate(path):
        if key == "*":
            rest = path[place + 1 :]
            inner = {}
            for name, part in value.items():
                try:
                    inner[name] = _follow(part, rest) if name != "machine" else None
                except OldFormatError:
                    continue  # not one of the keys that are meant
            kept = {name: part for name, part in inner.items() if part is not None}
            if not kept:
                raise OldFormatError(".".join(path))
            return kept
        if not isinstance(value, dict) or key not in value:
            raise OldFormatError(".".join(path))
        value = value[key]
    return value


def _rows_of_list(values: list[Any]) -> dict[str, Any]:
    """Return the rows of a list: one a seed is gathered by name, else one an entry."""
    first = values[0] if values else {}
    if any(isinstance(part, dict) for part in first.values()):
        return {
            name: [run[name] for run in values if name in run]
            for name, part in first.items()
            if isinstance(part, dict)
        }
    return {str(number): row for number, row in enumerate(values, start=1)}


def _cells(row: Any) -> Cells:
    """Return column -> text of one row."""
    if isinstance(row, list) and row and isinstance(row[0], dict):
        names = [n for n, v in row[0].items() if _is_number(v)]
        return {n: shown([run[n] for run in row if n in run]) for n in names}
    if isinstance(row, dict) and "mean" not in row:
        return {n: cell(v) for n, v in row.items() if _is_shown(v)}
    return {"": cell(row)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_shown(value: Any) -> bool:
    if isinstance(value, dict):
        return "mean" in value
    if isinstance(value, list):
        return all(map(_is_number, value))
    return value is not None


def cell(value: Any) -> str:
    """Return a figure as text: large numbers whole, others with four digits."""
    if isinstance(value, dict):
        if "low" in value:
            return f"{value['mean']:.4f} ({value['low']:.4f} to {value['high']:.4f})"
        return f"{value['mean']:.4f} ({value['sd']:.4f})"
    if isinstance(value, list):
        # Of a value with its interval the first number counts.
        numbers = [v[0] if isinstance(v, list) else v for v in value]
        return shown(numbers) if numbers else ""
    if not _is_number(value):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def markdown(title: str, grid: dict[str, Cells]) -> Iterator[str]:
    """Yield a table, or one line where it is a single figure."""
    columns = list(dict.fromkeys(name for cells in grid.values() for name in cells))
    if list(grid) == [""]:
        yield from (f"{title}: {grid[''][columns[0]]}", "")
        return
    header = [title, *columns] if columns != [""] else [title, "figure"]
    yield f"| {' | '.join(map(_plain, header))} |"
    yield "|---" * len(header) + "|"
    for name, cells in grid.items():
        texts = [name, *(cells.get(column, "") for column in columns)]
        yield f"| {' | '.join(map(_plain, texts))} |"
    yield ""


def _plain(text: str) -> str:
    return text.replace("|", "/").strip()


if __name__ == "__main__":
    main()
