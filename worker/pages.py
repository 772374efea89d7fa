"""Pages of a worker: /live, /ready and /metrics."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from worker import metrics


def add_pages(app: Any, is_ready: Callable[[], bool]) -> None:
    """Add them to a Faust app. `is_ready`: whether all lanes assigned are running."""

    @app.page("/live")  # type: ignore[untyped-decorator]
    async def live(web: Any, request: Any) -> Any:
        return web.text("live\n")

    @app.page("/ready")  # type: ignore[untyped-decorator]
    async def ready(web: Any, request: Any) -> Any:
        # The process id tells whoever started this worker that no other one answers on its port.
        return web.text(f"ready {os.getpid()}\n") if is_ready() else web.text("not ready\n", status=503)

    @app.page("/metrics")  # type: ignore[untyped-decorator]
    async def metrics_page(web: Any, request: Any) -> Any:
        return web.text(metrics.exposition())
