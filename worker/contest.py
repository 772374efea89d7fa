"""Contest: the part of a worker that compares a challenger with the published version, and follows what was chosen."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence

from feature_store.model_choices import Choices
from feature_store.store import FeatureStore
from forecaster.inputs import ModelInputs
from worker.accuracy import merged_rows
from worker.aside import Message
from worker.challenger import Challenger, Shadowed
from worker.comparison import Demands
from worker.errors import ForecastUnavailableError
from worker.forecast_client import ForecastClient, ForecastReply
from worker.model import used_version
from worker.promoter import EVERY_S as PROMOTE_S
from worker.promoter import Promoter, PromotionRules, Shop
from worker.promotion import Rows
from worker.rules import challenge_rules
from worker.settings import Settings
from worker.version_follower import EVERY_S, VersionFollower

logger = logging.getLogger(__name__)

_WORK_S = 0.02
Send = Callable[[str, int, Sequence[Message]], Awaitable[None]]
Step = tuple[float, Callable[[], Awaitable[None]]]


class Contest:
    """Live it follows `shelfcast model use` and `shelfcast model challenge`, where settings name no versions. In a
    replay, whose forecasts are those of its settings, it follows nothing and promotes nothing."""

    def __init__(self, settings: Settings, store: FeatureStore, client: ForecastClient, send: Send) -> None:
        self._settings, self._store, self._client, self._send = settings, store, client, send
        self._replaying = settings.clock == "event"
        # A client of its own: what the challenger waits for, the published version does not.
        self._other = ForecastClient(
            settings.triton_url,
            model_name=settings.model_name,
            model_version=settings.challenger_version,
            timeout_s=settings.triton_timeout_s,
            tls=settings.triton_tls,
        )
        self._challenger = Challenger(
            challenge_rules(settings), self._infer, store.accuracy(), is_queued=not self._replaying
        )
        self._follower = VersionFollower(store.choices(), client)
        rules = PromotionRules(
            settings.model_name,
            Demands(settings.promote_significance, settings.promote_days, settings.promote_gain),
            secrets.token_hex(8),
        )
        shop = Shop(self._versions, self._rows, client.is_ready, self._tell, lambda: time.time_ns() // 1_000_000)
        self._promoter = Promoter(rules, store.choices(), shop)

    async def shadow(self, published: Sequence[Shadowed]) -> None:
        """Hear of forecasts that have been published."""
        await self._challenger.shadow(published)

    async def begin(self) -> list[Step]:
        """Take over what is chosen. Returns what is to be done again and again, with its pause in seconds."""
        settings = self._settings
        if self._replaying:
            return []
        steps: list[Step] = [(_WORK_S, self._challenger.work)]
        if not settings.model_version:
            await self._follower.follow()
            steps.append((EVERY_S, self._follower.follow))
        if not settings.challenger_version:
            await self._follow_challenger()
            steps.append((EVERY_S, self._follow_challenger))
        if settings.promote == "when_better":
            steps.append((PROMOTE_S, self._promote))
        return steps

    async def close(self) -> None:
        """Close the connection."""
        await self._other.close()

    async def _infer(self, inputs: ModelInputs) -> ForecastReply:
        return await self._other.forecast(inputs, wait=self._replaying)

    async def _follow_challenger(self) -> None:
        wanted = await self._store.choices().challenger_version(self._settings.model_name)
        if wanted != self._challenger.version:
            logger.warning("challenger: %s instead of %s", wanted or "none", self._challenger.version or "none")
            self._other.use(wanted)
            self._challenger.use(wanted)

    async def _promote(self) -> None:
        try:
            await self._promoter.look()
        except ForecastUnavailableError as error:  # while Triton is away nothing is decided
            logger.debug("no look at the challenger: %s", error)

    async def _versions(self, choices: Choices) -> tuple[str, str]:
        present = used_version(self._settings, await self._client.versions(), choices.version)
        return present, self._settings.challenger_version or choices.challenger

    async def _rows(self) -> Rows:
        return await merged_rows(self._store, self._settings, self._settings.forecast_freqs)

    async def _tell(self, messages: list[Message]) -> None:
        await self._send(self._settings.topic_alerts, 0, messages)
