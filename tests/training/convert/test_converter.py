"""Every layout that other projects pass trajectories around in, converted and played again."""

import json
import os
from pathlib import Path

import pytest

from stepagent import envs
from stepagent.envs import react, trajectory
from stepagent.envs.layouts import CONVERTIBLE, LAYOUTS, layout_of
from stepagent.envs.scienceworld import data as scienceworld
from stepagent.training.convert import converter, tasks
from stepagent.training.convert.command import main

WEBSHOP = "You are web shopping.\nWords of another project on what can be clicked."
HOUSE = "Interact with a household to do what is said.\nWords of another project."
SCIENCE = "You are a helpful assistant to do some scientific experiment.\nRooms and actions."


class Played:
    """An expert's episode, as texts."""

    def __init__(self, env_id: str, number: int = 0, split: str = "train"):
        env = envs.make(env_id, split=split)
        self.split = split
        self.task_id = env.tasks[number]
        observation, _ = env.reset(seed=0, options={"task_id": self.task_id})
        self.opening, self.instruction = observation, env.instruction
        self.turns: list[tuple[str, str, str]] = []
        for thought, action in env.expert_plan():
            reply = react.render(thought, action)
            observation, _, terminated, truncated, info = env.step(reply)
            self.turns.append((thought, action, observation))
            if terminated or truncated:
                break
        self.score = info["score"]
        env.close()

    def alternating(self, label: str = "") -> list[tuple[bool, str]]:
        """(the agent's?, text) of all turns after the opening; observations labelled."""
        texts = []
        for thought, action, observation in self.turns:
            texts.append((True, f"Thought: {thought}\nAction: {action}"))
            texts.append((False, label + observation))
        return texts


def sharegpt(*texts: tuple[bool, str], **more: object) -> list[dict]:
    return [{"from": "gpt" if agent else "human", "value": text, **more} for agent, text in texts]


def roles(*texts: tuple[bool, str]) -> list[dict]:
    return [{"role": "assistant" if agent else "user", "content": text} for agent, text in texts]


def eto(played: Played, instruction: str, opening: str | None = None, **fields: object) -> dict:
    """ETO: an instruction, `OK`, and the episode without its last observation."""
    start = ((False, instruction), (True, "OK"), (False, opening or played.opening))
    texts = played.alternating("Observation: ")[:-1]
    return {"conversations": sharegpt(*start, *texts), **fields}


def agentgym(played: Played, instruction: str, item: str) -> dict:
    """AgentGym: every turn has `loss`, replies have their labels on lines of their own."""
    texts = [
        (agent, text.replace(": ", ":\n", 1).replace("\nAction: ", "\n\nAction:\n"))
        if agent
        else (agent, f"{text}\n\nAvailable actions: look, wait")
        for agent, text in played.alternating()
    ]
    start = ((False, instruction), (True, "OK. I'll follow your instructions."))
    turns = sharegpt(*start, (False, played.opening), *texts, loss=None)
    return {"conversations": turns, "item_id": item}


def run(tmp_path: Path, records: object, *options: str, code: int = 0) -> list:
    source, out = tmp_path / "input.json", tmp_path / "out.jsonl"
    source.write_text(json.dumps(records), encoding="utf-8")
    assert main([str(source), "--out", str(out), *options]) == code
    return trajectory.read(out)


