"""Makes the toy environment importable, here and in the processes that tests start."""

import os
import sys
from pathlib import Path

HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)
os.environ["PYTHONPATH"] = os.pathsep.join(
    [HERE, str(Path(HERE).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)
