"""Whatever fails, and whenever: no action is applied twice, no transition is lost or doubled, no loss goes untold.

Hypothesis makes up stories of calls and faults for vector envs that share env runners. All of the path but the wire is
real: faces, core, recovery, and env runners with their rows. A `Channel` of this file stands for the wire, on which
env runners die or get stuck at any request, and a `Rescuer` of this file for the session. Beside them runs a model:
for each row, the environment as its trainer may believe it to be.

REMOTERL_TEST_EXAMPLES=5000 makes that many stories, other ones each time, instead of the same few.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError
from gymnasium.vector import AutoresetMode
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from ledger import LedgerEnv

from remoterl import messages as m
from remoterl.actors.env_runner import EnvRunner
from remoterl.channels.base import Channel
from remoterl.channels.codec import Landing
from remoterl.channels.framing import FrameSocket
from remoterl.errors import EnvRunnerLostError, RemoteRLError, StepTimeoutError
from remoterl.placement import split_rows
from remoterl.shipping import ship
from remoterl.vector import recovery
from remoterl.vector.core import Assignment, Part, RunnerLink, VectorCore
from remoterl.vector.gymnasium import RemoteAsyncVectorEnv, RemoteSyncVectorEnv
from remoterl.vector.sb3 import RemoteDummyVecEnv, RemoteSubprocVecEnv
from remoterl.vector.single import RemoteEnv

EXAMPLES = int(os.environ.get("REMOTERL_TEST_EXAMPLES", "0"))
POISON = 999  # an action that raises
FACTORIES_FAIL = "REMOTERL_TEST_FACTORIES_FAIL"
NEXT_STEP, SAME_STEP, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED


class Brittle(LedgerEnv):
    """Raises when it is told to, with nothing done."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if options:
            raise ValueError("told to fail")
        return super().reset(seed=seed)

    def step(self, action: int) -> Any:
        if action == POISON:
            raise ValueError("poison")
        return super().step(action)


@functools.cache
def shipped_factories(episode: int, rows: int) -> bytes:
    def make() -> LedgerEnv:
        if os.environ.get(FACTORIES_FAIL):
            raise ValueError("no environment today")
        return Brittle(episode)

    return ship([make] * rows)


# ---- the world: env runners, the wire, and where new env runners come from -------------------------------------------


class Hang(Exception):
    """The trainer would wait for ever."""


@dataclass(eq=False)
class Ticket:
    request: Any
    reply: bytes | None = None
    lost: bool = False
    landing: Landing | None = None


class Host:
    """An env runner's process: works through its inbox, unless it is dead or stuck."""

    def __init__(self, world: World, fate: tuple[int, str] | None, factories_fail: bool) -> None:
        self.runner = EnvRunner(m.TrainerInfo("session", "script", "host", 1))
        self.inbox: deque[tuple[Ticket, bytes]] = deque()
        self.alive, self.noticed, self.stuck = True, False, False
        self.fate = fate  # after so many requests: dies "before" or "after" the next one, or is "stuck" with it
        self._world = world
        self._factories_fail = factories_fail  # the first time

    def work(self) -> None:
        while self.inbox and self.alive and not self.stuck:
            ticket, payload = self.inbox[0]
            fate = None
            if self.fate is not None:
                count, how = self.fate
                if count > 0:
                    self.fate = (count - 1, how)
                else:
                    fate, self.fate = how, None
            if fate == "before":
                self.die()
            elif fate == "stuck":
                self.stuck = True
            else:
                self.inbox.popleft()
                ticket.reply = self._answer(ticket.request, payload)
                if fate == "after":
                    ticket.reply = None
                    ticket.lost = True
                    self.die()

    def _answer(self, request: Any, payload: bytes) -> bytes:
        if not (isinstance(request, m.OpenRows) and self._factories_fail):
            return self.runner.handle(payload)
        self._factories_fail, self._world.failed_to_open = False, True
        os.environ[FACTORIES_FAIL] = "1"
        try:
            return self.runner.handle(payload)
        finally:
            del os.environ[FACTORIES_FAIL]

    def die(self) -> None:
        self.alive = False
        for ticket, _ in self.inbox:
            ticket.lost = True
        self.inbox.clear()


