"""TorchRec's own DLRM in its own training pipeline, as its examples have it.

`DLRMTrain` with row-wise Adagrad in backward for the tables and Adam for the rest. Its
batches lie in memory, in its own class: it is not charged for reading.
"""

import torch
from torch import nn
from torchrec.datasets.utils import Batch as PlainBatch
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import (
    EmbeddingShardingPlanner,
    ParameterConstraints,
    Topology,
)
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_adrec.batch import Batch
from torchrec_adrec.config.run import Config
from torchrec_adrec.schema import Schema


def build(schema: Schema, config: Config) -> TrainPipelineSparseDist:
    """The pipeline of a sharded DLRM of the ranker's sizes, on one rank."""
    ranking = config.ranking
    width = ranking.embedding_dim or config.retrieval.embedding_dim
    tables = [
        EmbeddingBagConfig(
            name=f"t_{feature.name}",
            embedding_dim=width,
            num_embeddings=feature.num_embeddings,
            feature_names=[feature.name],
        )
        for feature in schema.sparse
    ]
    collection = EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
    optimizer = ranking.optimizer
    apply_optimizer_in_backward(
        RowWiseAdagrad, collection.parameters(), {"lr": optimizer.tables_lr}
    )
    hidden = list(ranking.hidden)
    model: nn.Module = DLRMTrain(
        DLRM(collection, len(schema.dense), [*hidden, width], [*hidden, 1])
    )
    sharders = [EmbeddingBagCollectionSharder()]
    # The default plan leaves small tables data_parallel, which then never train.
    wise = ParameterConstraints(sharding_types=["table_wise"])
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=1, compute_device="cpu"),
        batch_size=config.train.batch_size,
        constraints=dict.fromkeys((table.name for table in tables), wise),
    )
    device = torch.device("cpu")
    plan = planner.plan(model, sharders)
    sharded = DistributedModelParallel(
        model, device=device, plan=plan, sharders=sharders
    )
    rest = dict(in_backward_optimizer_filter(sharded.named_parameters()))
    dense = KeyedOptimizerWrapper(
        rest, lambda p: torch.optim.Adam(p, lr=optimizer.dense_lr)
    )
    both = CombinedOptimizer([sharded.fused_optimizer, dense])
    sharded.train()
    return TrainPipelineSparseDist(sharded, both, device)


def plain_batch(batch: Batch) -> PlainBatch:
    """Both sides of a batch as one, in the class that TorchRec's model takes."""
    sides = (batch.user, batch.ad)
    return PlainBatch(
        torch.cat([side.dense for side in sides], dim=1),
        KeyedJaggedTensor.concat([side.sparse for side in sides]),
        batch.labels[:, 0],
    )
