"""A trained model out again: an ordinary Hugging Face folder from a run.

python -m longspan.training.export RUN FOLDER
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from longspan.records.run_folder import CHECKPOINTS_FOLDER
from longspan.training.checkpoints import NAMES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What the LightningModule, and torch.compile where a module was wrapped, put before the names of parameters.
_MODULE, _COMPILED = "model.", "_orig_mod."
# What transformers' tokenizers take for no limit.
_NO_LIMIT = int(1e30)


def export(
    run: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    checkpoint: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a trained model as an ordinary Hugging Face folder: weights, configuration and tokenizer.

    Plain transformers loads it as the dense model. After ``import longspan``, loaded with
    ``attn_implementation="longspan"``, it is the sparse model that was trained: the configuration holds the
    pattern. The weights keep the checkpoint's dtype. Nothing is written before everything has been read.

    The tokenizer of a run on bytes becomes one of the `tokenizers` library with the same ids; it reads every
    text as bytes, special tokens in it too, unless it is loaded with ``split_special_tokens=False``.

    Args:
        run: the folder of a run, or a checkpoint's file.
        path: the folder to write.
        checkpoint: ``"best"`` (by validation loss) or ``"last"`` of the run's folder; None: the best one that
            lies there, or else the last.
        overwrite: write into a folder that is not empty. Files of other names stay.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: there is no such run or checkpoint.
        FileExistsError: the folder is not empty, or ``path`` is a file.
        ValueError: a checkpoint name that does not exist, or one beside a checkpoint's file; a file that is
            no checkpoint of a run; a model that is not one of transformers'; a tokenizer that does not fit.

    """
    folder = Path(path)
    file = _checkpoint_file(Path(run), checkpoint)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"path={path} is a file; give a folder")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"path={path} is not empty; give another folder, or overwrite=True")
    state = _read(file)
    model = _model(state, file)
    tokenizer = _tokenizer(state, file, model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _checkpoint_file(run: Path, checkpoint: str | None) -> Path:
    if checkpoint is not None and checkpoint not in NAMES:
        raise ValueError(f"checkpoint must be one of {', '.join(NAMES)} or None, got {checkpoint!r}")
    if run.is_file():
        if checkpoint is not None:
            raise ValueError(
                f"checkpoint={checkpoint!r} names one in a run's folder, but run={run} is a file"
            )
        return run
    names = ("best", "last") if checkpoint is None else (checkpoint,)
    for name in names:
        if (file := run / CHECKPOINTS_FOLDER / f"{name}.ckpt").is_file():
            return file
    wanted = " nor ".join(f"{CHECKPOINTS_FOLDER}/{name}.ckpt" for name in names)
    raise FileNotFoundError(
        f"run={run} has no {wanted}; give the folder of a run that was trained, or a checkpoint"
    )


def _read(file: Path) -> dict[str, Any]:
    from longspan.training.callbacks.architecture import KEY as ARCHITECTURE
    from longspan.training.callbacks.settings import SETTINGS_KEY as SETTINGS

    try:
        # Plain types and tensors, so that no file runs code; mapped, so that the optimizer's are not read.
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ValueError(f"{file} cannot be read as a checkpoint: {error}") from error
    missing = [key for key in ("state_dict", SETTINGS, ARCHITECTURE) if key not in state]
    if missing:
        raise ValueError(
            f"{file} is no checkpoint of a Longspan run of a Hugging Face model: it has no "
            f"{', '.join(missing)}"
        )
    return {"weights": state["state_dict"], "settings": state[SETTINGS], "architecture": state[ARCHITECTURE]}


def _model(state: dict[str, Any], file: Path) -> PreTrainedModel:
    """Make the model of the architecture, without the run's data, and fill in the weights."""
    import transformers

    name = state["architecture"]["class"]
    model_class: Any = getattr(transformers, name, None)
    if not (isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)):
        raise ValueError(
            f"{file} holds a {name}, which is no model of transformers {transformers.__version__}"
        )
    weights = {
        key.removeprefix(_MODULE).replace(_COMPILED, ""): value
        for key, value in state["weights"].items()
        if key.startswith(_MODULE)
    }
    config_class: Any = model_class.config_class
    config = config_class.from_dict(state["architecture"]["config"])
    # The fresh weights are drawn for nothing: the caller's random numbers shall not notice.
    with torch.random.fork_rng(devices=[]):
        model = model_class(config)
    floating = next(value.dtype for value in weights.values() if value.is_floating_point())
    model = model.to(floating)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the weights in {file} are not those of its {name}: {error}") from error
    return model


def _tokenizer(state: dict[str, Any], file: Path, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    from longspan.config.instantiate import instantiate
    from longspan.deepspeed import SparseAttentionUtils
    from longspan.errors import ConfigError
    from longspan.positions import max_positions_of

    try:
        tokenizer = instantiate(state["settings"]["tokenizer"])
    except ConfigError as error:
        raise ValueError(f"the tokenizer of {file} cannot be made: {error}") from error
    embedding: Any = model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    if tokenizer.vocab_size > rows:
        raise ValueError(
            f"the tokenizer of {file} has {tokenizer.vocab_size} ids and its model {rows}: it has changed "
            "since the run"
        )
    return SparseAttentionUtils.update_tokenizer_model_max_length(
        tokenizer.to_hugging_face(), max_positions_of(model) or _NO_LIMIT
    )


def main() -> None:
    """Export a run from the command line; ends with status 1 and a message on a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m longspan.training.export",
        description="Write the model of a run as a Hugging Face folder: weights, configuration, tokenizer.",
    )
    parser.add_argument("run", help="the folder of a run, or a checkpoint's file")
    parser.add_argument("folder", help="the folder to write")
    parser.add_argument(
        "--checkpoint", choices=NAMES, help="which of the run's; without it best, or else last"
    )
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    given = parser.parse_args()
    try:
        folder = export(given.run, given.folder, checkpoint=given.checkpoint, overwrite=given.overwrite)
    except (OSError, ValueError) as error:
        print(f"longspan: {error}", file=sys.stderr)
        sys.exit(1)
    print(f"Exported to {folder}")


if __name__ == "__main__":
    main()
