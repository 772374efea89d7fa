"""Puts a trained model where Triton serves it from, as a new version beside the others, held against torch first."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers.utils import logging

from forecaster.contract import MODEL_NAME, Covariates, render_config_pbtxt
from forecaster.inputs import ModelInputs, ModelOutputs
from forecaster.models.patch_transformer import PatchTransformer
from forecaster.predictor import DemandModel, load_model
from forecaster.probes import random_inputs
from forecaster.serving import KEY, Serving

# Sum of differences to the plain model over sum of forecasts, by precision. 32 bits differ by the order of sums alone;
# 8 and 11 bits of each product leave about a tenth of these on demand of any kind.
TOLERANCES = {"fp32": 1e-4, "bf16": 1e-2, "fp16": 2e-3}
_PROBE_ROWS = 100  # more than three passes, the last one not full
_CODE = Path(__file__).resolve().parent.parent / "triton_models" / MODEL_NAME / "1" / "model.py"
_HASH = re.compile(r'key: "features_hash", value: { string_value: "(\w*)" }')
_PLAIN = Serving("fp32", "none")


class ExportError(ValueError):
    """The model can't become that version; says why and what to do."""


class Exported(NamedTuple):
    """A version written."""

    folder: Path
    version: int
    difference: float  # to the plain model, as in TOLERANCES


def probes(model: DemandModel) -> list[ModelInputs]:
    """Random inputs of each frequency of a model."""
    return [random_inputs(freq, _PROBE_ROWS, 7, covariates=model.covariates) for freq in model.freqs]


def difference(some: ModelOutputs, others: ModelOutputs) -> float:
    """Sum of differences over sum of `others`, of the output where it is greatest. Infinite where one is not finite."""
    worst = 0.0
    for a, b in zip(some, others, strict=True):
        if a.shape != b.shape or not np.isfinite(a).all():
            return float("inf")
        worst = max(worst, float(np.abs(a - b).sum(dtype=np.float64) / max(np.abs(b).sum(dtype=np.float64), 1e-9)))
    return worst


def versions(folder: Path) -> list[int]:
    """Numbers of the versions in a model's folder, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.is_dir() and entry.name.isdigit())


def export_folder(
    source: Path, repository: Path, version: int | None, serving: Serving, *, replace: bool = False
) -> Exported:
    """Make the model of a folder a version of the model in a Triton repository.

    1. Write it, with how it is served and the code that serves it, beside where it goes.
    2. Load what was written, which warms it, and hold its forecasts of random inputs against those of the plain model.
    3. Put it in its place at once, so that no server sees half of it.

    Args:
        source: config.json, weights; folders in it (checkpoints, logs) stay behind.
        version: None = the one after the last.

    Raises:
        ExportError: the version is there, the repository's versions take other tensors, or the forecasts differ.
        OSError, ValueError: the source holds no model of this code; see predictor.load_model.
    """
    plain = load_model(source, serving=_PLAIN)
    folder = repository / MODEL_NAME
    there = versions(folder)
    number = version or max(there, default=0) + 1
    if number in there and not replace:
        raise ExportError(
            f"{folder / str(number)} is there: a version that may be in use is not changed. Export as --version next, "
            "or with --replace"
        )
    _keep_or_write_config(folder, plain.covariates, others=set(there) - {number})
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as beside:
        made = Path(beside) / str(number)
        _write_version(source, made, serving)  # 1
        found = _difference_of(load_model(made), plain)  # 2
        if not found <= TOLERANCES[serving.precision]:
            raise ExportError(
                f"served as {serving.precision}, {serving.compile} the forecasts are off by {found:.2g} of their sum, "
                f"more than {TOLERANCES[serving.precision]:g}: nothing was exported. Try --precision fp32"
            )
        target = folder / str(number)
        if target.exists():
            target.rename(Path(beside) / "replaced")
        made.rename(target)  # 3
    return Exported(target, number, found)


def _difference_of(model: DemandModel, plain: DemandModel) -> float:
    return max(difference(model.forecast(inputs), plain.forecast(inputs)) for inputs in probes(plain))


def _keep_or_write_config(folder: Path, covariates: Covariates, others: set[int]) -> None:
    """Versions share one config.pbtxt. One that stands is kept, since it may have been tuned for its machine."""
    file, wanted = folder / "config.pbtxt", render_config_pbtxt(covariates)
    if file.is_file():
        hashes = [found.group(1) if (found := _HASH.search(text)) else "" for text in (file.read_text(), wanted)]
        if hashes[0] == hashes[1]:
            return
        if others:
            raise ExportError(
                f"the versions of {folder} were made for features {hashes[0] or 'unknown'}, this model for "
                f"{hashes[1]}: they can't be served side by side. Export into a --repository of its own"
            )
    write_config(folder, covariates)


def _write_version(source: Path, target: Path, serving: Serving) -> None:
    target.mkdir()
    for file in source.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copy(file, target)
            (target / file.name).chmod(0o644)  # safetensors leaves its files readable to their owner alone
    shutil.copy(_CODE, target)
    config = json.loads((source / "config.json").read_text(encoding="utf-8")) | {KEY: serving._asdict()}
    _write_json(target / "config.json", config)


def _write_json(file: Path, values: Mapping[str, object]) -> None:
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_config(folder: Path, covariates: Covariates = Covariates()) -> None:  # noqa: B008 - an immutable
    """Write Triton's config.pbtxt of the contract into the model's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(render_config_pbtxt(covariates))


def export(model: PatchTransformer, folder: Path, version: int = 1) -> Path:
    """Write config.pbtxt and the weights (config.json, model.safetensors) as `version` of the model in `folder`.

    Returns the version's folder. The `model.py` beside the weights is code and is not written here.
    """
    write_config(folder)
    target = folder / str(version)
    logging.disable_progress_bar()  # for a file of 3 MB
    model.save_pretrained(target)
    (target / "model.safetensors").chmod(0o644)  # safetensors leaves it readable to its owner alone
    return target
