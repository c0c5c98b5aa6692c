"""Small changes to the simulator's classes, made when its Java process starts.

Two things in the simulator make its text depend on what else happens in the process:

- `EnvObject` compares by uuid but hashes by identity, so sets of objects, and with them the order
  in which the world ticks, animals move and ambiguous choices are listed, change from run to run.
  It gets the missing `hashCode`: its uuid.
- `scala.util.Random`, the uuid counter and the active simplifications are global: simulators side
  by side would draw from one another's random numbers. Those three are looked up in a table by the
  current thread instead (`System.getProperties()` serves as the table); the gateway gives every
  simulator a Java thread of its own and puts an `Object[]` of them there.

After that the same (task, variation, actions) gives the same text letter for letter in every
process, and simulators can run in parallel while they share loaded classes and compiled code.

The others save time, and change nothing that is seen (a test compares every text and score with
upstream's own):

- To load one variation of one task, `TaskMaker1` makes all variations of all tasks. Now it makes
  the one task (`taskmaker`).
- To read one action, `InputParser` compares it with all names of every object in reach ("cup",
  "cup in cupboard", "cup on cupboard", …), worked out again for each of some fifty patterns, and
  lists every object of the world, which `teleport` alone needs. Now it works out the plain names of
  an object once per action, and the others only where a plain one fits, for they begin with it; the
  words of a name once per episode; and it lists the world for a `teleport` only.
- Each time the contents of an object are asked for, several times per object and tick, it copies
  them to another set. Now it keeps the copy until they change.
- Each step also describes room and inventory for a history that nobody reads, and works out all
  names, and formats the score, to print them to nowhere. Now it does not.
- A step and a reset take one call over the socket each instead of three and more.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from stepagent.envs.scienceworld import taskmaker
from stepagent.envs.scienceworld.classfile import ClassFile

SEPARATOR = "\x1f"
"""Between the parts of what `load$all`, `step$all` and `start$all` return."""

RANDOM, COUNTER, SIMPLIFICATIONS, WORDS, PLAIN_WORDS, NAMES, PLAIN_NAMES = range(7)
MAKER, MODE, IDS, SEED = range(7, 11)
TABLE_SIZE = 11
"""Places in a simulator thread's `Object[]`. `WORDS` and `PLAIN_WORDS`: from a text to its words,
as an array and joined, without articles, kept until there are `MOST_WORDS`. `NAMES` and `PLAIN_NAMES`: from an
object to its names, kept for an action. The last four are a `taskmaker.Turn`."""

MOST_WORDS = 2000
"""Texts in one of these maps; the paper's tasks have some hundreds each."""

_OBJECT = "scienceworld/struct/EnvObject"
_PORTAL = "scienceworld/objects/portal/Portal"
_SET = "scala/collection/immutable/Set"
_MUTABLE_SET = "scala/collection/mutable/Set"
_MAP = "java/util/HashMap"
_STRING, _STRINGS = "java/lang/String", "[Ljava/lang/String;"
_ITEMS = "[Ljava/lang/Object;"
_GET = f"invokevirtual {_MAP}.get (Ljava/lang/Object;)Ljava/lang/Object;"
_PUT = f"invokevirtual {_MAP}.put (Ljava/lang/Object;Ljava/lang/Object;)Ljava/lang/Object;\npop"
_TABLE = f"""
    invokestatic java/lang/System.getProperties ()Ljava/util/Properties;
    invokestatic java/lang/Thread.currentThread ()Ljava/lang/Thread;
    invokevirtual java/util/Properties.get (Ljava/lang/Object;)Ljava/lang/Object;
    checkcast {_ITEMS}
"""
"""Pushes the current thread's `Object[]`."""


def _own(place: int, kind: str) -> str:
    """Assembly that pushes what is at `place` there."""
    return f"{_TABLE}\niconst {place}\naaload\ncheckcast {kind}"


def hash_by_uuid(cls: ClassFile) -> None:
    """`EnvObject` gets the hash code that belongs to its `equals`."""
    text = f"""
        aload this
        invokevirtual {_OBJECT}.uuid ()J
        l2i
        ireturn
    """
    cls.add_method("hashCode", "()I", {"this": _OBJECT}, text)


