"""Procedural pictures: reproducible, of the promised form, and not all alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pcexport.distill.details import DETAILS, add_details
from pcexport.distill.pictures import make_picture
from pcexport.distill.shapes import SHAPES
from pcexport.distill.surfaces import SURFACES, unit

SIZE = 64


def rng(seed: int = 3) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_picture_depends_on_seed_and_number_alone() -> None:
    first = make_picture(1, 5, SIZE)
    make_picture(2, 9, SIZE)
    assert np.array_equal(make_picture(1, 5, SIZE), first)
    assert not np.array_equal(make_picture(2, 5, SIZE), first)
    assert not np.array_equal(make_picture(1, 6, SIZE), first)


def test_pictures_are_rgb_bytes_of_the_size_asked_for() -> None:
    pictures = [make_picture(0, number, SIZE) for number in range(40)]
    assert {(picture.shape, picture.dtype) for picture in pictures} == {((SIZE, SIZE, 3), np.dtype(np.uint8))}


def test_pictures_cover_dark_and_bright_faint_and_strong_grey_and_coloured() -> None:
    pictures = np.stack([make_picture(0, number, SIZE) for number in range(120)]).astype(np.float32)
    brightness, contrast = pictures.mean((1, 2, 3)), pictures.mean(3).std((1, 2))
    colour = np.ptp(pictures, axis=3).mean((1, 2))
    assert brightness.min() < 40 and brightness.max() > 200
    assert contrast.min() < 4 and contrast.max() > 60
    assert (colour < 1).mean() > 0.2 and (colour > 30).mean() > 0.1


@pytest.mark.parametrize("draw", [draw for draw, _ in SURFACES], ids=lambda draw: draw.__name__)
def test_every_surface_is_a_float32_field_between_0_and_1(draw: Callable[..., np.ndarray]) -> None:
    for seed in range(6):
        field = draw(rng(seed), SIZE)
        assert field.shape == (SIZE, SIZE) and field.dtype == np.float32
        assert 0 <= field.min() < field.max() <= 1


@pytest.mark.parametrize("draw", dict.fromkeys(SHAPES), ids=lambda draw: draw.__name__)
def test_every_shape_lies_about_its_centre(draw: Callable[..., np.ndarray]) -> None:
    for seed in range(6):
        mask = draw(rng(seed), SIZE, (40.0, 30.0), 14.0)
        assert mask.shape == (SIZE, SIZE) and mask.dtype == np.float32
        assert mask.min() >= 0 and 0.5 < mask.max() <= 1
        rows, columns = np.nonzero(mask)
        assert columns.min() < 44 and columns.max() > 36 and rows.min() < 38 and rows.max() > 22


@pytest.mark.parametrize("draw", dict.fromkeys(DETAILS), ids=lambda draw: draw.__name__)
def test_every_detail_covers_some_of_the_picture_and_not_all(draw: Callable[..., np.ndarray]) -> None:
    masks = [draw(rng(seed), SIZE) for seed in range(12)]
    assert all(mask.dtype == np.float32 and mask.min() >= 0 and mask.max() < 1.001 for mask in masks)
    assert any(mask.max() > 0.3 for mask in masks)
    assert all((mask > 0.5).mean() < 0.7 for mask in masks)


def test_details_change_an_even_picture_in_places() -> None:
    even = np.full((SIZE, SIZE, 3), 0.5, np.float32)
    changed = [add_details(rng(seed), even) for seed in range(20)]
    shares = np.array([(picture != even).any(2).mean() for picture in changed])
    assert (shares > 0).mean() > 0.5
    assert np.median(shares) < 0.5


def test_a_constant_field_has_no_contrast_to_stretch() -> None:
    assert np.array_equal(unit(np.full((SIZE, SIZE), 7, np.float32)), np.full((SIZE, SIZE), 0.5, np.float32))
