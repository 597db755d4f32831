"""The training loop of `pcexport distill`: checkpoints, resumes, logs."""

import copy
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pcexport.backbones.loader import LoadedBackbone
from pcexport.distill.loss import imitation_loss, joined
from pcexport.distill.student import Student, StudentSpec
from pcexport.distill.targets import Targets, channel_statistics, normalised
from pcexport.errors import BuildError
from pcexport.progress import Steps
from pcrun.types import Int64Array

_CHECKPOINT = "checkpoint.pt"
_LOG = "log.jsonl"
_LOG_STEPS = 100
_CHECKPOINT_STEPS = 500
_VALIDATE_STEPS = 2000
_WARM_UP_SHARE = 0.02
_AVERAGE_DECAY = 0.999


@dataclass(frozen=True)
class TrainingSpec:
    """How a student is trained.

    Attributes:
        steps: of gradient descent.
        batch: pictures per step.
        learning_rate: the largest, of AdamW; it rises linearly and falls as a cosine to nearly 0.
        seed: of the first weights and the order of the pictures.
        weight_decay: of AdamW.
        held_out: pictures that are not learnt from, to measure on.
    """

    steps: int
    batch: int
    learning_rate: float
    seed: int
    weight_decay: float = 0.02
    held_out: int = 256


@dataclass
class Trained:
    """A trained student (the running average of its weights) and what was measured of it.

    Attributes:
        student: in eval mode; gives standardised maps.
        mean: of the teacher's channels, float32.
        std: of the teacher's channels, float32.
        own_std: of the student's channels as it gives them, on held-out pictures, float32: below 1 by what
            it leaves unexplained.
        explained: share of the teacher's variance that the student explains, by map, on held-out pictures.
    """

    student: Student
    mean: Tensor
    std: Tensor
    own_std: Tensor
    explained: dict[str, float]


def require_pictures(pictures: int, spec: TrainingSpec) -> None:
    """Refuse too few to learn from and to measure on.

    Raises:
        BuildError: with how many there must be.
    """
    needed = spec.held_out + spec.batch
    if pictures < needed:
        count = f"{pictures} pictures are" if pictures != 1 else "1 picture is"
        raise BuildError(
            f"{count} too few for {spec.held_out} held-out ones and a batch of {spec.batch}. Expected at "
            f"least {needed}, and many thousands for a good student; choose a larger --pictures."
        )


