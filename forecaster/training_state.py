"""All that the next training step depends on, apart from the data: in memory, and as a checkpoint's tensors and
numbers."""

from __future__ import annotations

import math
from typing import Any, cast

from torch import Tensor
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from forecaster.checkpoints import Checkpoint, CheckpointError, flatten, group
from forecaster.models.patch_transformer import PatchTransformer


class TrainingState:
    """Weights, their running average, the best average so far, the optimizer, and where training stands.

    There is no generator's state: batches and every step's generator are functions of (seed, step).
    """

    def __init__(self, model: PatchTransformer, optimizer: AdamW, averaging: float) -> None:
        """`averaging`: part of the average that a step keeps."""
        self.model = model
        self.optimizer = optimizer
        self._averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(averaging))  # type: ignore[no-untyped-call]
        self.step = 0
        self.seconds = 0.0
        self.best_score = math.inf
        self.best_step = 0
        self.best_scores: dict[str, float] = {}  # by freq
        self.without_gain = 0  # validations since the best one
        self._best = _copied(model.state_dict())

    @property
    def averaged(self) -> PatchTransformer:
        """The model with the averaged weights: what is judged and kept."""
        return cast(PatchTransformer, self._averaged.module)

    def average(self) -> None:
        """Take the weights after a step into the average."""
        self._averaged.update_parameters(self.model)

    def judge(self, score: float, scores: dict[str, float]) -> bool:
        """Note a validation of the averaged weights; True where they are the best so far. A NaN never is."""
        self.without_gain += 1
        if not score < self.best_score:
            return False
        self.best_score, self.best_step, self.best_scores = score, self.step, scores
        self.without_gain = 0
        self._best = _copied(self.averaged.state_dict())
        return True

    def take_best(self) -> None:
        """Give the model the best averaged weights; the last ones where nothing was judged."""
        self.model.load_state_dict(self._best if self.best_step else self.averaged.state_dict())
        self.model.eval()

    def checkpoint(self) -> Checkpoint:
        """A copy on disk of this goes on as if nothing had happened, bit for bit on the same kind of CPU."""
        optimizer = {
            f"{index}.{name}": value
            for index, values in self.optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        groups = {
            "weights": self.model.state_dict(),
            "averaged": self._averaged.state_dict(),
            "best": self._best,
            "optimizer": optimizer,
        }
        facts = {
            "step": self.step,
            "seconds": self.seconds,
            # JSON has no infinity.
            "best_score": self.best_score if self.best_step else None,
            "best_step": self.best_step,
            "best_scores": self.best_scores,
            "without_gain": self.without_gain,
        }
        return Checkpoint(flatten(groups), facts)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint.

        Raises:
            CheckpointError: it is of another model.
        """
        tensors, facts = checkpoint
        try:
            self.model.load_state_dict(group(tensors, "weights"))
            self._averaged.load_state_dict(group(tensors, "averaged"))
            self._best = self._on_device(group(tensors, "best"))
            self.optimizer.load_state_dict(self._optimizer_state(group(tensors, "optimizer")))
            self.step, self.seconds = int(facts["step"]), float(facts["seconds"])
            self.best_score = math.inf if facts["best_score"] is None else float(facts["best_score"])
            self.best_step, self.best_scores = int(facts["best_step"]), dict(facts["best_scores"])
            self.without_gain = int(facts["without_gain"])
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint is not of this model and plan: {error}") from error

    def _on_device(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.model.device) for name, value in tensors.items()}

    def _optimizer_state(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        return {"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]}


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}
