"""Whatever an environment does: a clear error, or its rows' episode; never its simulator, nor rows beside it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import bad_envs
import gymnasium as gym
import numpy as np
import psutil
import pytest
from bad_envs import BadEnv
from conftest import WAYS, session
from ledger import LedgerEnv
from processes import PATIENCE_S, Cluster, Way, wait_until
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from remoterl._process import current_session
from remoterl.errors import EnvRunnerLostError, RemoteEnvError, StepTimeoutError
from remoterl.patches.backend import building_locally

ROWS = 4  # two on each of two env runners
BAD = 2  # the row that misbehaves, beside row 3
BESIDE = [2, 3]  # on the same env runner as the bad row
NOTHING = np.zeros(ROWS, np.int64)
WHENS = ["init", "reset", "step", "render", "add", "close"]

by_stream = pytest.mark.parametrize("trainer", WAYS[:1], ids=str, indirect=True, scope="session")


class Bystander:
    """A vector env on the same env runners, whose rows keep books of what they were told."""

    def __init__(self) -> None:
        self.vec = gym.vector.SyncVectorEnv([LedgerEnv] * ROWS)
        self.vec.reset(seed=1)
        self.told: list[list[tuple[int, int]]] = [[] for _ in range(ROWS)]

    def step(self, lost: Sequence[int] = ()) -> None:
        """A step that goes as it should: only the lost rows hear that their episode is over."""
        actions = np.array([(7 * len(self.told[0]) + row) % 1000 for row in range(ROWS)])
        _, rewards, terminations, truncations, infos = self.vec.step(actions)
        assert np.flatnonzero(truncations).tolist() == list(lost) and not terminations.any()
        if lost:
            assert infos["remoterl"]["lost"].tolist() == [row in lost for row in range(ROWS)]
        for row in range(ROWS):
            if row in lost:
                self.told[row] = []
            else:
                assert rewards[row] == actions[row]
                self.told[row].append((len(self.told[row]) + 1, int(actions[row])))

    def check(self) -> None:
        """No action was lost, none was done twice."""
        assert [[tuple(entry) for entry in book] for book in self.vec.get_attr("book")] == self.told


@pytest.fixture
def bystander(trainer: Way) -> Iterator[Bystander]:
    bystander = Bystander()
    bystander.step()
    yield bystander
    bystander.vec.close()
    assert {runner.rows for runner in current_session().runners} == {0}


@pytest.fixture
def same_env_runners(trainer: Way) -> Iterator[None]:
    before = [runner.pid for runner in current_session().runners]
    yield
    assert [runner.pid for runner in current_session().runners] == before
    assert [pid for pid in before if not psutil.pid_exists(pid)] == []


def vector_env(what: str, when: str, kind: Any = gym.vector.SyncVectorEnv) -> Any:
    return kind([lambda i=i: BadEnv(what if i == BAD else "nothing", when) for i in range(ROWS)])


def use(what: str, when: str) -> None:
    """Make a vector env with a bad row, and do all that one does with it."""
    vec = vector_env(what, when)
    try:
        vec.reset(seed=1)
        for _ in range(3):
            vec.step(NOTHING)
        vec.render()
        assert vec.call("add", 1) == (2,) * ROWS
    except BaseException:
        with contextlib.suppress(Exception):
            vec.close()
        raise
    vec.close()


def story_of(caught: pytest.ExceptionInfo) -> str:
    return str(caught.value.__cause__)


# ---- raising ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("raise", ValueError),
        ("raise_unpicklable", RemoteEnvError),
        ("raise_two_words", bad_envs.TwoWordsError),
        ("raise_only_here", RemoteEnvError),
        ("exit", RemoteEnvError),
        ("interrupt", RemoteEnvError),
    ],
)
def test_what_is_raised_is_told(bystander: Bystander, same_env_runners: None, what: str, kind: Any) -> None:
    for when in WHENS:
        with pytest.raises(kind, match="the arm hit the table") as caught:
            use(what, when)
        story = story_of(caught)
        assert f"row {BAD}" in story and "On simulator beta" in story and f"in _{what}" in story
        assert "row 3" not in story and (when == "init" or "BadEnv" in story)
        bystander.step()
    bystander.check()


def test_an_exception_that_cannot_be_shown(bystander: Bystander, same_env_runners: None) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - no message to match
        use("raise_unspeakable", "step")
    assert type(caught.value).__name__ == "UnspeakableError"
    assert f"row {BAD}" in story_of(caught) and "in _raise_unspeakable" in story_of(caught)
    bystander.step()
    bystander.check()


def test_memory_that_is_not_there(bystander: Bystander, same_env_runners: None) -> None:
    for when in ("init", "step"):
        with pytest.raises(MemoryError) as caught:
            use("use_up_memory", when)
        assert f"row {BAD}" in story_of(caught) and "in _use_up_memory" in story_of(caught)
        bystander.step()
    bystander.check()


# ---- returning what it should not ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [gym.vector.SyncVectorEnv, DummyVecEnv], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("what", "when", "words"),
    [
        ("return_longer", "reset", "array of shape (5,) and dtype int64"),
        ("return_longer", "step", "array of shape (5,) and dtype int64"),
        ("return_floats", "step", "array of shape (4,) and dtype float64"),
        ("return_text", "step", "'the arm hit the table'"),
        ("return_four", "step", "not enough values to unpack"),
        ("reward_with_a_word", "step", "could not convert string to float"),
    ],
)
def test_what_does_not_fit(
    bystander: Bystander, same_env_runners: None, kind: Any, what: str, when: str, words: str
) -> None:
    """Refused where the local class refuses it, and with the same type of exception; but the row is named."""
    with building_locally():
        local = vector_env(what, when, kind)
    vec = vector_env(what, when, kind)
    expected, found = outcome(local), outcome(vec)
    if isinstance(expected, Exception):
        assert isinstance(found, TypeError if isinstance(expected, TypeError) else type(expected)), found
        story = str(found.__cause__)
        assert f"row {BAD} of BadEnv" in story and words in story and "row 3" not in story
    else:
        np.testing.assert_array_equal(found, expected)
    vec.step(NOTHING)
    vec.close()
    local.close()
    bystander.step()
    bystander.check()


@by_stream
def test_shapes_that_differ_in_subprocesses(bystander: Bystander, same_env_runners: None) -> None:
    """They are stacked as they are, as long as they can be."""
    vec = vector_env("return_longer", "step", SubprocVecEnv)
    assert isinstance(outcome(vec), ValueError)
    vec.close()
    vec = SubprocVecEnv([BadEnv, lambda: BadEnv("return_longer")])  # one on each env runner
    error = outcome(vec)
    assert isinstance(error, ValueError)
    assert "(4,) from rows 0 to 0, (5,) from rows 1 to 1" in str(error)
    vec.step(NOTHING[:2])
    vec.close()
    bystander.step()
    bystander.check()


def outcome(vec: Any) -> Any:
    try:
        observations = vec.reset()
        for _ in range(2):
            observations = vec.step(NOTHING[: vec.num_envs])
    except Exception as error:
        return error
    return observations[0]


@by_stream
def test_a_part_that_is_missing(bystander: Bystander, same_env_runners: None) -> None:
    place = np.zeros(2, np.float32)
    for second, words in (({"place": place}, "goal"), ({"place": place, "goal": place}, "shape (2,)")):
        for kind in (gym.vector.SyncVectorEnv, DummyVecEnv):
            vec = kind([lambda i=i, second=second: bad_envs.BadDictEnv(second if i == BAD else None) for i in range(4)])
            vec.reset()
            vec.step(NOTHING)
            with pytest.raises((KeyError, ValueError)) as caught:
                vec.step(NOTHING)
            assert f"row {BAD} of BadDictEnv" in story_of(caught) and words in story_of(caught)
            vec.close()
    with pytest.raises(AttributeError, match="returned a NoEnv, which has no observation_space") as caught:
        gym.vector.SyncVectorEnv([LedgerEnv, LedgerEnv, bad_envs.NoEnv, LedgerEnv])
    assert f"row {BAD}" in story_of(caught)
    bystander.step()
    bystander.check()


# ---- doing what one should not, with no harm to anyone ---------------------------------------------------------------


@pytest.mark.parametrize(
    "what",
    [
        "return_outside",
        "return_small_integers",
        "return_a_huge_info",
        "print",
        "print_megabytes",
        "lose_its_folder",
        "leave_threads",
        "fork_and_come_back",
        "take_signals",
        "close_its_output",  # last: the env runner stays so
    ],
)
def test_what_harms_nobody(
    bystander: Bystander, same_env_runners: None, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    vec = vector_env(what, "step")
    vec.reset(seed=1)
    vec.step(NOTHING)
    observations, *_, infos = vec.step(NOTHING)
    if what == "return_outside":
        assert observations[BAD].tolist() == [-7] * 4
    if what == "return_small_integers":
        assert observations[BAD].tolist() == [1, 2, 3, 4] and observations.dtype == np.int64
    if what == "return_a_huge_info":
        assert infos["frames"][BAD].sum() == 30_000_000 and len(infos["text"][BAD]) == 1_000_000
    if what == "print":  # it arrives here, as Ray brings it
        heard: set[int] = set()

        def in_both() -> bool:
            heard.update(index for index, text in enumerate(capfd.readouterr()) if "the arm hit the table" in text)
            return heard == {0, 1}

        wait_until(in_both, what="its words in both streams")
    if what == "print_megabytes":  # of which Ray leaves some out where it can't keep up
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < 2.0:
            if any(capfd.readouterr()):
                quiet_since = time.monotonic()
            time.sleep(0.1)
    if what == "lose_its_folder":
        with pytest.raises(FileNotFoundError) as caught:
            vec.call("folder")
        assert f"row {BAD}" in story_of(caught)
    for number in (3, 4):
        assert vec.step(NOTHING)[0][:, 1].tolist() == [number] * ROWS
        bystander.step()
    vec.close()
    bystander.check()
    again = vector_env("nothing", "step")  # the env runner takes new rows as well
    again.reset()
    again.close()


# ---- ending its process ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["exit_at_once", "crash", "be_killed"])
def test_an_environment_that_ends_its_process(
    bystander: Bystander, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    vec = vector_env(what, "step")
    vec.reset(seed=1)
    vec.step(NOTHING)
    _, _, _, truncations, infos = vec.step(NOTHING)
    assert np.flatnonzero(truncations).tolist() == BESIDE and infos["remoterl"]["simulator"][BAD] == "beta"
    bystander.step(lost=BESIDE)
    assert not vec.step(NOTHING)[3].any()
    bystander.vec.close()
    vec.close()
    if what == "crash":  # Python's own account of where it was arrives as what the environment prints does
        said: list[str] = []
        wait_until(lambda: said.append(capfd.readouterr().err) or "in _crash" in "".join(said), what="the place")
        assert "Segmentation fault" in "".join(said)


@pytest.mark.parametrize("when", ["init", "reset"])
@by_stream
def test_an_environment_that_always_ends_its_process(bystander: Bystander, when: str) -> None:
    restarts = current_session().fleet.restarts
    with pytest.raises(EnvRunnerLostError, match=r"3 times.*simulator beta.*a crash of native code, os\._exit"):
        use("crash", when)
    assert current_session().fleet.restarts - restarts <= 3
    bystander.step(lost=BESIDE)


def test_what_it_started_ends_with_it(trainer: Way, bystander: Bystander) -> None:
    for end in ("kill -9", "give up"):
        vec = vector_env("start_children", "reset")
        vec.reset()
        children = [psutil.Process(pid) for pid in vec.get_attr("children")[BAD]]
        assert len(children) == 3 and all(child.is_running() for child in children)
        victim = current_session().runners[1]
        if end == "kill -9":
            psutil.Process(victim.pid).kill()
        else:
            current_session().give_up(victim)
        assert np.flatnonzero(vec.step(NOTHING)[3]).tolist() == BESIDE
        _, alive = psutil.wait_procs(children, timeout=PATIENCE_S)
        assert alive == [], end
        bystander.step(lost=BESIDE)
        bystander.vec.reset(seed=1)
        vec.close()


# ---- never coming back -----------------------------------------------------------------------------------------------


def test_an_endless_loop(cluster: Cluster) -> None:
    with session(Way("driver", "stream"), cluster, step_timeout_s=1.0):  # by the connection that takes less
        for when in ("init", "reset", "add", "close"):  # a step: see test_recovery
            bystander = Bystander()
            bystander.step()
            stuck = psutil.Process(current_session().runners[1].pid)
            if when == "close":
                vec = vector_env("loop", when)
                vec.close()
            else:
                with pytest.raises(StepTimeoutError, match=r"step_timeout_s=1 .*rows 2 to 3 on simulator beta"):
                    use("loop", when)
            stuck.wait(20)
            bystander.step(lost=BESIDE)
            bystander.vec.close()
        # Who closes with a time-out of his own ends no env runner; the next who needs it does.
        vec = gym.vector.AsyncVectorEnv([lambda: BadEnv("loop", "close"), BadEnv])
        stuck = psutil.Process(current_session().runners[0].pid)
        vec.close(timeout=0.5)
        assert stuck.is_running()
        with pytest.raises(StepTimeoutError, match="on simulator alpha.* asked for CartPole-v1"):
            gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
        stuck.wait(20)
        vec = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
        assert vec.reset(seed=1)[0].shape == (2, 4)
        vec.close()
