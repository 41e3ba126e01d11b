"""Remarks for the reader of a comparison: runs that are not alike, budgets that differ, too few seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from longspan.analysis.comparison.configurations import PATTERN_GROUPS, differing, facts, group_of
from longspan.analysis.comparison.quantities import FLOPS, qualities
from longspan.analysis.comparison.runs import Run
from longspan.analysis.comparison.series import DENSE, Setting

# What a difference in a group of the configuration means for the comparison.
_MEANING = {
    "data": "different data",
    "tokenizer": "different tokenizers",
    "objective": "different objectives",
    "model": "different models",
    "position": "different positions",
    "optimizer": "different optimizers",
    "scheduler": "different learning rates",
}
# Keys of the trainer that set the budget. They are not compared, since the budgets that were used are.
_BUDGET = ("trainer.max_steps", "trainer.max_time", "trainer.max_epochs")
# The largest relative difference of budgets that count as equal.
_SAME_TOKENS, _SAME_FLOPS, _SAME_SECONDS = 0.001, 0.02, 0.02


@dataclass(frozen=True)
class Remark:
    """A sentence for the reader of a comparison.

    Attributes:
        text: the sentence.
        warning: whether it makes figures not comparable.

    """

    text: str
    warning: bool = True


def remarks(setting: Setting) -> list[Remark]:
    """Return the remarks on the figures of a setting, warnings first."""
    collected = [
        *_other_differences(setting),
        *_budgets(setting),
        *_machines(setting),
        *_losses(setting),
        *_seeds(setting),
    ]
    if setting.repeated:
        collected.append(
            Remark(f"Run more than once, the latest counts; not compared: {', '.join(setting.repeated)}.")
        )
    base = setting.baseline()
    if base is not None and len(setting.series) > 1 and base.label != DENSE:
        why = "one of several dense series" if base.label.startswith(f"{DENSE} ") else "no series is dense"
        collected.append(
            Remark(f"Without --baseline, differences are taken to {base.label}: {why}.", warning=False)
        )
    notes = dict.fromkeys(note for run in setting.runs for note in run.notes)
    collected += [Remark(note, warning=False) for note in notes]
    return sorted(collected, key=lambda remark: not remark.warning)


def _other_differences(setting: Setting) -> Iterable[Remark]:
    """Yield the differences in configuration and data, other than pattern and budget."""
    keys = [
        key
        for key in differing(one.settings for one in setting.series)
        if group_of(key) not in (*PATTERN_GROUPS, "budget") and key not in _BUDGET
    ]
    by_meaning: dict[str, list[str]] = {}
    for key in keys:
        by_meaning.setdefault(_MEANING.get(group_of(key), "runs differ in more than the pattern"), []).append(
            key
        )
    # A generated task may follow the seed, so the data are compared among runs with the same seed.
    by_seed: dict[int, list[dict[str, str]]] = {}
    for one in setting.series:
        for seed, run in one.runs.items():
            by_seed.setdefault(seed, []).append(facts(run))
    corpora = {key for one in by_seed.values() for key in differing(one) if key.startswith("corpus")}
    if corpora:
        by_meaning.setdefault("different data", []).extend(sorted(corpora))
    for meaning, names in by_meaning.items():
        yield Remark(f"Not comparable: {meaning} ({', '.join(names)}).")


def _budgets(setting: Setting) -> Iterable[Remark]:
    tokens = [run.result.get("tokens") for run in setting.runs]
    if _spread(tokens) <= _SAME_TOKENS:
        return
    limits = {_limit(run) for run in setting.runs}
    budget = limits.pop() if len(limits) == 1 else None
    amounts_used = [_used(run) for run in setting.runs] if budget is not None else [None]
    if None not in amounts_used:
        stopped_early = [
            run for run, used in zip(setting.runs, amounts_used, strict=True) if not _is_used_up(run, used)
        ]
        if stopped_early:
            amounts = ", ".join(f"{run.name}: {_used(run):,.6g}" for run in stopped_early)
            yield Remark(f"Not comparable: runs did not use their equal budgets of {budget} ({amounts}).")
        else:
            yield Remark(f"Equal budgets of {budget}, so the numbers of tokens differ.", warning=False)
    elif _spread([FLOPS.of(run) for run in setting.runs]) <= _SAME_FLOPS:
        yield Remark("Equal floating-point operations, so the numbers of tokens differ.", warning=False)
    elif _spread([(run.result.get("cost") or {}).get("seconds") for run in setting.runs]) <= _SAME_SECONDS:
        yield Remark("Equal time of training, so the numbers of tokens differ.", warning=False)
    else:
        by_tokens: dict[str, list[str]] = {}
        for one in setting.series:
            for run in one.runs.values():
                labels = by_tokens.setdefault(f"{run.result.get('tokens') or 0:,}", [])
                if one.label not in labels:
                    labels.append(one.label)
        amounts = "; ".join(f"{count} tokens: {', '.join(labels)}" for count, labels in by_tokens.items())
        yield Remark(f"Not comparable: different budgets ({amounts}).")


def _limit(run: Run) -> str | None:
    """Return the limit of the budget of a run with its unit; None without a budget."""
    budget = run.result.get("budget")
    return f"{budget['limit']:,.6g} {budget['unit']}" if budget else None


def _used(run: Run) -> float | None:
    """Return how much of its budget a run used, in the unit of the budget; None if unknown."""
    return (run.result.get("budget") or {}).get("used")


def _is_used_up(run: Run, used: float | None) -> bool:
    """Return whether a run used its budget up to one step, since a run takes whole steps."""
    limit = run.result["budget"]["limit"]
    used = used or 0.0
    per_step = used / (run.result.get("steps") or 1)
    return abs(used - limit) <= _SAME_SECONDS * limit + per_step


def _machines(setting: Setting) -> Iterable[Remark]:
    differences = differing(map(facts, setting.runs))
    machine = [key for key in ("device", "attention backend", "precision") if key in differences]
    if machine:
        yield Remark(f"Speed and memory are not comparable: runs differ in {', '.join(machine)}.")
    versions = [key.removeprefix("version of ") for key in differences if key.startswith("version of ")]
    if versions:
        yield Remark(f"Runs were made with different versions of {', '.join(versions)}.", warning=False)


def _losses(setting: Setting) -> Iterable[Remark]:
    without = [run.name for run in setting.runs if run.result["metrics"].get("val_loss") is None]
    if without:
        yield Remark(f"No finite validation loss, so left out of its means: {', '.join(without)}.")


def _seeds(setting: Setting) -> Iterable[Remark]:
    # A run that diverged has no value of the quality, so its seed does not count.
    quality = next(iter(qualities(setting)), None)
    seeds = {one.label: tuple(one.runs if quality is None else one.values(quality)) for one in setting.series}
    counts = {label: len(of_series) for label, of_series in seeds.items()}
    single = [label for label, count in counts.items() if count == 1]
    if single:
        names = "every pattern" if len(single) == len(counts) else ", ".join(single)
        yield Remark(f"One seed of {names}: no confidence interval.", warning=False)
    two = [label for label, count in counts.items() if count == 2]
    if two:
        names = "every pattern" if len(two) == len(counts) else ", ".join(two)
        yield Remark(
            f"Two seeds of {names}: an interval of one degree of freedom is too wide to be informative.",
            warning=False,
        )
    if len(set(seeds.values())) > 1:
        yield Remark(
            "Patterns have different seeds; their differences are taken over those they share.", warning=False
        )


def _spread(values: Sequence[float | None]) -> float:
    """Return the range of the values divided by the largest; infinity if one is unknown or 0."""
    known = [value for value in values if value]
    if len(known) < len(values) or not known:
        return float("inf")
    return (max(known) - min(known)) / max(known)
