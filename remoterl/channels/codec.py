"""Messages as frames of the `stream` channel, and back. No sockets in here.

A frame is `PREFIX`, then a pickled section, then a body of raw buffers. A step and its answer, the messages that
count, are nearly all array: their first frame defines a *layout* (which class, which dtypes and shapes), and from
then on a frame is the layout's number and the arrays' bytes. Pickling and unpickling a step's four small arrays
costs 55 us, as much as ten CartPole steps; by a layout it is 8 us. Everything else is pickled, with large buffers
beside the pickle (protocol 5), so that they are neither joined nor copied.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

import cloudpickle
import numpy as np

from remoterl.messages import InfoTable, RowsStepped, StepRows

PREFIX = struct.Struct("<IQQ")  # layout's number (or PICKLED, DEFINITION), bytes of the pickle, bytes of the body
PICKLED, DEFINITION = 0, 0xFFFF_FFFF
MAX_FRAME_BYTES = 1 << 34  # more than any message has: what says so is no frame
MAX_LAYOUTS = 256  # a vector env needs two; steps whose arrays change their shape each time are pickled after these
BESIDE_BYTES = 16_384  # a buffer from this size on travels beside the pickle
ALIGNMENT = INT_BYTES = 8
INT_LIMIT = 1 << 63
# By name, they fall to pieces otherwise: object arrays hold pointers, datetimes have no buffer.
PLAIN_KINDS = frozenset("biufc")

Buffer = Any  # bytes, memoryview, or a contiguous array


class Field(Enum):
    """What a field of a layout holds, where it is no array."""

    NONE = "None"
    INT = "a whole number, whose 8 bytes stand in place of the pickle"
    REST = "the next value of the frame's pickle; an empty list where the frame has none"


class ArrayField(NamedTuple):
    """Where a field's array lies in the body. `table`: keys and types, where the field is an `InfoTable` of it."""

    at: int  # the field's index
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    stop: int
    padding: bytes  # after it, so that the next one is aligned
    table: tuple[tuple[str, ...], tuple[type, ...]] | None


class Layout(NamedTuple):
    """What the frames of one kind of step have in common. It travels pickled, once."""

    number: int
    message_class: type
    arrays: tuple[ArrayField, ...]
    nothing: tuple[int, ...]  # indices of the fields that are None ...
    whole_number: int | None  # ... of the one that is an int ...
    rest: tuple[int, ...]  # ... and of those that are anything else
    body_bytes: int


class Encoder:
    """Turns the messages of one direction of one connection into frames. Frames must be sent in order."""

    def __init__(self) -> None:
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
        kinds = tuple(_kind(value) for value in message)
        write = self._writers.get((type(message), kinds))
        if write is not None:
            self._usual[type(message)] = write
            return write(message)
        if len(self._writers) == MAX_LAYOUTS or all(type(kind) is Field for kind in kinds):
            return None
        layout = _make_layout(len(self._writers) + 1, type(message), kinds)
        write = _writer(layout)
        buffers, size_bytes = write(message)
        self._writers[type(message), kinds] = self._usual[type(message)] = write
        definition = pickle.dumps(layout, protocol=5)
        head = PREFIX.pack(DEFINITION, len(definition), 0)
        return [head, definition, *buffers], len(head) + len(definition) + size_bytes


class Decoder:
    """The inverse of `Encoder`, for one direction of one connection. Only for a peer that has authenticated."""

    def __init__(self) -> None:
        self._layouts: dict[int, Layout] = {}

    def define(self, pickled: Buffer) -> None:
        """Learn a layout from a frame of the kind `DEFINITION`."""
        layout: Layout = pickle.loads(pickled)
        self._layouts[layout.number] = layout

    def by_layout(self, number: int, pickled: Buffer, body: Buffer) -> Any:
        """A message from its layout; its arrays are views of `body`, which nothing else may use."""
        layout = self._layouts[number]
        values: list[Any] = [None] * (len(layout.arrays) + len(layout.nothing) + len(layout.rest))
        if layout.whole_number is not None:
            values.insert(layout.whole_number, int.from_bytes(pickled, "little"))
        else:
            for index, value in zip(layout.rest, _rest(layout, pickled), strict=True):
                values[index] = value
        for field in layout.arrays:
            values[field.at] = _array(field, body)
        return layout.message_class(*values)

    def land(self, number: int, pickled: Buffer, body: memoryview, landing: Landing) -> RowsStepped | None:
        """Copy a step's arrays to where the trainer wants them; None, and nothing done, where they are others."""
        return landing.fill(self._layouts[number], pickled, body)


