"""Which settings may differ between two runs."""

import pytest

from longspan.records.settings import (
    EXCEPT_ON_RESUME,
    MAY_CHANGE_ON_RESUME,
    NOT_PART_OF_A_JOBS_IDENTITY,
    NOT_PART_OF_A_MEAN,
    NOT_PART_OF_A_SERIES,
    SEED_KEYS,
    is_within,
)

SAME_JOB = {
    "sweep", "output_dir", "logger", "data.pin_memory",
    "callbacks.best", "callbacks.last", "callbacks.throughput", "callbacks.progress",
}  # fmt: skip


def test_the_lists_are_those_of_the_table():
    assert set(NOT_PART_OF_A_JOBS_IDENTITY) == SAME_JOB
    assert set(NOT_PART_OF_A_SERIES) == {*SAME_JOB, "ckpt_path"}
    assert set(NOT_PART_OF_A_MEAN) == {*SAME_JOB, "seed"}
    # An error prints these in this order.
    assert MAY_CHANGE_ON_RESUME == (
        "trainer", "budget", "callbacks", "logger", "output_dir", "sweep", "ckpt_path", "compile",
        "attention_backend", "loss_chunk", "data.pin_memory",
    )  # fmt: skip


def test_what_makes_no_other_job_may_change_on_resume_and_within_a_series():
    for key in NOT_PART_OF_A_JOBS_IDENTITY:
        assert is_within(key, MAY_CHANGE_ON_RESUME)
        assert key in NOT_PART_OF_A_SERIES
        assert key in NOT_PART_OF_A_MEAN


def test_exceptions_lie_within_what_may_change():
    assert all(is_within(key, MAY_CHANGE_ON_RESUME) for key in EXCEPT_ON_RESUME)
    assert not any(is_within(key, MAY_CHANGE_ON_RESUME) for key in SEED_KEYS)


@pytest.mark.parametrize(
    ("key", "within"),
    [("logger", True), ("logger.csv.save_dir", True), ("loggers", False), ("data", False), ("seed", False)],
)
def test_a_key_stands_for_everything_below_it(key, within):
    assert is_within(key, ("logger", "data.pin_memory")) == within
