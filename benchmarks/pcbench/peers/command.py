"""The command `pcbench peers`; what it does is in `pcbench.peers`."""

from pathlib import Path

import click

from pcbench.console import say
from pcbench.options import bundle_option, max_images_option, name_option, result_option
from pcrun.commands.options import PROVIDER_NAMES
from pcrun.commands.shared_options import PROVIDER_HELP, threads_option
from pcrun.commands.support import HELP_SETTINGS, debug_option

# Those of `pcbench.peers.contenders.PEERS`, which takes long to load; a test compares them.
PEER_NAMES = (
    "pcrun-full",
    "onnxruntime",
    "openvino",
    "anomalib-torch",
    "anomalib-onnx",
    "anomalib-openvino",
)


@click.command(context_settings=HELP_SETTINGS, short_help="Compare a bundle with what else one would deploy.")
@bundle_option("fp32, to compare with its peers")
@click.argument("images", nargs=-1, required=True)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    type=click.Choice(PEER_NAMES),
    help="Peer to compare with; left out: all, and who cannot take part is named; repeatable.",
)
@click.option(
    "--provider",
    type=click.Choice(PROVIDER_NAMES),
    default="cpu",
    show_default=True,
    help=PROVIDER_HELP,
)
@threads_option("Threads to use in each; 0 is one per available core.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Weights of the bundle's backbone, for anomalib: a file; left out: random ones, and times alone are "
    "compared.",
)
@click.option(
    "--rounds",
    type=click.IntRange(2),
    default=5,
    show_default=True,
    help="Rounds of each pair, in new processes.",
)
@max_images_option(50)
@name_option
@result_option
@debug_option
def peers(
    bundle: Path,
    images: tuple[str, ...],
    peers: tuple[str, ...],
    provider: str,
    threads: int,
    weights: Path | None,
    rounds: int,
    max_images: int,
    name: str,
    output: Path,
) -> int:
    """Compare a bundle with what one would deploy instead, on IMAGES: one ONNX graph, and anomalib."""
    from pcbench.peers.measure import measure_peers
    from pcbench.peers.table import described
    from pcrun.commands.tables import show

    result = measure_peers(
        bundle,
        images,
        peers=peers,
        provider=provider,
        threads=threads,
        weights=weights,
        rounds=rounds,
        max_images=max_images,
        output=output,
        name=name,
        say=say,
    )
    show(*described(result))
    return 0
