"""Messages as frames of the `stream` channel, and back. No sockets in here.

A frame is `PREFIX`, then two sections: a pickle, and a body of raw buffers. A step and its answer, the messages that
count, are nearly all array: their first frame defines a *layout* (which class, which dtypes and shapes), and from
then on a frame is the layout's number and the arrays' bytes, which come first, so that they are always in the same
place. Pickling and unpickling a step's four small arrays costs 55 us, as much as ten CartPole steps; by a layout it
is 8 us. Observations that are dicts or tuples of arrays have a place for each. What comes with some steps only, an
episode's infos, is marshalled where it is plain. Large observations are left out where the env runner has written them
into shared memory. Everything else is pickled, with large buffers beside the pickle (protocol 5), so that they are
neither joined nor copied; there the pickle comes first.
"""

from __future__ import annotations

import io
import marshal
import pickle
import struct
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, NamedTuple

import numpy as np

from remoterl.channels.trees import Outline, build, flatten, leaves_of
from remoterl.messages import InfoTable, RowsStepped, StepRows
from remoterl.shipping import send_back

PREFIX = struct.Struct("<QQQ")  # layout's number (or PICKLED, DEFINITION), bytes of the pickle, bytes of the body
PICKLED, DEFINITION = 0, 0xFFFF_FFFF
WRITTEN = 1 << 32  # added to a layout's number: observations are in shared memory, and the third number says where
MAX_FRAME_BYTES = 1 << 34  # more than any message has: what says so is no frame
MAX_LAYOUTS = 256  # a vector env needs two; steps whose arrays change their shape each time are pickled after these
BESIDE_BYTES = 16_384  # a buffer from this size on travels beside the pickle
LANDING_PICKLE_BYTES = 2_048  # room for the infos that come with a small step
MAX_LANDING_BYTES = 65_536
MAX_LANDING_LAYOUTS = 8
ALIGNMENT = 8
STRUCTS = {float: struct.Struct("<d"), int: struct.Struct("<q"), bool: struct.Struct("<?7x")}  # ALIGNMENT bytes each
# By name, they fall to pieces otherwise: object arrays hold pointers, datetimes have no buffer.
PLAIN_KINDS = frozenset("biufc")
NUMBERS = frozenset(np.dtype(code).type for code in "?bhilBHILefd")  # a Python number holds each exactly
SCALARS = NUMBERS | {np.longdouble, np.complex64, np.complex128, np.clongdouble}  # a subclass of theirs is pickled
PICKLE_BEGINS_WITH = pickle.dumps(None, protocol=5)[0]
PLAIN_TYPES = frozenset({float, int, bool, str, type(None)})  # what `marshal` gives back as it was
ONLY_NAMES = frozenset({str})
OBSERVATIONS = RowsStepped._fields.index("observations")
FEW_INFOS = 4  # of more, looking at each value in Python takes longer than pickling all

Buffer = Any  # bytes, memoryview, or a contiguous array


class Field(Enum):
    """What a field of a layout holds, where it has no place in the body."""

    NONE = "None"
    REST = "the next value of the frame's pickle; an empty list where the frame has none"


class Tree(NamedTuple):
    """What a field of observations is in a layout, where it is a dict or a tuple of arrays."""

    outline: Outline
    leaves: tuple[tuple[np.dtype, tuple[int, ...]], ...]


class Place(NamedTuple):
    """Where a field's value lies in the body, as an array."""

    at: int  # the field's index; the leaves of a tree have the same
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    padding: bytes  # after it, so that the next one is aligned
    table: tuple[tuple[str, ...], tuple[type, ...]] | None  # keys and types, where the array is an `InfoTable`'s
    scalar: type | None  # where it is a number and no array


