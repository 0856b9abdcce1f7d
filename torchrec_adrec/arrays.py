"""The array types of the whole package, named after their elements.

One name means one type everywhere: a function that says `Float32s` never gets doubles.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]
UInt64s = NDArray[np.uint64]
Float32s = NDArray[np.float32]
Float64s = NDArray[np.float64]
Columns = dict[str, NDArray[Any]]
"""Columns by name, (rows,) or (rows, length) each."""
ReadOnlyColumns = Mapping[str, NDArray[Any]]
"""The same for a reader that must not change them."""
