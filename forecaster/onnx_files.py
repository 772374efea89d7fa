"""The patch transformer as ONNX, for who serves with TensorRT or onnxruntime: one file for each frequency.

Inputs are those of the contract without `freq`, with a free number of rows; steps are as many as the frequency allows.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from forecaster.contract import INPUTS, OUTPUTS
from forecaster.inputs import ModelInputs, ModelOutputs
from forecaster.models.graphs import OneFreq
from forecaster.models.patch_transformer import load
from forecaster.probes import random_inputs

_ROWS = 4  # of the example that the export follows; files take any number


def write_onnx(weights: Path, file: Path) -> list[Path]:
    """Write FILE's name with each frequency before its suffix: demand.1d.onnx. Returns the files.

    Raises:
        ValueError: the model is of a family that has no ONNX form.
    """
    config = json.loads((weights / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "shelfcast_patch_transformer":
        raise ValueError(f"only patch_transformer has an ONNX form, {weights} holds {config.get('model_type')}")
    model = load(weights)
    file.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for freq in model.config.freqs:
        inputs = random_inputs(freq, _ROWS, 0, covariates=model.config.covariates)
        names = [tensor.name for tensor in INPUTS if tensor.name != "freq"]
        target = file.with_name(f"{file.stem}.{freq}{file.suffix or '.onnx'}")
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about its own parts
            program: Any = torch.onnx.export(
                OneFreq(model, freq).eval(),
                tuple(torch.from_numpy(np.ascontiguousarray(getattr(inputs, name))) for name in names),
                input_names=names,
                dynamic_shapes={"tensors": tuple({0: torch.export.Dim("rows")} for _ in names)},
                dynamo=True,
                verbose=False,
            )
        _name_outputs(program)
        program.save(target)
        written.append(target)
    return written


def _name_outputs(program: Any) -> None:
    """As the contract does. Values inside of the graph that have one of these names, as a `mean` has, get another."""
    names = [tensor.name for tensor in OUTPUTS]
    for node in program.model.graph:
        for value in node.outputs:
            if value.name in names:
                value.name = f"inner_{value.name}"
    for value, name in zip(program.model.graph.outputs, names, strict=True):
        value.name = name


def run_onnx(file: Path, inputs: ModelInputs) -> ModelOutputs:
    """Forecasts of a file by onnxruntime on the CPU, all rows at once."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    wanted = {one.name for one in session.get_inputs()}  # what the network does not read is left out of the file
    given = {name: np.ascontiguousarray(values) for name, values in inputs._asdict().items() if name in wanted}
    return ModelOutputs(*session.run([tensor.name for tensor in OUTPUTS], given))