class Layout(NamedTuple):
    """What the frames of one kind of step have in common. It travels pickled, once."""

    number: int
    message_class: Any  # StepRows or RowsStepped
    places: tuple[Place, ...]
    nothing: tuple[int, ...]  # indices of the fields that are None ...
    rest: tuple[int, ...]  # ... and of those that are in the pickle
    body_bytes: int
    outline: Outline  # of the observations
    leaves: int  # how many of the places, the first ones, are the observations'

    @property
    def leaf_bytes(self) -> int:
        """What the observations take, with their padding."""
        return self.places[self.leaves].start if len(self.places) > self.leaves else self.body_bytes


class Encoder:
    """Turns the messages of one direction of one connection into frames. Frames must be sent in order.

    Attributes:
        num_layouts: how many are defined in the frames that it made.
    """

    def __init__(self) -> None:
        self.num_layouts = 0
        self._writers: dict[Any, _Writer] = {}  # one a layout
        self._usual: dict[type, _Writer] = {}  # each class's last one: steps of the same rows have the same layout

    def encode(self, message: Any) -> tuple[list[Buffer], int]:
        """The buffers to send, one after the other, and how many bytes they have together.

        Raises:
            Exception: what pickling raised; nothing of the message may be sent then, and others can follow.
        """
        message_class = type(message)
        if message_class is StepRows or message_class is RowsStepped:
            usual = self._usual.get(message_class)
            if usual is not None and (frame := usual(message)) is not None:
                return frame
            frame = self._by_other_layout(message)
            if frame is not None:
                return frame
        return _pickled(message)

    def _by_other_layout(self, message: Any) -> tuple[list[Buffer], int] | None:
        """By one that was used before, or a new one, whose definition goes ahead; None where it has no layout."""
        kinds = _kinds(message)
        write = self._writers.get((type(message), kinds))
        if write is not None:
            self._usual[type(message)] = write
            return write(message)
        if len(self._writers) == MAX_LAYOUTS or _is_better_pickled(message, kinds):
            return None
        layout = _make_layout(len(self._writers) + 1, type(message), kinds)
        write = _writer(layout)
        if (frame := write(message)) is None:
            return None
        buffers, size_bytes = frame
        definition = pickle.dumps(layout, protocol=5)  # may raise, and nothing is registered then
        self.num_layouts += 1
        self._writers[type(message), kinds] = self._usual[type(message)] = write
        head = PREFIX.pack(DEFINITION, len(definition), 0)
        return [head, definition, *buffers], len(head) + len(definition) + size_bytes


class Decoder:
    """The inverse of `Encoder`, for one direction of one connection. Only for a peer that has authenticated.

    Attributes:
        readers: of each layout's number, what makes a message of a frame's pickle and body. Its arrays are views of
            the body, which nothing else may use.
    """

    def __init__(self) -> None:
        self._layouts: dict[int, Layout] = {}
        self.readers: dict[int, Callable[[Buffer, Buffer], Any]] = {}
        self._short_readers: dict[int, Callable[[Buffer, Buffer, Sequence[np.ndarray]], Any]] = {}

    def define(self, pickled: Buffer) -> None:
        """Learn a layout from a frame of the kind `DEFINITION`."""
        layout: Layout = pickle.loads(pickled)
        self._layouts[layout.number] = layout
        self.readers[layout.number] = _reader(layout)

    def short_reader(
        self, number: int, at: int, landing: Landing | None
    ) -> tuple[int, Callable[[Buffer, Buffer], Any]]:
        """Of a frame whose observations were written to where its landing has room for them: the size of its body, and
        what makes a message of its pickle and that.

        Raises:
            LookupError: there is no such layout, they have no place in it, or nobody wanted them there.
        """
        layout = self._layouts[number]
        room = landing.room if landing is not None else None
        if room is None or room.at != at or not layout.leaves or layout.leaves != len(room.arrays):
            raise LookupError(f"nothing is wanted at {at}")
        written = []
        for array, place in zip(room.arrays, layout.places, strict=False):
            if array.dtype != place.dtype or array.shape != place.shape:
                try:
                    array = np.ndarray(place.shape, place.dtype, array)
                except TypeError as error:
                    raise LookupError(f"there is too little room at {at}") from error
            written.append(array)
        read = self._short_readers.get(number) or self._short_readers.setdefault(number, _reader(layout, True))
        return layout.body_bytes - layout.leaf_bytes, lambda pickled, body: read(pickled, body, written)

    def prepare(self, number: int, pickle_bytes: int, landing: Landing) -> None:
        """Let the next frames like this one land."""
        landing.prepare(self._layouts[number], pickle_bytes)