def _keep_contents(cls: ClassFile) -> None:
    """`getContainedObjects` and `getPortals` keep the copies that they return."""
    changes = {
        "containedObjects": [("addObject", 1), ("removeObjectFromContainer", 2)],
        "portals": [("addPortal", 1), ("removePortal", 2)],
    }
    arguments = {
        "addObject": f"(L{_OBJECT};)V",
        "removeObjectFromContainer": f"(L{_OBJECT};)Z",
        "addPortal": f"(L{_PORTAL};)V",
        "removePortal": f"(L{_PORTAL};)Z",
    }
    for contents, getter in (
        ("containedObjects", "getContainedObjects"),
        ("portals", "getPortals"),
    ):
        copy, variables = f"{contents}$copy", {"this": _OBJECT, "hidden": "int", "copy": _SET}
        cls.add_field(copy, f"L{_SET};")
        cls.rename(getter, f"(Z)L{_SET};", f"{getter}$plain")
        text = f"""
                iload hidden
                ifeq filtered
                aload this
                getfield {_OBJECT}.{copy} L{_SET};
                astore copy
                aload copy
                ifnonnull copied
            filtered: this hidden
                aload this
                iload hidden
                invokevirtual {_OBJECT}.{getter}$plain (Z)L{_SET};
                astore copy
                iload hidden
                ifeq copied
                aload this
                aload copy
                putfield {_OBJECT}.{copy} L{_SET};
            copied: this hidden copy
                aload copy
                areturn
        """
        cls.add_method(getter, f"(Z)L{_SET};", variables, text)
        text = f"""
            aload this
            aconst_null
            putfield {_OBJECT}.{copy} L{_SET};
            aload this
            invokespecial {_OBJECT}.{contents} ()L{_MUTABLE_SET};
            areturn
        """
        signature = f"()L{_MUTABLE_SET};"
        cls.add_method(f"{contents}$change", signature, {"this": _OBJECT}, text)
        for method, calls in changes[contents]:
            old = f"{_OBJECT}.{contents} {signature}"
            new = f"{_OBJECT}.{contents}$change {signature}"
            cls.redirect(method, arguments[method], old, new, calls)


def _collect_once(cls: ClassFile) -> None:
    """`getContainedObjectsAndPortalsRecursive` collects into one set, not one per object.

    Four elements or fewer are listed in the order they were added, so that these sets come from the
    method as it was; larger sets are in the order of their hash codes.
    """
    name, set_ = "getContainedObjectsAndPortalsRecursive", "scala/collection/mutable/HashSet"
    cls.rename(name, f"(ZZ)L{_SET};", f"{name}$plain")
    flags = {"hidden": "int", "connections": "int"}
    text = f"""
            new {set_}
            dup
            invokespecial {set_}.<init> ()V
            astore set
            aload this
            iload hidden
            iload connections
            aload set
            invokevirtual {_OBJECT}.collect (ZZL{set_};)V
            aload set
            invokevirtual {set_}.size ()I
            iconst 4
            if_icmpgt many
            aload this
            iload hidden
            iload connections
            invokevirtual {_OBJECT}.{name}$plain (ZZ)L{_SET};
            areturn
        many: set
            aload set
            invokevirtual {set_}.toSet ()L{_SET};
            areturn
    """
    cls.add_method(name, f"(ZZ)L{_SET};", {"this": _OBJECT, **flags, "set": set_}, text)
    iterator = "scala/collection/Iterator"
    variables = {
        "this": _OBJECT,
        **flags,
        "set": set_,
        "iterator": iterator,
        "object": _OBJECT,
        "portal": _PORTAL,
    }
    text = f"""
            aload this
            iconst 1
            invokevirtual {_OBJECT}.getContainedObjects (Z)L{_SET};
            invokeinterface {_SET}.iterator ()L{iterator};
            astore iterator
        objects: this hidden connections set iterator
            aload iterator
            invokeinterface {iterator}.hasNext ()Z
            ifeq portals
            aload iterator
            invokeinterface {iterator}.next ()Ljava/lang/Object;
            checkcast {_OBJECT}
            astore object
            iload hidden
            ifne collect
            aload object
            invokevirtual {_OBJECT}.isHidden ()Z
            ifne objects
        collect: this hidden connections set iterator object
            aload set
            aload object
            invokevirtual {set_}.add (Ljava/lang/Object;)Z
            pop
            aload object
            iload hidden
            iload connections
            aload set
            invokevirtual {_OBJECT}.collect (ZZL{set_};)V
            goto objects
        portals: this hidden connections set
            aload this
            iconst 1
            invokevirtual {_OBJECT}.getPortals (Z)L{_SET};
            invokeinterface {_SET}.iterator ()L{iterator};
            astore iterator
        doors: this hidden connections set iterator
            aload iterator
            invokeinterface {iterator}.hasNext ()Z
            ifeq done
            aload iterator
            invokeinterface {iterator}.next ()Ljava/lang/Object;
            checkcast {_PORTAL}
            astore portal
            iload hidden
            ifne door
            aload portal
            invokevirtual {_PORTAL}.isHidden ()Z
            ifne doors
        door: this hidden connections set iterator portal
            aload set
            aload portal
            invokevirtual {set_}.add (Ljava/lang/Object;)Z
            pop
            iload connections
            ifeq doors
            aload set
            aload portal
            invokevirtual {_PORTAL}.getConnectionPoints ()L{_SET};
            invokevirtual {set_}.$plus$plus$eq (Lscala/collection/TraversableOnce;)Lscala/collection/generic/Growable;
            pop
            goto doors
        done: this
            return
    """
    cls.add_method("collect", f"(ZZL{set_};)V", variables, text)


