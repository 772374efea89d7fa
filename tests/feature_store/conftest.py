"""Property tests run the same number of examples on every machine, however slow."""

from hypothesis import HealthCheck, settings

settings.register_profile("shelfcast", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shelfcast")
