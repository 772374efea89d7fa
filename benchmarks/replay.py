"""Records a second recorded, replayed and backtested, and how long a year of Online Retail II takes.

Recording and replaying go against the embedded broker, with messages of 100 bytes (recording.py, replaying.py) and with
all orders of two shops (real_shops.py); the backtest needs no broker (backtesting.py). A year of a shop in so many
seconds is so many times real time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from benchmarks.backtesting import measure_backtest
from benchmarks.real_shops import measure_shop
from benchmarks.recording import measure_record
from benchmarks.replaying import measure_replay
from benchmarks.report import show
from worker.local_stack import LocalStack

_DATA = Path(__file__).parents[2] / "shared" / "data"
_YEAR_S = 365 * 86_400


def measure(online_retail: Path, dunnhumby: Path, days: int | None) -> dict[str, Any]:
    """All figures; see the modules."""
    with LocalStack(redis=False, triton=False) as stack:
        recorded = measure_record(stack)
    replayed = measure_replay()
    shops = {
        "online_retail": measure_shop("online_retail_ii", online_retail, ("time_zone=Europe/London", "currency=GBP")),
        "dunnhumby": measure_shop("dunnhumby", dunnhumby, ("time_zone=UTC", "currency=USD")),
    }
    backtested = measure_backtest(online_retail, days)
    return {
        **{name: round(value, 1) for name, value in recorded.items()},
        "replay_per_s": round(replayed.records / replayed.wall_s, 1),
        **backtested,
        "times_real_time": round(_YEAR_S / backtested["online_retail_year_s"]),
        **shops,
    }


@click.command()
@click.option(
    "--online-retail",
    type=click.Path(path_type=Path),
    default=_DATA / "online_retail_ii.parquet",
    help="Online Retail II as Parquet.  [default: ../shared/data/online_retail_ii.parquet]",
)
@click.option(
    "--dunnhumby",
    type=click.Path(path_type=Path),
    default=_DATA / "dunnhumby_transactions.parquet",
    help="Transactions of The Complete Journey as Parquet.  [default: ../shared/data/dunnhumby_transactions.parquet]",
)
@click.option("--days", type=int, help="Forecast only so many days of the year, and make the year's time up from them.")
@click.option("--json", "as_json", is_flag=True, help="End in one line of JSON.")
def command(online_retail: Path, dunnhumby: Path, days: int | None, as_json: bool) -> None:
    """How fast topics are recorded, replayed and backtested."""
    for option, path in (("--online-retail", online_retail), ("--dunnhumby", dunnhumby)):
        if not path.is_file():
            raise click.UsageError(f"there is no {path}: name the file with {option}")
    figures = measure(online_retail, dunnhumby, days)
    rows = [
        ("recorded, messages of 100 bytes a second", f"{figures['record_per_s']:,.0f}"),
        ("… what the broker delivers to a loop that drops them", f"{figures['broker_per_s']:,.0f}"),
        ("replayed, messages of 100 bytes a second", f"{figures['replay_per_s']:,.0f}"),
        ("backtested without a model, events a second", f"{figures['backtest_per_s']:,.0f}"),
        ("backtested with the model, forecasts a second", f"{figures['backtest_forecasts_per_s']:,.0f}"),
        ("… what the model alone makes", f"{figures['model_forecasts_per_s']:,.0f}"),
        ("a year of Online Retail II, seconds", f"{figures['online_retail_year_s']:,.0f}"),
        ("… times real time", f"{figures['times_real_time']:,.0f}"),
    ]
    for name, shop in (("Online Retail II", figures["online_retail"]), ("dunnhumby", figures["dunnhumby"])):
        rows += [
            (f"{name}, {shop['orders']:,} orders: replayed a second", f"{shop['replay_per_s']:,.0f}"),
            ("… recorded a second", f"{shop['record_per_s']:,.0f}"),
            ("… backtested without a model, events a second", f"{shop['backtest_per_s']:,.0f}"),
            ("… times real time", f"{shop['times_real_time']:,.0f}"),
        ]
    title = "Record, replay, backtest" + ("" if days is None else f"; the year made up from {days} days")
    show(title, ("what", "figure"), rows, figures, as_json)


if __name__ == "__main__":
    command()
