"""A plain TorchRec two-tower trainer, as its own examples and documentation have it.

`DistributedModelParallel` with the default planner, row-wise Adagrad in backward, Adam
for the rest, `TrainPipelineSparseDist`, float32, and the softmax as one B x B
`cross_entropy` over the rank's own rows. Its batches lie in memory: it is not charged
for reading. The same model and the same loss as ours, but for the mask of accidental
hits, which it has only if asked (`masked`): its documentation has none.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import (
    EmbeddingShardingPlanner,
    ParameterConstraints,
    Topology,
)
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.mlp import MLP
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from torchrec_adrec.batch import Batch, TowerInput
from torchrec_adrec.config.train import RetrievalConfig
from torchrec_adrec.schema import Schema, Side


class PlainTower(nn.Module):
    """Tables, MLP, unit length."""

    def __init__(self, schema: Schema, side: Side, config: RetrievalConfig) -> None:
        super().__init__()
        features = schema.sparse_of(side)
        self.ebc = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=f"{side}_{f.name}",
                    embedding_dim=config.embedding_dim,
                    num_embeddings=f.num_embeddings,
                    feature_names=[f.name],
                )
                for f in features
            ],
            device=torch.device("meta"),
        )
        width = len(features) * config.embedding_dim + len(schema.dense_of(side))
        self.hidden = MLP(width, list(config.hidden))
        self.out = nn.Linear(config.hidden[-1], config.output_dim)

    def forward(self, rows: TowerInput) -> Tensor:
        """(B, D)."""
        joined = torch.cat([self.ebc(rows.sparse).values(), rows.dense], dim=1)
        return F.normalize(self.out(self.hidden(joined)), dim=1)


class PlainTask(nn.Module):
    """alpha * click cross-entropy + (1 - alpha) * in-batch softmax of clicked rows."""

    def __init__(
        self, schema: Schema, config: RetrievalConfig, batch_size: int, masked: bool
    ) -> None:
        super().__init__()
        self.masked = masked
        self.config, self.log_others = config, math.log(batch_size - 1)
        self.user = PlainTower(schema, Side.USER, config)
        self.ad = PlainTower(schema, Side.AD, config)
        self.log_scale = nn.Parameter(torch.tensor(1.5).log())
        self.bias = nn.Parameter(torch.tensor(-1.0))

    def forward(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Loss, and the click's logits with its labels."""
        user, ad, click = self.user(batch.user), self.ad(batch.ad), batch.labels[:, 0]
        logits = self.log_scale.exp() * (user * ad).sum(dim=1) + self.bias
        pointwise = F.binary_cross_entropy_with_logits(logits, click)
        correction = batch.log_q + self.log_others
        scores = user @ ad.T / self.config.temperature - correction
        scores.diagonal().add_(correction)
        if self.masked:
            same = batch.ad_ids[:, None] == batch.ad_ids
            scores = scores.masked_fill(same.fill_diagonal_(False), -torch.inf)
        targets = torch.arange(scores.shape[0], device=scores.device)
        losses = F.cross_entropy(scores, targets, reduction="none")
        softmax = (losses * click).sum() / click.sum()
        alpha = self.config.alpha
        loss = alpha * pointwise + (1 - alpha) * softmax
        return loss, (logits.detach(), click)


def build(
    schema: Schema,
    config: RetrievalConfig,
    batch_size: int,
    masked: bool = False,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> tuple[DistributedModelParallel, TrainPipelineSparseDist]:
    """The sharded model and its pipeline."""
    model = PlainTask(schema, config, batch_size, masked)
    for tower in (model.user, model.ad):
        apply_optimizer_in_backward(
            RowWiseAdagrad,
            tower.ebc.parameters(),
            {"lr": config.optimizer.tables_lr},
        )
    sharders = [EmbeddingBagCollectionSharder()]
    tables = [
        t.name for m in (model.user, model.ad) for t in m.ebc.embedding_bag_configs()
    ]
    # The default plan leaves small tables data_parallel, which then never train.
    wise = ParameterConstraints(sharding_types=["table_wise"])
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=1, compute_device=device.type),
        batch_size=batch_size,
        constraints=dict.fromkeys(tables, wise),
    )
    plan = planner.plan(model, sharders)
    sharded = DistributedModelParallel(
        model, device=device, plan=plan, sharders=sharders
    )
    rest = dict(in_backward_optimizer_filter(sharded.named_parameters()))
    dense = KeyedOptimizerWrapper(
        rest, lambda p: torch.optim.Adam(p, lr=config.optimizer.dense_lr)
    )
    both = CombinedOptimizer([sharded.fused_optimizer, dense])
    sharded.train()
    return sharded, TrainPipelineSparseDist(sharded, both, device)


def click_logits(model: nn.Module, batches: Sequence[Batch]) -> Tensor:
    """Logits of evaluation batches, (N,)."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(batch)[1][0] for batch in batches])
