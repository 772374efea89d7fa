"""What ordering by forecasts costs on real sales, beside a moving average, the season before, and perfect foresight.

The data are public sets that are not in this repository, as Parquet files of one folder (`--data`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from benchmarks.accuracy_data import dunnhumby_table, online_retail_table
from benchmarks.report import show
from forecaster.predictor import DemandModel, load_model
from forecaster.series import SeriesTable
from forecaster.simulate import question_of
from forecaster.stock_comparison import Found, at_service, compare
from forecaster.stock_contestants import everyone
from forecaster.train_options import shipped_model

_WINDOWS = (28, 56, 91)
_SELLING_DAYS = 20  # of 91, as in benchmarks.accuracy


class Case(NamedTuple):
    """A shop, and how it orders. Weeks of tuning are followed by those judged, to the end of the table."""

    shop: str
    review_period: int
    lead_time: str
    tuning_weeks: int
    weeks: int
    items: int | None


# Online Retail II: both after 2011-02-27, up to where the shipped weights have learnt.
CASES = (
    Case("online_retail", 7, "7", 4, 5, None),
    Case("online_retail", 7, "3", 4, 5, None),
    Case("online_retail", 7, "3:0.5,7:0.3,14:0.2", 4, 5, None),
    Case("dunnhumby", 7, "7", 8, 12, 1_500),
    Case("dunnhumby", 7, "2", 8, 12, 1_500),
)
_TABLES: dict[str, Callable[[Path, str], SeriesTable]] = {
    "online_retail": online_retail_table,
    "dunnhumby": dunnhumby_table,
}


def measure(case: Case, table: SeriesTable, model: DemandModel, service: str, unit_shortage: bool) -> dict[str, Any]:
    """Figures of one case: what the tuned factors did, and costs where service is 95 %."""
    question = question_of(
        table,
        {
            "review_period": case.review_period,
            "lead_time": lead_time_of(case.lead_time),
            "tuning_weeks": case.tuning_weeks,
            "weeks": case.weeks,
            "service": service,
            "target": 0.95,
            "policy": "order-up-to",
            "holding_rate": 0.25,
            "shortage_rate": None,
            "shortage_is_per_unit": unit_shortage,
            "order_cost": 0.0,
            "min_order": 0.0,
            "pack": 1.0,
            "backorders": False,
            "min_selling_days": _SELLING_DAYS,
            "most": case.items,
        },
    )
    found = compare(question, everyone(question.shop, {"shelfcast": model}, _WINDOWS))
    return {
        **case._asdict(),
        "service": service,
        "items_judged": len(question.shop.rows),
        "contestants": {name: _figures(one, question.service) for name, one in found.items()},
    }
