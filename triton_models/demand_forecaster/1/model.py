"""Triton's Python backend for the demand forecaster: tensors in, tensors out; everything else is in `forecaster`."""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from forecaster import contract
from forecaster.inputs import ModelInputs, ModelOutputs, check
from forecaster.predictor import load_model
from forecaster.probes import blank_inputs


class TritonPythonModel:
    """One instance: the model beside this file, of any family, on a GPU if there is one. On a CPU an instance has one
    thread: Triton scales by instances."""

    def initialize(self, args):
        """Load and warm the model. A failure here is Triton's reason for not serving it."""
        folder = Path(args["model_repository"]) / args["model_version"]
        self.model = load_model(folder, gpu=int(args["model_instance_device_id"]))
        for freq in self.model.freqs:
            self.model.forecast(blank_inputs(freq, self.model.covariates))

    def execute(self, requests):
        """Forecast all requests in as few passes as their frequencies and lengths allow. A bad request gets an error of
        its own."""
        responses = [None] * len(requests)
        groups = {}
        for place, request in enumerate(requests):
            try:
                inputs = _read(request)
                check(inputs, self.model.covariates)
            except ValueError as error:
                responses[place] = _error(error)
                continue
            shape = (int(inputs.freq[0, 0]), inputs.known.shape[1])
            groups.setdefault(shape, []).append((place, inputs))
        for group in groups.values():
            together = ModelInputs(*(np.concatenate(parts) for parts in zip(*(i for _, i in group), strict=True)))
            try:
                outputs = self.model.forecast(together)
            except (RuntimeError, ValueError) as error:  # what torch raises, out of memory included; a freq not learnt
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
