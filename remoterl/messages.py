"""What crosses processes: requests to an env runner, its replies, and what actors tell of themselves.

Everything is a small named tuple or frozen dataclass, pickled as it stands. A *batch* of observations is
what `gymnasium.vector.utils.concatenate` makes of the rows of one env runner: an array whose axis 0 is the
row, a dict or tuple of batches, or (spaces without a fixed shape) a tuple with one observation a row.
Row numbers are those of the whole vector env, unless a field says local.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from remoterl.shipping import dumps_back, ship, unship


class Semantics(Enum):
    """Whose rules the rows follow: the class that the trainer's script named."""

    GYMNASIUM_SYNC = "SyncVectorEnv"
    GYMNASIUM_ASYNC = "AsyncVectorEnv"
    GYMNASIUM_ASYNC_UNSHARED = "AsyncVectorEnv(shared_memory=False)"
    SB3_DUMMY = "DummyVecEnv"
    SB3_SUBPROC = "SubprocVecEnv"
    SINGLE = "Env"
    HOSTED = "VectorEnv"


ARRAY_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)  # a row's value is one array


# Their local classes have a process for each row: to it what it is given is its own copy.
A_PROCESS_EACH = frozenset({Semantics.GYMNASIUM_ASYNC, Semantics.GYMNASIUM_ASYNC_UNSHARED, Semantics.SB3_SUBPROC})


class Target(Enum):
    """Which layer of a row's environment an attribute belongs to."""

    WRAPPERS = "the outermost wrapper that has it"  # Gymnasium's get_wrapper_attr and set_wrapper_attr
    OUTERMOST = "the outermost wrapper"
    UNWRAPPED = "the environment itself"


# ---- requests: trainer -> env runner --------------------------------------------------------------------


class OpenRows(NamedTuple):
    """Make environments. Answered by `RowsOpened`."""

    vector_id: int
    rows: tuple[int, ...]
    factories: bytes  # shipped list, one callable a row
    semantics: Semantics
    autoreset_mode: AutoresetMode
    news: bytes  # the trainer's registrations and sources that this env runner lacks (see `actors.registry.News`)
    restarts: int = 0  # env runners that the trainer has lost and replaced so far


class ResetRows(NamedTuple):
    """Reset rows. Answered by `RowsReset`. All tuples are local: one entry a row of this env runner."""

    vector_id: int
    seeds: tuple[int | None, ...]
    options: bytes | None  # shipped list, a dict or None for each row
    mask: tuple[bool, ...] | None  # None: every row


class ReviveRows(NamedTuple):
    """Go on where lost rows were: their episodes are over. Answered by `RowsReset` with nothing in it.

    `seeds`: one a row of this env runner, for the first reset of it that brings none. `observations`: the batch that
    the trainer has last seen, or None.
    """

    vector_id: int
    seeds: tuple[int | None, ...]
    observations: Any


class StepRows(NamedTuple):
    """Step rows. Answered by `RowsStepped`. `actions`: one a row of this env runner, array or list, packed.

    `room`: where in the memory that both ends share the arrays of the answer's observations may go, one after the
    other: int64, (arrays, 2), the place where each begins, and how many bytes it has.
    """

    vector_id: int
    actions: Any
    room: np.ndarray | None = None


class CallRows(NamedTuple):
    """Read an attribute or call a method of some rows' environments. Answered by `RowsCalled`."""

    vector_id: int
    rows: tuple[int, ...]
    name: str  # may be a path, `ale.lives`
    arguments: bytes  # shipped (args, kwargs)
    call: bool | None  # True: call it, False: only read it, None: call it if it is callable
    target: Target = Target.WRAPPERS


class SetAttribute(NamedTuple):
    """Set an attribute, one value a row. Answered by `RowsCalled` with nothing in it."""

    vector_id: int
    rows: tuple[int, ...]
    name: str
    values: bytes  # shipped list, one value a row
    target: Target


class IsWrapped(NamedTuple):
    """Is each row's environment wrapped by this class? Answered by `RowsCalled` with a bool a row."""

    vector_id: int
    rows: tuple[int, ...]
    wrapper_class: bytes  # shipped


class RenderRows(NamedTuple):
    """Render every row. Answered by `RowsCalled` with a frame a row."""

    vector_id: int


class CloseRows(NamedTuple):
    """Close the rows' environments and forget them. Answered by `RowsCalled` with nothing in it."""

    vector_id: int


class FindSpec(NamedTuple):
    """Ask for the EnvSpec of an id as this simulator knows it. Answered by `SpecFound`."""

    env_id: str
    news: bytes


# ---- replies: env runner -> trainer ---------------------------------------------------------------------


class Warned(NamedTuple):
    """A Python warning."""

    text: str
    category: type[Warning]  # one of Python's own
    filename: str
    lineno: int
    module: str  # its name, by which filters go


class RowsOpened(NamedTuple):
    """What the environments are like. Each list has one entry where all rows agree, else one a row."""

    observation_spaces: list[Any]
    action_spaces: list[Any]
    metadata: dict[str, Any]
    render_modes: list[Any]
    spec: Any  # of the first row, entry points of the simulator's own made opaque
    description: str  # str() of the first environment
    distinct: int  # how many different unwrapped environments the factories made
    extra: dict[str, Any]  # HOSTED: num_envs and the batched spaces
    warned: list[Warned] = []  # noqa: RUF012 - nobody adds to it


class RowsReset(NamedTuple):
    """`infos`: (local row, info) where info is not empty."""

    observations: Any
    infos: list[tuple[int, dict[str, Any]]]


