"""The students: small plain CNNs that imitate a teacher's two feature maps at strides 8 and 16.

Only convolutions, batch normalisation (folded when exported), ReLU and additions: what every runtime has
quick kernels for, in float32 and in 8 bits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pcexport.errors import BuildError

STRIDE = 8
# Both maps must tile the image.
IMAGE_MULTIPLE = 16


@dataclass(frozen=True)
class StudentSpec:
    """The shape of a student.

    Attributes:
        name: what `--student` says.
        stem: channels at stride 2.
        widths: channels at strides 4, 8 and 16.
        blocks: residual blocks at strides 4, 8 and 16.
        note: one line for people.
    """

    name: str
    stem: int
    widths: tuple[int, int, int]
    blocks: tuple[int, int, int]
    note: str


STUDENTS = {
    spec.name: spec
    for spec in (
        StudentSpec("edge-s", 32, (48, 80, 144), (1, 2, 2), "1.2 M parameters"),
        StudentSpec("edge-m", 32, (48, 96, 192), (1, 2, 3), "2.7 M parameters"),
    )
}


def student_spec(name: str) -> StudentSpec:
    """A student by name.

    Raises:
        BuildError: there is none of that name.
    """
    if name not in STUDENTS:
        raise BuildError(f"Unknown student {name!r}. Expected one of: {', '.join(STUDENTS)}.")
    return STUDENTS[name]


class ConvUnit(nn.Sequential):
    """Convolution, batch normalisation and, mostly, ReLU; keeps the size but for its stride."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, relu: bool = True) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        super().__init__(*layers, *([nn.ReLU(inplace=True)] if relu else []))
        self.stride = stride
        self.relu = relu


class ResidualBlock(nn.Module):
    """relu(x + unit(unit(x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvUnit(channels, channels, 3)
        self.second = ConvUnit(channels, channels, 3, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as `x`."""
        return functional.relu(x + self.second(self.first(x)))


class Student(nn.Module):
    """Normalised RGB images to the teacher's two maps, standardised channel by channel."""

    def __init__(self, spec: StudentSpec, channels: tuple[int, int]) -> None:
        """Put the network together; `channels` are the teacher's at strides 8 and 16."""
        super().__init__()
        first, second, third = spec.widths
        n4, n8, n16 = spec.blocks
        self.shallow = nn.Sequential(
            ConvUnit(3, spec.stem, 5, 2),
            ConvUnit(spec.stem, first, 3, 2),
            *[ResidualBlock(first) for _ in range(n4)],
            ConvUnit(first, second, 3, 2),
            *[ResidualBlock(second) for _ in range(n8)],
        )
        self.deep = nn.Sequential(ConvUnit(second, third, 3, 2), *[ResidualBlock(third) for _ in range(n16)])
        self.shallow_head = nn.Conv2d(second, channels[0], 1)
        self.deep_head = nn.Conv2d(third, channels[1], 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) float32, H and W multiples of 16, to (B, C8, H/8, W/8) and (B, C16, H/16, W/16)."""
        shallow = self.shallow(images)
        return self.shallow_head(shallow), self.deep_head(self.deep(shallow))


def aggregate(shallow: Tensor, deep: Tensor) -> Tensor:
    """Locally aware patches of two maps, as `PatchEmbedder` makes them: (B, C8 + C16, H/8, W/8)."""
    shallow, deep = (functional.avg_pool2d(x, 3, 1, 1, count_include_pad=True) for x in (shallow, deep))
    deep = functional.interpolate(deep, scale_factor=2.0, mode="bilinear", align_corners=False)
    return torch.cat([shallow, deep], dim=1)
