"""Training: windows of Online Retail II and of invented shops, through the worker's own functions, into Triton's
folder."""

from __future__ import annotations

import datetime as dt
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import click
import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from feature_store.calendar_time import ShopCalendar, UnknownTimeZoneError, bucket_of, bucket_start_ms
from feature_store.features import FEATURE_INDEX
from feature_store.recording_files import Recording, RecordingError
from forecaster import online_retail, synthetic
from forecaster.contract import MODEL_NAME
from forecaster.dataset import History, Sampling, Window, draw, prefetched, stack
from forecaster.export import export
from forecaster.models.loss import Loss, loss
from forecaster.models.patch_transformer import PatchTransformer, PatchTransformerConfig, parameter_count
from forecaster.recorded import last_time_ms, recorded_events, split_by_zone

_DAY_MS = 86_400_000
_UNITS = FEATURE_INDEX["units"]
_FREQS = ("1d", "1h")
_SHARE_DAILY = 0.6
_VALIDATION_DAYS = 28
# The first days of a record hold too little past to learn from.
_BURN_IN_DAYS = 5
_LEAST_DAYS = 4 * _BURN_IN_DAYS  # of a recording before its validation weeks


@dataclass(frozen=True)
class Source:
    """A history to draw windows from: `share` of the windows, cutoffs up to `last_ms`."""

    history: History
    share: float
    last_ms: int


@dataclass(frozen=True)
class Plan:
    """How long and how to train. `minutes` ends a run that is slower than thought; the schedule then ends with it."""

    steps: int = 6000
    minutes: float = math.inf
    learning_rate: float = 2e-3
    windows_per_batch: int = 8
    items_per_window: int = 20
    validate_every: int = 250
    patience: int = 8  # validations without improvement


def draw_batch(sources: Sequence[Source], plan: Plan, rng: np.random.Generator, freq: str | None = None) -> Window:
    """One batch of one freq: several cutoffs, of sources by their shares."""
    freq = freq or _FREQS[int(rng.random() >= _SHARE_DAILY)]
    shares = np.array([source.share for source in sources])
    windows: list[Window] = []
    while len(windows) < plan.windows_per_batch:
        source = sources[rng.choice(len(sources), p=shares / shares.sum())]
        first_ms = source.history.start_ms + _BURN_IN_DAYS * _DAY_MS
        window = draw(source.history, freq, Sampling(first_ms, source.last_ms, plan.items_per_window), rng)
        if window is not None:
            windows.append(window)
    return stack(windows)


def loss_of(model: PatchTransformer, window: Window) -> Loss:
    """Losses of a batch of windows."""
    tensors = [torch.from_numpy(column) for column in window.inputs]
    running = torch.from_numpy(window.inputs.running[:, _UNITS])
    return loss(
        model.scaled(*tensors), running, torch.from_numpy(window.units), torch.from_numpy(window.cumulative_units)
    )


def validation_loss(model: PatchTransformer, windows: Sequence[Window]) -> float:
    """Mean total loss over fixed windows."""
    model.eval()
    with torch.inference_mode():
        total = sum(float(loss_of(model, window).total) for window in windows)
    model.train()
    return total / len(windows)


