"""The blend of both stages' click logits, and how a checkpoint keeps it.

A ranker may know less of an ad than the towers do, and then their opinion makes the
list better. Training fits the weights on the validation rows (`training/blend.py`) and
puts them into the folder of the checkpoint that is served, beside its tensors.
Evaluation and serving take them from there, so what is reported is what is served.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from torchrec_adrec.arrays import Float64s
from torchrec_adrec.distributed.checkpoint_files import Checkpoint, attach, attachment
from torchrec_adrec.errors import CheckpointError
from torchrec_adrec.runtime.files import Origin

FILE = "blend.json"
Weight = Annotated[float, Field(ge=0)]
Logits = TypeVar("Logits", Float64s, Tensor)


class Blend(BaseModel):
    """`ranker * (its logit) + towers * (their logit) + intercept`, of the click alone.

    Attributes:
        ranker: a weight, not negative.
        towers: likewise; 0: the towers' score is not needed.
        intercept: of the sum.
        origin: the checkpoint of the towers whose logit it is; None: it is not needed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    ranker: Weight = 1.0
    towers: Weight = 0.0
    intercept: float = 0.0
    origin: Origin | None = None

    @property
    def serves(self) -> Literal["ranker", "blend", "towers"]:
        """Whose click logit is served."""
        if not self.towers:
            return "ranker"
        return "blend" if self.ranker else "towers"

    def apply(self, ranker: Logits, towers: Logits) -> Logits:
        """Blend the logits of some rows, (B,) each."""
        return self.ranker * ranker + self.towers * towers + self.intercept


ALONE = Blend()


def save_blend(checkpoint: Checkpoint, blend: Blend) -> None:
    """Put a blend into the folder of a ranker's checkpoint. On one rank only."""
    attach(checkpoint, FILE, blend.model_dump(mode="json"))


def load_blend(checkpoint: Checkpoint) -> Blend:
    """Read the blend of a checkpoint; the ranker alone, if its settings ask for none.

    Raises:
        CheckpointError: the file is damaged, or missing although they ask for one.
    """
    saved: Any = attachment(checkpoint, FILE)
    settings = checkpoint.state.get("config", {}).get("ranking", {})
    is_ranker = checkpoint.state.get("task") == "ranking"
    if saved is None and is_ranker and settings.get("blend", "none") != "none":
        # Without it the ranker's own score would be served, unannounced.
        raise CheckpointError(
            f"{checkpoint.path} has no {FILE}, expected one of ranking.blend ="
            f" {settings['blend']}: it is not the checkpoint that is served, or"
            " training did not end; run `adrec train ranking`"
        )
    try:
        return Blend.model_validate(saved) if saved is not None else ALONE
    except ValidationError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{checkpoint.path / FILE}: {reason}") from None
