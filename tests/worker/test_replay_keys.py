"""Pausing: by signal, and by a key on a terminal, which is the pseudo-terminal of the operating system."""

from __future__ import annotations

import os
import pty
import signal
import termios
import time

import pytest

from worker.replay_keys import PauseKeys

_PATIENCE_S = 30.0


def test_a_signal_pauses_and_goes_on() -> None:
    former = signal.getsignal(signal.SIGUSR1)
    with PauseKeys() as keys:
        assert not keys.paused()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert keys.paused()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert not keys.paused()
    assert signal.getsignal(signal.SIGUSR1) == former


def test_the_key_p_pauses_and_the_terminal_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()

    def press(keys: PauseKeys, text: bytes, paused: bool) -> None:
        os.write(ours, text)
        deadline = time.monotonic() + _PATIENCE_S
        while keys.paused() != paused:
            assert time.monotonic() < deadline

    with os.fdopen(theirs, closefd=True) as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        before = termios.tcgetattr(terminal)
        with PauseKeys() as keys:
            press(keys, b"xp", paused=True)
            press(keys, b"P", paused=False)
            press(keys, b"p", paused=True)
            os.write(ours, b"x")
            assert keys.paused()
        assert termios.tcgetattr(terminal) == before
    os.close(ours)
