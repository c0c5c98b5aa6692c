"""Small changes to the simulator's classes, made when its Java process starts.

Two things in the simulator make its text depend on what else happens in the process:

- `EnvObject` compares by uuid but hashes by identity, so sets of objects, and with them the order
  in which the world ticks, animals move and ambiguous choices are listed, change from run to run.
  It gets the missing `hashCode`: its uuid.
- `scala.util.Random`, the uuid counter and the active simplifications are global: simulators side
  by side would draw from one another's random numbers. Those three are looked up in a table by the
  current thread instead (`System.getProperties()` serves as the table); the gateway gives every
  simulator a Java thread of its own and puts an `Object[]` of them there.

Two more make it slow, and change nothing that is seen: to read one action, `InputParser` works out
all names of every object in reach again for each of some fifty patterns (now once an action; and
the words of a name once for good), and
after each step `PythonInterface` has it work them out once more to print them (now it does not).

After that the same (task, variation, actions) gives the same text letter for letter in every
process, and simulators can run in parallel while they share loaded classes and compiled code.

Format: The Java Virtual Machine Specification, chapter 4.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

_FIXED = {3: 4, 4: 4, 5: 8, 6: 8, 7: 2, 8: 2, 9: 4, 10: 4, 11: 4, 12: 4, 15: 3, 16: 2, 17: 4}
_FIXED |= {18: 4, 19: 2, 20: 2}
"""Bytes of a constant pool entry by its tag (the UTF-8 entry, tag 1, has its own length)."""
_UTF8, _WIDE = 1, (5, 6)
_PUBLIC = 0x0001

# Opcodes used below.
ALOAD_0, ALOAD_1, LLOAD_1, ICONST_0 = b"\x2a", b"\x2b", b"\x1f", b"\x03"
AALOAD, AASTORE, POP, L2I, IFNULL = b"\x32", b"\x53", b"\x57", b"\x88", b"\xc6"
ARETURN, LRETURN, IRETURN, RETURN = b"\xb0", b"\xad", b"\xac", b"\xb1"

RANDOM, COUNTER, SIMPLIFICATIONS, REFERENTS, WORDS = range(5)
"""Places in a simulator thread's `Object[]`."""


