"""Java class files: methods can be renamed, removed, and added in a small assembly language.

An assembly method is a text, one instruction a line:

    known: this names          # a label, and the variables that hold a value there
        aload names            # variables go by their names
        ifnull unknown         # branches by labels
        invokevirtual java/lang/String.startsWith (Ljava/lang/String;)Z

The stack is empty at labels, which keeps the verifier's stack map frames to the list of variables.
Format: The Java Virtual Machine Specification, chapters 4 and 6.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping

_FIXED = {3: 4, 4: 4, 5: 8, 6: 8, 7: 2, 8: 2, 9: 4, 10: 4, 11: 4, 12: 4, 15: 3, 16: 2, 17: 4}
_FIXED |= {18: 4, 19: 2, 20: 2}
"""Bytes of a constant pool entry by its tag (the UTF-8 entry, tag 1, has its own length)."""
_UTF8, _CLASS, _STRING, _FIELD, _METHOD, _INTERFACE_METHOD, _PAIR = 1, 7, 8, 9, 10, 11, 12
_WIDE = (5, 6)
_PUBLIC, _STATIC = 0x0001, 0x0008
_STACK = 16
"""Stack slots of an assembled method; none needs more."""

_PLAIN = {
    "aconst_null": 0x01, "aaload": 0x32, "aastore": 0x53, "pop": 0x57, "dup": 0x59, "i2l": 0x85,
    "l2i": 0x88, "ireturn": 0xAC, "lreturn": 0xAD, "areturn": 0xB0, "return": 0xB1,
    "arraylength": 0xBE,
}  # fmt: skip
_VARIABLE = {"iload": 0x15, "lload": 0x16, "aload": 0x19, "istore": 0x36, "astore": 0x3A}
_BRANCH = {
    "ifeq": 0x99, "ifne": 0x9A, "if_icmplt": 0xA1, "if_icmpge": 0xA2, "if_icmpgt": 0xA3,
    "goto": 0xA7, "ifnull": 0xC6, "ifnonnull": 0xC7,
}  # fmt: skip
_ON_CLASS = {
    "new": 0xBB,
    "anewarray": 0xBD,
    "checkcast": 0xC0,
    "instanceof": 0xC1,
    "ldc_class": 0x13,
}
_MEMBER = {
    "getstatic": (0xB2, _FIELD), "getfield": (0xB4, _FIELD), "putfield": (0xB5, _FIELD),
    "invokevirtual": (0xB6, _METHOD), "invokespecial": (0xB7, _METHOD),
    "invokestatic": (0xB8, _METHOD), "invokeinterface": (0xB9, _INTERFACE_METHOD),
}  # fmt: skip
_INSTRUCTION = re.compile(r"(?P<name>\w+)(?: (?P<operand>.+))?")
_LABEL = re.compile(r"(?P<label>\w+):(?P<variables>.*)")


class ClassFile:
    """A Java class file.

    Raises ValueError where `data` is not a class file.
    """

    def __init__(self, data: bytes):
        if data[:4] != b"\xca\xfe\xba\xbe":
            raise ValueError("not a Java class file (wrong magic number)")
        self._version = data[:8]
        (self._size,) = struct.unpack_from(">H", data, 8)
        self._pool, at, index = dict[int, tuple[int, bytes]](), 10, 1
        while index < self._size:
            tag, start = data[at], at + 1
            length = _FIXED[tag] if tag != _UTF8 else 2 + int.from_bytes(data[start : start + 2])
            self._pool[index] = tag, data[start : start + length]
            at, index = start + length, index + (2 if tag in _WIDE else 1)
        self._indices = {entry: index for index, entry in self._pool.items()}
        (interfaces,) = struct.unpack_from(">H", data, at + 6)
        self._head, at = data[at : at + 8 + 2 * interfaces], at + 8 + 2 * interfaces
        self._fields, at = _members(data, at)
        self._methods, at = _members(data, at)
        self._tail = data[at:]

    def to_bytes(self) -> bytes:
        """The file with its changes."""
        pool = b"".join(bytes([tag]) + body for tag, body in self._pool.values())
        members = (
            struct.pack(">H", len(group)) + b"".join(group)
            for group in (self._fields, self._methods)
        )
        return b"".join(
            (self._version, struct.pack(">H", self._size), pool, self._head, *members, self._tail)
        )

    def _constant(self, tag: int, body: bytes) -> int:
        """Index of a constant, which is added where the pool lacks it."""
        if (tag, body) not in self._indices:
            self._pool[self._size] = tag, body
            self._indices[tag, body] = self._size
            self._size += 1
        return self._indices[tag, body]

    def _utf8(self, text: str) -> int:
        return self._constant(_UTF8, struct.pack(">H", len(text.encode())) + text.encode())

    def _class(self, name: str) -> int:
        return self._constant(_CLASS, struct.pack(">H", self._utf8(name)))

    def _member(self, tag: int, owner: str, name: str, descriptor: str) -> int:
        """Index of a reference to a field or method."""
        pair = self._constant(_PAIR, struct.pack(">HH", self._utf8(name), self._utf8(descriptor)))
        return self._constant(tag, struct.pack(">HH", self._class(owner), pair))

    def _find(self, name: str, descriptor: str) -> int:
        """Place of a method (raises ValueError where there is none)."""
        start = struct.pack(">HH", self._utf8(name), self._utf8(descriptor))
        for place, method in enumerate(self._methods):
            if method[2:6] == start:
                return place
        raise ValueError(f"no method {name}{descriptor}")

    def rename(self, name: str, descriptor: str, new: str) -> None:
        """Renames a method and makes it public. Raises ValueError where there is none."""
        place = self._find(name, descriptor)
        method = self._methods[place]
        (flags,) = struct.unpack_from(">H", method)
        head = struct.pack(">HH", flags & ~0x0006 | _PUBLIC, self._utf8(new))
        self._methods[place] = head + method[4:]

    def remove(self, name: str, descriptor: str) -> None:
        """Removes a method. Raises ValueError where there is none."""
        del self._methods[self._find(name, descriptor)]

    def redirect(self, method: str, descriptor: str, old: str, new: str, calls: int = 1) -> None:
        """Lets a method call another one in place of `old` (both as in assembly, of one signature).

        Raises ValueError where it does not contain that many calls of `old`.
        """
        place = self._find(method, descriptor)
        before, after = (self._assemble_member("invokevirtual", call)[1:] for call in (old, new))
        pattern = re.compile(rb"(?<=[\xb6\xb7])" + re.escape(before))
        self._methods[place], count = pattern.subn(lambda _: after, self._methods[place])
        if count != calls:
            raise ValueError(f"{method}{descriptor} has {count} calls of {old}, not {calls}")

    def add_field(self, name: str, descriptor: str) -> None:
        """Adds a public field."""
        self._fields.append(
            struct.pack(">HHHH", _PUBLIC, self._utf8(name), self._utf8(descriptor), 0)
        )

    def add_method(
        self,
        name: str,
        descriptor: str,
        variables: Mapping[str, str],
        text: str,
        static: bool = False,
    ) -> None:
        """Adds a public method written in assembly.

        `variables`: its local variables and their types in order, beginning with `this` and the
        parameters: `int`, `long`, or a class as in `checkcast`.

        Raises ValueError for an unknown instruction, KeyError for an unknown variable or label.
        """
        slots, size = {}, 0
        for variable, kind in variables.items():
            slots[variable], size = size, size + (2 if kind == "long" else 1)
        code, labels, branches, frames = bytearray(), dict[str, int](), dict[int, str](), b""
        previous = -1
        for line in filter(None, (line.split("#")[0].strip() for line in text.splitlines())):
            if match := _LABEL.fullmatch(line):
                labels[match["label"]] = len(code)
                alive = {
                    v: kind for v, kind in variables.items() if v in match["variables"].split()
                }
                frames += self._frame(len(code) - previous - 1, variables, alive)
                previous = len(code)
                continue
            match = _INSTRUCTION.fullmatch(line)
            operation, operand = (match["name"], match["operand"]) if match else (line, "")
            if operation in _BRANCH:
                branches[len(code)] = operand
                code += bytes([_BRANCH[operation], 0, 0])
            elif operation in _VARIABLE:
                code += bytes([_VARIABLE[operation], slots[operand]])
            elif operation == "iinc":
                code += bytes([0x84, slots[operand], 1])
            else:
                code += self._assemble(operation, operand)
        for at, label in branches.items():
            struct.pack_into(">h", code, at + 1, labels[label] - at)
        body = struct.pack(">HHI", _STACK, size, len(code)) + code + struct.pack(">H", 0)
        body += struct.pack(">H", bool(labels))
        if labels:
            table = struct.pack(">H", len(labels)) + frames
            body += struct.pack(">HI", self._utf8("StackMapTable"), len(table)) + table
        head = (_PUBLIC | _STATIC * static, self._utf8(name), self._utf8(descriptor), 1)
        attribute = struct.pack(">HI", self._utf8("Code"), len(body)) + body
        self._methods.append(struct.pack(">HHHH", *head) + attribute)

    def _frame(self, offset: int, variables: Mapping[str, str], alive: Mapping[str, str]) -> bytes:
        """A stack map frame (a full one) with an empty stack."""
        kinds = b""
        for variable, kind in variables.items():
            if variable not in alive:
                kinds += bytes(2 if kind == "long" else 1)  # "top": no value
            elif kind in ("int", "long"):
                kinds += bytes([1 if kind == "int" else 4])
            else:
                kinds += struct.pack(">BH", 7, self._class(kind))
        count = len(variables) + sum(
            kind == "long" for variable, kind in variables.items() if variable not in alive
        )
        return struct.pack(">BHH", 255, offset, count) + kinds + struct.pack(">H", 0)

    def _assemble(self, operation: str, operand: str) -> bytes:
        """An instruction that has no variable and no label."""
        if operation in _PLAIN:
            return bytes([_PLAIN[operation]])
        if operation in _ON_CLASS:
            return struct.pack(">BH", _ON_CLASS[operation], self._class(operand))
        if operation in _MEMBER:
            return self._assemble_member(operation, operand)
        if operation == "iconst":
            return struct.pack(">Bh", 0x11, int(operand))
        if operation == "ldc":
            text = self._constant(_STRING, struct.pack(">H", self._utf8(operand.strip('"'))))
            return struct.pack(">BH", 0x13, text)
        raise ValueError(f"no instruction {operation!r}")

    def _assemble_member(self, operation: str, operand: str) -> bytes:
        """An instruction on a field or method, given as `owner.name descriptor`."""
        member, descriptor = operand.split(" ")
        owner, name = member.rsplit(".", 1)
        opcode, tag = _MEMBER[operation]
        code = struct.pack(">BH", opcode, self._member(tag, owner, name, descriptor))
        if operation == "invokeinterface":
            code += bytes([1 + _argument_slots(descriptor), 0])
        return code


def _argument_slots(descriptor: str) -> int:
    """Slots of a method's arguments: two for `long` and `double`, one for others."""
    arguments = re.findall(r"\[*(?:L[^;]+;|[A-Z])", descriptor[: descriptor.index(")")])
    return sum(2 if argument in "JD" else 1 for argument in arguments)


def _members(data: bytes, at: int) -> tuple[list[bytes], int]:
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
