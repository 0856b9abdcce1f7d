"""What is kept, what fits into what, and what a checkpoint says of itself."""

import json
import math
from collections.abc import Callable, Iterator
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
from torchrec_adrec.modules.embeddings import BIAS_SUFFIX
from torchrec_adrec.runtime.files import vocabulary_hashes
from torchrec_adrec.training.trainer import Trainer

C1 = "model.user_tower.tables.embedding_bags.user_C1.weight"


def trainer_for(
    task: str, data: Path, folder: Path, process: Process, *overrides: str
) -> Trainer:
    """With one collection a side: every name stands there once."""
    plain = "retrieval.click_bias=false"
    return any_trainer(task, data, folder, process, plain, *overrides)


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
    best: int | None = None,
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
    newest = checkpoint.latest(trainer.folder / "checkpoints")
    assert newest is not None
    return newest


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
    def steps_on_disk() -> list[str]:
        return [path.name[-2:] for path in sorted(tmp_path.glob("step-*"))]

    for step in (11, 12, 13, 14):
        save(trainer, tmp_path, step, best=11)
    assert steps_on_disk() == ["11", "13", "14"]
    newest = checkpoint.latest(tmp_path)
    assert newest is not None and newest.step == 14
    save(trainer, tmp_path, 15, best=15)
    assert steps_on_disk() == ["14", "15"]


def test_an_optimizer_with_other_keys_is_refused(
    trainer: Trainer, tmp_path: Path
) -> None:
    whole = trainer.optimizer
    tables = trainer.model.fused_optimizer
    for saved, loaded, message in (
        (tables, whole, r"only here: optimizer\.state\.model\.ad_tower\.head"),
        (whole, tables, r"only in the checkpoint: optimizer\.state\.model\.ad_tower"),
    ):
        checkpoint_of_other = save(trainer, tmp_path, 20, optimizer=saved)
        with pytest.raises(CheckpointError, match=message):
            checkpoint.load(checkpoint_of_other, trainer.model, trainer.schema, loaded)


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
    ranker = trainer_for("ranking", data, tmp_path, process, "ranking.tables=scratch")
    ids = vocabulary_hashes(data)
    with pytest.raises(CheckpointError, match=r"only there: model\.model\.ad_tower"):
        checkpoint.load_weights(last(trainer), ranker.model, ids, allow_new=True)


def test_train_from_another_run(trainer: Trainer, tmp_path: Path) -> None:
    other_data(tmp_path, "raw", ["0000000a", "0000000b"])
    settings = (f"data.raw={tmp_path / 'raw.tsv'}", "train.batch_size=32")
    small = ["retrieval={embedding_dim: 4, hidden: [8], output_dim: 4}"]
    small += ["retrieval.click_bias=false"]
    run, start = tmp_path / "run", last(trainer).path
    assert adrec("prepare", "--out", run, *settings, *small).returncode == 0
    args = ("--out", run, "--from", start, "--allow-new-tables")
    done = adrec("train", "retrieval", *args)
    assert done.returncode == 0, done.stderr
    assert f"{C1}: initialised, not from {start}" in done.stderr
    metrics = json.loads((run / "retrieval/metrics.json").read_text())
    assert metrics["initialised"] == [C1]
    assert "--from is for retrieval" in adrec("train", "ranking", *args).stderr


def test_inspect_tells_what_is_there(trainer: Trainer, tmp_path: Path) -> None:
    holdings = {holding.name: holding for holding in inspect(last(trainer))}
    assert headline(last(trainer)).startswith(
        "retrieval: step 10 (epoch 0, step 10 of 10), written by 1 ranks, seed 0"
    )
    parameters = weights(trainer)
    assert set(trainer.model.state_dict()) | {"optimizer state"} == set(holdings)
    table = holdings[C1]
    assert (table.shape, table.dtype, table.bytes) == ("3 x 4", "float32", 48)
    assert table.norm == pytest.approx(float(parameters[C1].norm()))
    assert table.touched == pytest.approx(1 / 3)  # one value; never missing or unknown
    assert not any(holding.not_finite for holding in holdings.values())
    with bias_of(trainer, math.nan):
        broken = inspect(save(trainer, tmp_path, 11))
    assert {h.name for h in broken if h.not_finite} == {"model.calibration.bias"}


