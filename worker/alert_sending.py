"""How alerts get to Kafka: noted in Redis together with the state that raised them, sent, and struck off.

So each message comes at least once whatever is killed, and always the same: a worker that finds one noted sends it
before it says anything else. Sent before their state stood, an alert could open that nobody knows of afterwards: by
the time the next worker looks, there may be nothing to be seen any more.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from feature_store.alert_state import Untold
from worker.schemas import Alert


def untold_of(topic: str, alerts: Sequence[tuple[str, Alert]]) -> dict[str, Untold]:
    """Messages with their keys, as they are noted: by alert_id and sequence."""
    return {
        f"{alert.alert_id} {alert.sequence}": Untold(topic, key, msgspec.json.encode(alert).decode())
        for key, alert in alerts
    }
