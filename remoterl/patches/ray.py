"""Ray: a script's own bare `ray.init()` finds the session's connection; `ray.shutdown()` ends the session.

Both are wrapped by Ray itself (for Ray Client), so the names are replaced, in every module that holds them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from remoterl.patches.base import Patch


def table(context: Any, end_session: Callable[[], None]) -> tuple[Patch, ...]:
    """The patches.

    Args:
        context: what a bare `ray.init()` gives while the session lives.
        end_session: called before `ray.shutdown()` does its work.
    """

    def init(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def ray_init(address: str | None = None, **kwargs: Any) -> Any:
            import ray

            if address in (None, "auto") and ray.is_initialized():
                return context
            return original(address, **kwargs)

        return ray_init

    def shutdown(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def ray_shutdown(*args: Any, **kwargs: Any) -> Any:
            end_session()
            return original(*args, **kwargs)

        return ray_shutdown

    return (Patch("ray", "init", "name", init), Patch("ray", "shutdown", "name", shutdown))
