"""Which sets of event ids a batch looks into, adds to and drops. No I/O here.

Ids are kept by *generation*, a stretch of event time as long as the window in which duplicates are looked for. An event
sent again need not carry the very same event time, so its id is looked for in the generations around its own as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from feature_store.layout import EventIds, Keys


class IdsPlan(NamedTuple):
    """Keys are numbered from 1, as Lua does."""

    keys: list[str]
    entries: list[list[Any]]  # source, ids, keys to look into, key to add to or 0
    gone: list[int]
    generations: dict[str, set[int]]  # that stand afterwards, of the sources for which that changes


def plan_ids(
    event_ids: Sequence[EventIds],
    oldest_generation: Mapping[str, int],
    standing: Mapping[str, set[int]],
    keys: Keys,
) -> IdsPlan:
    """Plan the ids of a batch, given the generations of which sets stand, by source."""
    numbers: dict[str, int] = {}

    def number(source: str, generation: int) -> int:
        return numbers.setdefault(keys.ids(source, generation), len(numbers) + 1)

    entries: list[list[Any]] = []
    afterwards = {source: set(generations) for source, generations in standing.items()}
    for source, generation, ids in event_ids:
        known = standing.get(source, ())
        look_into = [number(source, g) for g in (generation - 1, generation, generation + 1) if g in known]
        # Of a generation that has left the window nothing is remembered: its set would only be dropped again.
        is_kept = generation >= oldest_generation.get(source, generation)
        entries.append([source, list(ids), look_into, number(source, generation) if is_kept else 0])
        if is_kept:
            afterwards.setdefault(source, set()).add(generation)
    gone: list[int] = []
    for source, oldest in oldest_generation.items():
        past = sorted(generation for generation in afterwards.get(source, ()) if generation < oldest)
        gone += [number(source, generation) for generation in past]
        afterwards.get(source, set()).difference_update(past)
    changed = {source: kept for source, kept in afterwards.items() if kept != standing.get(source, set())}
    return IdsPlan(list(numbers), entries, gone, changed)


def ids_fields(generations: Mapping[str, set[int]]) -> list[str]:
    """Source, generations, source, generations, … as `meta` has them."""
    return [part for s, kept in generations.items() for part in (s, " ".join(map(str, sorted(kept))))]
