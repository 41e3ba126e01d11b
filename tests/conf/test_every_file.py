"""Every shipped configuration file: composed, instantiated, and through one batch."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from longspan.config.folders import config_dir
from longspan.config.instantiate import instantiate
from longspan.errors import ConfigError
from longspan.positions import LEARNED_METHODS, ROTARY_METHODS
from longspan.training.build import build
from longspan.training.run import train

FILES = sorted(path.relative_to(config_dir()) for path in config_dir().glob("*/*.yaml"))
OPTIONS = {
    group.name: [f.stem for f in FILES if f.parent.name == group.name] for group in config_dir().iterdir()
}

# What a user must say besides the option itself.
NEEDED = {
    "data/text_files": ["data.corpus.files=[some.txt]"],
    "data/hub": ["data.corpus.path=some/name"],
    "tokenizer/huggingface": ["tokenizer.name_or_path=some/name"],
    # The task's own vocabulary, as it chooses itself.
    "tokenizer/task": ["data=recall"],
    # The fixture `compose` puts the folder of a tiny BERT here.
    "model/pretrained": ["model.name_or_path=PRETRAINED"],
    # The test machine need not have a GPU.
    # A frequency each, half the rotary dimension of the default model.
    "position/longrope": [
        f"position.short_factor={[1.0] * 24}",
        f"position.long_factor={[2.0] * 24}",
    ],
    "trainer/gpu": ["trainer.accelerator=cpu", "trainer.precision=32-true"],
    "trainer/ddp": ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.devices=1"],
}
# A file that says what an option of Hydra's own groups has besides, and the package that it needs.
PACKAGES = {"experiment/search": "hydra_plugins.hydra_optuna_sweeper"}
# Files that set keys of several groups.
GLOBAL = ("experiment", "budget")
# A pattern, a model and an objective that go together for each option that is about one of them.
MASKED_MODELS = ("bert", "roberta", "modernbert")
PAIRS = [
    *(("mlm", model) for model in MASKED_MODELS),
    *(("clm", model) for model in OPTIONS["model"] if model != "pretrained"),
]


def option_of(file: Path) -> str:
    return f"{file.parent}/{file.stem}"


def overrides_of(file: Path) -> list[str]:
    package = PACKAGES.get(option_of(file))
    if package is not None and not has_package(package):
        pytest.skip(f"{package.rpartition('.')[2]} is not installed")
    return [f"{file.parent}={file.stem}", *NEEDED.get(option_of(file), [])]


def has_package(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def values_of(node, prefix: str = "") -> dict:
    """The leaves of a YAML file, by their keys."""
    if not isinstance(node, DictConfig):
        return {prefix: node}
    leaves = {}
    for key in node:
        if OmegaConf.is_interpolation(node, key) or OmegaConf.is_missing(node, key):
            continue
        # What a file says to Hydra is no part of a run.
        if key in ("defaults", "hydra"):
            continue
        leaves |= values_of(node[key], f"{prefix}.{key}" if prefix else str(key))
    return leaves


@pytest.mark.parametrize("file", FILES, ids=str)
def test_composes_and_resolves_with_the_values_of_the_file(compose, file):
    config = compose(*overrides_of(file))
    OmegaConf.to_container(config, resolve=True)
    text = OmegaConf.load(config_dir() / file)
    prefix = "" if file.parent.name in GLOBAL else file.parent.name
    overridden = [override.partition("=")[0] for override in overrides_of(file)]
    for key, value in values_of(text, prefix).items():
        if key and key not in overridden:
            assert OmegaConf.select(config, key) == value, key


@pytest.mark.parametrize("file", FILES, ids=str)
def test_begins_with_a_comment_that_says_what_it_is(file):
    lines = (config_dir() / file).read_text().splitlines()
    first = next(line for line in lines if not line.startswith("# @package"))
    assert first.startswith("# ")
    assert len(first) > 10


@pytest.mark.parametrize(
    "file",
    [file for file in FILES if file.parent.name in ("sparsity", "objective", "optimizer", "scheduler")],
    ids=str,
)
def test_instantiates(compose, file):
    config = compose(*overrides_of(file))
    made = instantiate(config[file.parent.name])
    assert type(made).__name__ == config[file.parent.name]["_target_"].rpartition(".")[2]


@pytest.mark.parametrize("budget", OPTIONS["budget"])
def test_a_run_on_every_budget(compose, text_data, budget, capsys):
    limit = {"none": [], "tokens": [f"budget.tokens={2 * 512}"], "flops": ["budget.flops=1e9"]}
    enough = {"none": 2, "tokens": 2, "flops": 6, "seconds": 3}
    steps = ["trainer.max_steps=2"] if budget == "none" else ["trainer.max_steps=3"] * (budget == "seconds")
    overrides = [f"budget={budget}", *limit.get(budget, []), *(steps or ["trainer.max_steps=-1"])]
    result = train(compose("experiment=smoke", *text_data, *overrides, "logger=none"))
    assert result["steps"] == enough[budget]
    if budget == "none":
        assert result["budget"] is None
    else:
        assert result["budget"]["unit"] == budget
        assert 0 < result["budget"]["used"] <= result["budget"]["limit"]
        assert "budget  " in capsys.readouterr().out


@pytest.mark.parametrize("option", OPTIONS["trainer"])
def test_trainers_with_all_callbacks(compose, option):
    config = compose(*overrides_of(Path("trainer") / f"{option}.yaml"), "callbacks=default")
    callbacks = list(instantiate(config.callbacks).values())
    trainer = instantiate(config.trainer, callbacks=callbacks, loggers=[])
    assert trainer.max_steps == config.trainer.max_steps
    assert set(callbacks) <= set(trainer.callbacks)


@pytest.mark.parametrize("option", OPTIONS["callbacks"])
def test_callbacks(compose, option):
    config = compose(f"callbacks={option}")
    assert list(instantiate(config.callbacks)) == list(config.callbacks)


@pytest.mark.parametrize(
    ("option", "kinds"),
    [
        ("none", []),
        ("csv", ["CsvLogger"]),
        ("default", ["CsvLogger", "WandbRun"]),
        ("wandb", ["CsvLogger", "WandbRun"]),
    ],
)
def test_loggers(compose, option, kinds):
    loggers = instantiate(compose(f"logger={option}").logger)
    assert [type(logger).__name__ for logger in loggers.values()] == kinds


def test_the_online_logger_is_online(compose):
    assert compose("logger=default").logger.wandb.offline is True
    assert compose("logger=wandb").logger.wandb.offline is False


def one_batch(config: DictConfig) -> float:
    """The loss of the first batch of training, with gradients for all that can have one."""
    run = build(config)
    data, module = run.data, run.module
    batch = next(iter(data.train_dataloader()))
    assert batch["input_ids"].shape == (config.data.batch_size, config.data.seq_len)
    loss = module.objective.loss(module(batch), batch["labels"])
    loss.backward()
    gradients = [p.grad for p in module.model.parameters() if p.requires_grad and p.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    optimizer = module.optimizer_factory(module.model)
    optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("objective", ["clm", "mlm"])
@pytest.mark.parametrize("sparsity", OPTIONS["sparsity"])
def test_a_batch_through_every_pattern_under_both_objectives(compose, text_data, sparsity, objective):
    overrides = [f"sparsity={sparsity}", f"objective={objective}", "model=bert"]
    config = compose("experiment=smoke", *text_data, *overrides)
    assert config.sparsity.attention == {"clm": "unidirectional", "mlm": "bidirectional"}[objective]
    assert config.sparsity.num_heads == config.model.num_heads
    assert 4.0 < one_batch(config) < 7.5


@pytest.mark.parametrize("option", OPTIONS["schedule"])
def test_a_step_under_every_schedule(compose, text_data, option):
    config = compose("experiment=smoke", *text_data, f"schedule={option}", "trainer.max_steps=1")
    result = train(config)
    assert result["steps"] == 1
    assert result["tokens"] == config.data.batch_size * config.data.seq_len
    assert len(result["schedules"]) == len(config.schedule)
    assert 4.0 < result["metrics"]["train_loss"] < 7.5


@pytest.mark.parametrize(("objective", "model"), PAIRS)
def test_a_batch_through_every_model(compose, text_data, objective, model):
    config = compose("experiment=smoke", *text_data, f"objective={objective}", f"model={model}")
    assert 4.0 < one_batch(config) < 7.5


PRETRAINED = [
    "model=pretrained",
    "model.name_or_path=PRETRAINED",
    "tokenizer=huggingface",
    "tokenizer.name_or_path=${model.name_or_path}",
    "sparsity.block=16",
    "data.batch_size=2",
    "data.validation_sequences=2",
]
LEARNED = [option for option in OPTIONS["position"] if option.replace("_", "-") in LEARNED_METHODS]
ROTARY = [option for option in OPTIONS["position"] if option in ROTARY_METHODS]


def test_positions_are_of_one_kind_or_the_other():
    assert {"none", *LEARNED, *ROTARY} == set(OPTIONS["position"])
    assert len(LEARNED) == len(LEARNED_METHODS)
    assert len(ROTARY) == len(ROTARY_METHODS)


@pytest.mark.parametrize(("objective", "model"), [("clm", "llama"), ("mlm", "modernbert")])
@pytest.mark.parametrize("position", ROTARY)
def test_a_batch_through_rotary_positions(compose, text_data, position, objective, model):
    half = 48 if model == "llama" else 32  # of a head's 96 or 64 dimensions
    factors = [f"position.short_factor={[1.0] * half}", f"position.long_factor={[1.5] * half}"]
    config = compose(
        "experiment=smoke",
        *text_data,
        f"objective={objective}",
        f"model={model}",
        "model.hidden_size=" + ("192" if model == "llama" else "128"),
        f"position={position}",
        "position.max_positions=1024",
        *(factors if position == "longrope" else []),
    )
    assert 4.0 < one_batch(config) < 7.5


@pytest.mark.parametrize("objective", ["clm", "mlm"])
@pytest.mark.parametrize("position", ["none", *LEARNED])
@pytest.mark.filterwarnings("ignore:method 'tile' repeats")
def test_a_batch_through_a_pretrained_model_with_every_position(compose, text_data, position, objective):
    length = 128 if position == "none" else 200
    options = [f"objective={objective}", f"position={position}", f"data.seq_len={length}"]
    config = compose(*PRETRAINED, *text_data, *options)
    assert config.sparsity.num_heads == 4
    assert 4.0 < one_batch(config) < 6.0


@pytest.mark.parametrize("option", ["document_mask=true", "batch_size=3"])
def test_a_batch_with_other_data_settings(compose, text_data, option):
    one_batch(compose("experiment=smoke", *text_data, f"data.{option}"))


TASKS = {
    "copy": ["data.seq_len=384"],
    "needle": ["data.seq_len=512"],
    "recall": [],
    # The length of the Long Range Arena is none for a test; the grammar is the same.
    "listops": ["data.corpus.min_length=20", "data.corpus.max_length=200"],
}


def test_the_tasks_are_the_data_that_bring_a_vocabulary():
    texts = [
        option
        for option in OPTIONS["data"]
        if "tokenizer" in (config_dir() / f"data/{option}.yaml").read_text()
    ]
    assert sorted(texts) == sorted(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_a_validation_reaches_all_sequences_of_a_task(compose, task):
    config = compose(f"data={task}")
    reached = config.trainer.limit_val_batches * config.data.validation_batch_size
    assert config.data.validation_sequences <= reached


@pytest.mark.parametrize(("objective", "model"), [("clm", "llama"), ("mlm", "modernbert")])
@pytest.mark.parametrize("task", TASKS)
def test_a_batch_of_every_task(compose, task, objective, model):
    config = compose(
        "experiment=smoke", f"data={task}", *TASKS[task], f"objective={objective}", f"model={model}"
    )
    assert config.tokenizer["_target_"] == "longspan.data.tasks.tokenizer_of"
    vocabulary = instantiate(config.tokenizer).vocab_size
    # A fresh model knows nothing of the words.
    assert one_batch(config) == pytest.approx(math.log(vocabulary), abs=0.7)


def test_a_task_takes_no_other_tokenizer_and_a_text_not_the_tasks(compose, text_data):
    with pytest.raises(ConfigError, match="the task recall has a vocabulary of its own, tokenizer=task"):
        build(compose("experiment=smoke", "data=recall", "tokenizer=bytes"))
    with pytest.raises(ConfigError, match="tokenizer=task is the vocabulary of a synthetic task"):
        build(compose("experiment=smoke", *text_data, "tokenizer=task"))


def test_a_batch_of_the_default_corpus(compose):
    run = build(compose("experiment=smoke"))
    data, pattern = run.data, run.patterns
    assert data.corpus_info.train.bytes > 1_000_000
    assert 2.5 < data.byte_entropy < 4.5
    assert pattern.name == "bigbird"
    assert next(iter(data.train_dataloader()))["input_ids"].shape == (2, 256)


def test_a_batch_of_a_local_data_set_folder(compose, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    with (folder / "train.jsonl").open("w") as file:
        for index in range(60):
            file.write(json.dumps({"text": f"Document {index}. " * 60}) + "\n")
    one_batch(
        compose(
            "experiment=smoke",
            "data=hub",
            f"data.corpus.path={folder}",
            "data.corpus.validation_fraction=0.2",
        )
    )


def test_a_batch_with_a_tokenizer_of_hugging_face(compose, text_data, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {chr(code): code - 32 for code in range(32, 127)} | {"[UNK]": 95, "[PAD]": 96, "[MASK]": 97}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special})
    )
    config = compose(
        "experiment=smoke", *text_data, "tokenizer=huggingface", f"tokenizer.name_or_path={folder}"
    )
    loss = one_batch(config)
    assert 3.0 < loss < 6.5


def test_a_batch_of_a_pretrained_model_with_a_pattern_a_layer(compose, text_data):
    """The copies of tiled positions meet in the dense layer alone."""
    options = ["objective=mlm", "position=tile", "data.seq_len=200"]
    config = compose(*PRETRAINED, *text_data, *options, 'sparsity.layers="local"')
    assert isinstance(build(config).patterns, list)
    config = compose(*PRETRAINED, *text_data, *options, 'sparsity.layers="local dense"')
    with pytest.warns(UserWarning, match="method 'tile' repeats"):
        assert 4.0 < one_batch(config) < 6.0
