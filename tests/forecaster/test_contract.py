from pathlib import Path

import pytest

import feature_store.features
from feature_store.features import Feature
from forecaster import contract

REPOSITORY = Path(__file__).parents[2]


def test_the_repositorys_config_is_the_rendered_contract() -> None:
    config = REPOSITORY / "triton_models" / contract.MODEL_NAME / "config.pbtxt"
    assert config.read_text() == contract.render_config_pbtxt()


def test_another_feature_gives_another_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    before = contract.features_hash()
    more = (*feature_store.features.FEATURES, Feature("returns", "events", 1, "orders", "count of returns"))
    monkeypatch.setattr(contract, "FEATURES", more)
    assert contract.features_hash() != before


def test_a_features_meaning_is_part_of_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    before = contract.features_hash()
    first, *rest = feature_store.features.FEATURES
    monkeypatch.setattr(contract, "FEATURES", (first._replace(aggregates="sum of quantity, net"), *rest))
    assert contract.features_hash() != before


def test_levels_are_symmetric_and_ascending() -> None:
    levels = contract.QUANTILE_LEVELS
    assert list(levels) == sorted(set(levels))
    assert [round(1 - level, 6) for level in reversed(levels)] == list(levels)
