"""`shelfcast worker`: run a worker until it is told to stop."""

from __future__ import annotations

import os
import sys

import click

from worker.faust_app import run_worker
from worker.settings import load_settings


@click.command("worker")
def command() -> None:
    """Run a worker: events in, forecasts out, until SIGTERM."""
    sys.exit(run_worker(load_settings(os.environ)))
