"""What watches over training: it must see what it is there for."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from conftest import StepsWith

from torchrec_adrec.arrays import Float64s
from torchrec_adrec.batch import Batch
from torchrec_adrec.config.run import load_config
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.data.loader.collate import batch_columns, collate
from torchrec_adrec.data.loader.extra_ads import ExtraAds
from torchrec_adrec.data.loader.negatives import UniformNegatives
from torchrec_adrec.data.loader.parquet import Reader
from torchrec_adrec.data.loader.row_groups import Split
from torchrec_adrec.distributed.process import process_group
from torchrec_adrec.errors import ConfigError, NonFiniteLossError, TrainingError
from torchrec_adrec.runtime.files import write_hashes
from torchrec_adrec.schema import LOG_Q, Schema
from torchrec_adrec.training import alarm, precision
from torchrec_adrec.training.alarm import DeadModelAlarm
from torchrec_adrec.training.batch_source import BatchSource
from torchrec_adrec.training.model_statistics import effective_rank
from torchrec_adrec.training.stopping import EarlyStopping


@pytest.fixture
def one_rank() -> Iterator[None]:
    with process_group("cpu"):
        yield


def a_batch(data: Path) -> Batch:
    schema = Schema.load(data / "schema.json")
    reader = Reader(Split.open(data / "train"), batch_columns(schema), 32)
    return collate(next(reader.epoch()), schema)


def look(data: Path, logits: torch.Tensor, labels: torch.Tensor, batch: Batch) -> None:
    dead_model_alarm = DeadModelAlarm(Schema.load(data / "schema.json"), "raise")
    for _ in range(3):
        dead_model_alarm.observe(logits[:, None], labels[:, None], batch)


@pytest.mark.usefixtures("one_rank")
def test_constant_logits_stop_training_and_name_the_column(prepared: Path) -> None:
    batch = a_batch(prepared)
    batch.user.dense[3, 1] = 1e13
    labels = (torch.rand(alarm.ROWS) < 0.3).float()
    with pytest.raises(
        TrainingError, match=r"logits are -1\.2; .* I2 \(up to 1e\+13\)"
    ):
        look(prepared, torch.full((alarm.ROWS,), -1.2), labels, batch)


@pytest.mark.usefixtures("one_rank")
def test_an_auc_of_a_half_stops_training_and_one_of_a_model_does_not(
    prepared: Path,
) -> None:
    torch.manual_seed(0)
    labels = (torch.rand(alarm.ROWS) < 0.3).float()
    labels[:50] = torch.nan  # not observed
    noise = torch.randn(alarm.ROWS)
    look(prepared, noise + 0.2 * labels.nan_to_num(), labels, a_batch(prepared))
    with pytest.raises(TrainingError, match=r"AUC .* is 0\.5 within its noise of"):
        look(prepared, noise, labels, a_batch(prepared))
    unclicked = torch.zeros(alarm.ROWS)  # no AUC to speak of
    look(prepared, noise, unclicked, a_batch(prepared))


@pytest.mark.usefixtures("one_rank")
def test_rare_clicks_are_no_dead_model(prepared: Path) -> None:
    """Twenty clicks tell no AUC of 0.6 from one of 0.5: the window grows."""
    torch.manual_seed(0)
    labels = (torch.rand(alarm.ROWS) < 0.001).float()
    logits = torch.randn(alarm.ROWS) + 0.36 * labels
    dead_model_alarm = DeadModelAlarm(Schema.load(prepared / "schema.json"), "raise")
    batch = a_batch(prepared)
    for _ in range(12):
        dead_model_alarm.observe(
            logits[torch.randperm(alarm.ROWS)][:, None], labels[:, None], batch
        )
    assert dead_model_alarm._rows_expected > 500_000


def test_a_table_that_is_not_finite_is_named(steps_with: StepsWith) -> None:
    """And no weight has changed: tables are updated inside backward."""
    with steps_with() as steps:
        steps.run_step()
        state = steps.model.state_dict()
        table = next(value for name, value in state.items() if "user_C7." in name)
        table.local_shards()[0].tensor.fill_(torch.inf)
        other = next(value for name, value in state.items() if "user_C1." in name)
        before = other.local_shards()[0].tensor.clone()
        with pytest.raises(
            NonFiniteLossError,
            match=r"nan at step 2, .* group 0, row .* feature C7 \(its table user_C7\)",
        ):
            steps.run_step()
            steps.flush()
        assert torch.equal(other.local_shards()[0].tensor, before)


def test_figures_of_health(steps_with: StepsWith) -> None:
    with steps_with("train.health_every=2") as steps:
        assert steps.run_step().figures == {}
        figures = steps.run_step().figures
    for table in ("user_C1", "ad_C15"):
        assert figures[f"weight/{table}"] > 0
        assert 0 < figures[f"touched/{table}"] <= 1
    towers = ("model.user_tower", "model.ad_tower")
    for name in ("user_C1", "user_C1+bias", "ad_C15", *towers):
        assert figures[f"gradient/{name}"] > 0, name
    assert 1 <= figures["ads/effective_rank"] <= 4


def test_effective_rank_of_a_collapsed_tower_is_one() -> None:
    torch.manual_seed(0)
    assert effective_rank(torch.ones(50, 8)) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.eye(8)) == pytest.approx(8, abs=1e-3)


def test_patience() -> None:
    stopping = EarlyStopping(2)
    assert [stopping.add(s, x) for s, x in ((10, 0.5), (20, 0.4))] == [True, True]
    assert not stopping.should_stop
    assert not stopping.add(30, 0.4) and not stopping.should_stop
    assert not stopping.add(40, 0.45) and stopping.should_stop
    assert stopping.best == (20, 0.4)
    again = EarlyStopping(2)
    again.load([list(pair) for pair in stopping.history])
    assert again.should_stop
    assert not EarlyStopping(None, stopping.history).should_stop


@pytest.mark.usefixtures("one_rank")
def test_products_that_are_not_float32_are_not_taken_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A processor on which `medium` rounds to bfloat16."""
    before, cpu = torch.get_float32_matmul_precision(), torch.device("cpu")
    try:
        assert precision.choose_precision("float32", cpu).use_bfloat16 is False
        precision._measure.cache_clear()
        monkeypatch.setattr(precision, "_error", lambda *_: 1e-3)
        assert precision.choose_precision("float32", cpu).setting == "highest"
        assert precision.choose_precision("bfloat16", cpu).use_bfloat16 is True
    finally:
        precision._measure.cache_clear()
        torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize(("times", "setting"), [(1.3, "medium"), (3, "highest")])
