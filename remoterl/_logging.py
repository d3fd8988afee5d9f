"""The `remoterl` logger: visible by default, silent where the script configured logging itself."""

from __future__ import annotations

import logging

logger = logging.getLogger("remoterl")


def ensure_visible() -> None:
    """Show INFO lines on stderr unless the script has handlers of its own, now or later (Ray does the same)."""
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not logger.handlers and not logging.getLogger().handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s remoterl %(levelname)s  %(message)s", "%H:%M:%S"))
        handler.addFilter(lambda _: not logging.getLogger().handlers)
        logger.addHandler(handler)
