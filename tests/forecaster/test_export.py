"""From a trained model's folder to a version that Triton can serve, and to ONNX."""

import json
from pathlib import Path
from typing import Any

import pytest

from forecaster import export
from forecaster.contract import features_hash
from forecaster.export import ExportError, export_folder
from forecaster.models.patch_layers import PatchTransformerConfig
from forecaster.models.patch_transformer import PatchTransformer
from forecaster.onnx_files import run_onnx, write_onnx
from forecaster.predictor import load_model
from forecaster.serving import Serving
from tests.forecaster.builders import random_inputs

PLAIN, DEFAULT = Serving("fp32", "none"), Serving()


def save(folder: Path, **sizes: Any) -> Path:
    tiny: dict[str, Any] = {"width": 16, "layers": 2, "heads": 2, "step_width": 8} | sizes
    PatchTransformer(PatchTransformerConfig(**tiny)).save_pretrained(folder)
    (folder / "checkpoints").mkdir()
    (folder / "training.json").write_text("{}")
    return folder


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    return save(tmp_path / "run")


def test_a_version_holds_what_serves_it_and_forecasts_the_same(trained: Path, tmp_path: Path) -> None:
    made = export_folder(trained, tmp_path / "repository", None, Serving("bf16", "trace"))
    assert made.folder == tmp_path / "repository" / "demand_forecaster" / "1"
    names = {file.name for file in made.folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "model.py", "training.json"}
    assert json.loads((made.folder / "config.json").read_text())["serving"] == {"precision": "bf16", "compile": "trace"}
    assert features_hash() in (made.folder.parent / "config.pbtxt").read_text()
    assert [file.name for file in made.folder.parent.glob(".*")] == []
    inputs = random_inputs("1d", 9, 1)
    plain, served = load_model(trained, serving=PLAIN).forecast(inputs), load_model(made.folder).forecast(inputs)
    assert 0 < export.difference(served, plain) <= 0.01


def test_versions_count_up_and_none_is_overwritten(trained: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    assert [export_folder(trained, repository, n, DEFAULT).version for n in (None, None, 5, None)] == [1, 2, 5, 6]
    with pytest.raises(ExportError, match="--replace"):
        export_folder(trained, repository, 2, DEFAULT)
    other = save(tmp_path / "other")
    export_folder(other, repository, 2, DEFAULT, replace=True)
    weights = [(repository / "demand_forecaster" / n / "model.safetensors").read_bytes() for n in ("1", "2")]
    assert weights == [(folder / "model.safetensors").read_bytes() for folder in (trained, other)]


def test_forecasts_that_differ_are_not_exported(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(export.TOLERANCES, "bf16", 1e-9)
    with pytest.raises(ExportError, match="nothing was exported"):
        export_folder(trained, tmp_path / "repository", None, Serving("bf16", "none"))
    assert export.versions(tmp_path / "repository" / "demand_forecaster") == []


def test_versions_side_by_side_take_the_same_tensors(trained: Path, tmp_path: Path) -> None:
    export_folder(trained, tmp_path / "repository", None, DEFAULT)
    file = tmp_path / "repository" / "demand_forecaster" / "config.pbtxt"
    file.write_text(file.read_text().replace(features_hash(), "0123456789abcdef"))
    with pytest.raises(ExportError, match=r"features 0123456789abcdef.*repository of its own"):
        export_folder(trained, tmp_path / "repository", None, DEFAULT)
    export_folder(trained, tmp_path / "repository", 1, DEFAULT, replace=True)  # nothing is beside it
    assert features_hash() in file.read_text()


def test_a_tuned_config_of_triton_is_kept(trained: Path, tmp_path: Path) -> None:
    export_folder(trained, tmp_path / "repository", None, DEFAULT)
    file = tmp_path / "repository" / "demand_forecaster" / "config.pbtxt"
    file.write_text(file.read_text().replace("count: 2", "count: 8"))
    export_folder(trained, tmp_path / "repository", None, DEFAULT)
    assert "count: 8" in file.read_text()


@pytest.mark.parametrize("freq", ["1h", "1d", "1w"])
def test_onnx_forecasts_are_torchs(freq: str, tmp_path: Path) -> None:
    trained = save(tmp_path / "run", freqs=[freq])
    (file,) = write_onnx(trained, tmp_path / "demand.onnx")
    assert file.name == f"demand.{freq}.onnx"
    model = load_model(trained, serving=PLAIN)
    for rows in (1, 45):
        inputs = random_inputs(freq, rows, rows)
        assert export.difference(run_onnx(file, inputs), model.forecast(inputs)) <= 1e-5
