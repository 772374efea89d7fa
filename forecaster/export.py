"""Puts a trained model where Triton serves it from."""

from __future__ import annotations

from pathlib import Path

from transformers.utils import logging

from forecaster.contract import render_config_pbtxt
from forecaster.models.patch_transformer import PatchTransformer


def write_config(folder: Path) -> None:
    """Write Triton's config.pbtxt of the contract into the model's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(render_config_pbtxt())


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
