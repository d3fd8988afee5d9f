"""A trainer's session: what `init(role="trainer")` opens and `shutdown()` closes.

Finds the simulators, places env runners over them, installs the patches, and opens rows for them.
"""

from __future__ import annotations

import atexit
import difflib
import functools
import importlib
import os
import re
import socket
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, cast

import gymnasium.error
from gymnasium.envs.registration import EnvSpec
from gymnasium.envs.registration import registry as trainers_registry
from gymnasium.vector import AutoresetMode

from remoterl import capacity
from remoterl import messages as m
from remoterl._logging import logger
from remoterl.actors import directory
from remoterl.actors import registry as registrations
from remoterl.actors.env_runner import EnvRunner
from remoterl.channels.opening import open_channels
from remoterl.cluster.connection import Connection, connect
from remoterl.config import TrainerConfig
from remoterl.errors import CapacityError, EnvRunnerLostError, UnknownEnvironmentError
from remoterl.patches import backend as patches_backend
from remoterl.patches import ray as ray_patches
from remoterl.patches.base import AfterImport, UndoLog
from remoterl.placement import plan, split_rows
from remoterl.shipping import ship
from remoterl.vector.core import Assignment, RowsRaised, RunnerLink, VectorCore, forget

RETRY_PERIOD_S = 0.5
ENV_RUNNER_START_S = 10.0  # a process and its imports, on a busy machine
CLOSE_TIMEOUT_S = 5.0
KILL_S = 2.0  # until Ray counts a killed env runner's unit as free
# Module of a library -> our patches of it. Each is the one where everything that is patched is complete, whatever part
# of the library the script imports.
PATCHED_WHEN_IMPORTED = {
    "stable_baselines3.common.env_util": "remoterl.patches.stable_baselines3",
    "ray.tune": "remoterl.patches.tune",
    "ray.rllib.algorithms.algorithm": "remoterl.patches.rllib",
}
# A module that makes an environment of its own when it is imported, as RLlib does when it looks up its algorithms.
LOCAL_WHEN_IMPORTED = "ray.rllib.algorithms.dreamerv3.utils.debugging"


