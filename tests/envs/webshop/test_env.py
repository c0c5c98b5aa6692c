import gc
import gzip
import json
import random
import re
import time

import gymnasium as gym
import psutil
import pytest

from stepagent import envs
from stepagent.envs import check
from stepagent.envs.webshop import engine, pages, reward
from stepagent.envs.webshop.data import Goal
from tests.envs.webshop.shops import goal, product, raw_item, write_shop

ID = "stepagent/WebShop-v0"


@pytest.mark.parametrize("promise", check.CHECKS, ids=lambda p: p.__name__)
def test_contract(promise):
    promise(lambda **more: envs.make(ID, **more))


def test_contract_with_marked_buttons():
    for promise in (check.check_expert, check.check_hostile, check.check_two_at_once):
        promise(lambda **more: envs.make(ID, observation="text_rich", goals="synthetic", **more))


@pytest.fixture
def visit(tmp_path):
    """A visit to a shop of 23 mugs, in text_rich."""
    items = [raw_item(i) for i in range(23)]
    shop = engine.open_shop(str(write_shop(tmp_path, items)), 0)
    return engine.Visit(shop, goal(instruction="buy a mug"), "text_rich")


def test_actions_are_read_as_upstreams_pattern_reads_them():
    upstream, rng = re.compile(r"(.+)\[(.+)\]"), random.Random(0)
    for _ in range(20_000):
        text = "".join(rng.choices("[]a \n\r\u2028", (3, 3, 2, 1, 1, 1, 1), k=rng.randint(0, 9)))
        match = upstream.match(text)
        assert engine.read_action(text) == (match.groups() if match else ("", "")), repr(text)


