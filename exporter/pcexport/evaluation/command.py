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
        print(json.dumps(to_json(evaluation), indent=1, allow_nan=False))
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
    text = json.dumps(paired.to_json(evaluations, rows), indent=1, allow_nan=False)
    if as_json:
        print(text)
    else:
        paired.print_comparison(evaluations, rows)
    if output is not None:
        write_comparison_report(output, evaluations, rows)
        write_file(output.with_suffix(".json"), (text + "\n").encode())
        steps.say(f"written: {output}, {output.with_suffix('.json')}")
    return 0
