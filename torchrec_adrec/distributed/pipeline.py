"""TorchRec's train pipeline for a model that is taken out of it to be judged."""

from torch import nn
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist


class TrainPipeline(TrainPipelineSparseDist):  # type: ignore[misc]
    """Goes on with the batch whose ids were on their way when it was detached.

    Attached again, TorchRec 1.8 by default sends that batch's ids a second time and
    forgets what it knew of the first exchange. A collection that is looked up id by id
    needs it to send its vectors back: the next step failed on several ranks.
    """

    def attach(self, model: nn.Module | None = None, sparse_dist: bool = False) -> None:
        """Put the model back; ids are sent again only if `sparse_dist` says so."""
        super().attach(model, sparse_dist)
