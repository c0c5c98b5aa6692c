"""Episodes: the rules, the contract, hostile actions, and the figures of the oracle."""

import json
import re
import subprocess
import sys

import gymnasium as gym
import pytest

from stepagent import envs
from stepagent.envs import check
from stepagent.envs.wikipedia.corpus import Page
from stepagent.envs.wikipedia.env import read_action
from stepagent.envs.wikipedia.sources import SourceError
from stepagent.eval.benches.wikipedia import bm25_guess
from tests.envs.wikipedia.records import hotpot, musique, write_array, write_lines

IDS = {
    "hotpotqa": "stepagent/HotpotQA-v0",
    "2wikimultihopqa": "stepagent/2WikiMultihopQA-v0",
    "musique": "stepagent/MuSiQue-v0",
}


@pytest.fixture
def env(tmp_path):
    """A HotpotQA environment on a small file of its own, with lookup."""
    records = [hotpot(i) for i in range(10)]
    for record in records:
        name = record["context"][0][0]
        record["context"][0][1] += [f"{name} wrote {n} books in Paris." for n in range(6)]
    path = write_array(tmp_path / "q.json", records)
    environment = envs.make(IDS["hotpotqa"], split="test", data=str(path), lookup=True)
    environment.reset(seed=0)
    yield environment
    environment.close()


@pytest.mark.parametrize("env_id", IDS.values())
@pytest.mark.parametrize("promise", check.CHECKS, ids=lambda p: p.__name__)
def test_contract(promise, env_id):
    promise(lambda **more: envs.make(env_id, **more))


# The rules ----------------------------------------------------------------------------------------


def test_search_shows_five_sentences_or_similar_titles(env):
    number = int(env.question.id[2:])
    observation, reward, done, _, info = env.step(f"search[Writer {number}]")
    assert observation.startswith(f"A writer. Writer {number} was born in Paris. Writer {number}")
    assert observation.count("books") == 3
    assert observation.endswith("wrote 2 books in Paris.")
    assert (reward, done, info["valid"]) == (0.0, False, True)
    observation, *_, info = env.step("search[town of Paris]")
    match = re.fullmatch(r"Could not find town of Paris\. Similar: (\[.*\])\.", observation)
    assert match, observation
    titles = match.group(1).strip("[]").split(", ")
    assert 1 <= len(titles) <= 5
    assert "'Paris'" in titles
    assert info["valid"]


def test_a_whole_paragraph_can_be_shown(tmp_path):
    path = write_array(tmp_path / "q.json", [hotpot(i) for i in range(10)])
    env = envs.make(IDS["hotpotqa"], data=str(path), sentences=0)
    env.reset(seed=0)
    assert env.step("search[Paris]")[0] == "Paris is a town. It is large."
    one = envs.make(IDS["hotpotqa"], data=str(path), sentences=1)
    one.reset(seed=0)
    assert one.step("search[Paris]")[0] == "Paris is a town."


def test_lookup_steps_through_the_sentences(env):
    assert env.step("lookup[x]")[4]["valid"] is False  # no page is open
    number = int(env.question.id[2:])
    env.step(f"search[Writer {number}]")
    assert env.step("lookup[WAS BORN]")[0] == f"(Result 1 / 1) Writer {number} was born in Paris."
    assert env.step("lookup[WAS BORN]")[0] == "No more results."
    env.step("search[zzz]")  # finds nothing: the page stays open
    assert env.step("lookup[books]")[0].startswith("(Result 1 / 6) ")


def test_lookup_goes_on_and_begins_again(env):
    number = int(env.question.id[2:])
    env.step(f"search[Writer {number}]")
    env.step("lookup[books]")
    assert env.step("lookup[books]")[0].startswith("(Result 2 / 6) ")
    assert env.step("lookup[town]")[0] == "No more results."
    assert env.step("lookup[books]")[0].startswith("(Result 1 / 6) ")


def test_lookup_is_no_action_by_default():
    env = envs.make(IDS["musique"], split="test")
    env.reset(seed=0)
    observation, *_, info = env.step("lookup[x]")
    assert not info["valid"]
    assert observation.endswith("search[entity], finish[answer].")