def report(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "out.jsonl.report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def house() -> Played:
    return Played("stepagent/ALFWorld-v0")


@pytest.fixture(scope="module")
def shop() -> Played:
    return Played("stepagent/WebShop-v0")


@pytest.fixture(scope="module")
def questions() -> Played:
    return Played("stepagent/HotpotQA-v0")


def check(converted, played: Played, env: str, layout: str) -> None:
    """The trajectory is the episode, with the environment's own texts, rewards and score."""
    assert (converted.env, converted.task_id, converted.split) == (
        env,
        played.task_id,
        played.split,
    )
    assert converted.agent == layout
    assert [(" ".join(s.thought.split()), s.action) for s in converted.steps] == [
        (" ".join(thought.split()), action) for thought, action, _ in played.turns
    ]
    assert converted.steps[0].observation == played.opening
    assert [s.observation for s in converted.steps[1:]] == [o for _, _, o in played.turns[:-1]]
    assert converted.final_observation == played.turns[-1][2]
    assert converted.reward == played.score == sum(s.reward for s in converted.steps)


def test_eto_webshop(tmp_path, shop):
    (converted,) = run(tmp_path, [eto(shop, WEBSHOP, id=1234, reward=0.5)])
    check(converted, shop, "stepagent/WebShop-v0", "eto")
    assert report(tmp_path)["replays"] == {"equal": 1, "over_limit": 0}


def test_eto_alfworld(tmp_path, house):
    """Generated games have no trial; so the task is named by its own id here."""
    (converted,) = run(tmp_path, [eto(house, HOUSE, game_file=house.task_id)])
    check(converted, house, "stepagent/ALFWorld-v0", "eto")


@pytest.mark.parametrize("layout", ["eto", "agentgym"])
def test_scienceworld(tmp_path, layout):
    played = Played("stepagent/ScienceWorld-v0", 500)
    task, variation = played.task_id.split("/")
    if layout == "eto":
        name = f"{tasks.ETO_TASKS.index(task)}_{variation}"
        record = eto(played, SCIENCE, played.instruction, id=name)
    else:
        before = tasks.AGENTGYM_TASKS[: tasks.AGENTGYM_TASKS.index(task)]
        number = sum(scienceworld.TASKS[name].end for name in before) + int(variation)
        record = agentgym(played, "You are an agent for science world.", f"sciworld_{number}")
    (converted,) = run(tmp_path, [record])
    check(converted, played, "stepagent/ScienceWorld-v0", layout)


def test_agentgym_webshop(tmp_path, shop):
    (converted,) = run(tmp_path, [agentgym(shop, WEBSHOP, "webshop_7")])
    check(converted, shop, "stepagent/WebShop-v0", "agentgym")


def test_fireact_in_its_three_layouts(tmp_path, questions):
    question = questions.opening.removeprefix("Question: ")
    end = (False, "Observation: Episode finished, reward = True")
    texts = [(False, question), *questions.alternating("Observation: ")[:-1], end]
    prompts = {"messages": roles(*texts)}
    runs = {"12": {"reward": True, "em": True, "prompt": [], "traj": roles(*texts)}}
    output = "\n".join(text for _, text in texts[1:])
    alpaca = {"instruction": question, "input": "", "output": f"{output}\n"}
    for records in ([prompts], runs, [alpaca]):
        (converted,) = run(tmp_path, records)
        # The answer's observation differs (ours says the score), hence what the file says.
        assert converted.task_id == questions.task_id
        assert (converted.reward, converted.success) == (1.0, True)
        assert [s.action for s in converted.steps] == [action for _, action, _ in questions.turns]
        assert report(tmp_path)["layouts"] == {"fireact": 1}
        assert report(tmp_path)["replays"]["differing"] == 1
        (difference,) = report(tmp_path)["differences"]
        assert difference["what"] == "last observation"
        assert difference["step"] == len(questions.turns)


def test_alfworld_ground_truth(tmp_path, house):
    banner = f"-= Welcome to TextWorld, ALFRED! =-\n\n{house.opening}"
    texts = [(False, banner)]
    for _, action, observation in house.turns:
        texts += [(True, action), (False, observation)]
    record = {"game": f"train/{house.task_id}", "conversations": sharegpt(*texts)}
    (converted,) = run(tmp_path, [record], "--env-args.expert", "planner")
    assert converted.env == "stepagent/ALFWorld-v0"
    assert converted.task_id == f"train/{house.task_id}"  # generated games have no trial
    assert report(tmp_path)["tasks_unknown"] == 1
    assert converted.reward == 1.0
    assert report(tmp_path)["rewards_assumed"] == {"1": 1}
    record["game"] = house.task_id
    (converted,) = run(tmp_path, [record])
    assert converted.steps[0].observation == house.opening
    assert report(tmp_path)["replays"]["equal"] == 1


def test_openai_messages_with_calls_and_parts(tmp_path, questions):
    call = {"function": {"name": "finish", "arguments": '{"answer": "yes"}'}}
    parts = [{"type": "text", "text": questions.opening}]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "Easy.", "tool_calls": [call]},
    ]
    (converted,) = run(tmp_path, [{"messages": messages}])
    assert converted.env == "stepagent/HotpotQA-v0"
    assert converted.task_id == questions.task_id
    assert (converted.steps[0].thought, converted.steps[0].action) == ("Easy.", "finish[yes]")