class Room(NamedTuple):
    """Shared memory for the observations of some rows.

    Attributes:
        places: int64, (arrays, 2): where each begins, and how many bytes it has.
        arrays: to the trainer those of the observations, with their shapes and dtypes; to an env runner bytes.
    """

    places: np.ndarray
    arrays: list[np.ndarray]

    @property
    def at(self) -> int:
        """Where it begins."""
        return int(self.places[0, 0])


class Landing:
    """Memory into which the steps of some rows are received, one after the other, so that nothing is made for them.

    There are two places, which take turns: a step stays as it is until the one after the next begins to arrive. All of
    them come through one connection, which numbers its layouts.

    Attributes:
        view: where the next frame should be received; None until a layout is known.
        room: where the env runner may write the large observations of the step that is under way; None for nowhere.
    """

    def __init__(self) -> None:
        self.view: memoryview | None = None
        self.room: Room | None = None
        self._turn = 0
        self._places: tuple[memoryview, memoryview] | None = None
        self._layouts: dict[int, tuple[Layout, tuple[RowsStepped, RowsStepped]]] = {}

    def prepare(self, layout: Layout, pickle_bytes: int) -> None:
        """Expect frames like this one too, if they are small steps of plain arrays."""
        if layout.message_class is not RowsStepped or any(place.scalar is not None for place in layout.places):
            return
        size = PREFIX.size + layout.body_bytes + max(LANDING_PICKLE_BYTES, 2 * pickle_bytes)
        if size > MAX_LANDING_BYTES:  # what is received here, and does not fit, has to be copied
            self._layouts.clear()
            self.view = self._places = None
            return
        if self._places is None or size > len(self._places[0]) or len(self._layouts) == MAX_LANDING_LAYOUTS:
            self._layouts.clear()
            self._places = memoryview(bytearray(size)), memoryview(bytearray(size))
            self.view = self._places[self._turn]
        elif layout.number in self._layouts:
            return
        first, second = (_reader(layout)(b"", place[PREFIX.size :]) for place in self._places)
        self._layouts[layout.number] = layout, (first, second)

    def take(self, received: int) -> RowsStepped | None:
        """The step that has arrived in `view`; None where it is anything but one whole frame of a known layout.

        Raises:
            Exception: its infos can't be unpickled here. The next frame can be taken.
        """
        assert self.view is not None
        view, turn = self.view, self._turn
        if received < PREFIX.size:
            return None
        number, pickle_bytes, body_bytes = PREFIX.unpack_from(view)
        known = self._layouts.get(number)
        if known is None or received != PREFIX.size + body_bytes + pickle_bytes or body_bytes != known[0].body_bytes:
            return None
        assert self._places is not None
        layout, steps = known
        step = steps[turn]
        if pickle_bytes:
            values = list(step)
            rest = _loads_small(view[PREFIX.size + body_bytes : received])
            for index, value in zip(layout.rest, rest, strict=True):
                values[index] = value
            step = RowsStepped(*values)
        self._turn = 1 - turn
        self.view = self._places[1 - turn]
        return step


def _kinds(message: Any) -> tuple[Any, ...]:
    kinds = tuple(_kind(value) for value in message)
    if kinds[OBSERVATIONS] is Field.REST and type(message) is RowsStepped:
        return _tree(message.observations), *kinds[1:]
    return kinds