class Session:
    """One trainer's env runners and patches. Open it with `open_session`."""

    def __init__(self, connection: Connection, config: TrainerConfig) -> None:
        self.connection = connection
        self.channels = ""  # which the env runners have, in words
        self._config = config
        self._labels = config.labels
        self._reservation = config.reservation
        self._grant: capacity.Grant | None = None
        self._at_most: int | None = None  # env runners placed at once, while RLlib builds an algorithm
        self.runners: list[RunnerLink] = []
        self._actors: list[Any] = []
        self._last_failure = ""  # of an env runner that did not come up
        self._spec_shipper = registrations.SpecShipper()
        self._undo = UndoLog()
        self._waiting_for_imports: list[AfterImport] = []
        self._at_end: list[Callable[[], None]] = []
        self._cores: weakref.WeakSet[VectorCore] = weakref.WeakSet()
        self._garbage: SimpleQueue[Any] = SimpleQueue()
        self._closed = False
        self._lock = threading.RLock()
        self.info = m.TrainerInfo(
            session_id=uuid.uuid4().hex[:12],
            name=os.path.basename(sys.argv[0]) or "python",
            host=socket.gethostname(),
            pid=os.getpid(),
        )

    @property
    def closed(self) -> bool:
        """Has `shutdown()`, `ray.shutdown()` or the process's end closed it?"""
        return self._closed

    # ---- opening ---------------------------------------------------------------------------------------------

    def start(self, deadline: float) -> bool:
        """Place env runners and install the patches; False where there is no simulator with a free unit."""
        if not self._place(deadline):
            return False
        threading.Thread(target=self._collect_garbage, name="remoterl-garbage", daemon=True).start()
        atexit.register(self.close)
        self._install_patches()
        return True

    def _place(self, deadline: float) -> bool:
        if self._reservation is not None:
            reservation, self._reservation = self._reservation, None
            return self._create_granted(capacity.take(reservation), deadline)
        waited = False
        wanted = self._config.total_env_runners if self._at_most is None else self._at_most
        while True:
            simulators = directory.find_simulators(deadline, labels=self._labels)
            free = capacity.free_units(simulators, deadline)
            if not waited and sum(free.values()) < wanted and capacity.is_autoscaling():
                grant = capacity.wait_for_autoscaler(wanted, self._labels, deadline)
                if grant is not None:
                    return self._create_granted(grant, deadline)
            counts = plan(free, wanted)
            if counts:
                self._create([(one, None) for one in simulators for _ in range(counts.get(one.node_id, 0))], deadline)
            if self.runners or time.monotonic() + RETRY_PERIOD_S >= deadline:
                break
            if not waited:
                waited = True
                logger.info("Waiting for a simulator with a free env runner ...")
            time.sleep(RETRY_PERIOD_S)
        if not self.runners:
            self._say_why_there_is_none(simulators)
            return False
        if len(self.runners) < wanted:
            logger.warning(
                "%d env runners were asked for, only %d are free: going on with %d.",
                wanted,
                len(self.runners),
                len(self.runners),
            )
        return True

    def _create_granted(self, grant: capacity.Grant, deadline: float) -> bool:
        """Env runners on units that are this trainer's already; nodes that the autoscaler just started among them."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self._grant = grant
        by_node: dict[str, directory.SimulatorHandle] = {}
        up_by = max(deadline, time.monotonic() + ENV_RUNNER_START_S)
        while not by_node.keys() >= set(grant.nodes) and time.monotonic() < up_by:
            by_node = {simulator.node_id: simulator for simulator in directory.find_simulators(up_by)}
            time.sleep(0 if by_node.keys() >= set(grant.nodes) else RETRY_PERIOD_S)
        places = [
            (by_node[node], PlacementGroupSchedulingStrategy(grant.group, placement_group_bundle_index=bundle))
            for bundle, node in enumerate(grant.nodes)
            if node in by_node
        ]
        self._create(places, deadline)
        if not self.runners:
            self._say_why_there_is_none(list(by_node.values()))
        elif len(self.runners) < len(grant.nodes):
            logger.warning("%d env runners were granted, only %d came up.", len(grant.nodes), len(self.runners))
        return bool(self.runners)

    def _give_back(self) -> None:
        import ray

        grant, self._grant = self._grant, None
        if grant is None or not ray.is_initialized():  # Ray would start a cluster of its own on this machine
            return
        try:
            grant.give_back()
        except Exception as error:
            logger.debug("units were given back already: %s", error)

    def _say_why_there_is_none(self, simulators: Sequence[directory.SimulatorHandle]) -> None:
        if self._last_failure:
            logger.error("No env runner could be started; the last one failed with: %s", self._last_failure)
        elif simulators:
            logger.error(
                "All env runners of the %d simulators are taken; start another simulator, or end another trainer.",
                len(simulators),
            )
        elif self._labels and (others := directory.simulator_nodes()):
            logger.error(
                "None of the cluster's %d simulators matches labels=%s. Ask for others, or start one that has them: "
                "remoterl simulate --label KEY=VALUE",
                len(others),
                dict(self._labels),
            )
        else:
            logger.error(
                "The cluster has no simulator (0 of %d nodes). Start one on any machine with: "
                "REMOTERL_ADDRESS=<the hub's address> remoterl simulate",
                _num_nodes(),
            )

    def _create(self, places: Sequence[tuple[directory.SimulatorHandle, Any]], deadline: float) -> None:
        """An env runner on each of these simulators, by Ray's scheduling strategy (None: any free unit of the node)."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        created: list[tuple[directory.SimulatorHandle, Any, Any]] = []
        for simulator, strategy in places:
            actor: Any = (
                cast(Any, ray.remote(EnvRunner))
                .options(
                    num_cpus=0,
                    resources={directory.RESOURCE: 1},
                    scheduling_strategy=strategy or NodeAffinitySchedulingStrategy(simulator.node_id, soft=False),
                )
                .remote(self.info, simulator.actor)
            )
            self._actors.append(actor)
            created.append((simulator, actor, actor.ready.remote()))
        up: list[tuple[directory.SimulatorHandle, Any, m.EnvRunnerInfo]] = []
        up_by = max(deadline, time.monotonic() + ENV_RUNNER_START_S)
        for simulator, actor, ready in created:
            try:
                info = ray.get(ready, timeout=max(0.1, up_by - time.monotonic()))
            except ray.exceptions.RayError as error:
                # Another trainer was faster, the simulator is leaving, or its worker can't start.
                logger.debug("an env runner on %s did not come up: %s", simulator.name, error)
                if not isinstance(error, ray.exceptions.GetTimeoutError):
                    self._last_failure = f"{str(error).strip().splitlines()[-1]} (on simulator {simulator.name})"
                self._kill(actor)
                continue
            up.append((simulator, actor, info))
        channels, self.channels = open_channels(
            [actor for _, actor, _ in up],
            [
                f"env runner on simulator {simulator.name} (node {simulator.node_id[:8]}, pid {info.pid})"
                for simulator, _, info in up
            ],
            self._config.channel,
        )
        self.runners += [
            RunnerLink(
                channel=channel,
                actor=actor,
                simulator=simulator.name,
                node_id=simulator.node_id,
                pid=info.pid,
                environments=simulator.info.environments,
                garbage=self._garbage,
            )
            for (simulator, actor, info), channel in zip(up, channels, strict=True)
        ]

    def _install_patches(self) -> None:
        from remoterl.patches import gymnasium as gymnasium_patches

        patches_backend.set_backend(self)
        self._undo.install(gymnasium_patches.TABLE)
        self._undo.install(ray_patches.table(self.connection.context, self.close))
        for module, patches in PATCHED_WHEN_IMPORTED.items():
            self._waiting_for_imports.append(AfterImport(module, functools.partial(self._patch_library, patches)))
        makes_environments = AfterImport(LOCAL_WHEN_IMPORTED, lambda: None, patches_backend.building_locally)
        self._waiting_for_imports.append(makes_environments)
        for waiting in self._waiting_for_imports:
            waiting.arm()

    def _patch_library(self, patches: str) -> None:
        library = importlib.import_module(patches)
        with self._lock:
            if not self._closed:
                self._undo.install(library.TABLE)
                getattr(library, "after_install", lambda: None)()

    # ---- the patches' backend --------------------------------------------------------------------------------

    def open(
        self,
        factories: Sequence[Any],
        semantics: m.Semantics,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
        env_id: str | None = None,
    ) -> VectorCore:
        """See `patches.backend.Backend.open`."""
        lacking: set[str] = set()
        while True:
            runners = [runner for runner in self._runners_for(env_id) if runner.simulator not in lacking]
            living = len(self._living())
            try:
                core = self._open_on(runners, factories, semantics, autoreset_mode, env_id)
            except (gymnasium.error.UnregisteredEnv, ModuleNotFoundError) as error:
                # A factory made an id (or imported its module) that these simulators don't have; others may.
                rows: RowsRaised | None = getattr(error, "remote_rows", None)
                if rows is None:
                    raise
                lacking |= {runner.simulator for runner, _ in rows.errors}
                if any(runner.simulator not in lacking for runner in runners):
                    continue
                if isinstance(error, gymnasium.error.UnregisteredEnv):
                    raise self._unknown(_named_id(error)) from error
                raise
            except EnvRunnerLostError:
                if 0 < len(self._living()) < living:  # one that died since it was last used; the others live
                    continue
                raise
            self._cores.add(core)
            return core

    def _open_on(
        self,
        runners: Sequence[RunnerLink],
        factories: Sequence[Any],
        semantics: m.Semantics,
        autoreset_mode: AutoresetMode,
        env_id: str | None,
    ) -> VectorCore:
        row_ranges = split_rows(len(factories), len(runners))
        chosen = sorted(runners, key=lambda runner: runner.rows)[: len(row_ranges)]
        chosen.sort(key=self.runners.index)
        shipped = [ship(list(factories[rows.start : rows.stop])) for rows in row_ranges]
        news = [self._news_for(runner) for runner in chosen]
        assignments = [
            Assignment(runner, rows, data, self._spec_shipper.ship(specs))
            for runner, rows, data, specs in zip(chosen, row_ranges, shipped, news, strict=True)
        ]
        core = VectorCore.open(assignments, semantics, autoreset_mode, env_id or "")
        for runner, specs in zip(chosen, news, strict=True):
            runner.mirrored.update((spec.id, spec) for spec in specs)
        return core

    def find_spec(self, env_id: str) -> Any:
        """See `patches.backend.Backend.find_spec`."""
        asked: set[str] = set()
        for runner in self._runners_for(env_id):
            if runner.simulator in asked:
                continue
            asked.add(runner.simulator)
            specs = self._spec_shipper.ship(self._news_for(runner))
            reply = runner.channel.receive(runner.channel.send(m.FindSpec(env_id, specs)))
            if isinstance(reply, m.RowsFailed):
                raise RowsRaised([(runner, error) for error in reply.errors]).to_raise(env_id)
            if reply.spec is not None:
                return reply.spec
        raise self._unknown(env_id)

    def simulators_know(self, env_id: str) -> bool:
        """See `patches.backend.Backend.simulators_know`."""
        simulators = directory.find_simulators(time.monotonic() + self._config.timeout_s)
        lacking = [each.name for each in simulators if not _knows(each.info.environments, env_id)]
        if lacking and env_id not in trainers_registry:
            raise self._unknown(env_id, simulators)
        return not lacking

    @contextmanager
    def room_for(self, needs: Mapping[str, float], what: str, rows_here: bool = False) -> Iterator[None]:
        """See `patches.backend.Backend.room_for`."""
        with self._lock:
            if needs:
                idle = [runner for runner in self.runners if runner.rows == 0]
                for runner in idle:
                    self.runners.remove(runner)
                    runner.channel.close()
                    self._kill(runner.actor)
                if not self.runners:
                    self._give_back()
                if self._labels:
                    logger.warning("RLlib places its own env runners: labels=%s does not bind them.", self._labels)
                units = needs.get(directory.RESOURCE, 0) + (rows_here and not self._living())
                needs = {**needs, directory.RESOURCE: units}
                capacity.require(needs, what, self._config.timeout_s, quiet_s=KILL_S if idle else 0.0)
            before, self._at_most = self._at_most, 1
        try:
            yield
        finally:
            self._at_most = before

    def at_end(self, undo: Callable[[], None]) -> None:
        """See `patches.backend.Backend.at_end`."""
        self._at_end.append(undo)

    def _runners_for(self, env_id: str | None) -> list[RunnerLink]:
        """The env runners whose simulator can make this id; all of them where the trainer can mirror it."""
        if not self.runners and not self._place(
            time.monotonic() + self._config.timeout_s
        ):  # they made room for RLlib's
            raise CapacityError(
                "No simulator has an env runner left for this environment, since RLlib's hold them all. Stop an "
                "algorithm, or start another simulator."
            )
        living = self._living()
        if not living:
            raise EnvRunnerLostError(
                "All env runners of this session are gone. Look at the simulators' output for the reason; call "
                "remoterl.shutdown() and remoterl.init() to go on with those that live."
            )
        if env_id is None or ":" in env_id or env_id in trainers_registry:
            return living
        capable = [runner for runner in living if _knows(runner.environments, env_id)]
        if not capable:
            if _knows(frozenset(trainers_registry), env_id):
                return living
            raise self._unknown(env_id)
        return capable

    def _unknown(
        self, env_id: str, simulators: Sequence[directory.SimulatorHandle] | None = None
    ) -> UnknownEnvironmentError:
        if simulators is None:
            environments = {runner.simulator: runner.environments for runner in self.runners}
        else:
            environments = {simulator.name: simulator.info.environments for simulator in simulators}
        known = sorted(frozenset(trainers_registry).union(*environments.values()))
        close = [name for name in difflib.get_close_matches(env_id, known, n=5, cutoff=0.4) if name != env_id]
        lacking = ", ".join(sorted(name for name, ids in environments.items() if not _knows(ids, env_id)))
        everyone = "" if simulators is None else " (RLlib's env runners may sit on any of them)"
        return UnknownEnvironmentError(
            f"No environment {env_id!r}: the simulators {lacking} lack it{everyone}, and the trainer has not "
            f"registered it either. "
            + (f"The closest names: {', '.join(close)}. " if close else "")
            + "Register it in the simulator's script before init(), or in this script."
        )

    def _news_for(self, runner: RunnerLink) -> list[EnvSpec]:
        """The trainer's registrations that this env runner's simulator lacks and that it was not sent yet."""
        return [
            spec
            for env_id, spec in trainers_registry.items()
            if env_id not in runner.environments and runner.mirrored.get(env_id) is not spec
        ]

    def _living(self) -> list[RunnerLink]:
        return [runner for runner in self.runners if not runner.channel.lost]

    # ---- closing ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Undo the patches, end the env runners, disconnect (if it was `init` that connected). Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            self._unpatch()
            self._close_environments()
            self._undo_at_end()
        finally:  # also where Ctrl-C interrupts an environment's close
            self._garbage.put(None)
            for runner in self.runners:
                runner.channel.close()
            try:
                for actor in self._actors:
                    self._kill(actor)
                self._give_back()
            finally:
                self.connection.close()

    def forget_in_child(self) -> None:
        """In a forked child: everything is local again, and the parent's connection is not touched."""
        self._closed = True
        self._unpatch()
        for core in list(self._cores):
            core.abandon()
        for runner in self.runners:
            runner.channel.abandon()

    def _unpatch(self) -> None:
        atexit.unregister(self.close)
        for waiting in self._waiting_for_imports:
            waiting.remove()
        self._undo.undo()
        patches_backend.set_backend(None)

    def _close_environments(self) -> None:
        """Every environment gets the chance to close itself, all at the same time."""
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        pending = [(core, core.send_close()) for core in list(self._cores)]
        for core, tickets in pending:
            try:
                core.await_close(tickets, deadline)
            except Exception as error:
                logger.warning("An environment failed to close: %s", error)

    def _undo_at_end(self) -> None:
        """Whose connection it is, his it stays; our own takes everything with it."""
        import ray

        if self.connection.kind != "existing" or not ray.is_initialized():
            return
        for undo in reversed(self._at_end):
            try:
                undo()
            except Exception as error:
                logger.warning("While the session was closed: %s", error)

    def _kill(self, actor: Any) -> None:
        import ray

        if not ray.is_initialized():  # otherwise Ray would start a cluster of its own on this machine
            return
        try:
            ray.kill(actor)
        except Exception as error:
            logger.debug("an env runner was gone already: %s", error)

    def _collect_garbage(self) -> None:
        while (item := self._garbage.get()) is not None:
            forget(*item)


