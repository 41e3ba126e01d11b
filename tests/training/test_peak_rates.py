"""The table of peak rates against what the hardware's units and clocks give."""

import re

import pytest
import torch

from longspan.training.performance import peak_rates
from longspan.training.performance.peak_rates import device_peak_rate, peak_rate

# Name, multiprocessors (compute units), dense 16-bit operations of each in a clock, boost clock in GHz.
HARDWARE = [
    ("NVIDIA H100 80GB HBM3", 132, 4096, 1.83),
    ("NVIDIA H100 SXM5", 132, 4096, 1.83),
    ("NVIDIA H100 SXM5 80GB", 132, 4096, 1.83),
    ("NVIDIA H100 PCIe", 114, 4096, 1.62),
    ("NVIDIA H200", 132, 4096, 1.83),
    ("NVIDIA A100-SXM4-80GB", 108, 2048, 1.41),
    ("A100-SXM4-40GB", 108, 2048, 1.41),
    ("NVIDIA A100 80GB PCIe", 108, 2048, 1.41),
    ("NVIDIA A30", 56, 2048, 1.44),
    ("NVIDIA A40", 84, 1024, 1.74),
    ("NVIDIA A10", 72, 1024, 1.695),
    ("NVIDIA RTX A6000", 84, 1024, 1.8),
    ("NVIDIA L4", 58, 1024, 2.04),
    ("NVIDIA L40", 142, 512, 2.49),
    ("NVIDIA L40S", 142, 1024, 2.52),
    ("NVIDIA GeForce RTX 3090", 82, 512, 1.695),
    ("NVIDIA GeForce RTX 4090", 128, 512, 2.52),
    ("NVIDIA GeForce RTX 5090", 170, 512, 2.407),
    ("Tesla V100-SXM2-32GB", 80, 1024, 1.53),
    ("Tesla T4", 40, 1024, 1.59),
    ("AMD Instinct MI300X", 304, 2048, 2.1),
]


@pytest.mark.parametrize(("name", "units", "operations", "clock"), HARDWARE)
def test_units_times_clock(name, units, operations, clock):
    assert peak_rate(name, "16-mixed") == pytest.approx(units * operations * clock * 1e9, rel=0.015)


def test_formats():
    h100 = "NVIDIA H100 80GB HBM3"
    assert (
        peak_rate(h100, "bf16-mixed")
        == peak_rate(h100, "bf16-true")
        == peak_rate(h100, "16-true")
        == 989.4e12
    )
    assert peak_rate(h100, "32-true") == 66.9e12
    assert peak_rate(h100, "32-true", tf32=True) == 494.7e12
    assert peak_rate("Tesla T4", "bf16-mixed") is None
    assert peak_rate("Tesla T4", "32-true", tf32=True) == 8.1e12
    assert peak_rate(h100, "64-true") is None
    assert peak_rate(h100, "transformer-engine") is None


def test_rates_of_every_device_are_in_order():
    for rates in peak_rates._RATES.values():
        assert rates.bf16 in (None, rates.fp16)
        assert rates.fp16 > (rates.tf32 or 0) >= (rates.fp32 if rates.tf32 else 0)
        # A matrix unit computes TF32 half as fast as 16 bits.
        assert rates.tf32 is None or rates.tf32 == pytest.approx(rates.fp16 / 2, rel=0.02)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA H100 SXM5 80GB MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA A100X",
        "NVIDIA H20",
        "NVIDIA A10G",
        "NVIDIA L4 ",
        "Quadro T4",
        "",
    ],
)
def test_what_is_not_listed_has_no_rate(name):
    assert peak_rate(name, "bf16-mixed") is None


def test_names_belong_to_one_device_each():
    for name, *_ in HARDWARE:
        assert len([pattern for pattern in peak_rates._RATES if re.fullmatch(pattern, name)]) == 1


def test_the_device_is_asked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A30")
    device = torch.device("cuda", 0)
    assert device_peak_rate(device, "32-true") == 10.3e12
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert device_peak_rate(device, "32-true") == 82e12
    finally:
        torch.set_float32_matmul_precision(before)
    assert device_peak_rate(torch.device("cpu"), "32-true") is None