def test_one_conversation_is_one_record(tmp_path, house):
    texts = [(False, house.opening), *house.alternating()]
    for turns in (roles(*texts), sharegpt(*texts)):
        (converted,) = run(tmp_path, turns)
        assert converted.env == "stepagent/ALFWorld-v0"
        assert len(converted.steps) == len(house.turns)


def test_worked_examples_are_left_out(tmp_path, shop):
    """ETO's runs show an example first, then say whose turn it is."""
    turn = (False, f"Done.\n\nNow, it's your turn and here is the task.\n{shop.opening}")
    texts = [(False, WEBSHOP), (True, "OK"), (False, "A shop"), (True, "Action: search[x]"), turn]
    texts += shop.alternating("Observation:\n")
    record = {"meta": {"reward": 1.0}, "conversations": sharegpt(*texts)}
    (converted,) = run(tmp_path, [record])
    check(converted, shop, "stepagent/WebShop-v0", "eto")


def test_a_replay_that_differs_is_reported_where_it_first_does(tmp_path, shop):
    record = eto(shop, WEBSHOP, id=1, reward=0.25)
    record["conversations"][4]["value"] = "Observation:\nAnother shop's page"
    (converted,) = run(tmp_path, [record])
    assert converted.steps[1].observation == "Another shop's page"
    assert converted.reward == 0.25
    (difference,) = report(tmp_path)["differences"]
    assert (difference["step"], difference["what"]) == (1, "observation")
    assert difference["recorded"] == "Another shop's page"
    assert difference["replayed"] == shop.turns[0][2][:300]
    (converted,) = run(tmp_path, [record], "--observations", "replay")
    check(converted, shop, "stepagent/WebShop-v0", "eto")
    (converted,) = run(tmp_path, [record], "--no-replay")
    assert report(tmp_path)["replays"] == {}
    assert converted.reward == 0.25


def test_what_comes_after_the_end_differs(tmp_path, shop):
    record = eto(shop, WEBSHOP, id=1, reward=1.0)
    record["conversations"] += sharegpt((False, "Observation: more"), (True, "Action: search[a]"))
    (converted,) = run(tmp_path, [record], "--observations", "replay")
    assert len(converted.steps) == len(shop.turns)
    assert converted.reward == shop.score
    assert report(tmp_path)["replays"]["differing"] == 1


