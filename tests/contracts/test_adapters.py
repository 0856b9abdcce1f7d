"""What `prepare` relies on, asked of every adapter."""

from pathlib import Path

import polars as pl
import pytest
from raw_data import ADAPTERS, MISSING, Raw

from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.data.dataset import check_rows
from torchrec_adrec.errors import ConfigError


@pytest.fixture(params=ADAPTERS)
def raw(request: pytest.FixtureRequest, tmp_path: Path) -> Raw:
    return ADAPTERS[request.param](tmp_path)


@pytest.fixture(params=[name for name in ADAPTERS if name != "synthetic"])
def raw_file(request: pytest.FixtureRequest, tmp_path: Path) -> Raw:
    """Of the adapters that read files; the other one makes its rows."""
    return ADAPTERS[request.param](tmp_path)


def frames(raw: Raw, bad: BadRows, megabytes: int = 64) -> list[pl.DataFrame]:
    config = raw.config.model_copy(update={"chunk_megabytes": megabytes})
    data = raw.open_data(config)
    return [frame for path in data.files for frame in data.read(path, bad)]


def test_every_frame_is_of_the_schema(raw: Raw) -> None:
    data = raw.open_data(raw.config)
    for frame in frames(raw, BadRows(), megabytes=1):
        check_rows(frame, data)


def test_rows_in_are_rows_out_and_bad_rows(raw: Raw) -> None:
    bad = BadRows()
    out = sum(len(frame) for frame in frames(raw, bad))
    assert out + bad.count == raw.rows
    assert bad.count == (raw.bad is not None)


def test_a_bad_row_is_named_with_file_and_line(raw_file: Raw) -> None:
    for megabytes in (1, 64):
        bad = BadRows()
        frames(raw_file, bad, megabytes)
        assert bad.first[0].startswith(raw_file.bad)


def test_the_cut_into_frames_changes_nothing(raw: Raw) -> None:
    whole, again = frames(raw, BadRows()), frames(raw, BadRows())
    pieces = frames(raw, BadRows(), megabytes=1)
    assert len(pieces) > len(whole) or raw.bad is None
    assert pl.concat(whole).equals(pl.concat(again), null_equal=True)
    assert pl.concat(whole).equals(pl.concat(pieces), null_equal=True)


def test_a_missing_value_is_null(raw_file: Raw) -> None:
    column = pl.concat(frames(raw_file, BadRows()))[raw_file.missing]
    assert column[MISSING] is None and column[MISSING + 1] is not None


def test_labels_are_in_their_range(raw: Raw) -> None:
    rows = pl.concat(frames(raw, BadRows()))
    for label in raw.open_data(raw.config).schema.labels:
        seen = rows[label.name].drop_nulls()
        if label.kind == "binary":
            assert set(seen) == {0.0, 1.0}
        else:
            assert seen.is_finite().all() and seen.min() >= 0  # type: ignore[operator]
            assert label.high is None or seen.max() == label.high


def test_no_label_is_a_feature(raw: Raw) -> None:
    schema = raw.open_data(raw.config).schema
    sources = {f.source for f in (*schema.dense, *schema.sparse, *schema.sequences)}
    assert not sources & set(schema.label_names)


def test_a_missing_file_is_named(raw_file: Raw, tmp_path: Path) -> None:
    gone = tmp_path / "gone.csv"
    config = raw_file.config.model_copy(update={"raw": (str(gone),)})
    with pytest.raises(ConfigError, match=str(gone)):
        raw_file.open_data(config)
    with pytest.raises(ConfigError, match=r"data\.raw"):
        raw_file.open_data(raw_file.config.model_copy(update={"raw": ()}))