def _change_objects(cls: ClassFile) -> None:
    hash_by_uuid(cls)
    _keep_contents(cls)
    _collect_once(cls)


def _own_random(cls: ClassFile) -> None:
    kind = "java/util/Random"
    text = f"{_own(RANDOM, kind)}\nareturn"
    cls.add_method("self", f"()L{kind};", {"this": "scala/util/Random$"}, text)


def _own_counter(cls: ClassFile) -> None:
    owner, kind = "util/UniqueIdentifier$", "java/lang/Long"
    cls.remove("count", "()J")
    cls.remove("count_$eq", "(J)V")
    text = f"""
        {_own(COUNTER, kind)}
        invokevirtual {kind}.longValue ()J
        lreturn
    """
    cls.add_method("count", "()J", {"this": owner}, text)
    text = f"""
        {_TABLE}
        iconst {COUNTER}
        lload count
        invokestatic {kind}.valueOf (J)L{kind};
        aastore
        return
    """
    cls.add_method("count_$eq", "(J)V", {"this": owner, "count": "long"}, text)


def _own_simplifications(cls: ClassFile) -> None:
    owner = "main/scala/scienceworld/runtime/SimplifierProcessor$"
    kind = "scala/collection/mutable/ArrayBuffer"
    cls.remove("simplifications", f"()L{kind};")
    text = f"{_own(SIMPLIFICATIONS, kind)}\nareturn"
    cls.add_method("simplifications", f"()L{kind};", {"this": owner}, text)


