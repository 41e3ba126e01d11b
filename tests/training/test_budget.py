"""Budgets: where they end a run, what its schedule follows, and exact resumption."""

import math
import time

import lightning.pytorch as pl
import pytest
import torch

from longspan.training.callbacks.budget import FlopBudget, SecondsBudget, TokenBudget, find_budget
from longspan.training.callbacks.throughput import Throughput
from longspan.training.module import LongspanModule
from longspan.training.optim import AdamW, Constant, Cosine, Linear

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:Total length of")

LENGTH, BATCH = 8, 2
# A multiply and an add for each weight of its linear layers and token, forward, and twice as much backward.
FLOPS_PER_BATCH = 6 * LENGTH * BATCH * (8 * 8 + 8 * 11)


class Rates(pl.Callback):
    """The learning rate of each optimizer step."""

    def __init__(self):
        self.rates = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])


@pytest.fixture
def budgeted(make_run):
    """budgeted(folder, budget, …) -> a run that the budget bounds, with the rates of its steps."""

    def make(directory, budget, scheduler=None, callbacks=(), data=None, **trainer):
        rates = Rates()
        options = {"max_steps": -1, "val_check_interval": 5, **trainer}
        run = make_run(directory, data, [budget, Throughput(), *callbacks, rates], **options)
        if scheduler is not None:
            run.module = LongspanModule(run.model, run.module.objective, AdamW(lr=1e-2), scheduler)
        budget.plan(run.trainer, run.module, LENGTH, BATCH)
        run.rates = rates.rates
        return run

    return make


@pytest.mark.parametrize(
    "budget",
    [
        TokenBudget(7 * 16),
        TokenBudget(8 * 16 - 1),
        FlopBudget(7 * FLOPS_PER_BATCH),
        FlopBudget(7.9 * FLOPS_PER_BATCH),
    ],
    ids=str,
)
def test_tokens_and_flops_are_so_many_steps_to_the_bit(tmp_path, make_run, budgeted, same_end, budget):
    steps = make_run(tmp_path / "steps", max_steps=7).fit()
    run = budgeted(tmp_path / "budget", budget).fit()
    assert run.trainer.global_step == 7
    same_end(steps, run)
    used = budget.to_dict(run.trainer, run.module)
    assert used["used"] == {"tokens": 7 * 16, "flops": 7 * FLOPS_PER_BATCH}[used["unit"]]
    assert used["used"] <= used["limit"] == budget.limit


@pytest.mark.parametrize("kind", [TokenBudget, FlopBudget])
def test_accumulated_batches_are_one_step(tmp_path, budgeted, kind):
    of_step = 3 * {TokenBudget: 16, FlopBudget: FLOPS_PER_BATCH}[kind]
    run = budgeted(tmp_path, kind(2 * of_step), accumulate_grad_batches=3).fit()
    assert (run.trainer.global_step, run.module.tokens_seen) == (2, 6 * 16)
    with pytest.raises(
        ValueError, match=rf"{kind.unit}={of_step - 1} is less than the {of_step:,} that an opt"
    ):
        budgeted(tmp_path, kind(of_step - 1), accumulate_grad_batches=3)


def test_the_trainer_s_own_steps_are_a_further_limit(tmp_path, budgeted):
    assert budgeted(tmp_path, TokenBudget(16 * 9), max_steps=4).trainer.max_steps == 4
    assert budgeted(tmp_path, TokenBudget(16 * 3), max_steps=4).trainer.max_steps == 3


@pytest.mark.parametrize("kind", [TokenBudget, FlopBudget, SecondsBudget])
@pytest.mark.parametrize("limit", [0, -1.0, math.inf, math.nan])
def test_a_limit_is_positive_and_finite(kind, limit):
    with pytest.raises(ValueError, match=f"{kind.unit} must be positive and finite"):
        kind(limit)