@pytest.mark.parametrize(
    ("answer", "em", "f1"), [("paris!", 1, 1), ("Paris, France", 0, 2 / 3), ("London", 0, 0)]
)
def test_finish_scores_the_answer(env, answer, em, f1):
    observation, reward, done, truncated, info = env.step(f"finish[{answer}]")
    assert observation == f"Episode finished, reward = {em}."
    assert (reward, done, truncated) == (em, True, False)
    assert info["success"] == bool(em)
    assert info["score"] == em
    assert info["metrics"] == {"em": em, "f1": pytest.approx(f1)}
    with pytest.raises(gym.error.ResetNeeded):
        env.step("search[x]")


def test_seven_actions(env):
    for _ in range(6):
        assert env.step("search[Paris]")[2:4] == (False, False)
    *_, done, truncated, info = env.step("search[Paris]")
    assert (done, truncated) == (False, True)
    assert info["metrics"] == {"em": 0, "f1": 0}


def test_aliases_count():
    env = envs.make(IDS["musique"], split="test")
    dated = next(t for t, q in env.questions.items() if len(q.answers) > 1)
    env.reset(options={"task_id": dated})
    assert env.question.answers[1] != env.question.answers[0]
    assert env.step(f"finish[{env.question.answers[1]}]")[1] == 1.0


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("search[a]", ("search", "a")),
        ("Search [a]", ("search", "a")),
        ("FINISH[a].", ("finish", "a")),
        ("search[a [b] c]", ("search", "a [b] c")),
        ("search[[a]]", ("search", "[a]")),
        ("search[a [b]", ("search", "a [b")),
        ("search[a", ("search", "a")),
        ("search[a] then finish[b]", ("search", "a")),
        ("search[]", ("search", "")),
        ("search", ("search", "")),
        ("finish", ("finish", "")),
        ("research[a]", ("", "")),
        ("search a", ("", "")),
        ("click[a]", ("", "")),
        ("[search[a]", ("search", "a")),
    ],
)
def test_reading_actions(text, read):
    assert read_action(text) == read


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("finish", "finish[] is empty: write finish[answer]"),
        ("finish[  ]", "finish[] is empty"),
        ("search[]", "search[] is empty: write search[entity]"),
        ("search[\x00\u2028]", "search[] is empty"),
        ("search[" + "a" * 100_000 + "]", "at most 500 characters"),
        ("look around", "That is no action. Use one of these: search[entity]"),
        ("[" * 5000, "That is no action"),
    ],
)
def test_what_cannot_be_done_is_said_and_costs_no_episode(env, action, said):
    observation, reward, done, _, info = env.step(action)
    assert said in observation
    assert len(observation) < 300
    assert (reward, done, info["valid"]) == (0.0, False, False)
    assert env.step("finish[Paris]")[1] == 1.0


@pytest.mark.parametrize(
    "entity", ["東京", "Ω≈ç√", "🜁" * 99, "\ud800", "a\u202eb", "%s{0}", "é" * 300]
)
def test_any_unicode_can_be_searched(env, entity):
    observation, *_, info = env.step(f"search[{entity}]")
    observation.encode()
    assert info["valid"] or entity == "\ud800"


def _hostile(count, **kwargs):
    envs_ = [envs.make(i, split="test", lookup=True, **kwargs) for i in IDS.values()]
    words = [
        "search",
        "lookup",
        "finish",
        "[",
        "]",
        "Paris",
        "the",
        "(film)",
        "\ud8ff",
        "𝔘",
        "'",
        ":",
    ]
    for env in envs_:
        env.reset(seed=0)
        for number, action in enumerate(check.hostile_actions(count, seed=3)):
            if number % 3 == 0:
                rng = env.rng
                action = "".join(rng.choice(words, size=int(rng.integers(1, 9)))) + "]"
            elif number % 3 == 1:
                action = f"search[{action}]"
            observation, _, done, truncated, info = env.step(action)
            observation.encode()
            assert set(info["metrics"]) <= {"em", "f1"}
            if done or truncated:
                env.reset()


