"""What is known about the columns: names, sides, table sizes and the one key order.

A schema is saved as JSON with the data, every checkpoint and every index. Its
fingerprint lets a later stage refuse files that were made from other columns.
"""

from torchrec_adrec.schema.contract import (
    AD_ID,
    LOG_Q,
    NO_USER,
    PROPENSITY,
    RANK_SCORE,
    RESERVED,
    SCORE,
    USER_KEY,
    Name,
)
from torchrec_adrec.schema.data_schema import Schema
from torchrec_adrec.schema.features import (
    MOST_COMPONENTS,
    MOST_ROWS,
    Bag,
    DenseFeature,
    SequenceFeature,
    Side,
    SparseFeature,
    Statistic,
    VectorFeature,
)
from torchrec_adrec.schema.labels import LABEL_RULES, Label, LabelKind, LabelRule

__all__ = [
    "AD_ID",
    "LABEL_RULES",
    "LOG_Q",
    "MOST_COMPONENTS",
    "MOST_ROWS",
    "NO_USER",
    "PROPENSITY",
    "RANK_SCORE",
    "RESERVED",
    "SCORE",
    "USER_KEY",
    "Bag",
    "DenseFeature",
    "Label",
    "LabelKind",
    "LabelRule",
    "Name",
    "Schema",
    "SequenceFeature",
    "Side",
    "SparseFeature",
    "Statistic",
    "VectorFeature",
]
