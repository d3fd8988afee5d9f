"""What the patches need from the session: a way to open rows. `init()` hands it to them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from gymnasium.vector import AutoresetMode

from remoterl.messages import Semantics
from remoterl.vector.core import VectorCore

NO_WINDOWS = (
    "render_mode='human' would open its window on the simulator, where nobody looks. Take render_mode='rgb_array' and "
    "show or record the frames here (gymnasium.wrappers.RecordVideo, HumanRendering)."
)


class Backend(Protocol):
    """Opens rows on env runners, knows which environments the simulators have, and makes room for RLlib's."""

    def open(
        self,
        factories: Sequence[Any],
        semantics: Semantics,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
        env_id: str | None = None,
    ) -> VectorCore:
        """Ship one factory a row, spread the rows over the env runners, make the environments.

        Raises:
            StaysLocal: a factory can't leave this process.
            UnknownEnvironmentError: no simulator knows `env_id`, nor does this process.
        """

    def find_spec(self, env_id: str) -> Any:
        """The EnvSpec of an id as the simulators know it.

        Raises:
            UnknownEnvironmentError: no simulator knows it, nor does this process.
        """

    def simulators_know(self, env_id: str) -> bool:
        """Can every simulator make this id by itself? False where the trainer has to send it along.

        Raises:
            UnknownEnvironmentError: the trainer can't either, and a simulator lacks it.
        """

    def room_for(self, needs: Mapping[str, float], what: str, rows_here: bool = False) -> AbstractContextManager[None]:
        """Give back the session's idle env runners, and wait until the cluster has free what `what` needs.

        In the context, one env runner at most is placed for environments that RLlib steps in this process.

        Args:
            needs: Ray resource -> how much of it; empty for nothing.
            what: what asks for it, for messages.
            rows_here: will there be such environments?

        Raises:
            CapacityError: it is not free within the session's `timeout_s`, or more than the session has reserved.
        """

    def let_go_idle(self) -> bool:
        """Give back the session's idle env runners; were there any? Others are placed where they are needed again."""

    def units(self) -> tuple[int, int] | None:
        """Free units, and all, of the simulators that the session may use; None where an autoscaler starts more."""

    @property
    def labels(self) -> Mapping[str, str]:
        """Ray's label selector of the simulators that the session may use; empty for all."""

    @property
    def has_reservation(self) -> bool:
        """Is the session on units that were reserved?"""

    def reserved_place(self) -> Any:
        """Ray's scheduling strategy for one more env runner of RLlib's; None where the session has no reservation."""

    def at_end(self, undo: Callable[[], None]) -> None:
        """Call `undo` when the session ends and leaves Ray's connection open, because the script had opened it."""

    def when_disconnected(self, restore: Callable[[], None]) -> None:
        """Call `restore` when the session has ended a connection that `init()` opened, and what was kept there."""


_backend: Backend | None = None
_thread = threading.local()


@contextmanager
def building_locally() -> Iterator[None]:
    """What is made in here, in this thread, is made as if there were no session."""
    before, _thread.local = getattr(_thread, "local", False), True
    try:
        yield
    finally:
        _thread.local = before


def is_local() -> bool:
    """Is this thread `building_locally`?"""
    return getattr(_thread, "local", False)


def set_backend(backend: Backend | None) -> None:
    """Called by `init()` and `shutdown()`: the patches' replacements work for this session from now on."""
    global _backend
    _backend = backend


def backend() -> Backend:
    """The live session's. Only called from a patched function, so there is one."""
    if _backend is None:
        raise RuntimeError("a patched function ran without a session; please report this as a bug of remoterl")
    return _backend
