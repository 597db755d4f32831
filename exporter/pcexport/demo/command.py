"""`pcexport demo`: part images, a bundle and verdicts, from nothing."""

import sys
from pathlib import Path

from pcexport.build import build_bundle
from pcexport.config import load_config
from pcexport.demo.parts import generate_parts
from pcexport.errors import BuildError
from pcexport.progress import Steps
from pcexport.summary import print_summary
from pcrun.cli import main as pcrun

# Shipped with the package: neither torch nor a download is needed.
BACKBONE = "edge-s"


def run_demo(out: Path, *, backbone: str = BACKBONE) -> int:
    """Write images, bundle and overlays below `out`; returns an exit code.

    Args:
        out: folder, made where there is none; images that are in it are used again.
        backbone: what the bundle is built with.

    Raises:
        BuildError: `out` holds something else already.
    """
    parts, bundle, overlays = out / "parts", out / "parts.pcbundle", out / "overlays"
    if out.exists() and not out.is_dir():
        raise BuildError(f"{out} is a file. Expected a folder to write to; choose another --output.")
    if (parts / "train" / "good").is_dir():
        print(f"using the part images that are in {parts}", file=sys.stderr)
    else:
        print(f"making part images in {parts}", file=sys.stderr)
        generate_parts(parts)
    config = load_config(None, {"backbone": backbone})
    print_summary(build_bundle(str(parts), bundle, config, Steps(), force=True))
    test = [str(folder) for folder in sorted((parts / "test").iterdir())]
    code = pcrun(
        ["--bundle", str(bundle), "--images", *test, "--save-overlays", str(overlays), "--format", "table"]
    )
    print(
        f"\nimages    {parts}\nbundle    {bundle}\nreport    {bundle / 'report.html'}\noverlays  {overlays}"
    )
    return code
