"""PauseKeys: how a person pauses a replay: the key p where there is a terminal, and the signal USR1 anywhere."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from types import FrameType, TracebackType
from typing import Any, Self


class PauseKeys:
    """Within its context keys are read as they are pressed; Ctrl-C and Ctrl-Z work as ever."""

    def __init__(self) -> None:
        self._paused = False
        self._terminal: list[Any] | None = None
        self._former: Any = None

    def __enter__(self) -> Self:
        self._former = signal.signal(signal.SIGUSR1, self._toggle)
        if sys.stdin.isatty():
            self._terminal = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGUSR1, self._former)
        if self._terminal is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._terminal)

    def paused(self) -> bool:
        """Whether the replay is to stand still now."""
        while self._terminal is not None and select.select([sys.stdin], [], [], 0)[0]:
            pressed = os.read(sys.stdin.fileno(), 64)
            if not pressed:  # the terminal is gone
                self._terminal = None
            if pressed.lower().count(b"p") % 2:
                self._paused = not self._paused
        return self._paused

    def _toggle(self, number: int, frame: FrameType | None) -> None:
        self._paused = not self._paused