def _make_one_task(cls: ClassFile) -> None:
    """`registerTasks` makes the thread's task, or none before the first is loaded."""
    owner, task = "scienceworld/tasks/TaskMaker1", "scienceworld/tasks/specifictasks/TaskParametric"
    counter, random = "util/UniqueIdentifier$", "scala/util/Random$"
    cls.rename("registerTasks", "()V", "registerTasks$all")
    text = f"""
            {_own(MAKER, _STRING)}
            ifnull none
            getstatic {counter}.MODULE$ L{counter};
            {_own(IDS, "java/lang/Long")}
            invokevirtual java/lang/Long.longValue ()J
            invokevirtual {counter}.count_$eq (J)V
            getstatic {random}.MODULE$ L{random};
            {_own(SEED, "java/lang/Long")}
            invokevirtual java/lang/Long.longValue ()J
            invokevirtual {random}.setSeed (J)V
            aload this
            {_own(MAKER, _STRING)}
            invokestatic java/lang/Class.forName (Ljava/lang/String;)Ljava/lang/Class;
            iconst 1
            anewarray java/lang/Class
            dup
            iconst 0
            ldc_class {_STRING}
            aastore
            invokevirtual java/lang/Class.getConstructor ([Ljava/lang/Class;)Ljava/lang/reflect/Constructor;
            iconst 1
            anewarray java/lang/Object
            dup
            iconst 0
            {_own(MODE, _STRING)}
            aastore
            invokevirtual java/lang/reflect/Constructor.newInstance ([Ljava/lang/Object;)Ljava/lang/Object;
            checkcast {task}
            invokevirtual {owner}.addTask (L{task};)V
            getstatic {counter}.MODULE$ L{counter};
            iconst {taskmaker.ALL_IDS}
            i2l
            invokevirtual {counter}.count_$eq (J)V
        none: this
            return
    """
    cls.add_method("registerTasks", "()V", {"this": owner}, text)


_PARSER = "scienceworld/input/InputParser"
_PARSE = (
    f"(Ljava/lang/String;L{_OBJECT};L{_OBJECT};Lscienceworld/objects/agent/Agent;"
    "Lscienceworld/tasks/goals/ObjMonitor;Lscienceworld/tasks/goals/GoalSequence;"
    f"L{_OBJECT};)Lscala/Tuple4;"
)


def _forget_names(cls: ClassFile) -> None:
    """`parse` forgets the names of the action before, and lists the world for a `teleport` only."""
    variables = {
        "this": _PARSER,
        "text": _STRING,
        "root": _OBJECT,
        "universe": _OBJECT,
        "agent": "scienceworld/objects/agent/Agent",
        "monitor": "scienceworld/tasks/goals/ObjMonitor",
        "goals": "scienceworld/tasks/goals/GoalSequence",
        "place": _OBJECT,
    }
    cls.rename("parse", _PARSE, "parse$plain")
    text = f"""
            {_own(NAMES, _MAP)}
            invokevirtual {_MAP}.clear ()V
            {_own(PLAIN_NAMES, _MAP)}
            invokevirtual {_MAP}.clear ()V
            aload text
            invokevirtual {_STRING}.toLowerCase ()L{_STRING};
            ldc "teleport"
            invokevirtual {_STRING}.contains (Ljava/lang/CharSequence;)Z
            ifne parse
            aload agent
            astore universe     # in place of the world, whose list no other action looks at
        parse: {" ".join(variables)}
            {chr(10).join(f"aload {name}" for name in variables)}
            invokevirtual {_PARSER}.parse$plain {_PARSE}
            areturn
    """
    cls.add_method("parse", _PARSE, variables, text)


def _skip_objects(cls: ClassFile) -> None:
    """An object is only compared with a text that begins with one of its plain names.

    All its names are a plain one, or a plain one with " in …" or " on …" behind it.
    """
    name = "$anonfun$matchObj$1"
    signature = f"(L{_OBJECT};Ljava/lang/String;Lscala/collection/mutable/ArrayBuffer;L{_OBJECT};)V"
    variables = {
        "place": _OBJECT,
        "text": _STRING,
        "matches": "scala/collection/mutable/ArrayBuffer",
        "object": _OBJECT,
    }
    cls.rename(name, signature, f"{name}$plain")
    text = f"""
            aload place
            aload text
            aload object
            invokestatic {_PARSER}.mayName (L{_OBJECT};L{_STRING};L{_OBJECT};)Z
            ifeq other
            {chr(10).join(f"aload {name}" for name in variables)}
            invokestatic {_PARSER}.{name}$plain {signature}
        other: {" ".join(variables)}
            return
    """
    cls.add_method(name, signature, variables, text, static=True)


