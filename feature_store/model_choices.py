"""ModelChoices: which versions of a model the workers of a namespace are to use. Handed out by FeatureStore.

All of it is one hash, `{ns}:model_versions`, by field:

    MODEL              the version that is published; absent = the newest that is served
    challenger MODEL   the version that is compared with it unseen; absent = that of the setting, if any
    promotion MODEL    JSON of PromotionState: what the rule of promotion has decided
"""

from __future__ import annotations

import msgspec

from feature_store.layout import model_versions_key
from feature_store.redis_calls import RedisCalls, flat


class PromotionState(msgspec.Struct, frozen=True, omit_defaults=True):
    """present, challenger: the versions compared. since: the last day, since 1970-01-01, that was scored when the rule
    first saw them: later ones count. looks: how often it has judged. outcome: "" or "promoted". told: whether that has
    been published. by: which worker has written it."""

    present: str
    challenger: str
    since: int
    looks: int = 0
    outcome: str = ""
    told: bool = False
    by: str = ""


class Choices(msgspec.Struct, frozen=True):
    """As they stand. promotion_text: the state as it is stored."""

    version: str
    challenger: str
    promotion: PromotionState | None
    promotion_text: str


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(PromotionState).decode


class ModelChoices:
    """Waits for Redis while it is away, as FeatureStore does."""

    def __init__(self, calls: RedisCalls, namespace: str) -> None:
        self._calls, self._key = calls, model_versions_key(namespace)

    async def read(self, model_name: str) -> Choices:
        """All of a model."""
        names = [model_name, _challenger(model_name), _promotion(model_name)]
        found = await self._calls.when_back(lambda: self._calls.redis.hmget(self._key, names))
        version, challenger, promotion = ((value or b"").decode() for value in flat(found))
        return Choices(version, challenger, _decode(promotion) if promotion else None, promotion)

    async def wanted_version(self, model_name: str) -> str:
        """The version that workers are to use, "" when none was chosen."""
        return (await self.read(model_name)).version

    async def challenger_version(self, model_name: str) -> str:
        """The one that is to be compared with it, "" when none was chosen."""
        return (await self.read(model_name)).challenger

    async def want_version(self, model_name: str, version: str) -> None:
        """Choose it, for all workers of the namespace; "" = none."""
        await self._write(model_name, version)

    async def want_challenger(self, model_name: str, version: str) -> None:
        """Choose the challenger; "" = none. What the rule of promotion has seen of one before is forgotten."""
        redis = self._calls.redis
        await self._calls.when_back(lambda: redis.hdel(self._key, _promotion(model_name)))
        await self._write(_challenger(model_name), version)

    async def _write(self, field: str, version: str) -> None:
        redis = self._calls.redis
        if version:
            await self._calls.when_back(lambda: redis.hset(self._key, field, version))
        else:
            await self._calls.when_back(lambda: redis.hdel(self._key, field))

    async def decide(self, model_name: str, before: Choices, after: PromotionState, version: str = "") -> bool:
        """Write what the rule has decided, and have workers use `version` with it, if nobody has written or chosen
        anything since `before` was read. Returns whether it was written."""
        arguments = [model_name, before.promotion_text, _encode(after), before.version, version]
        return bool(await self._calls.run("promotion", [self._key], arguments))


def _challenger(model_name: str) -> str:
    return f"challenger {model_name}"


def _promotion(model_name: str) -> str:
    return f"promotion {model_name}"
