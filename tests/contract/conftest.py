"""Bundles to damage, and what it takes to be refused well."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pcrun.bundle.bundle import Bundle
from pcrun.cli import main
from pcrun.errors import BundleError
from tests.conftest import BundleMaker
from tests.contract.damage import ADVICE, FULL, Refusal, error_message, without_addresses


@pytest.fixture
def bundle(copied_bundle: BundleMaker) -> Path:
    """A sound bundle that has every kind of file."""
    return copied_bundle(**FULL)


@pytest.fixture
def sigterm_kept() -> Iterator[None]:
    """`main` sets a handler for its process; here the process is pytest."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def cli_error(capsys: pytest.CaptureFixture[str], sigterm_kept: None) -> Callable[[list[str]], str]:
    """Runs `pcrun` in this process; it must end as every error does. Returns the message."""

    def run(arguments: list[str]) -> str:
        capsys.readouterr()
        code = main(arguments)
        out, err = capsys.readouterr()
        return error_message(code, out, err)

    return run


@pytest.fixture
def refusal(cli_error: Callable[[list[str]], str]) -> Refusal:
    """The message with which both `Bundle.load` and `pcrun` refuse a bundle."""

    def refuse(path: Path) -> str:
        with pytest.raises(BundleError) as caught:
            Bundle.load(path)
        message = str(caught.value)
        told = cli_error(["--bundle", str(path), "--images", "never-opened.png"])
        assert without_addresses(told) == without_addresses(message)
        assert ADVICE.search(message), message
        return message

    return refuse
