"""The scenarios of MLPerf Inference (Reddi et al., ISCA 2020), as far as one device and one bundle go.

SingleStream: a query is one image, the next comes when it is done; judged by p90. MultiStream: a query is
eight images; p99. Server: queries of one image arrive as a Poisson process; the largest rate whose p99 stays
within a bound. Offline: all images at once; throughput. MLPerf's own rules ask for more queries and time than
a first look needs; the report says how many there were.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Item = TypeVar("Item")

MULTI_STREAM_IMAGES = 8
OFFLINE_BATCH = 8
SERVER_PERCENTILE = 99
_RATE_PRECISION = 0.03
_MOST_TRIALS = 12
_LOWEST_SHARE = 1 / 32
# A queue this many bounds long will not be emptied any more.
_HOPELESS_BOUNDS = 10
# Slow arrivals take long to become many: a rate is not tried for longer than this many durations.
_LONGEST_DURATIONS = 3
_RELAXATIONS = 100


class Clock(Protocol):
    """Time in seconds; tests have one of their own."""

    def now(self) -> float:
        """Monotonic."""

    def wait_until(self, moment: float) -> None:
        """Return at that moment, or at once when it is over."""


class RealClock:
    """This machine's."""

    def now(self) -> float:
        """See `Clock.now`."""
        return time.perf_counter()

    def wait_until(self, moment: float) -> None:
        """See `Clock.wait_until`."""
        rest = moment - self.now()
        if rest > 0:
            time.sleep(rest)


@dataclass(frozen=True)
class Limits:
    """When a scenario ends: when both are reached.

    Attributes:
        duration_s: shortest time.
        queries: fewest queries.
    """

    duration_s: float
    queries: int


@dataclass(frozen=True)
class Trial:
    """One rate of the Server scenario.

    Attributes:
        rate: queries a second that were offered.
        latencies_ms: from the arrival of each query to its verdict.
        met: whether their p99 was within the bound.
        given_up: whether the queue grew so long that the rest was left out; then it was not met.
    """

    rate: float
    latencies_ms: list[float] = field(repr=False)
    met: bool
    given_up: bool


def endless(items: Sequence[Item]) -> Iterator[Item]:
    """The items again and again."""
    while True:
        yield from items


class Runner(Generic[Item]):
    """Asks for verdicts in the manner of each scenario."""

    def __init__(
        self,
        serve: Callable[[Sequence[Item]], object],
        items: Sequence[Item],
        *,
        clock: Clock | None = None,
        seed: int = 0,
    ) -> None:
        """Prepare.

        Args:
            serve: gives the verdicts of some items, together.
            items: shown in turn, again and again.
            clock: this machine's by default.
            seed: of the arrivals.
        """
        self._serve = serve
        self._items = items
        self._clock = clock or RealClock()
        self._seed = seed

    def streams(self, limits: Limits, *, images: int = 1) -> list[float]:
        """Queries of so many images, one after the other; gives their latencies in ms."""
        source = endless(self._items)
        latencies: list[float] = []
        started = self._clock.now()
        while self._clock.now() - started < limits.duration_s or len(latencies) < limits.queries:
            query = [next(source) for _ in range(images)]
            before = self._clock.now()
            self._serve(query)
            latencies.append((self._clock.now() - before) * 1e3)
        return latencies

    def offline(self, limits: Limits) -> tuple[int, float]:
        """Images in batches as fast as they go; gives their number and the seconds they took."""
        source = endless(self._items)
        images = 0
        started = self._clock.now()
        while self._clock.now() - started < limits.duration_s or images < limits.queries:
            self._serve([next(source) for _ in range(OFFLINE_BATCH)])
            images += OFFLINE_BATCH
        return images, self._clock.now() - started

    def offered(self, rate: float, bound_ms: float, limits: Limits) -> Trial:
        """Poisson arrivals at a rate, served in their order."""
        arrivals = poisson_arrivals(rate, limits, seed=self._seed)
        source = endless(self._items)
        latencies: list[float] = []
        started = self._clock.now()
        for arrival in arrivals:
            self._clock.wait_until(started + arrival)
            self._serve([next(source)])
            latencies.append((self._clock.now() - started - arrival) * 1e3)
            if latencies[-1] > _HOPELESS_BOUNDS * bound_ms:
                return Trial(rate, latencies, met=False, given_up=True)
        met = float(np.percentile(latencies, SERVER_PERCENTILE)) <= bound_ms
        return Trial(rate, latencies, met=met, given_up=False)

    def server(
        self, bound_ms: float, limits: Limits, *, highest_rate: float
    ) -> tuple[float | None, list[Trial]]:
        """The largest rate whose p99 is within a bound, to three percent, and all rates that were tried.

        Args:
            bound_ms: of the p99.
            limits: of each rate.
            highest_rate: not reachable, for example that of queries one after the other.

        Returns:
            None where even a small share of it is too much.
        """
        trials: list[Trial] = []
        low, high = 0.0, highest_rate
        lowest = highest_rate * _LOWEST_SHARE
        while len(trials) < _MOST_TRIALS and high - low > _RATE_PRECISION * high and high > lowest:
            rate = (low + high) / 2
            trials.append(self.offered(rate, bound_ms, limits))
            low, high = (rate, high) if trials[-1].met else (low, rate)
        return low or None, trials


def settled_after_s(rate: float, highest_rate: float) -> float:
    """How long Poisson arrivals must go on before a queue shows what it will be, in seconds.

    The closer the rate is to what the device can serve, the slower a queue grows to its usual length: it
    forgets its empty start with the relaxation time of a queue in heavy traffic, 2 rho / (1 - rho)^2 services
    (Abate and Whitt, "Transient behavior of regulated Brownian motion", 1987; fixed service times, load rho).
    A hundred of them hold enough busy periods: simulated with fixed service times and bounds of 5 and 10
    services, the accepted rate is then nearly always within a tenth of its limit; over one second it was
    29 to 56 % too high.

    Args:
        rate: queries a second.
        highest_rate: of queries served one after the other.
    """
    load = min(rate / highest_rate, 1 - 1e-3)
    return _RELAXATIONS * 2 * load / (1 - load) ** 2 / highest_rate


def poisson_arrivals(rate: float, limits: Limits, *, seed: int) -> npt.NDArray[np.float64]:
    """Moments in seconds, equal for equal seeds.

    So many that they last the limits' duration and are as many as asked for, unless that would take three
    times as long.

    Unit gaps are drawn and divided by the rate, so two rates meet the same bursts.
    """
    generator = np.random.default_rng(seed)
    longest = max(1.0, limits.duration_s * _LONGEST_DURATIONS * rate)
    count = max(int(np.ceil(limits.duration_s * rate)), int(min(limits.queries, longest)))
    moments: npt.NDArray[np.float64] = np.cumsum(generator.exponential(size=count)) / rate
    return moments
