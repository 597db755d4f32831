"""How far a student is from its teacher."""

from torch import Tensor

# Variance, in units of a channel's variance over all pictures, below which a map counts as even.
_EVEN = 0.05


def imitation_loss(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two losses of one map, both means over pictures, channels and positions.

    The second one looks at what a detector lives from: differences between places of one picture. It leaves
    out each channel's mean error over a picture, which shifts normal and anomalous patches alike, and counts
    errors relative to the contrast of the teacher's map there, or faint structures would count for nothing.

    Args:
        student: (B, C, h, w) float32, standardised.
        teacher: the same.

    Returns:
        The mean squared error, and the same of the deviations from the picture's mean, each divided by the
        teacher's variance over the picture.
    """
    error = student - teacher
    within = error - error.mean((2, 3), keepdim=True)
    contrast = teacher.var((2, 3), keepdim=True, correction=0)
    return error.square().mean(), (within.square() / (contrast + _EVEN)).mean()


def joined(shallow: tuple[Tensor, Tensor], deep: tuple[Tensor, Tensor], channels: tuple[int, int]) -> Tensor:
    """The loss of both maps: every channel of the embedding counts the same, each of the two losses half."""
    losses = [(plain + within) / 2 for plain, within in (shallow, deep)]
    return (losses[0] * channels[0] + losses[1] * channels[1]) / sum(channels)
