"""`shelfcast up`: the local stack in the foreground."""

import signal
import time
from pathlib import Path
from types import FrameType

import click

from worker.errors import LocalStackError
from worker.local_stack import LocalStack
from worker.local_triton import MODEL_REPOSITORY

WATCH_INTERVAL_S = 0.2


def up(stack: LocalStack) -> None:
    """Starts the stack, prints its addresses and keeps it until SIGINT or SIGTERM.

    Raises LocalStackError when a server does not start or dies; nothing is left running either way.
    """
    # A closed terminal or `kill` ends this as Ctrl-C does, also while servers are starting.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        click.echo("Starting Kafka-compatible broker, Redis and Triton ...", err=True)
        with stack:
            click.echo(_addresses(stack))
            while (ended := stack.ended_server()) is None:
                time.sleep(WATCH_INTERVAL_S)
            raise ended.failure("died")
    except KeyboardInterrupt:
        click.echo("Stopped.", err=True)


def _addresses(stack: LocalStack) -> str:
    return f"""\
broker  {stack.bootstrap_servers}  (in memory: it forgets its topics when stopped)
Redis   {stack.redis_url}
Triton  {stack.triton_url}  (gRPC; HTTP at {stack.triton.http_url})
logs    {stack.logs}

In another terminal:

export SHELFCAST_KAFKA_BOOTSTRAP_SERVERS={stack.bootstrap_servers} \
SHELFCAST_REDIS_URL={stack.redis_url} SHELFCAST_TRITON_URL={stack.triton_url}

Ctrl-C stops all three."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@click.command("up")
@click.option("--kafka-port", default=0, help="Port of the broker.  [default: a free one]")
@click.option("--redis-port", default=0, help="Port of Redis.  [default: a free one]")
@click.option("--triton-port", default=0, help="Port of Triton's gRPC.  [default: a free one]")
@click.option(
    "--model-repository",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=MODEL_REPOSITORY,
    help="What Triton serves.  [default: shelfcast's own models]",
)
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where Redis keeps its data, and the logs go.  [default: a temporary one]",
)
def command(kafka_port: int, redis_port: int, triton_port: int, model_repository: Path, directory: Path | None) -> None:
    """Start a Kafka-compatible broker, Redis and Triton on this machine and keep them until Ctrl-C."""
    stack = LocalStack(
        directory,
        model_repository=model_repository,
        kafka_port=kafka_port,
        redis_port=redis_port,
        triton_port=triton_port,
    )
    try:
        up(stack)
    except LocalStackError as error:
        raise click.ClickException(str(error)) from error