@pytest.mark.parametrize("unit", ["[", "]", "a[", "[a]", "]["])
def test_actions_are_read_in_linear_time(visit, unit):
    start = time.process_time()
    assert not visit.act("x" + unit * (65_000 // len(unit)))
    assert time.process_time() - start < 0.5


def test_what_is_forgotten(visit):
    assert visit.act("search[mug]")
    assert visit.page.name == "results"
    asin = visit._shown[0].asin.lower()
    assert visit.act(f"click[{asin}]")
    assert visit.act("click[red]")
    assert "You have clicked red.\n" in visit.observation()
    assert visit.act("click[description]")
    assert visit.act("click[< prev]")  # of a sub-page: the choice stays
    assert visit.options == {"color": "red"}
    assert visit.act("click[< prev]")  # of the item page: it goes
    assert visit.options == {}
    assert f"[clicked button] {asin.upper()} [clicked button_]" in visit.observation()
    assert visit.act(f"click[{asin}]")
    assert "clicked" not in visit.observation()
    assert visit.act("click[back to search]")
    assert visit.act("search[mug]")
    assert "clicked" not in visit.observation()


def test_paging_past_the_end_gives_an_empty_page(visit):
    visit.act("search[mug]")
    assert "< prev" not in visit.page.clickables
    for number in (2, 3, 4):
        assert visit.act("click[next >]")
        assert f"Page {number} (Total results: 23)" in visit.observation()
    assert [kind for kind, _ in visit.page.nodes].count(pages.LINK) == 0
    assert visit.act("click[Next >]")
    for _ in range(4):
        assert visit.act("click[< prev]")
    assert not visit.act("click[< prev]")
    assert "Page 1 " in visit.observation()


@pytest.mark.parametrize(
    "action",
    [
        *("click[search]", "click[buy now]", "click[b000000001]", "buy", "search", "search[]"),
        *("Search[mug]", "click mug", "[mug]", "click[]", "search[a[b]", "go[mug]", ""),
    ],
)
def test_what_cannot_be_done_leaves_the_page(visit, action):
    before = visit.observation()
    assert not visit.act(action)
    assert visit.observation() == before


@pytest.mark.parametrize(
    ("action", "says"),
    [
        ("Click[Buy Now]", "Click[…] is no action: write search[keywords] or click[value]"),
        ("SEARCH[mug]", "SEARCH[…] is no action"),
        ("click [mug]", "click […] is no action"),
        ("buy it", "That is no action"),
        ("click[sold out]", ""),
        ("click[search]", ""),
        ("click[buy now]", ""),
    ],
)
def test_another_form_of_action_is_told_the_two(action, says):
    env = envs.make(ID)
    page, _ = env.reset(seed=0)
    observation, *_, info = env.step(action)
    assert not info["valid"]
    assert observation.endswith(page)
    assert observation.startswith(says)
    assert says or observation == page


def test_back_doors_are_only_words(visit):
    for words in ("<r>", "<a> dishwasher safe", "<c> garden", "<q> mugs"):
        assert visit.act(f"search[{words}]")
        assert visit.page.name == "results"


def test_a_search_works_on_every_page_and_forgets(visit):
    visit.act("search[mug]")
    visit.act(f"click[{visit._shown[0].asin}]")
    visit.act("click[red]")
    visit.act("click[features]")
    assert visit.act("search[Red mug]")
    assert visit.product is None
    assert visit.act("search[zzz]")
    assert "Total results: 0" in visit.observation()


def test_odd_texts_read_as_html_would_show_them():
    odd = product(
        bullets=("", "a\nb", " \n "), description="", title="", options={"o": ("x", " ", "")}
    )
    features = pages.sub_page("go", odd, "Features")
    assert pages.plain(features) == (
        "Instruction: [SEP] go [SEP] Back to Search [SEP] < Prev [SEP]  [SEP] a\nb"
    )
    item = pages.item_page("go", odd, show_attributes=True)
    assert "o [SEP] x [SEP]  [SEP] Price: $20.0 [SEP] Rating: N.A." in pages.plain(item)
    assert list(item.clickables)[-3:] == ["buy now", "x", " "]
    assert "Attributes" in pages.plain(item)
    assert pages.plain(pages.sub_page("go", odd, "Attributes")).endswith(
        "< Prev [SEP] long sleeve [SEP] fashion [SEP] shirts [SEP] Clothing › Men › Shirts"
    )
    reviewed = product(reviews=({"title": "Fine", "score": "4", "body": "It fits."},))
    assert pages.plain(pages.sub_page("go", reviewed, "Reviews")).endswith(
        '< Prev [SEP] "Fine" [SEP] 4 [SEP] It fits.'
    )


def test_an_option_named_like_a_button_does_not_take_its_place(tmp_path):
    option = {"Style": [{"value": "Buy Now"}, {"value": "Plain"}], "Trim": [{"value": "Plain"}]}
    items = [raw_item(i, customization_options=option) for i in range(3)]
    shop = engine.open_shop(str(write_shop(tmp_path, items)), 0)
    visit = engine.Visit(shop, goal())
    visit.act("search[mug]")
    visit.act("click[b000000001]")
    visit.act("click[plain]")
    assert visit.options == {"trim": "plain"}
    visit.act("click[buy now]")
    assert visit.bought is not None


def test_buying_ends_the_episode_with_the_reward():
    env = envs.make(ID, split="test")
    env.reset(seed=0)
    plan = env.expert_plan()
    for thought, action in plan:
        assert thought.endswith(".")
        observation, gained, terminated, _, info = env.step(action)
    assert terminated
    assert gained == info["score"] == 1.0
    assert info["success"]
    assert {"r_type", "r_att", "r_price", "title_score"} <= set(info["metrics"])
    assert "Your score (min 0.0, max 1.0) [SEP] 1.0" in observation


def test_ten_actions_without_a_purchase_score_nothing():
    env = envs.make(ID)
    env.reset(seed=0)
    for number in range(10):
        *_, terminated, truncated, info = env.step("search[shoes]")
        assert not terminated
        assert truncated == (number == 9)
    assert info["score"] == 0.0


@pytest.mark.parametrize("goals", ["human", "synthetic"])
def test_the_expert_on_the_bundled_shop(goals):
    env = envs.make(ID, split="test", goals=goals)
    scores, steps = [], []
    for task in env.tasks[:60]:
        env.reset(seed=0, options={"task_id": task})
        plan = env.expert_plan()
        for _, action in plan:
            *_, info = env.step(action)
            assert info["valid"], action
        scores.append(info["score"])
        steps.append(len(plan))
    assert sum(scores) / len(scores) >= 0.98
    assert max(steps) <= 8


def test_search_and_options_tell_shoppers_apart():
    """Buying the first hit of a poor search, or without options, earns clearly less."""
    env = envs.make(ID, split="dev")
    earned = {"kind only": 0.0, "no options": 0.0}
    tasks = env.tasks[:60]
    for task in tasks:
        target = env.goal(task)
        for name, words in (("kind only", target.query), ("no options", target.instruction)):
            env.reset(seed=0, options={"task_id": task})
            env.step(f"search[{words}]")
            env.step(f"click[{env.visit._shown[0].asin}]")
            earned[name] += env.step("click[buy now]")[1] / len(tasks)
    assert earned["kind only"] < 0.5
    assert earned["no options"] < 0.75
    assert earned["kind only"] < earned["no options"] - 0.1


def _met_by_target(env, target):
    """Whether the goal's own product can meet every wished option at all (see reward.py)."""
    own = env.shop.product(target.asin)
    values = [value for values in own.options.values() for value in values]
    return reward.options_met(target.option_texts(), values) == len(target.options)


@pytest.mark.real_data
@pytest.mark.slow
def test_the_expert_on_the_real_products(real):
    env = envs.make(ID, split="test", data=real, goals="synthetic")
    scores = []
    for task in env.tasks:
        env.reset(seed=0, options={"task_id": task})
        for _, action in env.expert_plan():
            *_, info = env.step(action)
        scores.append(info["score"])
        if info["score"] < 1:
            target = env.goal(task)
            assert not _met_by_target(env, target), (task, target)
    assert sum(scores) / len(scores) >= 0.95


@pytest.mark.real_data
def test_the_expert_on_the_real_human_goals(real):
    scores = []
    for split in ("train", "dev", "test"):
        env = envs.make(ID, split=split, data=real, goals="human")
        for task in env.tasks:
            env.reset(seed=0, options={"task_id": task})
            for _, action in env.expert_plan():
                *_, info = env.step(action)
            scores.append(info["score"])
    assert sum(scores) / len(scores) >= 0.95


@pytest.mark.real_data
def test_recorded_sessions_letter_for_letter(real):
    shop = engine.open_shop(str(real), 233)
    sessions = json.loads(gzip.open(real / "upstream" / "pages.json.gz").read())
    for session in sessions:
        visit = engine.Visit(shop, Goal.from_record(session["goal"]), session["mode"])
        assert visit.observation() == session["first"]
        for step in session["steps"]:
            visit.act(step["a"])
            assert visit.observation() == step["o"]
            assert (visit.bought is not None) == step["d"]
            if step["d"]:
                assert visit.bought.reward == pytest.approx(step["r"], abs=1e-9)
            else:
                assert list(visit.page.clickables) == step["avail"]["clickables"]
                assert (visit.page.name == "index") == step["avail"]["has_search_bar"]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vector_environments(mode):
    vector = gym.make_vec(ID, num_envs=2, vectorization_mode=mode)
    texts, _ = vector.reset(seed=0)
    assert all(text.startswith("WebShop") for text in texts)
    texts, *_ = vector.step(["search[red lamp]", "click[nothing]"])
    assert "Page 1" in texts[0]
    vector.close()


def _walk(environments, steps, seed):
    rng = random.Random(seed)
    for _ in range(steps // len(environments)):
        for env in environments:
            action = rng.choice(env.admissible_actions())
            if any(env.step(action)[2:4]):
                env.reset()


@pytest.mark.slow
def test_memory_stays_flat_over_ten_thousand_steps():
    environments = [envs.make(ID) for _ in range(64)]
    for seed, env in enumerate(environments):
        env.reset(seed=seed)
    _walk(environments, 3000, 0)  # fills the caches
    gc.collect()
    before = psutil.Process().memory_info().rss
    _walk(environments, 10_000, 1)
    gc.collect()
    assert psutil.Process().memory_info().rss - before < 30e6


@pytest.mark.slow
def test_ten_thousand_hostile_actions():
    env = envs.make(ID, observation="text_rich")
    env.reset(seed=0)
    rng = random.Random(0)
    for action in check.hostile_actions(10_000, seed=1):
        if rng.random() < 0.5:
            action = f"{rng.choice(('search', 'click'))}[{action}]"
        observation, _, done, truncated, info = env.step(action)
        assert observation in env.observation_space
        assert 0 <= info["score"] <= 1
        if done or truncated:
            env.reset()
