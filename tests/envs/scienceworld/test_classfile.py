import zipfile

import pytest

from stepagent.envs.scienceworld import jvm
from stepagent.envs.scienceworld.classfile import ClassFile

NAME = "scienceworld/tasks/TaskMaker1"


@pytest.fixture(scope="module")
def jar():
    with zipfile.ZipFile(jvm._file_of("scienceworld", "scienceworld.jar")) as file:
        yield file


@pytest.fixture
def cls(jar):
    return ClassFile(jar.read(f"{NAME}.class"))


def test_an_unchanged_class_is_written_as_it_was_read(jar):
    names = [name for name in jar.namelist() if name.startswith("scienceworld/") and "." in name]
    assert len(names) > 500
    for name in names:
        if name.endswith(".class"):
            data = jar.read(name)
            assert ClassFile(data).to_bytes() == data, name


def test_added_members_are_read_back(cls):
    cls.add_field("number", "J")
    text = """
            iload n
            ifeq none      # a comment
            ldc "some"
            areturn
        none: this n
            aconst_null
            areturn
    """
    cls.add_method("some", "(I)Ljava/lang/String;", {"this": NAME, "n": "int"}, text)
    again = ClassFile(cls.to_bytes())
    assert again.to_bytes() == cls.to_bytes()
    again.remove("some", "(I)Ljava/lang/String;")
    with pytest.raises(ValueError, match="no method some"):
        again.remove("some", "(I)Ljava/lang/String;")


def test_mistakes_are_named(cls):
    with pytest.raises(ValueError, match="wrong magic number"):
        ClassFile(b"PK\x03\x04")
    with pytest.raises(ValueError, match="no method walk"):
        cls.rename("walk", "()V", "run")
    with pytest.raises(ValueError, match="no instruction 'jump'"):
        cls.add_method("walk", "()V", {"this": NAME}, "jump")
    with pytest.raises(KeyError, match="there"):
        cls.add_method("walk", "()V", {"this": NAME}, "goto there")
    with pytest.raises(KeyError, match="that"):
        cls.add_method("walk", "()V", {"this": NAME}, "aload that")
    call = f"{NAME}.registerTasks ()V"
    with pytest.raises(ValueError, match=r"<init>\(\)V has 1 calls of .*, not 2"):
        cls.redirect("<init>", "()V", call, call, calls=2)
