"""The command `shelfcast`. Subcommands are imported when they are called, so that none pays for another's libraries."""

from __future__ import annotations

import importlib
import logging
import sys

import click

from feature_store.recording_manifest import RecordingError
from worker.errors import ShelfcastError

# name -> (module whose `command` it is, one line of help)
_COMMANDS = {
    "worker": ("worker.run", "Run a worker: events in, forecasts out."),
    "up": ("worker.up", "Start Kafka, Redis and Triton on this machine."),
    "demo": ("worker.demo", "Replay four weeks of real orders and watch forecasts change."),
    "check": ("worker.check", "Inspect Kafka, Redis and Triton before the first start."),
    "show": ("worker.show", "Print an item's features and last forecast."),
    "accuracy": ("worker.accuracy", "Print how good forecasts were, now that their buckets have closed."),
    "dlq": ("worker.dlq", "List, show and retry records that workers could not use."),
    "record": ("worker.record", "Save topics to files, byte for byte."),
    "recording": ("worker.recording", "Show, verify, cut, merge and import recordings."),
    "replay": ("worker.replay", "Send a recording again, to the same forecasts."),
    "backtest": ("worker.backtest", "Run a recording through models and settings, score and compare them."),
    "features": ("worker.features_export", "Write what models are given over a recording, as training data."),
    "snapshot": ("worker.snapshot", "Save features and positions as files, while workers go on."),
    "restore": ("worker.restore", "Bring a snapshot back, here or in another namespace."),
    "backfill": ("worker.backfill", "Fill features from tables of past events, before the first start."),
    "forecast": ("worker.forecast", "Forecast the series of a table or a recording, into a file."),
    "train": ("worker.train", "Train the served model."),
    "evaluate": ("forecaster.evaluate", "Score models and baselines on a shop's own past sales."),
    "simulate": ("forecaster.simulate", "Run order policies on past sales: stock, costs, service."),
    "replenish": ("worker.replenish", "Order stock from forecasts and stock reports."),
    "export": ("worker.export", "Make a trained model a version that Triton serves."),
    "promote": ("worker.promote", "Have workers use a challenger that has been shown to be better."),
    "model": ("worker.model", "List the served versions, and choose which one workers use."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _ = _COMMANDS[cmd_name]
        try:
            command: click.Command = importlib.import_module(module).command
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] in ("feature_store", "forecaster", "worker"):
                raise
            extra = "train" if module.startswith(("forecaster", "worker.train")) else "embedded"
            extra = "recordings" if error.name == "pyarrow" else extra
            remedy = f"pip install 'shelfcast[{extra}]'"
            raise ShelfcastError(f"`shelfcast {cmd_name}` needs {error.name}: {remedy}") from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="shelfcast")
def shelfcast() -> None:
    """Live sales forecasts from a shop's own event streams.

    Settings are read from SHELFCAST_* environment variables; the README has the table.
    """


def main() -> None:
    """Entry point: errors raised on purpose become one line on stderr and exit code 1."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        shelfcast()
    except (ShelfcastError, RecordingError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
