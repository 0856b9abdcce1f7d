"""Parquet -> `Batch` against reading the same columns and doing nothing with them.

python benchmarks/loading.py --data runs/demo/data
"""

import argparse
from pathlib import Path
from statistics import median

from timing import interleave, keep, ratio

from torchrec_adrec.data.collate import batch_columns, collate
from torchrec_adrec.data.parquet import Reader, Split
from torchrec_adrec.data.prefetch import prefetch
from torchrec_adrec.schema import Schema


def main() -> None:
    """Measure and keep."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data", type=Path, required=True, help="prepared data")
    arguments.add_argument("--batch-size", type=int, default=8192)
    arguments.add_argument("--rounds", type=int, default=9)
    words = arguments.parse_args()
    schema = Schema.load(words.data / "schema.json")
    split, columns = Split.open(words.data / "train"), batch_columns(schema)
    reader = Reader(split, columns, words.batch_size, seed=0)

    def bare() -> None:
        for group in range(len(split.groups)):
            split.read([group], columns)

    def batches() -> None:
        for _ in prefetch(collate(rows, schema) for rows in reader.epoch()):
            pass

    seconds = interleave({"bare read": bare, "batches": batches}, words.rounds)
    rows = {"bare read": split.num_rows, "batches": reader.steps * words.batch_size}
    keep(
        "loading",
        {
            "batch_size": words.batch_size,
            "columns": len(columns),
            "rows_per_second": {
                n: round(rows[n] / median(s)) for n, s in seconds.items()
            },
            "bare_read_times_faster": round(ratio(seconds, "batches", "bare read"), 2),
            "seconds": seconds,
        },
    )


if __name__ == "__main__":
    main()
