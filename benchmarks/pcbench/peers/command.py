"""The command `pcbench peers`; what it does is in `pcbench.peers`."""

from pathlib import Path

import click

from pcbench.console import say
from pcrun.commands import options as cli_options
from pcrun.commands.support import HELP_SETTINGS

# Those of `pcbench.peers.contenders.PEERS`, which takes long to load; a test compares them.
PEER_NAMES = (
    "pcrun-full",
    "onnxruntime",
    "openvino",
    "anomalib-torch",
    "anomalib-onnx",
    "anomalib-openvino",
)


@click.command(context_settings=HELP_SETTINGS)
@click.option("--bundle", required=True, type=click.Path(path_type=Path), help="Bundle to compare, fp32.")
@click.argument("images", nargs=-1, required=True)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    type=click.Choice(PEER_NAMES),
    help="Whom to compare with; repeatable; left out, all. Who cannot take part is named.",
)
@click.option(
    "--provider",
    type=click.Choice(cli_options.PROVIDER_NAMES),
    default="cpu",
    show_default=True,
    help="As in pcrun, for pcrun itself.",
)
@click.option(
    "--threads", type=click.IntRange(0, 1024), default=0, help="Of each; 0 is one per available core."
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="The bundle's weights file, for anomalib; left out, random ones: times alone are compared.",
)
@click.option(
    "--rounds", type=click.IntRange(2), default=5, show_default=True, help="Of each pair, in new processes."
)
@click.option("--max-images", type=click.IntRange(6), default=50, show_default=True, help="Images used.")
@click.option("--name", required=True, help="Title in reports.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Result file (JSON).")
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
    """A bundle beside what one would deploy instead, on IMAGES: one ONNX graph, and anomalib."""
    from pcbench.peers.measure import measure_peers
    from pcbench.peers.table import table

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
    print(table(result))
    return 0
