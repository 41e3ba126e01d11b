"""A trained model out again: plain transformers loads it dense, and with Longspan it is what was trained."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch.testing import assert_close

import longspan
from longspan.config import schemas
from longspan.config.folders import config_dir
from longspan.training.build import build
from longspan.training.run import train

ROOT = Path(__file__).parents[2]
CASES = {
    "bert": ("mlm", "BertForMaskedLM"),
    "roberta": ("mlm", "RobertaForMaskedLM"),
    "modernbert": ("mlm", "ModernBertForMaskedLM"),
    "gpt2": ("clm", "GPT2LMHeadModel"),
    "llama": ("clm", "LlamaForCausalLM"),
}
QUICK = [
    "trainer=cpu",
    "logger=none",
    "data.seq_len=64",
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
    "trainer.limit_val_batches=1",
]


def configured(folder, *overrides):
    schemas.register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("train", ["experiment=smoke", *QUICK, *overrides])
    OmegaConf.update(config, "output_dir", str(folder))
    return config


def trained(folder, *overrides):
    """A run of two steps, and its module as it was at the best validation."""
    config = configured(folder, *overrides)
    train(config)
    module = build(config).module
    weights = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    module.load_state_dict(weights)
    return SimpleNamespace(folder=folder, model=module.model.eval())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run"), "model=bert", "objective=mlm")


@pytest.fixture
def ids():
    return torch.randint(0, 256, (2, 61), generator=torch.Generator().manual_seed(0))


PROCESS = """
import sys, torch
import transformers

def logits(head, folder, **arguments):
    load = getattr(transformers, head).from_pretrained
    model, info = load(folder, output_loading_info=True, **arguments)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    with torch.no_grad():
        return model.eval()(torch.load({ids!r})).logits