def _may_name(cls: ClassFile) -> None:
    """`mayName(place, text, object)`: whether the text begins with a plain name of the object."""
    variables = {
        "place": _OBJECT,
        "text": _STRING,
        "object": _OBJECT,
        "names": _STRINGS,
        "set": _SET,
        "iterator": "scala/collection/Iterator",
        "i": "int",
    }
    text = f"""
            {_own(PLAIN_NAMES, _MAP)}
            aload object
            {_GET}
            checkcast {_STRINGS}
            astore names
            aload names
            ifnonnull compare
            aload object
            instanceof {_PORTAL}
            ifeq thing
            aload object
            checkcast {_PORTAL}
            aload place
            invokevirtual {_PORTAL}.getReferents (L{_OBJECT};)L{_SET};
            astore set
            goto list
        thing: place text object
            aload object
            invokevirtual {_OBJECT}.getReferents ()L{_SET};
            astore set
        list: place text object set
            aload set
            invokeinterface {_SET}.size ()I
            anewarray {_STRING}
            astore names
            aload set
            invokeinterface {_SET}.iterator ()Lscala/collection/Iterator;
            astore iterator
            iconst 0
            istore i
        more: place text object names iterator i
            aload iterator
            invokeinterface scala/collection/Iterator.hasNext ()Z
            ifeq listed
            aload names
            iload i
            aload iterator
            invokeinterface scala/collection/Iterator.next ()Ljava/lang/Object;
            checkcast {_STRING}
            invokestatic {_PARSER}.plainWords (L{_STRING};)L{_STRING};
            aastore
            iinc i
            goto more
        listed: place text object names
            {_own(PLAIN_NAMES, _MAP)}
            aload object
            aload names
            {_PUT}
        compare: place text object names
            iconst 0
            istore i
        next: place text object names i
            iload i
            aload names
            arraylength
            if_icmpge no
            aload text
            aload names
            iload i
            aaload
            invokevirtual {_STRING}.startsWith (L{_STRING};)Z
            ifne yes
            iinc i
            goto next
        yes: place text object names i
            iconst 1
            ireturn
        no: place text object names i
            iconst 0
            ireturn
    """
    signature = f"(L{_OBJECT};L{_STRING};L{_OBJECT};)Z"
    cls.add_method("mayName", signature, variables, text, static=True)


def _plain_words(cls: ClassFile) -> None:
    """`plainWords(name)`: its words as the parser compares them, joined."""
    parser = f"{_PARSER}$"
    text = f"""
            {_own(PLAIN_WORDS, _MAP)}
            aload name
            {_GET}
            checkcast {_STRING}
            astore words
            aload words
            ifnonnull known
            ldc " "
            getstatic {parser}.MODULE$ L{parser};
            aload name
            invokevirtual {_STRING}.toLowerCase ()L{_STRING};
            invokevirtual {parser}.tokenize (L{_STRING};){_STRINGS}
            invokestatic {_STRING}.join (Ljava/lang/CharSequence;[Ljava/lang/CharSequence;)L{_STRING};
            astore words
            {_own(PLAIN_WORDS, _MAP)}
            aload name
            aload words
            {_PUT}
        known: name words
            aload words
            areturn
    """
    variables = {"name": _STRING, "words": _STRING}
    cls.add_method("plainWords", f"(L{_STRING};)L{_STRING};", variables, text, static=True)


def _change_parser(cls: ClassFile) -> None:
    for change in (_forget_names, _skip_objects, _may_name, _plain_words):
        change(cls)


_TWO_OBJECTS = f"(L{_OBJECT};L{_OBJECT};){_STRINGS}"


def _remember(cls: ClassFile, place: int, name: str, descriptor: str, kinds: list[str]) -> None:
    """A method looks its first argument up in the thread's map at `place` before it works.

    `kinds`: classes of its arguments; its value is an array of strings.
    """
    owner = f"{_PARSER}$"
    arguments = [f"argument{number}" for number in range(len(kinds))]
    variables = {"this": owner, **dict(zip(arguments, kinds, strict=True)), "value": _STRINGS}
    cls.rename(name, descriptor, f"{name}$plain")
    text = f"""
            {_own(place, _MAP)}
            aload argument0
            {_GET}
            checkcast {_STRINGS}
            astore value
            aload value
            ifnonnull known
            aload this
            {chr(10).join(f"aload {name}" for name in arguments)}
            invokevirtual {owner}.{name}$plain {descriptor}
            astore value
            {_own(place, _MAP)}
            aload argument0
            aload value
            {_PUT}
        known: {" ".join(variables)}
            aload value
            areturn
    """
    cls.add_method(name, descriptor, variables, text)


