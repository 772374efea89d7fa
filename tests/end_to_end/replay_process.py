"""`shelfcast replay` as a process of its own, to be killed in the middle and run again."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

from worker.local_server import LocalServer
from worker.settings import Settings
from worker.topic_reading import TopicReading
from worker.topics import kafka_client_config

_PATIENCE_S = 60.0


class ReplayProcess(LocalServer):
    """`settings` are SHELFCAST_* variables of the shop, `options` those of the command. `launch` starts it."""

    name = "replay"

    def __init__(self, directory: Path, recording: Path, settings: Mapping[str, str], *options: str) -> None:
        super().__init__(directory)
        self._recording, self._settings, self._options = recording, dict(settings), options

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "worker", "replay", str(self._recording), *self._options]

    def _environment(self) -> Mapping[str, str]:
        return self._settings

    def _answers(self) -> bool:
        return True

    def kill_while_sending(self, shop: Settings, topic: str, records: int) -> None:
        """kill -9 once this many records stand in the topic's first partition; fails when it has ended by then."""
        reading, deadline = TopicReading(kafka_client_config(shop)), time.monotonic() + _PATIENCE_S
        while reading.bounds(topic, [0])[0].end < records:
            if not self.is_running or time.monotonic() > deadline:
                raise self.failure(f"sent no {records} records to {topic}")
        running = self.is_running
        self.kill()
        assert running, "it had sent everything before it could be killed"

    def output(self) -> str:
        """What it printed, once it has ended by itself."""
        self.wait_until_ended(_PATIENCE_S)
        self.stop()  # takes the exit code
        if self.exit_code:
            raise self.failure(f"ended with {self.exit_code}")
        return self.log_path.read_text(encoding="utf-8")
