"""A leash on a trainer that came through Ray Client: when it is cut off, its job is ended in the cluster.

Ray Client's server keeps the job of a client whose link is cut for ten minutes (a constant of Ray's), and with it env
runners and whatever else the trainer holds. In-cluster, Ray notices by itself.
"""

from __future__ import annotations

import threading
import uuid
from typing import Any

from remoterl._logging import logger
from remoterl.cluster import probe
from remoterl.config import Address

BEAT_S = 10.0
SILENT_S = 40.0  # longer than Ray Client tries to come back (30 s)


class Leash:
    """The trainer's end. `let_go` ends both.

    Its beats go beside Ray Client's connection, where an upload of minutes would keep them waiting; through it where
    the hub takes none beside it (from a script that gave Ray alone the key, say).

    Args:
        hub: Ray Client's address.
        api_key: the cluster's.
    """

    def __init__(self, hub: Address, api_key: str | None) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # Where Ray Client's server runs, so that the actor can end it.
        node_id = ray.get_runtime_context().get_node_id()
        options: dict[str, Any] = {
            "num_cpus": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False),
        }
        self._hub, self._api_key = hub, api_key
        self._key = f"remoterl:leash:{uuid.uuid4().hex}".encode()
        self._actor: Any = ray.remote(_actor_class()).options(**options).remote(self._key, SILENT_S)
        self._stopped = threading.Event()
        self._beating = threading.RLock()  # a signal's handler may let go in the middle of a beat
        threading.Thread(target=self._beat, name="remoterl-leash", daemon=True).start()

    def let_go(self) -> None:
        """The trainer ends in order. Idempotent."""
        import ray

        if self._stopped.is_set():
            return
        self._stopped.set()
        if ray.is_initialized():
            ray.kill(self._actor)
        with self._beating:
            probe.note(self._hub, self._api_key, self._key, None)

    def stop(self) -> None:
        """Say no more, and leave the rest to the other end: the hub is lost, or this is a forked child."""
        self._stopped.set()

    def _beat(self) -> None:
        import ray

        while not self._stopped.wait(BEAT_S) and ray.is_initialized():
            try:
                with self._beating:
                    if self._stopped.is_set() or probe.note(self._hub, self._api_key, self._key, b"1"):
                        continue
                self._actor.beat.remote()
            except Exception as error:  # Ray Client is coming back, or never will
                logger.debug("no beat: %s", error)


def _actor_class() -> type:
    """The actor's class. It travels by value: the hub may lack remoterl."""

    class TrainerLeash:
        """Ends the job that it belongs to when it has not heard of its trainer for so long."""

        def __init__(self, key: bytes, silent_s: float) -> None:
            import threading

            self._key = key
            self._left_s = self._silent_s = silent_s
            threading.Thread(target=self._watch, daemon=True).start()

        def beat(self) -> None:
            self._left_s = self._silent_s

        def _watch(self) -> None:
            import time

            while self._left_s > 0:
                began = time.monotonic()
                time.sleep(1.0)
                if self._has_beaten():
                    self._left_s = self._silent_s
                self._left_s -= min(2.0, time.monotonic() - began)  # who stood still himself could not hear
            self._end_job()

        def _has_beaten(self) -> bool:
            """Since it was asked last: a beat is taken away."""
            from ray.experimental import internal_kv

            try:
                return internal_kv._internal_kv_del(self._key) > 0
            except Exception:  # the hub does not answer: what ends then, Ray says
                return False

        def _end_job(self) -> None:
            import os
            import signal

            import ray

            own = ray.get_runtime_context().get_job_id()
            here = ray.util.get_node_ip_address()
            for job in ray._private.state.jobs():
                if job["JobID"] == own and job["DriverIPAddress"] == here and not job["IsDead"]:
                    with open(f"/proc/{job['DriverPid']}/cmdline") as command:
                        if "ray.util.client.server" in command.read().replace("\0", " "):
                            os.kill(job["DriverPid"], signal.SIGKILL)

    return TrainerLeash
