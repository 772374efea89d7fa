"""A real worker, `worker.faust_app.run_worker`, that ends itself at a crash point.

`python -m tests.chaos.doomed_worker SEAM MOMENT PASSAGE SEED`, with a worker's settings in its environment, is what
`DoomedWorker` runs.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Mapping
from itertools import count
from pathlib import Path

from tests.chaos import seams
from worker.faust_app import run_worker
from worker.local_worker import LocalWorker
from worker.settings import load_settings

_numbers = count()


class DoomedWorker(LocalWorker):
    """Runs until its crash point."""

    def __init__(self, directory: Path, settings: Mapping[str, str], point: seams.CrashPoint, seed: int) -> None:
        super().__init__(directory, settings, name=f"doomed-{next(_numbers)}")
        self._point, self._seed = point, seed

    def _command(self) -> list[str]:
        return [sys.executable, "-m", __name__, *map(str, self._point), str(self._seed)]

    def _environment(self) -> Mapping[str, str]:
        root = Path(__file__).resolve().parents[2]
        return {**super()._environment(), "PYTHONPATH": str(root)}


def main() -> None:
    """Arm, and run as `shelfcast worker` does."""
    seam, moment, passage, seed = sys.argv[1:]
    seams.arm_worker(seams.Trap(seams.CrashPoint(seam, moment, int(passage)), random.Random(int(seed))))
    sys.exit(run_worker(load_settings(os.environ)))


if __name__ == "__main__":
    main()
