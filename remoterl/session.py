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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import gymnasium.error
from gymnasium.envs.registration import parse_env_id
from gymnasium.envs.registration import registry as trainers_registry
from gymnasium.vector import AutoresetMode

from remoterl import capacity
from remoterl import messages as m
from remoterl._logging import logger
from remoterl.actors import directory
from remoterl.actors import registry as registrations
from remoterl.actors.leash import Leash
from remoterl.actors.registry import News
from remoterl.actors.sources import Source, lies_beside_the_script, sources_of
from remoterl.channels.base import Late
from remoterl.cluster.connection import Connection, connect, is_elsewhere, no_sigterm_handler_of_ray
from remoterl.cluster.watch import HubWatch
from remoterl.config import TrainerConfig
from remoterl.errors import (
    CapacityError,
    EnvRunnerLostError,
    HubLostError,
    RemoteRLError,
    StepTimeoutError,
    UnknownEnvironmentError,
    UnknownNameError,
    UnknownNamespaceError,
    UnknownVersionError,
    UnsupportedError,
)
from remoterl.fleet import Fleet, knows
from remoterl.patches import backend as patches_backend
from remoterl.patches import ray as ray_patches
from remoterl.patches.base import AfterImport, UndoLog
from remoterl.placement import split_rows
from remoterl.shipping import ship
from remoterl.vector.core import ATTEMPTS, Assignment, RowsRaised, RunnerLink, VectorCore, forget, warn_again
from remoterl.vector.recovery import USUAL_CAUSE

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
    """One trainer's env runners and patches. Open it with `open_session`.

    `is_of_a_command`: `remoterl run` has opened it, so a script that calls `ray.shutdown()` first of all keeps it.
    """

    is_of_a_command = False

    def __init__(self, connection: Connection, config: TrainerConfig) -> None:
        self.connection = connection
        self._config = config
        self._at_most: int | None = None  # env runners placed at once, while RLlib builds an algorithm
        self._freed_until = 0.0  # for so long Ray counts units as held that were given back
        self._spec_shipper = registrations.SpecShipper()
        self._registered: Mapping[str, registrations.Shipped] = {}  # as it was sent with the last factories
        self._sources: dict[str, dict[str, Source]] = {}  # of modules beside the script that env runners lacked
        self._undo = UndoLog()
        self._waiting_for_imports: list[AfterImport] = []
        self._at_end: list[Callable[[], None]] = []
        self._disconnected: list[Callable[[], None]] = []
        self._cores: weakref.WeakSet[VectorCore] = weakref.WeakSet()
        self._garbage: SimpleQueue[Any] = SimpleQueue()
        self._closed = False
        self._used = False  # has an environment been made, or an algorithm of RLlib's?
        self._watch: HubWatch | None = None
        self._leash: Leash | None = None
        self._hub_lost: HubLostError | None = None
        self._lock = threading.RLock()
        self._placing = threading.RLock()
        self._making_room = threading.RLock()
        self._building = threading.RLock()  # held while an algorithm of RLlib's takes what was found free for it
        self.info = m.TrainerInfo(
            session_id=uuid.uuid4().hex[:12],
            name=os.path.basename(sys.argv[0]) or "python",
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        self.fleet = Fleet(config, self.info, self._garbage, self._go_on)

    @property
    def runners(self) -> list[RunnerLink]:
        """Its env runners."""
        return self.fleet.runners

    @property
    def closed(self) -> bool:
        """Has `shutdown()`, `ray.shutdown()` or the process's end closed it?"""
        return self._closed

    @property
    def hub_is_lost(self) -> bool:
        """Did the hub end, or start anew? What is left to do is to close it."""
        return self._hub_lost is not None

    # ---- opening ---------------------------------------------------------------------------------------------

    def start(self, deadline: float) -> bool:
        """Place env runners and install the patches; False where there is no simulator with a free unit."""
        if self.connection.hub is not None:  # first: it may be minutes until there are simulators
            self._watch = HubWatch(self.connection.hub, self._config.api_key, self._lose_the_hub)
            if self.connection.hub.kind == "client":
                self._leash = Leash(self.connection.hub, self._config.api_key)
        if not self.fleet.place(deadline):
            return False
        threading.Thread(target=self._collect_garbage, name="remoterl-garbage", daemon=True).start()
        atexit.register(self.close)
        self._install_patches()
        return True

    def _install_patches(self) -> None:
        from remoterl.patches import gymnasium as gymnasium_patches

        patches_backend.set_backend(self)
        self._undo.install(gymnasium_patches.TABLE)
        self._undo.install(ray_patches.table(self.connection.context, self._before_rays_shutdown))
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
        self._used = True
        lacking: set[str] = set()
        named: set[str] = set()
        losses = 0
        while True:
            runners = [runner for runner in self._runners_for(env_id) if runner.simulator not in lacking]
            try:
                core = self._open_on(runners, factories, semantics, autoreset_mode, env_id)
            except EnvRunnerLostError as error:
                losses += 1
                if losses == ATTEMPTS:
                    raise self._often_lost(env_id, error) from error
                if any(runner.channel.lost for runner in runners):  # since it was last used, perhaps
                    continue
                raise
            except Exception as error:
                rows: RowsRaised | None = getattr(error, "remote_rows", None)
                if rows is None:
                    raise
                if self._imported_here(error) or self._sources_found(rows, named):
                    continue
                if not isinstance(error, (gymnasium.error.UnregisteredEnv, ModuleNotFoundError)):
                    raise
                # A factory made an id (or imported its module) that these simulators don't have; others may.
                lacking |= {runner.simulator for runner, _ in rows.errors}
                if any(runner.simulator not in lacking for runner in runners):
                    continue
                if isinstance(error, gymnasium.error.UnregisteredEnv):
                    if self._move_to(_named_id(error), lacking):
                        continue
                    raise self._why_unknown(_named_id(error)) from error
                raise
            self._cores.add(core)
            if any("human" in opened.render_modes for opened in core.opened):  # set in a factory or a spec
                core.close()
                raise UnsupportedError(patches_backend.NO_WINDOWS)
            return core

    def _imported_here(self, error: Exception) -> bool:
        """Was it for want of a module beside the script, which is imported now? What it registers travels."""
        named = re.search(r"Check whether '([^']+)' contains env registration", str(error))
        module = named[1] if named else ""
        if not module or module in sys.modules or not lies_beside_the_script(module):
            return False
        importlib.import_module(module)
        return True

    def _sources_found(self, rows: RowsRaised, named: set[str]) -> bool:
        """Was it for want of modules beside the script, whose sources go to the env runners from now on?

        Args:
            named: modules for want of which the same call failed before; those of this failure are added.
        """
        tops = [(runner, error.lacks.partition(".")[0]) for runner, error in rows.errors]
        missing = {top for runner, top in tops if top and top not in runner.sources} - named
        named |= missing
        for top in missing - self._sources.keys():
            if sources := sources_of(top):
                logger.debug("%s was not imported here: its sources are sent along", top)
                self._sources[top] = sources
        return not missing.isdisjoint(self._sources)

    def _open_on(
        self,
        runners: Sequence[RunnerLink],
        factories: Sequence[Any],
        semantics: m.Semantics,
        autoreset_mode: AutoresetMode,
        env_id: str | None,
    ) -> VectorCore:
        row_ranges = split_rows(len(factories), len(runners))
        fewest = sorted(range(len(runners)), key=lambda index: runners[index].rows)[: len(row_ranges)]
        chosen = [runners[index] for index in sorted(fewest)]
        shipped = _ship_parts([factories[rows.start : rows.stop] for rows in row_ranges])
        self._registered = self._registered_now(self.runners, env_id or "")
        news = [self._news_of(self._registered, runner) for runner in chosen]
        assignments = [
            Assignment(runner, rows, data, told.packed())
            for runner, rows, data, told in zip(chosen, row_ranges, shipped, news, strict=True)
        ]
        core = VectorCore.open(assignments, semantics, autoreset_mode, env_id or "", self)
        for runner, told in zip(chosen, news, strict=True):
            _was_told(runner, told)
        return core

    def find_spec(self, env_id: str) -> Any:
        """See `patches.backend.Backend.find_spec`."""
        asked: set[str] = set()
        named: set[str] = set()
        losses = 0
        while True:
            runner = next((one for one in self._runners_for(env_id) if one.simulator not in asked), None)
            if runner is None:
                raise self._why_unknown(env_id)
            news = self._news_of(self._registered_now([runner], env_id), runner)
            try:
                reply = runner.channel.receive(
                    runner.channel.send(m.FindSpec(env_id, news.packed())), self.step_timeout_s
                )
            except EnvRunnerLostError as error:
                losses += 1
                if losses == ATTEMPTS:
                    raise self._often_lost(env_id, error) from error
                continue
            except Late:  # it is stuck, in the close of an environment perhaps
                self.give_up(runner)
                raise StepTimeoutError(
                    f"No answer within step_timeout_s={self.step_timeout_s:g} from the env runner on {runner.place}, "
                    f"which was asked for {env_id}. It is ended; the next call goes on without it."
                ) from None
            if isinstance(reply, m.RowsFailed):
                raised = RowsRaised([(runner, error) for error in reply.errors])
                if self._sources_found(raised, named):
                    continue
                raise raised.to_raise(env_id)
            _was_told(runner, news)
            if reply.spec is not None:
                warn_again(reply.warned)
                return reply.spec
            asked.add(runner.simulator)

    def simulators_know(self, env_id: str) -> bool:
        """See `patches.backend.Backend.simulators_know`."""
        self._require_hub()
        deadline, reserved = time.monotonic() + self._config.timeout_s, self.fleet.reserved
        if reserved is None:
            simulators = directory.find_simulators(deadline, labels=self.labels)
        else:
            simulators = directory.find_simulators(deadline, among=reserved.looked_at_again().nodes)
        if not simulators:  # of those that are still to come (an autoscaler's, say) nobody can tell
            return env_id not in trainers_registry
        lacking = [each.name for each in simulators if not knows(each.info.environments, env_id)]
        if lacking and env_id not in trainers_registry:
            raise self._unknown(env_id, simulators)
        return not lacking

    @contextmanager
    def room_for(self, needs: Mapping[str, float], what: str, rows_here: bool = False) -> Iterator[None]:
        """See `patches.backend.Backend.room_for`."""
        with self._building:
            self._require_hub()
            self._used = True
            if needs:
                with self._making_room:
                    self._make_room(needs, what, rows_here)
            before, self._at_most = self._at_most, 1
            try:
                yield
            finally:
                self._at_most = before

    def _make_room(self, needs: Mapping[str, float], what: str, rows_here: bool) -> None:
        freed = self.let_go_idle()
        units = needs.get(directory.RESOURCE, 0) + (rows_here and not self.fleet.living())
        needs = {**needs, directory.RESOURCE: units}
        capacity.require(
            needs,
            what,
            self._config.timeout_s,
            self._go_on,
            quiet_s=KILL_S if freed else 0.0,
            labels=self.labels,
            grant=self.fleet.reserved,
        )

    def let_go_idle(self) -> bool:
        """See `patches.backend.Backend.let_go_idle`."""
        self._require_hub()
        if freed := self.fleet.let_go_idle():
            self._freed_until = time.monotonic() + KILL_S
        return freed

    def units(self) -> tuple[int, int] | None:
        """See `patches.backend.Backend.units`."""
        self._require_hub()
        if capacity.is_autoscaling():
            return None
        deadline = time.monotonic() + self._config.timeout_s
        while True:
            self._go_on()
            simulators = directory.find_simulators(deadline, labels=self.labels)
            free, total = sum(capacity.free_units(simulators, deadline).values()), sum(one.units for one in simulators)
            if free == total or time.monotonic() >= self._freed_until:
                return free, total
            time.sleep(capacity.RETRY_PERIOD_S)

    @property
    def labels(self) -> Mapping[str, str]:
        """See `patches.backend.Backend.labels`."""
        return self._config.labels

    @property
    def has_reservation(self) -> bool:
        """See `patches.backend.Backend.has_reservation`."""
        return self.fleet.reserved is not None

    def reserved_place(self) -> Any:
        """See `patches.backend.Backend.reserved_place`."""
        return self.fleet.reserved_place()

    def at_end(self, undo: Callable[[], None]) -> None:
        """See `patches.backend.Backend.at_end`."""
        self._at_end.append(undo)

    def when_disconnected(self, restore: Callable[[], None]) -> None:
        """See `patches.backend.Backend.when_disconnected`."""
        self._disconnected.append(restore)

    def _runners_for(self, env_id: str | None) -> list[RunnerLink]:
        """The env runners whose simulator can make this id; all of them where the trainer can mirror it."""
        self._require_hub()
        fleet = self.fleet
        with self._placing:
            deadline = time.monotonic() + self._config.timeout_s
            if fleet.runners:
                if self._at_most is None:
                    fleet.top_up()
            elif not fleet.place(deadline, self._at_most):
                why = (
                    f"the last one failed with: {fleet.last_failure}"
                    if fleet.last_failure
                    else "the line above says why"
                )
                raise CapacityError(
                    f"There is no env runner for this environment; {why}. Where RLlib's hold all units, stop an "
                    "algorithm, or start another simulator."
                )
        for runner in fleet.runners[:]:
            if runner.channel.lost:
                try:
                    self.replace(runner, EnvRunnerLostError(f"The env runner on {runner.place} is lost."), "")
                except EnvRunnerLostError:
                    if not fleet.living():
                        raise
        living = fleet.living()
        if env_id is None or ":" in env_id or env_id in trainers_registry:
            return living
        capable = [runner for runner in living if knows(runner.environments, env_id)]
        if not capable and knows(frozenset(trainers_registry), env_id):
            return living
        if not capable and not (capable := self._move_to(env_id)):
            raise self._unknown(env_id)
        return capable

    def _move_to(self, env_id: str, lacking: Collection[str] = ()) -> list[RunnerLink]:
        """Env runners without rows go to simulators that offer this id, as far as there are units; those that went."""
        import ray

        def offers(simulator: directory.SimulatorHandle) -> bool:
            return simulator.name not in lacking and knows(simulator.info.environments, env_id)

        try:
            moved = self.fleet.move_idle(offers)
        except (RemoteRLError, ray.exceptions.RayError, ConnectionError):  # then the id is unknown, and that is said
            return []
        if moved:
            names = ", ".join(sorted({runner.simulator for runner in moved}))
            logger.info("Env runners that had no rows went to %s, where %s is: %d.", names, env_id, len(moved))
        return moved

    # ---- what a vector env needs to go on without an env runner ------------------------------------------------

    def replace(self, lost: RunnerLink, error: Exception, env_id: str) -> RunnerLink:
        """See `vector.recovery.Rescuer.replace`."""
        import ray

        if self._closed:  # from another thread; what would be started now, nobody would end
            raise EnvRunnerLostError(f"{error} Its session was closed meanwhile.")
        self._go_on()
        anywhere = not env_id or ":" in env_id or knows(trainers_registry, env_id)
        try:
            return self.fleet.replace(lost, error, lambda runner: anywhere or knows(runner.environments, env_id))
        except Exception as reason:
            if self._closed:
                raise EnvRunnerLostError(f"{error} Its session was closed meanwhile.") from reason
            # Ray says it in more than one way; the last is where it had noticed before it was asked.
            if isinstance(reason, (ConnectionError, ray.exceptions.RaySystemError)) or not ray.is_initialized():
                self._lose_the_hub("Ray has lost its connection to it" if self._watch is None else self._watch.why())
                self._require_hub()
            raise

    def _go_on(self) -> None:
        """Before each look of who waits for units: not once the session is closed, and not for a hub that is lost.

        In-cluster, Ray itself would wait for it for an hour.
        """
        hub_answers = self._watch is None or self._watch.answers()
        if self._closed:
            raise RemoteRLError("The session was closed while units were waited for.")
        if self._watch is not None and not hub_answers:
            self._lose_the_hub(self._watch.why())
        self._require_hub()

    def _require_hub(self) -> None:
        if self._hub_lost is not None:
            raise self._hub_lost

    def _lose_the_hub(self, why: str) -> None:
        """Close all environments, from any thread; whoever waits for one gets the error."""
        if self._hub_lost is not None:
            return
        self._hub_lost = HubLostError(
            f"The hub at {self.connection.description} is lost: {why}. The environments are closed. Save what has to "
            "be saved, call remoterl.shutdown(), and init() when the hub is back."
        )
        for core in list(self._cores):
            core.abandon(self._hub_lost)
        for runner in self.runners:
            runner.channel.interrupt()
        if self._leash is not None:
            self._leash.stop()
        self.connection.break_off()

    def give_up(self, runner: RunnerLink) -> None:
        """See `vector.recovery.Rescuer.give_up`."""
        self.fleet.give_up(runner)

    def registered(self) -> Mapping[str, registrations.Shipped]:
        """See `vector.recovery.Rescuer.registered`."""
        return self._registered

    def news_for(self, runner: RunnerLink, registered: Mapping[str, registrations.Shipped]) -> bytes:
        """See `vector.recovery.Rescuer.news_for`."""
        specs = {**self._registered_now([runner]), **registered}
        news = self._news_of(specs, runner)
        _was_told(runner, news)
        return news.packed()

    @property
    def step_timeout_s(self) -> float | None:
        """See `vector.recovery.Rescuer.step_timeout_s`."""
        return self._config.step_timeout_s

    @property
    def restarts(self) -> int:
        """See `vector.recovery.Rescuer.restarts`."""
        return self.fleet.restarts

    def _unknown(
        self, env_id: str, simulators: Sequence[directory.SimulatorHandle] | None = None
    ) -> UnknownEnvironmentError:
        if simulators is None:
            environments = {runner.simulator: runner.environments for runner in self.runners}
        else:
            environments = {simulator.name: simulator.info.environments for simulator in simulators}
        known = sorted(frozenset(trainers_registry).union(*environments.values()))
        close = [name for name in difflib.get_close_matches(env_id, known, n=5, cutoff=0.4) if name != env_id]
        lacking = ", ".join(sorted(name for name, ids in environments.items() if not knows(ids, env_id)))
        kind = _kind_of_unknown(env_id, known)
        if simulators is None and (offering := self._offering_elsewhere(env_id)):
            return kind(
                f"No environment {env_id!r} on {lacking}, where this session's env runners are. It is offered by "
                f"{', '.join(offering)}, and no env runner could go there: each has rows, or no unit is free there, or "
                "they are reserved ones. Give init() labels that only simulators with it have, or more env runners."
            )
        everyone = "" if simulators is None else " (RLlib's env runners may sit on any of them)"
        return kind(
            f"No environment {env_id!r}: the simulators {lacking} lack it{everyone}, and the trainer has not "
            f"registered it either. "
            + (f"The closest names: {', '.join(close)}. " if close else "")
            + "Register it in the simulator's script before init(), or in this script."
        )

    def _why_unknown(self, env_id: str) -> Exception:
        """What to raise where no simulator makes an id: `StaysLocal` where its registration here can't travel."""
        return self._spec_shipper.why_it_stays(env_id) or self._unknown(env_id)

    def _often_lost(self, env_id: str | None, error: Exception) -> EnvRunnerLostError:
        return EnvRunnerLostError(
            f"{env_id or 'This vector env'} could not be made: {ATTEMPTS} times an env runner was lost meanwhile. The "
            f"last time: {error} {USUAL_CAUSE}"
        )

    def _offering_elsewhere(self, env_id: str) -> list[str]:
        """Simulators without an env runner of this session that can make it."""
        import ray

        ours = {runner.simulator for runner in self.runners}
        try:
            everyone = directory.find_simulators(time.monotonic() + self._config.timeout_s, create=False)
        except (RemoteRLError, ray.exceptions.RayError, ConnectionError):  # it only serves to say more
            return []
        return sorted(one.name for one in everyone if one.name not in ours and knows(one.info.environments, env_id))

    def _registered_now(self, among: Collection[RunnerLink], asked: str = "") -> dict[str, registrations.Shipped]:
        """The trainer's registrations that a simulator of these env runners lacks, for who makes the id `asked`."""
        lacking = [
            spec
            for env_id, spec in trainers_registry.items()
            if not all(env_id in runner.environments for runner in among)
        ]
        return self._spec_shipper.ship(lacking, asked)

    def _news_of(self, registered: Mapping[str, registrations.Shipped], runner: RunnerLink) -> News:
        """What this env runner lacks of these registrations and of the sources, and was not sent as it is now."""
        return News(
            {
                env_id: one
                for env_id, one in registered.items()
                if env_id not in runner.environments and runner.mirrored.get(env_id) is not one
            },
            {top: sources for top, sources in self._sources.items() if top not in runner.sources},
        )

    # ---- closing ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Undo the patches, end the env runners, disconnect (if it was `init` that connected). Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            self._let_waiting_end()
            self._unpatch()
            if self._hub_lost is None and self._watch is not None and not self._watch.answers_now():
                self._lose_the_hub(self._watch.why())
            self._close_environments()
            self._undo_at_end()
        finally:  # also where Ctrl-C interrupts an environment's close
            self._garbage.put(None)
            if self._watch is not None:
                self._watch.stop()
            try:
                if self._hub_lost is None:
                    self.fleet.end()
                    if self._leash is not None:
                        self._leash.let_go()
                else:  # Ray would wait for the hub
                    self.fleet.abandon()
                    if self._leash is not None:
                        self._leash.stop()
            finally:
                self.connection.close()
        if self.connection.kind != "existing":
            _call_all(self._disconnected)

    def _before_rays_shutdown(self, for_good: bool) -> bool:
        """The script has called `ray.shutdown()`: close the session. False where it stays, and Ray with it."""
        if self.is_of_a_command and not self._used and not for_good:  # scripts do so to begin with nothing
            logger.info(
                "ray.shutdown() is left out: no environment is made yet, and `remoterl run` has opened the session."
            )
            return False
        if not self._closed:
            self.close()
            logger.info(
                "ray.shutdown() has ended remoterl's session: environments are made on this machine from here on."
            )
        return True

    def _let_waiting_end(self) -> None:
        """Other threads that wait for units see it, before the connection is gone: Ray would start a cluster here."""
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        for lock in (self._making_room, self._placing, self.fleet.lock):
            if lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
                lock.release()

    def forget_in_child(self) -> None:
        """In a forked child: everything is local again, and the parent's connection is not touched."""
        self._closed = True
        if self._watch is not None:
            self._watch.stop()
        self._unpatch(everywhere=False)
        no_sigterm_handler_of_ray()
        if self._leash is not None:
            self._leash.stop()
        for core in list(self._cores):
            core.abandon()
        self.fleet.abandon()

    def _unpatch(self, everywhere: bool = True) -> None:
        atexit.unregister(self.close)
        for waiting in self._waiting_for_imports:
            waiting.remove()
        self._undo.undo(everywhere)
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

        if self.connection.kind != "existing" or not ray.is_initialized() or self._hub_lost is not None:
            return
        _call_all(reversed(self._at_end))

    def _collect_garbage(self) -> None:
        while (item := self._garbage.get()) is not None:
            forget(item)


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
    if connection.kind == "existing" and config.address is not None and is_elsewhere(config.address, connection):
        logger.warning(
            "Ray is connected to %s already, so the hub at %s (of REMOTERL_ADDRESS, RAY_ADDRESS or `remoterl "
            "register`) is not asked. Call remoterl.init() before ray.init().",
            connection.description,
            config.address,
        )
    if connection.kind == "local":  # there was nobody to reach; to start Ray takes the time that it takes
        deadline = time.monotonic() + config.timeout_s
    session = Session(connection, config)
    try:
        if not session.start(deadline):
            session.close()
            return None
    except BaseException as error:
        session.close()
        if not isinstance(error, Exception) or not session.hub_is_lost:
            raise
        logger.error("The hub was lost while its simulators were waited for: %s", connection.description)
        return None
    places: dict[str, int] = {}
    for runner in session.runners:
        places[runner.simulator] = places.get(runner.simulator, 0) + 1
    logger.info(
        "%d env runners over %s, through %s, %s.",
        len(session.runners),
        ", ".join(f"{name} ({count})" for name, count in places.items()),
        connection.description,
        session.fleet.channels,
    )
    return session


def _ship_parts(parts: Sequence[Sequence[Any]]) -> list[bytes]:
    """What each env runner makes its rows of: pickled once where several make theirs of the same."""
    shipped: dict[tuple[int, ...], bytes] = {}
    keys = [tuple(map(id, part)) for part in parts]
    for key, part in zip(keys, parts, strict=True):
        if key not in shipped:
            shipped[key] = ship(list(part))
    return [shipped[key] for key in keys]


def _call_all(functions: Iterable[Callable[[], None]]) -> None:
    for function in functions:
        try:
            function()
        except Exception as error:
            logger.warning("While the session was closed: %s", error)


def _was_told(runner: RunnerLink, news: News) -> None:
    runner.mirrored.update(news.specs)
    runner.sources.update(news.sources)


def _kind_of_unknown(env_id: str, known: Collection[str]) -> type[UnknownEnvironmentError]:
    """Whichever Gymnasium would raise, had it all the ids that are known to anybody."""
    try:
        namespace, name, _ = parse_env_id(env_id)
    except gymnasium.error.Error:  # no id at all
        return UnknownEnvironmentError
    others = [parse_env_id(one) for one in known]
    if all(other[0] != namespace for other in others):
        return UnknownNamespaceError
    return UnknownVersionError if any(other[:2] == (namespace, name) for other in others) else UnknownNameError


def _named_id(error: Exception) -> str:
    """The id that Gymnasium says it does not know (in backticks; its version only where it knows the name)."""
    if match := re.search(r"version `([^`]+)` for environment `([^`]+)`", str(error)):
        return f"{match[2]}-{match[1]}"
    match = re.search(r"`([^`]+)`|id: (\S+?)\.(?:\s|$)", str(error))
    return (match[1] or match[2]) if match else str(error)
