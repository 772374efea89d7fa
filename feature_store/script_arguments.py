"""Arguments of the scripts that write, as they are packed for Redis. No I/O here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from feature_store.alert_state import pack_alerts
from feature_store.calibration_state import pack_state
from feature_store.chunks import SCRIPT_LIMITS, PackedSums, oldest_chunks
from feature_store.layout import Keys, pack_hash, pack_item, pack_product, pack_summary
from feature_store.score_state import (
    ItemChallenge,
    RowName,
    SumsByStep,
    pack_row_name,
    pack_scores,
    pack_sums_by_step,
)
from feature_store.seen_ids import IdsPlan, ids_fields
from feature_store.store_types import Additions, Batch, Claim, Done


def apply_arguments(
    claim: Claim, batch: Batch, positions: Mapping[str, tuple[int, int]], packed: PackedSums, ids: IdsPlan
) -> dict[str, Any]:
    """Of apply.lua; `positions` are those of all topics, before and after."""
    return {
        "owner": claim.owner,
        "incarnation": claim.incarnation,
        "positions": [[topic, before, after] for topic, (before, after) in positions.items()],
        "newest": list(batch.newest.items()),
        "items": pack_hash({name: pack_item(item) for name, item in batch.items.items()}),
        "products": pack_hash({name: pack_product(state) for name, state in batch.products.items()}),
        "dirty": list(batch.dirty),
        "counts": packed.counts,
        "fields": packed.fields,
        "rows": packed.rows,
        "large": packed.large,
        "oldest": oldest_chunks(batch.oldest_kept, packed.series),
        "ids": ids.entries,
        "ids_keys": len(ids.keys),
        "ids_kept": ids_fields(ids.generations),
        "ids_gone": ids.gone,
        **SCRIPT_LIMITS,
    }


def forecasts_done_keys(keys: Keys, freq: str) -> list[str]:
    """Of forecasts_done.lua, but for the last one."""
    names = [keys.meta, keys.dirty(freq), keys.forecasts(freq), keys.calibration(freq), keys.segments(freq)]
    names += [keys.scores(freq), keys.challenge(freq), keys.accuracy(freq)]
    return [*names, keys.alerts(freq), keys.alert_levels(freq), keys.untold]


def forecasts_done_arguments(claim: Claim, freq: str, done: Sequence[Done], additions: Additions) -> dict[str, Any]:
    """Of forecasts_done.lua."""
    entries = [
        [
            d.item_id,
            "" if d.mark is None else str(d.mark),
            pack_summary(d.summary) if d.summary else "",
            pack_state(d.calibration) if d.calibration else "",
            pack_scores(d.scores) if d.scores else "",
            "",
            pack_alerts(d.alerts) if d.alerts else "",
        ]
        for d in done
    ]
    return _done_arguments(claim, freq, entries, additions)


def challenged_arguments(
    claim: Claim, freq: str, states: Mapping[str, ItemChallenge], scored: Mapping[RowName, SumsByStep]
) -> dict[str, Any]:
    """Of forecasts_done.lua, which leaves the forecasts as they are then."""
    entries = [[item_id, "", "=", "", "", pack_scores(state), ""] for item_id, state in states.items()]
    return _done_arguments(claim, freq, entries, Additions(scored=scored))


def _done_arguments(claim: Claim, freq: str, entries: Sequence[Sequence[str]], additions: Additions) -> dict[str, Any]:
    return {
        "owner": claim.owner,
        "incarnation": claim.incarnation,
        "freq": freq,
        "done": entries,
        "learnt": pack_hash({zone: pack_state(levels) for zone, levels in additions.learnt.items()}),
        "levels": pack_hash({name: pack_alerts(levels) for name, levels in additions.levels.items()}),
        "untold": pack_hash({name: pack_alerts(one) for name, one in additions.untold.items()}),
        "sums": pack_hash({pack_row_name(row): pack_sums_by_step(sums) for row, sums in additions.scored.items()}),
    }
