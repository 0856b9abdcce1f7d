"""Makes what can be trained, by its name."""

import torch

from torchrec_adrec.config.run import Config
from torchrec_adrec.schema import Schema
from torchrec_adrec.tasks.ranking import RankingTask
from torchrec_adrec.tasks.retrieval import RetrievalTask

TASKS = ("retrieval", "ranking")


def columns_of(name: str, schema: Schema) -> Schema:
    """Return the schema of a task's batches: towers read their own side alone.

    Args:
        name: one of `TASKS`.
        schema: of the data.
    """
    return schema.joined if name == "ranking" else schema


def build_task(
    name: str, schema: Schema, config: Config, device: torch.device | None = None
) -> "RetrievalTask | RankingTask":
    """Make the task of that name.

    Args:
        name: one of `TASKS`; it also says whose settings count.
        schema: of the data.
        config: a ranker has its own settings and the width of the towers' tables.
        device: of the tables; meta: nowhere yet.
    """
    if name == "retrieval":
        return RetrievalTask(schema, config.retrieval, device)
    return RankingTask(schema, config.ranking, config.retrieval.embedding_dim, device)