class InProcess(Channel):
    """The wire to one host."""

    name = "in-process"

    def __init__(self, world: World, host: Host, number: int) -> None:
        super().__init__(f"env runner {number}")
        self._world, self.host = world, host
        self._under_way: list[Ticket] = []
        self._ends = tuple(map(FrameSocket, socket.socketpair()))

    def send(self, request: Any, landing: Landing | None = None) -> Ticket:
        if self.lost or (not self.host.alive and self.host.noticed):
            raise self._dead()
        ticket = Ticket(request, lost=not self.host.alive, landing=landing)
        if self.host.alive:
            self.host.inbox.append((ticket, m.encode(request)))
        self._under_way.append(ticket)
        return ticket

    def receive(self, ticket: Ticket, timeout_s: float | None = None) -> Any:
        self.host.work()
        if ticket.reply is None and not ticket.lost:
            assert self.host.stuck
            if timeout_s is not None:
                self._world.late.append(self.host)
                raise self._late(timeout_s)
            if self._world.step_timeout_s is not None:
                raise Hang(f"no limit for {ticket.request}")
            self.host.stuck = False  # it comes to an end after all
            return self.receive(ticket)
        self._under_way.remove(ticket)
        if ticket.lost:
            raise self._dead()
        assert ticket.reply is not None
        reply = m.decode(ticket.reply)
        if ticket.landing is None:
            return reply
        theirs, ours = self._ends
        theirs.put(reply)
        theirs.flush()
        return ours.get(ticket.landing)

    def close(self) -> None:
        super().close()
        for end in self._ends:
            end.close()
        for ticket in self._under_way:
            ticket.lost = True

    def _dead(self) -> EnvRunnerLostError:
        if not self.lost:
            self._world.surprises += 1
        return self._gone("it died")


class World:
    """The session's part: the `Rescuer` of every vector env."""

    def __init__(self, step_timeout_s: float | None) -> None:
        self.step_timeout_s = step_timeout_s
        self.restarts = 0
        self.links: list[RunnerLink] = []
        self.plans: deque[Any] = deque()  # for the next replacements: "none", "living", "fails", or a new one's fate
        self.begin()

    def begin(self) -> None:
        """Of one call of a trainer's: what happened during it."""
        self.late: list[Host] = []
        self.surprises = 0  # deaths that nobody knew of
        self.refused = False
        self.failed_to_open = False

    def start(self, fate: tuple[int, str] | None = None, factories_fail: bool = False) -> RunnerLink:
        number = len(self.links)
        channel = InProcess(self, Host(self, fate, factories_fail), number)
        link = RunnerLink(channel, None, f"simulator-{number}", f"{number:08}", number, frozenset(), SimpleQueue())
        self.links.append(link)
        return link

    def living(self) -> list[RunnerLink]:
        return [link for link in self.links if not link.channel.lost]

    def replace(self, lost: RunnerLink, error: Exception, env_id: str) -> RunnerLink:
        assert lost.channel.lost, f"{lost.place} lives"
        if lost.replaced_by is not None:
            return lost.replaced_by
        self.give_up(lost)
        plan = self.plans.popleft() if self.plans else None
        others = [link for link in self.living() if link is not lost]
        if plan == "none" or (plan == "living" and not others):
            self.refused = True
            raise EnvRunnerLostError(f"{error} No other had a free env runner.")
        if plan == "living":
            lost.replaced_by = min(others, key=lambda link: link.rows)
        elif plan == "fails":
            lost.replaced_by = self.start(None, factories_fail=True)
        else:
            lost.replaced_by = self.start(plan)
        return lost.replaced_by

    def give_up(self, runner: RunnerLink) -> None:
        host = host_of(runner)
        assert not host.alive or host.stuck or runner.channel.lost, f"{runner.place} lives and answers"
        runner.channel.close()
        host.die()

    def registered(self) -> dict[str, Any]:
        return {}

    def news_for(self, runner: RunnerLink, registered: Mapping[str, Any]) -> bytes:
        return b""


def host_of(link: RunnerLink) -> Host:
    assert isinstance(link.channel, InProcess)
    return link.channel.host


# ---- the model: what a trainer may believe ---------------------------------------------------------------------------


class Kind(NamedTuple):
    semantics: m.Semantics
    mode: AutoresetMode
    is_async: bool

    @property
    def is_sb3(self) -> bool:
        return self.semantics in recovery.SB3

    @property
    def is_gymnasium(self) -> bool:
        return self.semantics in (m.Semantics.GYMNASIUM_SYNC, m.Semantics.GYMNASIUM_ASYNC)

    @property
    def starts_at_once(self) -> bool:
        """In the step in which an episode ends."""
        return self.is_sb3 or (self.is_gymnasium and self.mode == SAME_STEP)


KINDS = [Kind(m.Semantics.GYMNASIUM_SYNC, mode, False) for mode in AutoresetMode]
KINDS += [Kind(m.Semantics.GYMNASIUM_ASYNC, mode, True) for mode in AutoresetMode]
KINDS += [Kind(semantics, NEXT_STEP, True) for semantics in recovery.SB3]
KINDS += [Kind(m.Semantics.SINGLE, NEXT_STEP, False)]