class InfoTable(NamedTuple):
    """Infos that every row has with the same keys and a number under each, as MuJoCo's environments: one array."""

    keys: tuple[str, ...]
    types: tuple[type, ...]  # of the values under each key: float, np.float64, np.float32, int or bool
    values: np.ndarray  # float64, (local rows, keys)


def rows_of(infos: Any) -> list[tuple[int, dict[str, Any], Any]]:
    """`RowsStepped.infos` row by row, also where they are a table."""
    if type(infos) is not InfoTable:
        return infos
    keys, types, values = infos
    return [
        (row, {key: kind(value) for key, kind, value in zip(keys, types, of_row, strict=True)}, None)
        for row, of_row in enumerate(values.tolist())
    ]


class RowsStepped(NamedTuple):
    """One step of all rows of one env runner, every array with the local row on axis 0.

    `infos`: (local row, info, final) where there is something to say, or an `InfoTable` where it can be one. `final` is
    None, or after an episode's end in SAME_STEP mode (final observation, final info). SB3 rows: `terminations` holds
    the dones, `truncations` is None, and `reset_infos` has (local row, info) for each row that was reset.
    """

    observations: Any
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray | None
    infos: Any
    reset_infos: list[tuple[int, dict[str, Any]]]


class RowsCalled(NamedTuple):
    """One result a row that was asked. Arrays among arguments that rows share come back as the last call left them."""

    results: list[Any]
    arrays: list[np.ndarray] | None = None


def arrays_among(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[np.ndarray]:
    """The arrays that a call may write into, in the order in which both ends list them."""
    return [argument for argument in (*args, *kwargs.values()) if isinstance(argument, np.ndarray)]


class RemoteMethod(NamedTuple):
    """Instead of an attribute's value: it is a method, which stays where it is and can be called there."""

    name: str


class RemoteObject(NamedTuple):
    """Instead of an attribute's value: it can't be pickled, but its own attributes can be asked for."""

    name: str
    type_name: str


class SpecFound(NamedTuple):
    """The EnvSpec, or None where this simulator does not know the id."""

    spec: Any
    warned: list[Warned] = []  # noqa: RUF012


class RowError(NamedTuple):
    """What one row raised. `exception` is pickled, None where it can't be. `lacks`: a module that was not found."""

    row: int
    env: str
    exception: bytes | None
    type_name: str
    message: str
    traceback: str
    lacks: str = ""


class RowsFailed(NamedTuple):
    """Instead of a reply: every row that raised, in order."""

    errors: list[RowError]


# ---- what actors know ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainerInfo:
    """Who opened a session. `restarts`: env runners that it had lost and replaced when it said this."""

    session_id: str
    name: str
    host: str
    pid: int
    restarts: int = 0


@dataclass(frozen=True)
class EnvRunnerInfo:
    """An env runner, as `status` shows it. `rows` and `steps` are totals over its vector envs."""

    actor_id: str
    pid: int
    started: float  # of the process, seconds since the epoch, as psutil gives it
    trainer: TrainerInfo
    rows: int = 0
    steps: int = 0
    channel: str = "actor"
    speaks: str = "of another protocol"  # see `_protocol`; an env runner that has no such field leaves it at this


@dataclass(frozen=True)
class StreamOffer:
    """Where an env runner waits for its trainer's stream, and what both prove to know. Travels through Ray only.

    `local` names a socket for trainers on the same machine (in Linux's abstract namespace), empty where there is none.
    """

    host: str
    port: int
    secret: bytes = field(repr=False)
    context: str
    uses_tls: bool
    local: str = ""


@dataclass(frozen=True)
class Versions:
    """Versions of one process."""

    python: str
    ray: str
    remoterl: str
    gymnasium: str
    protocol: str = "another"  # see `_protocol`


@dataclass(frozen=True)
class SimulatorInfo:
    """A simulator, as its `Simulator` actor describes it."""

    name: str
    node_id: str
    host: str
    labels: dict[str, str]
    versions: Versions
    environments: frozenset[str]
    env_runners: tuple[EnvRunnerInfo, ...]
    units: int
    steps: int = 0  # of all env runners it ever had
    draining: bool = False  # it is about to leave
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reservation:
    """Units of `env_runner` that are held for whoever gives it, or its `id`, to `init(reservation=...)`."""

    id: str
    num_env_runners: int
    labels: dict[str, str]
    ttl_s: float  # seconds from the call of `reserve` until an unused reservation is let go


# ---- encoding --------------------------------------------------------------------------------------------


class Shipped(NamedTuple):
    """A value of the trainer's that may be of a class that only the trainer's script has."""

    data: bytes


def pack(value: Any) -> Any:
    """Plain data as it is, anything else so that classes of the trainer's script travel along."""
    return value if _is_plain(value) else Shipped(ship(value))


def unpack(value: Any) -> Any:
    """The inverse of `pack`."""
    return unship(value.data) if isinstance(value, Shipped) else value


def _is_plain(value: Any) -> bool:
    if type(value) is np.ndarray:
        return value.dtype != object
    if isinstance(value, np.generic) or type(value) in (int, float, bool, str, bytes, type(None)):
        return True
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    return type(value) is dict and all(map(_is_plain, value)) and all(map(_is_plain, value.values()))


def encode(message: Any) -> bytes:
    """Pickle a message; classes that can't be imported by name travel by value."""
    try:
        return pickle.dumps(message, protocol=5)
    except (pickle.PicklingError, AttributeError, TypeError, ImportError):
        return dumps_back(message)


def decode(data: bytes) -> Any:
    """The inverse of `encode`. Only for peers that the cluster has authenticated."""
    return pickle.loads(data)
