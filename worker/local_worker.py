"""LocalWorker: `shelfcast worker` as a process of its own, for the demo, tests and benchmarks."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from worker.local_server import LocalServer


class LocalWorker(LocalServer):
    """Runs with the given SHELFCAST_* settings; answers when all its lanes run. `name` tells several apart."""

    name = "worker"

    def __init__(self, directory: Path, settings: Mapping[str, str], name: str = "worker") -> None:
        self.name = name  # type: ignore[misc]
        super().__init__(directory)
        self._settings = dict(settings)

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "worker", "worker"]

    def _environment(self) -> Mapping[str, str]:
        return self._settings | {"SHELFCAST_WEB_PORT": str(self.port)}

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.address}/ready", timeout=1) as response:
                return bool(response.read() == f"ready {self.pid}\n".encode())
        except (urllib.error.URLError, OSError):
            return False
