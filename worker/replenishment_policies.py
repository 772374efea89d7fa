"""The policies file of `shelfcast replenish`: TOML, by default, category, product and item, the later winning.

    [default]
    policy = "order_up_to"
    review_period = "1d"
    lead_time = { "2d" = 0.7, "5d" = 0.3 }
    service_level = 0.95

    [category.dairy]
    policy = "newsvendor"
    underage_cost = 2.0
    overage_cost = 0.5

    [item."mug@york"]
    pack = 12

Every key is a field of `Section`; docs/replenishment.md has them as a table.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from forecaster.contract import WINDOWS
from forecaster.lead_time import LeadTime
from forecaster.ordering import critical_ratio
from worker.errors import SettingsError

_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
# Ways to say how much is enough: who says it anew takes back what a more general section said.
_AIMS = ("service_level", "fill_rate", "underage_cost", "overage_cost")
_DEFAULT_SERVICE = 0.95

_Share = Annotated[float, Meta(gt=0, lt=1)]
_Positive = Annotated[float, Meta(gt=0)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a section of the file may say; durations are a number and one of s, m, h, d, w."""

    policy: Literal["order_up_to", "s_S", "newsvendor"] = "order_up_to"
    freq: str = "1d"
    review_period: str = "1d"
    review_offset: str = "0s"
    review_wait: str = "1h"
    lead_time: str | dict[str, float] = "1d"
    service_level: _Share | None = None
    fill_rate: _Share | None = None
    underage_cost: _Positive | None = None
    overage_cost: _Positive | None = None
    min_order: Annotated[float, Meta(ge=0)] = 0.0
    pack: _Positive = 1.0
    order_quantity: _Positive | None = None
    order_cost: _Positive | None = None
    holding_cost: _Positive | None = None
    shelf_life: str | None = None
    on_order_from: Literal["stock", "orders"] = "stock"
    reported_within: str = "0s"


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How an item is ordered. Times are milliseconds, quantities units.

    Attributes:
        service_level: probability that demand does not exceed what is ordered up to; the aim where `by_fill_rate`.
        review_wait_ms: how long after a review's moment a forecast that was made since is waited for.
        batch: units from the reorder point up to the order-up-to level: given, or None = the economic quantity.
        holding_cost: of a unit over a day.
    """

    name: str
    freq: str
    review_period_ms: int
    review_offset_ms: int
    review_wait_ms: int
    lead_time: LeadTime
    service_level: float
    by_fill_rate: bool
    min_order: float
    pack: float
    batch: float | None
    order_cost: float
    holding_cost: float
    shelf_life_ms: int | None
    on_order_from: str
    reported_within_ms: int

    def review_before(self, time_ms: int) -> int:
        """The last moment at or before a time at which the item is looked at."""
        since = (time_ms - self.review_offset_ms) // self.review_period_ms
        return since * self.review_period_ms + self.review_offset_ms

    def wait_ends_after(self, time_ms: int) -> int:
        """The first moment after a time at which a review is held with whatever forecast there is."""
        moment = self.review_before(time_ms) + self.review_wait_ms
        return moment if moment > time_ms else moment + self.review_period_ms


class Policies:
    """A policies file.

    Raises:
        SettingsError: a section says what can't be; names the section and the key.
    """

    def __init__(self, sections: dict[str, Any], where: str = "policies") -> None:
        unknown = set(sections) - {"default", "category", "product", "item"}
        if unknown:
            raise SettingsError(
                f"{where}: [{min(unknown)}] is not a section; there are [default], [category.NAME], [product.ID] and "
                "[item.ID]"
            )
        self._where = where
        self._default: dict[str, Any] = sections.get("default", {})
        self._by: dict[str, dict[str, Any]] = {}
        for kind in ("category", "product", "item"):
            self._by[kind] = sections.get(kind, {})
        self._made: dict[tuple[str, ...], Policy] = {}
        self._policy(())
        for kind, named in self._by.items():
            for name in named:
                self._policy(((kind, name),))

    @classmethod
    def read(cls, path: Path) -> Policies:
        """The file at a path. Raises SettingsError when it can't be read, too."""
        try:
            return cls(tomllib.loads(path.read_text(encoding="utf-8")), str(path))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SettingsError(f"{path} can't be read as a policies file: {error}") from error

    @property
    def need_categories(self) -> bool:
        """Whether any section is of a category."""
        return bool(self._by["category"])

    def all(self) -> list[Policy]:
        """Of every section."""
        return list(self._made.values())

    def of(self, item_id: str, product_id: str, category: str) -> Policy:
        """An item's policy."""
        named = (("category", category), ("product", product_id), ("item", item_id))
        return self._policy(tuple((kind, name) for kind, name in named if name in self._by[kind]))

    def _policy(self, chosen: tuple[tuple[str, str], ...]) -> Policy:
        key = tuple("\0".join(pair) for pair in chosen)
        if key not in self._made:
            said: dict[str, Any] = {}
            for label, part in [("default", self._default), *((f"{k}.{n}", self._by[k][n]) for k, n in chosen)]:
                if not isinstance(part, dict):
                    raise SettingsError(f"{self._where}: [{label}] is no section")
                if any(aim in part for aim in _AIMS):
                    said = {name: value for name, value in said.items() if name not in _AIMS}
                said |= part
                where = f"{self._where}, [{label}]"
            self._made[key] = _made(said, where)
        return self._made[key]


