"""Least times from peaks, against sums written out."""

import dataclasses

import pytest

from bench import roofline
from bench.roofline import ACCELERATORS, Accelerator
from negclip_jax.models.clip import TextConfig
from negclip_jax.runtime import timing

DEVICE = Accelerator("X", 1e12, 1e9, 1e9, link_rate=100.0, group=4, network_rate=10.0, sources=())


def message(kind: str, size: int, devices: int, times: int = 1) -> dict:
    return {"kind": kind, "size": size, "devices": devices, "times": times, "loops": 0}


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [
        (message("all-reduce", 400, 4), 2 * 300 / 100),
        (message("all-gather", 400, 4, times=3), 3 * 300 / 100),
        (message("reduce-scatter", 100, 4), 300 / 100),
        (message("collective-permute", 100, 4), 75 / 100),
        # Two groups: each device carries a quarter of the other group's half.
        (message("all-gather", 800, 8), 600 / 100 + 400 / 4 / 10),
        (message("all-reduce", 800, 8), 2 * (600 / 100 + 400 / 4 / 10)),
        (message("all-reduce", 800, 1), 0),
    ],
)
def test_seconds_of_messages(sent, seconds):
    assert roofline.seconds([sent], DEVICE) == pytest.approx(seconds)
    assert roofline.seconds([sent, sent], DEVICE) == pytest.approx(2 * seconds)


def test_memory_traffic_written_out():
    tower = TextConfig(width=8, heads=2, mlp_width=32, layers=3)
    in_and_out = 4 * (8 + 8) + 2 * (8 + 32)  # query, key, value, output; both of the MLP
    passes, layers, tokens, bfloat16 = 3, 3, 5, 2
    activations = passes * layers * tokens * bfloat16 * in_and_out
    assert roofline.memory_traffic([(tower, 5)], trained=100) == activations + 40 * 100
    assert roofline.memory_traffic([(tower, 5)] * 2, trained=0) == 2 * activations


def test_hours_are_work_over_rate():
    assert roofline.device_hours(3600 * 1e12, DEVICE, mfu=0.5) == 2
    faster = dataclasses.replace(DEVICE, flops=2e12)
    assert roofline.device_hours(3600 * 1e12, faster, mfu=0.5) == 1


@pytest.mark.parametrize("device", ACCELERATORS, ids=lambda device: device.name)
def test_peaks_are_those_that_runs_report_against(device):
    kind = {"TPU v5e": "TPU v5e", "TPU v6e": "TPU v6", "H100 SXM": "NVIDIA H100"}[device.name]
    assert timing.peak_flops(kind, 1, "bfloat16") == pytest.approx(device.flops, rel=1e-3)
    assert all(source.startswith("https://") for source in device.sources)
