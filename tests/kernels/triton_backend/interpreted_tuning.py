"""Tuning with the real kernels under the interpreter; `test_kernel_configs` runs this in its own process."""

import os
import time

import pytest
import torch

from longspan_kernels import BlockLayout, architecture
from longspan_kernels.arguments import Arguments
from longspan_kernels.torch_backend import attention
from longspan_kernels.triton_backend import kernel_configs, launch
from longspan_kernels.triton_backend.kernel_configs import ConfigChoice, ConfigKey
from longspan_kernels.triton_backend.tuning import autotune

assert os.environ.get("TRITON_INTERPRET") == "1", "run with TRITON_INTERPRET=1"
CPU = torch.device("cpu")


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@pytest.mark.parametrize(
    "kind", [ConfigKey(64, 64), ConfigKey(64, 16), ConfigKey(128, 16), ConfigKey(256, 64)], ids=str
)
def test_every_candidate_gives_the_results_of_the_reference(monkeypatch, tmp_path, kind):
    monkeypatch.setattr(architecture, "architecture_of", lambda device: "gfx000")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "interpreter")
    monkeypatch.setenv("LONGSPAN_CACHE_DIR", str(tmp_path))
    launched, failed = [], []
    measure = autotune.measure
    run = autotune.Problem.run

    def spy(*arguments):
        times, refused = measure(*arguments, rounds=1)
        failed.extend(refused.items())
        return times, refused

    monkeypatch.setattr(autotune, "measure", spy)
    monkeypatch.setattr(
        autotune.Problem,
        "run",
        lambda self, kernel, size: launched.append((kernel, size)) or run(self, kernel, size),
    )

    def problem(kind, dtype, device):
        made = autotune.typical_problem(kind, dtype, device, tokens=96, heads=1)
        one = autotune.Problem(*(x[:1] for x in (made.q, made.k, made.v, made.grad)), made.arguments,
                               made.out[:1], made.lse[:1])  # fmt: skip
        return one

    sizes = autotune.tuned_configs(kind, torch.float16, CPU, timer=seconds, make_problem=problem)
    assert not failed
    base = kernel_configs.nearest_configs("gfx000", kind)
    for kernel in autotune.KERNELS:
        tried = autotune.candidates(kernel, kind, getattr(base, kernel))
        assert getattr(sizes, kernel) in tried
        assert {size for name, size in launched if name == kernel} == set(tried)


def test_a_backend_call_uses_what_was_tuned(monkeypatch):
    """Configurations that are given are those of the launch."""
    problem = autotune.typical_problem(ConfigKey(64, 16), torch.float16, CPU, tokens=64, heads=1)
    seen = []
    schedule = launch.schedule_for

    def spy(*arguments, **options):
        seen.append((options["q_tile"], options["k_tile"], options["by_keys"]))
        return schedule(*arguments, **options)

    monkeypatch.setattr(launch, "schedule_for", spy)
    problem.run("forward", kernel_configs.KernelConfig(16, 32, 1, 4))
    problem.run("keys", kernel_configs.KernelConfig(16, 64, 1, 4))
    assert seen == [(16, 32, False), (32, 32, False), (16, 64, True)]


@pytest.mark.parametrize("kind", kernel_configs.ONE_BLOCK_CONFIGS[9, 0], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_sizes_for_one_block_rows_give_the_results_of_the_reference(kind, causal):
    """Tiles and steps of one block, on a length that it does not divide."""
    tokens = 5 * kind.block - 3
    layout = autotune.typical_layout(kind.block, 2, tokens)
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(1, 2, tokens, 64, generator=generator).half() for _ in range(4))
    arguments = Arguments(layout, 0.125, right=0 if causal else None)
    out, lse = attention.forward(q, k, v, arguments)
    problem = autotune.Problem(q, k, v, grad, arguments, out, lse)
    expected = problem.expected()
    one_block = kernel_configs.ONE_BLOCK_CONFIGS[9, 0][kind]
    for kernel in autotune.KERNELS:
        size = getattr(one_block, kernel)
        if size is not None:
            assert autotune.largest_error(problem.run(kernel, size), expected[kernel]) < 5e-3


def test_only_plain_calls_on_one_block_rows_take_their_sizes():
    kind = ConfigKey(64, 16)
    choice = ConfigChoice(kernel_configs.TABLE[9, 0][kind], kernel_configs.ONE_BLOCK_CONFIGS[9, 0][kind])
    one_block, full = (
        kernel_configs.ONE_BLOCK_CONFIGS[9, 0][kind].forward,
        kernel_configs.TABLE[9, 0][kind].forward,
    )
    q = torch.randn(1, 1, 320, 64).half()

    def chosen(layout, **options):
        arguments = Arguments(layout, 0.125, **options)
        return launch.KernelPlan(launch.CallShape.of(q, q, q, arguments), arguments, "forward", choice).config

    # A block in each row, no two of a tile in one column; and every block.
    diagonal, dense = (BlockLayout.from_dense(x[None], 16) for x in (torch.eye(20), torch.ones(20, 20)))
    assert chosen(diagonal) == one_block
    assert chosen(dense) == full
    padding = torch.ones(1, 320, dtype=torch.bool)
    assert chosen(diagonal, key_padding_mask=padding) == full
    assert chosen(diagonal, dropout_p=0.5, dropout_seed=torch.tensor(1)) == full
    chosen_by_hand = ConfigChoice(kernel_configs.TABLE[9, 0][kind])
    arguments = Arguments(diagonal, 0.125)
    shape = launch.CallShape.of(q, q, q, arguments)
    assert launch.KernelPlan(shape, arguments, "forward", chosen_by_hand).config == full
