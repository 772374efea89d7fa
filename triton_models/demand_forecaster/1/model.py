"""Triton's Python backend for the demand forecaster: tensors in, tensors out; everything else is in `forecaster`."""

from pathlib import Path

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from forecaster import contract
from forecaster.inputs import ModelInputs, ModelOutputs, check
from forecaster.models.patch_transformer import RESOLUTIONS, load
from forecaster.passes import forecast

# A pass of 64 rows is too little work for more; Triton scales by instances. OMP_NUM_THREADS may say fewer.
MAX_THREADS = 4


class TritonPythonModel:
    """One instance: the weights beside this file, on a GPU if there is one."""

    def initialize(self, args):
        """Load, move and warm the model. A failure here is Triton's reason for not serving it."""
        torch.set_num_threads(min(torch.get_num_threads(), MAX_THREADS))
        weights = Path(args["model_repository"]) / args["model_version"]
        device = f"cuda:{args['model_instance_device_id']}" if torch.cuda.is_available() else "cpu"
        self.model = load(weights).to(device)
        for freq in RESOLUTIONS:
            forecast(self.model, _nothing_known(freq))

    def execute(self, requests):
        """Forecast all requests in as few passes as their frequencies and lengths allow. A bad request gets an error of
        its own."""
        responses = [None] * len(requests)
        groups = {}
        for place, request in enumerate(requests):
            try:
                inputs = _read(request)
                check(inputs)
            except ValueError as error:
                responses[place] = _error(error)
                continue
            shape = (int(inputs.freq[0, 0]), inputs.known.shape[1])
            groups.setdefault(shape, []).append((place, inputs))
        for group in groups.values():
            together = ModelInputs(*(np.concatenate(parts) for parts in zip(*(i for _, i in group), strict=True)))
            try:
                outputs = forecast(self.model, together)
            except RuntimeError as error:  # what torch raises, out of memory included
                for place, _ in group:
                    responses[place] = _error(error)
                continue
            first = 0
            for place, inputs in group:
                rows = slice(first, first + len(inputs.context))
                responses[place] = _response(ModelOutputs(*(values[rows] for values in outputs)))
                first = rows.stop
        return responses


def _read(request):
    arrays = []
    for tensor in contract.INPUTS:
        given = pb_utils.get_input_tensor_by_name(request, tensor.name)
        if given is None:
            raise ValueError(f"input {tensor.name} is missing")
        arrays.append(given.as_numpy())
    inputs = ModelInputs(*arrays)
    if not len(inputs.freq):
        raise ValueError("a request without rows")
    return inputs


def _response(outputs):
    tensors = [
        pb_utils.Tensor(tensor.name, np.ascontiguousarray(values))
        for tensor, values in zip(contract.OUTPUTS, outputs, strict=True)
    ]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def _error(error):
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(str(error)))


def _nothing_known(freq):
    """One row of `freq` with an empty past and a bland calendar."""
    window = contract.WINDOWS[freq]
    sizes = {
        "context": (window.context_length,),
        "available_fraction": (window.context_length,),
        "known": (window.context_length + window.max_prediction_length,),
    }
    arrays = []
    for tensor in contract.INPUTS:
        shape = (1, *sizes.get(tensor.name, ()), *(size for size in tensor.dims if size != -1))
        arrays.append(np.zeros(shape, dtype=np.int32 if tensor.triton_type == "TYPE_INT32" else np.float32))
    inputs = ModelInputs(*arrays)
    inputs.context.fill(np.nan)
    inputs.freq.fill(contract.FREQ_CODES[freq])
    return inputs
