"""What a person sees while a step runs and nobody knows how much is left."""

import pytest

from pcexport import progress
from pcexport.progress import Steps


@pytest.mark.parametrize("interval_s, told", [(0.0, 2), (3600.0, 0)])
def test_a_step_of_unknown_length_says_now_and_then_how_it_goes(
    interval_s: float, told: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_PLAIN_INTERVAL_S", interval_s)
    with Steps().step("tune") as step:
        for number in (1, 2):
            step.tell(f"{number} settings measured")
    assert capsys.readouterr().err.count("settings measured") == told
