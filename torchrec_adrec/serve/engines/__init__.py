"""The engines by name: one file each, entered in `ENGINES` and `RecommendConfig`.

An engine computes the head of a ranker in another way. It is a function of the head,
which it leaves as it is, and of the number of labels T. It returns a module of the same
inputs and outputs.
"""

from collections.abc import Callable

from torch import nn

from torchrec_adrec.serve.engines.bfloat16 import in_bfloat16
from torchrec_adrec.serve.engines.compiled import compile_head
from torchrec_adrec.serve.engines.float32 import in_float32
from torchrec_adrec.serve.engines.int8 import in_int8

ENGINES: dict[str, Callable[[nn.Module, int], nn.Module]] = {
    "float32": in_float32,
    "bfloat16": in_bfloat16,
    "int8": in_int8,
    "compiled": compile_head,
}
# What `auto` measures: to compile takes half a minute, which nobody asked for.
QUICK = ("float32", "bfloat16", "int8")
EXACT = "float32"  # what the others are measured against
