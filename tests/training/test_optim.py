import math

import pytest
import torch
from torch import nn

from longspan.training.optim import AdamW, Constant, Cosine, Linear, decay_groups


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.positions = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight


def names(model, group):
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return {known[id(parameter)] for parameter in group["params"]}


VECTORS = {"linear.bias", "norm.weight", "norm.bias"}
EMBEDDINGS = {"embedding.weight", "positions.weight"}


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("vectors", [False, True])
def test_decay_groups(embeddings, vectors):
    model = Tied()
    groups = {group["name"]: group for group in decay_groups(model, 0.3, embeddings, vectors)}
    decayed = {"linear.weight"} | (EMBEDDINGS if embeddings else set()) | (VECTORS if vectors else set())
    assert names(model, groups["decay"]) == decayed
    assert groups["decay"]["weight_decay"] == 0.3
    rest = VECTORS | EMBEDDINGS | {"linear.weight"}
    if decayed == rest:
        assert set(groups) == {"decay"}
    else:
        assert names(model, groups["no_decay"]) == rest - decayed
        assert groups["no_decay"]["weight_decay"] == 0.0


def test_adamw_leaves_undecayed_parameters_where_they_are():
    model = Tied()
    optimizer = AdamW(lr=0.5, weight_decay=0.5)(model)
    before = {name: value.clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    for name, value in model.named_parameters():
        expected = before[name] * 0.75 if name == "linear.weight" else before[name]
        torch.testing.assert_close(value, expected, msg=name)


def test_adamw_passes_its_numbers_on():
    optimizer = AdamW(lr=0.1, beta1=0.5, beta2=0.6, eps=1e-3, fused=False)(Tied())
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"], group["fused"]) == (0.1, (0.5, 0.6), 1e-3, False)
    assert all(group["fused"] for group in AdamW()(Tied()).param_groups)
    assert not any(group["fused"] for group in AdamW()(Tied().to("meta")).param_groups)


@pytest.mark.parametrize(
    "arguments",
    [{"lr": 0.0}, {"lr": -1.0}, {"beta1": 1.0}, {"beta2": -0.1}, {"eps": 0.0}, {"weight_decay": -0.1}],
)
def test_adamw_refuses(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        AdamW(**arguments)


def test_nothing_to_train():
    with pytest.raises(ValueError, match="nothing to train"):
        AdamW()(nn.Linear(2, 2).requires_grad_(False))


def rates(factory, total, steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = factory(optimizer, total)
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"] / 2.0)
        optimizer.step()
        schedule.step()
    return values


def test_cosine():
    values = rates(Cosine(warmup_steps=4, min_ratio=0.2), 24, 30)
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert values[14] == pytest.approx(0.6)
    assert values[9] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert values[24:] == pytest.approx([0.2] * 6)


def test_linear():
    values = rates(Linear(warmup_fraction=0.1, min_ratio=0.0), 20, 22)
    assert values[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert values[11] == pytest.approx(0.5)
    assert values[20:] == pytest.approx([0.0, 0.0])


def test_constant():
    assert rates(Constant(), None, 3) == [1.0, 1.0, 1.0]
    assert rates(Constant(warmup_steps=1), None, 3) == [0.5, 1.0, 1.0]


def test_steps_count_before_the_fraction():
    assert rates(Constant(warmup_steps=0, warmup_fraction=0.5), 10, 1) == [1.0]


@pytest.mark.parametrize("factory", [Cosine(), Linear(), Constant(warmup_fraction=0.1)])
def test_unknown_length_is_refused(factory):
    with pytest.raises(ValueError, match=r"trainer\.max_steps"):
        rates(factory, None, 1)


@pytest.mark.parametrize("kind", [Cosine, Linear, Constant])
@pytest.mark.parametrize("arguments", [{"warmup_steps": -1}, {"warmup_fraction": 1.5}, {"min_ratio": 2.0}])
def test_schedules_refuse(kind, arguments):
    if kind is Constant and "min_ratio" in arguments:
        with pytest.raises(TypeError):
            kind(**arguments)
    else:
        with pytest.raises(ValueError, match=next(iter(arguments))):
            kind(**arguments)
