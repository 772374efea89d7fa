"""Promoter: has workers use the challenger once the rule of promotion says so; the whole shop once.

Any live worker looks now and then. What it decides is written, together with the new choice of version, by one script
that refuses where anybody has decided or chosen something meanwhile. Then it is told: by an alert of kind `promotion`
and in the log. A worker that is killed in between is followed by one that tells it, with the same alert_id.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable
from typing import Literal, NamedTuple, Protocol

import msgspec

from feature_store.model_choices import Choices, PromotionState
from worker import metrics
from worker.aside import Message
from worker.comparison import Demands
from worker.promotion import LOOKS, Rows, verdict
from worker.schemas import Alert

logger = logging.getLogger(__name__)

EVERY_S = 60.0
_DAY_MS = 86_400_000
_KIND = "promotion"


class Store(Protocol):
    """What is asked of the store's choices."""

    async def read(self, model_name: str) -> Choices: ...
    async def decide(self, model_name: str, before: Choices, after: PromotionState, version: str = "") -> bool: ...


class PromotionRules(NamedTuple):
    """by: this worker's name. demands: of each look."""

    model_name: str
    demands: Demands
    by: str


class Shop(NamedTuple):
    """How the promoter sees and speaks.

    versions: the version that is published and the one that is compared, "" = none. rows: sums of all partitions, by
    frequency. is_ready: whether Triton serves a version. tell: send to the topic of alerts. now_ms: the time.
    """

    versions: Callable[[Choices], Awaitable[tuple[str, str]]]
    rows: Callable[[], Awaitable[Rows]]
    is_ready: Callable[[str], Awaitable[bool]]
    tell: Callable[[list[Message]], Awaitable[None]]
    now_ms: Callable[[], int]


class Promoter:
    """One of each worker; see the module."""

    def __init__(self, rules: PromotionRules, store: Store, shop: Shop) -> None:
        self._rules, self._store, self._shop = rules, store, shop

    async def look(self) -> None:
        """1. Tell what a worker before has decided and not told. 2. Judge. 3. Decide, for all. 4. Tell."""
        name = self._rules.model_name
        before = await self._store.read(name)
        if before.promotion is not None and before.promotion.outcome and not before.promotion.told:  # 1
            await self._tell(before, before.promotion)
            return
        present, challenger = versions = await self._shop.versions(before)
        if not challenger or not present or present == challenger:
            return
        found = verdict(before.promotion, await self._shop.rows(), versions, self._rules.demands)  # 2
        if found is None:
            return
        state = msgspec.structs.replace(found.state, by=self._rules.by)
        if state.outcome and not await self._shop.is_ready(challenger):
            logger.warning("version %s of %s is to be promoted and is not served now", challenger, name)
            return
        if not await self._store.decide(name, before, state, challenger if state.outcome else ""):  # 3
            return
        if found.against:
            logger.info(
                "version %s is not promoted at look %d of %d: %s",
                *(challenger, state.looks, LOOKS, "; ".join(found.against)),
            )
        if state.outcome:  # 4
            metrics.PROMOTIONS.inc()
            logger.warning("version %s of %s is promoted in place of %s", challenger, name, present)
            await self._tell(await self._store.read(name), state)

    async def _tell(self, before: Choices, state: PromotionState) -> None:
        await self._shop.tell([self._message(state, episode) for episode in ("open", "close")])
        await self._store.decide(self._rules.model_name, before, msgspec.structs.replace(state, told=True))

    def _message(self, state: PromotionState, episode: Literal["open", "close"]) -> Message:
        """One episode that is over at once: nothing is to be waited for."""
        name, now_ms = self._rules.model_name, self._shop.now_ms()
        identity = msgspec.json.encode([name, state.present, state.challenger, state.since])
        alert = Alert(
            alert_id=hashlib.blake2b(identity, digest_size=12).hexdigest(),
            episode_state=episode,
            sequence=1 if episode == "open" else 2,
            kind=_KIND,
            event_time=now_ms,
            opened_at=now_ms,
            window_start=(state.since + 1) * _DAY_MS,
            subject=name,
            channel="model_version",
            observed=float(state.challenger) if state.challenger.isdecimal() else 0.0,
            expected=float(state.present) if state.present.isdecimal() else 0.0,
            tail_probability=self._rules.demands.significance,
            severity="minor",
            reason=f"version {state.challenger} is used in place of {state.present}: better at look {state.looks} of "
            f"{LOOKS}; `shelfcast model use {state.present}` takes it back",
        )
        return Message(f"{name}|{_KIND}".encode(), msgspec.json.encode(alert))
