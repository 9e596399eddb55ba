"""A pickle reader that cannot run anything: opcodes become dicts, lists, values and records.

No class is imported, no function called. What a pickle wants to call is looked up in a table of
exact (module, name) pairs whose functions are ours (`rebuild`); everything else becomes a
`Record` that keeps the name, the arguments and the state. Work and memory are bounded by the
length of the input: each opcode makes at most one object, lengths are compared with the bytes
that are left before anything is allocated, the memo is a dict, and keys that are not plain are
never hashed. Opcodes: Python's `pickletools`, protocols 0 to 5.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from ckptfmt.errors import FormatError
from ckptfmt.migrate.source import Attributed, Lazy, Name, Record, Settable, key_of

Function: TypeAlias = Callable[[tuple[Any, ...]], Any]
Table: TypeAlias = Mapping[tuple[str, str], Function]

MAX_OPCODES: Final = 20_000_000
FREE_COPIES: Final = 2**20  # elements and bytes that calls may copy beyond those in the file
_COPIED: Final = (str, bytes, bytearray, list, tuple, dict)
_MARK: Final = object()


class Machine:
    """Reads one pickle.

    Args:
        data: Holds the pickle from `at` on; `at` is behind it afterwards.
        table: What calls stand for.
        persistent: Returns what an id outside the pickle stands for; None refuses all.
        file: For messages.
    """

    def __init__(
        self,
        data: memoryview,
        at: int = 0,
        *,
        table: Table,
        persistent: Callable[[Any], Any] | None = None,
        file: str,
    ) -> None:
        self._data = data
        self.at = at
        self._table = table
        self._persistent = persistent
        self._file = file
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self.names: set[str] = set()  # every class and function mentioned
        self._copied = 0  # elements and bytes handed to calls

    def load(self) -> Any:
        """Return what the pickle holds.

        Raises:
            FormatError: malformed, truncated, too long, or it needs what is not allowed.
        """
        start = self.at
        try:
            return self._run()
        except FormatError:
            raise
        except (LookupError, TypeError, ValueError, OverflowError, struct.error) as error:
            raise self._bad("malformed pickle", begins=start) from error

    def _run(self) -> Any:
        data, operations = self._data, _OPERATIONS
        for _ in range(MAX_OPCODES):
            if self.at >= len(data):
                raise self._bad("the pickle ends without its last opcode")
            code = data[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                return self._stack.pop()
            operation = operations[code]
            if operation is None:
                raise self._bad("unexpected opcode in a pickle", found=bytes([code]))
            operation(self)
        raise self._bad(f"a pickle of more than {MAX_OPCODES} opcodes")

    def _bad(self, message: str, **where: object) -> FormatError:
        return FormatError(message, file=self._file, offset=self.at, **where)

    # ---- bytes

    def take(self, nbytes: int) -> bytes:
        """Return the next bytes."""
        if nbytes < 0 or nbytes > len(self._data) - self.at:
            raise self._bad("the pickle ends inside a value", expected=nbytes)
        self.at += nbytes
        return bytes(self._data[self.at - nbytes : self.at])

    def number(self, width: int) -> int:
        """Return the next unsigned integer."""
        return int.from_bytes(self.take(width), "little")

    def frame(self) -> None:
        """Pass over a frame's length after comparing it with what is left."""
        nbytes = self.number(8)
        if nbytes > len(self._data) - self.at:
            raise self._bad("the pickle ends inside a frame", expected=nbytes)

    def line(self) -> bytes:
        """Return the next line without its end."""
        window = 256
        while True:
            found = bytes(self._data[self.at : self.at + window])
            end = found.find(b"\n")
            if end >= 0:
                self.at += end + 1
                return found[:end]
            if window >= len(self._data) - self.at:
                raise self._bad("the pickle ends inside a line")
            window *= 2

    # ---- the stack

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self._stack.append(value)

    def pop(self) -> Any:
        """Take a value; a mark is none."""
        value = self._stack.pop()
        if value is _MARK:
            raise self._bad("a mark where a value was expected")
        return value

    def top(self) -> Any:
        """Return the value on top and leave it."""
        value = self._stack[-1]
        if value is _MARK:
            raise self._bad("a mark where a value was expected")
        return value

    def above_mark(self) -> list[Any]:
        """Take everything above the last mark, and the mark."""
        stack = self._stack
        for at in range(len(stack) - 1, -1, -1):
            if stack[at] is _MARK:
                above = stack[at + 1 :]
                del stack[at:]
                return above
        raise self._bad("no mark on the stack")

    def memoize(self, at: int) -> None:
        """Remember the value on top."""
        if not 0 <= at < 2**32:
            raise self._bad("a number that no pickle remembers by", found=at)
        self._memo[at] = self.top()

    def recall(self, at: int) -> None:
        """Push what was remembered."""
        if at not in self._memo:
            raise self._bad("the pickle refers to what it did not remember", found=at)
        self.push(self._memo[at])

    # ---- objects

    def name(self, module: Any, name: Any) -> Name:
        """Return a class or function that is mentioned: text."""
        if type(module) is not str or type(name) is not str or len(module) + len(name) > 2000:
            raise self._bad("malformed name of a class")
        self.names.add(f"{module}.{name}")
        return Name(module, name)

    def call(self, what: Any, args: Any) -> Any:
        """Return what a call stands for; nothing foreign is called."""
        if type(args) is not tuple:
            raise self._bad("arguments are no tuple", found=type(args).__name__)
        self._charge(args)
        if not isinstance(what, Name):
            return Record(f"result of {_kind(what)}", args=(what, *args))
        ours = self._table.get((what.module, what.name))
        return Record(str(what), args=args) if ours is None else ours(args)

    def build(self, target: Any, state: Any) -> None:
        """Give an object its state."""
        self._charge(state)
        if isinstance(target, Settable):
            target.set_state(state)
        elif isinstance(target, Record):
            target.state = state
        elif isinstance(target, Attributed):
            target.attributes = state
        elif isinstance(target, Lazy):
            if target.describe is not None:
                target.describe(state)
            elif isinstance(state, tuple | dict):
                target.leave_out(state)
            else:
                raise self._bad("state for an array that has none", found=_kind(state))
        else:
            raise self._bad("state for a value that has none", found=_kind(target))

    def set_items(self, target: Any, pairs: list[Any]) -> None:
        """Put pairs into a dict or a kind of dict."""
        into = target.entries if isinstance(target, Record) else target
        if not isinstance(into, dict) or len(pairs) % 2:
            raise self._bad("items for what is no dict", found=_kind(target))
        for at in range(0, len(pairs), 2):
            into[key_of(pairs[at])] = pairs[at + 1]

    def extend(self, target: Any, values: list[Any]) -> None:
        """Append values to a list or a kind of list or set."""
        into = target.items if isinstance(target, Record) else target
        if not isinstance(into, list):
            raise self._bad("items for what is no list", found=_kind(target))
        into.extend(values)

    def _charge(self, args: Any) -> None:
        """Count what a call may copy: a real file has each part of it once in its bytes."""
        parts = args if type(args) is tuple else ()
        self._copied += len(parts) + sum(len(p) for p in parts if isinstance(p, _COPIED))
        if self._copied > len(self._data) + FREE_COPIES:
            raise self._bad("a pickle that copies its parts too often", found=self._copied)

    def persist(self, identity: Any) -> Any:
        """Return what an id outside the pickle stands for."""
        if self._persistent is None:
            raise self._bad("this kind of file has no persistent ids")
        return self._persistent(identity)


