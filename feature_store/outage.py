"""Outage: tells of a server's outage once at each end, however many calls wait it out side by side."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Outage:
    """Begins with the first call that has to wait and ends when none has to any more: some may get through meanwhile,
    since the parts of a cluster go and come one by one.

    begins: log line with one %s, the error. ends: log line with one %.1f, the seconds it took.
    """

    def __init__(self, logger: logging.Logger, begins: str, ends: str) -> None:
        self._logger, self._begins, self._ends = logger, begins, ends
        self._waiting = 0
        self._since = 0.0

    @property
    def is_on(self) -> bool:
        """Whether a call is waiting now."""
        return self._waiting > 0

    @contextmanager
    def call(self) -> Iterator[Callable[[object], None]]:
        """Around one call, its tries included. Yields what is to be called with the error when a try has failed. A call
        that raises has given up, which does not mean that the server is back."""
        waits = False

        def wait(error: object) -> None:
            nonlocal waits
            if not waits:
                waits = True
                self._waiting += 1
                if self._waiting == 1:
                    self._since = time.monotonic()
                    self._logger.error(self._begins, error)

        try:
            yield wait
        except BaseException:
            self._waiting -= waits
            raise
        self._waiting -= waits
        if waits and self._waiting == 0:
            self._logger.warning(self._ends, time.monotonic() - self._since)