def _tree(observations: Any) -> Any:
    """A `Tree` that all others with its outline, dtypes and shapes fit, or `Field.REST`."""
    flat = flatten(observations)
    if flat is None or not flat[1]:
        return Field.REST
    outline, leaves = flat
    kinds = [_kind(leaf) for leaf in leaves]
    if Field.REST in kinds:
        return Field.REST
    return Tree(outline, tuple((dtype, shape) for dtype, shape, _, _ in kinds))


def _kind(value: Any) -> Any:
    """What a field is in a layout: a `Field`, or dtype, shape, table and scalar of its place."""
    kind = type(value)
    if kind is np.ndarray and value.dtype.kind in PLAIN_KINDS and value.flags.c_contiguous:
        return value.dtype, value.shape, None, None
    if kind is InfoTable:
        return value.values.dtype, value.values.shape, (value.keys, value.types), None
    if kind in STRUCTS:
        return np.dtype(kind), (), None, kind
    if kind in SCALARS:
        return value.dtype, (), None, kind
    return Field.NONE if value is None else Field.REST


def _is_better_pickled(message: Any, kinds: tuple[Any, ...]) -> bool:
    """Is what counts in the fields that a layout has no place for? A pickle sends large buffers beside itself."""
    if any(type(kind) is Tree or (type(kind) is not Field and kind[3] is None) for kind in kinds):  # arrays, or a table
        return False
    rest = [value for value, kind in zip(message, kinds, strict=True) if kind is Field.REST]
    return bool(rest) if type(message) is StepRows else any(type(value) is not list for value in rest)


def _make_layout(number: int, message_class: type, kinds: tuple[Any, ...]) -> Layout:
    places: list[Place] = []
    start = 0
    for index, kind in enumerate(kinds):
        if type(kind) is Field:
            continue
        for dtype, shape, table, scalar in (
            [(*leaf, None, None) for leaf in kind.leaves] if type(kind) is Tree else [kind]
        ):
            stop = start + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            padding = bytes(-stop % ALIGNMENT)
            places.append(Place(index, dtype, shape, start, padding, table, scalar))
            start = stop + len(padding)
    nothing = tuple(index for index, kind in enumerate(kinds) if kind is Field.NONE)
    rest = tuple(index for index, kind in enumerate(kinds) if kind is Field.REST)
    outline = next((kind.outline for kind in kinds if type(kind) is Tree), None)
    leaves = 0
    if message_class is RowsStepped:
        leaves = sum(place.at == OBSERVATIONS and place.scalar is None for place in places)
    return Layout(number, message_class, tuple(places), nothing, rest, start, outline, leaves)


def _writer(layout: Layout) -> _Writer:
    """What makes a frame of a message of this layout, and returns None for any other. The hot path: everything that is
    the same each time is looked up here, once."""
    number, body_bytes, nothing, rest = layout.number, layout.body_bytes, layout.nothing, layout.rest
    outline = layout.outline
    # A tree's leaves stand in place of the observations, the first field.
    ats = [place.at for place in layout.places]
    if outline is not None:
        ats = [*range(layout.leaves), *(at + layout.leaves - 1 for at in ats[layout.leaves :])]
    fields = [
        (at, _scalar_writer(place), place.scalar, place.dtype, place.shape, place.padding, place.table)
        for at, place in zip(ats, layout.places, strict=True)
    ]
    ndarray, none_pickled = np.ndarray, PREFIX.pack(number, 0, body_bytes)
    size_bytes = PREFIX.size + body_bytes

    def write(message: Any) -> tuple[list[Buffer], int] | None:
        buffers: list[Buffer] = [none_pickled]
        values = message
        if outline is not None:
            leaves = leaves_of(message[OBSERVATIONS], outline)
            if leaves is None:
                return None
            values = (*leaves, *message[1:])
        for index, write_scalar, scalar, dtype, shape, padding, table in fields:
            value = values[index]
            if write_scalar is not None:
                if type(value) is not scalar:
                    return None
                try:
                    buffers.append(write_scalar(value))
                except struct.error:  # a whole number that is too large
                    return None
                continue
            if table is not None:
                if type(value) is not InfoTable or (value.keys, value.types) != table:
                    return None
                value = value.values
            if type(value) is not ndarray or value.dtype != dtype or value.shape != shape:
                return None
            if not value.flags.c_contiguous:
                return None
            buffers.append(value)
            if padding:
                buffers.append(padding)
        for index in nothing:
            if message[index] is not None:
                return None
        for index in rest:
            value = message[index]
            if type(value) is not list or value:
                pickled = _dumps_small([message[index] for index in rest])
                buffers[0] = PREFIX.pack(number, len(pickled), body_bytes)
                buffers.append(pickled)
                return buffers, size_bytes + len(pickled)
        return buffers, size_bytes

    return write


