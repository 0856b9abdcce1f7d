"""What `prepare` relies on, asked of every adapter that is registered."""

import ast
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from raw_data import MISSING, WRITERS, Raw

import torchrec_adrec
from torchrec_adrec.data.adapters import ADAPTERS, adapter_of, files_read
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.data.dataset import check_rows
from torchrec_adrec.data.loader.bounds import label_limit
from torchrec_adrec.errors import ConfigError, SchemaError
from torchrec_adrec.schema import Schema

PACKAGE = Path(torchrec_adrec.__file__).parent


@pytest.fixture(params=WRITERS)
def raw(request: pytest.FixtureRequest, tmp_path: Path) -> Raw:
    return WRITERS[request.param](tmp_path)


@pytest.fixture(params=[n for n in WRITERS if n not in ("synthetic", "movie_lab")])
def raw_file(request: pytest.FixtureRequest, tmp_path: Path) -> Raw:
    """Of the adapters that read files; the others make their rows."""
    return WRITERS[request.param](tmp_path)


def frames(raw: Raw, bad: BadRows, megabytes: int = 64) -> list[pl.DataFrame]:
    config = raw.config.model_copy(update={"chunk_megabytes": megabytes})
    data = raw.open_data(config)
    return [frame for path in data.files for frame in data.read(path, bad)]


def test_every_registered_adapter_is_asked() -> None:
    """`table-csv` and `table-parquet` are both of the adapter `table`."""
    assert {name.partition("-")[0] for name in WRITERS} == set(ADAPTERS)


def test_only_the_registry_asks_for_a_data_set_by_name() -> None:
    """Fails when any other file branches on `data.adapter`."""
    readers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "adapter"
    }
    assert readers == {"data/adapters/__init__.py"}


def test_an_unknown_adapter_is_refused_with_the_known_ones(raw: Raw) -> None:
    config = raw.config.model_copy(update={"adapter": "criteoo"})
    with pytest.raises(ConfigError, match=r"expected one of criteo, .*'criteoo'"):
        adapter_of(config)


def test_every_frame_is_of_the_schema(raw: Raw) -> None:
    data = raw.open_data()
    for frame in frames(raw, BadRows(), megabytes=1):
        check_rows(frame, data)


def test_the_schema_follows_from_the_settings(raw: Raw, tmp_path: Path) -> None:
    """Fails when it depends on the rows, or holds what a saved schema cannot."""
    schema = raw.open_data().schema
    small = raw.config.model_copy(update={"chunk_megabytes": 1})
    schema.save(tmp_path / "schema.json")
    assert schema == raw.open_data(small).schema
    assert schema == Schema.load(tmp_path / "schema.json")
    assert all(f.num_embeddings == 0 for f in schema.bags)


def test_rows_in_are_rows_out_and_bad_rows(raw: Raw) -> None:
    bad = BadRows()
    good = sum(len(frame) for frame in frames(raw, bad))
    assert good + bad.count == raw.rows
    assert bad.count == (raw.bad is not None)


def test_a_bad_row_is_named_with_file_and_line(raw_file: Raw) -> None:
    for megabytes in (1, 64):
        bad = BadRows()
        frames(raw_file, bad, megabytes)
        assert raw_file.bad is not None
        assert bad.first[0].startswith(raw_file.bad)


def test_the_cut_into_frames_changes_nothing(raw: Raw) -> None:
    whole, again = frames(raw, BadRows()), frames(raw, BadRows())
    pieces = frames(raw, BadRows(), megabytes=1)
    assert len(pieces) > len(whole) or raw.bad is None
    assert pl.concat(whole).equals(pl.concat(again), null_equal=True)
    assert pl.concat(whole).equals(pl.concat(pieces), null_equal=True)


def test_a_missing_value_is_null(raw_file: Raw) -> None:
    if raw_file.missing is None:  # a line of ids has no place for a gap
        return
    column = pl.concat(frames(raw_file, BadRows()))[raw_file.missing]
    assert column[MISSING] is None and column[MISSING + 1] is not None


def test_labels_are_in_their_range(raw: Raw) -> None:
    """Every label takes both ends of its range: 0 (or near it) and the highest.

    Positives alone are all of them 1: `prepare` draws the others.
    """
    rows, data = pl.concat(frames(raw, BadRows())), raw.open_data()
    for label in data.schema.labels:
        values = rows[label.name].drop_nulls().to_numpy()
        assert not label_limit(label).wrong(values).any()
        assert values.min() < 1 or data.negatives is not None
        assert values.max() == label.highest or np.isinf(label.highest)


def test_time_and_user_are_columns_of_every_frame(raw: Raw) -> None:
    """Without a gap, but for unknown users, of whom the data set tells."""
    data, rows = raw.open_data(), pl.concat(frames(raw, BadRows()))
    assert data.time is None or rows[data.time].null_count() == 0
    unknown = rows[data.user].null_count() if data.user is not None else 0
    assert data.unknown_users == (unknown > 0)


def test_a_good_row_without_its_time_or_user_is_refused(raw: Raw) -> None:
    data = raw.open_data()
    frame = frames(raw, BadRows())[0]
    for name in (data.time, None if data.unknown_users else data.user):
        if name is not None:
            gap = pl.when(pl.int_range(pl.len()) > 0).then(name)
            with pytest.raises(SchemaError, match=f"{name} is null in 1 rows"):
                check_rows(frame.with_columns(gap.alias(name)), data)


def test_no_label_is_a_feature(raw: Raw) -> None:
    schema = raw.open_data().schema
    sources = {f.source for f in (*schema.dense, *schema.bags)}
    assert not sources & set(schema.label_names)


def test_the_files_that_are_opened_are_among_those_that_are_read(raw_file: Raw) -> None:
    """A file that is read and not listed could change without a trace."""
    assert set(raw_file.open_data().files) <= set(files_read(raw_file.config))


def test_a_missing_file_is_named(raw_file: Raw, tmp_path: Path) -> None:
    gone = tmp_path / "gone.csv"
    config = raw_file.config.model_copy(update={"raw": (str(gone),)})
    with pytest.raises(ConfigError, match=str(gone)):
        raw_file.open_data(config)
    with pytest.raises(ConfigError, match=r"data\.raw"):
        raw_file.open_data(raw_file.config.model_copy(update={"raw": ()}))
