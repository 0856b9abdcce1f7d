"""What moves in training, and what must not. One real rank, real sharded tables."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.data.loader.ledger import LEDGER, audit
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.checkpoint import Checkpoint
from torchrec_adrec.distributed.process import Process, process_group
from torchrec_adrec.errors import ConfigError, NonFiniteLossError
from torchrec_adrec.models.rankers.registry import RANKERS
from torchrec_adrec.runtime.status import STATUS_FILE, StatusReader
from torchrec_adrec.tasks.ranking import warm_starts
from torchrec_adrec.tasks.sharded import final_checkpoint
from torchrec_adrec.training.trainer import Trainer

TINY = (
    "train.batch_size=32",
    "retrieval.embedding_dim=4",
    "retrieval.hidden=[8]",
    "retrieval.output_dim=4",
    "ranking.model_dim=4",
    "ranking.heads=1",
    "ranking.head_dim=8",
    "ranking.feedforward_dim=8",
)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """A copy of every parameter; of a table, this rank's (only) shard."""
    copies = {}
    for name, value in trainer.model.state_dict().items():
        shards = getattr(value, "local_shards", None)
        copies[name] = (shards()[0].tensor if shards else value).detach().clone()
    # A side without numbers has an empty parameter for them.
    return {name: value for name, value in copies.items() if value.numel()}


def trainer_for(
    task: str, data: Path, folder: Path, process: Process, *overrides: str
) -> Trainer:
    config: Config = load_config(None, [*TINY, *overrides])
    start: Checkpoint | None = None
    if task == "ranking" and warm_starts(config.ranking):
        start = final_checkpoint(folder / "towers")
    out = folder / ("towers" if task == "retrieval" else "ranker")
    out.mkdir(exist_ok=True)
    return Trainer(task, config, process, data, out, start)


@pytest.mark.parametrize("ranker", RANKERS)
def test_every_parameter_of_both_models_moves(
    prepared: Path, tmp_path: Path, ranker: str
) -> None:
    words = (f"ranking.model={ranker}",)
    with process_group("cpu") as process:
        for task in ("retrieval", "ranking"):
            trainer = trainer_for(task, prepared, tmp_path, process, *words)
            trainer.checkpoints.restore()
            before = weights(trainer)
            trainer.fit()
            still = [
                n for n, w in weights(trainer).items() if torch.equal(w, before[n])
            ]
            assert not still


def test_the_ranker_may_read_the_rows_more_often(
    prepared: Path, tmp_path: Path
) -> None:
    words = ("ranking={tables: scratch, epochs: 3}", "train.epochs=2")
    steps = {}
    with process_group("cpu") as process:
        for task in ("retrieval", "ranking"):
            trainer = trainer_for(task, prepared, tmp_path, process, *words)
            steps[task] = trainer.fit()["train"]["steps"]
    assert steps == {"retrieval": 20, "ranking": 30}


def test_a_run_that_only_lacks_its_metrics_is_finished(
    prepared: Path, tmp_path: Path
) -> None:
    with process_group("cpu") as process:
        first = trainer_for("retrieval", prepared, tmp_path, process).fit()
        again = trainer_for("retrieval", prepared, tmp_path, process).fit()
    assert again["train"]["resumed_at_step"] == first["train"]["steps"]
    assert again["train"]["last_step_loss"] == first["train"]["last_step_loss"]
    assert again["test"] == first["test"]


def test_tables_start_where_the_config_says(prepared: Path, tmp_path: Path) -> None:
    with process_group("cpu") as process:
        towers = trainer_for("retrieval", prepared, tmp_path, process)
        towers.fit()
        trained = weights(towers)
        for tables, same in (("warm_start", True), ("scratch", False)):
            ranker = trainer_for(
                "ranking", prepared, tmp_path, process, f"ranking.tables={tables}"
            )
            ranker.checkpoints.restore()
            for side in ("user", "ad"):
                name = (
                    f"embedding_bags.{side}_{'C1' if side == 'user' else 'C15'}.weight"
                )
                source = trained[f"model.{side}_tower.tables.{name}"]
                initial = weights(ranker)[f"model.{side}_tables.{name}"]
                assert torch.equal(initial, source) == same


