"""Walk a pickle without executing it: its opcodes build plain data, and every import or call stays a description.

Source: the comments of Python's own pickletools. What no weight file needs (text opcodes, extension codes, out-of-band
buffers) is refused. All costs are bounded by the length of the pickle and a cap on the operations.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from sdbatch.weights.header import FlawError, shown

MAX_LONG_BYTES = 256
_UINT2, _UINT4 = struct.Struct("<H"), struct.Struct("<I")
_DAMAGED = "its pickle is damaged: download it again, or use a .safetensors version"


class Global(NamedTuple):
    """Something that the pickle wants to import. It is not imported."""

    module: str
    name: str

    @property
    def dotted(self) -> str:
        """As Python writes it: `posix.system`."""
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Call:
    """A call that the pickle wants to make. It is not made."""

    function: Any
    arguments: Any
    items: dict[Any, Any] = field(default_factory=dict[Any, Any])
    """What was stored into the result by key: the content of an OrderedDict."""


@dataclass(eq=False, slots=True)
class Persistent:
    """A reference to something outside the pickle: torch's storages."""

    pid: Any


class Walker:
    """The stack machine of one pickle within `data`.

    Afterwards `position` is the end of the pickle and `imports` holds all that it wanted to import.
    """

    def __init__(self, data: bytes, max_ops: int, position: int = 0) -> None:
        self.data = data
        self.position = position
        self.ops_left = max_ops
        self.imports: set[Global] = set()
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def walk(self) -> Any:
        """The value of the pickle.

        Raises: FlawError for damaged, endless or unusual pickles.
        """
        data, table = self.data, OPERATIONS
        try:
            for used in range(self.ops_left):
                code = data[self.position]
                self.position += 1
                if code == _STOP:
                    self.ops_left -= used
                    return self.stack.pop()
                action = table.get(code)
                if action is None:
                    raise FlawError(f"its pickle uses operation 0x{code:02x}, which no checkpoint needs. Do not use it.")
                action(self)
        except (IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error):
            raise FlawError(f"{_DAMAGED} (at byte {self.position}).") from None
        raise FlawError("its pickle has more operations than any checkpoint needs. Do not use it.")

    def take(self, count: int) -> bytes:
        """The next bytes."""
        start = self.position
        if count > len(self.data) - start:
            raise IndexError
        self.position = start + count
        return self.data[start : self.position]

    def take_number(self, count: int) -> int:
        """The next bytes as a little-endian natural number."""
        return int.from_bytes(self.take(count), "little")

    def pop_marked(self) -> list[Any]:
        """What was pushed since the last mark."""
        items = self.stack
        self.stack = self.marked.pop()
        return items

    def store_items(self, items: list[Any]) -> None:
        """Keys and values in turn into the dictionary on top of the stack."""
        target: Any = self.stack[-1]
        into: dict[Any, Any] = target.items if isinstance(target, Call) else target
        if not isinstance(into, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            into[_check_key(key)] = value

    def extend(self, items: list[Any]) -> None:
        """More items for the list on top of the stack; what a call would have made does not exist, so nothing is added to it."""
        target: Any = self.stack[-1]
        if isinstance(target, list):
            cast(list[Any], target).extend(items)
        elif not isinstance(target, Call):
            raise TypeError

    def take_line(self) -> str:
        """Text up to the next newline."""
        end = self.data.index(b"\n", self.position, self.position + 1000)
        line = self.data[self.position : end].decode("utf-8")
        self.position = end + 1
        return line

    def push_import(self, module: Any, name: Any) -> None:
        """Note what the pickle wants to import."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError
        wanted = Global(module, name)
        self.imports.add(wanted)
        self.stack.append(wanted)


def _check_key(key: Any) -> Any:
    # Hashing a tuple of tuples of tuples can take for ever; no checkpoint has such keys.
    if key is None or isinstance(key, (str, int, float, bytes)) or type(key) is Global:
        return key
    raise TypeError


def _op_inst(walker: Walker) -> None:
    module, name = walker.take_line(), walker.take_line()
    arguments = walker.pop_marked()
    walker.push_import(module, name)
    walker.stack.append(Call(walker.stack.pop(), tuple(arguments)))


def _op_obj(walker: Walker) -> None:
    function, *arguments = walker.pop_marked()
    walker.stack.append(Call(function, tuple(arguments)))


def _op_mark(walker: Walker) -> None:
    walker.marked.append(walker.stack)
    walker.stack = []


def _op_dict(walker: Walker) -> None:
    items = walker.pop_marked()
    walker.stack.append({})
    walker.store_items(items)


def _op_long(walker: Walker, width: int) -> None:
    count = walker.take_number(width)
    if count > MAX_LONG_BYTES:
        raise FlawError(f"its pickle holds a number of {count} bytes. Do not use it.")
    walker.stack.append(int.from_bytes(walker.take(count), "little", signed=True))


def _op_refuse_extension(_: Walker) -> None:
    raise FlawError("its pickle asks for an extension code, which can import anything; not loaded. Use a .safetensors version.")


# The next six are nine tenths of a checkpoint's operations, and written out for speed.


def _op_binput(walker: Walker) -> None:
    walker.memo[walker.data[walker.position]] = walker.stack[-1]
    walker.position += 1


def _op_long_binput(walker: Walker) -> None:
    walker.memo[_UINT4.unpack_from(walker.data, walker.position)[0]] = walker.stack[-1]
    walker.position += 4


def _op_binget(walker: Walker) -> None:
    walker.stack.append(walker.memo[walker.data[walker.position]])
    walker.position += 1


def _op_binint1(walker: Walker) -> None:
    walker.stack.append(walker.data[walker.position])
    walker.position += 1


def _op_binint2(walker: Walker) -> None:
    walker.stack.append(_UINT2.unpack_from(walker.data, walker.position)[0])
    walker.position += 2


def _op_binunicode(walker: Walker) -> None:
    start = walker.position + 4
    end = start + _UINT4.unpack_from(walker.data, walker.position)[0]
    if end > len(walker.data):
        raise IndexError
    walker.stack.append(_utf8(walker.data[start:end]))
    walker.position = end


def _op_memoize(walker: Walker) -> None:
    walker.memo[len(walker.memo)] = walker.stack[-1]


def _tuple_of(count: int) -> Callable[[Walker], None]:
    def action(walker: Walker) -> None:
        if len(walker.stack) < count:
            raise IndexError
        items = tuple(walker.stack[-count:])
        walker.stack[-count:] = [items]

    return action


def _push(make: Callable[[Walker], Any]) -> Callable[[Walker], None]:
    def action(walker: Walker) -> None:
        value = make(walker)  # before the stack is looked at: it may pop a mark, which changes the stack
        walker.stack.append(value)

    return action


def _sized(width: int, decode: Callable[[bytes], Any] = bytes) -> Callable[[Walker], None]:
    """Bytes whose count stands before them in so many bytes."""
    return _push(lambda walker: decode(walker.take(walker.take_number(width))))


def _utf8(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _latin1(data: bytes) -> str:
    return data.decode("latin-1")


_STOP = ord(".")

OPERATIONS: dict[int, Callable[[Walker], Any]] = {
    # the stack and the memo
    0x80: lambda walker: walker.take(1),  # PROTO
    0x95: lambda walker: walker.take(8),  # FRAME: only a hint for streams
    ord("("): _op_mark,
    ord("0"): lambda walker: walker.stack.pop(),
    ord("1"): lambda walker: walker.pop_marked(),
    ord("2"): _push(lambda walker: walker.stack[-1]),
    ord("q"): _op_binput,
    ord("r"): _op_long_binput,
    0x94: _op_memoize,
    ord("h"): _op_binget,
    ord("j"): _push(lambda walker: walker.memo[walker.take_number(4)]),
    # plain values
    ord("N"): _push(lambda _: None),
    0x88: _push(lambda _: True),
    0x89: _push(lambda _: False),
    ord("K"): _op_binint1,
    ord("M"): _op_binint2,
    ord("J"): _push(lambda walker: int.from_bytes(walker.take(4), "little", signed=True)),
    0x8A: lambda walker: _op_long(walker, 1),
    0x8B: lambda walker: _op_long(walker, 4),
    ord("G"): _push(lambda walker: struct.unpack(">d", walker.take(8))[0]),
    0x8C: _sized(1, _utf8),
    ord("X"): _op_binunicode,
    0x8D: _sized(8, _utf8),
    ord("U"): _sized(1, _latin1),
    ord("T"): _sized(4, _latin1),
    ord("C"): _sized(1),
    ord("B"): _sized(4),
    0x8E: _sized(8),
    0x96: _sized(8),  # BYTEARRAY8
    # containers
    ord(")"): _push(lambda _: ()),
    0x85: _tuple_of(1),
    0x86: _tuple_of(2),
    0x87: _tuple_of(3),
    ord("t"): _push(lambda walker: tuple(walker.pop_marked())),
    ord("]"): _push(lambda _: []),
    ord("l"): _push(lambda walker: walker.pop_marked()),
    ord("a"): lambda walker: walker.extend([walker.stack.pop()]),
    ord("e"): lambda walker: walker.extend(walker.pop_marked()),
    ord("}"): _push(lambda _: {}),
    ord("d"): _op_dict,
    ord("s"): lambda walker: walker.store_items([walker.stack.pop(-2), walker.stack.pop()]),
    ord("u"): lambda walker: walker.store_items(walker.pop_marked()),
    0x8F: _push(lambda _: []),  # EMPTY_SET: no order is needed here, a list will do
    0x90: lambda walker: walker.extend(walker.pop_marked()),
    0x91: _push(lambda walker: walker.pop_marked()),  # FROZENSET
    # imports and calls: described, not done
    ord("c"): lambda walker: walker.push_import(walker.take_line(), walker.take_line()),
    0x93: lambda walker: walker.push_import(walker.stack.pop(-2), walker.stack.pop()),
    ord("i"): _op_inst,
    ord("o"): _op_obj,
    ord("R"): _push(lambda walker: Call(walker.stack.pop(-2), walker.stack.pop())),
    0x81: _push(lambda walker: Call(walker.stack.pop(-2), walker.stack.pop())),  # NEWOBJ
    0x92: _push(lambda walker: Call(walker.stack.pop(-3), [walker.stack.pop(-2), walker.stack.pop()])),  # NEWOBJ_EX: keywords too
    ord("b"): lambda walker: walker.stack.pop(),  # BUILD: the state of an object that is not made
    ord("Q"): _push(lambda walker: Persistent(walker.stack.pop())),
    0x82: _op_refuse_extension,
    0x83: _op_refuse_extension,
    0x84: _op_refuse_extension,
}
"""Byte -> action, as the pickle protocol names them."""


def describe_imports(imports: set[Global]) -> str:
    """The imports of a pickle for a message, the first three."""
    names = sorted(shown(wanted.dotted, 80) for wanted in imports)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