def test_an_environment_that_fails_costs_the_replay_only(tmp_path, shop, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("no Java here")

    monkeypatch.setattr(converter, "replay", fail)
    (converted,) = run(tmp_path, [eto(shop, WEBSHOP, id=1, reward=0.5)])
    assert (converted.task_id, converted.reward) == (shop.task_id, 0.5)
    assert report(tmp_path)["replays"] == {"not replayed: no Java here": 1}


def test_unknown_tasks_are_kept_and_counted(tmp_path, shop):
    other = [(False, "Instruction: [SEP] Find me a thing that nobody sells [SEP] Search")]
    texts = [*other, (True, "Action: search[thing]")]
    first, second = run(tmp_path, [sharegpt(*texts), {"conversations": sharegpt(*texts)}])
    assert first.task_id.startswith("sharegpt/")
    assert first.task_id == second.task_id
    assert (first.seed, second.seed) == (0, 1)  # two episodes of one task
    assert report(tmp_path)["tasks_unknown"] == 2
    assert report(tmp_path)["rewards_assumed"] == {"0": 2}
    assert run(tmp_path, [sharegpt(*texts)], "--reward", "0.5")[0].reward == 0.5


def test_what_is_no_episode_is_named_record_by_record(tmp_path, house):
    good = {"messages": roles((False, house.opening), (True, "Action: look"))}
    bad = [
        ({"messages": roles((False, "Hello"), (True, "Hi, how are you?"))}, "no environment"),
        ({"messages": roles((True, "Action: look"))}, "begins with the agent's turn"),
        ({"messages": roles((False, "Hello"))}, "no turn of an agent"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "'narrator'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
        ({"train": [good]}, "holds a list of records"),
        ({"question": "x", "answer": "y"}, "its keys: question, answer"),
        (3, "a JSON int"),
        ({"item_id": "webshop_1", "conversations": None}, "a task, not an episode"),
        ({"chosen": [], "rejected": []}, "preference pairs"),
        ({"task_id": "trial", "plan": {}, "scene": {}}, "stepagent collect"),
    ]
    converted = run(tmp_path, [good, *(record for record, _ in bad)], code=1)
    assert len(converted) == 1
    problems = report(tmp_path)["problems"]
    assert [p["record"] for p in problems] == [f"record {i}" for i in range(2, len(bad) + 2)]
    for problem, (_, reason) in zip(problems, bad, strict=True):
        assert reason in problem["reason"]
        assert problem["file"].endswith("input.json")
    assert sum(report(tmp_path)["not_understood"].values()) == len(bad)


def test_every_readable_layout_is_recognised():
    turns, answers = sharegpt((False, "o"), (True, "a")), roles((False, "o"), (True, "a"))
    records = {
        "trajectories": {"env": "e", "task_id": "t", "steps": []},
        "eto": {"id": "1", "conversations": sharegpt((False, WEBSHOP), (True, "OK"))},
        "agentgym": {"item_id": "webshop_1", "conversations": turns},
        "fireact": {"traj": answers},
        "alfworld": {"game": "train/x", "conversations": turns},
        "messages": {"messages": answers},
        "sharegpt": {"id": "1", "conversations": turns},
        "prompt-completion": {"prompt": answers[:1], "completion": answers[1:]},
    }
    assert {name: layout_of(record) for name, record in records.items()} == {
        name: name for name in CONVERTIBLE
    }
    assert set(records) < set(LAYOUTS)


def test_scienceworld_numbers():
    assert set(tasks.ETO_TASKS) == set(scienceworld.TASKS) > set(tasks.AGENTGYM_TASKS)
    assert tasks.science_task("14_3", "eto") == "find-plant/3"
    assert tasks.science_task("find-plant/3", "messages") == "find-plant/3"
    assert tasks.science_task("sciworld_30", "agentgym") == "melt/0"
    assert tasks.science_task("sciworld_99999", "agentgym") is None
    assert tasks.science_task("99_1", "eto") is None


@pytest.fixture
def real_data() -> Path:
    folder = os.environ.get("STEPAGENT_DATA")
    if not folder:
        pytest.skip("STEPAGENT_DATA is not set: no trajectories of other projects")
    return Path(folder)


@pytest.mark.real_data
def test_alfworlds_expert_trajectories_replay_equal(tmp_path, real_data):
    out = tmp_path / "out.jsonl"
    games = f"--env-args.data={real_data / 'alfworld' / 'train_3554.tar.zst'}"
    source = real_data / "trajectories" / "alfworld_gt_traj.jsonl"
    assert main([str(source), "--out", str(out), games, "--limit", "300"]) == 0
    assert report(tmp_path)["replays"]["equal"] == 300
    assert report(tmp_path)["tasks_unknown"] == 0


@pytest.mark.real_data
def test_fireacts_prompts_are_all_understood(tmp_path, real_data):
    """Their observations are a search engine's, so that no replay can be equal."""
    out = tmp_path / "out.jsonl"
    questions = f"--env-args.data={real_data / 'hotpotqa' / 'hipporag_hotpotqa_train_100.json'}"
    source = real_data / "trajectories" / "fireact_hotpotqa_react.jsonl"
    assert main([str(source), "--out", str(out), questions]) == 0
    converted = trajectory.read(out)
    assert len(converted) == 500
    assert all(t.success and t.steps[-1].action.startswith("finish[") for t in converted)
    assert all(step.thought and step.valid for t in converted for step in t.steps)
    assert report(tmp_path)["tasks_unknown"] == 499
    assert report(tmp_path)["replays"]["differing"] == 1
