"""What is kept, what fits into what, and what a checkpoint says of itself."""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import adrec, criteo_line, prepare_criteo
from test_train import trainer_for as any_trainer
from test_train import weights

from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.checkpoint import Checkpoint
from torchrec_adrec.distributed.checkpoint_report import compare, headline, inspect
from torchrec_adrec.distributed.process import Process, process_group
from torchrec_adrec.errors import CheckpointError
from torchrec_adrec.files import vocabulary_hashes
from torchrec_adrec.modules.embeddings import BIAS_SUFFIX
from torchrec_adrec.train import Trainer

C1 = "model.user_tower.tables.embedding_bags.user_C1.weight"


def trainer_for(
    task: str, data: Path, folder: Path, process: Process, *words: str
) -> Trainer:
    """With one collection a side: every name stands there once."""
    plain = "towers.click_bias=false"
    return any_trainer(task, data, folder, process, plain, *words)


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    with process_group("cpu") as process:
        yield process


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return other_data(tmp_path_factory.mktemp("data"), "data", ["0000000a"])


@pytest.fixture(scope="module")
def trainer(
    data: Path, process: Process, tmp_path_factory: pytest.TempPathFactory
) -> Trainer:
    """Trained for ten steps; its checkpoint is step 10. Leave it as it is."""
    folder = tmp_path_factory.mktemp("trained")
    trainer = trainer_for("retrieval", data, folder, process)
    trainer.fit()
    return trainer


def save(
    trainer: Trainer,
    folder: Path,
    step: int,
    best: dict[str, float] | None = None,
    optimizer: Any = None,
) -> Checkpoint:
    path = checkpoint.save(
        folder,
        trainer.process,
        trainer.model,
        optimizer or trainer.optimizer,
        trainer.schema,
        {"step": step},
        2,
        best,
    )
    return checkpoint.open_checkpoint(path)


def last(trainer: Trainer) -> Checkpoint:
    found = checkpoint.latest(trainer.folder / "checkpoints")
    assert found is not None
    return found


@contextmanager
def bias_of(trainer: Trainer, value: float) -> Iterator[float]:
    """One parameter with another value, for a while; gives the one it has."""
    bias = trainer.model.module.model.calibration.bias.data
    before = bias.item()
    bias.fill_(value)
    yield before
    bias.fill_(before)


def other_data(folder: Path, name: str, c1: list[str]) -> Path:
    """The rows of `raw_file`, but with other values of C1."""
    raw = folder / f"{name}.tsv"
    lines = [criteo_line(i, i % 3 == 0, c1[i % len(c1)]) for i in range(400)]
    raw.write_text("\n".join(lines) + "\n")
    prepare_criteo(folder / name, raw)
    return folder / name


def test_the_best_is_kept_beside_the_last(trainer: Trainer, tmp_path: Path) -> None:
    def there() -> list[str]:
        return [path.name[-2:] for path in sorted(tmp_path.glob("step-*"))]

    assert checkpoint.best(tmp_path) is None
    for step, best in ((11, {"auc": 0.7}), (12, None), (13, None), (14, None)):
        save(trainer, tmp_path, step, best)
    assert there() == ["11", "13", "14"]
    found, newest = checkpoint.best(tmp_path), checkpoint.latest(tmp_path)
    assert found is not None and found.step == 11
    assert newest is not None and newest.step == 14
    assert checkpoint.best_mark(tmp_path) == {"step": 11, "auc": 0.7}
    save(trainer, tmp_path, 15, {"auc": 0.8})
    assert there() == ["14", "15"]
    shutil.rmtree(tmp_path / "step-00000015")
    with pytest.raises(CheckpointError, match="step-00000015 is no whole checkpoint"):
        checkpoint.best(tmp_path)


def test_an_optimizer_with_other_keys_is_refused(
    trainer: Trainer, tmp_path: Path
) -> None:
    whole = trainer.optimizer
    tables = trainer.model.fused_optimizer
    for saved, loaded, message in (
        (tables, whole, r"only here: optimizer\.state\.model\.ad_tower\.head"),
        (whole, tables, r"only in the checkpoint: optimizer\.state\.model\.ad_tower"),
    ):
        found = save(trainer, tmp_path, 20, optimizer=saved)
        with pytest.raises(CheckpointError, match=message):
            checkpoint.load(found, trainer.model, trainer.schema, loaded)


