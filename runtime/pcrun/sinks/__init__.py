"""Where results go. Each sink is one small class behind one interface; `SinkSet` keeps them apart."""

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pcrun.pipeline.pipeline import Verdict


class Sink(Protocol):
    """Takes verdicts and events. Called from one thread; what takes long must be done in another.

    Attributes:
        name: for people, for example "output results.jsonl" or "mqtt broker:1883"; no password in it.
        lost: records that could not be delivered and never will be.
    """

    name: str
    lost: int

    def verdict(self, verdict: "Verdict", record: dict[str, Any]) -> None:
        """One frame is done; `record` is the one of `pcrun.sinks.record.result_record`.

        Raises:
            SinkError: it could not be delivered, now at least. The sink goes on with the next one.
        """

    def event(self, record: dict[str, Any]) -> None:
        """Something happened; `record` is the one of `event_record`.

        Raises:
            SinkError: as for `verdict`.
        """

    def close(self) -> None:
        """Hand on what waits, within a few seconds.

        Raises:
            SinkError: something was lost.
        """
