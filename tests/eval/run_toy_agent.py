"""`python -m eval.run` with the toy agent in place of a named one (for tests of the process)."""

import resource
import sys

from stepagent import agents
from stepagent.eval import run
from tests.toy_env import ScriptedAgent

if __name__ == "__main__":
    if sys.argv[1] == "--full-disk":  # files may grow to 6 kB and no further
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
        del sys.argv[1]
    agents.make_agent = lambda spec, **options: ScriptedAgent()
    sys.exit(run.main())