@pytest.mark.parametrize(
    ("c1", "message"),
    [
        (["0000000b"], f"ids of another vocabulary: model.{C1}"),
        (["0000000a", "0000000b"], rf"other shapes: model.{C1} \[3, 4\] there, \[4, 4"),
    ],
)
def test_a_warm_start_names_what_does_not_fit(
    c1: list[str], message: str, trainer: Trainer, tmp_path: Path, process: Process
) -> None:
    data = other_data(tmp_path, "other", c1)
    new = trainer_for("retrieval", data, tmp_path, process)
    before, trained, ids = weights(new), weights(trainer), vocabulary_hashes(data)
    with pytest.raises(CheckpointError, match=message) as refused:
        checkpoint.load_weights(last(trainer), new.model, ids)
    assert "--allow-new-tables" in str(refused.value)
    assert all(torch.equal(w, before[n]) for n, w in weights(new).items())
    assert checkpoint.load_weights(last(trainer), new.model, ids, True) == [C1]
    for name, value in weights(new).items():
        expected = before if name == C1 else trained
        assert torch.equal(value, expected[name]), name


def test_a_warm_start_from_more_columns_is_refused(
    trainer: Trainer, data: Path, tmp_path: Path, process: Process
) -> None:
    ranker = trainer_for("ranking", data, tmp_path, process, "ranker.tables=scratch")
    ids = vocabulary_hashes(data)
    with pytest.raises(CheckpointError, match=r"only there: model\.model\.ad_tower"):
        checkpoint.load_weights(last(trainer), ranker.model, ids, allow_new=True)


def test_train_from_another_run(trainer: Trainer, tmp_path: Path) -> None:
    other_data(tmp_path, "raw", ["0000000a", "0000000b"])
    settings = (f"data.raw={tmp_path / 'raw.tsv'}", "train.batch_size=32")
    small = ("towers={embedding_dim: 4, hidden: [8], output_dim: 4}",)
    small += ("towers.click_bias=false",)
    run, start = tmp_path / "run", last(trainer).path
    assert adrec("prepare", "--out", run, *settings, *small).returncode == 0
    words = ("--out", run, "--from", start, "--allow-new-tables")
    done = adrec("train", "retrieval", *words)
    assert done.returncode == 0, done.stderr
    assert f"{C1}: initialised, not from {start}" in done.stderr
    metrics = json.loads((run / "retrieval/metrics.json").read_text())
    assert metrics["initialised"] == [C1]
    assert "--from is for retrieval" in adrec("train", "ranking", *words).stderr


def test_inspect_tells_what_is_there(trainer: Trainer, tmp_path: Path) -> None:
    found = {holding.name: holding for holding in inspect(last(trainer))}
    assert headline(last(trainer)).startswith(
        "retrieval: step 10 (epoch 0, step 10 of 10), written by 1 ranks, seed 0"
    )
    own = weights(trainer)
    assert set(trainer.model.state_dict()) | {"optimizer state"} == set(found)
    table = found[C1]
    assert (table.shape, table.dtype, table.bytes) == ("3 x 4", "float32", 48)
    assert table.norm == pytest.approx(float(own[C1].norm()))
    assert table.touched == pytest.approx(1 / 3)  # one value; never missing or unknown
    assert not any(holding.not_finite for holding in found.values())
    with bias_of(trainer, math.nan):
        broken = inspect(save(trainer, tmp_path, 11))
    assert {h.name for h in broken if h.not_finite} == {"model.calibration.bias"}


def test_diff_tells_what_differs(trainer: Trainer, tmp_path: Path) -> None:
    first = last(trainer)
    with bias_of(trainer, 0.5) as before:
        found = compare(first, save(trainer, tmp_path, 11))
    (difference,) = found.differ
    assert difference.name == "model.model.calibration.bias"
    assert difference.largest == pytest.approx(abs(0.5 - before))
    assert difference.relative == pytest.approx(abs(0.5 - before) / abs(before))
    assert not found.only_first and not found.only_second
    assert "step: 10 / 11" in found.settings
    assert "config.train.batch_size: 32 / absent" in found.settings
    tables = save(trainer, tmp_path, 12, optimizer=trainer.model.fused_optimizer)
    lacking = compare(first, tables).only_first
    assert lacking and all(n.startswith("optimizer.") for n in lacking)


def test_the_commands_speak_of_damage_in_words(
    trainer: Trainer, tmp_path: Path
) -> None:
    path = save(trainer, tmp_path, 11).path
    shown = adrec("checkpoint", "inspect", path)
    assert shown.returncode == 0 and "user_C1" in shown.stdout, shown.stderr
    for name in ("state.json", ".metadata", "__0_0.distcp"):
        whole = (path / name).read_bytes()
        (path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CheckpointError, match=str(path)):
            inspect(checkpoint.open_checkpoint(path))
        if name != "__0_0.distcp":
            (path / name).write_bytes(whole)
    done = adrec("checkpoint", "diff", path, last(trainer).path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {path} cannot be loaded")


def test_both_tables_of_a_feature_have_its_vocabulary() -> None:
    """Or a warm start would take a bias's rows for other values, and say nothing."""
    for name in ("user_tower.tables.embedding_bags.user_C1", "x.embedding_bags.ad_C1"):
        assert checkpoint._feature(f"model.{name}.weight") == "C1"
        assert checkpoint._feature(f"model.{name}{BIAS_SUFFIX}.weight") == "C1"
