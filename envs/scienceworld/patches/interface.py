"""Changes to `PythonInterface` and what it calls: one call per start or step, one task made."""

from __future__ import annotations

from stepagent.envs.scienceworld import taskmaker
from stepagent.envs.scienceworld.classfile import ClassFile
from stepagent.envs.scienceworld.patches.table import (
    IDS,
    ITEMS,
    MAKER,
    MAP,
    MODE,
    MOST_WORDS,
    PLAIN_WORDS,
    SEED,
    SEPARATOR,
    STRING,
    TABLE,
    WORDS,
    own,
)


def make_one_task(cls: ClassFile) -> None:
    """`registerTasks` makes the thread's task, or none before the first is loaded."""
    owner, task = "scienceworld/tasks/TaskMaker1", "scienceworld/tasks/specifictasks/TaskParametric"
    counter, random = "util/UniqueIdentifier$", "scala/util/Random$"
    constructor = "java/lang/reflect/Constructor"
    cls.rename("registerTasks", "()V", "registerTasks$all")
    text = f"""
            {own(MAKER, STRING)}
            ifnull none
            getstatic {counter}.MODULE$ L{counter};
            {own(IDS, "java/lang/Long")}
            invokevirtual java/lang/Long.longValue ()J
            invokevirtual {counter}.count_$eq (J)V
            getstatic {random}.MODULE$ L{random};
            {own(SEED, "java/lang/Long")}
            invokevirtual java/lang/Long.longValue ()J
            invokevirtual {random}.setSeed (J)V
            aload this
            {own(MAKER, STRING)}
            invokestatic java/lang/Class.forName (Ljava/lang/String;)Ljava/lang/Class;
            iconst 1
            anewarray java/lang/Class
            dup
            iconst 0
            ldc_class {STRING}
            aastore
            invokevirtual java/lang/Class.getConstructor ([Ljava/lang/Class;)L{constructor};
            iconst 1
            anewarray java/lang/Object
            dup
            iconst 0
            {own(MODE, STRING)}
            aastore
            invokevirtual {constructor}.newInstance ({ITEMS})Ljava/lang/Object;
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


INTERFACE = "scienceworld/runtime/pythonapi/PythonInterface"
_BUILDER = "java/lang/StringBuilder"


def _joined(*values: tuple[str, str]) -> str:
    """Assembly that pushes values as one text, given what pushes each and its type."""
    append = f"invokevirtual {_BUILDER}.append"
    lines = [f"new {_BUILDER}", "dup", f"invokespecial {_BUILDER}.<init> ()V"]
    for number, (push, kind) in enumerate(values):
        if number:
            lines += [f"iconst {ord(SEPARATOR)}", f"{append} (C)L{_BUILDER};"]
        lines += [push, f"{append} ({kind})L{_BUILDER};"]
    return "\n".join([*lines, f"invokevirtual {_BUILDER}.toString ()L{STRING};"])


def _call(method: str, kind: str) -> str:
    return f"aload this\ninvokevirtual {INTERFACE}.{method} (){kind}"


def _step_in_one_call(cls: ClassFile) -> None:
    """`step$all(action)`: score, whether the task is over and observation; no history."""
    step, text_of = f"(L{STRING};)L{STRING};", f"()L{STRING};"
    variables = {"this": INTERFACE}
    cls.add_method("nothing", text_of, variables, 'ldc ""\nareturn')
    for unread in ("freeActionLook", "freeActionInventory"):
        old, new = f"{INTERFACE}.{unread} {text_of}", f"{INTERFACE}.nothing {text_of}"
        cls.redirect("step", step, old, new)
    values = (
        (_call("getScore", "D"), "D"),
        (_call("getCompleted", "Z"), "Z"),
        ("aload observation", f"L{STRING};"),
    )
    text = f"""
        aload this
        aload action
        invokevirtual {INTERFACE}.step {step}
        astore observation
        {_joined(*values)}
        areturn
    """
    variables |= {"action": STRING, "observation": STRING}
    cls.add_method("step$all", step, variables, text)


_TURN = {"maker": STRING, "mode": STRING, "ids": "long", "seed": "long"}
_TASK = {"task": STRING, "variation": "int", "simplifications": STRING}
_TURN_AND_TASK = f"L{STRING};L{STRING};JJL{STRING};IL{STRING};"


def _load_in_one_call(cls: ClassFile) -> None:
    """`load$all(maker, mode, ids, seed, task, variation, simplifications, gold)`: error ("": none),
    simplifications in force and task description."""
    kind = f"L{STRING};"
    box = "invokestatic java/lang/Long.valueOf (J)Ljava/lang/Long;"
    store = "".join(
        f"{TABLE}\niconst {place}\n"
        + (f"lload {name}\n{box}" if _TURN[name] == "long" else f"aload {name}")
        + "\naastore\n"
        for name, place in zip(_TURN, (MAKER, MODE, IDS, SEED), strict=True)
    )
    arguments = {"this": INTERFACE, **_TURN, **_TASK, "gold": "int"}
    clear = "".join(
        f"""
            {own(place, MAP)}
            invokevirtual {MAP}.size ()I
            iconst {MOST_WORDS}
            if_icmplt few{place}
            {own(place, MAP)}
            invokevirtual {MAP}.clear ()V
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
        invokevirtual {INTERFACE}.load ({kind}I{kind}Z){kind}
        astore error
        {_joined(*values)}
        areturn
    """
    variables = {**arguments, "error": STRING}
    cls.add_method("load$all", f"({_TURN_AND_TASK}Z){kind}", variables, text)


def _start_in_one_call(cls: ClassFile) -> None:
    """`start$all(…)`, with the arguments of `load$all` but for `gold`: what that returns, what
    `step$all` returns for the first look around, and the inventory."""
    kind = f"L{STRING};"
    variables = {"this": INTERFACE, **_TURN, **_TASK}
    load = [
        f"{'lload' if type_ == 'long' else 'iload' if type_ == 'int' else 'aload'} {name}"
        for name, type_ in variables.items()
    ]
    load += ["iconst 0", f"invokevirtual {INTERFACE}.load$all ({_TURN_AND_TASK}Z){kind}"]
    look = f'aload this\nldc "look around"\ninvokevirtual {INTERFACE}.step$all ({kind}){kind}'
    values = (
        ("\n".join(load), kind),
        (look, kind),
        (_call("freeActionInventory", kind), kind),
    )
    text = f"{_joined(*values)}\nareturn"
    cls.add_method("start$all", f"({_TURN_AND_TASK}){kind}", variables, text)


def change_interface(cls: ClassFile) -> None:
    _step_in_one_call(cls)
    _load_in_one_call(cls)
    _start_in_one_call(cls)


FORMAT = "scala/Predef$StringFormat$"
_FORMATTED = f"(Ljava/lang/Object;L{STRING};)L{STRING};"


def leave_unformatted(cls: ClassFile) -> None:
    """`unformatted` takes what `formatted` takes and returns the format."""
    variables = {"this": FORMAT, "value": "java/lang/Object", "format": STRING}
    cls.add_method("unformatted", _FORMATTED, variables, "aload format\nareturn")


def score_in_silence(cls: ClassFile) -> None:
    """`score` formats no numbers for the line that it prints to nowhere."""
    old = f"{FORMAT}.formatted$extension {_FORMATTED}"
    cls.redirect("score", "()D", old, f"{FORMAT}.unformatted {_FORMATTED}", calls=3)
