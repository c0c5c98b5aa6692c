"""The model that comes with the package, here a tiny one in its place."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from safetensors.torch import load_file

from stepagent.agents import make_agent, models, nano
from stepagent.errors import UsageError
from stepagent.training import run
from stepagent.training.config import Config, LoraSettings, PolicyConfig, TinyConfig
from stepagent.training.policy import Policy
from stepagent.training.pretrain import command
from stepagent.training.pretrain.measure import copying_accuracy
from stepagent.training.runs.directory import RunError
from stepagent.training.tiny import build_model, build_tokenizer
from tests.training.conftest import config  # noqa: F401

SHAPE = TinyConfig(hidden_size=32, layers=1, heads=2, vocabulary=300, context=512)


def save_model(folder: Path, seed: int = 0) -> Path:
    """A finished model as `stepagent pretrain` leaves it."""
    tokenizer = build_tokenizer(["guess 1", "higher", "lower"], SHAPE.vocabulary, SHAPE.context)
    build_model(SHAPE, tokenizer, seed).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("A card.")
    return folder


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(nano, "FOLDER", tmp_path / "package" / "model")
    return nano.install(save_model(tmp_path / "finished"))


def test_what_is_missing_says_how_to_make_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nano, "FOLDER", tmp_path / "nothing")
    message = "stepagent pretrain --config nano --install"
    with pytest.raises(models.ModelError, match=message):
        models.load_model("nano")
    with pytest.raises(models.ModelError, match=message):
        make_agent("nano")
    options = Config(output=str(tmp_path / "run"), policy=PolicyConfig(model="nano"))
    with pytest.raises(UsageError, match=message):  # before the expert's data is collected
        run.run(options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", nano.NEEDED)
def test_an_incomplete_model_is_none(installed: Path, name: str):
    (installed / name).unlink()
    with pytest.raises(UsageError, match=f"lacks {name}"):
        nano.digest()
    with pytest.raises(UsageError, match=f"no finished model: it lacks {name}"):
        nano.install(installed)


def test_it_acts_and_is_trained_in_float32(installed: Path):
    agent = make_agent("nano", max_new_tokens=4)
    assert agent.name == "nano"
    assert agent.context == SHAPE.context
    policy = Policy.load(PolicyConfig(model="nano", max_new_tokens=4, device="cpu"))
    assert {p.dtype for p in policy.model.parameters()} == {models.pick_dtype("float32")}


def test_an_adapter_names_its_base_by_its_name(installed: Path, tmp_path: Path):
    settings = PolicyConfig(model="nano", max_new_tokens=4, device="cpu", lora=LoraSettings(r=2))
    policy = Policy.load(settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Unable to fetch|Could not find a config file")
        policy.save(tmp_path / "adapter")
        policy.load_weights(tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == "nano"
    models.load_model(tmp_path / "adapter", "float32")


def test_the_digest_is_of_weights_and_tokenizer(installed: Path):
    before = nano.digest()
    (installed / "README.md").write_text("Another card.")
    assert nano.digest() == before
    for name in ("model.safetensors", "tokenizer.json"):
        content = (installed / name).read_bytes()
        (installed / name).write_bytes(content + b" ")
        assert nano.digest() != before, name
        (installed / name).write_bytes(content)


def test_a_run_says_which_nano_it_began_from(
    installed: Path,
    config: Config,  # noqa: F811
    tmp_path: Path,
):
    config.method, config.policy.model, config.evaluation.limit = "sft", "nano", 1
    config.evaluation.every_iteration = False
    summary = run.run(config)
    assert summary["origin"] == {"model": "nano", "digest": nano.digest()}
    assert run.run(config)["origin"] == summary["origin"]
    nano.install(save_model(tmp_path / "other", seed=1))
    with pytest.raises(RunError, match=f"another nano \\({summary['origin']['digest']}\\)"):
        run.run(config)


def test_a_finished_model_is_installed_by_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(nano, "FOLDER", tmp_path / "package" / "model")
    output = tmp_path / "run"
    save_model(output / "model")
    assert command.main(["--output", str(output), "--install"]) == 0
    assert (nano.folder() / "README.md").read_text() == "A card."


def test_a_pre_training_of_before_the_option_resumes(tmp_path: Path):
    settings = command.Config(output=str(tmp_path))
    command._same_config(settings)
    assert "install" not in (tmp_path / "config.yaml").read_text()
    settings.install = True
    command._same_config(settings)
    settings.seed = 1
    with pytest.raises(ValueError, match="another pre-training"):
        command._same_config(settings)


@pytest.mark.skipif(not (nano.FOLDER / "config.json").is_file(), reason="nano is not in here")
def test_the_one_in_the_package():
    files = list(nano.folder().iterdir())
    assert sum(path.stat().st_size for path in files) < 12e6
    weights = load_file(nano.FOLDER / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {models.pick_dtype("float16")}
    assert "No action of an expert is in them" in (nano.FOLDER / "README.md").read_text()
    results = json.loads((nano.FOLDER / "results.json").read_text())
    assert len(results["sources"]) == 8, "seven data sets and the pages"
    assert results["sources"]["ScienceWorld-v0"]["accuracy"] > 0.5
    agent = make_agent("nano", max_new_tokens=16)
    assert agent.context == 8192


def test_the_model_of_the_package_reads():
    """It repeats what it has just read, and expects what an environment says."""
    model, tokenizer = models.load_model("nano"), models.load_tokenizer("nano")
    assert copying_accuracy(model, [16])[16] > 0.2
    before = "<|user|>This room is called the hallway. In it, you see: \n\tthe agent\n"
    ids = tokenizer(before, add_special_tokens=False, return_tensors="pt").input_ids
    following = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
    assert "a substance called air" in tokenizer.decode(following)
