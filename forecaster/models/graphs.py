"""The network as graphs that run without Python: one for each frequency and number of steps.

A pass of 32 rows is some 600 operations, most of them small, and Python takes a quarter of its time. It also keeps
other passes of the process waiting, which a graph does not.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from forecaster.contract import FREQ_CODES
from forecaster.models.patch_transformer import PatchTransformer
from forecaster.serving import Serving

PRODUCT_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_FREQS = {code: freq for freq, code in FREQ_CODES.items()}
_MOST_GRAPHS = 16  # of 3 MB each, and of a service that asks for as many lengths
_WARM_CALLS = 3  # the executor of traced graphs looks on twice before it settles on how to run one
_Graph = Callable[..., tuple[Tensor, ...]]


class OneFreq(nn.Module):
    """The network for one frequency: the contract's tensors without `freq` in, a plain tuple out."""

    def __init__(self, model: PatchTransformer, freq: str) -> None:
        super().__init__()
        self.model = model
        self.freq = freq

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """See PatchTransformer.of_freq."""
        return tuple(self.model.of_freq(self.freq, *tensors))


class Graphs:
    """A network that is called with the contract's tensors, as the model it is made of. Any thread may call it."""

    def __init__(self, model: PatchTransformer, serving: Serving) -> None:
        model.requires_grad_(False)
        model.product_type = PRODUCT_TYPES[serving.precision]
        self._model = model
        self._serving = serving
        self._graphs: OrderedDict[tuple[int, int], _Graph] = OrderedDict()
        self._making = threading.Lock()

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the contract. The first call of a frequency and length makes its graph, and waits for it."""
        if self._serving.compile == "none":
            return tuple(self._model(*tensors))
        *rest, freq = tensors
        key = int(freq[0, 0]), rest[2].shape[1]
        graph = self._graphs.get(key)
        return (self._make(key, rest) if graph is None else graph)(*rest)

    def _make(self, key: tuple[int, int], tensors: list[Tensor]) -> _Graph:
        with self._making:
            if key not in self._graphs:
                network = OneFreq(self._model, _FREQS[key[0]]).eval()
                graph = _compiled(network) if self._serving.compile == "compile" else _traced(network, tensors)
                for _ in range(_WARM_CALLS):
                    graph(*tensors)
                self._graphs[key] = graph
                if len(self._graphs) > _MOST_GRAPHS:
                    self._graphs.popitem(last=False)
            return self._graphs[key]


def _traced(network: OneFreq, tensors: list[Tensor]) -> _Graph:
    with warnings.catch_warnings():
        # That the graph holds for these shapes alone is what the key is for; that newer ways exist: they need a
        # compiler where the model is served, or are slower.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, tuple(tensors), check_trace=False)  # type: ignore[no-untyped-call]
        graph: _Graph = torch.jit.freeze(traced)
    return graph


def _compiled(network: OneFreq) -> _Graph:
    if next(network.parameters()).is_cuda:  # CUDA graphs: not tried yet on a GPU
        on_gpu: _Graph = torch.compile(network, dynamic=False, mode="reduce-overhead")
        return on_gpu
    # Weights become constants, packed the way that the kernels read them.
    compiled: _Graph = torch.compile(network, dynamic=False, options={"freezing": True})
    return compiled
