"""What every benchmark says of itself: a table, the figures as JSON, processor time of its processes, the machine."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Sequence
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
    """Processor seconds, user and system, that a server and its living children have used."""
    ticks = 0
    for stat in _process_files(server, "stat"):
        fields = stat.rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS_PER_S


def peak_rss_mb(server: LocalServer) -> float:
    """The most memory, in MB of 10^6 bytes, that a server and its living children have had resident, each at its own
    time."""
    kib = 0
    for status in _process_files(server, "status"):
        kib += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    return kib * 1024 / 1e6


def _process_files(server: LocalServer, name: str) -> Iterator[str]:
    """/proc/PID/NAME of every process of a server; it leads a session of its own, which tells whose they are."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            session = int((directory / "stat").read_text(errors="replace").rpartition(")")[2].split()[3])
            if session == server.pid:
                yield (directory / name).read_text(errors="replace")
        except OSError:  # it ended meanwhile
            continue


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
