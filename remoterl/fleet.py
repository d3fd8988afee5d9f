"""A trainer's env runners: placed over the simulators, replaced when they are lost, ended with the session.

Ray places them, counts their units and ends them with the trainer's job; this says how many go where.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple, cast

import gymnasium

from remoterl import capacity
from remoterl import messages as m
from remoterl._logging import logger
from remoterl.actors import directory
from remoterl.actors.env_runner import EnvRunner
from remoterl.channels.opening import open_channels
from remoterl.channels.stream import Streams
from remoterl.config import TrainerConfig
from remoterl.errors import CapacityError, EnvRunnerLostError, HubLostError, RemoteRLError, VersionMismatchError
from remoterl.placement import plan
from remoterl.vector.core import RunnerLink

RETRY_PERIOD_S = 0.5
ENV_RUNNER_START_S = 10.0  # a process and its imports, on a busy machine
UNIT_BACK_S = 8.0  # until Ray counts the unit of an env runner that died as free, on a busy machine too
CAUSE_S = 1.0  # for Ray to say how an env runner ended; it knows at once, unless the whole node is gone
PING_S = 2.0  # for simulators that may be as dead as the env runner that is replaced


class Fleet:
    """The env runners of one session.

    Args:
        go_on: called before each look at the cluster; what it raises ends the waiting.

    Attributes:
        runners: those that were placed and not let go, the lost ones included until they are replaced.
        channels: which channels they have, in words.
        restarts: how many were replaced.
        last_failure: of an env runner that did not come up, since they were last placed; empty where there was none.
    """

    def __init__(
        self,
        config: TrainerConfig,
        info: m.TrainerInfo,
        garbage: SimpleQueue[Any],
        go_on: Callable[[], None] = lambda: None,
    ) -> None:
        self.runners: list[RunnerLink] = []
        self.channels = ""
        self.restarts = 0
        self.last_failure = ""
        self._config = config
        self._reservation = config.reservation
        self._info = info
        self._garbage = garbage
        self._go_on = go_on
        self._grant: capacity.Grant | None = None
        self._actors: list[Any] = []
        self._streams: Streams | None = None
        self._autoscaler_was_late = False
        self._made_room = False  # for RLlib's: some were let go, and others stayed
        self._told_differ: set[str] = set()  # simulators
        self._other_version: set[str] = set()  # nodes where another version was installed since the session began
        self._ended = False
        self.lock = threading.RLock()

    def living(self) -> list[RunnerLink]:
        """Those that are not known to be lost."""
        return [runner for runner in self.runners if not runner.channel.lost]

    @property
    def reserved(self) -> capacity.Grant | None:
        """The units of its reservation: its own until it ends, whether its env runners are in them or RLlib's."""
        return self._grant if self._grant is not None and self._grant.reservation is not None else None

    def reserved_place(self) -> Any:
        """Ray's scheduling strategy for one more actor in a reserved unit; None where nothing is reserved.

        Raises:
            CapacityError: every one has its actor.
        """
        if self.reserved is None:
            return None
        units = self.reserved.take(1)
        if not units:
            raise _all_in_use(self.reserved)
        return self.reserved.strategy(units[0])

    # ---- placing ---------------------------------------------------------------------------------------------

    def place(self, deadline: float, at_most: int | None = None) -> bool:
        """Place as many as the trainer asks for (`at_most`: no more); False, with a line, where there is no unit.

        Raises:
            CapacityError: every unit of the reservation has its actor.
        """
        self.last_failure, self._autoscaler_was_late, self._made_room = "", False, False
        if self._reservation is not None:
            reservation, self._reservation = self._reservation, None
            return self._create_granted(capacity.take(reservation), deadline)
        if self.reserved is not None:
            self._go_on()
            while not (units := self.reserved.take(at_most)) and time.monotonic() + RETRY_PERIOD_S < deadline:
                time.sleep(RETRY_PERIOD_S)
                self._go_on()
            if not units:
                raise _all_in_use(self.reserved)
            return self._create_granted(self.reserved.looked_at_again(), deadline, units)
        labels = self._config.labels
        waited = False
        wanted = self._config.total_env_runners if at_most is None else at_most
        while True:
            self._go_on()
            simulators = directory.find_simulators(deadline, labels=labels)
            free = self._free_units(simulators, deadline)
            if not waited and not self.runners and sum(free.values()) < wanted and capacity.is_autoscaling():
                grant = capacity.wait_for_autoscaler(wanted, labels, deadline, self._go_on)
                if grant is not None:
                    return self._create_granted(grant, deadline) and self._say_whether_fewer(wanted)
                self._autoscaler_was_late = True
            places = _spread(simulators, free, wanted - len(self.runners))
            came_up = self._create(places, deadline) if places else []
            self.runners += came_up
            is_over = time.monotonic() + RETRY_PERIOD_S >= deadline
            if is_over or len(self.runners) == wanted or (self.runners and not came_up):
                break
            if self.runners:  # another trainer was faster where the rest was to be
                continue
            if not waited:
                waited = True
                logger.info("Waiting for a simulator with a free env runner ...")
            time.sleep(RETRY_PERIOD_S)
        if not self.runners:
            self._say_why_there_is_none(simulators)
            return False
        return self._say_whether_fewer(wanted)

    def top_up(self) -> None:
        """As many as the trainer asks for again, after some made room for RLlib's: on units that are free now."""
        if not self._made_room:
            return
        wanted = self._config.total_env_runners if self.reserved is None else len(self.reserved.nodes)
        deadline, missing = _after(ENV_RUNNER_START_S), wanted - len(self.runners)
        self._made_room = missing > 0
        if not self._made_room:
            return
        self._go_on()
        if self.reserved is not None:
            if units := self.reserved.take(missing):
                self.last_failure = ""
                self._create_granted(self.reserved, deadline, units)
        else:
            simulators = directory.find_simulators(deadline, labels=self._config.labels, refuse_others=False)
            places = _spread(simulators, self._free_units(simulators, deadline), missing)
            self.runners += self._create(places, deadline) if places else []
        self._made_room = len(self.runners) < wanted

    def _free_units(self, simulators: list[directory.SimulatorHandle], deadline: float) -> dict[str, int]:
        """By nodes; not where another version was installed."""
        free = capacity.free_units(simulators, deadline)
        return {node: count for node, count in free.items() if node not in self._other_version}

    def _say_whether_fewer(self, wanted: int) -> bool:
        """A warning where there are fewer than wanted; True."""
        if len(self.runners) < wanted:
            logger.warning(
                "Going on with %d of the %d env runners that were asked for: no more are free. "
                "Start another simulator, or ask for fewer.",
                len(self.runners),
                wanted,
            )
        return True

    def _create_granted(self, grant: capacity.Grant, deadline: float, units: Sequence[int] | None = None) -> bool:
        """Env runners on units that are this trainer's already; nodes that the autoscaler just started among them.

        Units that stay without one are given back, but for those of a reservation.

        Args:
            units: which of them; all where nothing is said.
        """
        self._grant = grant
        strategies = {unit: grant.strategy(unit) for unit in (range(len(grant.nodes)) if units is None else units)}
        try:
            self._grant, by_node = self._simulators_of(grant, strategies, max(deadline, _after(ENV_RUNNER_START_S)))
            nodes = {unit: self._grant.nodes[unit] for unit in strategies}
            places = [(by_node[nodes[unit]], how) for unit, how in strategies.items() if nodes[unit] in by_node]
            came_up = self._create(places, deadline)
        except HubLostError:  # Ray would wait for it
            raise
        except BaseException:
            self._give_back_unless_reserved()
            raise
        self.runners += came_up
        if not came_up:
            self._say_why_there_is_none(list(by_node.values()), granted=len(strategies))
            self._give_back_unless_reserved()
        elif len(came_up) < len(strategies):
            logger.warning("%d env runners were granted, only %d came up.", len(strategies), len(came_up))
            for strategy in strategies.values():
                if all(one.strategy is not strategy for one in came_up):
                    self._let_go_of_unit(strategy)
        return bool(came_up)

    def _simulators_of(
        self, grant: capacity.Grant, units: Collection[int], up_by: float
    ) -> tuple[capacity.Grant, dict[str, directory.SimulatorHandle]]:
        """The grant with the nodes of now, and the simulators where these units are, by node.

        Ray moves units of a simulator that is gone, where it can. Once others answer, one that is gone is waited for no
        longer than an env runner takes to start.
        """
        patient_until = _after(ENV_RUNNER_START_S)
        while True:
            self._go_on()
            grant = grant.looked_at_again()
            wanted = {grant.nodes[unit] for unit in units}
            there = {one.node_id: one for one in directory.find_simulators(up_by, among=wanted)}
            missing = wanted - there.keys()
            now = time.monotonic()
            if there and now >= patient_until:
                missing &= {node["NodeID"] for node in directory.simulator_nodes()}
            if not missing or now >= up_by:
                return grant, there
            time.sleep(RETRY_PERIOD_S)

    def _say_why_there_is_none(self, simulators: Sequence[directory.SimulatorHandle], granted: int = 0) -> None:
        """`granted`: so many units were to have one."""
        labels = self._config.labels
        if self.last_failure:
            logger.error("No env runner could be started; the last one failed with: %s", self.last_failure)
        elif granted and not simulators:
            logger.error(
                "No env runner could be started: no simulator with any of the %d units that were granted answers. "
                "`remoterl status` shows those that do.",
                granted,
            )
        elif simulators and (free := granted or sum(capacity.free_units(simulators, _after(PING_S)).values())):
            logger.error(
                "No env runner came up in time, although %d units of the %d simulators are free: its process starts "
                "too slowly, or not at all. Look at the simulators' output, and give init() a longer timeout_s.",
                free,
                len(simulators),
            )
        elif self._autoscaler_was_late:
            logger.error(
                "The autoscaler has started no simulator%s in time; give init() a timeout_s of the minutes that a "
                "machine takes to start. `remoterl doctor` looks at the cluster.",
                f" with {dict(labels)}" if labels else "",
            )
        elif simulators:
            logger.error(
                "All env runners of the %d simulators are taken; start another simulator, or end another trainer.",
                len(simulators),
            )
        elif labels and (others := directory.simulator_nodes()):
            logger.error(
                "None of the cluster's %d simulators matches labels=%s. Ask for others, or start one that has them: "
                "remoterl simulate --label KEY=VALUE",
                len(others),
                dict(labels),
            )
        else:
            logger.error(
                "The cluster has no simulator (0 of %d nodes). Start one on any machine with: "
                "REMOTERL_ADDRESS=<the hub's address> remoterl simulate",
                _num_nodes(),
            )

    def _create(self, places: Sequence[tuple[directory.SimulatorHandle, Any]], deadline: float) -> list[RunnerLink]:
        """An env runner on each of these simulators, by Ray's scheduling strategy (None: any free unit of the node).

        Those that don't come up are ended; so are all where this raises (Ctrl-C, say).
        """
        started: list[_Started] = []
        try:
            for simulator, strategy in places:
                started.append(_Started(simulator, strategy, self._start(simulator, strategy)))
            links = self._links(started, deadline)
            if self._ended:  # by another thread, which did not know of these
                raise RemoteRLError("The session was closed while an env runner was started.")
            return links
        except BaseException:
            for one in started:
                self._kill(one.actor)
            raise

    def _start(self, simulator: directory.SimulatorHandle, strategy: Any) -> Any:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options = cast(Any, ray.remote(EnvRunner)).options(
            num_cpus=0,
            resources={directory.RESOURCE: 1},
            scheduling_strategy=strategy or NodeAffinitySchedulingStrategy(simulator.node_id, soft=False),
        )
        actor = options.remote(self._info, simulator.actor)
        self._actors.append(actor)
        return actor

    def _links(self, started: Sequence[_Started], deadline: float) -> list[RunnerLink]:
        import ray

        up: list[tuple[_Started, m.EnvRunnerInfo]] = []
        asked = [one.actor.ready.remote() for one in started]
        up_by = max(deadline, time.monotonic() + ENV_RUNNER_START_S)
        outrun: list[_Started] = []
        late = list(asked)
        while late and not outrun and (left := up_by - time.monotonic()) > 0:
            _, late = ray.wait(asked, num_returns=len(asked), timeout=min(ENV_RUNNER_START_S, left))
            if late and left > ENV_RUNNER_START_S:
                outrun = self._outrun([one for one, ready in zip(started, asked, strict=True) if ready in late])
        for one, ready in zip(started, asked, strict=True):
            name = one.simulator.name
            try:
                info = ray.get(ready, timeout=0.1 if one in outrun else max(0.1, up_by - time.monotonic()))
            except ray.exceptions.RayError as error:
                # Another trainer was faster, the simulator is leaving, or its worker can't start.
                logger.debug("an env runner on %s did not come up: %s", name, error)
                if not isinstance(error, ray.exceptions.GetTimeoutError):
                    self.last_failure = f"{str(error).strip().splitlines()[-1]} (on simulator {name})"
                self._kill(one.actor)
                continue
            if not self._speaks_the_same(one, info):
                self._kill(one.actor)
                continue
            self._say_whether_gymnasium_differs(one.simulator)
            up.append((one, info))
        if self._streams is None:
            self._streams = Streams(self._config.step_timeout_s)
        channels, in_words = open_channels(
            [one.actor for one, _ in up],
            [
                f"env runner on simulator {one.simulator.name} (node {one.simulator.node_id[:8]}, pid {info.pid})"
                for one, info in up
            ],
            self._config.channel,
            self._streams,
        )
        if self.channels and {channel.name for channel in channels} - {one.channel.name for one in self.runners}:
            logger.warning("Env runners that were started now: %s.", in_words)  # a step waits for the slowest of all
        self.channels = self.channels or in_words
        return [
            RunnerLink(
                channel=channel,
                actor=one.actor,
                simulator=one.simulator.name,
                node_id=one.simulator.node_id,
                pid=info.pid,
                environments=one.simulator.info.environments,
                garbage=self._garbage,
                strategy=one.strategy,
            )
            for (one, info), channel in zip(up, channels, strict=True)
        ]

    def _speaks_the_same(self, started: _Started, info: m.EnvRunnerInfo) -> bool:
        """Its node's code may be newer than the simulator; one that is to replace another goes elsewhere then.

        Raises:
            VersionMismatchError: it would be the first of the session's.
        """
        try:
            directory.check_version(info.speaks, started.simulator.name)
        except VersionMismatchError as error:
            if not self.runners:
                raise
            self._other_version.add(started.simulator.node_id)
            logger.warning("The simulator %s is left out: %s", started.simulator.name, error)
            return False
        return True

    def _outrun(self, late: Sequence[_Started]) -> list[_Started]:
        """Those whose unit another trainer's env runner has taken since it was looked at, while others are free.

        On a full node Ray queues an env runner, for as long as that takes. One that only starts slowly holds its unit.
        """
        if not (late := [one for one in late if one.strategy is None]):
            return []
        deadline = time.monotonic() + PING_S
        simulators = directory.find_simulators(deadline, labels=self._config.labels, refuse_others=False)
        free = capacity.free_units(simulators, deadline)
        if not any(free.values()):
            return []
        others = {one.node_id: self._others_in(one.info) for one in simulators}
        return [
            one
            for one in late
            if free.get(one.simulator.node_id, 0) < 1
            and others.get(one.simulator.node_id, set()) - self._others_in(one.simulator.info)
        ]

    def _others_in(self, info: m.SimulatorInfo) -> set[str]:
        """Env runners of other trainers."""
        return {one.actor_id for one in info.env_runners if one.trainer.session_id != self._info.session_id}

    def _say_whether_gymnasium_differs(self, simulator: directory.SimulatorHandle) -> None:
        theirs = simulator.info.versions.gymnasium
        if theirs != gymnasium.__version__ and simulator.name not in self._told_differ:
            self._told_differ.add(simulator.name)
            logger.warning(
                "Gymnasium is %s on the simulator %s and %s here: what it returns may differ from local results. "
                "Install the same version on both.",
                theirs, simulator.name, gymnasium.__version__,
            )  # fmt: skip

    # ---- replacing -------------------------------------------------------------------------------------------

    def replace(self, lost: RunnerLink, error: Exception, can_make: Callable[[RunnerLink], bool]) -> RunnerLink:
        """The env runner that takes the place of a lost one, for all its rows: the same for whoever asks.

        One is started on a free unit, of the same simulator if that lives. Where no unit gets free, the rows go to
        the living env runner that has the fewest.

        Args:
            lost: it is ended, should it still live.
            error: how it was lost, for messages.
            can_make: has an env runner's simulator what the rows need?

        Raises:
            EnvRunnerLostError: the session's `max_restarts` are used up, or there is no place for `restart_timeout_s`.
        """
        with self.lock:
            if lost.replaced_by is not None and can_make(lost.replaced_by):
                return lost.replaced_by
            # Those that went with it, with their simulator, are started at the same time.
            others = [one for one in self.runners if one is not lost and one.channel.lost and one.replaced_by is None]
            self._ask_for_causes([lost, *others])
            if lost.cause:
                error = EnvRunnerLostError(f"{error} Ray says: {lost.cause}")
            left = (
                self._config.max_restarts - self.restarts if self._config.max_restarts >= 0 else len(self.runners) + 1
            )
            if left <= 0:
                raise EnvRunnerLostError(
                    f"{error} All of max_restarts={self._config.max_restarts} are used."
                ) from error
            batch = [lost, *others][:left]
            started = time.monotonic()
            for one in batch:
                self.give_up(one)
            found = self._find_places(batch, started + self._config.restart_timeout_s, can_make)
            if not found:
                raise EnvRunnerLostError(
                    f"{error} No other had a free env runner within restart_timeout_s="
                    f"{self._config.restart_timeout_s:g}; start another simulator."
                ) from error
            for one, new in zip(batch, found, strict=False):
                self._put_in_place(one, new)
                logger.warning(
                    "The env runner on %s is lost; its rows go on at %s, after %.1f s. Their episodes are over.%s",
                    one.place,
                    new.place,
                    time.monotonic() - started,
                    f" Ray says: {one.cause}" if one.cause else "",
                )
            for one in batch[: len(found)]:
                if all(each.strategy is not one.strategy for each in (*found, *self.runners)):
                    self._let_go_of_unit(one.strategy)
            return found[0]

    def _ask_for_causes(self, lost: Sequence[RunnerLink]) -> None:
        """How they ended, where Ray knows, but for those that were given up here: that was said."""
        import ray

        dead = [one for one in lost if one.actor in self._actors and not one.cause]
        asked = [one.actor.ready.remote() for one in dead]
        if asked:
            ray.wait(asked, num_returns=len(asked), timeout=CAUSE_S)
        for one, ready in zip(dead, asked, strict=True):
            try:
                ray.get(ready, timeout=0.1)
            except ray.exceptions.RayActorError as error:
                one.cause = str(error).strip().splitlines()[-1].strip()
            except ray.exceptions.GetTimeoutError:  # its node is gone, or its stream alone
                pass

    def _put_in_place(self, lost: RunnerLink, new: RunnerLink) -> None:
        self.restarts += 1
        lost.replaced_by = new
        if lost in self.runners:
            if new in self.runners:
                self.runners.remove(lost)
            else:
                self.runners[self.runners.index(lost)] = new
        elif new not in self.runners:  # another took the lost one's place before, which could not make these rows
            self.runners.append(new)

    def _find_places(
        self, batch: Sequence[RunnerLink], deadline: float, can_make: Callable[[RunnerLink], bool]
    ) -> list[RunnerLink]:
        """An env runner for the first of the batch at least, in its order; none where time ran out."""
        unit_is_back_by = min(time.monotonic() + UNIT_BACK_S, deadline - 2 * RETRY_PERIOD_S)
        while not self._ended:
            self._go_on()
            ping_by = min(deadline, time.monotonic() + PING_S)
            if self._grant is not None:
                self._grant = self._grant.looked_at_again()
            labels = self._config.labels if self.reserved is None else self.reserved.labels
            simulators = directory.find_simulators(ping_by, labels=labels, refuse_others=False)
            free = capacity.free_units(simulators, ping_by)
            usable = [one for one in simulators if one.node_id not in self._other_version]
            places = _places(
                batch,
                usable,
                free,
                self._grant,
                free_granted=() if self.reserved is None else self.reserved.free_units(),
                in_use=[one.strategy for one in self.living()],
                own_comes_back=time.monotonic() < unit_is_back_by,
            )
            up = self._create(places, min(deadline, time.monotonic() + ENV_RUNNER_START_S)) if places else []
            up.sort(key=can_make, reverse=True)
            if up and can_make(up[0]):
                return up
            for new in up:
                self.give_up(new)
            if time.monotonic() >= unit_is_back_by:
                answering = {simulator.node_id for simulator in simulators}
                living = [one for one in self.living() if one.node_id in answering and can_make(one)]
                living.sort(key=lambda runner: runner.rows)
                if living:
                    return [living[index % len(living)] for index in range(len(batch))]
            if time.monotonic() + RETRY_PERIOD_S >= deadline:
                return []
            time.sleep(RETRY_PERIOD_S)
        return []

    # ---- moving and letting go ---------------------------------------------------------------------------------

    def move_idle(self, wanted_there: Callable[[directory.SimulatorHandle], bool]) -> list[RunnerLink]:
        """Env runners on these simulators, in place of those that have no rows, as far as there are units for them."""
        with self.lock:
            idle = [runner for runner in self.living() if runner.rows == 0]
            if not idle or self._grant is not None:  # granted units are where they are
                return []
            deadline = time.monotonic() + ENV_RUNNER_START_S
            simulators = [
                one for one in directory.find_simulators(deadline, labels=self._config.labels) if wanted_there(one)
            ]
            places = _spread(simulators, capacity.free_units(simulators, deadline), len(idle))
            moved = self._create(places, deadline) if places else []
            for old, new in zip(idle, moved, strict=False):
                self.runners[self.runners.index(old)] = new
                self.give_up(old)
            return moved

    def let_go_idle(self) -> bool:
        """End the env runners that have no rows; were there any? Their units are free soon."""
        with self.lock:
            idle = [runner for runner in self.runners if runner.rows == 0]
            for runner in idle:
                self.let_go(runner)
            if not self.runners:
                self._give_back_unless_reserved()
            self._made_room = self._made_room or bool(idle and self.runners)
            return bool(idle)

    def let_go(self, runner: RunnerLink) -> None:
        """End one env runner that nobody needs."""
        if runner in self.runners:
            self.runners.remove(runner)
        self.give_up(runner)
        self._let_go_of_unit(runner.strategy)

    def _let_go_of_unit(self, strategy: Any) -> None:
        """What the autoscaler gave for this env runner is free for others again; a reservation stays whole."""
        if self._grant is not None and self._grant.reservation is None and strategy is not None:
            self._grant = self._grant.without(strategy)

    def give_up(self, runner: RunnerLink) -> None:
        """End one env runner, stuck as it may be; to whoever has rows there, it is lost."""
        runner.channel.close()
        self._kill(runner.actor)

    # ---- ending ----------------------------------------------------------------------------------------------

    def end(self) -> None:
        """End them all, those that did not come up included, and give units back that were granted."""
        self._ended = True
        for runner in self.runners:
            runner.channel.close()
        self._let_go_of_memory()
        for actor in list(self._actors):
            self._kill(actor)
        self._give_back()

    def abandon(self) -> None:
        """In a forked child: they are the parent's. Or the hub is gone, and they with it."""
        self._ended = True
        for runner in self.runners:
            runner.channel.abandon()
        self._let_go_of_memory()

    def _let_go_of_memory(self) -> None:
        if self._streams is not None and self._streams.memory is not None:
            self._streams.memory.close()

    def _give_back_unless_reserved(self) -> None:
        if self.reserved is None:
            self._give_back()

    def _give_back(self) -> None:
        import ray

        grant, self._grant = self._grant, None
        if grant is None or not ray.is_initialized():  # Ray would start a cluster of its own on this machine
            return
        try:
            grant.give_back()
        except Exception as error:
            logger.debug("units were given back already: %s", error)

    def _kill(self, actor: Any) -> None:
        import ray

        if actor in self._actors:
            self._actors.remove(actor)
        if not ray.is_initialized():  # otherwise Ray would start a cluster of its own on this machine
            return
        try:
            ray.kill(actor)
        except Exception as error:
            logger.debug("an env runner was gone already: %s", error)


