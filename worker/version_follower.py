"""VersionFollower: has a live worker ask Triton for the version that `shelfcast model use` has chosen."""

from __future__ import annotations

import logging
from typing import Protocol

logger = logging.getLogger(__name__)

EVERY_S = 2.0  # how often the choice is looked at


class Choices(Protocol):
    """What is asked of the feature store."""

    async def wanted_version(self, model_name: str) -> str: ...


class Client(Protocol):
    """What is asked of the forecast client."""

    model_name: str

    @property
    def model_version(self) -> str: ...
    async def is_ready(self, model_version: str) -> bool: ...
    def use(self, model_version: str) -> None: ...


class VersionFollower:
    """`choices` say which version is wanted, `client` is told."""

    def __init__(self, choices: Choices, client: Client) -> None:
        self._choices = choices
        self._client = client

    async def follow(self) -> None:
        """Take the chosen version over, if it is another and is served. Until it is, the present one goes on. May wait
        for Redis."""
        wanted = await self._choices.wanted_version(self._client.model_name)
        present = self._client.model_version
        if wanted == present:
            return
        if wanted and not await self._client.is_ready(wanted):
            logger.warning("version %s of %s is chosen and not served now", wanted, self._client.model_name)
            return
        self._client.use(wanted)
        logger.warning("model version: %s instead of %s", wanted or "the newest", present or "the newest")