def _kind(value: Any) -> str:
    return str(value) if isinstance(value, Name) else type(value).__name__


def text(raw: bytes) -> Any:
    """Return a string of Python 2: str when it is ASCII, else the bytes it was."""
    return raw.decode() if raw.isascii() else raw


def _unquoted(machine: Machine) -> Any:
    line = machine.line().strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise FormatError("malformed string in a pickle", offset=machine.at)
    return text(codecs.escape_decode(line[1:-1])[0])


def _integer(machine: Machine) -> Any:
    line = machine.line()
    return line == b"01" if line in (b"00", b"01") else int(line)


def _list_to(kind: Callable[[list[Any]], Any]) -> Callable[[Machine], None]:
    return lambda m: m.push(kind(m.above_mark()))


def _dict(pairs: list[Any]) -> dict[Any, Any]:
    return {key_of(pairs[at]): pairs[at + 1] for at in range(0, len(pairs), 2)}


def _reduce(machine: Machine) -> None:
    args = machine.pop()
    machine.push(machine.call(machine.pop(), args))


def _newobj_ex(machine: Machine) -> None:
    keywords, args = machine.pop(), machine.pop()
    made = machine.call(machine.pop(), args)
    if keywords and isinstance(made, Record):
        made.args = (*made.args, keywords)
    machine.push(made)


def _inst(machine: Machine) -> None:
    module, name = machine.line().decode(), machine.line().decode()
    what = machine.name(module, name)
    machine.push(machine.call(what, tuple(machine.above_mark())))


