"""What every benchmark says of itself: a table, the figures as JSON, processor time of its processes, the machine."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from worker.local_server import LocalServer

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_WIDTH = 110


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], figures: Any, as_json: bool) -> None:
    """Print the table, and with `as_json` the figures as the last line."""
    table = Table(title=title)
    for column in header:
        table.add_column(column, justify="right" if column != header[0] else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=_WIDTH).print(table)
    if as_json:
        click.echo(json.dumps(figures))


def cpu_s(server: LocalServer) -> float:
    """Processor seconds, user and system, that a server and its living children have used. Each server leads a session
    of its own, so the session tells which processes are its."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        session, user, system = int(fields[3]), int(fields[11]), int(fields[12])
        if session == server.pid:
            ticks += user + system
    return ticks / _TICKS_PER_S


def machine() -> dict[str, Any]:
    """What a figure depends on."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 1),
    }