def open_session(config: TrainerConfig) -> Session | None:
    """Connect and place env runners.

    Returns:
        None where the hub or the simulators can't be reached within `timeout_s` (logged).
    """
    deadline = time.monotonic() + config.timeout_s
    connection = connect(
        config.address,
        api_key=config.api_key,
        timeout_s=config.timeout_s,
        runtime_env=config.runtime_env,
        address_was_argument=config.address_was_argument,
        local_units=config.total_env_runners,
    )
    if connection is None:
        return None
    session = Session(connection, config)
    try:
        if not session.start(deadline):
            session.close()
            return None
    except BaseException:
        session.close()
        raise
    places: dict[str, int] = {}
    for runner in session.runners:
        places[runner.simulator] = places.get(runner.simulator, 0) + 1
    logger.info(
        "%d env runners over %s, through %s, %s.",
        len(session.runners),
        ", ".join(f"{name} ({count})" for name, count in places.items()),
        connection.description,
        session.channels,
    )
    return session


def _num_nodes() -> int:
    import ray

    return sum(node["Alive"] for node in ray.nodes())


def _named_id(error: Exception) -> str:
    """The id that Gymnasium says it does not know (it puts it in backticks)."""
    match = re.search(r"`([^`]+)`|id: (\S+?)\.(?:\s|$)", str(error))
    return (match[1] or match[2]) if match else str(error)


def _knows(ids: frozenset[str], env_id: str) -> bool:
    """Is the id, or (for an id without a version) any version of it, among these?"""
    return env_id in ids or any(known.rpartition("-v")[0] == env_id for known in ids)