class Landing:
    """Where the arrays of the next steps of some rows are copied to as they arrive, so that none is made anew.

    Args:
        step: its arrays are those that are written to: contiguous, and of the dtypes and shapes that are expected.
    """

    def __init__(self, step: RowsStepped) -> None:
        self.step = step
        self._layout: Layout | None = None  # the last one that was asked for ...
        self._copies: list[tuple[memoryview, int, int]] | None = None  # ... and what of its body goes where
        self._table: ArrayField | None = None

    def fill(self, layout: Layout, pickled: Buffer, body: memoryview) -> RowsStepped | None:
        """`step`, with the infos that came; None, and nothing is written, where the layout is another."""
        if layout is not self._layout:
            self._adopt(layout)
        if self._copies is None:
            return None
        rest = _rest(layout, pickled) if pickled else None
        for target, start, stop in self._copies:
            target[:] = body[start:stop]
        if self._table is not None:
            return self.step._replace(infos=_array(self._table, bytearray(body)), reset_infos=rest[0] if rest else [])
        return self.step if rest is None else self.step._replace(infos=rest[0], reset_infos=rest[1])

    def _adopt(self, layout: Layout) -> None:
        self._layout, self._copies, self._table = layout, None, None
        if layout.message_class is not RowsStepped:
            return
        arrays = {field.at: field for field in layout.arrays}
        self._table = arrays.pop(_INFOS, None)
        targets = {index: value for index, value in enumerate(self.step) if type(value) is np.ndarray}
        if targets.keys() != arrays.keys():
            return
        if any((one.dtype, one.shape) != (arrays[at].dtype, arrays[at].shape) for at, one in targets.items()):
            return
        self._copies = [
            (target.reshape(-1).view(np.uint8).data, arrays[index].start, arrays[index].stop)
            for index, target in targets.items()
        ]


_INFOS = RowsStepped._fields.index("infos")


def _kind(value: Any) -> Any:
    """What a field is in a layout: a `Field`, or an array's dtype, shape and table."""
    if type(value) is np.ndarray and value.dtype.kind in PLAIN_KINDS and value.flags.c_contiguous:
        return value.dtype, value.shape, None
    if type(value) is InfoTable:
        return value.values.dtype, value.values.shape, (value.keys, value.types)
    if value is None:
        return Field.NONE
    return Field.INT if type(value) is int and 0 <= value < INT_LIMIT else Field.REST


def _make_layout(number: int, message_class: type, kinds: tuple[Any, ...]) -> Layout:
    arrays = []
    start = 0
    for index, kind in enumerate(kinds):
        if type(kind) is not Field:
            dtype, shape, table = kind
            stop = start + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            padding = bytes(-stop % ALIGNMENT)
            arrays.append(ArrayField(index, dtype, shape, start, stop, padding, table))
            start = stop + len(padding)
    nothing = tuple(index for index, kind in enumerate(kinds) if kind is Field.NONE)
    whole_numbers = [index for index, kind in enumerate(kinds) if kind is Field.INT]
    rest = tuple(index for index, kind in enumerate(kinds) if kind is Field.REST)
    if (len(whole_numbers), len(arrays), len(kinds)) != (1, 1, 2):  # no `StepRows`
        rest = tuple(sorted([*rest, *whole_numbers]))
        return Layout(number, message_class, tuple(arrays), nothing, None, rest, start)
    return Layout(number, message_class, tuple(arrays), nothing, whole_numbers[0], rest, start)


def _writer(layout: Layout) -> _Writer:
    """What makes a frame of a message of this layout, and returns None for any other. The hot path: everything that is
    the same each time is looked up here, once."""
    number, body_bytes, nothing, rest = layout.number, layout.body_bytes, layout.nothing, layout.rest
    fields = [(field.at, field.dtype, field.shape, field.padding, field.table) for field in layout.arrays]
    ndarray, none_pickled = np.ndarray, PREFIX.pack(number, 0, body_bytes)
    size_bytes = PREFIX.size + body_bytes

    def write(message: Any) -> tuple[list[Buffer], int] | None:
        buffers: list[Buffer] = [none_pickled]
        for index, dtype, shape, padding, table in fields:
            value = message[index]
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
                pickled = _dumps(tuple(message[index] for index in rest))
                buffers[0] = PREFIX.pack(number, len(pickled), body_bytes) + pickled
                return buffers, size_bytes + len(pickled)
        return buffers, size_bytes

    if layout.whole_number is None:
        return write
    ((array_at, dtype, shape, padding, _),), number_at = fields, layout.whole_number
    pack = struct.Struct(PREFIX.format + "Q").pack

    def write_step(message: Any) -> tuple[list[Buffer], int] | None:
        value, whole_number = message[array_at], message[number_at]
        if type(value) is not ndarray or value.dtype != dtype or value.shape != shape or not value.flags.c_contiguous:
            return None
        if type(whole_number) is not int or not 0 <= whole_number < INT_LIMIT:
            return None
        return [pack(number, INT_BYTES, body_bytes, whole_number), value, padding], size_bytes + INT_BYTES

    return write_step


_Writer = Callable[[Any], Any]


def _rest(layout: Layout, pickled: Buffer) -> Any:
    return pickle.loads(pickled) if pickled else [[] for _ in layout.rest]


def _array(field: ArrayField, body: Buffer) -> Any:
    array = np.ndarray(field.shape, field.dtype, body, field.start)
    return array if field.table is None else InfoTable(field.table[0], field.table[1], array)


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


def _dumps(
    value: Any,
    stays_in_the_pickle: Callable[[pickle.PickleBuffer], bool] | None = None,
    start_again: Callable[[], None] = lambda: None,
) -> bytes:
    try:
        return pickle.dumps(value, protocol=5, buffer_callback=stays_in_the_pickle)
    except (pickle.PicklingError, AttributeError, TypeError, ImportError):
        start_again()
        return cloudpickle.dumps(value, protocol=5, buffer_callback=stays_in_the_pickle)