def test_hostile_actions():
    _hostile(300)
    _hostile(300, corpus="distractor")


@pytest.mark.slow
def test_ten_thousand_hostile_actions():
    _hostile(10_000)


# Corpora ------------------------------------------------------------------------------------------


def test_parts_of_a_page_are_named(tmp_path):
    path = write_lines(tmp_path / "m.jsonl", [musique(i) for i in range(10)])
    for corpus in ("pooled", "distractor"):
        env = envs.make(IDS["musique"], data=str(path), corpus=corpus)
        env.reset(seed=0)
        number = env.question.id.split("_")[2]
        first = env.step(f"search[Maker {number}]")[0]
        assert first.endswith(f"Dr. A. Who runs it. (More: Maker {number} (part 2).)")
        second = env.step(f"search[Maker {number} (part 2)]")[0]
        assert second == "It was founded in 1901. It is old."
        env.reset(seed=0)
        assert f"search[Maker {number} (part 2)]" in [action for _, action in env.expert_plan()]


def test_the_distractor_corpus_is_the_questions_own(tmp_path):
    path = write_array(tmp_path / "q.json", [hotpot(i) for i in range(20)])
    pooled = envs.make(IDS["hotpotqa"], data=str(path))
    alone = envs.make(IDS["hotpotqa"], data=str(path), corpus="distractor")
    for env, has_page in ((pooled, True), (alone, False)):
        env.reset(options={"task_id": env.tasks[0]})
        other = env.questions[env.tasks[1]].hops[0].title
        assert env.step(f"search[{other}]")[0].startswith("Could not find") != has_page
        title = env.question.hops[0].title
        assert isinstance(env.corpus.find(title), Page)


def test_a_file_of_pages_is_a_corpus(tmp_path):
    questions = write_array(tmp_path / "q.json", [hotpot(i) for i in range(10)])
    path = write_array(tmp_path / "pages.json", [{"title": "Paris", "text": "One. Two."}])
    env = envs.make(IDS["hotpotqa"], data=str(questions), corpus=str(path))
    env.reset(seed=0)
    assert env.step("search[paris]")[0] == "One. Two."
    assert env.step("search[Number 1]")[0] == "Could not find Number 1. Similar: []."
    plan = env.expert_plan()  # its pages are not there: it says so, and answers all the same
    assert "There is no page" in plan[-1][0]


def test_the_prompt_lists_the_actions_there_are():
    plain, with_lookup = (envs.make(IDS["musique"], lookup=on) for on in (False, True))
    assert "lookup" not in plain.prompt.system()
    assert "- lookup[keyword]: " in with_lookup.prompt.system()
    assert "- finish[answer]: " in with_lookup.prompt.system()
    assert plain.fingerprint()["prompt"] != with_lookup.fingerprint()["prompt"]


def test_wrong_arguments_say_what_is_there(tmp_path):
    make = lambda **kw: envs.make(IDS["hotpotqa"], **kw)  # noqa: E731
    with pytest.raises(ValueError, match="'pooled', 'distractor', 'live'"):
        make(corpus="poled")
    with pytest.raises(ValueError, match="must start with http"):
        make(corpus="live:ftp://x")
    (tmp_path / "w.xml").write_text("<x/>")
    with pytest.raises(ValueError, match="stepagent wikipedia-corpus"):
        make(corpus=str(tmp_path / "w.xml"))
    for sentences in (-1, "five"):
        with pytest.raises(ValueError, match="sentences"):
            make(sentences=sentences)
    for sizes in ([1, 2], (0, 1, 1)):
        with pytest.raises(ValueError, match="three numbers"):
            make(sizes=sizes)
    for sizes in (5, ("a", "b", "c")):
        with pytest.raises(ValueError, match=r"sizes is .*: its type must be"):
            make(sizes=sizes)
    with pytest.raises(SourceError, match="no folder or file"):
        make(data=str(tmp_path / "nowhere"))
    simple = [{"question": f"Q{i}?", "answer": "x"} for i in range(9)]
    path = write_array(tmp_path / "simplified.json", simple)
    with pytest.raises(SourceError, match="come without paragraphs"):
        make(data=str(path)).reset()


