from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from torchrec_adrec.config.errors import _models_in
from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.errors import ConfigError


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_extends_then_overrides(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "train: {batch_size: 8, epochs: 3}\nseed: 1\n")
    path = write(tmp_path, "a.yaml", "extends: base.yaml\ntrain: {epochs: 2}\n")
    config = load_config(path, ["seed=5", "retrieval.hidden=[4, 2]"])
    assert (config.train.batch_size, config.train.epochs, config.seed) == (8, 2, 5)
    assert config.retrieval.hidden == (4, 2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batch_sise=4", "unknown key 'train.batch_sise', did you mean"),
        ("trian.batch_size=4", "did you mean 'train'"),
        (
            "retrieval.optimizer.table_lr=1",
            "did you mean 'retrieval.optimizer.tables_lr'",
        ),
        ("seed=-1", "greater than or equal to 0"),
        ("recommend={top: 20, candidates: 10}", "exceeds the 10 candidates"),
        ("train.batch_size=0", "greater than or equal to 1, found 0"),
        ("data.split={train: 0.9}", "must be 1, found 1.1"),
        ("ranking.heads=5", "must be a multiple of heads"),
        ("train.batch_size", "expected key=value"),
        ("retrieval.optimizer.tables_lr=0", "greater than 0, found 0"),
        ("ranking.optimizer.dense_lr=0.0", "greater than 0, found 0"),
        ("train=3", "train: expected a block of keys (batch_size, "),
        ("sharding.types=[data_parallel]", "table_wise"),
        ("retrieval.log_q=yess", "'none', 'standard' or 'without_positive'"),
        ("retrieval.in_batch_negatives=false", "there is no negative"),
        ("retrieval.hardest_rise=0.5", "leads to `hardest`"),
    ],
)
def test_a_wrong_override_is_explained(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, [override])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("override", "old", "new"),
    [
        ("towers.alpha=0.9", "towers", "retrieval"),
        ("ranker.layers=2", "ranker", "ranking"),
        ("retrieval.start=x", "retrieval.start", "retrieval.init_from"),
        (
            "data.table.labels.spent={kind: value, high: 9}",
            "data.table.labels.spent.high",
            "data.table.labels.spent.max_value",
        ),
        (
            "data.table.user.seen={kind: sequence, shares: item}",
            "data.table.user.seen.sequence.shares",
            "data.table.user.seen.sequence.shares_ids_with",
        ),
    ],
)
def test_an_old_key_is_refused_with_its_new_name(
    override: str, old: str, new: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, [override])
    assert f"unknown key {old!r}, which is {new!r} now" in str(error.value)


def test_an_old_key_in_a_block_that_never_had_it_is_a_slip() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'train\.graphs'") as error:
        load_config(None, ["train.graph=true", "train.high=3"])
    assert "max_value" not in str(error.value)


def test_extends_in_a_circle(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "extends: a.yaml\n")
    with pytest.raises(ConfigError, match="leads back"):
        load_config(path)


@pytest.mark.parametrize("text", ["", "{}", "# seed: 1\n"])
def test_a_file_that_was_emptied_is_not_the_defaults(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="holds no settings"):
        load_config(path)


def test_a_saved_config_is_read_back_the_same(tmp_path: Path) -> None:
    config = load_config(None, ["data.raw=x.tsv", "seed=3"])
    config.save(tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert config.data.raw == ("x.tsv",)


def test_shipped_configs_are_valid_and_are_read_back_the_same(tmp_path: Path) -> None:
    """A run reads its own copy, so one that cannot be read ends every stage."""
    for path in (Path(__file__).parents[2] / "configs").glob("*.yaml"):
        config = load_config(path)
        config.save(tmp_path / path.name)
        assert load_config(tmp_path / path.name) == config


def classes(model: type[BaseModel]) -> Iterator[str]:
    """The names of a settings class and of all that stand in it."""
    yield model.__name__
    for field in model.model_fields.values():
        for inner in _models_in(field.annotation):
            yield from classes(inner)


def paths(model: type[BaseModel], before: str = "") -> Iterator[str]:
    """The dotted names of all blocks of settings."""
    for name, field in model.model_fields.items():
        for inner in _models_in(field.annotation):
            yield f"{before}{name}"
            yield from paths(inner, f"{before}{name}.")


@pytest.mark.parametrize("value", ["3", "word", "[1]", "{a: 3}"])
def test_no_message_speaks_of_classes(value: str) -> None:
    """They are the program's names, not the user's."""
    names = set(classes(Config))
    assert len(set(paths(Config))) > 10 and "LabelColumn" in names
    for path in set(paths(Config)):
        with pytest.raises(ConfigError) as error:
            load_config(None, [f"{path}={value}"])
        message = str(error.value)
        assert not any(name in message.split() for name in names), message
        for term in ("instance of", "discriminator", "extract"):
            assert term not in message


@pytest.mark.parametrize(
    ("given", "meant"),
    [("true", "without_positive"), ("false", "none"), ("standard", "standard")],
)
def test_corrections_that_were_true_and_false_still_are(given: str, meant: str) -> None:
    config = load_config(None, [f"retrieval.log_q={given}"])
    assert config.retrieval.log_q == meant