def _made(said: dict[str, Any], where: str) -> Policy:
    try:
        section = msgspec.convert(said, Section)
        if section.freq not in WINDOWS:
            raise ValueError(f"freq: {section.freq!r} is not one of {', '.join(WINDOWS)}")
        review_period_ms = _duration_ms("review_period", section.review_period)
        if review_period_ms <= _duration_ms("review_wait", section.review_wait):
            raise ValueError("review_period is above review_wait")
        service_level, by_fill_rate = _aim(section)
        batch = _batch(section)
        return Policy(
            name=section.policy,
            freq=section.freq,
            review_period_ms=review_period_ms,
            review_offset_ms=_duration_ms("review_offset", section.review_offset),
            review_wait_ms=_duration_ms("review_wait", section.review_wait),
            lead_time=_lead_time(section.lead_time),
            service_level=service_level,
            by_fill_rate=by_fill_rate,
            min_order=section.min_order,
            pack=section.pack,
            batch=batch,
            order_cost=section.order_cost or 0.0,
            holding_cost=section.holding_cost or 0.0,
            shelf_life_ms=None if section.shelf_life is None else _duration_ms("shelf_life", section.shelf_life),
            on_order_from=section.on_order_from,
            reported_within_ms=_duration_ms("reported_within", section.reported_within),
        )
    except (ValueError, msgspec.ValidationError) as error:
        raise SettingsError(f"{where}: {error}; docs/replenishment.md has all keys") from error


def _aim(section: Section) -> tuple[float, bool]:
    """The share aimed at, and whether it is of units and not of periods."""
    costs = (section.underage_cost, section.overage_cost)
    given = [section.service_level is not None, section.fill_rate is not None, costs != (None, None)]
    if sum(given) > 1:
        raise ValueError("one of service_level, fill_rate, and underage_cost with overage_cost says how much is enough")
    if section.fill_rate is not None:
        if section.policy != "order_up_to":
            raise ValueError(f"fill_rate goes with policy order_up_to, not with {section.policy}")
        return section.fill_rate, True
    if costs != (None, None):
        if costs[0] is None or costs[1] is None:
            raise ValueError("underage_cost and overage_cost go together")
        return critical_ratio(costs[0], costs[1]), False
    return section.service_level or _DEFAULT_SERVICE, False


def _batch(section: Section) -> float | None:
    """Of policy s_S: units between its levels, None = the economic quantity."""
    if section.policy != "s_S":
        return 0.0
    if section.order_quantity is None and (section.order_cost is None or section.holding_cost is None):
        raise ValueError("policy s_S needs order_quantity, or order_cost and holding_cost to find the economic one")
    return section.order_quantity


def _lead_time(said: str | dict[str, float]) -> LeadTime:
    if isinstance(said, str):
        return LeadTime((float(_duration_ms("lead_time", said)),))
    durations = tuple(float(_duration_ms("lead_time", text)) for text in said)
    return LeadTime(durations, tuple(said.values()))


def _duration_ms(name: str, text: str) -> int:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError(f"{name}: {text!r} is no duration; write a number and s, m, h, d or w, as in 36h")
    return round(float(found[1]) * _UNITS_MS[found[2]])
