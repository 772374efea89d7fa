"""The virtual environment that peers run in: their packages stay out of shelfcast's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "peers" / "requirements.txt"
DEFAULT_DIRECTORY = Path.home() / ".cache" / "shelfcast" / "peers"

# What each peer needs; which versions, the requirements say.
PEERS: dict[str, tuple[str, ...]] = {
    "confluent_loop": ("confluent-kafka", "msgspec", "redis", "hiredis"),
    "faust": ("faust-streaming", "aiokafka", "msgspec", "redis", "hiredis"),
    "quixstreams": ("quixstreams", "msgspec", "redis", "hiredis"),
    "bytewax": ("bytewax", "confluent-kafka", "msgspec", "redis", "hiredis"),
    "pathway": ("pathway", "msgspec", "redis", "hiredis"),
    "river": ("river",),
}
_LINES_QUOTED = 3


class PeerEnvironment:
    """Made in `directory` when first needed and kept for the next time. Peers that were not asked for are not
    installed: Pathway alone brings more than a gigabyte."""

    def __init__(self, directory: Path = DEFAULT_DIRECTORY) -> None:
        self._directory = directory.expanduser().absolute()
        self.python = self._directory / "bin" / "python"

    def install(self, peer: str) -> str | None:
        """Install what the peer needs unless it is there. Returns why that can't be, None when all is well."""
        stamp = self._directory / f"{peer}.installed"
        requirements = REQUIREMENTS.read_text(encoding="utf-8")
        if stamp.exists() and stamp.read_text(encoding="utf-8") == requirements:
            return None
        # Not our own packages: those of shelfcast's environment may contradict a peer's.
        failure = _run(sys.executable, "-m", "venv", str(self._directory)) or _run(
            str(self.python),
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "-qq",
            "-c",
            str(REQUIREMENTS),
            *PEERS[peer],
        )
        if failure is None:
            stamp.write_text(requirements, encoding="utf-8")
        return failure


def _run(*command: str) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith("ERROR")] or lines
    return " ".join(telling[-_LINES_QUOTED:]) or f"{command[0]} ended with exit code {done.returncode}"
