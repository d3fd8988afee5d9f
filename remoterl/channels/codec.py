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
    EMPTY = "an empty list"
    PICKLED = "the next value of the frame's pickle"
    INT = "a whole number, whose 8 bytes stand in place of the pickle"


class ArrayField(NamedTuple):
    """Where a field's array lies in the body. `table`: keys and types, where the field is an `InfoTable` of it."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    padding: int  # bytes after it, so that the next one is aligned
    table: tuple[tuple[str, ...], tuple[type, ...]] | None


class Layout(NamedTuple):
    """What the frames of one kind of step have in common. It travels pickled, once."""

    number: int
    message_class: type
    fields: tuple[ArrayField | Field, ...]
    body_bytes: int
    paddings: tuple[bytes, ...]  # one an array


class Encoder:
    """Turns the messages of one direction of one connection into frames. Frames must be sent in order."""

    def __init__(self) -> None:
        self._layouts: dict[Any, Layout] = {}

    def encode(self, message: Any) -> tuple[list[Buffer], int]:
        """The buffers to send, one after the other, and how many bytes they have together.

        Raises:
            Exception: what pickling raised; nothing of the message may be sent then, and others can follow.
        """
        if type(message) is RowsStepped or type(message) is StepRows:
            encoded = self._by_layout(message)
            if encoded is not None:
                return encoded
        return _pickled(message)

    def _by_layout(self, message: Any) -> tuple[list[Buffer], int] | None:
        kinds: list[Any] = [type(message)]
        arrays: list[np.ndarray] = []
        rest: list[Any] = []
        for value in message:
            if type(value) is np.ndarray and value.dtype.kind in PLAIN_KINDS and value.flags.c_contiguous:
                kinds.append((value.dtype, value.shape, None))
                arrays.append(value)
            elif type(value) is InfoTable:
                kinds.append((value.values.dtype, value.values.shape, (value.keys, value.types)))
                arrays.append(value.values)
            elif value is None:
                kinds.append(Field.NONE)
            elif type(value) is list and not value:
                kinds.append(Field.EMPTY)
            else:
                kinds.append(Field.PICKLED)
                rest.append(value)
        only_an_int = len(rest) == 1 and type(rest[0]) is int and 0 <= rest[0] < INT_LIMIT
        if only_an_int:
            kinds[kinds.index(Field.PICKLED)] = Field.INT
        key = tuple(kinds)
        layout = self._layouts.get(key)
        if layout is None and (not arrays or len(self._layouts) == MAX_LAYOUTS):
            return None
        pickled = b""
        if only_an_int:
            pickled = rest[0].to_bytes(INT_BYTES, "little")
        elif rest:
            pickled = _dumps(tuple(rest))
        buffers: list[Buffer] = []
        size_bytes = PREFIX.size + len(pickled)
        if layout is None:
            layout = self._layouts[key] = _make_layout(len(self._layouts) + 1, *kinds)
            definition = pickle.dumps(layout, protocol=5)
            buffers += [PREFIX.pack(DEFINITION, len(definition), 0), definition]
            size_bytes += PREFIX.size + len(definition)
        buffers.append(PREFIX.pack(layout.number, len(pickled), layout.body_bytes))
        buffers.append(pickled)
        for array, padding in zip(arrays, layout.paddings, strict=True):
            buffers.append(array)
            if padding:
                buffers.append(padding)
        return buffers, size_bytes + layout.body_bytes


class Decoder:
    """The inverse of `Encoder`, for one direction of one connection. Only for a peer that has authenticated."""

    def __init__(self) -> None:
        self._layouts: dict[int, _Recipe] = {}

    def define(self, pickled: Buffer) -> None:
        """Learn a layout from a frame of the kind `DEFINITION`."""
        layout: Layout = pickle.loads(pickled)
        self._layouts[layout.number] = _recipe(layout)

    def by_layout(self, number: int, pickled: Buffer, body: Buffer) -> Any:
        """A message from its layout; its arrays are views of `body`, which nothing else may use."""
        message_class, constants, arrays, rest = self._layouts[number]
        values = [[] if value is Field.EMPTY else value for value in constants]
        for index, shape, dtype, start, table in arrays:
            array = np.ndarray(shape, dtype, body, start)
            values[index] = array if table is None else InfoTable(table[0], table[1], array)
        if rest:
            if constants[rest[0]] is Field.INT:
                values[rest[0]] = int.from_bytes(pickled, "little")
            else:
                for index, value in zip(rest, pickle.loads(pickled), strict=True):
                    values[index] = value
        return message_class(*values)


class _Recipe(NamedTuple):
    """A layout as `by_layout` wants it."""

    message_class: type
    constants: list[Any]  # of every field: what needs no frame to be known
    arrays: list[tuple[int, tuple[int, ...], np.dtype, int, Any]]  # field's index, then as in `ArrayField`
    rest: list[int]  # indices of the fields that are not arrays and come with the frame


def _recipe(layout: Layout) -> _Recipe:
    fields = list(enumerate(layout.fields))
    return _Recipe(
        layout.message_class,
        [None if field is Field.NONE else field for _, field in fields],
        [(at, field.shape, field.dtype, field.start, field.table) for at, field in fields if type(field) is ArrayField],
        [at for at, field in fields if field is Field.PICKLED or field is Field.INT],
    )


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


def _make_layout(number: int, message_class: type, *kinds: Any) -> Layout:
    fields: list[ArrayField | Field] = []
    start = 0
    for kind in kinds:
        if type(kind) is Field:
            fields.append(kind)
            continue
        dtype, shape, table = kind
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        padding = -size % ALIGNMENT
        fields.append(ArrayField(dtype, shape, start, padding, table))
        start += size + padding
    paddings = tuple(bytes(field.padding) for field in fields if type(field) is ArrayField)
    return Layout(number, message_class, tuple(fields), start, paddings)
