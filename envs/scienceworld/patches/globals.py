"""What was global in the simulator, per Java thread."""

from __future__ import annotations

from stepagent.envs.scienceworld.classfile import ClassFile
from stepagent.envs.scienceworld.patches.table import (
    COUNTER,
    RANDOM,
    SIMPLIFICATIONS,
    TABLE,
    own,
)


def own_random(cls: ClassFile) -> None:
    kind = "java/util/Random"
    text = f"{own(RANDOM, kind)}\nareturn"
    cls.add_method("self", f"()L{kind};", {"this": "scala/util/Random$"}, text)


def own_counter(cls: ClassFile) -> None:
    owner, kind = "util/UniqueIdentifier$", "java/lang/Long"
    cls.remove("count", "()J")
    cls.remove("count_$eq", "(J)V")
    text = f"""
        {own(COUNTER, kind)}
        invokevirtual {kind}.longValue ()J
        lreturn
    """
    cls.add_method("count", "()J", {"this": owner}, text)
    text = f"""
        {TABLE}
        iconst {COUNTER}
        lload count
        invokestatic {kind}.valueOf (J)L{kind};
        aastore
        return
    """
    cls.add_method("count_$eq", "(J)V", {"this": owner, "count": "long"}, text)


def own_simplifications(cls: ClassFile) -> None:
    owner = "main/scala/scienceworld/runtime/SimplifierProcessor$"
    kind = "scala/collection/mutable/ArrayBuffer"
    cls.remove("simplifications", f"()L{kind};")
    text = f"{own(SIMPLIFICATIONS, kind)}\nareturn"
    cls.add_method("simplifications", f"()L{kind};", {"this": owner}, text)
