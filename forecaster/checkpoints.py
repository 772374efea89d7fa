"""Checkpoints of a training run as folders: all that its next step depends on, and a model that forecasts.

Layout of `checkpoints/step-00001000/`:

    config.json, model.safetensors   the averaged weights at that step: `predictor.load_model` takes the folder
    state.safetensors                the tensors to go on from: weights, their average, the best ones, the optimizer's
    state.json                       the numbers: step, seconds, scores, the run's arguments

No pickle anywhere, so a checkpoint from elsewhere can be read without running what it holds; accelerate's own
`save_state` pickles. A checkpoint is written beside and renamed: what has its name is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

_PREFIX = "step-"
_PARTIAL = ".partial"


class CheckpointError(Exception):
    """There is no checkpoint to go on from, or it does not fit; says what to do."""


class Checkpoint(NamedTuple):
    """What stands in one."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def save(
    folder: Path,
    step: int,
    checkpoint: Checkpoint,
    write_model: Callable[[Path], None],
    keep: int = 3,
) -> Path:
    """Write a checkpoint into `folder` and delete all but the last `keep`; returns its path.

    `write_model` writes config.json and model.safetensors into the folder it is given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{_PREFIX}{step:08d}"
    partial = target.with_name(target.name + _PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    write_model(partial)
    tensors = {name: value.detach().cpu().contiguous() for name, value in checkpoint.tensors.items()}
    save_file(tensors, partial / "state.safetensors")
    (partial / "state.json").write_text(json.dumps(checkpoint.facts, indent=2), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    for old in listed(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def listed(folder: Path) -> list[Path]:
    """The whole checkpoints of a folder, the oldest first."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.suffix != _PARTIAL)


def read(path: Path) -> Checkpoint:
    """What a checkpoint holds.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    try:
        facts = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return Checkpoint(load_file(path / "state.safetensors"), facts)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} can't be read ({error}): delete it to go on from the one before") from error


def flatten(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Groups of named tensors as one, under `group/name`."""
    return {f"{group}/{name}": value for group, named in tensors.items() for name, value in named.items()}


def group(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of one group, by their own names."""
    return {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{name}/")}