class AnySeed:
    """Equal to any seed: a revived environment that was not reset yet."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class DerivedSeed:
    """Equal to the seeds that come of this one by losses."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __eq__(self, other: object) -> bool:
        return any(other == recovery.derived_seeds([self._seed], losses)[0] for losses in range(1, 400))

    __hash__ = None  # type: ignore[assignment]


class Outcome(NamedTuple):
    """What one row's step tells."""

    observation: list[Any]
    reward: float
    terminated: bool  # Stable-Baselines3: done
    truncated: bool
    lost: bool
    final: list[Any] | None


@dataclass
class Sim:
    """A `Brittle` environment under the rules of one class."""

    episode: int
    steps: int = 0
    seed: Any = -1
    fresh: Any = None  # for the first reset that brings no seed
    finished: bool = False
    book: list[tuple[int, int]] = field(default_factory=list)
    observation: list[Any] = field(default_factory=list)

    def reset(self, seed: Any, fails: bool = False) -> None:
        seed, self.fresh = self.fresh if seed is None else seed, None
        if not fails:
            self.steps, self.finished, self.seed = 0, False, -1 if seed is None else seed
            self.observation = [0, len(self.book), -1, self.seed]

    def step(self, kind: Kind, action: int) -> Outcome | str:
        """The outcome, or what an error says."""
        if kind.is_gymnasium and kind.mode == NEXT_STEP and self.finished:
            self.reset(None)
            return Outcome(self.observation, 0.0, False, False, False, None)
        if kind.semantics is m.Semantics.GYMNASIUM_SYNC and kind.mode == DISABLED and self.finished:
            return "reset it first"
        if action == POISON:
            return "poison"
        self.steps += 1
        self.book.append((len(self.book) + 1, action))
        ended, final = self.steps >= self.episode, None
        self.observation = [self.steps, len(self.book), action, self.seed]
        if ended and kind.starts_at_once:
            final = self.observation
            self.reset(None)
        return Outcome(self.observation, float(action), ended, False, False, final)


class Vec:
    """A vector env, and the model of it: a `Sim` a row, and of which making of each part the trainer knows."""

    def __init__(self, kind: Kind, core: VectorCore, episode: int) -> None:
        self.kind, self.core, self.episode = kind, core, episode
        self.face = _face(kind, core)
        self.num_rows = core.num_rows
        self.sims = [Sim(episode) for _ in range(self.num_rows)]
        self.made = [part.id for part in self.parts]  # of which the sims are models
        self.known = list(self.made)
        self.seeds: list[int | None] = [None] * self.num_rows
        self.given: list[int | None] = [None] * self.num_rows  # SB3: kept until a reset worked
        self.seen: list[list[Any]] | None = None
        self.flight: list[list[Outcome | str] | None] | None = None
        self.kept: list[int] = []  # actions of a DummyVecEnv, which steps when its step is waited for
        self.closed = False

    @property
    def parts(self) -> list[Part]:
        return self.core._parts

    def pending(self, index: int) -> bool:
        """Was this part lost, and the trainer has not heard of it yet?"""
        return self.known[index] != self.parts[index].id

    def follow(self) -> None:
        """Parts that were made anew have new environments."""
        for index, part in enumerate(self.parts):
            if self.made[index] != part.id:
                self.made[index] = part.id
                for row in part.rows:
                    self.sims[row] = Sim(self.episode)

    def fresh(self, row: int) -> Any:
        seed = self.seeds[row]
        return None if seed is None else DerivedSeed(seed)

    # ---- what the trainer sends, and what has to come of it -------------------------------------------------

    def sent_step(self, actions: Sequence[int]) -> list[list[Outcome | str] | None]:
        """For each part: an outcome a row, None where nothing was sent."""
        outcomes: list[list[Outcome | str] | None] = []
        for index, part in enumerate(self.parts):
            if self.pending(index):
                outcomes.append(None)
                continue
            rows = [(self.sims[row], self.sims[row].step(self.kind, actions[row])) for row in part.rows]
            if not any(isinstance(outcome, str) for _, outcome in rows):
                for sim, outcome in rows:
                    sim.finished = outcome.terminated  # type: ignore[union-attr]
            outcomes.append([outcome for _, outcome in rows])
        return outcomes

    def came_step(self, flight: list[list[Outcome | str] | None], got: list[Outcome]) -> None:
        assert self.seen is not None
        for index, part in enumerate(self.parts):
            expected = [self._lost(row) for row in part.rows] if self.pending(index) else flight[index]
            assert [got[row] for row in part.rows] == expected, (part.rows, self.kind)
            self.known[index] = part.id
        self.seen = [one.observation for one in got]

    def _lost(self, row: int) -> Outcome:
        assert self.seen is not None
        sim, last = self.sims[row], self.seen[row]
        if self.kind.starts_at_once:
            sim.reset(self.fresh(row))
            return Outcome(sim.observation, 0.0, self.kind.is_sb3, True, True, last)
        sim.fresh, sim.finished, sim.observation, sim.seed = self.fresh(row), True, last, AnySeed()
        return Outcome(last, 0.0, False, True, True, None)

    def sent_reset(self, seeds: Sequence[int | None], mask: Sequence[bool], fails: bool) -> None:
        for index, part in enumerate(self.parts):
            for row in part.rows:
                if mask[row]:
                    self.seeds[row] = self.seeds[row] if seeds[row] is None else seeds[row]
                    if not self.pending(index):
                        self.sims[row].reset(seeds[row], fails)

    def came_reset(self, seeds: Sequence[int | None], mask: Sequence[bool], got: list[list[Any]]) -> None:
        whole = all(mask)
        for index, part in enumerate(self.parts):
            for row in part.rows:
                sim = self.sims[row]
                if self.pending(index):
                    if mask[row]:
                        sim.reset(self.fresh(row) if seeds[row] is None else seeds[row])
                    else:
                        assert self.seen is not None
                        sim.observation = self.seen[row]
                assert got[row] == sim.observation, (row, self.kind)
            if whole or all(mask[row] for row in part.rows):
                self.known[index] = part.id
        self.seen = got


