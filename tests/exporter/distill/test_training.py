"""The training loop: it learns, stops and goes on without a trace, and tells what it does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pcexport.distill import train
from pcexport.distill.loss import imitation_loss, joined
from pcexport.distill.targets import Targets, normalised, prepare_targets
from pcexport.distill.train import Trainer, TrainingSpec, learning_rate_share
from pcexport.errors import BuildError
from pcexport.progress import Steps
from tests.exporter.distill.students import FACTS, TINY, tiny_teacher

QUIET = Steps(quiet=True)
SPEC = TrainingSpec(steps=30, batch=4, learning_rate=5e-3, seed=0, held_out=4)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Targets:
    return prepare_targets(tmp_path_factory.mktemp("targets"), tiny_teacher(), dict(FACTS), None, QUIET)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_LOG_STEPS", 5)
    monkeypatch.setattr(train, "_CHECKPOINT_STEPS", 10)
    monkeypatch.setattr(train, "_VALIDATE_STEPS", 15)


def trainer(targets: Targets, work: Path, spec: TrainingSpec = SPEC) -> Trainer:
    work.mkdir(exist_ok=True)
    return Trainer(TINY, tiny_teacher(), targets, spec, work)


def test_the_loss_falls_and_is_logged_by_map(targets: Targets, tmp_path: Path) -> None:
    trainer(targets, tmp_path, replace(SPEC, steps=80)).run(QUIET)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 16 and losses[-1] < 0.9 * losses[0]
    assert {"layer2_mse", "layer2_within", "layer3_mse", "layer3_within"} <= lines[0].keys()
    assert [line["step"] for line in lines if "explained" in line] == [15, 30, 45, 60, 75]


def test_the_students_own_contrast_is_that_of_its_patches_on_the_pictures_held_out(
    targets: Targets, tmp_path: Path
) -> None:
    trained = trainer(targets, tmp_path).run(QUIET)
    images = normalised(torch.from_numpy(targets.pictures[-SPEC.held_out :].copy()), tiny_teacher())
    with torch.inference_mode():
        maps = [torch.nn.functional.avg_pool2d(own, 3, 1, 1) for own in trained.student(images)]
    stds = torch.cat([own.std((0, 2, 3), correction=0) for own in maps])
    assert torch.allclose(trained.own_std, stds, rtol=1e-3, atol=1e-5)


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(
    targets: Targets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trainer(targets, tmp_path / "whole").run(QUIET).student.state_dict()

    taken = Trainer._one_step

    def stop_at_17(self: Trainer) -> dict[str, float]:
        if self._step == 17:
            raise KeyboardInterrupt
        return taken(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_one_step", stop_at_17)
        with pytest.raises(KeyboardInterrupt):
            trainer(targets, tmp_path / "parts").run(QUIET)
    resumed = trainer(targets, tmp_path / "parts")
    assert resumed._step == 10
    found = resumed.run(QUIET).student.state_dict()
    assert all(torch.equal(found[name], value) for name, value in whole.items())


def test_a_checkpoint_of_another_training_is_refused(targets: Targets, tmp_path: Path) -> None:
    trainer(targets, tmp_path).run(QUIET)
    with pytest.raises(BuildError, match="checkpoint of another training"):
        trainer(targets, tmp_path, replace(SPEC, steps=31))


def test_too_few_pictures_are_refused(targets: Targets, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="12 pictures are too few for 256 held-out ones"):
        trainer(targets, tmp_path, replace(SPEC, batch=16, held_out=256))


def test_a_loss_that_is_not_finite_stops_the_training(targets: Targets, tmp_path: Path) -> None:
    broken = np.array(targets.shallow)
    started = trainer(Targets(targets.pictures, broken, targets.deep), tmp_path)
    broken[...] = np.nan
    with pytest.raises(BuildError, match="not finite at step 0"):
        started.run(QUIET)


def test_every_picture_but_the_held_out_ones_is_seen_once_an_epoch(targets: Targets, tmp_path: Path) -> None:
    started = trainer(targets, tmp_path)
    epochs = [np.concatenate([started._rows(2 * e), started._rows(2 * e + 1)]) for e in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(8))] * 2
    assert not np.array_equal(*epochs)


def test_the_learning_rate_rises_and_falls() -> None:
    shares = [learning_rate_share(step, 1000) for step in range(1000)]
    assert shares[0] == pytest.approx(0.05) and max(shares) == pytest.approx(1) and shares[-1] < 0.011
    assert np.argmax(shares) in (19, 20)
    assert (np.diff(shares[20:]) <= 0).all()


def test_the_within_loss_ignores_a_shift_and_counts_relative_to_contrast() -> None:
    teacher = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    plain, within = imitation_loss(teacher + 0.5, teacher)
    assert float(plain) == pytest.approx(0.25) and float(within) == pytest.approx(0, abs=1e-10)
    error = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.01
    faint = imitation_loss(0.1 * teacher + error, 0.1 * teacher)
    strong = imitation_loss(teacher + error, teacher)
    assert float(faint[0]) == pytest.approx(float(strong[0]), rel=1e-3)
    assert float(faint[1]) > 5 * float(strong[1])


def test_every_channel_counts_the_same_in_the_joined_loss() -> None:
    one, two = (torch.tensor(1.0), torch.tensor(3.0)), (torch.tensor(5.0), torch.tensor(7.0))
    assert float(joined(one, two, (128, 256))) == pytest.approx((128 * 2 + 256 * 6) / 384)