def test_two_runs_choose_the_same_though_their_times_differ(
    monkeypatch: pytest.MonkeyPatch, times: float, setting: str
) -> None:
    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(precision, "_error", lambda *_: 0)
    seconds = {"highest": 1.0, "medium": times}
    monkeypatch.setattr(precision, "_seconds", lambda a, b, name: seconds[name])
    try:
        precision._measure.cache_clear()
        chosen = precision.choose_precision("float32", torch.device("cpu"))
        assert chosen.setting == setting
    finally:
        precision._measure.cache_clear()
        torch.set_float32_matmul_precision(before)


def test_the_error_of_a_product_tells_precisions_apart() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(64, 64), torch.randn(64, 64)
    exact = (a.double() @ b.double()).float()
    assert precision._error(a, b, exact, "highest") < precision.EXACT
    low = (a.bfloat16() @ b.bfloat16()).float()
    assert float((low - exact).norm() / exact.norm()) > 50 * precision.EXACT


def test_uniform_negatives_are_the_same_on_any_ranks(prepared: Path) -> None:
    schema = Schema.load(prepared / "schema.json")

    def of(rank: int, size: int) -> np.ndarray:
        drawn = UniformNegatives(prepared, schema, 8, 32, 0, rank, size)
        return drawn.of_step(5)["ad_id"]

    assert of(0, 1).tolist() == [*of(0, 2), *of(1, 2)]
    other = UniformNegatives(prepared, schema, 8, 32, 0).of_step(6)["ad_id"]
    assert other.tolist() != of(0, 1).tolist()
    with pytest.raises(ConfigError, match="multiple of the 3 ranks"):
        of(0, 3)


def test_ads_that_only_held_out_rows_show_are_no_negatives(prepared: Path) -> None:
    """They would teach the towers which ads are new."""
    schema = Schema.load(prepared / "schema.json")
    catalog = load_catalog(prepared)
    hidden = catalog["ad_id"][0]
    zero = pl.when(pl.col("ad_id") == hidden).then(0).otherwise(pl.col("impressions"))
    changed = catalog.with_columns(zero.alias("impressions"))
    changed.write_parquet(prepared / "catalog.parquet")
    write_hashes(prepared, [prepared / "catalog.parquet"])
    negatives = UniformNegatives(prepared, schema, 500, 32, 0)
    drawn = negatives.of_step(0)["ad_id"].tolist()
    assert hidden not in drawn and len(set(drawn)) == len(catalog) - 1
    shares = negatives.mixed(torch.from_numpy(negatives.columns[LOG_Q])).exp()
    assert float(shares.sum()) == pytest.approx(1, abs=1e-5)
    # Where the ads of the rows are no negatives, all ads are drawn equally often.
    alone = UniformNegatives(prepared, schema, 500, 32, 0, in_batch=False)
    shares = alone.mixed(torch.from_numpy(alone.columns[LOG_Q])).exp()
    assert shares.tolist() == pytest.approx([1 / len(shares)] * len(shares))


def test_the_mixture_that_ads_are_drawn_from_goes_where_the_batch_goes(
    prepared: Path,
) -> None:
    schema = Schema.load(prepared / "schema.json")
    negatives = UniformNegatives(prepared, schema, 8, 32, seed=0)
    config = load_config(None, ["train.batch_size=32"])
    with process_group("cpu") as process:
        source = BatchSource(
            *(prepared, schema, config.train, 0, process, prepared),
            negatives=ExtraAds(negatives),
        )
        batch = next(source.batches(0))
        rows = next(source.reader.epoch())
    drawn = torch.from_numpy(negatives.of_step(1)[LOG_Q])
    plain = torch.cat([torch.from_numpy(rows.columns[LOG_Q].copy()), drawn])
    moved = Batch(batch.buffer.clone(), batch.layout)
    assert len(moved.log_q) == 40
    assert torch.equal(moved.log_q, negatives.mixed(plain))


@pytest.mark.usefixtures("one_rank")
def test_windows_of_the_alarm_stand_apart_though_steps_are_read_late(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails when the step after a window's last one begins the next window."""
    dead_model_alarm = DeadModelAlarm(Schema.load(prepared / "schema.json"), "raise")
    judged: list[int] = []

    def no_fault(logit: Float64s, label: Float64s) -> str:
        judged.append(len(logit))
        return ""

    monkeypatch.setattr(dead_model_alarm, "_fault", no_fault)
    batch, late = a_batch(prepared), 0
    for number in range(1, 2 * alarm.EVERY + 3):
        rows = dead_model_alarm.rows_to_watch(number)
        if late and dead_model_alarm.is_open:
            labels = (torch.arange(late) % 4 == 0).float()[:, None]
            dead_model_alarm.observe(torch.zeros(late, 1), labels, batch)
        late = min(rows, 65_536)
    assert judged == [alarm.ROWS] * 3
