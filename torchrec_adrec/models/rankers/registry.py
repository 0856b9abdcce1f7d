"""All ranker models, by the name that `ranking.model` gives them."""

import torch

from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.models.rankers.base import RankerHead
from torchrec_adrec.models.rankers.dcnv2 import DCNv2Head
from torchrec_adrec.models.rankers.deepfm import DeepFMHead
from torchrec_adrec.models.rankers.dlrm import DLRMHead
from torchrec_adrec.models.rankers.dnn import DnnHead
from torchrec_adrec.models.rankers.finalmlp import FinalMLPHead
from torchrec_adrec.models.rankers.logistic import LogisticHead
from torchrec_adrec.models.rankers.ranker import Ranker
from torchrec_adrec.models.rankers.transformer import TransformerHead
from torchrec_adrec.schema import Schema

RANKERS: dict[str, type[RankerHead]] = {
    "transformer": TransformerHead,
    "lr": LogisticHead,
    "dnn": DnnHead,
    "deepfm": DeepFMHead,
    "dcnv2": DCNv2Head,
    "dlrm": DLRMHead,
    "finalmlp": FinalMLPHead,
}


def build_ranker(
    schema: Schema,
    config: RankingConfig,
    embedding_dim: int,
    device: torch.device | None = None,
) -> Ranker:
    """Make the ranker that `ranking.model` names; for the arguments see `Ranker`."""
    return Ranker(RANKERS[config.model], schema, config, embedding_dim, device)
