"""Kinds of metrics that prometheus_client does not have, or not fast enough."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from relay.contract.report import Timing
from relay.observability.log_stream import dropped_lines

_BUCKETS_S: Final = (
    *(0.000_05, 0.000_1, 0.000_2, 0.000_35, 0.000_5, 0.000_75),
    *(0.001, 0.002, 0.003_5, 0.005, 0.007_5, 0.01, 0.02, 0.035, 0.05, 0.075),
    *(0.1, 0.2, 0.35, 0.5, 0.75, 1, 2, 5, 10, 20, 30, 60),
)
"""50 microseconds to 60 seconds; narrow below 100 milliseconds, where the relay's own share of a latency lies."""


class DurationHistogram(Collector):
    """A histogram of durations in seconds, to be used by one thread only.

    The library's own takes a lock twice for each observation, which makes it six times as slow; and most of these get
    an observation for each update.
    """

    def __init__(self, name: str, help_text: str) -> None:
        self._name = name
        self._help_text = help_text
        self._counts = [0] * (len(_BUCKETS_S) + 1)
        self._sum_s = 0.0

    @property
    def timing(self) -> Timing:
        """Its contents now."""
        return Timing(list(_BUCKETS_S), list(self._counts), self._sum_s)

    def observe(self, durations_s: Sequence[float]) -> None:
        for duration_s in durations_s:
            self._counts[bisect_left(_BUCKETS_S, duration_s)] += 1
            self._sum_s += duration_s

    def collect(self) -> Iterator[HistogramMetricFamily]:
        bounds = (*(str(float(bound)) for bound in _BUCKETS_S), "+Inf")
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._help_text, buckets, self._sum_s)


class KnownGauge(Collector):
    """A gauge with one label, or none, that has a series only while its value is known.

    0 would say that there is nothing, which an alert or a scaler would believe.
    """

    def __init__(self, name: str, help_text: str, label: str | None = None) -> None:
        self._name = name
        self._help_text = help_text
        self._label_names = [] if label is None else [label]
        self._values: dict[str, float] = {}
        """By the value of the label."""

    def set(self, value: float | None, label_value: str = "") -> None:
        """Its value; None if it is not known, or not known any more."""
        if value is None:
            self._values.pop(label_value, None)
        else:
            self._values[label_value] = value

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(self._name, self._help_text, labels=self._label_names)
        for label_value, value in sorted(self._values.items()):
            family.add_metric([label_value][: len(self._label_names)], value)
        yield family


class Collected(Collector):
    """Metrics that are already collected, for `generate_latest`, which wants a registry."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


class LogMetrics(Collector):
    """What became of the log lines of this process."""

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(
            "relay_log_lines_dropped",
            "Log lines that were lost, because standard error could not be written or nobody read it.",
            value=dropped_lines(),
        )
