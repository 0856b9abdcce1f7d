"""What docs/own_data.md shows runs, and does what it says."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import REPOSITORY, adrec

from torchrec_adrec.config.run import load_config
from torchrec_adrec.data.adapters import table
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.prepare.prepare import prepare
from torchrec_adrec.data.request import raw_user
from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import Side

README = (REPOSITORY / "README.md").read_text()
DOC = (REPOSITORY / "docs/own_data.md").read_text()
USERS, ITEMS, ROWS = 40, 15, 600


def block(language: str, word: str, page: str = DOC) -> str:
    """The first block of a language that holds a word."""
    texts: list[str] = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    return next(text for text in texts if word in text)


def run(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    exec(compile(code, "docs/own_data.md", "exec"), {})


def log(**more: Any) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    columns = {
        "user": rng.integers(USERS, size=ROWS),
        "item": rng.integers(ITEMS, size=ROWS),
        "ts": np.arange(ROWS),
    }
    return pl.DataFrame(columns | {n: draw(rng) for n, draw in more.items()})


@pytest.fixture
def five_rows(tmp_path: Path) -> list[str]:
    """The arguments that prepare the five rows of the first example."""
    (tmp_path / "2024-05.csv").write_text(block("csv", "session"))
    config = REPOSITORY / "configs/table_example.yaml"
    return ["prepare", "--config", str(config), f"data.raw={tmp_path}/*.csv"]


def test_the_five_rows_are_prepared_and_their_user_is_a_request(
    five_rows: list[str], tmp_path: Path
) -> None:
    done = adrec(*five_rows, "--out", tmp_path / "run", "data.min_count=1")
    assert done.returncode == 0, done.stderr
    data = tmp_path / "run/data"
    encoder = Encoder.load(data)
    request = json.loads(block("json", "history"))
    encoded = encoder.encode(raw_user(request, encoder.schema), Side.USER)
    # The third row of the file, but for its age.
    row = pl.read_parquet(data / "train/*.parquet").row(2, named=True)
    names = [name for name in encoded if not name.startswith("age")]
    assert len(names) > 20
    assert {n: encoded[n][0] for n in names} == {n: row[n] for n in names}
    examples = json.loads((data / "example_users.json").read_text())
    assert all(list(user) == list(examples[0]) for user in examples)
    assert set(request) == set(examples[0])


def test_the_shortest_configuration_of_the_readme_prepares_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header, *lines = block("csv", "category", README).splitlines()
    first, second = (line.split(",", 1)[1] for line in lines)
    times = [f"2024-05-01T{i // 60:02}:{i % 60:02}:00" for i in range(ROWS)]
    rows = [f"{time},{(first, second)[i % 2]}" for i, time in enumerate(times)]
    (tmp_path / "clicks.csv").write_text("\n".join([header, *rows]) + "\n")
    (tmp_path / "my.yaml").write_text(block("yaml", "category", README))
    monkeypatch.chdir(tmp_path)
    config = load_config(tmp_path / "my.yaml", ["data.allow_leaky_sides=true"]).data
    out = tmp_path / "run"
    out.mkdir()
    prepare(config, table.open_data(config), out)
    report = json.loads((out / "report.json").read_text())
    tables = {"user": 4, "country": 3, "item": 4, "category": 4}
    assert report["num_embeddings"] == tables


def test_a_request_has_the_types_of_the_table(five_rows: list[str]) -> None:
    config = load_config(REPOSITORY / "configs/table_example.yaml").data.table
    assert config is not None
    schema = table.schema(config)
    good = json.loads(block("json", "history"))
    raw_user(good | {"age": "34"}, schema)
    faults: list[dict[str, Any]] = [{"uid": 7}, {"history": "a2 a1"}]
    for wrong in (*faults, {"history": [7]}, {"seen": []}):
        with pytest.raises(DataError, match=r"expected|unknown user columns"):
            raw_user(good | wrong, schema)


def test_a_smaller_min_count_keeps_more_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log(stars=lambda rng: rng.integers(1, 6, ROWS)).write_csv(tmp_path / "ratings.csv")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(block("yaml", "stars"))
    known = {}
    for count in (2, 13):
        overrides = [f"data.min_count={count}"]
        config = load_config(tmp_path / "config.yaml", overrides).data
        out = tmp_path / str(count)
        out.mkdir()
        prepare(config, table.open_data(config), out)
        known[count] = json.loads((out / "report.json").read_text())["num_embeddings"]
    train = log().head(480)["user"].value_counts()["count"]
    assert known[2]["user"] == 2 + USERS
    assert known[13]["user"] == 2 + int((train >= 13).sum()) < known[2]["user"]
    rows = pl.read_parquet(tmp_path / "2/train/*.parquet")
    assert rows["click"].to_list() == (rows["stars"] >= 4).cast(pl.Float32).to_list()


def test_the_join_keeps_rows_and_knows_no_later_price(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dates = pl.date_range(pl.date(2024, 1, 1), pl.date(2026, 1, 1), eager=True)
    shown = log(clicked=lambda rng: rng.integers(2, size=ROWS))
    shown = shown.with_columns(ts=dates.head(ROWS))
    shown.write_csv(tmp_path / "shown.csv")
    users = pl.DataFrame({"user": range(USERS - 5), "country": "NL"})
    items = pl.DataFrame({"item": range(ITEMS), "campaign": range(ITEMS)})
    raised = pl.date(2024, 9, 1)
    prices = pl.concat(
        items.select("item", pl.lit(price).alias("price"), since.alias("ts"))
        for price, since in ((1.5, pl.date(2024, 3, 1)), (9.5, raised))
    )
    for name, frame in (("users", users), ("items", items), ("prices", prices)):
        frame.write_csv(tmp_path / f"{name}.csv")
    run(block("python", "join_asof"), tmp_path, monkeypatch)
    rows = pl.read_parquet(tmp_path / "rows.parquet")
    assert rows.select(shown.columns).equals(shown)
    assert rows["country"].null_count() == (shown["user"] >= USERS - 5).sum()
    assert rows.filter(pl.col("ts") < pl.date(2024, 3, 1))["price"].null_count() == 60
    assert set(rows.filter(pl.col("ts") < raised)["price"]) == {None, 1.5}
    assert set(rows.filter(pl.col("ts") >= raised)["price"]) == {9.5}
    pl.concat([users, users.head(1)]).write_csv(tmp_path / "users.csv")
    with pytest.raises(pl.exceptions.ComputeError):
        run(block("python", "join_asof"), tmp_path, monkeypatch)


def test_the_configuration_of_positives_draws_their_negatives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    log().write_csv("purchases.csv")
    Path("config.yaml").write_text(block("yaml", "positives_only"))
    config = load_config(Path("config.yaml")).data
    Path("out").mkdir()
    prepare(config, table.open_data(config), Path("out"))
    report = json.loads(Path("out/report.json").read_text())
    assert report["negatives"]["positives"] == ROWS
    assert report["splits"]["test"]["rows"] > USERS


def test_the_two_side_tables_of_the_example_are_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ratings = log(rating=lambda rng: rng.integers(1, 11, ROWS) / 2)
    names = {"user": "userId", "item": "movieId", "ts": "timestamp"}
    ratings.rename(names).write_csv("ratings.csv")
    people = pl.DataFrame({"id": range(USERS)})
    people.with_columns(age=pl.col("id") + 20, city=pl.lit("Bonn")).write_csv(
        "people.csv"
    )
    movies = pl.DataFrame({"movieId": range(ITEMS)})
    movies.with_columns(title=pl.lit("a, b"), year=pl.col("movieId") + 1970).write_csv(
        "movies.csv"
    )
    Path("config.yaml").write_text(block("yaml", "people.csv"))
    config = load_config(Path("config.yaml")).data
    Path("out").mkdir()
    prepare(config, table.open_data(config), Path("out"))
    report = json.loads(Path("out/report.json").read_text())
    assert report["unmatched_rows"]["tables"] == {} and report["ads"]["all"] == ITEMS
    catalog = pl.read_parquet("out/catalog.parquet")
    years = catalog["raw_year"].cast(pl.Float64) - catalog["raw_movie"].cast(pl.Int64)
    assert set(years) == {1970}