def _remember_names(cls: ClassFile) -> None:
    """The names of a thing once per action, the words of a name once; no names to print."""
    _remember(cls, NAMES, "getObjectReferents", _TWO_OBJECTS, [_OBJECT, _OBJECT])
    _remember(cls, WORDS, "tokenize", f"(L{_STRING};){_STRINGS}", [_STRING])
    cls.remove("getPossibleReferents", _TWO_OBJECTS)
    variables = {"this": f"{_PARSER}$", "root": _OBJECT, "place": _OBJECT}
    text = f"""
        iconst 0
        anewarray {_STRING}
        areturn
    """
    cls.add_method("getPossibleReferents", _TWO_OBJECTS, variables, text)


_INTERFACE = "scienceworld/runtime/pythonapi/PythonInterface"
_BUILDER = "java/lang/StringBuilder"


def _joined(*values: tuple[str, str]) -> str:
    """Assembly that pushes values as one text, given what pushes each and its type."""
    append = f"invokevirtual {_BUILDER}.append"
    lines = [f"new {_BUILDER}", "dup", f"invokespecial {_BUILDER}.<init> ()V"]
    for number, (push, kind) in enumerate(values):
        if number:
            lines += [f"iconst {ord(SEPARATOR)}", f"{append} (C)L{_BUILDER};"]
        lines += [push, f"{append} ({kind})L{_BUILDER};"]
    return "\n".join([*lines, f"invokevirtual {_BUILDER}.toString ()L{_STRING};"])


def _call(method: str, kind: str) -> str:
    return f"aload this\ninvokevirtual {_INTERFACE}.{method} (){kind}"


def _step_in_one_call(cls: ClassFile) -> None:
    """`step$all(action)`: score, whether the task is over and observation; no history."""
    step, text_of = f"(L{_STRING};)L{_STRING};", f"()L{_STRING};"
    variables = {"this": _INTERFACE}
    cls.add_method("nothing", text_of, variables, 'ldc ""\nareturn')
    for unread in ("freeActionLook", "freeActionInventory"):
        old, new = f"{_INTERFACE}.{unread} {text_of}", f"{_INTERFACE}.nothing {text_of}"
        cls.redirect("step", step, old, new)
    values = (
        (_call("getScore", "D"), "D"),
        (_call("getCompleted", "Z"), "Z"),
        ("aload observation", f"L{_STRING};"),
    )
    text = f"""
        aload this
        aload action
        invokevirtual {_INTERFACE}.step {step}
        astore observation
        {_joined(*values)}
        areturn
    """
    variables |= {"action": _STRING, "observation": _STRING}
    cls.add_method("step$all", step, variables, text)


_TURN = {"maker": _STRING, "mode": _STRING, "ids": "long", "seed": "long"}
_TASK = {"task": _STRING, "variation": "int", "simplifications": _STRING}
_TURN_AND_TASK = f"L{_STRING};L{_STRING};JJL{_STRING};IL{_STRING};"


def _load_in_one_call(cls: ClassFile) -> None:
    """`load$all(maker, mode, ids, seed, task, variation, simplifications, gold)`: error ("": none),
    simplifications in force and task description."""
    kind = f"L{_STRING};"
    box = "invokestatic java/lang/Long.valueOf (J)Ljava/lang/Long;"
    store = "".join(
        f"{_TABLE}\niconst {place}\n"
        + (f"lload {name}\n{box}" if _TURN[name] == "long" else f"aload {name}")
        + "\naastore\n"
        for name, place in zip(_TURN, (MAKER, MODE, IDS, SEED), strict=True)
    )
    arguments = {"this": _INTERFACE, **_TURN, **_TASK, "gold": "int"}
    clear = "".join(
        f"""
            {_own(place, _MAP)}
            invokevirtual {_MAP}.size ()I
            iconst {MOST_WORDS}
            if_icmplt few{place}
            {_own(place, _MAP)}
            invokevirtual {_MAP}.clear ()V
        few{place}: {" ".join(arguments)}
        """
        for place in (WORDS, PLAIN_WORDS)
    )
    values = (
        ("aload error", kind),
        (_call("getSimplificationsUsed", kind), kind),
        (_call("getTaskDescription", kind), kind),
    )
    text = f"""
        {store}
        {clear}
        aload this
        aload task
        iload variation
        aload simplifications
        iload gold
        invokevirtual {_INTERFACE}.load ({kind}I{kind}Z){kind}
        astore error
        {_joined(*values)}
        areturn
    """
    variables = {**arguments, "error": _STRING}
    cls.add_method("load$all", f"({_TURN_AND_TASK}Z){kind}", variables, text)


