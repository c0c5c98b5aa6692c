from stepagent import envs
from stepagent.agents.core import Turn
from stepagent.agents.mixture import MixtureAgent
from stepagent.eval.rollout import run_episodes
from tests.toy_env import ID, ScriptedAgent


def played(share, seed=0):
    agent = MixtureAgent(ScriptedAgent(), share)
    tasks = envs.make(ID).tasks[:6]
    return list(run_episodes(ID, agent, tasks, split="train", seed=seed, workers=2))


def test_the_expert_acts_always_never_or_now_and_then():
    assert all(t.success for t in played(1.0))
    alone = {t.task_id: t.steps for t in played(0.0)}
    scripted = ScriptedAgent()
    tasks = envs.make(ID).tasks[:6]
    plain = run_episodes(ID, scripted, tasks, split="train", seed=0, workers=2)
    assert {t.task_id: t.steps for t in plain} == alone
    mixed = [step for t in played(0.5) for step in t.steps]
    by_expert = [step for step in mixed if "are left" in step.thought]
    assert 0.3 < len(by_expert) / len(mixed) < 0.7
    assert played(0.5)[0].steps  # and it depends on the seed alone
    assert {t.task_id: t.steps for t in played(0.5)} == {t.task_id: t.steps for t in played(0.5)}


def test_in_a_lost_state_the_agent_acts():
    env = envs.make(ID, max_steps=1)
    observation, _ = env.reset(seed=0)
    turn = Turn("key", [{"role": "user", "content": observation}], env)
    assert env.expert_action() is None
    assert MixtureAgent(ScriptedAgent(), 1.0).act([turn]) == ScriptedAgent().act([turn])