def test_frozen_tables_stay_and_the_rest_learns(prepared: Path, tmp_path: Path) -> None:
    with process_group("cpu") as process:
        trainer_for("retrieval", prepared, tmp_path, process).fit()
        ranker = trainer_for(
            "ranking", prepared, tmp_path, process, "ranking.tables=frozen"
        )
        ranker.checkpoints.restore()
        before = weights(ranker)
        ranker.fit()
        for name, after in weights(ranker).items():
            assert torch.equal(after, before[name]) == ("_tables." in name), name


def test_a_loss_that_is_not_finite_stops(prepared: Path, tmp_path: Path) -> None:
    with process_group("cpu") as process:
        trainer = trainer_for(
            "retrieval", prepared, tmp_path, process, "train.log_every=1"
        )
        with torch.no_grad():
            trainer.model.module.model.calibration.bias.fill_(torch.nan)
        with pytest.raises(
            NonFiniteLossError,
            match=r"nan at step 1, before any .* parameter model.calibration.bias",
        ):
            trainer.fit()


def test_a_batch_that_is_larger_than_the_data(prepared: Path, tmp_path: Path) -> None:
    with (
        process_group("cpu") as process,
        pytest.raises(ConfigError, match=r"train\.batch_size = 4096 exceeds the 320"),
    ):
        trainer_for("retrieval", prepared, tmp_path, process, "train.batch_size=4096")


def test_cuda_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch finds no GPU"), process_group("cuda"):
        pass


def test_looking_at_the_validation_split_changes_nothing(
    prepared: Path, tmp_path: Path
) -> None:
    """Batches are in flight when the model leaves its pipeline to be judged."""
    ends = []
    for every in (0, 3):
        out = tmp_path / str(every)
        out.mkdir()
        overrides = (
            "retrieval.dropout=0.5",
            f"train.evaluate_every={every}",
            "train.epochs=2",
        )
        with process_group("cpu") as process:
            trainer = trainer_for("retrieval", prepared, out, process, *overrides)
            trainer._train(trainer.checkpoints.restore())
            last = checkpoint.latest(out / "towers/checkpoints")
            assert last is not None and last.step == 20
            checkpoint.load(last, trainer.model, trainer.schema)
            ends.append(weights(trainer))
            looks = len(trainer.state.stopping.history)
        assert looks == (7 if every else 0)
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def test_patience_ends_training_with_the_best(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = tmp_path / "status"
    monkeypatch.setenv(STATUS_FILE, str(status))
    overrides = ["train.evaluate_every=2", "train.patience=2", "train.epochs=4"]
    overrides += ["train.ledger=true"]
    rates = ("retrieval.optimizer={tables_lr: 3, dense_lr: 0.3}",)  # to get worse soon
    with process_group("cpu") as process:
        trainer = trainer_for(
            "retrieval", prepared, tmp_path, process, *overrides, *rates
        )
        metrics = trainer.fit()
        again = trainer_for(
            "retrieval", prepared, tmp_path, process, *overrides, *rates
        )
        resumed = again.fit()
    history = metrics["train"]["validation"]
    # A sweep reads them while the stage goes on.
    sent = [s for s in StatusReader(status).read() if s.kind == "figures"]
    losses = [json.loads(s.text)["click"]["log_loss"] for s in sent]
    assert [(s.done, x) for s, x in zip(sent, losses, strict=True)] == [
        tuple(pair) for pair in history
    ]
    assert {(s.note, s.total) for s in sent} == {("retrieval", 40)}
    step, loss = min(history, key=lambda pair: pair[1])
    assert history[-1][0] == step + 4 == metrics["train"]["steps"] < 40
    assert metrics["valid"]["click"]["log_loss"] == pytest.approx(loss)
    assert final_checkpoint(tmp_path / "towers").step == step
    last = checkpoint.latest(tmp_path / "towers/checkpoints")
    assert last is not None and last.step == metrics["train"]["steps"]
    reader = replace(trainer.source.reader, columns=("ad_id",))
    books = audit(tmp_path / "towers" / LEDGER, last.state["ledger"], reader)
    assert books and all(book.is_whole for book in books)
    assert resumed["valid"] == metrics["valid"]
    assert resumed["train"]["steps"] == metrics["train"]["steps"]
