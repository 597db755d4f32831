"""Device profiles: what `pcrun tune` found to be fastest for one bundle on one machine.

They lie in the user's cache folder, one JSON file per bundle, machine, software and requested provider. A
profile is only used where all of these are the same as when it was measured.
"""

import hashlib
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

from pcrun.bundle.bundle import Bundle
from pcrun.errors import SinkError
from pcrun.machine.facts import cpu_model, gpu_model, versions
from pcrun.machine.threads import available_cores
from pcrun.records import from_mapping, to_jsonable
from pcrun.search import SEARCH_NAMES

PROFILE_VERSION = 1
CACHE_VARIABLE = "PCRUN_CACHE"


@dataclass(frozen=True)
class RunSettings:
    """How a detector runs on a device: choices that change its speed, never its certified verdict.

    Attributes:
        provider: what the embedder runs on, resolved ("auto" no more).
        precision: arithmetic of the embedder; the bundle's own unless another was asked for.
        search: engine, one of `pcrun.search.SEARCH_NAMES`.
        ef: search width of "hnsw"; None for the others.
        threads: of the embedder.
        search_threads: of search and verification.
        spinning: whether idle threads of the embedder wait busily for the next operator.
    """

    provider: str
    precision: str
    search: str
    ef: int | None
    threads: int
    search_threads: int
    spinning: bool = True

    def __post_init__(self) -> None:
        for name in ("ef", "threads", "search_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class ProfileKey:
    """What a profile is valid for.

    Attributes:
        bundle: the bundle's digest.
        provider: as requested: "auto" or a name.
        cpu, gpu, cores: the machine.
        versions: of the packages that compute.
    """

    bundle: str
    provider: str
    cpu: str
    gpu: str | None
    cores: int
    versions: dict[str, str]

    @classmethod
    def here(cls, bundle: Bundle, *, provider: str) -> "ProfileKey":
        """The key of this bundle on this machine."""
        return cls(bundle.digest, provider, cpu_model(), gpu_model(), available_cores(), versions())

    @property
    def file_name(self) -> str:
        """Name of the profile's file."""
        text = json.dumps(to_jsonable(self), sort_keys=True)
        return f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


@dataclass(frozen=True)
class Trial:
    """One setting measured end to end, milliseconds per image."""

    settings: RunSettings
    median_ms: float
    p90_ms: float


@dataclass(frozen=True)
class DeviceProfile:
    """The chosen settings and all that were measured.

    Attributes:
        key: what they are valid for.
        settings: the fastest certified ones.
        median_ms, p90_ms: of those, end to end, decoded image to verdict, map and regions.
        images: how many images a trial scored.
        content: what was scored, for example "golden samples".
        trials: everything measured, in the order measured.
    """

    key: ProfileKey
    settings: RunSettings
    median_ms: float
    p90_ms: float
    images: int
    content: str
    trials: tuple[Trial, ...]
    profile_version: int = PROFILE_VERSION


def profile_folder() -> Path:
    """Where profiles are: $PCRUN_CACHE, else patchcore-edge/profiles in the user's cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "patchcore-edge" / "profiles"


def save_profile(profile: DeviceProfile) -> Path:
    """Write a profile; gives its path.

    Raises:
        SinkError: the cache folder cannot be written.
    """
    from pcrun.files import write_file

    path = make_profile_folder() / profile.key.file_name
    data = json.dumps(to_jsonable(profile), indent=2, sort_keys=True) + "\n"
    write_file(path, data.encode())
    return path


def make_profile_folder() -> Path:
    """Make the folder where profiles are, unless it is there; gives its path.

    Raises:
        SinkError: it cannot be made.
    """
    folder = profile_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(
            f"The profile folder {folder} cannot be made ({error}). Set ${CACHE_VARIABLE} to another."
        ) from error
    return folder


def find_profile(bundle: Bundle, *, provider: str) -> DeviceProfile | None:
    """The profile measured for this bundle on this machine, or None.

    A file that cannot be understood counts as none, with a warning: nothing depends on it but speed.
    """
    key = ProfileKey.here(bundle, provider=provider)
    try:
        path = profile_folder() / key.file_name
        data = path.read_bytes()
    except (OSError, RuntimeError):  # none was measured, or there is no home folder
        return None
    try:
        profile = from_mapping(DeviceProfile, json.loads(data), where="profile")
    except (ValueError, RecursionError) as error:
        warnings.warn(
            f"The device profile {path} cannot be used ({error}). Run `pcrun tune` again.", stacklevel=2
        )
        return None
    usable = profile.key == key and profile.profile_version == PROFILE_VERSION
    return profile if usable and profile.settings.search in SEARCH_NAMES else None
