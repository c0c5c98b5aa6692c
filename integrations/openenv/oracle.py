"""OpenEnv's oracle for our environments: plays an expert's plan against a server.

    python oracle.py http://127.0.0.1:8000/stepagent/WebShop-v0 --split test --index 0

It needs StepAgent and `openenv`: the plan comes from the same task, created here. Prints the
episode's reward; exits with 1 where that is below 1.0.
"""

import argparse
import sys
from urllib.parse import urlparse

from openenv import GenericEnvClient

from stepagent import envs
from stepagent.envs import react


def play(url: str, split: str, index: int, seed: int) -> float:
    """The reward of one episode."""
    here = envs.make(urlparse(url).path.strip("/"), split=split)
    with GenericEnvClient(base_url=url).sync() as there:
        result = there.reset(split=split, index=index, seed=seed)
        text, _ = here.reset(seed=seed, options={"task_id": result.observation["task_id"]})
        if text != result.observation["text"]:
            raise SystemExit("the server has another task here: it serves other data")
        reward = 0.0
        for turn in here.expert_plan():
            result = there.step({"action": react.render(*turn)})
            reward += result.reward
    return reward if result.done else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("url", help="of an environment: http://host:port/ID")
    parser.add_argument("--split", default="test", help="train, dev or test")
    parser.add_argument("--index", type=int, default=0, help="of the task in its split")
    parser.add_argument("--seed", type=int, default=0, help="of the episode")
    arguments = parser.parse_args()
    reward = play(**vars(arguments))
    print(reward)
    return 0 if reward >= 1.0 else 1


if __name__ == "__main__":
    sys.exit(main())
