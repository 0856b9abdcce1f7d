"""Judges a trained model as it is served: blended and calibrated."""

from typing import Any

from torch import nn

from torchrec_adrec.config.run import Config
from torchrec_adrec.distributed.checkpoint_files import Checkpoint
from torchrec_adrec.training.blend import blend_towers
from torchrec_adrec.training.calibrate import calibrate
from torchrec_adrec.training.evaluator import Evaluator
from torchrec_adrec.training.first_fit import FirstFit


def judge_served(
    config: Config,
    best: Checkpoint,
    towers: Checkpoint | None,
    evaluator: Evaluator,
    model: nn.Module,
    first_fit: FirstFit | None = None,
) -> dict[str, Any]:
    """Fit blend and calibration, and judge what they give on held-out rows. Collective.

    Args:
        config: of the run.
        best: the checkpoint that is served, whose weights the model has.
        towers: of retrieval, if a ranker may be blended with them.
        evaluator: of the task.
        model: sharded.
        first_fit: of a model that has seen the validation rows since, with the blend
            and the calibration that it keeps.

    Returns:
        The part of `metrics.json` that says how good the model is.
    """
    blend = first_fit.blend if first_fit else None
    calibrations = first_fit.calibrations if first_fit else None
    evaluator, blended = blend_towers(config, best, towers, evaluator, model, blend)
    calibrations = calibrate(config.ranking, best, evaluator, model, calibrations)
    before = {"first_fit": first_fit.to_json()} if first_fit else {}
    return before | blended | evaluator.held_out(model, calibrations)
