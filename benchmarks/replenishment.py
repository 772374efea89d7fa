"""What ordering by forecasts costs on real sales, beside a moving average, the season before, and perfect foresight.

The data are public sets that are not in this repository, as Parquet files of one folder (`--data`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from benchmarks.accuracy_data import dunnhumby_table, online_retail_table
from benchmarks.promotions import dunnhumby_promotions
from benchmarks.report import show
from forecaster.inputs import ModelInputs, ModelOutputs
from forecaster.predictor import DemandModel, load_model
from forecaster.series import SeriesTable
from forecaster.simulate import LeadTimeType, question_of
from forecaster.stock_comparison import Found, Service, at_service, compare
from forecaster.stock_contestants import everyone
from forecaster.train_options import shipped_model

_WINDOWS = (28, 56, 91)
_SELLING_DAYS = 20  # of 91, as in benchmarks.accuracy
_SHOWN = ("cost", "holding", "shortage", "fill_rate", "cycle_service", "turns")


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
    Case("dunnhumby_promotions", 7, "7", 8, 12, 1_500),
    Case("dunnhumby_promotions", 7, "2", 8, 12, 1_500),
)
TABLES: dict[str, Callable[[Path], SeriesTable]] = {
    "online_retail": lambda folder: online_retail_table(folder, "1d"),
    "dunnhumby": lambda folder: dunnhumby_table(folder, "1d"),
    "dunnhumby_promotions": lambda folder: dunnhumby_promotions(folder).added_to(dunnhumby_table(folder, "1d")),
}


class Remembered:
    """A model that is asked the same twice forecasts once."""

    def __init__(self, model: DemandModel) -> None:
        self._model = model
        self._made: dict[bytes, ModelOutputs] = {}
        self.freqs, self.covariates = model.freqs, model.covariates

    def forecast(self, inputs: ModelInputs) -> ModelOutputs:
        """See DemandModel."""
        asked = hashlib.sha256(b"".join(array.tobytes() for array in inputs)).digest()
        if asked not in self._made:
            self._made[asked] = self._model.forecast(inputs)
        return self._made[asked]


def measure(case: Case, table: SeriesTable, model: DemandModel, service: str, equal_shortage: bool) -> dict[str, Any]:
    """Figures of one case: what the tuned factors did, and costs where service is 95 %."""
    question = question_of(
        table,
        {
            "review_period": case.review_period,
            "lead_time": LeadTimeType().convert(case.lead_time, None, None),
            "tuning_weeks": case.tuning_weeks,
            "weeks": case.weeks,
            "service": service,
            "target": 0.95,
            "policy": "order-up-to",
            "holding_rate": 0.25,
            "shortage_rate": None,
            "equal_shortage": equal_shortage,
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
        "equal_shortage": equal_shortage,
        "items_judged": len(question.shop.rows),
        "contestants": {name: _figures(one, question.service) for name, one in found.items()},
    }


def _figures(found: Found, service: Service) -> dict[str, Any]:
    tuned = {name: round(float(values[0]), 4) for name, values in found.tuned._asdict().items() if name in _SHOWN}
    if len(found.factors) == 1:
        return {"tuned": tuned}
    equal = {n: round(v, 4) if math.isfinite(v) else None for n, v in at_service(found.judged, service, 0.95).items()}
    cheapest = {"cheapest": round(float(found.judged.cost.min()), 4)}
    return {"factor": round(found.factor, 4), "tuned": tuned, "at_95": {n: equal[n] for n in _SHOWN}} | cheapest


def _rows(figures: dict[str, Any]) -> list[list[str]]:
    """Costs at 95 % as a multiple of what perfect foresight costs, and beside the classical moving average."""
    said = figures["contestants"]
    perfect = said["perfect foresight"]["tuned"]["cost"]
    ours = said["shelfcast"]
    rows = []
    for name, one in said.items():
        tuned, equal = one["tuned"], one.get("at_95", one["tuned"])
        gain = "" if name == "shelfcast" or "at_95" not in one else _less(ours["at_95"]["cost"], equal["cost"])
        rows.append(
            [
                name,
                f"{equal['cost']:,.1f}" if equal["cost"] else "–",
                f"{equal['cost'] / perfect:.1f}" if equal["cost"] else "–",
                gain,
                f"{tuned['cost']:,.1f}",
                f"{tuned['cycle_service']:.1%}",
                f"{tuned['fill_rate']:.1%}",
                f"{tuned['turns']:.1f}",
            ]
        )
    return rows


def _less(ours: float | None, other: float | None) -> str:
    return f"{ours / other - 1:+.1%}" if ours and other else "–"


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("../shared/data"),
    show_default=True,
    help="Folder of the Parquet files.",
)
@click.option("--model", type=click.Path(exists=True, file_okay=False, path_type=Path), help="[default: the shipped]")
@click.option("--shop", type=click.Choice(list(TABLES)), multiple=True, help="Which shops.  [default: all]")
@click.option("--service", type=click.Choice(["cycle", "fill-rate"]), default="cycle", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="End in one line of JSON.")
def command(data: Path, model: Path | None, shop: tuple[str, ...], service: str, as_json: bool) -> None:
    """Order policies on the later weeks of real shops, each tuned to 95 % service on the weeks before them."""
    loaded = load_model(model or shipped_model(), threads=1)
    tables: dict[str, SeriesTable] = {}
    cases = []
    chosen = [case for case in CASES if not shop or case.shop in shop]
    for case in chosen:
        if case.shop not in tables:
            tables[case.shop] = TABLES[case.shop](data)
        remembered = Remembered(loaded)
        for equal_shortage in (False, True):
            cases.append(measure(case, tables[case.shop], remembered, service, equal_shortage))
            figures = {"cases": cases}
            title = (
                f"{case.shop}, {cases[-1]['items_judged']:,} items, every {case.review_period} days, lead time "
                f"{case.lead_time}; a unit short costs {'the same for all' if equal_shortage else 'by its price'}"
            )
            header = ["", "cost at 95 %", "× perfect", "ours", "tuned: cost", "cycles", "fill rate", "turns"]
            last = case is chosen[-1] and equal_shortage
            show(title, header, _rows(cases[-1]), figures, as_json and last)


if __name__ == "__main__":
    command()
