"""`pcexport demo`: part images, a bundle and verdicts, from nothing."""

import os
import sys
from pathlib import Path

from pcexport.build import build_bundle
from pcexport.config import load_config
from pcexport.demo_parts import generate_parts
from pcexport.errors import BuildError
from pcexport.progress import Steps
from pcexport.summary import print_summary
from pcrun.cli import main as pcrun

WEIGHTS_VARIABLE = "PCEDGE_WEIGHTS"
_BACKBONE = "resnet18"


def run_demo(out: Path) -> int:
    """Write images, bundle and overlays below `out`; returns an exit code.

    Raises:
        BuildError: `out` holds something else already.
    """
    parts, bundle, overlays = out / "parts", out / "parts.pcbundle", out / "overlays"
    if out.exists() and not out.is_dir():
        raise BuildError(f"{out} is a file. Expected a folder to write to; choose another --out.")
    if (parts / "train" / "good").is_dir():
        print(f"using the part images that are in {parts}", file=sys.stderr)
    else:
        print(f"making part images in {parts}", file=sys.stderr)
        generate_parts(parts)
    weights = choose_weights()
    steps = Steps()
    summary = build_bundle(str(parts), bundle, load_config(None, {"weights": weights}), steps, force=True)
    print_summary(summary)
    test = [str(folder) for folder in sorted((parts / "test").iterdir())]
    code = pcrun(
        ["--bundle", str(bundle), "--images", *test, "--save-overlays", str(overlays), "--format", "table"]
    )
    print(
        f"\nimages    {parts}\nbundle    {bundle}\nreport    {bundle / 'report.html'}\noverlays  {overlays}"
    )
    if weights == "untrained":
        print(
            "These verdicts come from untrained weights. "
            f"For real ones: {WEIGHTS_VARIABLE}=resnet18.pth make demo"
        )
    return code


def choose_weights() -> str:
    """$PCEDGE_WEIGHTS, else torchvision's download when it works, else "untrained", said aloud."""
    given = os.environ.get(WEIGHTS_VARIABLE)
    if given:
        if not Path(given).is_file():
            raise BuildError(f"${WEIGHTS_VARIABLE} names {given}, which is not a file. Correct or unset it.")
        return given
    from pcexport.backbones.loader import load_backbone
    from pcexport.backbones.registry import find_backbone

    try:
        load_backbone(find_backbone(_BACKBONE), weights="default", image_hw=(64, 64), seed=0)
    except BuildError:
        print(
            f"{_BACKBONE}'s ImageNet weights cannot be downloaded here, so the demo goes on with UNTRAINED "
            f"weights, for demonstration only; set {WEIGHTS_VARIABLE} to a weights file for real verdicts.",
            file=sys.stderr,
        )
        return "untrained"
    return "default"
