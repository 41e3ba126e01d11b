"""The command `longspan`: a word for each command, whose module is imported when it is asked for.

`python -m longspan` is the same.
"""

from __future__ import annotations

import importlib
import sys

from longspan.errors import nearest
from longspan.version import __version__

# The module of each command, whose `main` reads sys.argv, and what the command does.
COMMANDS = {
    "train": ("longspan.cli.train", "pretrain a model, or several in a sweep; the same as python train.py"),
    "inspect": ("longspan.analysis.inspect", "show what a pattern reaches and costs, before training"),
    "compare": ("longspan.analysis.compare", "compare runs: tables, figures, a page"),
    "export": ("longspan.training.export", "write a checkpoint as a Hugging Face model"),
    "dashboard": ("longspan.analysis.dashboard", "write a Weights & Biases workspace that compares patterns"),
    "deepspeed": ("longspan.deepspeed.overrides", "turn a DeepSpeed configuration into overrides of train"),
}


def main() -> None:
    """Run the command that the first word asks for; ends the process with status 1 where there is none."""
    word, *arguments = sys.argv[1:] or ["--help"]
    if word in ("-h", "--help", "help"):
        print(usage())
    elif word == "--version":
        print(f"longspan {__version__}")
    elif word in COMMANDS:
        module, _ = COMMANDS[word]
        sys.argv = [f"longspan {word}", *arguments]
        importlib.import_module(module).main()
    else:
        known = f"{', '.join(COMMANDS)}{nearest(word, COMMANDS)}"
        print(f"longspan: there is no command '{word}'; commands: {known}", file=sys.stderr)
        sys.exit(1)


def usage() -> str:
    """The commands with a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {word:{width}}  {does}" for word, (_, does) in COMMANDS.items()]
    return "\n".join(
        [
            "Longspan pretrains transformers on long sequences with block-sparse attention.",
            "",
            "usage: longspan COMMAND [ARGUMENT ...]",
            "",
            *lines,
            "",
            "longspan COMMAND --help says what a command takes.",
        ]
    )
