"""Training from a recording: the windows are those of the very events that were recorded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from feature_store.calendar_time import ShopCalendar
from feature_store.events import Action
from feature_store.recording_files import (
    Manifest,
    RecordColumns,
    Recording,
    RecordingError,
    RecordingWriter,
    TopicEntry,
)
from forecaster import train
from forecaster.batches import Batches, fixed_windows
from forecaster.dataset import History
from forecaster.fitting import Machine, Plan, Trainer, mean_score, validation_losses
from forecaster.models.patch_layers import PatchTransformerConfig
from forecaster.models.patch_transformer import PatchTransformer
from forecaster.recorded import recorded_events, split_by_zone
from forecaster.sources import HistorySource
from forecaster.training_data import recorded_data
from tests.forecaster.builders import ZONE, small_shop

_DAY_MS = 86_400_000
_KINDS = {Action.SALE: "sale", Action.CANCEL: "cancel", Action.RETURN: "return"}
_CLICKS = {action: action.name.lower() for action in (Action.VIEW, Action.ADD_TO_CART, Action.WISHLIST)}
_PARTITIONS = 2


def write(path: Path, events: Sequence[tuple[str, dict[str, Any], int]], **manifest: Any) -> Recording:
    """Events (topic, fields, record's timestamp), parted by the length of the product's name."""
    topics = {topic: TopicEntry(_PARTITIONS) for topic, _, _ in events}
    places: dict[tuple[str, int], list[tuple[dict[str, Any], int]]] = {}
    for topic, fields, timestamp_ms in events:
        places.setdefault((topic, len(fields["product_id"]) % _PARTITIONS), []).append((fields, timestamp_ms))
    with RecordingWriter(path, Manifest("s", 0, topics, **manifest), roll_rows=3_000) as writer:
        for (topic, partition), own in places.items():
            count = len(own)
            writer.append(
                RecordColumns(
                    topic,
                    partition,
                    np.arange(count, dtype=np.int64),
                    np.array([timestamp_ms for _, timestamp_ms in own], dtype=np.int64),
                    np.ones(count, dtype=np.int8),
                    [fields["product_id"].encode() for fields, _ in own],
                    [json.dumps(fields).encode() for fields, _ in own],
                    [None] * count,
                )
            )
    return Recording.open(path)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """All of an invented shop as messages, with a copy of every tenth order and some that can't be used."""
    batch = small_shop().batch
    rows: list[tuple[str, dict[str, Any], int]] = []
    for i in np.argsort(batch.event_time_ms, kind="stable").tolist():
        action, time_ms = Action(int(batch.action[i])), int(batch.event_time_ms[i])
        product_id = batch.series[int(batch.series_index[i])][0]
        fields: dict[str, Any] = {"event_time": time_ms, "product_id": product_id, "event_id": str(i)}
        if action in _KINDS:
            fields |= {"kind": _KINDS[action], "one_off": bool(batch.one_off[i])}
            fields |= {"quantity": int(batch.quantity[i]) / 1000, "unit_price": int(batch.unit_price[i]) / 1e6}
            rows += [("a.orders.v1", fields, time_ms)] * (1 + (i % 10 == 0))
            if i % 500 == 0:
                rows.append(("a.orders.v1", fields | {"event_id": "", "quantity": "many"}, time_ms))
                rows.append(("a.orders.v1", fields | {"event_id": "", "event_time": time_ms + _DAY_MS}, time_ms))
        elif action is Action.REVIEW:
            rows.append(("a.reviews.v1", fields | {"rating": int(batch.rating[i])}, time_ms))
        else:
            rows.append(("visits", fields | {"action": _CLICKS[action]}, time_ms))
    return write(tmp_path_factory.mktemp("recording"), rows, schema_versions={"visits": "clicks"})


def test_windows_are_those_of_the_events_themselves(recording: Recording) -> None:
    shop = small_shop()
    direct = History(shop.batch, ShopCalendar(ZONE), shop.end_ms)
    ((zone, events),) = split_by_zone(recorded_events(recording), ShopCalendar(ZONE))
    assert zone == ZONE
    recorded = History(events, ShopCalendar(zone), shop.end_ms)
    assert sorted(recorded.item_ids) == sorted(direct.item_ids)
    rng = np.random.default_rng(5)
    for freq, steps in (("1h", 24), ("1d", 7)):
        for cutoff_ms in rng.integers(shop.end_ms - 60 * _DAY_MS, shop.end_ms - 9 * _DAY_MS, 5).tolist():
            known = np.flatnonzero(direct.order_lines(0, cutoff_ms))[:12]
            same = np.array([recorded.item_ids.index(direct.item_ids[s]) for s in known.tolist()])
            expected = direct.window(freq, cutoff_ms, known, steps)
            found = recorded.window(freq, cutoff_ms, same, steps)
            for one, other in zip((*found.inputs, *found[1:]), (*expected.inputs, *expected[1:]), strict=True):
                np.testing.assert_array_equal(one, other)


def test_locations_are_items_that_read_their_products_clicks(tmp_path: Path) -> None:
    hour_ms = 3_600_000
    order = {"event_time": 5 * hour_ms, "product_id": "mug", "quantity": 1, "unit_price": 2.0}
    click = {"event_time": 5 * hour_ms, "product_id": "mug", "action": "view"}
    rows = [("shop.orders.v1", order | {"location_id": place}, 5 * hour_ms) for place in ("", "here", "there")]
    rows += [("shop.clicks.v1", click, 5 * hour_ms), ("shop.clicks.v1", click | {"product_id": "jug"}, 5 * hour_ms)]
    events = recorded_events(write(tmp_path, rows))
    calendar = ShopCalendar("Europe/London", {"there": "Asia/Tokyo"})
    parts = dict(split_by_zone(events, calendar))
    assert {zone: part.series for zone, part in parts.items()} == {
        "Asia/Tokyo": (("mug@there", ""),),
        "Europe/London": (("mug", ""), ("mug@here", "")),
    }
    views = {
        part.series[s][0] for part in parts.values() for s in part.series_index[part.action == Action.VIEW].tolist()
    }
    assert views == {"mug", "mug@here", "mug@there"}
    assert sum(len(part) for part in parts.values()) == 6


def test_a_recording_without_orders_is_refused(tmp_path: Path) -> None:
    click = {"event_time": 1, "product_id": "mug", "action": "view"}
    with pytest.raises(RecordingError, match=r"shop\.clicks\.v1"):
        recorded_events(write(tmp_path, [("shop.clicks.v1", click, 1)]))


def test_a_model_learns_from_a_recording(recording: Recording) -> None:
    data = recorded_data(recording, ShopCalendar(ZONE), ("1d", "1h"))
    (learnt,), (held,) = data
    assert learnt.share == 1.0
    assert isinstance(learnt.source, HistorySource)
    assert isinstance(held.source, HistorySource)
    assert held.source.history.end_ms - learnt.source.last_ms == 28 * _DAY_MS
    assert held.source.first_ms == learnt.source.last_ms
    validation = fixed_windows(Batches(data.held_out, ("1d", "1h"), 8, 1), 1)
    torch.manual_seed(0)
    model = PatchTransformer(PatchTransformerConfig(width=16, layers=1, heads=2, step_width=8))
    before = mean_score(validation_losses(model, validation))
    batches, machine = Batches(data.sources, ("1d", "1h"), 8), Machine(workers=0, quiet=True)
    after = Trainer(model, batches, validation, Plan(steps=8, validate_every=4), machine).fit()
    assert after.score < before


def test_the_command_says_what_a_recording_lacks(tmp_path: Path) -> None:
    order = {"event_time": 1, "product_id": "mug", "quantity": 1, "unit_price": 2.0}
    short = write(tmp_path, [("shop.orders.v1", order, 1)])
    done = CliRunner().invoke(train.command, ["--recording", str(short.path), "--output", str(tmp_path / "model")])
    assert done.exit_code == 1
    assert "20 days are the least" in done.output
