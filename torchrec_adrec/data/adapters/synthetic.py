"""A known world's log as Criteo's TSV, with its truth in a folder: docs/known_world.md.

truth/
  rows.parquet    one row per line of the TSV: see `known_world.log.Log.block`
  users.parquet   segment, vectors, activity; row i is user i
  ads.parquet     campaign, vector, additive terms, birth, and C2, C14, C15, C18, C25
  world.json      the config and the seed, from which all of it follows
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from torchrec_adrec.arrays import Float64s, Int64s
from torchrec_adrec.config.data import DataConfig, SyntheticConfig
from torchrec_adrec.data.adapters import criteo
from torchrec_adrec.data.adapters.adapter import Adapter, MadeHere
from torchrec_adrec.data.adapters.criteo import COLUMNS, HASHES, INTEGERS, LABEL
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.data.dataset import DataSet
from torchrec_adrec.data.known_world.law import (
    FORMATS,
    LATENT_DIM,
    World,
    hour,
)
from torchrec_adrec.data.known_world.log import Log
from torchrec_adrec.runtime.progress import Progress
from torchrec_adrec.schema import Label

TSV, TRUTH = "synthetic.tsv", "truth"
ROWS, USERS, ADS, WORLD = "rows.parquet", "users.parquet", "ads.parquet", "world.json"
ADVERTISERS, CATEGORIES = 12, 5
USER = "C3"  # the number of the user, missing in some rows
I2_BELOW = 2
QUARTERS = (-0.24, 0.0, 0.24)  # of an axis of a unit vector in R^8
# Columns that tell nothing of the click: how many values each has.
NOISE = {"C12": 60, "C16": 40, "C19": 20, "C20": 4, "C21": 60}
NOISE |= {"C22": 13, "C24": 40, "C26": 20}
# Shares of missing values, and which columns miss them together, as in the real rows.
MISSING = {
    ("I1", "I10"): 0.45,
    ("I3",): 0.21,
    ("I4", "I13"): 0.21,
    ("I5",): 0.03,
    ("I6",): 0.22,
    ("I7", "I9", "I11"): 0.04,
    ("I12",): 0.77,
    ("C3", "C4", "C12", "C16", "C21", "C24"): 0.04,
    ("C6",): 0.12,
    ("C19", "C20", "C26"): 0.44,
    ("C22",): 0.76,
}
# The two digits of every byte, as they stand in memory.
DIGITS = np.frombuffer(bytes(range(256)).hex().encode(), dtype=np.uint16)

Codes = NDArray[np.uint32]


def write(config: SyntheticConfig, seed: int, path: Path, truth: Path) -> None:
    """Write `config.rows` rows; the same config and seed give the same bytes.

    Args:
        config: the world and the length of its log.
        seed: draws both.
        path: the rows, as Criteo's TSV.
        truth: folder of the truth; it is made if need be.

    Raises:
        OSError: a file cannot be written.
    """
    world = World(config, seed)
    log = Log(world, seed)
    truth.mkdir(exist_ok=True)
    _write_world(world, seed, truth)
    with (
        path.open("wb") as tsv,
        pq.ParquetWriter(truth / ROWS, _arrow(log.block(0)).schema) as parquet,
        Progress("synthesize", config.rows, "rows") as progress,
    ):
        for number in range(log.blocks):
            rows = log.block(number)
            parquet.write_table(_arrow(rows))
            # Numbers of its own for each block, so that the law's draws stay the same
            # whatever the columns below need.
            rng = np.random.default_rng([seed, 4, number])
            to_criteo(world, rows, rng).write_csv(
                tsv, separator="\t", include_header=False, quote_style="never"
            )
            progress.advance(len(rows))


def write_beside(config: SyntheticConfig, seed: int, path: Path) -> Path:
    """Write to partial names, then rename: `path` is written whole or not at all.

    Args:
        config, seed: see `write`.
        path: the rows, as Criteo's TSV.

    Returns:
        The truth's folder, `path` with `.truth` behind; an older one is replaced.

    Raises:
        OSError: a file cannot be written.
    """
    truth = path.with_name(path.name + ".truth")
    partial = [final.with_name(final.name + ".partial") for final in (path, truth)]
    write(config, seed, *partial)
    shutil.rmtree(truth, ignore_errors=True)
    partial[0].rename(path)
    partial[1].rename(truth)
    return truth


def _arrow(rows: pl.DataFrame) -> pa.Table:
    return rows.to_arrow()


def _write_world(world: World, seed: int, truth: Path) -> None:
    users = world.users._asdict()
    pl.DataFrame({"user": np.arange(len(world.users.group))} | users).write_parquet(
        truth / USERS
    )
    number = np.arange(len(world.ads.campaign))
    columns = {"ad": number} | world.ads._asdict() | ad_codes(world, number)
    pl.DataFrame(columns).write_parquet(truth / ADS)
    law = {"config": world.config.model_dump(mode="json"), "seed": seed}
    (truth / WORLD).write_text(json.dumps(law, indent=1) + "\n")


def open_data(config: DataConfig, folder: Path) -> DataSet:
    """Open what `write` wrote to a folder: Criteo's columns, and two more labels.

    Engagement and value were observed in the rows with a click.
    """
    tsv, truth = folder / TSV, folder / TRUTH / ROWS
    labels = (Label(name="engagement"), Label(name="value", kind="value"))
    schema = criteo.schema(config)
    schema = schema.model_copy(update={"labels": (*schema.labels, *labels)})
    layout = criteo.Layout(COLUMNS, "\t", header=False)

    def read(path: Path, bad: BadRows) -> Iterator[pl.DataFrame]:
        outcomes, first = pl.scan_parquet(truth).select("engagement", "value"), 0
        for frame in criteo.read_file(path, layout, bad, config.chunk_megabytes << 20):
            # The truth has one row per line, so the lines must all be good ones:
            # `hstack` refuses a truth that ends before the rows do.
            yield frame.hstack(outcomes.slice(first, len(frame)).collect())
            first += len(frame)

    return DataSet(schema, (tsv,), read, user=USER, unknown_users=True)


def _write(config: DataConfig, seed: int, folder: Path) -> None:
    write(config.synthetic, seed, folder / TSV, folder / TRUTH)


ADAPTER: Adapter = MadeHere(_write, open_data)


def read_world(truth: Path) -> World:
    """The world of a truth folder."""
    law = json.loads((truth / WORLD).read_text())
    return World(SyntheticConfig.model_validate(law["config"]), law["seed"])


def read_seed(truth: Path) -> int:
    """The seed of a truth folder's world and log."""
    return int(json.loads((truth / WORLD).read_text())["seed"])


