"""Prometheus metrics over HTTP."""

from typing import TYPE_CHECKING, Any

from pcrun.errors import BackendError, SinkError

if TYPE_CHECKING:
    from pcrun.pipeline.pipeline import Verdict

_SECONDS = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)


class MetricsSink:
    """Serves `/metrics`: verdicts, drops, stages, ages, scores and the state of each source."""

    def __init__(self, host: str, port: int) -> None:
        """Start to serve, in a thread.

        Raises:
            BackendError: prometheus-client is not installed.
            SinkError: the address cannot be used.
        """
        try:
            import prometheus_client as prometheus
        except ImportError as error:
            raise BackendError(
                f"Metrics need the package prometheus-client ({error}). Run "
                "`pip install 'patchcore-edge[metrics]'`."
            ) from error
        self.name = f"metrics {host}:{port}"
        self.lost = 0
        registry = prometheus.CollectorRegistry()
        common: dict[str, Any] = {"registry": registry, "namespace": "pcrun"}
        self._verdicts = prometheus.Counter("verdicts", "Frames by verdict.", ["source", "verdict"], **common)
        self._alarms = prometheus.Gauge("alarm", "1 while smoothed verdicts alarm.", ["source"], **common)
        self._dropped = prometheus.Counter("dropped_frames", "Frames passed over.", ["source"], **common)
        self._events = prometheus.Counter("events", "Events by name.", ["source", "event"], **common)
        self._up = prometheus.Gauge("source_up", "1 while a live source gives frames.", ["source"], **common)
        self._score = prometheus.Gauge(
            "score", "Image score of the last frame, L2 units.", ["source"], **common
        )
        self._threshold = prometheus.Gauge("threshold", "Threshold in force, L2 units.", ["source"], **common)
        self._stages = prometheus.Histogram(
            "stage_seconds", "Time per stage.", ["stage"], buckets=_SECONDS, **common
        )
        self._age = prometheus.Histogram(
            "frame_age_seconds", "Age of a frame at its verdict.", ["source"], buckets=_SECONDS, **common
        )
        try:
            self._server, self._thread = prometheus.start_http_server(port, host, registry)
        except OSError as error:
            raise SinkError(
                f"{host}:{port} cannot serve metrics ({error.strerror or error}). Choose another port."
            ) from error
        self.port = self._server.server_port

    def verdict(self, verdict: "Verdict", record: dict[str, Any]) -> None:
        """See `Sink.verdict`."""
        source = record["source"] if verdict.age_ms is not None else "files"
        self._verdicts.labels(source, record["verdict"]).inc()
        if "alarm" in record:
            self._alarms.labels(source).set(record["alarm"])
        if verdict.dropped:
            self._dropped.labels(source).inc(verdict.dropped)
        if verdict.age_ms is not None:
            self._age.labels(source).observe(verdict.age_ms / 1e3)
        if verdict.result is not None:
            self._score.labels(source).set(record["score"])
            self._threshold.labels(source).set(record["threshold"])
            for stage, milliseconds in record["timings_ms"].items():
                self._stages.labels(stage).observe(milliseconds / 1e3)

    def event(self, record: dict[str, Any]) -> None:
        """See `Sink.event`."""
        self._events.labels(record["source"], record["event"]).inc()
        state = {"connected": 1, "reconnected": 1, "lost": 0, "stopped": 0}.get(record["event"])
        if state is not None:
            self._up.labels(record["source"]).set(state)

    def close(self) -> None:
        """See `Sink.close`."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2)
