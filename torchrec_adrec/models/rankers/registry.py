"""All ranker models, by the name that `ranking.model` gives them."""

from typing import Protocol

import torch

from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.models.rankers.base import Ranker
from torchrec_adrec.models.rankers.dcnv2 import DCNv2Ranker
from torchrec_adrec.models.rankers.deepfm import DeepFMRanker
from torchrec_adrec.models.rankers.dlrm import DLRMRanker
from torchrec_adrec.models.rankers.dnn import DnnRanker
from torchrec_adrec.models.rankers.finalmlp import FinalMLPRanker
from torchrec_adrec.models.rankers.logistic import LogisticRanker
from torchrec_adrec.models.rankers.transformer import TransformerRanker
from torchrec_adrec.schema import Schema


class RankerModel(Protocol):
    """A class of rankers, as the registry holds it."""

    warm_starts: bool

    def __call__(
        self,
        schema: Schema,
        config: RankingConfig,
        embedding_dim: int,
        device: torch.device | None = None,
    ) -> Ranker:
        """Make a new model; `embedding_dim` is the width of the towers' tables."""


RANKERS: dict[str, RankerModel] = {
    "transformer": TransformerRanker,
    "lr": LogisticRanker,
    "dnn": DnnRanker,
    "deepfm": DeepFMRanker,
    "dcnv2": DCNv2Ranker,
    "dlrm": DLRMRanker,
    "finalmlp": FinalMLPRanker,
}