def test_diff_tells_what_differs(trainer: Trainer, tmp_path: Path) -> None:
    first = last(trainer)
    with bias_of(trainer, 0.5) as before:
        comparison = compare(first, save(trainer, tmp_path, 11))
    (difference,) = comparison.differ
    assert difference.name == "model.model.calibration.bias"
    assert difference.largest == pytest.approx(abs(0.5 - before))
    assert difference.relative == pytest.approx(abs(0.5 - before) / abs(before))
    assert not comparison.only_first and not comparison.only_second
    assert "step: 10 / 11" in comparison.settings
    assert "config.train.batch_size: 32 / absent" in comparison.settings
    tables = save(trainer, tmp_path, 12, optimizer=trainer.model.fused_optimizer)
    missing = compare(first, tables).only_first
    assert missing and all(n.startswith("optimizer.") for n in missing)


READERS: dict[str, Callable[[Checkpoint, Trainer], object]] = {
    "load": lambda damaged, t: checkpoint.load(damaged, t.model, t.schema, t.optimizer),
    "load_weights": lambda damaged, t: checkpoint.load_weights(
        damaged, t.model, vocabulary_hashes(t.data), allow_new=True
    ),
    "load_tables": lambda damaged, t: checkpoint.load_tables(
        damaged, t.model, t.schema, {C1: C1}
    ),
    "inspect": lambda damaged, t: inspect(damaged),
    "diff": lambda damaged, t: compare(last(t), damaged),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "name", ["__0_0.distcp", ".metadata", "state.json", "hashes.json"]
)
def test_a_flipped_bit_in_any_file_is_refused(
    name: str, reader: str, trainer: Trainer, tmp_path: Path
) -> None:
    """At the first byte, in the middle and at the last; nothing is loaded from it."""
    path = save(trainer, tmp_path, 11).path
    READERS[reader](checkpoint.open_checkpoint(path), trainer)
    before, whole = weights(trainer), (path / name).read_bytes()
    for place in (0, len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (path / name).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=f"{path}/"):
            READERS[reader](checkpoint.open_checkpoint(path), trainer)
    for name, value in weights(trainer).items():
        assert torch.equal(value, before[name]), name


def test_a_file_too_few_or_too_many_is_refused(
    trainer: Trainer, tmp_path: Path
) -> None:
    saved = save(trainer, tmp_path, 11)
    (saved.path / "__1_0.distcp").touch()
    with pytest.raises(CheckpointError, match=r"__1_0\.distcp: expected sha256 none"):
        inspect(saved)
    (saved.path / "__1_0.distcp").unlink()
    (saved.path / "__0_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp: .*found no file"):
        inspect(saved)
    (saved.path / "hashes.json").unlink()
    with pytest.raises(CheckpointError, match="did not record the sha256 of its files"):
        checkpoint.open_checkpoint(saved.path)


def test_a_checkpoint_is_named_by_its_weights(trainer: Trainer, tmp_path: Path) -> None:
    one, again = (save(trainer, tmp_path / name, 11).origin for name in "ab")
    with bias_of(trainer, 0.5):
        other = save(trainer, tmp_path / "c", 11).origin
    assert one == again
    assert one.step == other.step and one.weights != other.weights


def test_the_commands_speak_of_damage_in_words(
    trainer: Trainer, tmp_path: Path
) -> None:
    path = save(trainer, tmp_path, 11).path
    shown = adrec("checkpoint", "inspect", path)
    assert shown.returncode == 0 and "user_C1" in shown.stdout, shown.stderr
    whole = (path / "__0_0.distcp").read_bytes()
    (path / "__0_0.distcp").write_bytes(whole[: len(whole) // 2])
    done = adrec("checkpoint", "diff", path, last(trainer).path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {path}/__0_0.distcp: expected sha256")


def test_both_tables_of_a_feature_have_its_vocabulary() -> None:
    """Or a warm start would take a bias's rows for other values, and say nothing."""
    for name in ("user_tower.tables.embedding_bags.user_C1", "x.embedding_bags.ad_C1"):
        assert checkpoint._feature(f"model.{name}.weight") == "C1"
        assert checkpoint._feature(f"model.{name}{BIAS_SUFFIX}.weight") == "C1"
