"""The changed methods against the originals, over the states of a few episodes."""

import random
import zipfile

import pytest

from stepagent.envs.scienceworld import data, jvm, patches
from stepagent.envs.scienceworld.patches import table
from stepagent.envs.scienceworld.taskmaker import ALL_IDS, TURNS

TASKS = ("boil/21", "grow-plant/93", "test-conductivity/675", "find-animal/225")
COLLECT = "getContainedObjectsAndPortalsRecursive"


class Probe:
    """Looks into a simulator's world."""

    def __init__(self, simulator):
        self.simulator, self.call = simulator, simulator._connection.call
        self.new, self.release = simulator._connection.new, simulator._connection.release

    def singleton(self, name):
        cls = self.call("java.lang.Class", "forName", f"{name}$")
        return self.call(self.call(cls, "getField", "MODULE$"), "get", None)

    def own(self, place):
        table = self.call("java.lang.System", "getProperties")
        items = self.call(table, "get", self.simulator._thread)
        return self.call("java.lang.reflect.Array", "get", items, place)

    def interface(self):
        return self.call(self.call(self.simulator._world, "agentInterface"), "get")

    def elements(self, collection):
        iterator, elements = self.call(collection, "iterator"), []
        while self.call(iterator, "hasNext"):
            elements.append(self.call(iterator, "next"))
        return elements

    def array(self, array):
        size = self.call("java.lang.reflect.Array", "getLength", array)
        return [self.call("java.lang.reflect.Array", "get", array, i) for i in range(size)]

    def ids(self, collection):
        return [self.call(element, "uuid") for element in self.elements(collection)]


@pytest.fixture
def probe():
    simulator = jvm.Simulator()
    yield Probe(simulator)
    simulator.close()


def _states(probe):
    """The worlds of a few episodes: (interface, root object) after every action."""
    rng = random.Random(0)
    for task_id in TASKS:
        task, variation = task_id.split("/")
        probe.simulator.start(task, int(variation), data.default_simplifications(task))
        for _ in range(4):
            yield probe.interface()
            actions = [a for a in probe.simulator.valid_actions() if not a.startswith("focus")]
            probe.simulator.step(rng.choice(actions))
            probe.simulator.step(f"teleport to {rng.choice(['kitchen', 'workshop', 'outside'])}")


def test_containers_list_the_same_in_the_same_order(probe):
    sizes = []
    for interface in _states(probe):
        universe = probe.call(interface, "universe")
        rooms = probe.elements(probe.call(universe, "getContainedObjects", True))
        for thing in (universe, *rooms, *probe.elements(probe.call(rooms[0], "getPortals", True))):
            for flags in ((False, False), (True, False), (True, True)):
                ours = probe.ids(probe.call(thing, COLLECT, *flags))
                assert ours == probe.ids(probe.call(thing, f"{COLLECT}$plain", *flags))
                sizes.append(len(ours))
            for getter in ("getContainedObjects", "getPortals"):
                for hidden in (True, False):
                    ours = probe.ids(probe.call(thing, getter, hidden))
                    assert ours == probe.ids(probe.call(thing, f"{getter}$plain", hidden))
    assert min(sizes) <= 4 < max(sizes)


def test_an_object_that_is_passed_over_has_no_name_that_fits(probe):
    parser, passed_over, named = probe.singleton("scienceworld.input.InputParser"), 0, 0
    for interface in _states(probe):
        agent = probe.call(interface, "agent")
        place = probe.call(probe.call(agent, "getContainer"), "get")
        probe.call(probe.own(table.PLAIN_NAMES), "clear")  # as `parse` begins
        for thing in probe.elements(probe.call(place, COLLECT, True, True)):
            names = probe.call(parser, "getObjectReferents$plain", thing, place)
            names = probe.array(names)
            for text in (*names, f"{names[-1]} to red box", "cup in kitchen", "red box"):
                fits = any(text.startswith(name) for name in names)
                may = probe.call("scienceworld.input.InputParser", "mayName", place, text, thing)
                assert may or not fits, (text, names)
                passed_over, named = passed_over + (not may), named + fits
    assert passed_over > 100
    assert named > 100


def test_only_teleport_looks_at_the_whole_world(probe):
    probe.simulator.start("boil", 21, data.default_simplifications("boil"))
    handler = probe.call(probe.interface(), "actionHandler")
    definitions = probe.array(probe.call(handler, "getActions"))
    oracles = [d for d in definitions if probe.call(d, "isOracleAction")]
    assert [probe.call(definition, "name") for definition in oracles] == ["teleport to location"]


@pytest.mark.parametrize("variation", [0, 7, 1385])
def test_each_task_is_made_from_where_upstream_makes_it(probe, variation):
    counter = probe.singleton("util.UniqueIdentifier")
    ours, upstreams = probe.new("java.util.Random"), probe.own(table.RANDOM)
    probe.call(counter, "reset")
    probe.call(upstreams, "setSeed", variation)
    for name, turn in TURNS.items():
        assert probe.call(counter, "count") == turn.ids, name
        probe.call(ours, "setSeed", turn.seed(variation))
        drawn = [probe.call(generator, "nextInt") for generator in (ours, upstreams)]
        assert drawn[0] == drawn[1], name
        probe.call(upstreams, "setSeed", turn.seed(variation))
        task = probe.new(turn.class_name, turn.mode)
        assert probe.call(task, "taskName") == name
        probe.release(task)
    assert probe.call(counter, "count") == ALL_IDS
    assert set(TURNS) == set(data.TASKS)


def test_a_class_of_another_version_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.jar", "w") as jar:
        jar.writestr("other.class", b"")
    with pytest.raises(ValueError, match="knows the simulator of scienceworld"):
        patches.write_patch(tmp_path / "other.jar", tmp_path / "patch.jar", patches.CHANGES)
