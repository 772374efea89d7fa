"""RejectWatch: when most of a lane's records can't be used, something is wrong upstream, and going on would throw the
stream away."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

from worker.errors import TooManyRejectsError


class RejectWatch:
    """Looks at the last `window` records or a few more: whole batches are kept."""

    def __init__(self, max_share: float, window: int) -> None:
        self._max_share, self._window = max_share, window
        self._batches: deque[tuple[int, Counter[str]]] = deque()  # records, and rejects by reason
        self._seen, self._refused = 0, Counter[str]()  # sums of the batches

    def note(self, where: str, records: int, reasons: Sequence[str]) -> None:
        """Count a batch of records of which some were rejected.

        Raises:
            TooManyRejectsError: the share of rejects has passed its limit. `where` names the topic in its message.
        """
        self._batches.append((records, Counter(reasons)))
        self._seen += records
        self._refused.update(reasons)
        while self._seen - self._batches[0][0] >= self._window:
            gone, no_longer = self._batches.popleft()
            self._seen -= gone
            self._refused.subtract(no_longer)
        if self._seen >= self._window and self._refused.total() > self._max_share * self._seen:
            raise TooManyRejectsError(_message(where, self._refused, self._seen))


def _message(where: str, refused: Counter[str], seen: int) -> str:
    reason = refused.most_common(1)[0][0]
    remedy = "look at the headers shelfcast.reason and shelfcast.detail in its dead-letter topic"
    if reason in ("wrong_partition", "wrong_key"):
        remedy = (
            "the producer places products by another hash or key: key records by product_id, set "
            "'partitioner=murmur2' in librdkafka clients (confluent-kafka and others; their default is crc32), and "
            "give every input topic the same number of partitions"
        )
    return (
        f"{refused.total()} of the last {seen} records of {where} can't be used, most of them for {reason!r}. The "
        f"worker stops before more of the stream is set aside. Remedy: {remedy}."
    )
