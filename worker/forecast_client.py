"""ForecastClient: one long-lived gRPC connection to Triton, one request a batch, a deadline, few requests in flight."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, NamedTuple

import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from forecaster.contract import INPUTS, OUTPUTS, features_hash
from forecaster.inputs import ModelInputs, ModelOutputs
from worker import metrics
from worker.errors import ForecastUnavailableError, ModelError

logger = logging.getLogger(__name__)

# gRPC waits up to two minutes between attempts by default; a model server that is back should be used at once.
_CHANNEL = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000)]
_MOST_IN_FLIGHT = 2  # one being computed, one on its way: more would only wait in Triton's queue
_RETRY_S = 0.05
_PROBE_EVERY_S = 0.5  # while Triton is away, one batch in this time tries it; the rest go to the baseline at once
# The request is the caller's fault: trying again cannot help.
_FAULTS = ("INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED")


class ForecastReply(NamedTuple):
    """Outputs of a model, and which version of it made them."""

    outputs: ModelOutputs
    model_version: str


class ForecastClient:
    """Created inside a running event loop; `close` when done."""

    def __init__(
        self, url: str, *, model_name: str, model_version: str = "", timeout_s: float = 5.0, tls: bool = False
    ) -> None:
        self._client = triton.InferenceServerClient(url, ssl=tls, channel_args=_CHANNEL)
        self._url = url
        self.model_name = model_name
        self._model_version = model_version
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(_MOST_IN_FLIGHT)
        self._away = False
        self._outage_since: float | None = None  # as the log has it: from a failure until a forecast succeeds again
        self._next_probe = 0.0

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    @property
    def is_away(self) -> bool:
        """Whether the last request found no Triton, and it has not been found ready since."""
        return self._away

    async def probe(self) -> None:
        """While Triton is away, ask now and then whether the model is ready again. Otherwise returns at once."""
        now = time.monotonic()
        if not self._away or now < self._next_probe:
            return
        self._next_probe = now + _PROBE_EVERY_S
        try:
            ready = await self._client.is_model_ready(
                self.model_name, self._model_version, client_timeout=_PROBE_EVERY_S
            )
        except InferenceServerException:
            return
        if ready:
            self._away = False  # worth a try; a server that has just come back may still be too slow

    async def check_model(self) -> None:
        """Raise ModelError when the served model is not made for this worker's features and tensors."""
        try:
            config = (await self._client.get_model_config(self.model_name, self._model_version, as_json=True))["config"]
        except InferenceServerException as error:
            if _is_fault(error):
                raise ModelError(
                    f"Triton at {self._url} does not serve model {self.model_name!r}: point SHELFCAST_MODEL_NAME at a "
                    f"loaded model, or put triton_models/ into its repository ({error.message()})"
                ) from error
            raise ForecastUnavailableError(
                f"Triton at {self._url} does not answer ({error.message()}): check SHELFCAST_TRITON_URL and "
                "that the server runs"
            ) from error
        served = config.get("parameters", {}).get("features_hash", {}).get("string_value", "none")
        if served != features_hash():
            raise ModelError(
                f"model {self.model_name!r} was trained on features {served}, this worker makes {features_hash()}: "
                "train and export it with this version of shelfcast, or run the version that it was made with"
            )

    @property
    def model_version(self) -> str:
        """The version asked for; empty = the newest loaded."""
        return self._model_version

    def use(self, model_version: str) -> None:
        """Ask for another version from the next request on; requests in flight end as they began."""
        self._model_version = model_version

    async def is_ready(self, model_version: str) -> bool:
        """Whether Triton answers and serves that version now."""
        try:
            ready: bool = await self._client.is_model_ready(
                self.model_name, model_version, client_timeout=self._timeout_s
            )
        except InferenceServerException:
            return False
        return ready

    async def load(self, timeout_s: float) -> None:
        """Have Triton load what is new in the model's folder. It may load the other versions anew, each beside the old
        one, which goes on answering until then; for as long it needs the memory of both.

        Raises:
            ModelError: Triton can't, for the reason it gives, or takes no such orders.
            ForecastUnavailableError: it does not answer.
        """
        try:
            await self._client.load_model(self.model_name, client_timeout=timeout_s)
        except InferenceServerException as error:
            if "UNAVAILABLE" in str(error.status()) and "explicit" not in str(error.message()):
                raise ForecastUnavailableError(f"Triton at {self._url}: {error.message()}") from error
            raise ModelError(
                f"Triton at {self._url} does not load {self.model_name!r} ({error.message()}); it takes such orders "
                "only when started with --model-control-mode=explicit"
            ) from error

    async def versions(self) -> dict[str, str]:
        """State by number of each version that Triton knows, `READY` when it is served; ascending.

        Raises:
            ForecastUnavailableError: Triton does not answer.
        """
        try:
            index = await self._client.get_model_repository_index(client_timeout=self._timeout_s)
        except InferenceServerException as error:
            raise ForecastUnavailableError(f"Triton at {self._url} does not answer ({error.message()})") from error
        own = {m.version: m.state or m.reason for m in index.models if m.name == self.model_name and m.version}
        return dict(sorted(own.items(), key=lambda entry: int(entry[0])))

    async def forecast(self, inputs: ModelInputs, *, wait: bool = False) -> ForecastReply:
        """Forecast all items in one request.

        Args:
            inputs: tensors with at most contract.MAX_BATCH_SIZE items.
            wait: try again until Triton answers (a replay's forecasts must not depend on outages).

        Raises:
            ForecastUnavailableError: no answer within the deadline, or Triton was away a moment ago.
            ModelError: Triton refused the request itself.
        """
        while True:
            try:
                return await self._forecast_once(inputs, probe=wait)
            except ForecastUnavailableError:
                if not wait:
                    raise
                await asyncio.sleep(_PROBE_EVERY_S)

    async def _forecast_once(self, inputs: ModelInputs, *, probe: bool) -> ForecastReply:
        now = time.monotonic()
        if self._away and not probe and now < self._next_probe:
            raise ForecastUnavailableError(f"Triton at {self._url} is away")
        self._next_probe = now + _PROBE_EVERY_S
        deadline = now + self._timeout_s
        tensors, wanted = _to_triton(inputs), [triton.InferRequestedOutput(t.name) for t in OUTPUTS]
        async with self._slots:
            while True:
                left_s = deadline - time.monotonic()
                try:
                    with metrics.MODEL_SECONDS.time():
                        result = await self._client.infer(
                            self.model_name,
                            tensors,
                            model_version=self._model_version,
                            outputs=wanted,
                            client_timeout=max(left_s, 0.001),
                        )
                except InferenceServerException as error:
                    self._raise_or_retry(error, left_s)
                    await asyncio.sleep(_RETRY_S)
                    continue
                self._note_back()
                return _from_triton(result)

    def _raise_or_retry(self, error: InferenceServerException, left_s: float) -> None:
        if _is_fault(error):
            raise ModelError(f"Triton refused a request to {self.model_name!r}: {error.message()}") from error
        if self._away or left_s <= _RETRY_S:
            self._away = True
            if self._outage_since is None:
                self._outage_since = time.monotonic()
                logger.error("Triton at %s is away (%s): a baseline stands in", self._url, error.message())
            raise ForecastUnavailableError(f"Triton at {self._url}: {error.message()}") from error

    def _note_back(self) -> None:
        self._away = False
        if self._outage_since is not None:
            logger.warning("Triton is back after %.1f s", time.monotonic() - self._outage_since)
            self._outage_since = None


def _is_fault(error: InferenceServerException) -> bool:
    return any(fault in str(error.status()) for fault in _FAULTS)


def _to_triton(inputs: ModelInputs) -> list[Any]:
    tensors = []
    for tensor, array in zip(INPUTS, inputs, strict=True):
        wanted = triton.InferInput(tensor.name, list(array.shape), tensor.triton_type.removeprefix("TYPE_"))
        wanted.set_data_from_numpy(np.ascontiguousarray(array))
        tensors.append(wanted)
    return tensors


def _from_triton(result: Any) -> ForecastReply:
    arrays = {tensor.name: result.as_numpy(tensor.name) for tensor in OUTPUTS}
    return ForecastReply(ModelOutputs(**arrays), result.get_response().model_version)
