from __future__ import annotations

from pathlib import Path

import pytest

from oneroot import settings
from oneroot.errors import UsageError


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    return file


def test_without_a_file_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEROOT_SETTINGS", raising=False)
    monkeypatch.setattr(settings, "DEFAULT_FILE", tmp_path / "none")
    assert settings.load() == settings.Settings()


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    read = settings.load(write(tmp_path, "paths: {store: /srv/x}\nparallel: 3\ntimeouts: {stop: 4}\n"))
    assert read.paths.store == Path("/srv/x")
    assert read.paths.lxc == settings.Paths().lxc
    assert (read.workers, read.timeouts.stop) == (3, 4.0)


@pytest.mark.parametrize(
    "text",
    [
        "pahts: {}",
        "paths: {sotre: /x}",
        "paths: [1]",
        "paths: {store: relative}",
        "parallel: many",
        "parallel: -1",
        "parallel: true",
        "network: {ipv4: 10.0.0.1/8}",
        "network: {isolated: 1}",
        "ids: {first: 5}",
        "a: [",
        "- 1",
    ],
)
def test_a_wrong_file_is_refused_and_named(tmp_path: Path, text: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        settings.load(file)
    assert str(file) in caught.value.what


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        settings.load(tmp_path / "none.yaml")