def _obj(machine: Machine) -> None:
    what, *args = machine.above_mark()
    machine.push(machine.call(what, tuple(args)))


def _global(machine: Machine) -> None:
    module = machine.line().decode()
    machine.push(machine.name(module, machine.line().decode()))


def _stack_global(machine: Machine) -> None:
    name = machine.pop()
    machine.push(machine.name(machine.pop(), name))


def _build(machine: Machine) -> None:
    state = machine.pop()
    machine.build(machine.top(), state)


def _setitem(machine: Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items(machine.top(), [key, value])


def _setitems(machine: Machine) -> None:
    pairs = machine.above_mark()
    machine.set_items(machine.top(), pairs)


def _append(machine: Machine) -> None:
    value = machine.pop()
    machine.extend(machine.top(), [value])


def _appends(machine: Machine) -> None:
    values = machine.above_mark()
    machine.extend(machine.top(), values)


def _tuple_of(count: int) -> Callable[[Machine], None]:
    def run(machine: Machine) -> None:
        machine.push(tuple([machine.pop() for _ in range(count)][::-1]))

    return run


def _signed(raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=True)


_OPERATIONS: Final[list[Callable[[Machine], Any] | None]] = [None] * 256
for _code, _operation in {
    b"(": lambda m: m.push(_MARK),
    b"0": lambda m: m._stack.pop(),
    b"1": lambda m: m.above_mark(),
    b"2": lambda m: m.push(m.top()),
    b"F": lambda m: m.push(float(m.line())),
    b"I": lambda m: m.push(_integer(m)),
    b"J": lambda m: m.push(_signed(m.take(4))),
    b"K": lambda m: m.push(m.number(1)),
    b"L": lambda m: m.push(int(m.line().rstrip(b"L"))),
    b"M": lambda m: m.push(m.number(2)),
    b"N": lambda m: m.push(None),
    b"P": lambda m: m.push(m.persist(m.line().decode())),
    b"Q": lambda m: m.push(m.persist(m.pop())),
    b"R": _reduce,
    b"S": lambda m: m.push(_unquoted(m)),
    b"T": lambda m: m.push(text(m.take(m.number(4)))),
    b"U": lambda m: m.push(text(m.take(m.number(1)))),
    b"V": lambda m: m.push(m.line().decode("raw-unicode-escape")),
    b"X": lambda m: m.push(str(m.take(m.number(4)), "utf-8", "surrogatepass")),
    b"a": _append,
    b"b": _build,
    b"c": _global,
    b"d": _list_to(_dict),
    b"}": lambda m: m.push({}),
    b"e": _appends,
    b"g": lambda m: m.recall(int(m.line())),
    b"h": lambda m: m.recall(m.number(1)),
    b"i": _inst,
    b"j": lambda m: m.recall(m.number(4)),
    b"l": _list_to(list),
    b"]": lambda m: m.push([]),
    b"o": _obj,
    b"p": lambda m: m.memoize(int(m.line())),
    b"q": lambda m: m.memoize(m.number(1)),
    b"r": lambda m: m.memoize(m.number(4)),
    b"s": _setitem,
    b"t": _list_to(tuple),
    b")": lambda m: m.push(()),
    b"u": _setitems,
    b"G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    b"B": lambda m: m.push(m.take(m.number(4))),
    b"C": lambda m: m.push(m.take(m.number(1))),
    b"\x80": lambda m: m.number(1),
    b"\x81": _reduce,
    b"\x85": _tuple_of(1),
    b"\x86": _tuple_of(2),
    b"\x87": _tuple_of(3),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"\x8a": lambda m: m.push(_signed(m.take(m.number(1)))),
    b"\x8b": lambda m: m.push(_signed(m.take(m.number(4)))),
    b"\x8c": lambda m: m.push(str(m.take(m.number(1)), "utf-8", "surrogatepass")),
    b"\x8d": lambda m: m.push(str(m.take(m.number(8)), "utf-8", "surrogatepass")),
    b"\x8e": lambda m: m.push(m.take(m.number(8))),
    b"\x8f": lambda m: m.push(Record("builtins.set")),
    b"\x90": _appends,
    b"\x91": lambda m: m.push(Record("builtins.frozenset", items=m.above_mark())),
    b"\x92": _newobj_ex,
    b"\x93": _stack_global,
    b"\x94": lambda m: m.memoize(len(m._memo)),
    b"\x95": lambda m: m.frame(),
    b"\x96": lambda m: m.push(bytearray(m.take(m.number(8)))),
}.items():
    _OPERATIONS[_code[0]] = _operation
