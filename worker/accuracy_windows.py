"""Windows of accuracy: from the sums of a lane, by day, to what is to be published of them. Pure functions.

A window is a day, or the 7 or 28 days up to the newest that has been scored. It is published when its sums are others
than those that were published last, under the next revision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import NamedTuple

import msgspec

from feature_store.score_state import RowName, SumsByStep
from worker.accuracy_messages import Segment, Window, add_to
from worker.scoring import ALL, CATEGORY

ROLLING_DAYS = (7, 28)
_CATEGORY_KIND = "category"
Rows = Mapping[RowName, SumsByStep]


class Due(NamedTuple):
    """A window that is to be published. `name` and `note` are what is noted of it afterwards."""

    name: str
    note: str
    segment: Segment
    model_version: str
    window: Window
    revision: int
    sums: SumsByStep


class Reported(NamedTuple):
    """due: windows to be published. gone: rows of days long past. gone_windows: names of those not published again."""

    due: list[Due]
    gone: list[RowName]
    gone_windows: list[str]


def windows_of(rows: Rows) -> dict[tuple[str, str, Window], dict[int, list[int]]]:
    """Sums by model version, segment and window: each day's, and those of the days up to the newest."""
    newest = max((name.day for name in rows), default=0)
    found: dict[tuple[str, str, Window], dict[int, list[int]]] = {}
    for name, sums in sorted(rows.items()):
        windows = [Window(name.day, 1)]
        windows += [Window(newest - days + 1, days) for days in ROLLING_DAYS if name.day > newest - days]
        for window in windows:
            add_to(found.setdefault((name.model_version, name.segment, window), {}), sums)
    return found


def report(rows: Rows, sent: Mapping[str, str], kept_days: int) -> Reported:
    """What is to be published.

    Args:
        rows: sums of scores of a lane and frequency.
        sent: by window the note of what was published last.
        kept_days: for how many days before the newest one rows are kept.
    """
    scored = {name: sums for name, sums in rows.items() if name.segment == ALL or name.segment.startswith(CATEGORY)}
    newest = max((name.day for name in scored), default=0)
    due = []
    for (version, segment, window), sums in sorted(windows_of(scored).items()):
        name = f"{window.first_day} {window.days} {version} {segment}"
        digest = hashlib.blake2b(msgspec.json.encode(sorted(sums.items())), digest_size=8).hexdigest()
        revision, _, before = sent.get(name, "0 ").partition(" ")
        if digest != before:
            told = Segment(ALL) if segment == ALL else Segment(_CATEGORY_KIND, segment.removeprefix(CATEGORY))
            next_revision = int(revision) + 1
            due.append(Due(name, f"{next_revision} {digest}", told, version, window, next_revision, sums))
    gone = [name for name in rows if name.day < newest - kept_days]
    return Reported(due, gone, _gone_windows(sent, newest, kept_days))


def _gone_windows(sent: Collection[str], newest: int, kept_days: int) -> list[str]:
    gone = []
    for name in sent:
        first_day, _, rest = name.partition(" ")
        days = rest.partition(" ")[0]
        oldest = newest - kept_days if days == "1" else newest - int(days) + 1
        if int(first_day) < oldest:
            gone.append(name)
    return gone
