"""A difference is only told when it is one, and the history keeps what was measured."""

import subprocess
from pathlib import Path

import click
import pytest

from loadtests.bench.cases import Row
from loadtests.bench.compare import change, extract
from loadtests.bench.history import append, over_time, read


def test_all_pairs_on_one_side_are_a_difference() -> None:
    made = change([10, 11, 10, 12, 10], [8, 9, 9, 9, 8])
    assert made is not None
    assert not made.noise
    assert (made.words(), made.words(at_least=True)) == ("better", "worse")
    assert made.low < made.ratio < made.high < 1


def test_one_pair_on_the_other_side_is_noise() -> None:
    made = change([10, 10, 10, 10, 10], [5, 5, 5, 5, 10.1])
    assert made is not None
    assert made.noise
    assert made.words() == "noise"


def test_few_pairs_prove_nothing() -> None:
    made = change([10, 10], [5, 5])
    assert made is not None
    assert made.words() == "noise: 2 of 5 pairs"


def test_nothing_to_compare_with() -> None:
    assert change([0.0, 1.0], [1.0, 1.0]) is None
    assert change([], []) is None


def test_the_history_is_by_machine(tmp_path: Path) -> None:
    about = {"machine": "m1", "at": "2026-01-01T00:00:00Z", "commit": "abc", "quick": False, "used_by_others": {}}
    for value in (1.0, 2.0):
        path = append(tmp_path, about, {"idle": [Row("memory", value, "kB", 5.0)]})
    append(tmp_path, {**about, "machine": "m2"}, {})
    with path.open("a") as file:
        file.write('{"cut sho')
    runs = list(read(path))
    assert over_time(runs, "memory") == {"idle: memory": [("abc", 1.0, "kB"), ("abc", 2.0, "kB")]}
    assert over_time(runs, "other") == {}


def test_a_commit_is_taken_from_the_repository(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    (tmp_path / "file").write_text("then")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-qm", "First"]):
        subprocess.run([*git, *words], check=True)
    (tmp_path / "file").write_text("now")
    there = tmp_path_factory.mktemp("base")
    assert len(extract("HEAD", str(there))) >= 4
    assert (there / "file").read_text() == "then"
    with pytest.raises(click.BadParameter, match="no commit"):
        extract("nothing", str(there))
