"""How hypothesis draws its cases, a small pretrained model, and commands without their imports.

The cases are the same ones each time, so that a commit passes or fails and not a day. New ones:
``make test ARGS='--hypothesis-profile=explore'``; what it finds becomes a test of its own.
"""

import gc
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile("repeatable")


# Tests of more than some five seconds, the longest first, by their names without parameters.
LONG = [
    "test_no_kernel_needs_more_than_it_did",
    "test_under_the_interpreter",
    "test_the_study_is_made_cut_and_gone_on_with",
    "test_every_cell_once",
    "test_command",
    "test_every_line_of_the_guide_from_deepspeed",
    "test_compile_without_a_graph_break",
    "test_launches_are_those_of_triton",
    "test_real_launches_under_the_interpreter",
    "test_the_guide_and_what_it_logged",
    "test_a_smoke_run_and_its_continuation",
    "test_the_installed_command_trains",
    "test_a_sweep_that_was_killed_goes_on_where_it_was",
    "test_two_processes",
    "test_jobs_beside_each_other",
    "test_a_real_sweep_from_training_to_the_page",
]


def pytest_collection_modifyitems(items):
    """Give each process of pytest-xdist its share of the long tests first, so that all end together.

    With ``--dist worksteal`` a process begins with one of equal consecutive parts of the list, and takes from
    the end of another's when it is through. In a single process the order stays.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers == 1:
        return
    rank = {name: place for place, name in enumerate(LONG)}
    long = [item for item in items if getattr(item, "originalname", item.name) in rank]
    long.sort(key=lambda item: rank[item.originalname])
    is_long = set(map(id, long))
    short = [item for item in items if id(item) not in is_long]
    count = len(items)
    items.clear()
    for worker in range(workers):
        size = (count - len(items)) // (workers - worker)
        mine = long[worker::workers]
        rest = max(0, size - len(mine))
        items += [*mine, *short[:rest]]
        del short[:rest]


def pytest_collection_finish(session):
    """Keep what the imports made out of every later garbage collection, which would go through all of it."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config):
    """Let the interpreter's last collection see all again: nanobind reports what it misses as leaked."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory) -> Path:
    """A folder with a tiny BERT of 128 positions and its tokenizer of characters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("pretrained")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(code) for code in range(32, 127))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory):
    """A program to run in the place of `sys.executable`, forked from a process with the large packages.

    `warm_python.py` says what that process is, and what it cannot show.
    """
    path = Path(__file__).with_name("warm_python.py")
    specification = importlib.util.spec_from_file_location("warm_python", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("warm")
    client, address = folder / "python", str(folder / "socket")
    client.write_text(module.CLIENT.format(python=sys.executable, address=address))
    client.chmod(0o755)
    with subprocess.Popen(
        [sys.executable, str(path), address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder
    ) as server:
        assert server.stdout.read(6) == b"ready\n"
        yield str(client)
        server.stdin.close()  # which ends it


@pytest.fixture
def command(monkeypatch, capfd, tmp_path):
    """command(*arguments) -> (status, stdout, stderr) of the command, in this process and an empty folder."""
    from longspan.cli import train as cli

    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, *capfd.readouterr()

    return call
