"""The policies file: the more special section wins, and what can't be is named."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from worker.errors import SettingsError
from worker.replenishment_policies import Policies, Policy

DAY_MS = 86_400_000


def policy(text: str, item_id: str = "mug@york", product_id: str = "mug", category: str = "cups") -> Policy:
    return Policies(tomllib.loads(text)).of(item_id, product_id, category)


def test_an_empty_file_has_every_default() -> None:
    found = policy("")
    assert (found.name, found.freq, found.service_level, found.by_fill_rate) == ("order_up_to", "1d", 0.95, False)
    assert (found.review_period_ms, found.lead_time.mean) == (DAY_MS, DAY_MS)
    assert (found.min_order, found.pack, found.shelf_life_ms, found.batch) == (0.0, 1.0, None, 0.0)


def test_item_wins_over_product_over_category_over_default() -> None:
    text = """
    [default]
    pack = 2
    min_order = 2
    review_period = "2d"
    lead_time = "2d"
    [category.cups]
    pack = 3
    min_order = 3
    review_period = "3d"
    [product.mug]
    pack = 4
    min_order = 4
    [item."mug@york"]
    pack = 5
    """
    found = policy(text)
    assert (found.pack, found.min_order) == (5.0, 4.0)
    assert (found.review_period_ms, found.lead_time.mean) == (3 * DAY_MS, 2 * DAY_MS)
    assert policy(text, item_id="mug").pack == 4.0
    assert policy(text, item_id="cup", product_id="cup").pack == 3.0
    assert policy(text, item_id="cup", product_id="cup", category="").pack == 2.0


def test_a_section_that_says_how_much_is_enough_takes_back_what_a_more_general_one_said() -> None:
    text = """
    [default]
    underage_cost = 3
    overage_cost = 1
    [category.cups]
    fill_rate = 0.98
    """
    assert policy(text, category="").service_level == 0.75
    found = policy(text)
    assert (found.service_level, found.by_fill_rate) == (0.98, True)


def test_a_lead_time_may_be_a_distribution() -> None:
    lead_time = policy('[default]\nlead_time = { "2d" = 0.75, "36h" = 0.25 }').lead_time
    assert lead_time.durations == (2.0 * DAY_MS, 1.5 * DAY_MS)
    assert lead_time.probabilities == (0.75, 0.25)


def test_reviews_are_a_period_apart_from_an_offset_on() -> None:
    found = policy('[default]\nreview_period = "1w"\nreview_offset = "4d"')
    monday = 1_710_720_000_000  # 2024-03-18, 4 days after a Thursday as 1970-01-01 was
    assert found.review_before(monday) == monday
    assert found.review_before(monday - 1) == monday - 7 * DAY_MS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[defaults]", r"\[defaults\] is not a section"),
        ("[default]\npacks = 3", "packs"),
        ("[default]\npack = 0", "pack"),
        ("[default]\nservice_level = 1", "service_level"),
        ('[default]\nreview_period = "0d"', "review_period is above review_wait"),
        ('[default]\nlead_time = "soon"', "'soon' is no duration"),
        ('[default]\nlead_time = { "1d" = 0.5 }', "sum to 1"),
        ("[default]\nunderage_cost = 2", "go together"),
        ("[default]\nservice_level = 0.9\nfill_rate = 0.9", "one of service_level"),
        ('[default]\npolicy = "s_S"', "order_quantity"),
        ('[default]\npolicy = "s_S"\nfill_rate = 0.9\norder_quantity = 3', "order_up_to"),
        ('[default]\nfreq = "2d"', "'2d' is not one of"),
        ("[category.cups]\npack = -1", r"\[category.cups\]"),
        ("[item]\nmug = 3", r"\[item.mug\] is no section"),
    ],
)
def test_what_can_not_be_is_named(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        policy(text)


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "policies.toml"
    path.write_text("policy: order_up_to")
    with pytest.raises(SettingsError, match=r"policies.toml can't be read"):
        Policies.read(path)
