"""A run whose best step is not its last, trained and opened in this process."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.data.adapters import open_data
from torchrec_adrec.data.prepare.prepare import prepare
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.distributed.checkpoint import Checkpoint
from torchrec_adrec.distributed.process import Process, process_group
from torchrec_adrec.export.build_index import build_index
from torchrec_adrec.export.export import export
from torchrec_adrec.runs.stage_folder import make_run, stage_workspace
from torchrec_adrec.runs.stages import DATA, EXPORT, INDEX, RANKING, RETRIEVAL
from torchrec_adrec.runtime.ranks import SingleProcess
from torchrec_adrec.schema import Schema
from torchrec_adrec.serve.recommender import Recommender
from torchrec_adrec.tasks.calibration import Calibrations
from torchrec_adrec.tasks.label_heads import prediction
from torchrec_adrec.tasks.sharded import final_checkpoint, restore
from torchrec_adrec.training.refit import fit_stage

SETTINGS = (
    "data.adapter=synthetic",
    "data.synthetic={rows: 4000, ads: 200, users: 200}",
    "train={batch_size: 128, epochs: 8, evaluate_every: 5, patience: 2}",
    "train.dead_model=warn",
    "recommend.candidates=50",
    "evaluation.valid_queries=1000",
    "retrieval={embedding_dim: 4, hidden: [8], output_dim: 4}",
    "ranking={model_dim: 4, heads: 1, head_dim: 8, feedforward_dim: 8, blend: none}",
    # Products of products would be infinite at the learning rates below.
    "ranking.cross_layers=0",
    # so large that the validation loss soon rises: `patience` ends training after that
    "retrieval.optimizer={tables_lr: 1, dense_lr: 0.1}",
    "ranking.optimizer={tables_lr: 1, dense_lr: 0.1}",
)
TASKS = ("retrieval", "ranking")
K = 50  # candidates
# of a ranker that learns steadily, unlike that of `SETTINGS`
STEADY = "ranking.optimizer={tables_lr: 0.05, dense_lr: 0.01}"


def make_trained_run(out: Path) -> None:
    """Make all that serving needs, one stage after another."""
    make_stages(out, load_config(None, SETTINGS))
    for task in TASKS:
        assert final_checkpoint(out / task).step < last(out / task).step


def make_stages(out: Path, config: Config) -> None:
    """Make all stages but the baselines, on one rank."""
    make_data(out, config)
    with process_group("cpu") as process:
        make_towers(out, config, process)
        with stage_workspace(INDEX, config, out, process) as folder:
            build_index(out / "export", config.index, process, folder, k=K, seed=0)
        train_ranker(out, config, process)


def make_data(out: Path, config: Config) -> None:
    """Make the run and its data."""
    make_run(out)
    with stage_workspace(DATA, config, out) as folder:
        data = open_data(config.data, config.seed, folder, SingleProcess())
        prepare(config.data, data, folder, config.seed)


def make_towers(out: Path, config: Config, process: Process) -> None:
    """Train and export the towers of a run with data."""
    with stage_workspace(RETRIEVAL, config, out, process) as folder:
        fit_stage("retrieval", config, process, out / "data", folder)
    schema = Schema.load(out / "data/schema.json")
    with stage_workspace(EXPORT, config, out, process) as folder:
        model, towers = restore("retrieval", out, schema, config, process)
        export(model, towers, out / "data", config, process, folder)


def train_ranker(run: Path, config: Config, process: Process) -> None:
    """Train the ranker of a run, on its towers' tables where the ranker takes them."""
    with stage_workspace(RANKING, config, run, process) as folder:
        towers = final_checkpoint(run / "retrieval")
        fit_stage("ranking", config, process, run / "data", folder, towers)


def last(folder: Path) -> Checkpoint:
    """Open the checkpoint that serving took before there was one function for all."""
    latest = checkpoint.latest(folder / "checkpoints")
    assert latest is not None
    return latest


def metrics(run: Path, task: str) -> dict[str, Any]:
    return dict(json.loads((run / task / "metrics.json").read_text()))


def predicted_alone(
    ranker: Any,
    served: Recommender,
    ad_id: int,
    calibrations: Calibrations | None = None,
) -> dict[str, float]:
    """Predict one ad for a user of whom nothing is known, by a ranker in one piece."""
    user, ad = served.user_input({}), served.scorer.features(np.array([ad_id]))
    with torch.inference_mode():
        logits = ranker.model(user, ad)
    return {
        label.name: prediction(label, logits[:, t].double(), calibrations).item()
        for t, label in enumerate(served.scorer.schema.labels)
    }
