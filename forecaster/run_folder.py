"""The folder of a training run: the best model so far, what it was made with, its checkpoints and its logs.

config.json, model.safetensors   the best weights so far: `predictor.load_model` takes the folder at any time
training.json                    arguments, seed, versions, data, minutes, scores, and how the run ended
checkpoints/step-…/              see `checkpoints`
logs/                            for TensorBoard: `tensorboard --logdir DIR/logs`
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from transformers.utils import logging

from forecaster import checkpoints
from forecaster.checkpoints import CheckpointError
from forecaster.models.patch_transformer import PatchTransformer

_SUMMARY = "training.json"
_LIBRARIES = ("shelfcast", "torch", "accelerate", "transformers", "numpy")


class RunFolder:
    """See the module. Of several processes that train together only the first one writes."""

    def __init__(self, folder: Path, keep: int = 3) -> None:
        """`keep`: how many checkpoints stay."""
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self._keep = keep

    @property
    def holds_a_run(self) -> bool:
        """Whether a run left something here that another would overwrite."""
        return (self.folder / "config.json").exists() or bool(checkpoints.listed(self.checkpoints))

    def summary(self) -> dict[str, Any]:
        """What training.json says.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        try:
            read: dict[str, Any] = json.loads((self.folder / _SUMMARY).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.folder} holds no training run to go on with: {error}") from error
        return read

    def write_summary(self, facts: Mapping[str, Any]) -> None:
        """Replace training.json; versions and the machine are added."""
        self.folder.mkdir(parents=True, exist_ok=True)
        versions = {name: _version(name) for name in _LIBRARIES} | {"python": platform.python_version()}
        text = json.dumps({**facts, "versions": versions, "machine": platform.machine()}, indent=2) + "\n"
        partial = self.folder / f"{_SUMMARY}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(self.folder / _SUMMARY)

    def write_model(self, model: PatchTransformer) -> None:
        """Replace the run's model, each file as a whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".model-") as partial:
            save_model(model, Path(partial))
            for path in Path(partial).iterdir():
                path.replace(self.folder / path.name)

    def save(self, checkpoint: checkpoints.Checkpoint, averaged: PatchTransformer) -> Path:
        """Write a checkpoint; returns its folder."""
        step = int(checkpoint.facts["step"])
        return checkpoints.save(
            self.checkpoints, step, checkpoint, lambda folder: save_model(averaged, folder), self._keep
        )

    def last_checkpoint(self) -> Path:
        """Folder of the newest one.

        Raises:
            CheckpointError: there is none.
        """
        found = checkpoints.listed(self.checkpoints)
        if not found:
            raise CheckpointError(f"{self.checkpoints} holds no checkpoint to go on from: begin anew without --resume")
        return found[-1]

    def logs(self, after_step: int) -> SummaryWriter:
        """A writer of logs; those of later steps, which a run that goes on makes again, are hidden. A run that begins
        deletes what one that failed at once has left."""
        if not after_step:
            shutil.rmtree(self.folder / "logs", ignore_errors=True)
        purge = after_step + 1 if after_step else None
        return SummaryWriter(str(self.folder / "logs"), purge_step=purge)


def save_model(model: PatchTransformer, folder: Path) -> None:
    """Write config.json and model.safetensors, readable to all."""
    logging.disable_progress_bar()  # for a file of 3 MB
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors leaves it readable to its owner alone


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
