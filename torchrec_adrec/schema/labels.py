"""What a model predicts of a row, and which numbers each kind of label may hold."""

import math
from dataclasses import dataclass
from typing import Literal

from torchrec_adrec.schema.contract import Frozen, Name


@dataclass(frozen=True)
class LabelRule:
    """The data's half of a label kind: which numbers a label of this kind may hold.

    The smallest is always 0, and NaN always means that the label was not observed.

    Attributes:
        highest: the largest number. Infinity: the kind has no limit of its own. A table
            must then give one (`max_value`), to which larger numbers are cut, and
            `adrec prepare` fits the label's mean, because its unit is the user's.
        whole: whether only whole numbers are allowed.
        expected: the allowed numbers, in the words of an error message.
    """

    highest: float
    whole: bool
    expected: str

    @property
    def is_open(self) -> bool:
        """Whether the kind has no upper limit of its own."""
        return math.isinf(self.highest)


# A new kind is added here, in `tasks/` (head and loss) and in `evaluation/` (metrics).
LabelKind = Literal["binary", "value"]
LABEL_RULES: dict[LabelKind, LabelRule] = {
    "binary": LabelRule(highest=1, whole=True, expected="0 or 1"),
    "value": LabelRule(highest=math.inf, whole=False, expected="a number from 0"),
}


class Label(Frozen):
    """Something that was observed of a row; NaN where it was not observed.

    A `binary` label is 0 or 1; a `value` lies between 0 and `max_value`. `mean` is the
    mean of the training rows, fitted by `adrec prepare`: models predict a value as a
    multiple of it, so that a label in seconds does not outweigh one in minutes.
    """

    name: Name
    kind: LabelKind = "binary"
    max_value: float | None = None
    mean: float = 1.0

    @property
    def rule(self) -> LabelRule:
        """Which numbers labels of this kind may hold."""
        return LABEL_RULES[self.kind]

    @property
    def highest(self) -> float:
        """The largest number that this label may hold; infinity: any finite one."""
        return self.rule.highest if self.max_value is None else self.max_value
