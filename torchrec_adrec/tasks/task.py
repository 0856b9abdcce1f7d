"""What can be trained, by its name."""

import torch

from torchrec_adrec.config.run import Config
from torchrec_adrec.schema import Schema
from torchrec_adrec.tasks.ranking import RankingTask
from torchrec_adrec.tasks.retrieval import RetrievalTask

TASKS = ("retrieval", "ranking")


def build_task(
    name: str, schema: Schema, config: Config, device: torch.device | None = None
) -> "RetrievalTask | RankingTask":
    """The task of that name, its tables on `device` (meta: nowhere yet)."""
    if name == "retrieval":
        return RetrievalTask(schema, config.retrieval, device)
    return RankingTask(schema, config.ranking, config.retrieval.embedding_dim, device)
