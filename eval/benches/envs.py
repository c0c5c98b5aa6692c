"""An environment against its upstream: `stepagent bench envs --env ID`."""

from __future__ import annotations

import importlib

from stepagent.eval.benches import Options, Row

BENCHES = {
    "stepagent/ALFWorld-v0": "stepagent.eval.benches.alfworld:bench",
    "stepagent/2WikiMultihopQA-v0": "stepagent.eval.benches.wikipedia:bench",
    "stepagent/HotpotQA-v0": "stepagent.eval.benches.wikipedia:bench",
    "stepagent/Mind2Web-v0": "stepagent.eval.benches.mind2web:bench",
    "stepagent/MuSiQue-v0": "stepagent.eval.benches.wikipedia:bench",
    "stepagent/ScienceWorld-v0": "stepagent.eval.benches.scienceworld:bench",
    "stepagent/WebShop-v0": "stepagent.eval.benches.webshop:bench",
}
"""Environment id → `module:function`."""


def bench(options: Options) -> list[Row]:
    """The rows of `options.env`. Raises ValueError for an environment without a benchmark."""
    if options.env not in BENCHES:
        raise ValueError(f"no benchmark of {options.env!r}: choose {', '.join(BENCHES)}")
    module, function = BENCHES[options.env].split(":")
    return getattr(importlib.import_module(module), function)(options)