class Trainer:
    """Trains one student; everything that must survive an interruption is in its checkpoint."""

    def __init__(
        self, student: StudentSpec, teacher: LoadedBackbone, targets: Targets, spec: TrainingSpec, work: Path
    ) -> None:
        """Start, or go on from the checkpoint in `work`.

        Raises:
            BuildError: the checkpoint is of another training, or the pictures are too few.
        """
        require_pictures(len(targets), spec)
        self._teacher, self._targets, self._spec, self._work = teacher, targets, spec, work
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        shape = [student.stem, *student.widths, *student.blocks, *teacher.channels]
        self._identity = {"student": shape, "training": asdict(spec), "device": self._device}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(spec.seed)
            model = Student(student, (teacher.channels[0], teacher.channels[1]))
        self._model = model.to(self._device).to(memory_format=torch.channels_last)
        self._average = copy.deepcopy(self._model).eval().requires_grad_(False)
        self._optimiser = torch.optim.AdamW(
            _parameter_groups(self._model, spec.weight_decay), lr=spec.learning_rate, betas=(0.9, 0.98)
        )
        self._step = 0
        if (work / _CHECKPOINT).exists():
            self._resume()
        else:
            self._mean, self._std = channel_statistics(targets)

    def run(self, steps: Steps) -> Trained:
        """Train to the end."""
        self._model.train()
        started, first = time.monotonic(), self._step
        sums: dict[str, float] = {}
        if first:
            steps.say(f"going on from step {first} of {self._spec.steps}")
        with steps.step("train", self._spec.steps - first) as progress:
            while self._step < self._spec.steps:
                for name, value in self._one_step().items():
                    sums[name] = sums.get(name, 0.0) + value
                self._step += 1
                if self._step % _LOG_STEPS == 0:
                    seconds = (time.monotonic() - started) / (self._step - first)
                    self._log({k: v / _LOG_STEPS for k, v in sums.items()} | {"s_per_step": seconds})
                    sums = {}
                if self._step % _VALIDATE_STEPS == 0:
                    self._log({"explained": self._measure()[0]})
                if self._step % _CHECKPOINT_STEPS == 0 or self._step == self._spec.steps:
                    self._save()
                progress.advance_to(self._step - first)
        explained, own_std = self._measure()
        return Trained(self._average.cpu(), self._mean, self._std, own_std, explained)

    def _one_step(self) -> dict[str, float]:
        for group in self._optimiser.param_groups:
            group["lr"] = self._spec.learning_rate * learning_rate_share(self._step, self._spec.steps)
        images, shallow, deep = self._batch(self._rows(self._step))
        with torch.autocast(self._device, torch.bfloat16):
            maps = self._model(images)
        losses = [
            imitation_loss(functional.avg_pool2d(own.float(), 3, 1, 1), wanted)
            for own, wanted in zip(maps, (shallow, deep), strict=True)
        ]
        loss = joined(losses[0], losses[1], (shallow.shape[1], deep.shape[1]))
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimiser.step()
        self._update_average()
        names = [f"{layer}_{kind}" for layer in self._teacher.layers for kind in ("mse", "within")]
        values = [float(value.detach()) for pair in losses for value in pair]
        if not math.isfinite(float(loss.detach())):
            raise BuildError(
                f"The loss is not finite at step {self._step}. Expected a falling number; choose a smaller "
                "--learning-rate."
            )
        return {"loss": float(loss.detach()), **dict(zip(names, values, strict=True))}

    def _batch(self, rows: Int64Array) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures and standardised targets, on the device."""
        pictures = torch.from_numpy(self._targets.pictures[rows])
        images = normalised(pictures, self._teacher).to(self._device)
        split = self._targets.shallow.shape[1]
        maps = []
        parts = ((self._targets.shallow, slice(0, split)), (self._targets.deep, slice(split, None)))
        for array, part in parts:
            mean, std = (v[part].view(1, -1, 1, 1) for v in (self._mean, self._std))
            maps.append(((torch.from_numpy(array[rows]).float() - mean) / std).to(self._device))
        return images, maps[0], maps[1]

    def _rows(self, step: int) -> Int64Array:
        """Pictures of a step: a new order each time all were seen; ascending, as the disk likes it."""
        count = len(self._targets) - self._spec.held_out
        per_epoch = count // self._spec.batch
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng((self._spec.seed, epoch)).permutation(count)
        rows: Int64Array = np.sort(order[place * self._spec.batch : (place + 1) * self._spec.batch])
        return rows

    def _update_average(self) -> None:
        # Short at first, or the random weights of the start would stay in it for long.
        decay = min(_AVERAGE_DECAY, (1 + self._step) / (10 + self._step))
        with torch.no_grad():
            new = self._model.state_dict()
            for name, value in self._average.state_dict().items():
                if value.dtype.is_floating_point:
                    value.lerp_(new[name], 1 - decay)
                else:
                    value.copy_(new[name])

    def _measure(self) -> tuple[dict[str, float], Tensor]:
        """Of the averaged student on the pictures held out: 1 - MSE by map, and its channels' deviations."""
        errors = np.zeros(2)
        variances = np.zeros(2)
        moments: list[list[Tensor]] = [[], []]
        total = len(self._targets)
        for start in range(total - self._spec.held_out, total, self._spec.batch):
            images, *wanted = self._batch(np.arange(start, min(start + self._spec.batch, total)))
            with torch.inference_mode():
                maps = self._average(images)
            for i, (own, target) in enumerate(zip(maps, wanted, strict=True)):
                pooled = functional.avg_pool2d(own, 3, 1, 1)
                errors[i] += float((pooled - target).square().sum())
                variances[i] += float(target.square().sum())
                flat = pooled.double().transpose(0, 1).flatten(1)
                moments[i].append(torch.stack([flat.mean(1), flat.square().mean(1)]) * len(own))
        means = [sum(parts[1:], parts[0]) / self._spec.held_out for parts in moments]
        own_std = torch.cat([(square - mean.square()).clamp_min(0).sqrt() for mean, square in means])
        explained = np.round(1 - errors / variances, 4).tolist()
        return dict(zip(self._teacher.layers, explained, strict=True)), own_std.float().cpu()

    def _log(self, facts: dict[str, Any]) -> None:
        rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in facts.items()}
        with (self._work / _LOG).open("a") as file:
            file.write(json.dumps({"step": self._step, **rounded}) + "\n")

    def _save(self) -> None:
        state = {
            "identity": json.dumps(self._identity, sort_keys=True),
            "step": self._step,
            "model": self._model.state_dict(),
            "average": self._average.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "mean": self._mean,
            "std": self._std,
        }
        new = self._work / (_CHECKPOINT + ".new")
        torch.save(state, new)
        new.replace(self._work / _CHECKPOINT)

    def _resume(self) -> None:
        path = self._work / _CHECKPOINT
        state = torch.load(path, map_location=self._device, weights_only=True)
        if state["identity"] != json.dumps(self._identity, sort_keys=True):
            raise BuildError(
                f"{path} is the checkpoint of another training: {state['identity']}. Expected the same "
                "student and options; repeat them, or choose another --work."
            )
        self._step = state["step"]
        self._model.load_state_dict(state["model"])
        self._average.load_state_dict(state["average"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._mean, self._std = state["mean"].cpu(), state["std"].cpu()


def learning_rate_share(step: int, steps: int) -> float:
    """Share of the largest learning rate: a linear rise, then a cosine down to a hundredth."""
    warm_up = max(1, round(steps * _WARM_UP_SHARE))
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2


def _parameter_groups(model: Student, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for weights of convolutions, none for biases and normalisation."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
