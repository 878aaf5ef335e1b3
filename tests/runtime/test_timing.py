"""Windows of time with a clock that the test moves."""

import pytest

from negclip_jax.runtime.timing import Chrono, peak_flops


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def chrono(clock) -> Chrono:
    chrono = Chrono(pairs_per_step=32, clock=clock)
    clock.now += 1000.0  # compiling; does not count
    chrono.begin(20)
    return chrono


def test_a_window_counts_steps_and_waiting(chrono, clock):
    for _ in range(5):
        with chrono.waiting():
            clock.now += 0.5
        clock.now += 1.5
    timing = chrono.window(25, total_steps=125)
    assert timing == pytest.approx(
        {
            "pairs_per_second": 16.0,
            "data_wait_share": 0.25,
            "seconds_per_step": 2.0,
            "eta_seconds": 200.0,
            "teraflops_per_second": 0.0,
        }
    )


def test_pauses_do_not_count_even_when_they_raise(chrono, clock):
    clock.now += 4.0
    with pytest.raises(RuntimeError), chrono.pause():
        clock.now += 50.0
        raise RuntimeError
    assert chrono.window(22, total_steps=100)["seconds_per_step"] == pytest.approx(2.0)


def test_each_window_starts_anew(chrono, clock):
    with chrono.waiting():
        clock.now += 8.0
    chrono.window(24, total_steps=100)
    clock.now += 1.0
    timing = chrono.window(25, total_steps=100)
    assert timing["data_wait_share"] == 0.0
    assert timing["pairs_per_second"] == pytest.approx(32.0)


def test_a_window_without_steps_is_empty(chrono, clock):
    clock.now += 1.0
    assert chrono.window(20, total_steps=100) == {}


def test_the_rate_of_the_estimate_is_smoothed(chrono, clock):
    clock.now += 1.0
    chrono.window(21, total_steps=100)  # 32 pairs a second
    clock.now += 0.1
    timing = chrono.window(22, total_steps=100)  # 320 pairs a second, for once
    assert timing["eta_seconds"] == pytest.approx(78 * 32 / (0.7 * 32 + 0.3 * 320))


def test_operations_count_in_the_window_of_their_step(clock):
    chrono = Chrono(pairs_per_step=32, peak_flops=4e12, clock=clock)
    chrono.begin(0)
    for step in (1, 2, 3):  # the third has been started when the window of two is read
        chrono.work(step, 3e12)
    clock.now += 3.0
    timing = chrono.window(2, total_steps=3)
    assert timing["teraflops_per_second"] == pytest.approx(2.0)
    assert timing["mfu"] == pytest.approx(0.5)
    clock.now += 1.0
    assert chrono.window(3, total_steps=3)["teraflops_per_second"] == pytest.approx(3.0)


def test_peaks_of_known_devices():
    assert peak_flops("TPU v5 lite", 8, "bfloat16") == 8 * 197e12
    assert peak_flops("TPU v5p", 1, "bfloat16") == 459e12
    assert peak_flops("NVIDIA H100 80GB HBM3", 1, "bfloat16") == 989e12
    assert peak_flops("NVIDIA H100 80GB HBM3", 1, "float32") is None
    assert peak_flops("cpu", 1, "bfloat16") is None
