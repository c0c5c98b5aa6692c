import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from stepagent import envs
from stepagent.agents.cross_encoder import CrossEncoder
from stepagent.agents.models import ModelError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A BERT of a few thousand random weights with a tokenizer of letters."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=128,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def test_scores_do_not_depend_on_the_batch(tiny):
    texts = ["link rooms", "button search for something long", "a", ""]
    batched = CrossEncoder(tiny, dtype="float32", device="cpu", max_length=64)
    single = CrossEncoder(tiny, dtype="float32", device="cpu", max_length=64, batch_size=1)
    scores = batched.scores("find a room", texts)
    assert len(set(scores)) == 4
    assert scores == pytest.approx(single.scores("find a room", texts), abs=1e-5)
    assert batched.scores("x", []) == []


def test_it_ranks_in_the_environment(tiny):
    arguments = {"model": tiny, "device": "cpu", "max_length": 64}
    env = envs.make(
        "stepagent/Mind2Web-v0",
        split="test",
        ranker="stepagent.agents.cross_encoder:CrossEncoder",
        ranker_args=arguments,
        top_k=3,
    )
    observation, _ = env.reset(seed=0)
    assert observation.count("id=") == 3


def test_a_missing_model_is_a_clear_error(tmp_path):
    with pytest.raises(ModelError, match="cannot load cross-encoder"):
        CrossEncoder(str(tmp_path))
