"""Build configuration: where a value comes from, what is refused, and what a bundle records."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from click.testing import CliRunner

from pcexport.cli import cli
from pcexport.config import BuildConfig, load_config, parse_batch, parse_size, recipe_names
from pcexport.errors import BuildError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def recipe_file(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_flag_beats_the_recipe_and_the_recipe_beats_the_default(tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, "seed: 3\nfolds: 7\n")
    config = load_config(recipe, {"seed": 5})
    assert config.seed == 5  # flag, recipe says 3
    assert config.folds == 7  # recipe, default is 5
    assert config.golden_samples == BuildConfig().golden_samples  # in neither


def test_without_a_recipe_the_default_one_is_used() -> None:
    assert load_config(None, {}) == load_config("default", {})


@pytest.mark.parametrize("source", ["recipe", "flags"])
def test_an_unknown_key_names_the_nearest(tmp_path: Path, source: str) -> None:
    recipe = recipe_file(tmp_path, "corset_ratio: 0.1\n" if source == "recipe" else "")
    overrides = {"corset_ratio": 0.1} if source == "flags" else {}
    with pytest.raises(BuildError, match=r"unknown key 'corset_ratio'.*Did you mean 'coreset_ratio'"):
        load_config(recipe, overrides)


@pytest.mark.parametrize(
    "line, message",
    [
        ("seed: yes", r"seed: expected a whole number, got True"),
        ("seed: 1.5", r"seed: expected a whole number, got 1\.5"),
        ("seed: '1'", r"seed: expected a whole number, got '1'"),
        ("strict: 1", r"strict: expected true or false, got 1"),
        ("backbone: 18", r"backbone: expected text, got 18"),
        ("coreset_ratio: a lot", r"coreset_ratio: expected a number"),
        ("coreset_ratio: .nan", r"coreset_ratio: expected a finite number"),
        ("image_size: true", r"image_size: expected text"),
        ("image_size: [224, 320]", r"image_size: expected text"),
        ("layers: {a: 1}", r"layers: expected a list"),
        ("seed: null", r"seed: expected a whole number, got None"),
    ],
)
def test_a_wrong_type_names_the_key(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        load_config(recipe_file(tmp_path, line), {})


@pytest.mark.parametrize(
    "key, value",
    [
        ("coreset_ratio", 0),
        ("coreset_ratio", 1.01),
        ("holdout_fraction", 0),
        ("holdout_fraction", 1),
        ("false_alarm_rate", 0),
        ("false_alarm_rate", 1),
        ("parity_tolerance", 0),
        ("map_sigma_px", -0.1),
        ("map_sigma_px", 257),
        ("white_level_16bit", 0),
        ("white_level_16bit", 65536),
        ("neighbourhood", 0),
        ("neighbourhood", 2),
        ("neighbourhood", 17),
        ("opset", 16),
        ("coreset_size", 0),
        ("projection_dim", 0),
        ("hnsw_m", 1),
        ("hnsw_ef_construction", 7),
        ("ef", 0),
        ("neighbours", 0),
        ("folds", 1),
        ("golden_samples", 0),
        ("parity_images", 0),
        ("seed", -1),
        ("seed", 2**31),
        ("threads", -1),
    ],
)
def test_a_value_out_of_range_names_the_key_and_the_value(key: str, value: float) -> None:
    with pytest.raises(BuildError, match=rf"{key} must be .*got {value}"):
        load_config(None, {key: value})


@pytest.mark.parametrize(
    "field",
    [field for field in dataclasses.fields(BuildConfig) if field.metadata["choices"]],
    ids=lambda field: field.name,
)
def test_a_wrong_choice_lists_the_choices(field: dataclasses.Field) -> None:
    choices = field.metadata["choices"]
    with pytest.raises(BuildError, match=rf"{field.name} must be one of {', '.join(choices)}; got 'zzz'"):
        load_config(None, {field.name: "zzz"})
    for choice in choices:
        assert getattr(load_config(None, {field.name: choice}), field.name) == choice


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_project_loads_by_path_and_by_name(path: Path) -> None:
    assert load_config(str(path), {}) == load_config(path.stem, {})


def test_recipe_names_are_the_files_in_configs() -> None:
    assert recipe_names() == sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    assert "default" in recipe_names()


def test_recipes_differ_from_each_other() -> None:
    configs = [load_config(name, {}) for name in recipe_names()]
    assert len(set(configs)) == len(configs)


def test_an_unknown_recipe_names_the_nearest_and_lists_all() -> None:
    with pytest.raises(BuildError, match=r"no recipe 'fats'\. Did you mean 'fast'\?") as error:
        load_config("fats", {})
    assert all(name in str(error.value) for name in recipe_names())


def test_a_missing_recipe_file_is_not_taken_for_a_name(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"There is no recipe file .*gone\.yaml"):
        load_config(str(tmp_path / "gone.yaml"), {})


@pytest.mark.parametrize(
    "content, message",
    [
        (b"seed: [1\n", "is not valid YAML"),
        (b"seed: 1\n\tfolds: 2\n", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        (b"- seed\n- folds\n", "holds no mapping"),
        (b"!!python/object/apply:os.getcwd []\n", "is not valid YAML"),
    ],
)
def test_a_broken_recipe_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(BuildError, match=rf"broken\.yaml {message}"):
        load_config(str(path), {})


def test_an_empty_recipe_means_the_defaults(tmp_path: Path) -> None:
    assert load_config(recipe_file(tmp_path, "# nothing\n"), {}) == BuildConfig()


@pytest.mark.parametrize("value, hw", [("224", (224, 224)), (224, (224, 224)), ("224x320", (224, 320))])
def test_sizes_are_height_by_width(value: object, hw: tuple[int, int]) -> None:
    config = load_config(None, {"image_size": value, "grid": value})
    assert config.image_hw == config.crop_hw == hw
    assert parse_size(config.grid) == hw


def test_the_crop_is_the_input_when_given(tmp_path: Path) -> None:
    config = load_config(recipe_file(tmp_path, "image_size: 256x300\ncrop_size: 224\n"), {})
    assert (config.image_hw, config.crop_hw) == ((256, 300), (224, 224))


@pytest.mark.parametrize(
    "text", ["", "0", "224x0", "0x224", "-1", "224 x 320", "224x", "x224", "1.5", "224X320"]
)
@pytest.mark.parametrize("key", ["image_size", "crop_size", "grid"])
def test_a_malformed_size_is_refused(key: str, text: str) -> None:
    with pytest.raises(BuildError, match="a size must look like 224 or 224x320"):
        load_config(None, {key: text})


@pytest.mark.parametrize("value, batch", [(4, 4), ("1", 1), ("4096", 4096), ("dynamic", None)])
def test_batches(value: object, batch: int | None) -> None:
    assert parse_batch(load_config(None, {"batch": value}).batch) == batch


@pytest.mark.parametrize("value", [0, 4097, "many", "-1", "1.5", ""])
def test_a_wrong_batch_is_refused(value: object) -> None:
    with pytest.raises(BuildError, match="batch must be a number from 1 to 4096 or 'dynamic'"):
        load_config(None, {"batch": value})


@pytest.mark.parametrize("value", ["layer1, layer3", ["layer1", "layer3"]])
def test_layers_are_a_list_or_comma_separated(value: object) -> None:
    assert load_config(None, {"layers": value}).layers == ("layer1", "layer3")


@pytest.mark.parametrize("value, layers", [(11, ("11",)), ("3,6", ("3", "6")), ([3, 6], ("3", "6"))])
def test_numbers_name_layers_too(value: object, layers: tuple[str, ...]) -> None:
    assert load_config(None, {"layers": value}).layers == layers


def test_facts_leave_out_what_does_not_shape_the_bundle() -> None:
    facts = load_config(None, {"threads": 2, "strict": True, "allow_flips": True}).facts()
    left_out = {"threads", "strict", "allow_flips", "tune"}
    expected = {field.name for field in dataclasses.fields(BuildConfig)} - left_out
    assert set(facts) == expected
    assert facts == load_config(None, {}).facts()


def test_facts_name_a_weights_file_without_its_folder() -> None:
    assert load_config(None, {"weights": "/home/me/secret/net.pth"}).facts()["weights"] == "net.pth"
    assert load_config(None, {"weights": "untrained"}).facts()["weights"] == "untrained"


def test_facts_are_plain_json() -> None:
    assert load_config(None, {"layers": "layer1,layer2"}).facts()["layers"] == ["layer1", "layer2"]


def test_every_key_is_a_flag_with_its_help_and_default() -> None:
    result = CliRunner().invoke(cli, ["build", "--help"], terminal_width=300, max_content_width=300)
    assert result.exit_code == 0
    text = " ".join(result.output.split())
    for field in dataclasses.fields(BuildConfig):
        assert f" --{field.name.replace('_', '-')}" in text, f"{field.name} has no flag"
        value = field.default
        if isinstance(value, bool):
            value = ("" if value else "no-") + field.name.replace("_", "-")
        default = "" if value is None else f" [default: {value}"
        assert field.metadata["help"] + default in text, f"{field.name} has no help or no default"


def test_the_help_states_when_calibration_changes_its_method() -> None:
    from pcexport.calibration.false_alarm_rate import HOLDOUT_MIN_IMAGES

    text = next(f for f in dataclasses.fields(BuildConfig) if f.name == "calibration").metadata["help"]
    assert f"kfold below {HOLDOUT_MIN_IMAGES} images" in text