class _Started(NamedTuple):
    """An env runner that was asked for."""

    simulator: directory.SimulatorHandle
    strategy: Any
    actor: Any


def _all_in_use(grant: capacity.Grant) -> CapacityError:
    return CapacityError(
        f"All {len(grant.nodes)} env runners of the reservation are in use. Ask for fewer, or reserve more."
    )


def _spread(
    simulators: Sequence[directory.SimulatorHandle], free: Mapping[str, int], wanted: int
) -> list[tuple[directory.SimulatorHandle, Any]]:
    """Where to start so many env runners, as `_create` takes it: in proportion to free units."""
    counts = plan(free, wanted)
    return [(one, None) for one in simulators for _ in range(counts.get(one.node_id, 0))]


def _places(
    batch: Sequence[RunnerLink],
    simulators: Sequence[directory.SimulatorHandle],
    free: Mapping[str, int],
    grant: capacity.Grant | None,
    free_granted: Collection[int] = (),
    in_use: Sequence[Any] = (),
    own_comes_back: bool = False,
) -> list[tuple[directory.SimulatorHandle, Any]]:
    """Where to start an env runner for each lost one, as `_create` takes it: its own simulator if that has a unit.

    In the unit that was granted for it, if that is where somebody answers (Ray moves it when its simulator is gone),
    else in another of a reservation, else in any.

    Args:
        free_granted: units of a reservation that nobody is in.
        in_use: the strategies of living ones, which may have taken others' units.
        own_comes_back: is one's own unit of a reservation waited for, which Ray does not see as free at once?
    """
    free = dict(free)
    able = {one.node_id: one for one in simulators if not one.info.draining}
    owns = [None if grant is None else grant.unit_of(lost.strategy) for lost in batch]
    there = _granted_there(grant, able, in_use)
    is_reserved = grant is not None and grant.reservation is not None  # RLlib's may be in these, too
    spare = [unit for unit in free_granted if is_reserved and unit in there and unit not in owns]
    places: list[tuple[directory.SimulatorHandle, Any]] = []
    for lost, own in zip(batch, owns, strict=True):
        if own in there and (own in free_granted or not is_reserved):
            places.append((able[there[own]], lost.strategy))
        elif grant is not None and spare:
            unit = spare.pop(0)
            places.append((able[there[unit]], grant.strategy(unit)))
        elif own in there and own_comes_back:
            continue
        elif with_units := [one for one in simulators if free.get(one.node_id, 0) >= 1]:
            best = max(with_units, key=lambda one: (one.node_id == lost.node_id, free[one.node_id]))
            free[best.node_id] -= 1
            places.append((best, None))
    return places


def _granted_there(grant: capacity.Grant | None, able: Collection[str], in_use: Sequence[Any]) -> dict[int | None, str]:
    """Unit -> node of those granted ones that are on these nodes, and that no living env runner is in."""
    if grant is None:
        return {}
    held = {grant.unit_of(strategy) for strategy in in_use}
    return {unit: node for unit, node in enumerate(grant.nodes) if node in able and unit not in held}


def knows(ids: frozenset[str] | Mapping[str, Any], env_id: str) -> bool:
    """Is the id, or (for an id without a version) any version of it, among these?"""
    return env_id in ids or any(known.rpartition("-v")[0] == env_id for known in ids)


def _after(seconds: float) -> float:
    return time.monotonic() + seconds


def _num_nodes() -> int:
    import ray

    return sum(node["Alive"] for node in ray.nodes())
