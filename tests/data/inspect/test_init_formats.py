"""`adrec init` on files of many formats: what it proposes loads, and prepares."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from drafts import ROWS, columns, histories, init, unsure


def test_semicolons_in_latin_1_with_decimal_commas(tmp_path: Path) -> None:
    picked = columns()
    lines = ["kunde;artikel;datum;preis;stadt;geklickt"]
    for i in range(ROWS):
        user, item = picked["user"][i], picked["item"][i]
        day = f"{1 + i // 60:02}.05.2024 {i // 60 % 24:02}:{i % 60:02}"
        city = ("Köln", "Zürich")[user % 2]
        click = ("nein", "ja")[picked["clicked"][i]]
        lines.append(f"k{user};0{item};{day};1.{100 + item},50;{city};{click}")
    (tmp_path / "log.csv").write_bytes("\n".join(lines).encode("latin-1"))
    text, data, report = init(tmp_path / "log.csv")
    table = data["table"]
    assert table["labels"]["click"] == {"column": "geklickt"}
    assert (table["user_id"], table["ad_id"]) == ("kunde", "artikel")
    assert table["ad"] == {"artikel": "text", "preis": "number"}
    assert table["user"] == {"kunde": "text", "stadt": "text"}
    assert table["time"] == "datum" and report["bad_rows"]["count"] == 0
    for change in ("semicolons become commas", "latin-1 becomes UTF-8", "ISO"):
        assert change in text
    row = pl.read_csv(data["raw"][0], infer_schema=False).row(61, named=True)
    user, item = picked["user"][61], picked["item"][61]
    assert row["datum"] == "2024-05-02 01:01:00"
    assert row["preis"] == f"1{100 + item}.50" and row["artikel"] == f"0{item}"
    assert row["stadt"] == ("Köln", "Zürich")[user % 2]
    assert row["geklickt"] == str(picked["clicked"][61])


def test_latin_1_alone_is_rewritten(tmp_path: Path) -> None:
    lines = ["user,item,clicked,city"]
    rows = zip(*columns().values(), strict=True)
    lines += [f"{user},{item},{click},Köln" for user, item, click in rows]
    (tmp_path / "log.csv").write_bytes("\n".join(lines).encode("latin-1"))
    text, data, report = init(tmp_path / "log.csv")
    assert data["raw"] == [str(tmp_path / "my.rewritten.csv")]
    assert "latin-1 becomes UTF-8" in text and report["bad_rows"]["count"] == 0


@pytest.mark.parametrize(
    ("sign", "quote"), [(", ", "'"), (",", '"'), (" ", "")], ids=str
)
def test_lists_as_programs_print_them(sign: str, quote: str, tmp_path: Path) -> None:
    picked = columns()
    lists = histories(picked)
    printed = [f"[{sign.join(f'{quote}{i}{quote}' for i in items)}]" for items in lists]
    rows = pl.DataFrame({**picked, "history": printed})
    rows.write_csv(tmp_path / "log.csv")
    text, data, report = init(tmp_path / "log.csv")
    block = data["table"]["user"]["history"]
    assert block == {"kind": "sequence", "separator": "|", "shares_ids_with": "item"}
    assert report["bad_rows"]["count"] == 0
    rewritten = pl.read_csv(data["raw"][0], infer_schema=False)
    assert rewritten["history"].fill_null("").to_list() == ["|".join(v) for v in lists]
    assert "history must hold only what came before" in unsure(text)


def test_a_device_of_two_kinds_is_no_user(tmp_path: Path) -> None:
    """The column that names the user has a name of two words."""
    picked = columns()
    devices = [("ios", "android")[int(user) % 2] for user in picked["user"]]
    rows = {
        "device": devices,
        "session_user": picked["user"],
        "shown_item": picked["item"],
        "price": picked["item"] * 1.5,
        "clicked": picked["clicked"],
    }
    pl.DataFrame(rows).write_csv(tmp_path / "log.csv", separator=";")
    text, data, _ = init(tmp_path / "log.csv")
    table = data["table"]
    assert (table["user_id"], table["ad_id"]) == ("session_user", "shown_item")
    assert table["user"]["device"] == "text"
    assert "session_user stands for the user by the end of its name" in unsure(text)
    # What is said of the copy's separator is said of the copy.
    assert "# commas, UTF-8" in text and "semicolons become commas" in text


def test_a_device_is_no_user_where_no_other_column_is_one(tmp_path: Path) -> None:
    picked = columns()
    devices = [("ios", "android")[int(user) % 2] for user in picked["user"]]
    rows = {"device": devices, "item": picked["item"], "clicked": picked["clicked"]}
    pl.DataFrame(rows).write_csv(tmp_path / "log.csv")
    text, data, _ = init(tmp_path / "log.csv")
    assert "user_id" not in data["table"]
    assert data["table"]["user"] == {"device": "text"}
    assert "No column names the user" in unsure(text)


def test_parquet_with_lists_times_and_ids_as_floats(tmp_path: Path) -> None:
    picked = columns()
    times = pl.Series(1_714_000_000_000 + 1000 * np.arange(ROWS))
    rows = pl.DataFrame(
        {
            "user_id": picked["user"].astype(float),
            "item_id": picked["item"],
            "tags": [[f"t{item % 3}"] for item in picked["item"]],
            "seen": [[int(i) for i in items] for items in histories(picked)],
            "at": times.cast(pl.Datetime("ms")),
            "clicked": picked["clicked"].astype(bool),
        }
    )
    rows.write_parquet(tmp_path / "log.parquet")
    text, data, report = init(tmp_path / "log.parquet")
    assert data["table"]["user_id"] == "user_id" and data["table"]["time"] == "at"
    assert data["table"]["user"]["seen"]["shares_ids_with"] == "item_id"
    assert data["table"]["ad"]["tags"] == "list" and "ignore" not in data["table"]
    assert "user_id: ids such as 7.0 become 7" in text
    assert report["bad_rows"]["count"] == 0
    users = pl.read_parquet(data["raw"][0])["user_id"]
    assert users.to_list() == [str(user) for user in picked["user"]]


def test_an_ad_has_sets_and_vectors(tmp_path: Path) -> None:
    """With its own limit, where the first rows need more than the usual one."""
    picked = columns()
    kinds = [[f"k{(i * k) % 31}" for k in range(1, 3 + 2 * i)] for i in range(15)]
    texts = ["|".join(kinds[item]) for item in picked["item"]]
    images = pl.Series([[item * 0.5, 1.0] for item in picked["item"]])
    rows = pl.DataFrame({**picked, "item_tags": texts, "item_image": images})
    rows.write_parquet(tmp_path / "log.parquet")
    _, data, report = init(tmp_path / "log.parquet")
    block = data["table"]["ad"]["item_tags"]
    assert data["table"]["ad"]["item_image"] == "vector"
    assert block["kind"] == "list" and block["separator"] == "|"
    longest = max(len(set(text.split("|"))) for text in texts)
    assert block.get("max_length", 20) >= longest
    assert report["bad_rows"]["count"] == 0
