"""What settings of sharding mean, and what they may not say."""

import pytest
import torch
from fifty_steps import SCHEMA, TABLES, config
from torchrec.distributed.types import ShardingType

from torchrec_adrec.distributed.constraints import (
    constraints,
    ids_per_row,
    tables_of,
)
from torchrec_adrec.distributed.optimizer import fuse_table_optimizer
from torchrec_adrec.distributed.plan_report import rank_lines, rank_loads, table_lines
from torchrec_adrec.distributed.planner import TablePlan, plan_tables
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.distributed.sharders import Sharder
from torchrec_adrec.distributed.sharding import meta_device, topology_of
from torchrec_adrec.errors import ConfigError, PlanError
from torchrec_adrec.tasks.task import build_task


def planned(ranks: int, *overrides: str) -> TablePlan:
    """A plan of CPU ranks that are not there."""
    settings = config(*overrides)
    model = build_task("retrieval", SCHEMA, settings, meta_device())
    fuse_table_optimizer(model, settings.retrieval.optimizer)
    topology = topology_of(Process(0, ranks, ranks, torch.device("cpu")))
    ids = ids_per_row(SCHEMA, model)
    allowed = constraints(tables_of(model), settings.sharding, ids, topology)
    return plan_tables(model, [Sharder()], topology, allowed, 64)


def types(*overrides: str) -> dict[str, str]:
    return {
        option.name: option.sharding_type for option in planned(2, *overrides).chosen
    }


def test_the_first_pattern_that_fits_counts() -> None:
    overrides = (
        "sharding.types=[column_wise]",
        "sharding.tables={user_a: {types: [row_wise]}, 'user_*': {types:"
        " [table_wise]}}",
    )
    actual = types(*overrides)
    assert actual == {
        name: "row_wise"
        if name == "user_a"
        else "table_wise"
        if name.startswith("user")
        else "column_wise"
        for name in TABLES
    }


def test_by_default_no_table_is_cut_on_cpus_and_none_is_whole_on_every_rank() -> None:
    assert set(types().values()) == {"table_wise"}
    offered = Sharder().sharding_types("cuda")
    assert ShardingType.DATA_PARALLEL.value not in offered


def test_no_cut_leaves_a_cpu_rank_without_a_row() -> None:
    """Of 7 rows 6 ranks would get 2, 2, 2, 1, 0, 0: the CPU kernel fails on none."""
    word = "sharding.types=[row_wise]"
    plan = planned(6, word)
    chosen = {o.name: (o.sharding_type, o.tensor.shape[0]) for o in plan.chosen}
    assert chosen["ad_d"] == ("table_wise", 7) and chosen["ad_c"] == ("row_wise", 29)
    lines = table_lines(plan, config(word).sharding)
    (line,) = (line for line in lines if line.startswith("ad_d"))
    assert line.endswith("too few rows for every rank")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("sharding.types=[data_parallel]", "never trains under an optimizer inside"),
        ("sharding.tables={a: {types: [data_parallel]}}", "never trains under an"),
        ("sharding.types=[]", "at least 1 item"),
        ("sharding.tables={user_a: {min_partition: 6}}", "multiple of 4"),
        ("sharding.qcomm=bf16", "'fp32' or 'fp16'"),
        (
            "sharding.tables={'item_*': {}}",
            "'item_*' fits no table; the tables are user_a",
        ),
        ("sharding.tables={user_a: {kernel: fused_uvm}}", "which only GPUs have"),
    ],
)
def test_what_is_refused(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        types(word)
    assert message in str(refusal.value)


def test_too_little_memory_is_refused_with_the_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sysconf", lambda name: 1024 if "SIZE" in name else 10)
    with pytest.raises(
        PlanError, match=r"GiB needed, .* GiB there on 2 ranks"
    ) as error:
        planned(2)
    assert error.value.needed > error.value.available > 0
    assert "user_a" in str(error.value)


def test_the_report_counts_every_weight_once() -> None:
    weights = sum(f.num_embeddings for f in SCHEMA.bags) * 16 * 4
    for overrides in (
        (),
        ("sharding.types=[row_wise]",),
        ("sharding.types=[column_wise]",),
    ):
        loads = rank_loads(planned(2, *overrides))
        assert sum(load.weights for load in loads) == weights
        assert sum(load.optimizer for load in loads) == weights // 16
        assert all(load.buffers > 0 and load.ms > 0 for load in loads)


def test_the_report_says_why_in_narrow_lines() -> None:
    overrides = (
        "sharding.types=[table_wise, row_wise]",
        "sharding.tables={user_a: {types: [row_wise]}}",
    )
    plan = planned(4, *overrides)
    lines = table_lines(plan, config(*overrides).sharding)
    assert lines[0].split()[:5] == ["table", "rows", "dim", "type", "kernel"]
    line_of = {line.split()[0]: line for line in lines[1:-1]}
    assert set(line_of) == set(TABLES)
    assert line_of["user_a"].split(maxsplit=8)[3:] == (
        ["row_wise", "fused", "all", "4", "6.3", "KiB  sharding.tables asks for it"]
    )
    assert all("of 2" in line for name, line in line_of.items() if name != "user_a")
    assert len(rank_lines(plan)) == 5
    assert max(map(len, [*lines, *rank_lines(plan)])) <= 110
