"""The peak rate of a device in floating-point operations a second, by its name and the precision.

The rates are those of the vendors for dense matrix products with sums in float32. Rates "with sparsity",
which datasheets print first, are twice as high and hold for weights with two zeros in four. A device that is
not listed has no rate, and no utilisation is reported for it. (Lightning's table has rates with sparsity for
the H200, and none of the tensor cores for GeForce.)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PeakRates:
    """Dense peak rates of one device in TFLOP/s; None: its matrix units do not have the format."""

    bf16: float | None
    fp16: float
    tf32: float | None
    fp32: float


_HOPPER_SXM = PeakRates(989.4, 989.4, 494.7, 66.9)
_HOPPER_NVL = PeakRates(835.5, 835.5, 417.5, 60.0)
_AMPERE = PeakRates(312.0, 312.0, 156.0, 19.5)
_CDNA3 = PeakRates(1307.4, 1307.4, 653.7, 163.4)

# By the whole name that torch reports: a slice of a device (MIG), the GPU of a laptop and a later model have
# similar names and other rates.
_RATES: dict[str, PeakRates] = {
    # NVIDIA HGX B200 and GB200 NVL72 datasheets, divided by the number of GPUs.
    r"NVIDIA B200": PeakRates(2250.0, 2250.0, 1125.0, 75.0),
    r"NVIDIA GB200": PeakRates(2500.0, 2500.0, 1250.0, 80.0),
    # NVIDIA H100 Tensor Core GPU Architecture whitepaper; H100, H200 and GH200 datasheets.
    r"NVIDIA H100 80GB HBM3|NVIDIA H100 SXM5( \d+GB)?": _HOPPER_SXM,
    r"NVIDIA H100 PCIe": PeakRates(756.0, 756.0, 378.0, 51.2),
    r"NVIDIA H100 NVL": _HOPPER_NVL,
    r"NVIDIA H200": _HOPPER_SXM,
    r"NVIDIA H200 NVL": _HOPPER_NVL,
    r"NVIDIA GH200 (480GB|144G HBM3e)": _HOPPER_SXM,
    # NVIDIA A100, A30, A40 and A10 datasheets; NVIDIA Ampere GA102 GPU Architecture whitepaper.
    r"(NVIDIA )?A100-(SXM4?|PCIE)-(40|80)GB|NVIDIA A100 80GB PCIe": _AMPERE,
    r"NVIDIA A30": PeakRates(165.0, 165.0, 82.0, 10.3),
    r"NVIDIA A40": PeakRates(149.7, 149.7, 74.8, 37.4),
    r"NVIDIA A10": PeakRates(125.0, 125.0, 62.5, 31.2),
    r"NVIDIA RTX A6000": PeakRates(154.8, 154.8, 77.4, 38.7),
    r"NVIDIA GeForce RTX 3090": PeakRates(71.0, 71.0, 35.6, 35.6),
    # NVIDIA L4, L40 and L40S datasheets; NVIDIA Ada GPU Architecture and RTX Blackwell GPU Architecture
    # whitepapers.
    r"NVIDIA L4": PeakRates(121.0, 121.0, 60.0, 30.3),
    r"NVIDIA L40": PeakRates(181.05, 181.05, 90.5, 90.5),
    r"NVIDIA L40S": PeakRates(362.05, 362.05, 183.0, 91.6),
    r"NVIDIA GeForce RTX 4090": PeakRates(165.2, 165.2, 82.6, 82.6),
    r"NVIDIA GeForce RTX 5090": PeakRates(209.5, 209.5, 104.8, 104.8),
    # NVIDIA V100, V100S and T4 datasheets. Their tensor cores know neither bfloat16 nor TF32.
    r"(Tesla|NVIDIA) V100-SXM[23]-(16|32)GB": PeakRates(None, 125.0, None, 15.7),
    r"(Tesla|NVIDIA) V100-PCIE-(16|32)GB": PeakRates(None, 112.0, None, 14.0),
    r"(Tesla|NVIDIA) V100S-PCIE-32GB": PeakRates(None, 130.0, None, 16.4),
    r"(Tesla|NVIDIA) T4": PeakRates(None, 65.0, None, 8.1),
    # AMD Instinct MI300X and MI325X datasheets.
    r"AMD Instinct MI300X( OAM)?": _CDNA3,
    r"AMD Instinct MI325X( OAM)?": _CDNA3,
}

_FORMATS = {"bf16-mixed": "bf16", "bf16-true": "bf16", "16-mixed": "fp16", "16-true": "fp16"}


def peak_rate(device_name: str, precision: str, tf32: bool = False) -> int | None:
    """Return the dense peak of a device in floating-point operations a second, or None if it is not known.

    Args:
        device_name: as `torch.cuda.get_device_name` gives it.
        precision: of the arithmetic, as Lightning names it.
        tf32: whether products of float32 may be computed in TF32.

    """
    rates = next((rates for name, rates in _RATES.items() if re.fullmatch(name, device_name)), None)
    if rates is None:
        return None
    if precision in ("32-true", "32"):
        teraflops = rates.tf32 if tf32 and rates.tf32 is not None else rates.fp32
    elif precision in _FORMATS:
        teraflops = getattr(rates, _FORMATS[precision])
    else:
        return None
    return None if teraflops is None else round(teraflops * 1e12)


def device_peak_rate(device: torch.device, precision: str) -> int | None:
    """Return the peak of a device for torch's present settings; None: it is no CUDA device or not listed."""
    if device.type != "cuda":
        return None
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return peak_rate(torch.cuda.get_device_name(device), precision, tf32)
