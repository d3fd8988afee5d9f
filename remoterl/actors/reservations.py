"""The `Reservations` actor: one a cluster, at the hub. It holds what was reserved, and lets it go in time.

A reservation is a placement group of Ray's: all of its units or none, and nobody else's. This actor only remembers
until when it is kept, and for which job. A plain class, wrapped by `ray.remote` where it is created (`capacity`).
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from remoterl._protocol import spoken
from remoterl.actors import simulator

SWEEP_PERIOD_S = 0.5


@dataclass
class _Held:
    group: Any
    num_env_runners: int
    labels: Mapping[str, str]
    until: float  # time.monotonic(); does not count once it is taken
    job_id: str | None = None  # of the trainer that took it


class Reservations:
    """Args: `living_jobs`: for tests without Ray, the ids of jobs that have not ended."""

    def __init__(self, living_jobs: Callable[[], set[str]] | None = None) -> None:
        self._held: dict[str, _Held] = {}
        self._living_jobs = living_jobs or _living_jobs
        self._lock = threading.Lock()
        threading.Thread(target=self._keep_sweeping, name="sweep", daemon=True).start()

    def ping(self) -> str:
        """What the hub speaks."""
        return spoken()

    def free_units(self) -> dict[str, float]:
        """See `simulator.free_units`: for who must not make a `Simulator` actor in order to ask."""
        return simulator.free_units()

    def reserve(self, num_env_runners: int, labels: Mapping[str, str], ttl_s: float, timeout_s: float) -> str | None:
        """The id of a new reservation, None where its units were not free within `timeout_s`."""
        group = make_group(num_env_runners, labels)
        if not group.wait(max(1, math.ceil(timeout_s))):  # Ray takes whole seconds
            remove_group(group)
            return None
        reservation_id = uuid.uuid4().hex[:16]
        with self._lock:
            self._held[reservation_id] = _Held(group, num_env_runners, dict(labels), time.monotonic() + ttl_s)
        return reservation_id

    def take(self, reservation_id: str, job_id: str) -> tuple[Any, Mapping[str, str]] | str:
        """The placement group and its labels, now held for as long as this job lives; or text: why not."""
        with self._lock:
            held = self._held.get(reservation_id)
            if held is None:
                return "there is no such reservation (any more): it was released, or it was not used within its ttl_s"
            if held.job_id is not None:
                return "another trainer has taken it"
            held.job_id = job_id
            return held.group, held.labels

    def release(self, reservation_id: str) -> bool:
        """Give the units back, whoever holds them; False where there is no such reservation."""
        with self._lock:
            held = self._held.pop(reservation_id, None)
        if held is not None:
            remove_group(held.group)
        return held is not None

    def sweep(self) -> None:
        """Let go what nobody took in time, and what was taken by a job that has ended."""
        with self._lock:
            taken = {held.job_id for held in self._held.values() if held.job_id is not None}
        living = self._living_jobs() if taken else set()
        now = time.monotonic()
        with self._lock:
            over = [
                reservation_id
                for reservation_id, held in self._held.items()
                if (held.job_id in taken - living if held.job_id is not None else now >= held.until)
            ]
            groups = [self._held.pop(reservation_id).group for reservation_id in over]
        for group in groups:
            remove_group(group)

    def _keep_sweeping(self) -> None:
        while True:
            time.sleep(SWEEP_PERIOD_S)
            try:
                self.sweep()
            except Exception as error:  # the hub is busy: the next time will do
                print(f"reservations can't be swept now: {type(error).__name__}: {error}")


def make_group(num_env_runners: int, labels: Mapping[str, str]) -> Any:
    """A placement group of so many units, one a bundle, on simulators that match; pending until all are free."""
    from ray.util.placement_group import placement_group

    selector = [dict(labels)] * num_env_runners if labels else None
    return placement_group([{"env_runner": 1}] * num_env_runners, strategy="SPREAD", bundle_label_selector=selector)


def remove_group(group: Any) -> None:
    """Give its units back; who still runs in it ends."""
    from ray.util.placement_group import remove_placement_group

    remove_placement_group(group)


def _living_jobs() -> set[str]:
    from ray._private.state import jobs

    return {job["JobID"] for job in jobs() if not job["IsDead"]}