class ClassFile:
    """A Java class file whose methods can be replaced or added to.

    Raises ValueError where `data` is not a class file.
    """

    def __init__(self, data: bytes):
        if data[:4] != b"\xca\xfe\xba\xbe":
            raise ValueError("not a Java class file (wrong magic number)")
        self._version = data[:8]
        (self._size,) = struct.unpack_from(">H", data, 8)
        at, index, self._strings = 10, 1, dict[int, str]()
        while index < self._size:
            tag = data[at]
            if tag == _UTF8:
                (length,) = struct.unpack_from(">H", data, at + 1)
                self._strings[index] = data[at + 3 : at + 3 + length].decode("utf-8", "replace")
                at += 3 + length
            else:
                at += 1 + _FIXED[tag]
            index += 2 if tag in _WIDE else 1
        self._pool = bytearray(data[10:at])
        start = at
        (interfaces,) = struct.unpack_from(">H", data, at + 6)
        at += 8 + 2 * interfaces
        _, at = self._members(data, at)
        self._head = data[start:at]
        self._methods, at = self._members(data, at)
        self._tail = data[at:]

    def _members(self, data: bytes, at: int) -> tuple[list[bytes], int]:
        """Fields or methods, raw, and where they end."""
        (count,) = struct.unpack_from(">H", data, at)
        at += 2
        members = []
        for _ in range(count):
            start = at
            (attributes,) = struct.unpack_from(">H", data, at + 6)
            at += 8
            for _ in range(attributes):
                (length,) = struct.unpack_from(">I", data, at + 2)
                at += 6 + length
            members.append(data[start:at])
        return members, at

    def _constant(self, tag: int, body: bytes) -> int:
        self._pool += bytes([tag]) + body
        self._size += 1
        return self._size - 1

    def utf8(self, text: str) -> int:
        """Index of a text in the constant pool (added to its end; repeats do no harm)."""
        raw = text.encode()
        return self._constant(_UTF8, struct.pack(">H", len(raw)) + raw)

    def constant_class(self, name: str) -> int:
        """Index of a class in the constant pool."""
        return self._constant(7, struct.pack(">H", self.utf8(name)))

    def call(self, opcode: int, owner: str, name: str, descriptor: str) -> bytes:
        """Bytecode of a method call (0xb6 virtual, 0xb8 static)."""
        pair = struct.pack(">HH", self.utf8(name), self.utf8(descriptor))
        reference = struct.pack(">HH", self.constant_class(owner), self._constant(12, pair))
        return struct.pack(">BH", opcode, self._constant(10, reference))

    def cast(self, name: str) -> bytes:
        """Bytecode that casts the top of the stack to a class."""
        return struct.pack(">BH", 0xC0, self.constant_class(name))

    def _is(self, method: bytes, name: str, descriptor: str) -> bool:
        _, n, d = struct.unpack_from(">HHH", method)
        return (self._strings.get(n), self._strings.get(d)) == (name, descriptor)

    def rename_method(self, name: str, descriptor: str, new: str) -> None:
        """Raises ValueError where there is no such method."""
        at = [i for i, method in enumerate(self._methods) if self._is(method, name, descriptor)]
        if len(at) != 1:
            raise ValueError(f"no method {name}{descriptor}")
        method = self._methods[at[0]]
        self._methods[at[0]] = method[:2] + struct.pack(">H", self.utf8(new)) + method[4:]

    def set_method(self, name: str, descriptor: str, code: bytes, frames: bytes = b"") -> None:
        """Replaces (or adds) a public method of at most 8 stack and 8 local slots.

        `frames`: the entries of its stack map, one for each target of a branch.
        """

        def is_it(method: bytes) -> bool:
            return self._is(method, name, descriptor)

        body = struct.pack(">HHI", 8, 8, len(code)) + code + struct.pack(">HH", 0, bool(frames))
        if frames:
            body += struct.pack(">HIH", self.utf8("StackMapTable"), 2 + len(frames), 1) + frames
        attribute = struct.pack(">HI", self.utf8("Code"), len(body)) + body
        head = struct.pack(">HHHH", _PUBLIC, self.utf8(name), self.utf8(descriptor), 1)
        self._methods = [m for m in self._methods if not is_it(m)] + [head + attribute]

    def to_bytes(self) -> bytes:
        methods = struct.pack(">H", len(self._methods)) + b"".join(self._methods)
        size = struct.pack(">H", self._size)
        return self._version + size + bytes(self._pool) + self._head + methods + self._tail


def _of_thread(cls: ClassFile) -> bytes:
    """Bytecode that pushes the current thread's `Object[]`."""
    return (
        cls.call(0xB8, "java/lang/System", "getProperties", "()Ljava/util/Properties;")
        + cls.call(0xB8, "java/lang/Thread", "currentThread", "()Ljava/lang/Thread;")
        + cls.call(0xB6, "java/util/Properties", "get", "(Ljava/lang/Object;)Ljava/lang/Object;")
        + cls.cast("[Ljava/lang/Object;")
    )


def _item(cls: ClassFile, place: int, kind: str) -> bytes:
    """Bytecode that pushes what stands at `place` there."""
    return _of_thread(cls) + bytes([ICONST_0[0] + place]) + AALOAD + cls.cast(kind)


def _hash_by_uuid(cls: ClassFile) -> None:
    uuid = cls.call(0xB6, "scienceworld/struct/EnvObject", "uuid", "()J")
    cls.set_method("hashCode", "()I", ALOAD_0 + uuid + L2I + IRETURN)


def _own_random(cls: ClassFile) -> None:
    kind = "java/util/Random"
    cls.set_method("self", f"()L{kind};", _item(cls, RANDOM, kind) + ARETURN)


def _own_counter(cls: ClassFile) -> None:
    kind = "java/lang/Long"
    number = _item(cls, COUNTER, kind) + cls.call(0xB6, kind, "longValue", "()J")
    cls.set_method("count", "()J", number + LRETURN)
    place = _of_thread(cls) + bytes([ICONST_0[0] + COUNTER])
    boxed = LLOAD_1 + cls.call(0xB8, kind, "valueOf", f"(J)L{kind};")
    cls.set_method("count_$eq", "(J)V", place + boxed + AASTORE + RETURN)


def _own_simplifications(cls: ClassFile) -> None:
    kind = "scala/collection/mutable/ArrayBuffer"
    cls.set_method("simplifications", f"()L{kind};", _item(cls, SIMPLIFICATIONS, kind) + ARETURN)