plain = [logits(*one) for one in {models!r}]
assert not [name for name in sys.modules if name.startswith("longspan")]
import longspan
sparse = [logits(*one, attn_implementation="longspan") for one in {models!r}]
torch.save(list(zip(plain, sparse)), {out!r})
"""


def test_plain_transformers_loads_it_dense_and_longspan_sparse(ids, tmp_path, warm_python):
    runs, models = {}, []
    for architecture, (objective, _) in CASES.items():
        run = trained(tmp_path / architecture, f"model={architecture}", f"objective={objective}")
        folder = longspan.export(run.folder, tmp_path / f"exported_{architecture}")
        assert folder == tmp_path / f"exported_{architecture}"
        head = "AutoModelForMaskedLM" if objective == "mlm" else "AutoModelForCausalLM"
        runs[architecture] = run, folder
        models.append((head, str(folder)))
    torch.save(ids, tmp_path / "ids.pt")
    # In a process of its own, which imports this package after the dense models have run.
    code = PROCESS.format(models=models, ids=str(tmp_path / "ids.pt"), out=str(tmp_path / "out.pt"))
    done = subprocess.run([warm_python, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for (architecture, (run, folder)), (plain, sparse) in zip(
        runs.items(), torch.load(tmp_path / "out.pt"), strict=True
    ):
        with torch.no_grad():
            assert_close(sparse, run.model(ids).logits)
            assert not torch.equal(sparse, plain), architecture
            run.model.set_attn_implementation("sdpa")
            assert_close(plain, run.model(ids).logits)
        config = json.loads((folder / "config.json").read_text())
        assert config["architectures"] == [CASES[architecture][1]]
        assert config["longspan_sparsity"]["name"] == "bigbird"


def test_the_base_model_is_loaded_by_automodel(run, ids, tmp_path):
    from transformers import AutoModel

    folder = longspan.export(run.folder, tmp_path)
    base = AutoModel.from_pretrained(folder, attn_implementation="longspan", add_pooling_layer=False).eval()
    with torch.no_grad():
        assert_close(base(ids).last_hidden_state, run.model.bert(ids).last_hidden_state)


def test_the_tokenizer_goes_along(run, tmp_path):
    from transformers import AutoTokenizer

    from longspan.data import ByteTokenizer

    tokenizer = AutoTokenizer.from_pretrained(longspan.export(run.folder, tmp_path))
    text = "def f(x):\n    return 'ü <mask>'"
    assert tokenizer(text).input_ids == ByteTokenizer().encode(text).tolist()
    assert tokenizer.model_max_length == 64
    assert len(tokenizer) == run.model.config.vocab_size


def test_a_hugging_face_tokenizer_is_saved_as_it_is(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "[MASK]": 2, "self": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]"
    ).save_pretrained(tmp_path / "words")
    own = ["tokenizer=huggingface", f"tokenizer.name_or_path={tmp_path / 'words'}"]
    run = trained(tmp_path / "run", "model=bert", "objective=mlm", *own)
    tokenizer = AutoTokenizer.from_pretrained(longspan.export(run.folder, tmp_path / "exported"))
    assert tokenizer("self [MASK] def").input_ids == [3, 2, 0]
    assert tokenizer.model_max_length == 64
    assert tokenizer.get_vocab() == {"[UNK]": 0, "[PAD]": 1, "[MASK]": 2, "self": 3}
    (tmp_path / "words" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"the tokenizer of .*best\.ckpt cannot be made"):
        longspan.export(run.folder, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def changed(run, folder, change, name="last"):
    """The run's checkpoint, changed, in a run's folder of its own."""
    state = torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True)
    change(state)
    file = folder / "checkpoints" / f"{name}.ckpt"
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, file)
    return file


def exported_weights(*arguments, **options):
    from safetensors.torch import load_file

    return load_file(longspan.export(*arguments, **options) / "model.safetensors")


def test_which_checkpoint(run, tmp_path):
    def shift(state):
        state["state_dict"] = {name: value + 1 for name, value in state["state_dict"].items()}

    best = exported_weights(run.folder, tmp_path / "best")
    file = changed(run, tmp_path / "run", shift)
    last = {name: value + 1 for name, value in best.items()}
    # Where there is no best one, the last; where there are both, the best.
    assert_close(exported_weights(tmp_path / "run", tmp_path / "a"), last)
    changed(run, tmp_path / "run", lambda state: None, "best")
    assert_close(exported_weights(tmp_path / "run", tmp_path / "b"), best)
    assert_close(exported_weights(tmp_path / "run", tmp_path / "c", checkpoint="best"), best)
    assert_close(exported_weights(str(tmp_path / "run"), tmp_path / "d", checkpoint="last"), last)
    assert_close(exported_weights(file, tmp_path / "e"), last)


def test_names_that_torch_compile_has_changed_and_other_dtypes(run, tmp_path):
    def change(state):
        state["state_dict"] = {
            name.replace("model.", "model._orig_mod.", 1): value.bfloat16()
            for name, value in state["state_dict"].items()
        }

    best = exported_weights(run.folder, tmp_path / "a")
    other = exported_weights(changed(run, tmp_path / "run", change), tmp_path / "b")
    assert other == {name: value for name, value in other.items() if value.dtype == torch.bfloat16}
    assert_close(other, {name: value.bfloat16() for name, value in best.items()})
    assert json.loads((tmp_path / "b" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_folder_that_is_not_empty_is_left_alone_unless_told(run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"path=.* is not empty.*overwrite=True"):
        longspan.export(run.folder, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    longspan.export(run.folder, tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "model.safetensors").is_file()
    with pytest.raises(FileExistsError, match=r"path=.*notes\.txt is a file"):
        longspan.export(run.folder, tmp_path / "notes.txt", overwrite=True)


def test_the_callers_random_numbers_stay(run, tmp_path):
    torch.manual_seed(3)
    longspan.export(run.folder, tmp_path)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))


def test_what_cannot_be_exported_is_refused(run, tmp_path):
    best = run.folder / "checkpoints" / "best.ckpt"
    with pytest.raises(ValueError, match="checkpoint must be one of last, best or None, got 'first'"):
        longspan.export(run.folder, tmp_path / "out", checkpoint="first")
    with pytest.raises(ValueError, match=r"run=.*best\.ckpt is a file"):
        longspan.export(best, tmp_path / "out", checkpoint="last")
    with pytest.raises(FileNotFoundError, match=r"has no checkpoints/best\.ckpt nor checkpoints/last\.ckpt"):
        longspan.export(tmp_path, tmp_path / "out")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        longspan.export(tmp_path / "text.ckpt", tmp_path / "out")
    refused = {
        "it has no architecture": lambda state: state.pop("architecture"),
        "which is no model of transformers": lambda state: state["architecture"].update(
            {"class": "AutoConfig"}
        ),
        "are not those of its BertForMaskedLM": lambda state: state["state_dict"].popitem(),
        "has 260 ids and its model 257": lambda state: (
            state["architecture"]["config"].update(vocab_size=257, bos_token_id=None, eos_token_id=None),
            state["state_dict"].update(
                {
                    name: value[:257]
                    for name, value in state["state_dict"].items()
                    if value.shape[:1] == (260,)
                }
            ),
        ),
    }
    for message, change in refused.items():
        with pytest.raises(ValueError, match=message):
            longspan.export(changed(run, tmp_path / "run", change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(run, tmp_path, warm_python):
    def command(*arguments):
        return subprocess.run(
            [
                warm_python,
                "-W",
                "error::RuntimeWarning",
                "-m",
                "longspan.training.export",
                *map(str, arguments),
            ],
            capture_output=True,
            text=True,
        )

    done = command(run.folder, tmp_path / "out", "--checkpoint", "last")
    assert done.returncode == 0, done.stderr
    assert f"Exported to {tmp_path / 'out'}" in done.stdout
    assert (tmp_path / "out" / "model.safetensors").is_file()
    again = command(run.folder, tmp_path / "out")
    assert again.returncode == 1
    assert again.stderr.strip().startswith("longspan: path=")
    assert "Traceback" not in again.stderr
    assert command(run.folder, tmp_path / "out", "--overwrite").returncode == 0


@pytest.mark.parametrize("task", ["needle", "listops"])
def test_a_run_on_a_task_gives_its_ids_back(task, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sizes = {
        "needle": ["data.corpus.lengths=null", "data.corpus.keep_free=8"],
        "listops": ["data.corpus.min_length=10", "data.corpus.max_length=60"],
    }
    small = [
        "model=llama",
        "data.batch_size=2",
        "data.validation_batch_size=2",
        "data.validation_sequences=2",
    ]
    run = trained(tmp_path / "run", f"data={task}", "objective=clm", *small, *sizes[task])
    folder = longspan.export(run.folder, tmp_path / "exported")
    data = build(configured(tmp_path, f"data={task}", "objective=clm", *small, *sizes[task])).data
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="longspan").eval()
    assert len(tokenizer) == data.vocab_size == model.config.vocab_size
    given = next(iter(data.val_dataloader()))["input_ids"][:1]
    text = " ".join(tokenizer.convert_ids_to_tokens(given[0]))
    assert tokenizer(text).input_ids == given[0].tolist()
    with torch.no_grad():
        assert_close(model(given).logits, run.model(given).logits)
