"""Device profiles: kept apart by everything they depend on, found again, and never trusted blindly."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from pcrun.bundle.bundle import Bundle
from pcrun.errors import SinkError
from pcrun.machine.facts import cpu_model, gpu_model, machine_facts, versions
from pcrun.machine.threads import available_cores
from pcrun.records import to_jsonable
from pcrun.tuning import profile as profiles
from pcrun.tuning.profile import (
    PROFILE_VERSION,
    DeviceProfile,
    ProfileKey,
    RunSettings,
    Trial,
    find_profile,
    profile_folder,
    save_profile,
)
from tests.conftest import BundleMaker

KEY = ProfileKey("a" * 64, "auto", "Some CPU", None, 4, {"numpy": "2.0", "onnxruntime": "1.20"})
SETTINGS = RunSettings("cpu", "fp32", "hnsw", 2, 3, 1, spinning=False)


@pytest.fixture
def bundle(made_bundle: BundleMaker) -> Bundle:
    return Bundle.load(made_bundle())


def stored(bundle: Bundle, *, provider: str = "auto", **changes: Any) -> DeviceProfile:
    """A profile that is valid here, saved."""
    made = DeviceProfile(
        key=ProfileKey.here(bundle, provider=provider),
        settings=SETTINGS,
        median_ms=4.5,
        p90_ms=6.25,
        images=40,
        content="golden samples",
        trials=(Trial(SETTINGS, 4.5, 6.25), Trial(dataclasses.replace(SETTINGS, ef=4), 5.0, 7.0)),
    )
    made = dataclasses.replace(made, **changes)
    save_profile(made)
    return made


class TestFolder:
    def test_of_the_environment_first(self, profile_cache: Path) -> None:
        assert profile_folder() == profile_cache

    def test_then_the_users_cache(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("PCRUN_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert profile_folder() == tmp_path / "patchcore-edge" / "profiles"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
        assert profile_folder() == tmp_path / "home" / ".cache" / "patchcore-edge" / "profiles"

    def test_an_empty_variable_counts_as_unset(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PCRUN_CACHE", "")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert profile_folder() == tmp_path / "patchcore-edge" / "profiles"


class TestKey:
    def test_it_is_of_this_machine(self, bundle: Bundle) -> None:
        key = ProfileKey.here(bundle, provider="cpu")
        assert (key.bundle, key.provider, key.cores) == (bundle.digest, "cpu", available_cores())
        assert (key.cpu, key.gpu, key.versions) == (cpu_model(), gpu_model(), versions())
        assert key.cpu and {"numpy", "onnxruntime", "hnswlib", "patchcore-edge"} & set(key.versions)

    @pytest.mark.parametrize(
        "change",
        [
            {"bundle": "b" * 64},
            {"provider": "cpu"},
            {"cpu": "Another CPU"},
            {"gpu": "Some GPU"},
            {"cores": 2},
            {"versions": {"numpy": "2.1", "onnxruntime": "1.20"}},
            {"versions": {"numpy": "2.0"}},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_each_part_has_its_own_file(self, change: dict[str, Any]) -> None:
        assert dataclasses.replace(KEY, **change).file_name != KEY.file_name

    def test_the_order_of_packages_does_not_matter(self) -> None:
        turned = dataclasses.replace(KEY, versions=dict(reversed(KEY.versions.items())))
        assert turned.file_name == KEY.file_name == dataclasses.replace(KEY).file_name
        assert Path(KEY.file_name).name == KEY.file_name and KEY.file_name.endswith(".json")

    def test_facts_of_the_machine_name_what_the_key_holds(self) -> None:
        facts = machine_facts()
        assert (facts["cpu"], facts["gpu"], facts["cores"]) == (cpu_model(), gpu_model(), available_cores())
        json.dumps(facts)


class TestFinding:
    def test_what_was_stored_is_found_again(self, bundle: Bundle, profile_cache: Path) -> None:
        assert find_profile(bundle, provider="auto") is None
        made = stored(bundle)
        assert find_profile(bundle, provider="auto") == made
        (path,) = profile_cache.iterdir()
        assert path.name == made.key.file_name
        # For people too.
        assert json.loads(path.read_text())["settings"]["ef"] == 2

    def test_a_second_one_takes_the_place_of_the_first(self, bundle: Bundle, profile_cache: Path) -> None:
        stored(bundle)
        newer = stored(bundle, median_ms=1.0)
        assert find_profile(bundle, provider="auto") == newer
        assert len(list(profile_cache.iterdir())) == 1

    def test_not_for_another_request(self, bundle: Bundle) -> None:
        stored(bundle)
        assert find_profile(bundle, provider="cpu") is None

    def test_not_for_another_bundle(self, bundle: Bundle, made_bundle: BundleMaker) -> None:
        stored(bundle)
        assert find_profile(Bundle.load(made_bundle(seed=3, dim=5)), provider="auto") is None

    @pytest.mark.parametrize(
        "name, value",
        [
            ("versions", {"numpy": "99"}),
            ("cpu_model", "Another CPU"),
            ("gpu_model", "Some GPU"),
            ("available_cores", 999),
        ],
    )
    def test_not_on_another_machine_or_with_other_packages(
        self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
    ) -> None:
        made = stored(bundle)
        with monkeypatch.context() as patch:
            patch.setattr(profiles, name, lambda: value)
            assert find_profile(bundle, provider="auto") is None
        assert find_profile(bundle, provider="auto") == made

    def test_a_file_that_was_moved_here_from_another_machine_is_not_used(self, bundle: Bundle) -> None:
        key = ProfileKey.here(bundle, provider="auto")
        made = stored(bundle, key=dataclasses.replace(key, cpu="Another CPU"))
        folder = profile_folder()
        (folder / made.key.file_name).rename(folder / key.file_name)
        assert find_profile(bundle, provider="auto") is None

    def test_one_of_another_version_is_not_used(self, bundle: Bundle) -> None:
        stored(bundle, profile_version=PROFILE_VERSION + 1)
        assert find_profile(bundle, provider="auto") is None

    def test_one_with_an_engine_that_is_gone_is_not_used(self, bundle: Bundle) -> None:
        stored(bundle, settings=dataclasses.replace(SETTINGS, search="annoy"))
        assert find_profile(bundle, provider="auto") is None


def without(*path: str) -> Any:
    def edit(raw: dict[str, Any]) -> None:
        *parents, last = path
        for key in parents:
            raw = raw[key]
        del raw[last]

    return edit


class TestDamage:
    @pytest.mark.parametrize(
        "data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000], ids=lambda data: repr(data[:6])
    )
    def test_a_file_that_is_no_profile_is_a_warning(
        self, bundle: Bundle, profile_cache: Path, data: bytes
    ) -> None:
        made = stored(bundle)
        (profile_cache / made.key.file_name).write_bytes(data)
        with pytest.warns(UserWarning, match=r"device profile .*cannot be used.*Run `pcrun tune` again"):
            assert find_profile(bundle, provider="auto") is None

    @pytest.mark.parametrize(
        "edit",
        [
            without("key"),
            without("settings", "search"),
            lambda raw: raw.update(extra=1),
            lambda raw: raw["settings"].update(ef="two"),
            lambda raw: raw["settings"].update(threads=2.5),
            lambda raw: raw.update(median_ms="fast"),
        ],
        ids=["no key", "no search", "unknown key", "ef as text", "half a thread", "median as text"],
    )
    def test_a_profile_with_a_wrong_value_is_a_warning(
        self, bundle: Bundle, profile_cache: Path, edit: Any
    ) -> None:
        made = stored(bundle)
        raw = to_jsonable(made)
        edit(raw)
        (profile_cache / made.key.file_name).write_text(json.dumps(raw))
        with pytest.warns(UserWarning, match="cannot be used"):
            assert find_profile(bundle, provider="auto") is None

    @pytest.mark.parametrize(
        "values",
        [{"threads": 0}, {"threads": -2}, {"search_threads": 0}, {"ef": 0}],
        ids=lambda values: f"{next(iter(values.items()))}",
    )
    def test_settings_that_nothing_can_run_with_are_a_warning(
        self, bundle: Bundle, profile_cache: Path, values: dict[str, int]
    ) -> None:
        made = stored(bundle)
        raw = to_jsonable(made)
        raw["settings"].update(values)
        (profile_cache / made.key.file_name).write_text(json.dumps(raw))
        with pytest.warns(UserWarning, match="must be at least 1"):
            assert find_profile(bundle, provider="auto") is None


class TestPlacesThatCannotBeUsed:
    def test_a_cache_folder_that_is_a_file(
        self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("PCRUN_CACHE", str(tmp_path / "file"))
        assert find_profile(bundle, provider="auto") is None
        with pytest.raises(SinkError, match=r"profile folder .*file cannot be made.*Set \$PCRUN_CACHE"):
            stored(bundle)

    def test_a_profile_that_is_a_folder(self, bundle: Bundle, profile_cache: Path) -> None:
        name = ProfileKey.here(bundle, provider="auto").file_name
        (profile_cache / name).mkdir(parents=True)
        assert find_profile(bundle, provider="auto") is None
        with pytest.raises(SinkError, match=name):
            stored(bundle)

    def test_no_home_folder(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse() -> Path:
            raise RuntimeError("Could not determine home directory.")

        for variable in ("PCRUN_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setattr(Path, "home", refuse)
        assert find_profile(bundle, provider="auto") is None