_OBJECT = "scienceworld/struct/EnvObject"
_NAMES = f"(L{_OBJECT};L{_OBJECT};)[Ljava/lang/String;"
_PARSE = (
    f"(Ljava/lang/String;L{_OBJECT};L{_OBJECT};Lscienceworld/objects/agent/Agent;"
    "Lscienceworld/tasks/goals/ObjMonitor;Lscienceworld/tasks/goals/GoalSequence;"
    f"L{_OBJECT};)Lscala/Tuple4;"
)


def _names_once_an_action(cls: ClassFile) -> None:
    """`parse` empties the thread's map of names, then goes on as before."""
    cls.rename_method("parse", _PARSE, "parse$plain")
    clear = _item(cls, REFERENTS, "java/util/HashMap")
    clear += cls.call(0xB6, "java/util/HashMap", "clear", "()V")
    arguments = b"".join(bytes([0x19, slot]) for slot in range(8))
    plain = cls.call(0xB6, "scienceworld/input/InputParser", "parse$plain", _PARSE)
    cls.set_method("parse", _PARSE, clear + arguments + plain + ARETURN)


def _remember(cls: ClassFile, place: int, name: str, descriptor: str, arguments: int) -> None:
    """The method looks its first argument up in the thread's map at `place` before it works.

    `arguments`: how many it has, all of them objects; its value is an array of strings.
    """
    owner, kind, plain = "scienceworld/input/InputParser$", "java/util/HashMap", f"{name}$plain"
    value, keep = bytes([0x19, 1 + arguments]), bytes([0x3A, 1 + arguments])
    cls.rename_method(name, descriptor, plain)
    cast = cls.cast("[Ljava/lang/String;")
    get = cls.call(0xB6, kind, "get", "(Ljava/lang/Object;)Ljava/lang/Object;")
    put = "(Ljava/lang/Object;Ljava/lang/Object;)Ljava/lang/Object;"
    code = _item(cls, place, kind) + ALOAD_1 + get + keep
    code += value + IFNULL + struct.pack(">h", 3 + len(value + cast + ARETURN))
    code += value + cast + ARETURN
    # The branch lands here, with one local more than at the start: the value, an Object.
    frame = struct.pack(">BHBH", 252, len(code), 7, cls.constant_class("java/lang/Object"))
    code += b"".join(bytes([0x19, slot]) for slot in range(1 + arguments))
    code += cls.call(0xB6, owner, plain, descriptor) + keep
    code += _item(cls, place, kind) + ALOAD_1 + value + cls.call(0xB6, kind, "put", put) + POP
    cls.set_method(name, descriptor, code + value + cast + ARETURN, frame)


def _remember_names(cls: ClassFile) -> None:
    """The names of a thing once an action, the words of a name once; no names to print."""
    _remember(cls, REFERENTS, "getObjectReferents", _NAMES, arguments=2)
    _remember(cls, WORDS, "tokenize", "(Ljava/lang/String;)[Ljava/lang/String;", arguments=1)
    nothing = ICONST_0 + struct.pack(">BH", 0xBD, cls.constant_class("java/lang/String"))
    cls.set_method("getPossibleReferents", _NAMES, nothing + ARETURN)


CHANGES: dict[str, Callable[[ClassFile], None]] = {
    "scienceworld/struct/EnvObject": _hash_by_uuid,
    "scala/util/Random$": _own_random,
    "util/UniqueIdentifier$": _own_counter,
    "main/scala/scienceworld/runtime/SimplifierProcessor$": _own_simplifications,
    "scienceworld/input/InputParser": _names_once_an_action,
    "scienceworld/input/InputParser$": _remember_names,
}


def write_patch(simulator_jar: Path, patch_jar: Path) -> None:
    """Writes the changed classes into `patch_jar`, to stand before the simulator's jar.

    Raises ValueError where the jar lacks one of them (another version of the simulator).
    """
    with zipfile.ZipFile(simulator_jar) as jar, zipfile.ZipFile(patch_jar, "w") as out:
        for name, change in CHANGES.items():
            try:
                cls = ClassFile(jar.read(f"{name}.class"))
            except KeyError:
                raise ValueError(
                    f"{simulator_jar} has no class {name}: this StepAgent knows the simulator of "
                    "scienceworld 1.2.3; install that version"
                ) from None
            change(cls)
            out.writestr(f"{name}.class", cls.to_bytes())
