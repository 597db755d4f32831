"""The guard between the traced module and the graph: it measures what it says and refuses what it must."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (extra: export)")

from pcexport.errors import BuildError
from pcexport.graph.parity import ParityReport, compare_embedders

IMAGE = np.zeros((2, 2, 3), np.uint8)


class Fixed:
    """An embedder that returns what it was given, chosen by the first pixel of the image."""

    provider = "fixed"

    def __init__(self, *patches: np.ndarray) -> None:
        self._patches = patches

    def embed(self, images: np.ndarray) -> np.ndarray:
        return np.stack([self._patches[int(image[0, 0, 0])] for image in images]).astype(np.float32)


def image(number: int) -> np.ndarray:
    return np.full((2, 2, 3), number, np.uint8)


def test_a_known_difference_is_measured_per_patch() -> None:
    reference = np.array([[3.0, 4.0], [30.0, 40.0]])
    candidate = np.array([[3.0, 4.5], [33.0, 40.0]])  # 0.5 of 5, and 3 of 50
    report = compare_embedders(Fixed(reference), Fixed(candidate), [image(0)])
    assert (report.images, report.max_absolute_error) == (1, pytest.approx(3.0))
    assert report.max_relative_error == pytest.approx(0.1)


def test_the_reference_gives_the_norm() -> None:
    small, large = Fixed(np.array([[1.0, 0.0]])), Fixed(np.array([[2.0, 0.0]]))
    assert compare_embedders(small, large, [image(0)]).max_relative_error == pytest.approx(1.0)
    assert compare_embedders(large, small, [image(0)]).max_relative_error == pytest.approx(0.5)


@pytest.mark.parametrize("worst", [0, 1, 2])
def test_the_worst_of_several_images_counts_wherever_it_stands(worst: int) -> None:
    same = np.array([[1.0, 1.0]])
    others = [same, same, same]
    others[worst] = same + 0.5
    report = compare_embedders(Fixed(same, same, same), Fixed(*others), [image(i) for i in range(3)])
    assert (report.images, report.max_relative_error) == (3, pytest.approx(0.5))


def test_equal_embedders_differ_by_zero_even_at_zero_norm() -> None:
    zero = Fixed(np.zeros((2, 3)))
    assert compare_embedders(zero, zero, [image(0)]) == ParityReport(1, 0.0, 0.0)


@pytest.mark.parametrize("worst", [0, 1])
@pytest.mark.parametrize("side", [0, 1])
def test_a_nan_anywhere_is_not_forgotten(worst: int, side: int) -> None:
    same = np.array([[1.0, 1.0], [1.0, 1.0]])
    broken = same.copy()
    broken[1, 0] = np.nan
    images = [same, same]
    images[worst] = broken
    pair = [Fixed(same, same), Fixed(same, same)]
    pair[side] = Fixed(*images)
    report = compare_embedders(*pair, [image(0), image(1)])
    with pytest.raises(BuildError, match="differ by nan"):
        report.require(1.0)


def test_within_the_tolerance_the_manifest_gets_the_numbers() -> None:
    spec = ParityReport(4, 0.25, 1e-3).require(1e-3)
    assert (spec.images, spec.max_absolute_error, spec.max_relative_error, spec.tolerance) == (
        4,
        0.25,
        1e-3,
        1e-3,
    )


@pytest.mark.parametrize("error", [1.0001e-3, 1.0, float("inf"), float("nan")])
def test_above_the_tolerance_the_build_stops(error: float) -> None:
    with pytest.raises(BuildError, match=r"PyTorch and ONNX differ by .* more than the tolerance of 0\.001"):
        ParityReport(4, 0.0, error).require(1e-3)
