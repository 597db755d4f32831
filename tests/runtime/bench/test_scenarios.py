"""Scenarios on a clock of their own: known service times give known latencies."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy.stats import kstest

from pcrun.bench.scenarios import Limits, Runner, poisson_arrivals, settled_after_s


class FakeClock:
    """Time that goes on only when somebody waits or works."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def wait_until(self, moment: float) -> None:
        self.time = max(self.time, moment)


class Device:
    """Takes a known time for each image, and counts them."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.clock = FakeClock()
        self.served: list[int] = []
        self._seconds = seconds

    def serve(self, items: Sequence[int]) -> None:
        self.clock.time += sum(self._seconds(len(self.served) + n) for n in range(len(items)))
        self.served += items

    def runner(self, items: Sequence[int] = (0, 1, 2), *, seed: int = 0) -> "Runner[int]":
        return Runner(self.serve, items, clock=self.clock, seed=seed)


def test_single_stream_is_one_image_after_the_other() -> None:
    device = Device(lambda n: 0.010 if n % 2 else 0.030)
    latencies = device.runner().streams(Limits(1.0, 10))
    assert latencies == pytest.approx([30, 10] * 25)
    assert device.served[:7] == [0, 1, 2, 0, 1, 2, 0]


def test_both_limits_must_be_reached() -> None:
    assert len(Device(lambda n: 0.01).runner().streams(Limits(0.0, 25))) == 25
    assert len(Device(lambda n: 0.01).runner().streams(Limits(1.0, 5))) in (100, 101)


def test_multi_stream_is_as_slow_as_all_of_its_images() -> None:
    device = Device(lambda n: 0.002)
    latencies = device.runner().streams(Limits(0.0, 4), images=8)
    assert latencies == pytest.approx([16] * 4) and len(device.served) == 32


def test_offline_is_throughput() -> None:
    images, seconds = Device(lambda n: 0.004).runner().offline(Limits(2.0, 100))
    assert images / seconds == pytest.approx(250)


def test_arrivals_are_a_poisson_process() -> None:
    moments = poisson_arrivals(40.0, Limits(250.0, 1), seed=7)
    assert len(moments) == 10_000
    gaps = np.diff(moments, prepend=0)
    assert kstest(gaps, "expon", args=(0, 1 / 40)).pvalue > 0.001
    # Counts per second: variance and mean of a Poisson distribution are equal.
    counts = np.bincount(moments.astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.3)


def test_arrivals_repeat_and_two_rates_meet_the_same_bursts() -> None:
    limits = Limits(10.0, 1)
    np.testing.assert_array_equal(*(poisson_arrivals(30.0, limits, seed=1) for _ in range(2)))
    slow, fast = poisson_arrivals(30.0, limits, seed=1), poisson_arrivals(60.0, limits, seed=1)
    np.testing.assert_allclose(slow, 2 * fast[: len(slow)])
    assert (poisson_arrivals(30.0, limits, seed=2) != slow).all()


def test_slow_arrivals_do_not_take_for_ever() -> None:
    moments = poisson_arrivals(0.5, Limits(10.0, 1000), seed=0)
    assert len(moments) == 15


def test_a_query_waits_for_those_before_it() -> None:
    """Lindley (1952): a wait is the one before it, plus its service, less the time between the arrivals."""
    device = Device(lambda n: 0.02)
    limits = Limits(20.0, 1)
    trial = device.runner(seed=4).offered(40.0, 1e9, limits)
    gaps = np.diff(poisson_arrivals(40.0, limits, seed=4))
    wait, expected = 0.0, [20.0]
    for gap in gaps:
        wait = max(0.0, wait + 0.02 - gap)
        expected.append((wait + 0.02) * 1e3)
    assert trial.latencies_ms == pytest.approx(expected)


def test_the_largest_rate_that_meets_the_bound() -> None:
    device = Device(lambda n: 0.01)
    limits = Limits(60.0, 1)
    rate, trials = device.runner().server(50.0, limits, highest_rate=100.0)
    assert rate is not None

    def p99(offered: float) -> float:
        trial = Device(lambda n: 0.01).runner().offered(offered, 50.0, limits)
        return float(np.percentile(trial.latencies_ms, 99))

    assert p99(rate) <= 50 < p99(rate * 1.06)
    assert [trial.met for trial in trials].count(True) >= 1
    # With fixed service times more than half of the capacity, and never all of it.
    assert 50 < rate < 95


@pytest.mark.parametrize("bound_ms", [50.0, 100.0])
def test_a_rate_near_the_limit_is_doubted_where_it_was_measured_too_shortly(bound_ms: float) -> None:
    def accepted(duration_s: float) -> float:
        rate, _ = Device(lambda n: 0.01).runner().server(bound_ms, Limits(duration_s, 1), highest_rate=100.0)
        assert rate is not None
        return rate

    right = accepted(1000.0)
    short, long = accepted(1.0), accepted(100.0)
    assert short > 1.25 * right and settled_after_s(short, 100.0) > 1.0
    assert long == pytest.approx(right, rel=0.1) and settled_after_s(long, 100.0) < 100.0


def test_the_nearer_the_limit_the_longer_a_queue_takes() -> None:
    times = [settled_after_s(rate, 100.0) for rate in (50.0, 80.0, 95.0, 99.0, 100.0, 200.0)]
    assert times[0] == pytest.approx(4.0) and times == sorted(times) and np.isfinite(times).all()


def test_a_bound_below_the_service_time_has_no_rate() -> None:
    rate, trials = Device(lambda n: 0.01).runner().server(5.0, Limits(5.0, 1), highest_rate=100.0)
    assert rate is None and not any(trial.met for trial in trials) and len(trials) <= 12


def test_a_queue_that_only_grows_is_given_up() -> None:
    device = Device(lambda n: 0.1)
    trial = device.runner().offered(100.0, 20.0, Limits(60.0, 1))
    assert trial.given_up and not trial.met and len(trial.latencies_ms) < 10
