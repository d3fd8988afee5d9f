"""Ray: a script's own bare `ray.init()` finds the session's connection; `ray.shutdown()` ends the session, and says so.

Both are wrapped by Ray itself (for Ray Client), so the names are replaced, in every module that holds them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from remoterl._logging import logger
from remoterl.patches.base import Patch

# What `ray.init` is told of output, and of a second call: nothing of it is missed.
OF_OUTPUT = {
    "ignore_reinit_error", "log_to_driver", "logging_level", "logging_format", "logging_config", "configure_logging",
}  # fmt: skip


def table(context: Any, end_session: Callable[[bool], bool]) -> tuple[Patch, ...]:
    """The patches.

    Args:
        context: what a bare `ray.init()` gives while the session lives.
        end_session: called before `ray.shutdown()` does its work; False where that is left out, which its argument
            rules out.
    """
    left_out = False

    def init(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def ray_init(address: str | None = None, **kwargs: Any) -> Any:
            import ray

            if address in (None, "auto") and ray.is_initialized():
                if ignored := sorted(name for name in kwargs.keys() - OF_OUTPUT if kwargs[name] is not None):
                    logger.warning(
                        "ray.init() finds the connection that remoterl.init() made, and its %s %s no effect. Give "
                        "remoterl.init() a runtime_env, or call ray.init() before it.",
                        ", ".join(ignored), "has" if len(ignored) == 1 else "have",
                    )  # fmt: skip
                return context
            if left_out and ray.is_initialized():  # of the script it is not
                end_session(True)
            return original(address, **kwargs)

        return ray_init

    def shutdown(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def ray_shutdown(*args: Any, **kwargs: Any) -> Any:
            nonlocal left_out
            left_out = not end_session(False)
            return None if left_out else original(*args, **kwargs)

        return ray_shutdown

    return (Patch("ray", "init", "name", init), Patch("ray", "shutdown", "name", shutdown))
