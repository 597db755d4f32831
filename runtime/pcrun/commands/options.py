"""The options of `pcrun`, in groups; nothing heavy is imported here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from pcrun.commands.parameter_types import (
    AddressType,
    CameraType,
    FractionType,
    PropertyType,
    RoiType,
    WindowType,
)
from pcrun.commands.shared_options import EXACTNESS_HELP, PROVIDER_HELP, output_option, threads_option
from pcrun.commands.support import ThresholdType

IMAGES_OPTION = "--images"
PROVIDER_NAMES = ("auto", "cpu", "cuda", "tensorrt", "openvino")
PRECISION_NAMES = ("fp32", "bf16")
ENGINE_PRECISIONS = ("fp32", "fp16", "int8")
EXACTNESS_LEVELS = ("none", "image", "mask", "full")
SEARCH_CHOICES = ("auto", "quantised", "hnsw", "exact", "exact_graph")
FORMATS = ("jsonl", "csv", "table")
MAP_FORMATS = ("npy", "png")
ROTATIONS_DEG = (0, 90, 180, 270)
SCENARIOS = ("single-stream", "multi-stream", "server", "offline", "camera")

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _all(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Several options as one decorator; --help shows them in this order."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_BUNDLE_HELP = "Left out: $PCRUN_BUNDLE, or the only *.pcbundle in the current folder."

bundle_option = click.option(
    "--bundle", type=click.Path(path_type=Path), help=f"Bundle directory or zip. {_BUNDLE_HELP}"
)
bundles_option = click.option(
    "--bundle",
    "bundles",
    multiple=True,
    type=click.Path(path_type=Path),
    help=f"Bundle directory or zip; repeated: one per --source, in their order. {_BUNDLE_HELP}",
)

profile_option = click.option("--no-profile", is_flag=True, help="Ignore the device profile of `pcrun tune`.")

exactness_option = click.option(
    "--exactness",
    type=click.Choice(EXACTNESS_LEVELS),
    default="mask",
    show_default=True,
    help=EXACTNESS_HELP,
)

search_options = _all(
    click.option(
        "--search",
        type=click.Choice(SEARCH_CHOICES),
        default="auto",
        show_default=True,
        help="How near entries are found; the certified verdict is the same. auto: the device profile's, "
        "else by the size of the memory bank.",
    ),
    click.option(
        "--ef",
        type=click.IntRange(1, 65536),
        help="Search width of the HNSW index, which it asks for; left out: the device profile's, else the "
        "bundle's.",
    ),
)

engine_option = click.option(
    "--engine",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Run the embedder as this native TensorRT engine of `pcrun compile`.",
)

provider_option = click.option(
    "--provider",
    type=click.Choice(PROVIDER_NAMES),
    default="auto",
    show_default=True,
    help=PROVIDER_HELP,
)

precision_option = click.option(
    "--precision",
    type=click.Choice(PRECISION_NAMES),
    help="Arithmetic of the embedder: bf16 runs an fp32 bundle in bfloat16 (OpenVINO alone); left out: "
    "the device profile's, else the bundle's.",
)

device_options = _all(
    provider_option,
    precision_option,
    threads_option("Threads to use; 0 is the device profile's number, else one per available core."),
)

measured_images_option = click.option(
    IMAGES_OPTION,
    "images",
    multiple=True,
    metavar="PATH...",
    help="Image files, folders or quoted globs to measure with; takes several; left out: the golden samples.",
)

source_options = _all(
    click.option(
        IMAGES_OPTION,
        "images",
        multiple=True,
        metavar="PATH...",
        help="Image files, folders or quoted globs; takes several.",
    ),
    click.option("--video", type=click.Path(path_type=Path), help="Video file to score."),
    click.option("--camera", type=CameraType(), help="Local camera: its number, or /dev/videoN."),
    click.option(
        "--watch",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Folder: images that arrive from now on, each once it is complete.",
    ),
    click.option(
        "--stdin-frames",
        metavar="WxH",
        help="Raw frames of this size on standard input, 3 bytes (BGR) a pixel.",
    ),
    click.option(
        "--source",
        "sources",
        multiple=True,
        metavar="SPEC",
        help="Any source; repeatable. A camera number, rtsp://, http://, gstreamer:PIPELINE, watch:DIR, "
        "stdin:WxH, a video file, or an image, folder or glob. $NAME in an address is taken from the "
        "environment.",
    ),
)

view_options = _all(
    click.option(
        "--fps",
        type=click.FloatRange(min=0, min_open=True),
        help="Frames a second, at most: of a live source, or of a video's own time; left out: all.",
    ),
    click.option(
        "--rotate",
        type=click.Choice([str(degrees) for degrees in ROTATIONS_DEG]),
        default="0",
        show_default=True,
        help="Turn each frame clockwise, in degrees.",
    ),
    click.option(
        "--roi",
        type=RoiType(),
        help="Inspect this part of the (rotated) frame alone; regions are reported in pixels of the whole "
        "frame.",
    ),
    click.option(
        "--prop",
        "properties",
        multiple=True,
        type=PropertyType(),
        help="Property of the camera, by OpenCV's name without CAP_PROP_: EXPOSURE=-6; repeatable.",
    ),
    click.option(
        "--stall-timeout",
        "stall_timeout_s",
        type=click.FloatRange(0.1, 3600),
        default=5.0,
        show_default=True,
        metavar="S",
        help="A live source that is silent for so many seconds is opened anew.",
    ),
    click.option("--max-frames", type=click.IntRange(1), help="Stop after so many frames."),
    click.option(
        "--duration",
        "duration_s",
        type=click.FloatRange(min=0, min_open=True),
        metavar="S",
        help="Stop after so many seconds.",
    ),
)

threshold_options = _all(
    click.option(
        "--threshold",
        type=ThresholdType(),
        help="Anomalous above this image score (L2 units); left out: the bundle's.",
    ),
    click.option(
        "--pixel-threshold",
        type=ThresholdType(),
        help="Mask where the map is above this (L2 units); left out: the bundle's, moved in proportion to "
        "--threshold.",
    ),
)

verdict_options = _all(
    threshold_options,
    click.option(
        "--debounce",
        type=FractionType(),
        help="Alarm when k of the last n frames are anomalous; raw verdicts are kept.",
    ),
    click.option(
        "--drift-window",
        type=WindowType(),
        help="Compare so many verdicts at once with the scores of normal images that the bundle holds, and "
        "tell when they leave them; 0 is never; left out: 200 where the bundle holds any.",
    ),
    device_options,
    engine_option,
    exactness_option,
    search_options,
    profile_option,
)

sink_options = _all(
    click.option(
        "--format",
        "output_format",
        type=click.Choice(FORMATS),
        help="Form of the results; left out: csv or jsonl by the name of --output; without one table on a "
        "terminal, else jsonl.",
    ),
    output_option(
        "File to write the results to instead of standard output; those of a live source are appended."
    ),
    click.option(
        "--rotate-mb",
        type=click.FloatRange(min=0, min_open=True),
        metavar="MB",
        help="Rename --output to OUTPUT.1 (that to .2, ...) before it grows larger.",
    ),
    click.option(
        "--keep",
        type=click.IntRange(0, 1000),
        default=5,
        show_default=True,
        help="Renamed outputs that stay, at most.",
    ),
    click.option(
        "--save-overlays",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Save heatmaps over the images.",
    ),
    click.option("--save-maps", type=click.Path(path_type=Path), metavar="DIR", help="Save anomaly maps."),
    click.option(
        "--map-format",
        type=click.Choice(MAP_FORMATS),
        default="npy",
        show_default=True,
        help="npy: float32 in L2 units. png: 16 bits, 65535 = 4 times the pixel threshold.",
    ),
    click.option(
        "--save-video",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Save an MP4 of all frames with map, regions and verdict.",
    ),
    click.option(
        "--video-fps",
        type=click.FloatRange(min=0, min_open=True),
        default=25.0,
        show_default=True,
        help="Frames a second of that video.",
    ),
    click.option("--show", is_flag=True, help="Show frames and results in a window; q ends the run."),
    click.option(
        "--evidence",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Keep anomalous frames: original, overlay and record; the newest ones.",
    ),
    click.option(
        "--evidence-mb",
        type=click.FloatRange(min=0, min_open=True),
        default=500.0,
        show_default=True,
        metavar="MB",
        help="Megabytes of evidence, at most.",
    ),
    click.option(
        "--webhook",
        multiple=True,
        metavar="URL",
        help="POST what is not normal, and events, as JSON; repeatable. $NAME is taken from the environment.",
    ),
    click.option("--webhook-all", is_flag=True, help="POST normal verdicts too."),
    click.option(
        "--mqtt",
        multiple=True,
        metavar="URL",
        help="Publish results and events: mqtt://[USER:PASSWORD@]HOST[:PORT]/TOPIC or mqtts://...; "
        "repeatable.",
    ),
    click.option(
        "--mqtt-qos",
        type=click.IntRange(0, 2),
        default=1,
        show_default=True,
        help="Quality of service of MQTT.",
    ),
    click.option("--mqtt-retain", is_flag=True, help="Let the broker keep the last result and event."),
    click.option(
        "--metrics",
        type=AddressType(),
        help="Serve Prometheus metrics at http://HOST:PORT/metrics; HOST left out: 127.0.0.1.",
    ),
    click.option(
        "--serve",
        type=AddressType(),
        help="Serve a live page at http://HOST:PORT; HOST left out: 127.0.0.1. For any other, "
        "$PCRUN_TOKEN must hold a token of 16 characters or more.",
    ),
    click.option(
        "--fail-on-anomaly",
        is_flag=True,
        help="Exit with 1 when any frame is anomalous (with --debounce: at an alarm).",
    ),
)
