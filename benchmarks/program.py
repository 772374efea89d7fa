"""A program that a benchmark runs beside the servers, and that tells how far it is by lines of JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worker.local_server import LocalServer

_ROOT = Path(__file__).parents[1]
_POLL_S = 0.01


class Program(LocalServer):
    """`python -m MODULE ARGUMENTS` as a process of its own, by any interpreter; the benchmarks are on its path."""

    def __init__(self, directory: Path, module: str, arguments: Sequence[str], python: str = sys.executable) -> None:
        self.name = module.rpartition(".")[2]  # type: ignore[misc]
        super().__init__(directory)
        # -P: what lies in its working directory is not to be imported.
        self._arguments = [python, "-P", "-m", module, *arguments]

    def wait_for(self, key: str, value: Any, timeout_s: float) -> dict[str, Any]:
        """Wait until it has printed an object whose `key` is `value`. Raises LocalStackError when it ends without."""
        deadline = time.monotonic() + timeout_s
        while True:
            ended = not self.is_running  # asked first: what it printed before its end is in the log then
            told = self.told(key, value)
            if told is not None:
                return told
            if ended:
                raise self.failure(f"ended before it told {key} {value}")
            if time.monotonic() > deadline:
                raise self.failure(f"has not told {key} {value} in {timeout_s:g} s")
            time.sleep(_POLL_S)

    def told(self, key: str, value: Any) -> dict[str, Any] | None:
        """An object that it has printed whose `key` is `value`, None while there is none."""
        whole_lines = self.log_path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        objects: list[dict[str, Any]] = [json.loads(line) for line in whole_lines if line.startswith("{")]
        return next((found for found in objects if found.get(key) == value), None)

    def _prepare(self) -> None:
        self.log_path.unlink(missing_ok=True)  # of the run before

    def _command(self) -> list[str]:
        return self._arguments

    def _environment(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(_ROOT), "PYTHONUNBUFFERED": "1"}

    def _answers(self) -> bool:
        return True