def _face(kind: Kind, core: VectorCore) -> Any:
    if kind.semantics is m.Semantics.SINGLE:
        return RemoteEnv(core)
    if kind.semantics is m.Semantics.SB3_DUMMY:
        return set_up(RemoteDummyVecEnv, core, {})
    if kind.semantics is m.Semantics.SB3_SUBPROC:
        return set_up(RemoteSubprocVecEnv, core, {"start_method": None})
    arguments = {"copy": True, "observation_mode": "same", "autoreset_mode": kind.mode}
    if kind.is_async:
        return set_up(RemoteAsyncVectorEnv, core, {**arguments, "context": None, "shared_memory": False})
    return set_up(RemoteSyncVectorEnv, core, arguments)


def set_up(face: Any, core: VectorCore, arguments: Mapping[str, Any]) -> Any:
    """As `patches.becoming` does it."""
    made = face.__new__(face)
    made.set_up(core, arguments)
    return made


def observations_of(kind: Kind, observations: Any) -> list[list[Any]]:
    return [observations.tolist()] if kind.semantics is m.Semantics.SINGLE else observations.tolist()


def outcomes_of(kind: Kind, stepped: Any) -> list[Outcome]:
    """What `step` returned, by row; it must be complete and of the right form."""
    if kind.semantics is m.Semantics.SINGLE:
        observation, reward, terminated, truncated, info = stepped
        return [Outcome(observation.tolist(), reward, terminated, truncated, _is_told(info.get("remoterl")), None)]
    if kind.is_sb3:
        observations, rewards, dones, infos = stepped
        return [
            Outcome(
                observations[row].tolist(),
                rewards[row],
                bool(dones[row]),
                info["TimeLimit.truncated"],
                _is_told(info.get("remoterl")),
                info["terminal_observation"].tolist() if "terminal_observation" in info else None,
            )
            for row, info in enumerate(infos)
        ]
    observations, rewards, terminations, truncations, infos = stepped
    nothing = np.zeros(len(rewards), bool)
    told, final = infos.get("_remoterl", nothing), infos.get("_final_obs", nothing)
    return [
        Outcome(
            observations[row].tolist(),
            rewards[row],
            bool(terminations[row]),
            bool(truncations[row]),
            bool(told[row]) and bool(infos["remoterl"]["lost"][row]),
            infos["final_obs"][row].tolist() if final[row] else None,
        )
        for row in range(len(rewards))
    ]


def _is_told(told: Any) -> bool:
    assert told is None or (told["lost"] and told["simulator"] and told["reason"] and told["moved_to"])
    return told is not None


# ---- the stories -----------------------------------------------------------------------------------------------------

FATES = st.tuples(st.integers(0, 3), st.sampled_from(["before", "after", "stuck"]))
SEEDS = st.one_of(st.none(), st.integers(0, 1000))
NUMBERS = st.integers(0, 11)
LIMITS = st.sampled_from([None, None, 0.5])
ONE_IN_TEN = st.integers(0, 9).map(lambda number: number == 9)


