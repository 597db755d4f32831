"""`pcexport eval` as a command: one bundle, or several side by side."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pcexport.evaluation import paired
from pcexport.evaluation.outputs import print_evaluation, write_outputs
from pcexport.evaluation.report import write_comparison_report, write_evaluation_report
from pcexport.evaluation.run import Evaluation, EvaluationOptions, evaluate_bundle, to_json
from pcexport.progress import Steps
from pcrun.commands.support import print_json
from pcrun.files import make_folder, write_file


def evaluate_here(
    bundles: Sequence[Path], data: str, output: Path | None, *, as_json: bool, **options: Any
) -> int:
    """Evaluate, print, and write the report where one is asked for; gives the exit code."""
    chosen = EvaluationOptions(**options)
    if output is not None:
        make_folder(output.parent)  # minutes of scoring must not end with "cannot be made"
    if len(bundles) > 1:
        return _compare(bundles, data, output, chosen, as_json=as_json)
    steps = Steps()
    evaluation, detector, dataset = evaluate_bundle(bundles[0], data, chosen, steps)
    if as_json:
        print_json(to_json(evaluation))
    else:
        print_evaluation(evaluation)
    if output is not None:
        write_evaluation_report(output, evaluation, detector, dataset, steps)
        written = [output, *write_outputs(evaluation, output, dataset.root)]
        steps.say("written: " + ", ".join(map(str, written)))
    return 0


def _compare(
    bundles: Sequence[Path], data: str, output: Path | None, options: EvaluationOptions, *, as_json: bool
) -> int:
    evaluations: list[Evaluation] = []
    for bundle in bundles:
        # One after the other, and only the figures are kept: memory for a single bundle.
        evaluations.append(evaluate_bundle(bundle, data, options, steps := Steps())[0])
    paired.require_same_images(evaluations)
    rows = paired.differences(evaluations)
    figures = paired.to_json(evaluations, rows)
    if as_json:
        print_json(figures)
    else:
        paired.print_comparison(evaluations, rows)
    if output is not None:
        write_comparison_report(output, evaluations, rows)
        text = json.dumps(figures, indent=1, allow_nan=False) + "\n"
        write_file(output.with_suffix(".json"), text.encode())
        steps.say(f"written: {output}, {output.with_suffix('.json')}")
    return 0