def ad_codes(world: World, ad: Int64s) -> dict[str, Codes]:
    """The raw columns of ads, (B,) each; C15, the creative, determines the others."""
    campaign = world.ads.campaign[ad]
    values = {"C2": campaign % FORMATS, "C14": campaign, "C15": ad}
    values |= {"C18": campaign % ADVERTISERS, "C25": campaign % CATEGORIES}
    return {name: _code(name, value) for name, value in values.items()}


def to_criteo(
    world: World, rows: pl.DataFrame, rng: np.random.Generator
) -> pl.DataFrame:
    """Rows of a log in Criteo's 40 columns, hashes as text.

    Args:
        world: whose users and ads they are.
        rows: of `Log.block`.
        rng: draws the columns that tell nothing, and which values are missing.
    """
    user, ad = (rows[n].cast(pl.Int64).to_numpy() for n in ("user", "ad"))
    codes = _user_codes(world, user) | _context_codes(rows)
    codes |= {n: _code(n, rng.integers(v, size=len(rows))) for n, v in NOISE.items()}
    codes |= ad_codes(world, ad)
    columns = {LABEL: rows["engagement"].is_not_null().cast(pl.Int8)}
    columns |= _integers(world.users.activity[user], rng)
    columns |= {name: _text(code) for name, code in codes.items()}
    return _with_gaps(pl.DataFrame(columns).select(COLUMNS), rng)


def quarters(world: World) -> Int64s:
    """The quarter of each axis that every user's first taste stands in, (U, 8)."""
    return np.digitize(world.users.vector, QUARTERS)


def count_rates(activity: Float64s) -> dict[str, Float64s]:
    """Expected counts of the integers that grow with a user's activity.

    I2 is its count less `I2_BELOW`.
    """
    rate = np.exp(1.0 + 1.5 * activity)
    return {"I1": rate, "I2": 2 * rate, "I6": 5 * rate}


def _user_codes(world: World, user: Int64s) -> dict[str, Codes]:
    values = {"C1": world.users.group[user], "C3": user}
    codes = quarters(world)[user]
    values |= {f"C{4 + axis}": codes[:, axis] for axis in range(LATENT_DIM)}
    return {name: _code(name, value) for name, value in values.items()}


def _context_codes(rows: pl.DataFrame) -> dict[str, Codes]:
    values = {"C13": rows["position"].to_numpy(), "C17": hour(rows["time"].to_numpy())}
    values |= {"C23": rows["device"].to_numpy()}
    return {name: _code(name, value) for name, value in values.items()}


def _integers(activity: Float64s, rng: np.random.Generator) -> Mapping[str, pl.Series]:
    """The 13 integers: I1, I2 and I6 grow with the activity, the others are noise."""
    numbers = {name: rng.geometric(0.05, len(activity)) for name in INTEGERS}
    numbers |= {n: rng.poisson(rate) for n, rate in count_rates(activity).items()}
    numbers["I2"] = numbers["I2"] - I2_BELOW
    return {name: pl.Series(name, number) for name, number in numbers.items()}


def _with_gaps(frame: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    present = {
        names: rng.random(len(frame)) >= share for names, share in MISSING.items()
    }
    return frame.with_columns(
        pl.when(pl.Series(rows)).then(pl.col(*names)) for names, rows in present.items()
    )


def _code(column: str, value: NDArray[np.integer]) -> Codes:
    """The 32-bit codes of the values of one column, (B,)."""
    # An odd factor is a bijection of 32 bits: no two values of a column collide.
    shifted = value.astype(np.uint32) + np.uint32(HASHES.index(column) * 10_000_019)
    return shifted * np.uint32(2_654_435_761)


def _text(code: Codes) -> pl.Series:
    """The eight hexadecimal digits of each code, (B,)."""
    # From a table of two digits a byte, all at once: a log has millions of codes.
    digits = DIGITS[code.byteswap().view(np.uint8)]
    offsets = np.arange(0, 8 * len(code) + 1, 8, dtype=np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(digits)]
    return pl.Series(pa.Array.from_buffers(pa.string(), len(code), buffers))