def _start_in_one_call(cls: ClassFile) -> None:
    """`start$all(…)`, with the arguments of `load$all` but for `gold`: what that returns, what
    `step$all` returns for the first look around, and the inventory."""
    kind = f"L{_STRING};"
    variables = {"this": _INTERFACE, **_TURN, **_TASK}
    load = [
        f"{'lload' if type_ == 'long' else 'iload' if type_ == 'int' else 'aload'} {name}"
        for name, type_ in variables.items()
    ]
    load += ["iconst 0", f"invokevirtual {_INTERFACE}.load$all ({_TURN_AND_TASK}Z){kind}"]
    look = f'aload this\nldc "look around"\ninvokevirtual {_INTERFACE}.step$all ({kind}){kind}'
    values = (
        ("\n".join(load), kind),
        (look, kind),
        (_call("freeActionInventory", kind), kind),
    )
    text = f"{_joined(*values)}\nareturn"
    cls.add_method("start$all", f"({_TURN_AND_TASK}){kind}", variables, text)


def _change_interface(cls: ClassFile) -> None:
    _step_in_one_call(cls)
    _load_in_one_call(cls)
    _start_in_one_call(cls)


_FORMAT = "scala/Predef$StringFormat$"
_FORMATTED = f"(Ljava/lang/Object;L{_STRING};)L{_STRING};"


def _leave_unformatted(cls: ClassFile) -> None:
    """`unformatted` takes what `formatted` takes and returns the format."""
    variables = {"this": _FORMAT, "value": "java/lang/Object", "format": _STRING}
    cls.add_method("unformatted", _FORMATTED, variables, "aload format\nareturn")


def _score_in_silence(cls: ClassFile) -> None:
    """`score` formats no numbers for the line that it prints to nowhere."""
    old = f"{_FORMAT}.formatted$extension {_FORMATTED}"
    cls.redirect("score", "()D", old, f"{_FORMAT}.unformatted {_FORMATTED}", calls=3)


CHANGES: dict[str, Callable[[ClassFile], None]] = {
    _OBJECT: _change_objects,
    "scala/util/Random$": _own_random,
    "util/UniqueIdentifier$": _own_counter,
    "main/scala/scienceworld/runtime/SimplifierProcessor$": _own_simplifications,
    "scienceworld/tasks/TaskMaker1": _make_one_task,
    _PARSER: _change_parser,
    f"{_PARSER}$": _remember_names,
    _INTERFACE: _change_interface,
    _FORMAT: _leave_unformatted,
    "scienceworld/tasks/goals/GoalSequence": _score_in_silence,
}


def write_patch(
    simulator_jar: Path, patch_jar: Path, changes: Mapping[str, Callable[[ClassFile], None]]
) -> None:
    """Writes the changed classes into `patch_jar`, to be put before the simulator's jar.

    Raises ValueError where the jar lacks one of them (another version of the simulator).
    """
    with zipfile.ZipFile(simulator_jar) as jar, zipfile.ZipFile(patch_jar, "w") as patch:
        for name, change in changes.items():
            try:
                cls = ClassFile(jar.read(f"{name}.class"))
            except KeyError:
                raise ValueError(
                    f"{simulator_jar} has no class {name}: this StepAgent knows the simulator of "
                    "scienceworld 1.2.3; install that version"
                ) from None
            change(cls)
            patch.writestr(f"{name}.class", cls.to_bytes())
