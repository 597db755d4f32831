"""`pcbench`: measurements anybody can repeat. `--help` and `--version` load nothing heavy."""

import sys
from pathlib import Path

import click

from pcrun._version import __version__
from pcrun.cli_support import HELP_SETTINGS, debug_option, run_command

_RESULTS = Path("benchmarks/results")


@click.group(context_settings=HELP_SETTINGS)
@click.version_option(__version__, prog_name="pcbench")
@debug_option
def cli() -> None:
    """Measure builds and stages, and put the figures into the README."""


@cli.command(context_settings={**HELP_SETTINGS, "ignore_unknown_options": True})
@click.argument("data")
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
@click.option("--name", required=True, help="Title in reports.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Result file (JSON).")
def build(data: str, flags: tuple[str, ...], name: str, output: Path) -> int:
    """Time a whole `pcexport build DATA`; FLAGS after `--` are passed on to it."""
    from pcbench.build import measure_build

    result = measure_build(data, list(flags), output, name)
    print(f"{output}: {result['wall_s']:.1f} s, peak memory {result['peak_rss_mb']} MB")
    return 0


@cli.command(context_settings=HELP_SETTINGS)
@click.option("--bundle", required=True, type=click.Path(path_type=Path), help="Bundle to run.")
@click.argument("images", nargs=-1, required=True)
@click.option("--provider", default="auto", show_default=True, help="As in pcrun.")
@click.option("--threads", type=click.IntRange(0), default=0, help="Threads; 0 is one per available core.")
@click.option("--max-images", type=click.IntRange(6), default=200, show_default=True, help="Images used.")
@click.option("--name", required=True, help="Title in reports.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Result file (JSON).")
def stages(
    bundle: Path,
    images: tuple[str, ...],
    provider: str,
    threads: int,
    max_images: int,
    name: str,
    output: Path,
) -> int:
    """Milliseconds per stage on IMAGES, certified and exact search in turn."""
    from pcbench.stages import LEVELS, measure_stages

    result = measure_stages(
        bundle,
        list(images),
        provider=provider,
        threads=threads,
        max_images=max_images,
        output=output,
        name=name,
    )
    for level in LEVELS:
        listed = "  ".join(
            f"{key.removesuffix('_ms')} {value}" for key, value in result["median_ms"][level].items()
        )
        print(f"{level:<6} {listed}")
    return 0


@cli.command(context_settings=HELP_SETTINGS)
@click.option("--readme", type=click.Path(path_type=Path), default=Path("README.md"), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=_RESULTS, show_default=True)
@click.option("--check", is_flag=True, help="Only compare; exit with 1 when the README is out of date.")
def readme(readme: Path, results: Path, check: bool) -> int:
    """Write the figures of the result files into the README."""
    from pcbench.readme import update

    up_to_date = update(readme, results, check=check)
    print(f"{readme}: {'up to date' if up_to_date else 'out of date' if check else 'updated'}")
    return 1 if check and not up_to_date else 0


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script."""
    return run_command(cli, "pcbench", argv)


if __name__ == "__main__":
    sys.exit(main())
