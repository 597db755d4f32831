"""The patch embedder against independent implementations of the same definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: export)")

from torch.nn import functional  # noqa: E402

from pcexport.backbones.loader import LoadedBackbone, load_backbone  # noqa: E402
from pcexport.backbones.registry import find_backbone  # noqa: E402
from pcexport.backbones.weights import WeightsInfo  # noqa: E402
from pcexport.errors import BuildError  # noqa: E402
from pcexport.graph.embedding import PatchEmbedder  # noqa: E402

IMAGE_HW = (12, 16)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


class FakeExtractor(torch.nn.Module):
    """Strided random convolutions: cheap maps of any number of channels that depend on every pixel."""

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.strides = strides
        self.kernels = [
            torch.randn(c, 3, s, s, generator=generator) for c, s in zip(channels, strides, strict=True)
        ]

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [
            functional.conv2d(images, k, stride=s) for k, s in zip(self.kernels, self.strides, strict=True)
        ]


def fake_backbone(channels: tuple[int, ...], strides: tuple[int, ...]) -> LoadedBackbone:
    return LoadedBackbone(
        extractor=FakeExtractor(channels, strides),
        layers=tuple(f"layer{i + 1}" for i in range(len(channels))),
        channels=channels,
        grids=tuple((IMAGE_HW[0] // s, IMAGE_HW[1] // s) for s in strides),
        mean=MEAN,
        std=STD,
        weights=WeightsInfo("made up", None),
    )


def embedder(
    backbone: LoadedBackbone, aggregation="locally_aware", neighbourhood=3, grid_hw=None
) -> PatchEmbedder:
    return PatchEmbedder(backbone, aggregation=aggregation, neighbourhood=neighbourhood, grid_hw=grid_hw)


def random_images(count: int, hw: tuple[int, int] = IMAGE_HW) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (count, *hw, 3), np.uint8))


def feature_maps(backbone: LoadedBackbone, image: torch.Tensor) -> list[np.ndarray]:
    """(C, h, w) float64 maps of one image, normalised by the textbook formula."""
    scaled = image.numpy().astype(np.float64) / 255
    normalised = ((scaled - MEAN) / STD).transpose(2, 0, 1)
    maps = backbone.extractor(torch.from_numpy(normalised[None]).float())
    return [m[0].double().numpy() for m in maps]


def average_loop(feature: np.ndarray, side: int) -> np.ndarray:
    """Mean of each square neighbourhood; outside counts as zero and is counted."""
    channels, height, width = feature.shape
    reach, out = side // 2, np.zeros_like(feature)
    for y in range(height):
        for x in range(width):
            total = np.zeros(channels)
            for dy in range(-reach, reach + 1):
                for dx in range(-reach, reach + 1):
                    if 0 <= y + dy < height and 0 <= x + dx < width:
                        total += feature[:, y + dy, x + dx]
            out[:, y, x] = total / side**2
    return out


def bilinear_loop(feature: np.ndarray, out_hw: tuple[int, int]) -> np.ndarray:
    """Bilinear resampling between pixel centres (align_corners=False), edges repeated."""
    channels, height, width = feature.shape
    out = np.zeros((channels, *out_hw))
    for y in range(out_hw[0]):
        for x in range(out_hw[1]):
            source_y = min(max((y + 0.5) * height / out_hw[0] - 0.5, 0), height - 1)
            source_x = min(max((x + 0.5) * width / out_hw[1] - 0.5, 0), width - 1)
            top, left = math.floor(source_y), math.floor(source_x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            fy, fx = source_y - top, source_x - left
            upper = feature[:, top, left] * (1 - fx) + feature[:, top, right] * fx
            lower = feature[:, bottom, left] * (1 - fx) + feature[:, bottom, right] * fx
            out[:, y, x] = upper * (1 - fy) + lower * fy
    return out


def naive_locally_aware(maps: list[np.ndarray], side: int, grid_hw: tuple[int, int]) -> np.ndarray:
    """(patches, dim), patches row-major."""
    on_grid = [bilinear_loop(average_loop(m, side), grid_hw) for m in maps]
    stacked = np.concatenate(on_grid)
    return np.stack([stacked[:, y, x] for y in range(grid_hw[0]) for x in range(grid_hw[1])])


@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize("strides", [(2, 4), (4, 2), (2,), (2, 4, 1)])
def test_locally_aware_equals_a_naive_loop(side: int, strides: tuple[int, ...]) -> None:
    backbone = fake_backbone((3, 5, 2)[: len(strides)], strides)
    images = random_images(2)
    module = embedder(backbone, neighbourhood=side)
    got = module(images).numpy()
    assert got.shape == (2, math.prod(backbone.grids[0]), module.dim) and got.dtype == np.float32
    for image, embeddings in zip(images, got, strict=True):
        expected = naive_locally_aware(feature_maps(backbone, image), side, backbone.grids[0])
        np.testing.assert_allclose(embeddings, expected, atol=1e-4)


@pytest.mark.parametrize("grid_hw", [(3, 4), (5, 7), (1, 1)])
def test_a_given_grid_replaces_the_first_layers(grid_hw: tuple[int, int]) -> None:
    backbone = fake_backbone((3, 5), (2, 4))
    images = random_images(1)
    expected = naive_locally_aware(feature_maps(backbone, images[0]), 3, grid_hw)
    np.testing.assert_allclose(embedder(backbone, grid_hw=grid_hw)(images)[0].numpy(), expected, atol=1e-4)


def adaptive_average(values: np.ndarray, bins: int) -> np.ndarray:
    """adaptive_avg_pool1d as defined: bin i is the mean of [floor(i n / bins), ceil((i + 1) n / bins))."""
    n = values.shape[-1]
    edges = [(i * n // bins, -(-(i + 1) * n // bins)) for i in range(bins)]
    return np.stack([values[..., start:stop].mean(axis=-1) for start, stop in edges], axis=-1)


def unfold_3x3(feature: np.ndarray) -> np.ndarray:
    """(C, h, w) to (h, w, C, 3, 3): the zero-padded neighbourhood of every position."""
    channels, height, width = feature.shape
    padded = np.pad(feature, ((0, 0), (1, 1), (1, 1)))
    patches = np.zeros((height, width, channels, 3, 3))
    for y in range(height):
        for x in range(width):
            patches[y, x] = padded[:, y : y + 3, x : x + 3]
    return patches


def original_repository_descriptor(shallow: np.ndarray, deep: np.ndarray) -> np.ndarray:
    """The 1024-d descriptor as the authors' code makes it, step by step, without the closed form."""
    first, second = unfold_3x3(shallow), unfold_3x3(deep)
    height, width = first.shape[:2]
    # Every one of the C * 9 values of the deeper patches is resized over the grid as its own picture.
    pictures = second.transpose(2, 3, 4, 0, 1).reshape(-1, *second.shape[:2])
    resized = bilinear_loop(pictures, (height, width)).reshape(*second.shape[2:], height, width)
    second = resized.transpose(3, 4, 0, 1, 2)
    pooled = [adaptive_average(patches.reshape(height * width, -1), 1024) for patches in (first, second)]
    return adaptive_average(np.stack(pooled, axis=1).reshape(height * width, -1), 1024)


