"""`gym.make_vec` in all its modes gives the same episodes."""

import gymnasium as gym
import pytest
from gymnasium.envs.registration import EnvSpec

from stepagent.envs import ENTRY_POINTS
from stepagent.envs.remote import RemoteVectorEnv
from tests.envs.serve.servers import Running

ALFWORLD = "stepagent/ALFWorld-v0"


@pytest.mark.parametrize("mode", ["sync", "async", "vector_entry_point", None])
def test_every_mode_gives_the_same_episodes(mode):
    single = gym.make(ALFWORLD, split="dev")
    vector = gym.make_vec(ALFWORLD, num_envs=3, vectorization_mode=mode, split="dev")
    texts, infos = vector.reset(seed=5)
    for i, text in enumerate(texts):
        observation, info = single.reset(seed=5 + i)
        assert (text, infos["task_id"][i]) == (observation, info["task_id"])
    texts, rewards, *_ = vector.step(["look"] * 3)
    assert texts[2] == single.step("look")[0]
    assert list(rewards) == [0.0] * 3
    vector.close()


@pytest.mark.parametrize("mode", ["vector_entry_point", None])
def test_on_a_server_all_are_stepped_with_one_request(mode):
    here = gym.make_vec(ALFWORLD, num_envs=3, split="dev")
    with Running(ALFWORLD) as server:
        arguments = {"split": "dev", "url": server.url}
        there = gym.make_vec(ALFWORLD, num_envs=3, vectorization_mode=mode, **arguments)
        assert isinstance(there, RemoteVectorEnv)
        assert list(there.reset(seed=5)[0]) == list(here.reset(seed=5)[0])
        assert list(there.step(["look"] * 3)[0]) == list(here.step(["look"] * 3)[0])
        there.close()


def test_autoreset_modes_are_arguments_of_the_entry_point():
    vector = gym.make_vec(ALFWORLD, num_envs=1, split="dev", autoreset_mode="SameStep", max_steps=1)
    vector.reset(seed=0)
    _, _, _, truncated, infos = vector.step(["look"])
    assert truncated[0]
    assert infos["final_obs"][0]


@pytest.mark.parametrize("env_id", ENTRY_POINTS)
def test_specs_stay_json(env_id):
    spec = EnvSpec.from_json(gym.spec(env_id).to_json())
    assert spec.vector_entry_point == f"stepagent.envs.vector:{env_id}"
