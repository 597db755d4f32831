"""The sinks that the options of a run ask for."""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pcrun.sinks import Sink
from pcrun.sinks.moving import VideoSink, WindowSink
from pcrun.sinks.pictures import PictureSink
from pcrun.sinks.progress import ProgressSink
from pcrun.sinks.text import FileSink, StreamSink, make_formatter

if TYPE_CHECKING:
    from pcrun.commands.run import SinkOptions
    from pcrun.pipeline.pipeline import Line
    from pcrun.pipeline.thresholds import ThresholdChanges


def open_sinks(
    options: "SinkOptions",
    lines: "Sequence[Line]",
    *,
    live: bool,
    thresholds: "ThresholdChanges",
    say: Callable[[str], None],
    stop: Callable[[], None],
) -> list[Sink]:
    """Open what was asked for.

    Args:
        options: of the run.
        lines: that will be shown.
        live: whether the run has no end: files are then appended to.
        thresholds: take what a person changes on a page.
        say: tells a person where something can be seen.
        stop: ends the run as a person wants it.

    Raises:
        SinkError: one of them cannot be opened.
    """
    sinks: list[Sink] = [_text_sink(options, live=live)]
    if options.output is not None and not live:
        sinks.append(ProgressSink(say))
    if options.save_overlays or options.save_maps:
        sinks.append(PictureSink(options.save_overlays, options.save_maps, options.map_format))
    if options.save_video is not None:
        sinks.append(VideoSink(options.save_video, fps=options.video_fps))
    if options.show:
        sinks.append(WindowSink(stop))
    # Imported where they are asked for: libraries of the network would lengthen every start.
    if options.evidence is not None:
        from pcrun.sinks.evidence import EvidenceSink

        sinks.append(EvidenceSink(options.evidence, max_bytes=round(options.evidence_mb * 1e6)))
    if options.webhook:
        from pcrun.sinks.webhook import WebhookSink

        sinks += [WebhookSink(url, everything=options.webhook_all) for url in options.webhook]
    if options.mqtt:
        from pcrun.sinks.mqtt import MqttSink

        sinks += [
            MqttSink(address, qos=options.mqtt_qos, retain=options.mqtt_retain) for address in options.mqtt
        ]
    if options.metrics is not None:
        from pcrun.sinks.metrics import MetricsSink

        sinks.append(MetricsSink(*options.metrics))
    if options.serve is not None:
        from pcrun.page.sink import PageSink

        sinks.append(PageSink(*options.serve, lines=lines, thresholds=thresholds, say=say))
    return sinks


def _text_sink(options: "SinkOptions", *, live: bool) -> Sink:
    if options.output is None:
        terminal = sys.stdout.isatty()
        name = options.output_format or ("table" if terminal else "jsonl")
        return StreamSink(sys.stdout, make_formatter(name, terminal=terminal))
    by_suffix = "csv" if options.output.suffix == ".csv" else "jsonl"
    return FileSink(
        options.output,
        make_formatter(options.output_format or by_suffix, terminal=False),
        append=live,
        rotate_bytes=round(options.rotate_mb * 1e6) if options.rotate_mb else None,
        keep=options.keep,
    )