class Stories(RuleBasedStateMachine):
    """Vector envs of one session, their trainer, and what befalls their env runners."""

    def __init__(self) -> None:
        super().__init__()
        self.vecs: list[Vec] = []
        self._numbers = itertools.count()

    @initialize(
        step_timeout_s=st.sampled_from([None, 1.0]),
        hosts=st.integers(1, 3),
        kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=2),
        rows=st.integers(2, 4),
        episode=st.integers(1, 5),
        seed=SEEDS,
    )
    def begin(
        self, step_timeout_s: float | None, hosts: int, kinds: list[Kind], rows: int, episode: int, seed: int | None
    ) -> None:
        self.world = World(step_timeout_s)
        for _ in range(hosts):
            self.world.start()
        for number, kind in enumerate(kinds):
            self.open(kind=kind, rows=rows, first=number, episode=episode)
            self.reset(number=number, seed=seed, fails=False, timeout_s=None)

    # ---- what a trainer does ------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.can_do()) < 3)
    @rule(kind=st.sampled_from(KINDS), rows=st.integers(1, 4), first=NUMBERS, episode=st.integers(1, 5))
    def open(self, kind: Kind, rows: int, first: int, episode: int) -> None:
        links = self.world.living() or [self.world.start()]
        links = links[first % len(links) :] + links[: first % len(links)]
        ranges = split_rows(1 if kind.semantics is m.Semantics.SINGLE else rows, len(links))
        assignments = [
            Assignment(link, own, shipped_factories(episode, len(own)), b"")
            for link, own in zip(links, ranges, strict=False)
        ]
        self.world.begin()
        core = None
        try:
            core = VectorCore.open(assignments, kind.semantics, kind.mode, "Ledger", self.world)
            self.vecs.append(Vec(kind, core, episode))  # a face may ask for attributes when it is made
        except EnvRunnerLostError:
            assert self.world.surprises
        except StepTimeoutError:
            assert self.world.late and not any(host.alive for host in self.world.late)
        except ValueError:
            assert self.world.failed_to_open
        if core is not None and (not self.vecs or self.vecs[-1].core is not core):
            core.close()

    @precondition(lambda self: self.can_do("reset"))
    @rule(number=NUMBERS, seed=SEEDS, fails=ONE_IN_TEN, timeout_s=LIMITS)
    def reset(self, number: int, seed: int | None, fails: bool, timeout_s: float | None) -> None:
        vec = self.pick(number, "reset")
        seeds = [None if seed is None else seed + row for row in range(vec.num_rows)]
        if vec.kind.is_sb3:
            fails, timeout_s = False, None
            if seed is not None:
                vec.face.seed(seed)
                vec.given = seeds
            seeds = vec.given
            vec.flight = None  # thrown away
        self._reset(vec, seed, seeds, [True] * vec.num_rows, {"fail": True} if fails else None, timeout_s)

    @precondition(lambda self: self.can_do("reset some"))
    @rule(number=NUMBERS, seed=SEEDS, chosen=st.integers(1, 14))
    def reset_some(self, number: int, seed: int | None, chosen: int) -> None:
        vec = self.pick(number, "reset some")
        mask = [bool(chosen >> row & 1) for row in range(vec.num_rows)]
        if any(mask):
            seeds = [None if seed is None else seed + row for row in range(vec.num_rows)]
            self._reset(vec, seed, seeds, mask, {"reset_mask": np.array(mask)}, None)

    def _reset(
        self, vec: Vec, seed: Any, seeds: Sequence[Any], mask: Sequence[bool], options: Any, timeout_s: float | None
    ) -> None:
        fails = options is not None and "fail" in options
        vec.sent_reset(seeds, mask, fails)
        with _Call(self.world, vec, timeout_s, {"told to fail"} if fails else set()) as call:
            if vec.kind.is_sb3:
                call.result = vec.face.reset()
            elif vec.kind.is_async:
                vec.face.reset_async(seed=seed, options=options)
                call.result = vec.face.reset_wait(timeout_s)[0]
            else:
                call.result = vec.face.reset(seed=seed, options=options)[0]
        if call.result is not None:
            assert not fails
            vec.came_reset(seeds, mask, observations_of(vec.kind, call.result))
            vec.given = [None] * vec.num_rows

    @precondition(lambda self: self.can_do("step"))
    @rule(number=NUMBERS, poisoned=st.integers(0, 15))
    def step(self, number: int, poisoned: int) -> None:
        vec = self.pick(number, "step")
        actions = self._actions(vec, poisoned)
        flight = vec.sent_step(actions)
        with _Call(self.world, vec, None, _errors(flight)) as call:
            call.result = vec.face.step(actions[0] if vec.kind.semantics is m.Semantics.SINGLE else np.array(actions))
        if call.result is not None:
            vec.came_step(flight, outcomes_of(vec.kind, call.result))

    @precondition(lambda self: self.can_do("step async"))
    @rule(number=NUMBERS, poisoned=st.integers(0, 15))
    def step_async(self, number: int, poisoned: int) -> None:
        vec = self.pick(number, "step async")
        actions = self._actions(vec, poisoned)
        if vec.kind.semantics is m.Semantics.SB3_DUMMY:
            vec.kept, vec.flight = actions, []
        else:
            vec.flight = vec.sent_step(actions)
        vec.face.step_async(np.array(actions))

    @precondition(lambda self: self.can_do("wait"))
    @rule(number=NUMBERS, timeout_s=LIMITS)
    def step_wait(self, number: int, timeout_s: float | None) -> None:
        vec = self.pick(number, "wait")
        flight, vec.flight = vec.flight, None
        assert flight is not None
        if vec.kind.semantics is m.Semantics.SB3_DUMMY:
            flight = vec.sent_step(vec.kept)
        with _Call(self.world, vec, None if vec.kind.is_sb3 else timeout_s, _errors(flight)) as call:
            call.result = vec.face.step_wait() if vec.kind.is_sb3 else vec.face.step_wait(timeout_s)
        if call.result is not None:
            vec.came_step(flight, outcomes_of(vec.kind, call.result))

    @precondition(lambda self: self.can_do("read"))
    @rule(number=NUMBERS)
    def read(self, number: int) -> None:
        vec = self.pick(number, "read")
        with _Call(self.world, vec, None, set()) as call:
            call.result = [vec.face.book] if vec.kind.semantics is m.Semantics.SINGLE else vec.face.get_attr("book")
        if call.result is not None:
            assert [list(book) for book in call.result] == [sim.book for sim in vec.sims]

    @precondition(lambda self: self.can_do() and len(self.vecs) < 6)
    @rule(number=NUMBERS)
    def close(self, number: int) -> None:
        self._close(self.pick(number))

    def _close(self, vec: Vec) -> None:
        vec.closed = True
        for _ in range(2):
            vec.face.close()
        with pytest.raises((ClosedEnvironmentError, RemoteRLError)):
            vec.face.reset()
        with pytest.raises((ClosedEnvironmentError, RemoteRLError)):
            vec.face.step(np.zeros(vec.num_rows, int))

    # ---- what befalls it ----------------------------------------------------------------------------------------

    @precondition(lambda self: self.victims())
    @rule(number=NUMBERS, executed=st.booleans(), answered=st.booleans(), noticed=st.booleans())
    def kill(self, number: int, executed: bool, answered: bool, noticed: bool) -> None:
        """An env runner dies, before or after it has done what is under way, and before or after its replies left."""
        host = self.victim(number)
        if executed:
            under_way = [ticket for ticket, _ in host.inbox]
            host.work()
            for ticket in under_way:
                ticket.lost |= not answered
        host.die()
        host.noticed = noticed

    @precondition(lambda self: self.can_do("step") and self.victims())
    @rule(number=NUMBERS, times=st.integers(2, 4))
    def kill_again_and_again(self, number: int, times: int) -> None:
        """While another vector env with rows there may be idle."""
        vec = self.pick(number, "step")
        for _ in range(times):
            host_of(vec.parts[0].runner).die()
            if vec.seen is not None and not vec.closed:
                self.step(number=self.can_do("step").index(vec), poisoned=15)

    @precondition(lambda self: self.victims())
    @rule(number=NUMBERS, fate=FATES)
    def foresee(self, number: int, fate: tuple[int, str]) -> None:
        self.victim(number).fate = fate

    @precondition(lambda self: any(host.stuck for host in map(host_of, self.world.links)))
    @rule()
    def late_answers_come(self) -> None:
        for host in map(host_of, self.world.links):
            host.stuck = False
            host.work()

    @precondition(lambda self: len(self.world.plans) < 3)
    @rule(plan=st.one_of(st.sampled_from(["none", "living", "fails"]), FATES))
    def foresee_replacement(self, plan: Any) -> None:
        self.world.plans.append(plan)

    # ---- what always holds --------------------------------------------------------------------------------------

    @invariant()
    def rows_are_counted(self) -> None:
        counts = {id(link): 0 for link in self.world.links}
        for vec in self.can_do():
            for part in vec.parts:
                counts[id(part.runner)] += len(part.rows)
        assert [link.rows for link in self.world.links] == list(counts.values())

    def teardown(self) -> None:
        """The books of the environments that live are those of the model, and closing leaves nothing behind."""
        if not hasattr(self, "world"):
            return
        for host in map(host_of, self.world.links):
            host.fate, host.stuck = None, False
            host.work()
        for vec in self.can_do():
            for part in vec.parts:
                rows = host_of(part.runner).runner._rows.get(part.id)
                if host_of(part.runner).alive and rows is not None:
                    books = [env.unwrapped.book for env in rows.envs]
                    assert books == [vec.sims[row].book for row in part.rows]
            self._close(vec)
        for host in map(host_of, self.world.links):
            host.work()
            assert not host.alive or host.runner._rows == {}
        assert not any(link.rows for link in self.world.links)

    # ---- helpers ------------------------------------------------------------------------------------------------

    def can_do(self, what: str = "") -> list[Vec]:
        """The open vector envs of which a trainer may ask this now."""
        allowed: dict[str, Callable[[Vec], bool]] = {
            "": lambda vec: True,
            "reset": lambda vec: vec.flight is None or vec.kind.is_sb3,
            "reset some": lambda vec: vec.flight is None and vec.kind.is_gymnasium and vec.seen is not None,
            "step": lambda vec: vec.flight is None and vec.seen is not None,
            "step async": lambda vec: vec.flight is None and vec.seen is not None and vec.kind.is_async,
            "wait": lambda vec: vec.flight is not None,
            "read": lambda vec: vec.flight is None or vec.kind.is_sb3,
        }
        return [vec for vec in self.vecs if not vec.closed and allowed[what](vec)]

    def pick(self, number: int, what: str = "") -> Vec:
        vecs = self.can_do(what)
        return vecs[number % len(vecs)]

    def victims(self) -> list[Host]:
        """Living env runners with rows."""
        runners = {id(part.runner): part.runner for vec in self.can_do() for part in vec.parts}
        return [host for host in map(host_of, runners.values()) if host.alive]

    def victim(self, number: int) -> Host:
        hosts = self.victims()
        return hosts[number % len(hosts)]

    def _actions(self, vec: Vec, poisoned: int) -> list[int]:
        actions = [next(self._numbers) % POISON for _ in range(vec.num_rows)]
        if poisoned < vec.num_rows:
            actions[poisoned] = POISON
        return actions


