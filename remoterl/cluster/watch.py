"""Is the hub still there? Asked by a thread beside the training, so that its loss is told and not waited for.

Ray's own calls wait for a lost hub: an hour here (see `connection.HUB_PATIENCE_S`), and then Ray ends the process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from remoterl.cluster import probe
from remoterl.config import Address

PERIOD_S = 5.0
LEAVING_ASKS = 3
LOST_AFTER_S = 30.0  # as long as Ray Client tries to reconnect


class HubWatch:
    """Asks the hub every few seconds, until it is another, has been silent for `LOST_AFTER_S`, or `stop` is called.

    Args:
        address: the hub's.
        api_key: the cluster's.
        lost: called once, from the watch's own thread, where the hub is lost, with the reason in words.
    """

    def __init__(self, address: Address, api_key: str | None, lost: Callable[[str], None]) -> None:
        self._address, self._api_key, self._lost = address, api_key, lost
        self._silent_since: float | None = None
        self._cluster = b""
        self._is_another = False  # a hub that started anew knows nothing of this trainer
        self._asking = threading.RLock()  # a signal's handler may ask in the middle of asking
        self._stopped = threading.Event()
        self._ask()
        threading.Thread(target=self._watch, name="remoterl-hub-watch", daemon=True).start()

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()

    def answers(self) -> bool:
        """Does the hub answer? Waits until it does (True) or is lost (False)."""
        while not self._ask():
            if self._is_lost() or self._stopped.wait(1.0):
                return False
        return True

    def why(self) -> str:
        """How it was lost, as far as this watch knows."""
        if self._is_another:
            return "it has started anew, and knows nothing of this trainer"
        if self._silent_since is None:
            return "Ray has lost its connection to it"
        return f"it has not answered for {time.monotonic() - self._silent_since:.0f} s"

    def answers_now(self) -> bool:
        """The same for who is about to leave anyway: it is given a few seconds."""
        return any(self._ask() or self._stopped.wait(1.0) for _ in range(LEAVING_ASKS))

    def _watch(self) -> None:
        while not self._stopped.wait(PERIOD_S):
            if not self._ask() and self._is_lost():
                self._stopped.set()
                self._lost(self.why())

    def _ask(self) -> bool:
        with self._asking:
            started = time.monotonic()
            answer, cluster = probe.identify(self._address, self._api_key)
            # Another answer than silence is a living hub's: what it means, Ray will say.
            if answer is not probe.Answer.UNREACHABLE:
                self._silent_since = None
                self._cluster = self._cluster or cluster
                self._is_another = bool(cluster) and cluster != self._cluster
                return not self._is_another
            self._silent_since = self._silent_since or started
            return False

    def _is_lost(self) -> bool:
        silent = self._silent_since is not None and time.monotonic() - self._silent_since >= LOST_AFTER_S
        return silent or self._is_another