def test_a_count_that_is_not_the_planned_one_warns(tmp_path, budgeted):
    class MoreTokens(pl.Callback):
        """As a schedule that changes a pattern, and with it what a step takes."""

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx % 2:
                batch["input_ids"] = batch["input_ids"][:, : LENGTH // 2]
                batch["labels"] = batch["labels"][:, : LENGTH // 2]

    run = budgeted(tmp_path, FlopBudget(4 * FLOPS_PER_BATCH), callbacks=[MoreTokens()])
    with pytest.warns(UserWarning, match=f"and {4 * FLOPS_PER_BATCH:,} for 4 steps; counted were"):
        run.fit()


class Clock:
    """Stands still but for `seconds` at the start of a batch, and `validating` at that of a validation."""

    def __init__(self, monkeypatch, now=1000.0):
        self.now = now
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def callback(self, seconds=1.0, validating=100.0):
        clock = self

        class Tick(pl.Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                clock.now += seconds

            def on_validation_batch_start(self, *arguments):
                clock.now += validating

        return Tick()


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def cosine(share, warmup=0.05, least=0.1):
    """A warm-up and half a cosine over the share of a training, by the formula."""
    if share < warmup:
        return share / warmup
    done = (share - warmup) / (1 - warmup)
    return least + (1 - least) * (1 + math.cos(math.pi * done)) / 2


def test_seconds_end_the_run_and_the_schedule_follows_them(tmp_path, budgeted, clock):
    run = budgeted(tmp_path, SecondsBudget(10), Cosine(), [clock.callback()]).fit()
    assert run.trainer.global_step == 10
    # The n-th step, from 0, has the rate of the n seconds that were over when the weights last changed.
    assert run.rates == pytest.approx([1e-2 * cosine(step / 10) for step in range(10)], abs=1e-6)
    assert run.val_loss > 0, "it ends with a validation"
    assert find_budget(run.trainer).to_dict(run.trainer, run.module) == {
        "unit": "seconds",
        "limit": 10,
        "used": 10,
    }
    assert find_budget(run.trainer).time_remaining() == 0


def test_a_step_that_is_under_way_is_finished(tmp_path, budgeted, clock):
    run = budgeted(tmp_path, SecondsBudget(10), callbacks=[clock.callback(3.0)]).fit()
    assert run.trainer.global_step == 4
    again = budgeted(
        tmp_path, SecondsBudget(10), callbacks=[clock.callback(3.0)], accumulate_grad_batches=3
    ).fit()
    assert again.trainer.global_step == 2, "an optimizer step, not a batch"


def test_steps_that_end_before_the_seconds_end_the_schedule_too(tmp_path, budgeted, clock):
    run = budgeted(
        tmp_path, SecondsBudget(100), Linear(warmup_fraction=0), [clock.callback()], max_steps=4
    ).fit()
    assert run.rates == pytest.approx([1e-2 * (1 - step / 4) for step in range(4)], abs=1e-6)


def test_a_constant_rate_needs_no_warm_up(tmp_path, budgeted, clock):
    run = budgeted(tmp_path, SecondsBudget(3), Constant(), [clock.callback()]).fit()
    assert run.rates == [1e-2] * 3


@pytest.mark.parametrize("stream", [False, True], ids=["epochs", "stream"])
def test_seconds_go_on_where_they_were(tmp_path, monkeypatch, budgeted, make_data, stream):
    clock = Clock(monkeypatch)
    whole = budgeted(
        tmp_path / "whole", SecondsBudget(10), Cosine(), [clock.callback()], make_data(stream)
    ).fit()
    broken = budgeted(tmp_path / "broken", SecondsBudget(10), Cosine(), [clock.callback()], make_data(stream))
    broken.model.fail_at = 7
    with pytest.raises(RuntimeError, match="broken on purpose"):
        broken.fit()
    # What the seventh step took was in vain, and counts: six steps, seven seconds.
    clock = Clock(monkeypatch, now=7777.0)
    resumed = budgeted(
        tmp_path / "resumed", SecondsBudget(11), Cosine(), [clock.callback()], make_data(stream)
    )
    resumed.fit(broken.last)
    assert resumed.trainer.global_step == 10
    same = torch.equal(resumed.weights["head.weight"], whole.weights["head.weight"])
    assert not same, "another budget is another schedule"
    assert resumed.rates == pytest.approx(
        [whole.rates[6], *(1e-2 * cosine(seconds / 11) for seconds in (8, 9, 10))], abs=1e-6
    )
    assert find_budget(resumed.trainer).used(resumed.trainer, resumed.module) == 11


def test_a_checkpoint_between_steps_resumes_exactly(tmp_path, monkeypatch, budgeted, same_end):
    """Without time in vain a clock that goes on where it was gives the same run, to the bit."""

    class Copy(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 6:
                trainer.save_checkpoint(tmp_path / "sixth.ckpt", weights_only=False)

    clock = Clock(monkeypatch)
    whole = budgeted(tmp_path / "whole", SecondsBudget(10), Cosine(), [clock.callback(), Copy()]).fit()
    clock = Clock(monkeypatch, now=1.0)
    resumed = budgeted(tmp_path / "resumed", SecondsBudget(10), Cosine(), [clock.callback()])
    same_end(whole, resumed.fit(tmp_path / "sixth.ckpt"))
    assert resumed.rates == whole.rates[6:]


def test_nothing_is_left_of_a_budget(tmp_path, budgeted, clock):
    spent = budgeted(tmp_path / "seconds", SecondsBudget(3), callbacks=[clock.callback()]).fit()
    seconds = torch.load(spent.last, weights_only=True)["callbacks"][Throughput().state_key]["seconds"]
    later = budgeted(tmp_path, SecondsBudget(3), callbacks=[clock.callback()])
    assert find_budget(later.trainer).is_spent(3, seconds, later.trainer.max_steps)
    assert later.fit(spent.last).trainer.global_step == 3, "no step more"
    for budget, left in ((SecondsBudget(4), True), (TokenBudget(3 * 16), False), (TokenBudget(4 * 16), True)):
        run = budgeted(tmp_path, budget)
        assert budget.is_spent(3, seconds, run.trainer.max_steps) is not left


def test_seconds_need_a_clock_and_a_schedule_of_shares(make_run, tmp_path, budgeted):
    without = make_run(tmp_path, callbacks=[SecondsBudget(1)])
    with pytest.raises(ValueError, match=r"counted by callbacks\.throughput"):
        find_budget(without.trainer).plan(without.trainer, without.module, LENGTH, BATCH)
    with pytest.raises(ValueError, match=r"scheduler\.warmup_steps=2 are steps.*warmup_fraction"):
        budgeted(tmp_path, SecondsBudget(1), Cosine(warmup_steps=2))


def test_budgets_tell_what_they_are():
    assert [str(one) for one in (TokenBudget(2e7), FlopBudget(1e15), SecondsBudget(0.5))] == [
        "20,000,000 tokens",
        "1e+15 flops",
        "0.5 seconds",
    ]
    assert len({TokenBudget.unit, FlopBudget.unit, SecondsBudget.unit}) == 3
