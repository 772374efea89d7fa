"""What can go wrong with the feature store. A class exists where callers do something different."""

from __future__ import annotations

from collections.abc import Mapping


class StoreError(Exception):
    """Something is wrong with the feature store that trying again does not mend."""


class StoreRefusedError(StoreError):
    """This Redis, or what stands in it, must not be used; the message names the remedy."""


class SumOverflowError(StoreError):
    """A sum would pass 2^53 and no longer be exact; nothing was written."""


class DuplicateEventsError(StoreError):
    """Events with these ids were counted before; nothing was written. Without them the batch can be applied.

    Attributes:
        ids: by source.
    """

    def __init__(self, ids: Mapping[str, set[str]]) -> None:
        super().__init__(
            "counted before: " + ", ".join(f"{len(some)} events of {source}" for source, some in ids.items())
        )
        self.ids = dict(ids)


class FencedError(StoreError):
    """Another worker has claimed the partition since."""


class BehindError(StoreError):
    """Redis does not stand where this worker left it: it was emptied or rolled back. Claim again and rebuild."""


class StoreClosedError(StoreError):
    """The store was closed while a call was waiting for Redis."""
