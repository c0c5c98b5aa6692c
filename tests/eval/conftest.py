"""An evaluation that was played to its end."""

import pytest

from stepagent.eval.evaluate import evaluate
from tests.toy_env import ID, ScriptedAgent


@pytest.fixture(scope="module")
def complete_run(tmp_path_factory):
    """Folder and summary of the scripted agent on all test tasks of the toy environment."""
    out = tmp_path_factory.mktemp("complete")
    return out, evaluate(ID, ScriptedAgent(), out)
