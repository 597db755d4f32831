"""`pcexport distill` as a command: teacher, targets, training, and the student's file."""

import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pcexport.backbones.at_hand import require_backbone
from pcexport.backbones.loader import LoadedBackbone, load_backbone
from pcexport.backbones.registry import find_backbone
from pcexport.backbones.student_facts import FORMAT, CheckValues, StudentFacts
from pcexport.distill.own_images import OwnImages
from pcexport.distill.pictures import GENERATOR_VERSION
from pcexport.distill.student import IMAGE_MULTIPLE, STRIDE, student_spec
from pcexport.distill.student_graph import folded, student_file
from pcexport.distill.targets import prepare_targets
from pcexport.distill.train import Trained, Trainer, TrainingSpec, require_pictures
from pcexport.errors import BuildError
from pcexport.progress import Steps
from pcrun.files import write_file

_PACKAGES = ("torch", "torchvision", "numpy", "onnx")
# Of a channel that says nothing, which nothing should amplify.
_LEAST_STD = 0.1
# Values that the writer of the file replaces with what it computes.
_NO_CHECK = CheckValues(height=160, width=192, positions=((0, 0),), values=(0.0,), scale=1.0)


@dataclass(frozen=True)
class DistillOptions:
    """The choices of `pcexport distill`.

    Attributes:
        teacher: backbone to imitate.
        weights: its weights, as for `pcexport build`.
        student: one of `pcexport.distill.student.STUDENTS`.
        images: folders, globs or lists of the user's own normal images; half of the pictures come from them.
        pictures: number of pictures to learn from.
        size_px: their height and width.
        teacher_scale: 0 gives every channel of the embedding the same variance, 1 the teacher's own; between
            them, its standard deviation to this power.
        training: the rest.
    """

    teacher: str
    weights: str
    student: str
    images: tuple[str, ...]
    pictures: int
    size_px: int
    teacher_scale: float
    training: TrainingSpec


def distill(options: DistillOptions, output: Path, work: Path, steps: Steps) -> dict[str, Any]:
    """Train a student and write its file and a JSON of the same name beside it.

    Args:
        options: all choices.
        output: the .onnx file.
        work: folder for pictures, targets, checkpoint and log; a second call goes on from it.
        steps: progress.

    Returns:
        What the JSON says.

    Raises:
        BuildError: the teacher does not fit, the images cannot be read, or `work` is of another training.
    """
    _require_sound(options)
    steps.say(f"training on {device()}, {options.training.steps} steps of {options.training.batch} pictures")
    spec = student_spec(options.student)
    teacher = load_teacher(options)
    own = OwnImages.find(options.images)
    data = _data_facts(options, own)
    targets = prepare_targets(work / "targets", teacher, data | _teacher_facts(options, teacher), own, steps)
    trained = Trainer(spec, teacher, targets, options.training, work).run(steps)
    facts = _facts(options, teacher, data, trained)
    output.parent.mkdir(parents=True, exist_ok=True)
    # A channel that is hard to imitate is given with less contrast, which would count against it twice.
    scale = trained.std.pow(options.teacher_scale) / trained.own_std.clamp_min(_LEAST_STD)
    write_file(output, student_file(folded(trained.student, scale), facts))
    described = json.loads(facts.to_json())
    described.pop("check")
    write_file(output.with_suffix(".json"), (json.dumps(described, indent=1) + "\n").encode())
    return described


def _require_sound(options: DistillOptions) -> None:
    """Refuse, before any work, what cannot be trained."""
    if options.size_px % IMAGE_MULTIPLE:
        raise BuildError(f"--size {options.size_px} is not a multiple of {IMAGE_MULTIPLE}.")
    require_pictures(options.pictures, options.training)
    require_backbone(options.teacher, options.weights)


def load_teacher(options: DistillOptions) -> LoadedBackbone:
    """The teacher, for pictures of the options' size.

    Raises:
        BuildError: its maps are not two of strides 8 and 16.
    """
    size = options.size_px
    teacher = load_backbone(
        find_backbone(options.teacher), weights=options.weights, image_hw=(size, size), seed=0
    )
    if teacher.grids != ((size // 8, size // 8), (size // 16, size // 16)):
        raise BuildError(
            f"{options.teacher} gives maps of {', '.join(f'{h}x{w}' for h, w in teacher.grids)} for pictures "
            f"of {size} px. Expected two, of strides 8 and 16, such as those of resnet18 or wide_resnet50_2."
        )
    return teacher


def _teacher_facts(options: DistillOptions, teacher: LoadedBackbone) -> dict[str, Any]:
    return {
        "teacher": options.teacher,
        "layers": list(teacher.layers),
        "teacher_weights": teacher.weights.sha256 or teacher.weights.source,
    }


def _data_facts(options: DistillOptions, own: OwnImages | None) -> dict[str, Any]:
    facts = {
        "pictures": options.pictures,
        "size_px": options.size_px,
        "seed": options.training.seed,
        "generator": GENERATOR_VERSION,
    }
    return facts | ({"own_images": len(own.paths), "own_sha256": own.sha256} if own else {})


def _facts(
    options: DistillOptions, teacher: LoadedBackbone, data: dict[str, Any], trained: Trained
) -> StudentFacts:
    return StudentFacts(
        format=FORMAT,
        student=options.student,
        teacher=options.teacher,
        teacher_weights_sha256=teacher.weights.sha256,
        layers=tuple(teacher.layers),
        dim=sum(teacher.channels),
        stride=STRIDE,
        image_multiple=IMAGE_MULTIPLE,
        neighbourhood=3,
        mean_rgb=tuple(float(v) for v in teacher.mean),
        std_rgb=tuple(float(v) for v in teacher.std),
        data=data
        | {
            "batch": options.training.batch,
            "learning_rate": options.training.learning_rate,
            "weight_decay": options.training.weight_decay,
            "teacher_scale": options.teacher_scale,
            "explained": trained.explained,
        },
        steps=options.training.steps,
        loss=_unexplained(teacher, trained),
        seed=options.training.seed,
        versions={name: importlib.metadata.version(name) for name in _PACKAGES},
        check=_NO_CHECK,
    )


def _unexplained(teacher: LoadedBackbone, trained: Trained) -> float:
    """Mean squared error of the standardised embedding on pictures held out."""
    shares = [trained.explained[layer] for layer in teacher.layers]
    explained = sum(share * channels for share, channels in zip(shares, teacher.channels, strict=True))
    return round(1 - explained / sum(teacher.channels), 4)


def distill_here(output: Path, work: Path | None, *, force: bool, **options: Any) -> int:
    """Train as the command line says, and tell what came of it; gives the exit code."""
    if output.suffix != ".onnx":
        raise BuildError(f"{output} does not end in .onnx. Expected the name of the student's file.")
    if output.exists() and not force:
        raise BuildError(f"{output} exists already. Pass --force to replace it, or choose another name.")
    training = TrainingSpec(**{key: options.pop(key) for key in ("steps", "batch", "learning_rate", "seed")})
    steps = Steps()
    chosen = DistillOptions(training=training, **options)
    described = distill(chosen, output, work or output.with_suffix(".work"), steps)
    explained = ", ".join(f"{layer} {share:.1%}" for layer, share in described["data"]["explained"].items())
    print(f"{output} ({output.stat().st_size / 1e6:.1f} MB)")
    print(f"Of the teacher's variance on pictures it has not seen, it explains: {explained}.")
    print(f"Use it: pcexport build DATA --backbone {output} -o NAME.pcbundle")
    return 0


def device() -> str:
    """Where training runs, for people."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU, in bfloat16"