def fit(
    model: PatchTransformer,
    batches: Callable[[], Window],
    validation: Sequence[Window],
    plan: Plan,
    quiet: bool = False,
) -> float:
    """Train `model` in place; it ends as the averaged weights that were best on the validation windows.

    Returns the best validation loss. A KeyboardInterrupt ends training early and is not passed on.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, weight_decay=0.01)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.995))  # type: ignore[no-untyped-call]
    smooth = cast(PatchTransformer, averaged.module)
    best = (math.inf, {name: value.clone() for name, value in model.state_dict().items()})
    without_gain, started = 0, time.monotonic()
    progress = tqdm(total=plan.steps, unit="step", disable=quiet, dynamic_ncols=True)
    windows = prefetched(batches)
    try:
        for step in itertools.count(1):
            done = max(step / plan.steps, (time.monotonic() - started) / (plan.minutes * 60))
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate * _schedule(done)
            losses = loss_of(model, next(windows))
            optimizer.zero_grad()
            _backward(losses.total)
            # Apart, so that one wholesale order in the mean's loss does not still the quantiles' step.
            torch.nn.utils.clip_grad_norm_(model.mean_head.parameters(), 1.0)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.5)
            optimizer.step()
            averaged.update_parameters(model)
            progress.update()
            if step % plan.validate_every == 0 or done >= 1:
                score = validation_loss(smooth, validation)
                progress.set_postfix(validation=f"{score:.4f}", best=f"{min(score, best[0]):.4f}")
                without_gain += 1
                if score < best[0]:
                    best = (score, {name: value.clone() for name, value in smooth.state_dict().items()})
                    without_gain = 0
            if done >= 1 or without_gain >= plan.patience:
                break
    except KeyboardInterrupt:
        progress.write("interrupted: keeping the best weights so far")
    finally:
        windows.close()
        progress.close()
    model.load_state_dict(best[1])
    model.eval()
    return best[0]


def _backward(total: Tensor) -> None:
    total.backward()  # type: ignore[no-untyped-call]


def _schedule(done: float) -> float:
    """Share of the learning rate: a short rise, then half a cosine down to nearly nothing."""
    rise = 0.05
    if done < rise:
        return max(done / rise, 0.02)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min((done - rise) / (1 - rise), 1.0)))


def retail_sources(path: Path, until: dt.date, seed: int) -> tuple[list[Source], History]:
    """Online Retail II up to the local date `until` (inclusive), as it is and with invented clicks; and the history for
    validation, whose last weeks are not in the sources."""
    until_ms = online_retail.day_start_ms(until + dt.timedelta(days=1))
    end_ms = online_retail.day_start_ms(until + dt.timedelta(days=1 - _VALIDATION_DAYS))
    lines = online_retail.read(path).between(0, until_ms)
    calendar, closed = ShopCalendar(online_retail.TIME_ZONE), online_retail.closures()
    training = lines.between(0, end_ms).batch()
    clicked = synthetic.invent_clicks(training, seed)
    sources = [
        Source(History(training, calendar, end_ms, global_entries=closed), 0.3, end_ms),
        # The shop's holidays unannounced: a live shop may not send a calendar.
        Source(History(training, calendar, end_ms), 0.25, end_ms),
        Source(History(clicked, calendar, end_ms, global_entries=closed), 0.2, end_ms),
    ]
    return sources, History(lines.batch(), calendar, until_ms)


def synthetic_source(items: int, days: int, seed: int, share: float) -> Source:
    """An invented shop."""
    shop = synthetic.generate(items, days, seed)
    history = History(shop.batch, ShopCalendar(shop.time_zone), shop.end_ms, shop.products, shop.global_entries)
    return Source(history, share, shop.end_ms)


def recorded_sources(
    recording: Recording, calendar: ShopCalendar, currency: str = ""
) -> tuple[list[Source], list[History]]:
    """A recording, one source for each time zone; and the histories for validation, whose last weeks are not in the
    sources. No histories where it is too short to be parted in two.

    Raises:
        RecordingError: it holds no orders, is too short, or is damaged.
    """
    parts = split_by_zone(recorded_events(recording, currency), calendar)
    lines = sum(len(events) for _, events in parts)
    sources, held_out = [], []
    for zone, events in parts:
        own = ShopCalendar(zone)
        last_day = bucket_of("1d", np.array([last_time_ms(events)]), zone)
        days = np.concatenate([last_day + 1, last_day + 1 - _VALIDATION_DAYS])
        until_ms, split_ms = bucket_start_ms("1d", days, zone).tolist()
        first_ms = int(events.event_time_ms.min())
        if until_ms - first_ms < _LEAST_DAYS * _DAY_MS:
            raise RecordingError(f"{recording.path} is too short to learn from: {_LEAST_DAYS} days are the least")
        past = events.take(events.event_time_ms < split_ms)
        share = len(events) / lines
        if split_ms - first_ms >= _LEAST_DAYS * _DAY_MS:
            sources.append(Source(History(past, own, split_ms), share, split_ms))
            held_out.append(History(events, own, until_ms))
        else:
            sources.append(Source(History(events, own, until_ms), share, until_ms))
    return sources, held_out


def _items_at_once(history: History) -> int:
    """So many of a small shop's items are nearly always known."""
    return max(len(history.item_ids) // 3, 1)


def validation_windows(history: History, seed: int, count: int = 8) -> list[Window]:
    """Fixed windows whose cutoffs lie in the history's last weeks, as many daily as hourly."""
    rng = np.random.default_rng(seed + 1)
    plan = Plan(windows_per_batch=4, items_per_window=min(32, _items_at_once(history)))
    last_ms = history.end_ms - _DAY_MS
    first_ms = history.end_ms - _VALIDATION_DAYS * _DAY_MS
    windows = []
    for freq in _FREQS:
        for _ in range(count):
            drawn = [draw(history, freq, Sampling(first_ms, last_ms, plan.items_per_window), rng) for _ in range(8)]
            found = [window for window in drawn if window is not None]
            windows += [stack(found)] if found else []
    return windows


@click.command("train")
@click.option(
    "--online-retail",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Online Retail II as Parquet. Without it training is on invented shops alone.",
)
@click.option(
    "--recording",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A recording of your shop; its last four weeks choose the best weights.",
)
@click.option("--time-zone", default="UTC", show_default=True, help="Of the recorded shop, an IANA name.")
@click.option(
    "--until",
    type=click.DateTime(["%Y-%m-%d"]),
    default="2011-02-27",
    show_default=True,
    help="Last local date of Online Retail II that may be seen; its last four weeks choose the best weights.",
)
@click.option("--synthetic", "synthetic_items", default=600, show_default=True, help="Items of invented shops.")
@click.option("--steps", default=6000, show_default=True, help="Batches to train on.")
@click.option("--minutes", default=20.0, show_default=True, help="Stop after this long, whatever --steps says.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("triton_models") / MODEL_NAME,
    show_default=True,
    help="Folder of the model in Triton's repository.",
)
@click.option("--seed", default=0, show_default=True, help="Of everything random.")
def command(  # noqa: PLR0913 - one parameter an option
    online_retail: Path | None,
    recording: Path | None,
    time_zone: str,
    until: dt.datetime,
    synthetic_items: int,
    steps: int,
    minutes: float,
    output: Path,
    seed: int,
) -> None:
    """Train the demand forecaster and put it where Triton serves it from.

    Ctrl-C ends training early and keeps the best weights so far.
    """
    sources: list[Source] = []
    validation: list[Window] = []
    if online_retail is not None:
        sources, held_out = retail_sources(online_retail, until.date(), seed)
        validation = validation_windows(held_out, seed)
    if recording is not None:
        try:
            own, held_out_parts = recorded_sources(Recording.open(recording), ShopCalendar(time_zone))
        except (RecordingError, UnknownTimeZoneError) as error:
            raise click.UsageError(str(error)) from error
        sources += own
        validation += [window for part in held_out_parts for window in validation_windows(part, seed)]
    shops = max(1, round(synthetic_items / 150)) if synthetic_items else 0
    for shop in range(shops):
        sources.append(synthetic_source(synthetic_items // shops, 420, seed + shop, 0.25 / shops))
    if not sources:
        raise click.UsageError("nothing to train on: give --recording, --online-retail or --synthetic above 0")
    if not validation:
        validation = validation_windows(synthetic_source(100, 300, seed + 1000, 1.0).history, seed, count=2)
    items = min(Plan.items_per_window, *(_items_at_once(source.history) for source in sources))
    plan = Plan(steps=steps, minutes=minutes, items_per_window=items)
    torch.manual_seed(seed)
    model = PatchTransformer(PatchTransformerConfig())
    model.train()
    click.echo(f"{parameter_count(model):,} parameters, {len(sources)} sources")
    rng = np.random.default_rng(seed)
    score = fit(model, lambda: draw_batch(sources, plan, rng), validation, plan)
    click.echo(f"validation loss {score:.4f}; weights in {export(model, output)}")