_Writer = Callable[[Any], Any]


def _scalar_writer(place: Place) -> Callable[[Any], bytes] | None:
    if place.scalar is None:
        return None
    if place.scalar in STRUCTS:
        return STRUCTS[place.scalar].pack
    padding = place.padding
    return lambda value: value.tobytes() + padding


def _reader(layout: Layout, is_short: bool = False) -> Callable[..., Any]:
    """What makes a message of this layout from a frame's pickle and body, and (`is_short`) observations which the body
    lacks."""
    message_class, rest, outline = layout.message_class, layout.rest, layout.outline
    num_fields = len(message_class._fields)
    of_tree = 0 if outline is None else layout.leaves
    missing = layout.leaf_bytes if is_short else 0
    leaf_fields = [(place.shape, place.dtype, place.start) for place in layout.places[:of_tree]]
    fields = [
        (place.at, _scalar_reader(place), place.dtype, place.shape, place.start - missing, place.table)
        for place in layout.places[layout.leaves if is_short else of_tree :]
    ]
    ndarray = np.ndarray

    def read(pickled: Buffer, body: Buffer, written: Sequence[np.ndarray] = ()) -> Any:
        values: list[Any] = [None] * num_fields
        if written:
            values[OBSERVATIONS] = build(outline, iter(written))
        elif outline is not None:
            arrays = [ndarray(shape, dtype, body, start) for shape, dtype, start in leaf_fields]
            values[OBSERVATIONS] = build(outline, iter(arrays))
        if rest:
            others = _loads_small(pickled) if pickled else [[] for _ in rest]
            for index, value in zip(rest, others, strict=True):
                values[index] = value
        for index, read_scalar, dtype, shape, start, table in fields:
            if read_scalar is not None:
                values[index] = read_scalar(body, start)
            else:
                array = ndarray(shape, dtype, body, start)
                values[index] = array if table is None else InfoTable(*table, array)
        return message_class(*values)

    return read


def _scalar_reader(place: Place) -> Callable[[Buffer, int], Any] | None:
    if place.scalar is None:
        return None
    if place.scalar in STRUCTS:
        unpack_from = STRUCTS[place.scalar].unpack_from
        return lambda body, start: unpack_from(body, start)[0]
    dtype = place.dtype
    return lambda body, start: np.ndarray((), dtype, body, start)[()]


def beside_sizes(section: Buffer) -> tuple[tuple[int, ...], int]:
    """Of a `PICKLED` frame's pickled section: the sizes of the buffers in the body, and where the pickle starts."""
    (count,) = struct.unpack_from("<I", section)
    return struct.unpack_from(f"<{count}Q", section, 4), 4 + 8 * count


def _pickled(message: Any) -> tuple[list[Buffer], int]:
    beside: list[memoryview] = []

    def stays_in_the_pickle(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < BESIDE_BYTES:
            return True
        beside.append(raw)
        return False

    pickled = _dumps(message, stays_in_the_pickle, beside.clear)
    sizes = [buffer.nbytes for buffer in beside]
    section = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes) + pickled
    body_bytes = sum(sizes)
    return [PREFIX.pack(PICKLED, len(section), body_bytes), section, *beside], PREFIX.size + len(section) + body_bytes


