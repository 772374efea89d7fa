"""The stage: casts of acts that play side by side, each in a process of its own, and the tally of all of them."""

from __future__ import annotations

import logging
import multiprocessing
import queue
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.chaos.tally import Tally

Act = Callable[[Tally, Path], None]


def play(cast: Sequence[Act], directory: Path, messages: Any) -> None:
    """Play acts one after the other, each in a folder of its own, and tell of them through the queue."""
    logging.basicConfig(level=logging.CRITICAL)  # outages are meant to be
    tally = Tally(messages.put)
    for n, act in enumerate(cast):
        try:
            act(tally, directory / str(n))
        except Exception:
            tally.check("an act broke off", [traceback.format_exc()])
    messages.put(tally.counts())


def run(casts: Sequence[Sequence[Act]], directory: Path, tell: Callable[[str], None]) -> Tally:
    """Play all casts side by side; returns their common tally."""
    context = multiprocessing.get_context("spawn")
    messages, whole = context.Queue(), Tally(tell)
    players = [
        context.Process(target=play, args=(cast, directory / f"cast-{n}", messages)) for n, cast in enumerate(casts)
    ]
    for player in players:
        player.start()
    playing = len(players)
    while playing:
        try:
            message = messages.get(timeout=1.0)
        except queue.Empty:
            if not any(player.is_alive() for player in players):
                whole.check("a process of the suite ended", [f"exit codes {[p.exitcode for p in players]}"])
                break
            continue
        if isinstance(message, str):
            tell(message)
        else:
            whole.add(message)
            playing -= 1
    return whole