def test_reference_equals_the_original_recipe() -> None:
    backbone = fake_backbone((512, 1024), (2, 4))
    images = random_images(2)
    got = embedder(backbone, "reference")(images).numpy()
    assert got.shape == (2, 48, 1024)
    for image, embeddings in zip(images, got, strict=True):
        expected = original_repository_descriptor(*feature_maps(backbone, image))
        np.testing.assert_allclose(embeddings, expected, atol=1e-4)


@pytest.mark.parametrize("aggregation", ["locally_aware", "reference"])
def test_an_image_has_the_same_embedding_alone_and_in_a_batch(aggregation: str) -> None:
    backbone = fake_backbone((512, 1024) if aggregation == "reference" else (3, 5), (2, 4))
    module, images = embedder(backbone, aggregation), random_images(3)
    together = module(images).numpy()
    for i in range(3):
        np.testing.assert_allclose(module(images[i : i + 1])[0].numpy(), together[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [(128, 256), (512, 1024, 2048), (1024, 512), (512,)])
def test_reference_refuses_other_channels(channels: tuple[int, ...]) -> None:
    with pytest.raises(BuildError, match=r"needs two layers of 512 and 1024 channels, layer1.* have "):
        embedder(fake_backbone(channels, (2, 4, 4)[: len(channels)]), "reference")


@pytest.mark.parametrize("changed", [{"neighbourhood": 1}, {"neighbourhood": 5}, {"grid_hw": (3, 4)}])
def test_reference_refuses_another_neighbourhood_or_grid(changed: dict) -> None:
    with pytest.raises(BuildError, match="neighbourhood 3 on the first layer's grid alone"):
        embedder(fake_backbone((512, 1024), (2, 4)), "reference", **changed)


def test_reference_accepts_its_own_grid_spelled_out() -> None:
    backbone = fake_backbone((512, 1024), (2, 4))
    assert embedder(backbone, "reference", grid_hw=backbone.grids[0]).grid_hw == backbone.grids[0]


def test_three_layers_of_a_real_backbone_on_a_16x16_grid() -> None:
    layers = ("layer1", "layer2", "layer3")
    backbone = load_backbone(
        find_backbone("resnet50", layers), layers, weights="untrained", image_hw=(32, 32), seed=0
    )
    module = embedder(backbone, grid_hw=(16, 16))
    assert module.dim == 256 + 512 + 1024
    images = random_images(1, (32, 32))
    embeddings = module(images)
    assert tuple(embeddings.shape) == (1, 256, 1792)
    with torch.no_grad():
        normalised = (images.permute(0, 3, 1, 2) / 255 - module.mean / 255) / (module.std / 255)
        deepest = backbone.extractor(normalised)[2][0].double().numpy()
    expected = bilinear_loop(average_loop(deepest[:8], 3), (16, 16)).reshape(8, -1).T
    scale = np.abs(expected).max()
    np.testing.assert_allclose(embeddings[0, :, 768:776].numpy() / scale, expected / scale, atol=1e-4)


def test_the_module_stays_frozen_in_eval_mode() -> None:
    backbone = load_backbone(find_backbone("resnet18"), weights="untrained", image_hw=(32, 32), seed=0)
    module = embedder(backbone)
    assert not module.training and not any(p.requires_grad for p in module.parameters())
    assert not module(random_images(1, (32, 32))).requires_grad