class _Pickler(pickle.Pickler):
    """NumPy's own way to pickle an array or a number takes five times as long, both ends together."""

    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if kind is np.ndarray:
            if value.dtype.isbuiltin == 1 and value.dtype.kind in PLAIN_KINDS and value.flags.c_contiguous:
                return np.ndarray, (value.shape, value.dtype.str, pickle.PickleBuffer(value))
        elif kind in NUMBERS:
            return kind, (value.item(),)
        return NotImplemented


def _dumps_small(values: list[Any]) -> bytes:
    """What is beside a step's arrays. Infos of plain values, such as those of an episode's end, are not pickled: of
    Stable-Baselines3's rows some end an episode at nearly each step, and there (not in a loop of its own, where both
    take the same time) a step of 32 CartPoles is 3 to 10 % shorter."""
    if (plain := _plain_infos(values)) is not None:
        return marshal.dumps(plain)
    file = io.BytesIO()
    try:
        _Pickler(file, 5).dump(values)
    except (pickle.PicklingError, AttributeError, TypeError, ImportError):
        return _dumps(values)
    return file.getvalue()


def _loads_small(section: Buffer) -> list[Any]:
    """The inverse of `_dumps_small`."""
    if section[0] == PICKLE_BEGINS_WITH:
        return pickle.loads(section)
    values, arrays = marshal.loads(section)
    for which, at, key, dtype, shape, data in arrays:
        values[which][at][1][key] = np.ndarray(shape, dtype, bytearray(data))
    return values


def _is_plain_array(array: np.ndarray) -> bool:
    return array.dtype.kind in PLAIN_KINDS and array.flags.carray


def _plain_infos(values: list[Any]) -> Any:
    """Short lists of `(row, info)` and `(row, info, None)`, the arrays that stood in the infos, and where; None if
    there is anything else in them. `marshal` would take a number or an array of NumPy's for bytes."""
    arrays: list[Any] = []
    known: set[int] = set()  # ids: an array that is there twice is one and the same at the other end too
    parts: list[list[Any]] = []
    for which, items in enumerate(values):
        if type(items) is not list or len(items) > FEW_INFOS:
            return None
        part: list[Any] = []
        for item in items:
            if type(item) is not tuple or not (len(item) == 2 or (len(item) == 3 and item[2] is None)):
                return None
            if type(item[0]) is not int:
                return None
            info = item[1]
            if type(info) is not dict or not ONLY_NAMES.issuperset(map(type, info)):
                return None
            bare = info
            for key, value in info.items():
                kind = type(value)
                if kind in PLAIN_TYPES:
                    continue
                if kind is dict:
                    if not (
                        ONLY_NAMES.issuperset(map(type, value)) and PLAIN_TYPES.issuperset(map(type, value.values()))
                    ):
                        return None
                elif kind is np.ndarray and _is_plain_array(value) and id(value) not in known:
                    known.add(id(value))
                    if bare is info:
                        bare = info.copy()
                    bare[key] = None
                    arrays.append((which, len(part), key, value.dtype.str, value.shape, value.tobytes()))
                else:
                    return None
            part.append(item if bare is info else (item[0], bare, *item[2:]))
        parts.append(part)
    return parts, arrays


def _dumps(
    value: Any,
    stays_in_the_pickle: Callable[[pickle.PickleBuffer], bool] | None = None,
    start_again: Callable[[], None] = lambda: None,
) -> bytes:
    try:
        return pickle.dumps(value, protocol=5, buffer_callback=stays_in_the_pickle)
    except (pickle.PicklingError, AttributeError, TypeError, ImportError):
        start_again()
        return send_back(value, stays_in_the_pickle)
