"""`shelfcast demo`, cut short, as a person would start it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_demo_ends_by_itself_with_a_summary(tmp_path: Path) -> None:
    summary_file = tmp_path / "summary.json"
    command = [sys.executable, "-m", "worker", "demo", "--seconds", "8", "--items", "40", "--json", str(summary_file)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    summary = json.loads(summary_file.read_text())
    wanted = {"events", "forecasts", "items", "rejects", "latency_ms", "wape", "seasonal_naive_wape", "wall_s"}
    assert wanted <= set(summary)
    assert summary["items"] > 20
    assert summary["forecasts"] >= summary["items"]
    assert summary["rejects"] == 0
    assert 0 < summary["latency_ms"]["p50"] <= summary["latency_ms"]["p99"]
    assert "real order lines" in ended.stdout
    assert "invented" in ended.stdout