def _errors(flight: list[list[Outcome | str] | None]) -> set[str]:
    return {outcome for part in flight for outcome in part or [] if isinstance(outcome, str)}


class _Call:
    """One call of a trainer's, which may raise what its circumstances explain, and nothing else."""

    def __init__(self, world: World, vec: Vec, timeout_s: float | None, errors: set[str]) -> None:
        self.result: Any = None
        self._world, self._vec, self._timeout_s, self._errors = world, vec, timeout_s, errors

    def __enter__(self) -> _Call:
        self._world.begin()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        self._vec.follow()
        world = self._world
        if error is None:
            assert self.result is not None
            return False
        if isinstance(error, StepTimeoutError):
            assert world.step_timeout_s is not None and world.late and not any(host.alive for host in world.late)
            return True
        if isinstance(error, (TimeoutError, multiprocessing.TimeoutError)):
            return self._timeout_s is not None and bool(world.late)
        if isinstance(error, EnvRunnerLostError):
            return world.refused or world.surprises >= 3
        if isinstance(error, ValueError) and "no environment today" in str(error):
            return world.failed_to_open
        return isinstance(error, (ValueError, AssertionError)) and any(text in str(error) for text in self._errors)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Gymnasium's logger, for errors and for closing with a call pending
def test_stories() -> None:
    run_state_machine_as_test(
        Stories,
        settings=settings(
            max_examples=EXAMPLES or 60,
            stateful_step_count=40,
            deadline=None,
            derandomize=not EXAMPLES,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


# ---- single stories, each of which once ended wrongly ----------------------------------------------------------------

SYNC, SB3 = m.Semantics.GYMNASIUM_SYNC, m.Semantics.SB3_DUMMY


def opened(world: World, semantics: m.Semantics, mode: AutoresetMode = NEXT_STEP, hosts: int = 2) -> Vec:
    """Two rows on each of so many env runners, not reset yet."""
    links = [world.start() for _ in range(hosts)] if not world.links else world.links[:hosts]
    ranges = split_rows(2 * hosts, hosts)
    assignments = [
        Assignment(link, rows, shipped_factories(99, 2), b"") for link, rows in zip(links, ranges, strict=True)
    ]
    return Vec(Kind(semantics, mode, False), VectorCore.open(assignments, semantics, mode, "Ledger", world), 99)


def die(vec: Vec, part: int = 0) -> None:
    host_of(vec.parts[part].runner).die()


def test_a_reset_ends_what_the_next_step_would_have_told() -> None:
    vec = opened(World(None), SYNC)
    vec.face.reset(seed=1)
    die(vec)
    vec.face.get_attr("book")  # here the loss is noticed
    observations, _ = vec.face.reset(seed=5)
    assert observations[:, 3].tolist() == [5, 6, 7, 8]
    observations, _, _, truncations, infos = vec.face.step(np.arange(4))
    assert observations[:, 0].tolist() == [1] * 4 and not truncations.any() and "remoterl" not in infos


def test_a_reset_of_some_rows_leaves_the_lost_others_where_they_were() -> None:
    vec = opened(World(None), SYNC, DISABLED)
    vec.face.reset(seed=1)
    last = vec.face.step(np.arange(4))[0]
    die(vec)
    observations, _ = vec.face.reset(seed=50, options={"reset_mask": np.array([True, False, False, False])})
    assert observations.tolist() == [[0, 0, -1, 50], *last[1:].tolist()]
    observations, _, _, truncations, _ = vec.face.step(np.arange(4))
    assert truncations.tolist() == [True, True, False, False]
    assert observations[1].tolist() == last[1].tolist()


def test_a_loss_is_told_although_another_row_raised() -> None:
    vec = opened(World(None), SYNC)
    vec.face.reset(seed=1)
    die(vec)
    with pytest.raises(ValueError, match="poison"):
        vec.face.step(np.array([1, 2, POISON, 4]))
    assert vec.face.step(np.arange(4))[3].tolist() == [True, True, False, False]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_an_episode_that_is_lost_ends_where_the_trainer_saw_it_last(steps: int) -> None:
    """What came of steps that raised for another row, or were never waited for, he has not seen."""
    vec = opened(World(None), SYNC)
    vec.face.reset(seed=1)
    for _ in range(steps):
        last = vec.face.step(np.arange(4))[0]
    for _ in range(3):
        with pytest.raises(ValueError, match="poison"):
            vec.face.step(np.array([1, 2, POISON, 4]))
    die(vec)
    observations, _, _, truncations, _ = vec.face.step(np.arange(4))
    assert truncations.tolist() == [True, True, False, False]
    assert observations[:2].tolist() == last[:2].tolist()


def test_environments_that_could_not_be_made_anew_are_made_at_the_next_call() -> None:
    world = World(None)
    vec = opened(world, SYNC)
    vec.face.reset(seed=1)
    die(vec)
    world.plans.append("fails")
    with pytest.raises(ValueError, match="no environment today"):
        vec.face.step(np.arange(4))
    assert vec.face.get_attr("book")[0] == []
    assert vec.face.step(np.arange(4))[3].tolist() == [True, True, False, False]


def test_a_step_that_is_under_way_does_not_end_the_env_runner_that_took_its_rows() -> None:
    world = World(None)
    vec = opened(world, m.Semantics.SB3_SUBPROC)
    vec.face.reset()
    vec.face.step_async(np.arange(4))
    die(vec)
    assert vec.face.get_attr("book")[0] == []
    replacement = vec.parts[0].runner
    assert vec.face.step_wait()[2].tolist() == [True, True, False, False]
    assert vec.parts[0].runner is replacement and host_of(replacement).alive


def test_a_vector_env_that_was_idle_while_its_env_runner_was_replaced_many_times() -> None:
    world = World(None)
    idle, busy = opened(world, SYNC, hosts=1), opened(world, SYNC, hosts=1)
    for vec in (idle, busy):
        vec.face.reset(seed=1)
    for _ in range(5):
        die(busy)
        assert busy.face.step(np.arange(2))[3].all()
    assert idle.face.step(np.arange(2))[3].all()
    assert idle.parts[0].runner is busy.parts[0].runner


def test_an_answer_that_is_none() -> None:
    vec = opened(World(None), SYNC)
    host_of(vec.parts[1].runner).runner.handle = lambda payload: m.encode("what")  # type: ignore[method-assign]
    with pytest.raises(RemoteRLError, match=r"simulator-1 .* answered a ResetRows with a str"):
        vec.face.reset()


def test_a_step_before_any_reset_loses_no_episode() -> None:
    vec = opened(World(None), SYNC)
    die(vec)
    observations, _, _, truncations, infos = vec.face.step(np.arange(4))
    assert observations[:, :3].tolist() == [[1, 1, action] for action in range(4)]
    assert not truncations.any() and "remoterl" not in infos
    assert vec.face.step(np.arange(4))[0][:, 0].tolist() == [2] * 4


@pytest.mark.parametrize("own_timeout_s", [None, 5.0])
def test_a_close_that_never_ends(own_timeout_s: float | None) -> None:
    """The env runner is of no use any more; but who has less patience than usual ends nobody's rows."""
    vec = opened(World(600.0), SYNC)
    vec.face.reset(seed=1)
    host = host_of(vec.parts[0].runner)
    host.stuck = True
    if own_timeout_s is None:
        vec.face.close()
    else:
        vec.face._core.close(own_timeout_s)
    assert host.alive == (own_timeout_s is not None) and host_of(vec.parts[1].runner).alive
