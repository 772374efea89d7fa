"""Events that a producer has sent again: the same event_id under a new offset. They count once.

An id is remembered in *generations* of event time, each one window long: whatever comes with it again less than a
window away falls into the same generation or one beside it, where apply.lua finds it.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from feature_store.events import EventBatch
from feature_store.layout import EventIds


def drop_repeats(events: EventBatch, window_ms: int) -> EventBatch:
    """The events without those whose id came earlier in the same batch, in a generation beside theirs."""
    ids = [event_id for event_id in events.event_id if event_id]
    if len(set(ids)) == len(ids):
        return events
    keep = np.ones(len(events), dtype=np.bool_)
    first: dict[str, list[int]] = {}
    generations = (events.event_time_ms // window_ms).tolist()
    for i, (event_id, generation) in enumerate(zip(events.event_id, generations, strict=True)):
        if not event_id:
            continue
        seen = first.setdefault(event_id, [])
        if any(abs(generation - other) <= 1 for other in seen):
            keep[i] = False
        else:
            seen.append(generation)
    return events.take(keep)


def without_ids(events: EventBatch, ids: Collection[str]) -> EventBatch:
    """The events whose id is not among `ids`."""
    return events.take(np.array([event_id not in ids for event_id in events.event_id], dtype=np.bool_))


def ids_to_remember(events: EventBatch, source: str, window_ms: int, oldest_generation: int) -> list[EventIds]:
    """The ids of a batch by generation. Generations that have already left the window are neither remembered nor
    looked up. Ids are distinct within the batch, but for those in generations too far from each other to meet."""
    if not events.event_id:
        return []
    ids = np.array(events.event_id, dtype=object)
    generations = events.event_time_ms // window_ms
    wanted = (generations >= oldest_generation) & (ids != "")
    return [
        EventIds(source, generation, ids[wanted & (generations == generation)].tolist())
        for generation in np.unique(generations[wanted]).tolist()
    ]
