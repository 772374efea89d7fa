"""Outage: tells of a server's outage once at each end, however many calls wait it out side by side."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Outage:
    """Begins with the first call that has to wait and ends when none has to any more: some may get through meanwhile,
    since the parts of a cluster go and come one by one.

    Calls may come from several threads. `begins` is the log line of its start, with one %s for the error; `ends` that
    of its end, with one %.1f for the seconds between.
    """

    def __init__(self, logger: logging.Logger, begins: str, ends: str) -> None:
        self._logger, self._begins, self._ends = logger, begins, ends
        self._waiting = 0
        self._since = 0.0
        self._lock = threading.Lock()

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
                self._begin(error)

        try:
            yield wait
        except BaseException:
            if waits:
                self._end(tell=False)
            raise
        if waits:
            self._end(tell=True)

    def _begin(self, error: object) -> None:
        with self._lock:
            self._waiting += 1
            if self._waiting == 1:
                self._since = time.monotonic()
                self._logger.error(self._begins, error)

    def _end(self, *, tell: bool) -> None:
        with self._lock:
            self._waiting -= 1
            if tell and self._waiting == 0:
                self._logger.warning(self._ends, time.monotonic() - self._since)
