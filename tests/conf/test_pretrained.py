"""A pretrained model, extended, by configuration."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from longspan.errors import ConfigError
from longspan.models import load_pretrained
from longspan.models.pretrained import num_heads_of
from longspan.training.build import build

ROOT = Path(__file__).parents[2]
OWN = ["tokenizer=huggingface", "tokenizer.name_or_path=PRETRAINED", "objective=mlm", "sparsity.block=16"]
MODEL = ["model=pretrained", "model.name_or_path=PRETRAINED"]


def test_the_command(pretrained, tmp_path, warm_python):
    """The one of the README, in a process of its own, on a few lines of text."""
    (tmp_path / "text").mkdir()
    for index in range(8):
        (tmp_path / "text" / f"{index}.txt").write_text(f"{index} {'The bridge is long. ' * 200}")
    command = [
        "model=pretrained",
        f"model.name_or_path={pretrained}",
        "tokenizer=huggingface",
        "tokenizer.name_or_path=${model.name_or_path}",
        "objective=mlm",
        "position=tile",
        "position.max_positions=512",
        "sparsity=bslongformer",
        "sparsity.block=16",
        "data=text_files",
        f"data.corpus.files=[{tmp_path}/text/*.txt]",
        "data.corpus.validation_fraction=0.25",
        "data.seq_len=256",
        "data.batch_size=2",
        "data.validation_sequences=2",
        "trainer.max_steps=2",
        "trainer.val_check_interval=2",
        "logger=csv",
        f"hydra.run.dir={tmp_path}/run",
    ]
    done = subprocess.run(
        [warm_python, "train.py", *command], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "extended from 128 to 512 by tile" in done.stdout
    assert "method 'tile' repeats the 128 trained positions" in done.stderr, "the global block meets copies"
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["positions"] == {"method": "tile", "from": 128, "to": 512}
    assert result["steps"] == 2
    assert result["patterns"][0]["heads"] == 4


@pytest.mark.filterwarnings("ignore:method 'tile' repeats")
def test_the_weights_are_the_pretrained_ones_and_the_positions_longer(compose, text_data, pretrained):
    from transformers import AutoModelForMaskedLM

    module = build(compose(*MODEL, *OWN, *text_data, "position=tile", "data.seq_len=300")).module
    model, stock = module.model, AutoModelForMaskedLM.from_pretrained(pretrained)
    table = "bert.embeddings.position_embeddings.weight"
    found, expected = model.state_dict(), stock.state_dict()
    assert torch.equal(found[table], expected[table][torch.arange(300) % 128])
    assert all(torch.equal(found[name], value) for name, value in expected.items() if name != table)
    assert model.config._attn_implementation == "longspan"
    assert model.training


def test_heads_are_those_of_the_model(compose, pretrained):
    config = compose(*MODEL, *OWN)
    assert num_heads_of(str(pretrained)) == config.model.num_heads == config.sparsity.num_heads == 4
    assert OmegaConf.to_container(config, resolve=True)["model"]["num_heads"] == 4


MISTAKES = [
    (
        [*MODEL, *OWN, "data.seq_len=256"],
        r"data\.seq_len=256 is more than the 128 positions of BertForMaskedLM",
    ),
    (
        [*MODEL, *OWN, "data.seq_len=256", "position=tile", "position.max_positions=128"],
        "than the 128 positions",
    ),
    (
        [*MODEL, *OWN, "position=tile", "position.max_positions=96"],
        "position: max_positions must be at least 128",
    ),
    ([*MODEL, "objective=mlm"], r"vocab_size must be that of .*, 100; the tokenizer has 260\. Use its own"),
    ([*MODEL, *OWN, "model.num_heads=2"], "num_heads must be that of .*, 4; got 2"),
    ([*MODEL, *OWN, "model.dtype=float8"], "dtype must be one of float32, bfloat16, float16; got 'float8'"),
    (
        ["model=pretrained", *OWN, "model.name_or_path=/nowhere/at/all"],
        "no folder with a model's config.json",
    ),
    (["model=pretrained", *OWN], "name_or_path"),
    (
        ["model=bert", "objective=mlm", "position=interpolate", "position.mode=x", "data.seq_len=1024"],
        "mode must be",
    ),
    (
        ["position=zero"],
        "'zero' does not extend LlamaForCausalLM, which has rotary positions; for those: linear",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), MISTAKES)
def test_mistakes(compose, text_data, overrides, message):
    if "model=bert" in overrides:
        overrides = [*overrides, "model.max_positions=512"]
    with pytest.raises(ConfigError, match=message):
        build(compose(*text_data, *overrides))


def test_another_padding(pretrained):
    with pytest.raises(ValueError, match=r"pad_token_id must be that of .*, 0; the tokenizer has 3"):
        load_pretrained(str(pretrained), "mlm", 100, pad_token_id=3)


def test_a_padded_vocabulary_is_the_models_own(pretrained):
    assert load_pretrained(str(pretrained), "mlm", 90).config.vocab_size == 100


def test_encoders_become_causal(pretrained):
    model = load_pretrained(str(pretrained), "clm", 100).eval()
    ids = torch.randint(5, 100, (1, 20), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, 10:] = 7
    with torch.no_grad():
        first, second = model(ids).logits, model(changed).logits
    torch.testing.assert_close(first[:, :10], second[:, :10])
    assert not torch.allclose(first[:, 10:], second[:, 10:])
    assert not model.config.use_cache


def test_fresh_weights_warn(pretrained, tmp_path):
    from transformers import BertModel

    BertModel.from_pretrained(pretrained).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"has no weights for cls\.predictions.* of BertForMaskedLM"):
        load_pretrained(str(tmp_path), "mlm", 100)


def test_dtype_and_checkpointing(pretrained):
    model = load_pretrained(str(pretrained), "mlm", 100, dtype="bfloat16", gradient_checkpointing=True)
    assert model.dtype == torch.bfloat16
    assert model.is_gradient_checkpointing
    assert load_pretrained(str(pretrained), "mlm", 100).dtype == torch.float32
