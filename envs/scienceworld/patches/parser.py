"""Changes to `InputParser`: names are worked out once, and only where they can fit."""

from __future__ import annotations

from stepagent.envs.scienceworld.classfile import ClassFile
from stepagent.envs.scienceworld.patches.table import (
    GET,
    MAP,
    NAMES,
    OBJECT,
    PLAIN_NAMES,
    PLAIN_WORDS,
    PORTAL,
    PUT,
    SET,
    STRING,
    STRINGS,
    WORDS,
    own,
)

PARSER = "scienceworld/input/InputParser"
_PARSE = (
    f"(Ljava/lang/String;L{OBJECT};L{OBJECT};Lscienceworld/objects/agent/Agent;"
    "Lscienceworld/tasks/goals/ObjMonitor;Lscienceworld/tasks/goals/GoalSequence;"
    f"L{OBJECT};)Lscala/Tuple4;"
)


def _forget_names(cls: ClassFile) -> None:
    """`parse` forgets the names of the action before, and lists the world for a `teleport` only."""
    variables = {
        "this": PARSER,
        "text": STRING,
        "root": OBJECT,
        "universe": OBJECT,
        "agent": "scienceworld/objects/agent/Agent",
        "monitor": "scienceworld/tasks/goals/ObjMonitor",
        "goals": "scienceworld/tasks/goals/GoalSequence",
        "place": OBJECT,
    }
    cls.rename("parse", _PARSE, "parse$plain")
    text = f"""
            {own(NAMES, MAP)}
            invokevirtual {MAP}.clear ()V
            {own(PLAIN_NAMES, MAP)}
            invokevirtual {MAP}.clear ()V
            aload text
            invokevirtual {STRING}.toLowerCase ()L{STRING};
            ldc "teleport"
            invokevirtual {STRING}.contains (Ljava/lang/CharSequence;)Z
            ifne parse
            aload agent
            astore universe     # in place of the world, whose list no other action looks at
        parse: {" ".join(variables)}
            {chr(10).join(f"aload {name}" for name in variables)}
            invokevirtual {PARSER}.parse$plain {_PARSE}
            areturn
    """
    cls.add_method("parse", _PARSE, variables, text)


def _skip_objects(cls: ClassFile) -> None:
    """An object is only compared with a text that begins with one of its plain names.

    All its names are a plain one, or a plain one with " in …" or " on …" behind it.
    """
    name = "$anonfun$matchObj$1"
    signature = f"(L{OBJECT};Ljava/lang/String;Lscala/collection/mutable/ArrayBuffer;L{OBJECT};)V"
    variables = {
        "place": OBJECT,
        "text": STRING,
        "matches": "scala/collection/mutable/ArrayBuffer",
        "object": OBJECT,
    }
    cls.rename(name, signature, f"{name}$plain")
    text = f"""
            aload place
            aload text
            aload object
            invokestatic {PARSER}.mayName (L{OBJECT};L{STRING};L{OBJECT};)Z
            ifeq other
            {chr(10).join(f"aload {name}" for name in variables)}
            invokestatic {PARSER}.{name}$plain {signature}
        other: {" ".join(variables)}
            return
    """
    cls.add_method(name, signature, variables, text, static=True)


