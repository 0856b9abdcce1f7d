from pathlib import Path
from typing import Any

import pytest

from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.config.unused import without_effect
from torchrec_adrec.data.adapters import check_source
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.models.rankers.registry import RANKERS, build_ranker
from torchrec_adrec.runs.run_folder import command_in
from torchrec_adrec.schema import DenseFeature, Label, Schema, Side, SparseFeature

SCHEMA = Schema(
    dense=(DenseFeature(name="age", side=Side.USER, source="age"),),
    sparse=tuple(
        SparseFeature(name=name, side=side, source=name, kind="text", num_embeddings=4)
        for name, side in (("city", Side.USER), ("item", Side.AD))
    ),
    labels=(Label(name="click"),),
)
CHANGED: dict[str, Any] = {
    "layers": 3,
    "heads": 4,
    "model_dim": 32,
    "feedforward_dim": 24,
    "head_dim": 48,
    "hidden": (48, 24),
    "experts": 3,
    "cross_layers": 3,
    "cross_rank": 5,
    "dropout": 0.25,
}


def _structure(model: str, **changed: Any) -> list[Any]:
    """What a model is made of: the shapes of its weights, its numbers, its modules."""
    config = RankingConfig(model=model, **changed)
    ranker = build_ranker(SCHEMA, config, 8)
    numbers = [
        (name, key, value)
        for name, module in ranker.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, int | float)
    ]
    shapes = [(name, tuple(p.shape)) for name, p in ranker.named_parameters()]
    return [numbers, shapes]


@pytest.mark.parametrize("model", RANKERS)
@pytest.mark.parametrize("name", CHANGED)
def test_a_rankers_setting_is_listed_exactly_if_it_changes_nothing(
    model: str, name: str
) -> None:
    changed = {name: CHANGED[name]}
    has_effect = _structure(model) != _structure(model, **changed)
    ranking = RankingConfig(model=model, **changed)
    lines = without_effect(Config(ranking=ranking))
    assert bool(lines) != has_effect
    assert all(line.startswith(f"ranking.{name} = ") for line in lines)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("retrieval={similarity: additive, output_dim: 8}", "retrieval.output_dim"),
        ("retrieval={contrast: bpr, log_q: false}", "retrieval.log_q"),
        ("data.hash_size=50", "data.hash_size"),
        ("data={ids: hash, min_count: 2}", "data.min_count"),
        ("index={kind: exact, memory_gib: 7}", "index.memory_gib"),
        ("ranking={model: dnn, table_init: 0.01}", "ranking.table_init"),
        (
            "ranking={model: lr, tables: scratch, table_init: 0.01}",
            "ranking.table_init",
        ),
    ],
)
def test_a_setting_without_effect_is_named(given: str, named: str) -> None:
    (line,) = without_effect(load_config(None, [given]))
    assert line.startswith(f"{named} = ")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")), ids=str
)
def test_shipped_configs_hold_none(path: Path) -> None:
    assert without_effect(load_config(path)) == []


def test_a_command_says_it_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args = ["data.adapter=synthetic", "ranking.hidden=[64]"]
    with command_in(tmp_path / "run", None, args):
        pass
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "ranking.hidden = (64,) has no effect with ranking.model = transformer"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("data={adapter: synthetic, raw: mine.csv}", "data.raw names mine.csv"),
        (
            "data={raw: mine.csv, table: {labels: {click: {}}, user: {a: text}, ad:"
            " {b: text}}}",
            "data.table says",
        ),
    ],
)
def test_data_that_the_adapter_would_not_read_are_refused(
    given: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_source(load_config(None, [given]).data)