def test_the_fingerprint_knows_data_and_corpus(tmp_path):
    prints = [envs.make(i, corpus=c).fingerprint()["data"] for i in IDS.values()
              for c in ("pooled", "distractor")]  # fmt: skip
    assert len(set(prints)) >= 2
    path = write_array(tmp_path / "q.json", [hotpot(i) for i in range(10)])
    assert envs.make(IDS["hotpotqa"], data=str(path)).fingerprint()["data"] not in prints


PLAY = """
from stepagent import envs
for name in ("HotpotQA", "2WikiMultihopQA", "MuSiQue"):
    env = envs.make(f"stepagent/{name}-v0", split="dev")
    print(env.reset(seed=4)[0], env.expert_plan(), env.admissible_actions())
    for action in ("search[The River]", "search[Anna]", "search[Wolfe College]", "finish[no]"):
        print(env.step(action))
"""


def test_the_same_text_in_every_process():
    runs = [
        subprocess.run([sys.executable, "-c", PLAY], capture_output=True, text=True)
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout, runs[0].stderr
    assert len(runs[0].stdout) > 2000


def test_importing_envs_stays_light():
    code = "import sys, envs; assert not {'requests', 'rapidfuzz', 'lxml'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Agents -------------------------------------------------------------------------------------------


def oracle(env, tasks):
    """Mean exact match of the expert, and in how many episodes all supporting facts were read."""
    hits = read = 0.0
    for task in tasks:
        env.reset(seed=0, options={"task_id": task})
        seen = ""
        for thought, action in env.expert_plan():
            assert len(thought) > 10
            observation, _, done, truncated, info = env.step(
                f"Thought: {thought}\nAction: {action}"
            )
            seen += observation
            if done or truncated:
                break
        assert done, task
        hits += info["metrics"]["em"]
        read += all(fact in seen for hop in env.question.hops for fact in hop.facts)
    return hits / len(tasks), read / len(tasks)


def guess(env, tasks):
    """Mean exact match of plain BM25, then a guess."""
    return sum(bm25_guess(env, task) for task in tasks) / len(tasks)


@pytest.mark.parametrize("dataset", IDS)
def test_the_oracle_on_the_bundled_encyclopedia(dataset):
    env = envs.make(IDS[dataset], split="test")
    em, read = oracle(env, env.tasks[:150])
    assert em >= 0.98
    assert read >= 0.98
    assert guess(env, env.tasks[:150]) <= 0.2


@pytest.mark.real_data
@pytest.mark.parametrize("dataset", IDS)
@pytest.mark.parametrize("corpus", ["pooled", "distractor"])
def test_the_oracle_on_the_real_files(real, dataset, corpus):
    tasks = 0
    for split in ("train", "dev", "test"):
        env = envs.make(IDS[dataset], split=split, data=str(real / dataset), corpus=corpus)
        em, read = oracle(env, env.tasks)
        assert em >= 0.95
        assert read >= 0.8
        assert guess(env, env.tasks) <= 0.35
        tasks += len(env.tasks)
    assert tasks == {"hotpotqa": 300, "2wikimultihopqa": 500, "musique": 200}[dataset]


@pytest.mark.real_data
def test_lookup_reads_what_lies_further_down(real):
    env = envs.make(IDS["musique"], data=str(real / "musique"), lookup=True)
    em, read = oracle(env, env.tasks)
    assert em == 1
    assert read >= 0.98


@pytest.mark.real_data
def test_recorded_trajectories_can_be_replayed(real):
    """Searches that a real agent wrote on HotpotQA are all understood."""
    env = envs.make(IDS["hotpotqa"], split="test", data=str(real / "hotpotqa"), max_steps=10**6)
    env.reset(seed=0)
    path = real / "trajectories" / "fireact_hotpotqa_react.jsonl"
    searches = 0
    for line in path.read_text(encoding="utf-8").splitlines()[:100]:
        for message in json.loads(line)["messages"]:
            if message["role"] == "assistant" and "search[" in message["content"]:
                assert env.step(message["content"])[-1]["valid"], message
                searches += 1
    assert searches > 100
