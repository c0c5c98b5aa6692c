"""Small changes to the simulator's classes, made when its Java process starts.

Two things in the simulator make its text depend on what else happens in the process:

- `EnvObject` compares by uuid but hashes by identity, so sets of objects, and with them the order
  in which the world ticks, animals move and ambiguous choices are listed, change from run to run.
  It gets the missing `hashCode`: its uuid.
- `scala.util.Random`, the uuid counter and the active simplifications are global: simulators side
  by side would draw from one another's random numbers. Those three are looked up in a table by the
  current thread instead (`System.getProperties()` serves as the table); the gateway gives every
  simulator its own Java thread and puts an `Object[]` of them there.

After that, the same (task, variation, actions) gives the same text letter for letter in every
process, and simulators can run in parallel while they share loaded classes and compiled code.

The other changes save time and do not affect any text or score (a test compares all of them with
upstream's):

- To load one variation of one task, `TaskMaker1` makes all variations of all tasks. Now it makes
  the one task (`taskmaker`).
- To read one action, `InputParser` compares it with all names of every object in reach ("cup",
  "cup in cupboard", "cup on cupboard", …), worked out again for each of some fifty patterns, and
  lists every object of the world, which `teleport` alone needs. Now it works out the plain names of
  an object once per action, and the others only where a plain one fits, for they begin with it; the
  words of a name once per episode; and it lists the world for a `teleport` only.
- `EnvObject` copies its contents to another set each time they are read, several times per tick.
  Now it keeps the copy until they change. Where it collects the contents of all containers in a
  container, it copies them once per level. Now it collects them in one set.
- Each step also describes the room and the inventory for a history that nobody reads, and lists
  all names and formats the score for output that is discarded. Now it does not.
- A step and a reset take one call over the socket each, instead of three or more.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from stepagent.envs.scienceworld.classfile import ClassFile
from stepagent.envs.scienceworld.patches.globals import (
    own_counter,
    own_random,
    own_simplifications,
)
from stepagent.envs.scienceworld.patches.interface import (
    FORMAT,
    INTERFACE,
    change_interface,
    leave_unformatted,
    make_one_task,
    score_in_silence,
)
from stepagent.envs.scienceworld.patches.objects import change_objects
from stepagent.envs.scienceworld.patches.parser import PARSER, change_parser, remember_names
from stepagent.envs.scienceworld.patches.table import OBJECT

CHANGES: dict[str, Callable[[ClassFile], None]] = {
    OBJECT: change_objects,
    "scala/util/Random$": own_random,
    "util/UniqueIdentifier$": own_counter,
    "main/scala/scienceworld/runtime/SimplifierProcessor$": own_simplifications,
    "scienceworld/tasks/TaskMaker1": make_one_task,
    PARSER: change_parser,
    f"{PARSER}$": remember_names,
    INTERFACE: change_interface,
    FORMAT: leave_unformatted,
    "scienceworld/tasks/goals/GoalSequence": score_in_silence,
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
