"""How a version of a model is served: the precision of its products, and what becomes of its Python. No torch here.

It stands in the version's config.json under `serving`, so that versions side by side may differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

# bf16 and fp16 are the types of the products of weights and activations; everything else stays fp32.
PRECISIONS = ("fp32", "bf16", "fp16")
# none: Python calls each operation. trace: a graph without Python, made in a second. compile: torch.compile, kernels
# made for this machine in a minute or so by a C++ compiler, and CUDA graphs on a GPU.
COMPILES = ("none", "trace", "compile")
KEY = "serving"


class Serving(NamedTuple):
    """One of PRECISIONS and one of COMPILES."""

    precision: str = "fp32"
    compile: str = "trace"


def serving_of(config: Mapping[str, Any]) -> Serving:
    """What a config.json says, the default where it says nothing.

    Raises:
        ValueError: it says what there is not.
    """
    told = config.get(KEY, {})
    serving = Serving(**{name: told[name] for name in Serving._fields if name in told})
    if serving.precision not in PRECISIONS or serving.compile not in COMPILES:
        raise ValueError(
            f"{KEY} in config.json is {dict(told)}: precision is one of {', '.join(PRECISIONS)}, compile one of "
            f"{', '.join(COMPILES)}"
        )
    return serving
