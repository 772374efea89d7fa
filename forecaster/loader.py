"""Batches as tensors, drawn ahead of training by processes of their own."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from forecaster.batches import Batches
from forecaster.dataset import Window

Tensors = tuple[Tensor, ...]  # the contract's inputs in their order, then units, then cumulative units


def tensors_of(window: Window) -> Tensors:
    """A window's arrays as tensors that share their memory."""
    return tuple(torch.from_numpy(column) for column in (*window.inputs, window.units, window.cumulative_units))


class _Steps(Dataset[Tensors]):
    """The batch of step n as element n."""

    def __init__(self, batches: Batches, rank: int) -> None:
        self._batches = batches
        self._rank = rank

    def __getitem__(self, step: int) -> Tensors:
        return tensors_of(self._batches.draw(step, self._rank))


def load(batches: Batches, steps: range, rank: int = 0, *, workers: int = 1, pin: bool = False) -> Iterator[Tensors]:
    """The batches of `steps` in order, whatever the number of `workers`; 0 draws each when it is asked for.

    `pin`: into memory that a GPU can fetch by itself. An exception of a worker is raised here.
    """
    return iter(
        DataLoader(
            _Steps(batches, rank),
            sampler=steps,
            batch_size=None,  # each element is a batch
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            worker_init_fn=_leave_signals_to_the_parent,
            pin_memory=pin,
        )
    )


def _leave_signals_to_the_parent(_: int) -> None:
    # Ctrl-C reaches every process of the terminal, and SIGTERM often the whole group: a worker that died of it would
    # take the step in hand with it. Workers end with their parent.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
