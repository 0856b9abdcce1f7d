"""`adrec plan` for Criteo 1TB: what it prints, compared with what it printed.

A changed figure is a changed plan or a changed estimate: look at it, then write the new
text with `python tests/planning/test_plan.py`.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import REPOSITORY, adrec

from torchrec_adrec.config.run import load_config
from torchrec_adrec.data.adapters import criteo
from torchrec_adrec.errors import ConfigError, PlanError
from torchrec_adrec.planning.cluster import parse, with_prices
from torchrec_adrec.planning.command import lines_of
from torchrec_adrec.planning.estimate import estimate
from torchrec_adrec.planning.job import Job
from torchrec_adrec.schema import Schema, Side

GOLDEN = Path(__file__).with_name("golden")
CONFIG = REPOSITORY / "configs/criteo_1tb.yaml"
SCHEMAS = REPOSITORY / "configs/schemas"
PLANS = {
    "8xH100-80GB": ("criteo_1tb", "8xH100-80GB", None, ["16xA100-40GB", "8xA100-40GB"]),
    "2_nodes_of_8xH100-80GB": ("criteo_1tb", "8xH100-80GB", 2, []),
    "64xH100-80GB": ("criteo_1tb", "64xH100-80GB", None, []),
    "256xH100-80GB": ("criteo_1tb", "256xH100-80GB", None, []),
    "8xA100-40GB": ("criteo_1tb", "8xA100-40GB", None, []),
    "mlperf_on_8xA100-40GB": ("criteo_1tb_mlperf", "8xA100-40GB", None, []),
}


def job(schema: str, *words: str, ads: int | None = 10_000_000) -> Job:
    path, batch = SCHEMAS / f"{schema}.json", 32_768
    return Job.read(path, None, CONFIG, words, batch, ads)


def printed(name: str) -> str:
    schema, gpus, nodes, others = PLANS[name]
    try:
        lines = lines_of(job(schema), gpus, nodes, others)
    except PlanError as error:
        lines = [f"error: {error}"]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", PLANS)
def test_as_printed_before(name: str) -> None:
    text = printed(name)
    assert text == (GOLDEN / f"{name}.txt").read_text()
    if not text.startswith("error"):
        assert max(map(len, text.splitlines())) <= 110


def test_schemas_are_what_the_adapter_reads() -> None:
    """26 tables with the sides of the Kaggle config, 882,774,559 rows."""
    kaggle = load_config(REPOSITORY / "configs/criteo_kaggle.yaml")
    expected = criteo.schema(load_config(CONFIG).data)
    rows = {}
    for name in ("criteo_1tb", "criteo_1tb_mlperf"):
        schema = Schema.load(SCHEMAS / f"{name}.json")
        rows[name] = [f.num_embeddings for f in schema.sparse]
        blank = [f.model_copy(update={"num_embeddings": 0}) for f in schema.sparse]
        assert schema.model_copy(update={"sparse": tuple(blank)}) == expected
        assert {f.name for f in schema.sparse_of(Side.AD)} == set(
            kaggle.data.ad_features
        )
    assert sum(rows["criteo_1tb"]) == 882_774_559
    assert rows["criteo_1tb_mlperf"] == [min(n, 40_000_000) for n in rows["criteo_1tb"]]


def test_nothing_moves_to_host_memory_unasked() -> None:
    """What is refused is there when it is asked for, and only for those tables."""
    asked = "{kernel: fused_uvm_caching}"
    words = (
        f"sharding.tables={{user_C20: {asked}, user_C1: {asked}, user_C22: {asked}}}"
    )
    lines = lines_of(job("criteo_1tb", words), "8xA100-40GB", None, [])
    moved = [line.split()[0] for line in lines if "fused_uvm_caching" in line]
    assert moved == ["user_C1", "user_C20", "user_C22"]
    assert any(line.startswith("host memory beside the GPU") for line in lines)


def test_tables_that_no_number_of_gpus_holds_in_one_piece() -> None:
    with pytest.raises(PlanError) as refusal:
        lines_of(job("criteo_1tb", "sharding.types=[table_wise]"), "8xH100-80GB", 1, [])
    assert "no way to cut the tables that is allowed fits" in str(refusal.value)
    assert "user_C20 139.6 GiB" in str(refusal.value)
    assert "larger clusters do not fit either" in str(refusal.value)


def test_a_batch_that_fills_the_memory_of_the_dense_part() -> None:
    planned = job("criteo_1tb_mlperf")
    cluster = parse("8xH100-80GB")
    with pytest.raises(PlanError, match=r"the dense part needs .* GiB .*smaller batch"):
        estimate(replace(planned, batch=2**23), cluster)


def test_a_price_of_the_users_own() -> None:
    """Dollars: GPUs x price; a billion rows by the step's time. A word that names no
    GPU or no number is refused.
    """
    estimated = estimate(
        job("criteo_1tb"), parse("8xH100-80GB", 2, with_prices(PRICES))
    )
    assert estimated.dollars_per_hour == 16 * 2.5
    hours = estimated.step_ms / 3.6e6 * (1e9 / estimated.batch)
    assert estimated.dollars_per_billion_rows == pytest.approx(16 * 2.5 * hours)
    lines = lines_of(job("criteo_1tb"), "8xH100-80GB", 2, [], PRICES)
    assert any("assuming $2.50 an hour and GPU" in line for line in lines)
    for word in ("H100-80GB", "H100-80GB=-1", "B100=2", "H100-80GB=two"):
        with pytest.raises(ConfigError, match="expected GPU=DOLLARS an hour"):
            with_prices([word])


PRICES = ["H100-80GB=2.50"]


@pytest.mark.parametrize(
    ("gpus", "nodes", "message"),
    [
        ("8xB100", None, "no figures of 'B100'; known: V100-32GB"),
        ("H100-80GB", None, "expected COUNTxGPU"),
        ("12xH100-80GB", None, "a multiple of 8"),
        ("16xH100-80GB", 2, "at most 8 a node"),
        ("6xH100-80GB", None, "32,768 is no multiple of the 6 GPUs"),
    ],
)
def test_a_cluster_that_is_none(gpus: str, nodes: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        lines_of(job("criteo_1tb"), gpus, nodes, [])


def test_the_command_refuses_with_code_2() -> None:
    schema = SCHEMAS / "criteo_1tb.json"
    words = ("plan", "--gpus", "8xA100-40GB", "--config", CONFIG, "--schema", schema)
    done = adrec(*words, PYTHONHASHSEED="1")
    assert done.returncode == 2 and done.stdout == ""
    assert "425.1 GiB needed, 272.0 GiB there" in done.stderr
    assert (
        "the smallest cluster that fits: 16 x A100-40GB (2 nodes of 8)" in done.stderr
    )


def test_a_job_that_says_too_little(tmp_path: Path) -> None:
    path, empty = tmp_path / "schema.json", job("criteo_1tb").schema.model_dump()
    empty["sparse"][0]["num_embeddings"] = 0
    path.write_text(json.dumps(empty))
    with pytest.raises(ConfigError, match="no table size for C1;"):
        Job.read(path, None, CONFIG, [], None, None)
    for schema, out in ((None, None), (path, tmp_path)):
        with pytest.raises(ConfigError, match="either --schema FILE or --out RUN"):
            Job.read(schema, out, CONFIG, [], None, None)


if __name__ == "__main__":
    for golden in PLANS:
        (GOLDEN / f"{golden}.txt").write_text(printed(golden))