def _may_name(cls: ClassFile) -> None:
    """`mayName(place, text, object)`: whether the text begins with a plain name of the object."""
    variables = {
        "place": OBJECT,
        "text": STRING,
        "object": OBJECT,
        "names": STRINGS,
        "set": SET,
        "iterator": "scala/collection/Iterator",
        "i": "int",
    }
    text = f"""
            {own(PLAIN_NAMES, MAP)}
            aload object
            {GET}
            checkcast {STRINGS}
            astore names
            aload names
            ifnonnull compare
            aload object
            instanceof {PORTAL}
            ifeq thing
            aload object
            checkcast {PORTAL}
            aload place
            invokevirtual {PORTAL}.getReferents (L{OBJECT};)L{SET};
            astore set
            goto list
        thing: place text object
            aload object
            invokevirtual {OBJECT}.getReferents ()L{SET};
            astore set
        list: place text object set
            aload set
            invokeinterface {SET}.size ()I
            anewarray {STRING}
            astore names
            aload set
            invokeinterface {SET}.iterator ()Lscala/collection/Iterator;
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
            checkcast {STRING}
            invokestatic {PARSER}.plainWords (L{STRING};)L{STRING};
            aastore
            iinc i
            goto more
        listed: place text object names
            {own(PLAIN_NAMES, MAP)}
            aload object
            aload names
            {PUT}
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
            invokevirtual {STRING}.startsWith (L{STRING};)Z
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
    signature = f"(L{OBJECT};L{STRING};L{OBJECT};)Z"
    cls.add_method("mayName", signature, variables, text, static=True)


def _plain_words(cls: ClassFile) -> None:
    """`plainWords(name)`: its words as the parser compares them, joined."""
    parser, sequence = f"{PARSER}$", "java/lang/CharSequence"
    text = f"""
            {own(PLAIN_WORDS, MAP)}
            aload name
            {GET}
            checkcast {STRING}
            astore words
            aload words
            ifnonnull known
            ldc " "
            getstatic {parser}.MODULE$ L{parser};
            aload name
            invokevirtual {STRING}.toLowerCase ()L{STRING};
            invokevirtual {parser}.tokenize (L{STRING};){STRINGS}
            invokestatic {STRING}.join (L{sequence};[L{sequence};)L{STRING};
            astore words
            {own(PLAIN_WORDS, MAP)}
            aload name
            aload words
            {PUT}
        known: name words
            aload words
            areturn
    """
    variables = {"name": STRING, "words": STRING}
    cls.add_method("plainWords", f"(L{STRING};)L{STRING};", variables, text, static=True)


def change_parser(cls: ClassFile) -> None:
    for change in (_forget_names, _skip_objects, _may_name, _plain_words):
        change(cls)


_TWO_OBJECTS = f"(L{OBJECT};L{OBJECT};){STRINGS}"


def _remember(cls: ClassFile, place: int, name: str, descriptor: str, kinds: list[str]) -> None:
    """A method looks its first argument up in the thread's map at `place` before it works.

    `kinds`: classes of its arguments; its value is an array of strings.
    """
    owner = f"{PARSER}$"
    arguments = [f"argument{number}" for number in range(len(kinds))]
    variables = {"this": owner, **dict(zip(arguments, kinds, strict=True)), "value": STRINGS}
    cls.rename(name, descriptor, f"{name}$plain")
    text = f"""
            {own(place, MAP)}
            aload argument0
            {GET}
            checkcast {STRINGS}
            astore value
            aload value
            ifnonnull known
            aload this
            {chr(10).join(f"aload {name}" for name in arguments)}
            invokevirtual {owner}.{name}$plain {descriptor}
            astore value
            {own(place, MAP)}
            aload argument0
            aload value
            {PUT}
        known: {" ".join(variables)}
            aload value
            areturn
    """
    cls.add_method(name, descriptor, variables, text)


def remember_names(cls: ClassFile) -> None:
    """The names of a thing once per action, the words of a name once; no names to print."""
    _remember(cls, NAMES, "getObjectReferents", _TWO_OBJECTS, [OBJECT, OBJECT])
    _remember(cls, WORDS, "tokenize", f"(L{STRING};){STRINGS}", [STRING])
    cls.remove("getPossibleReferents", _TWO_OBJECTS)
    variables = {"this": f"{PARSER}$", "root": OBJECT, "place": OBJECT}
    text = f"""
        iconst 0
        anewarray {STRING}
        areturn
    """
    cls.add_method("getPossibleReferents", _TWO_OBJECTS, variables, text)
