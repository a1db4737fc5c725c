"""The parts that commands share: writing results, combining settings, naming texts."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgeblt.commands.options import DRAFTS, RECIPES, listed_providers
from edgeblt.commands.results import deliver
from edgeblt.measure.benchmark import Setting
from edgeblt.measure.settings import combined_settings
from edgeblt.measure.texts import texts_of_files


@dataclass(frozen=True)
class Count:
    bytes: int


ONE, TWO = '{\n  "bytes": 1\n}\n', '[\n  {\n    "bytes": 1\n  },\n  {\n    "bytes": 2\n  }\n]\n'


@pytest.mark.parametrize(
    ("result", "text"), [(Count(1), ONE), ((Count(1),), ONE), ((Count(1), Count(2)), TWO)], ids=["one", "of one", "two"]
)
def test_json_of_results(result: object, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deliver(result, lambda: print("a table"), tmp_path / "result.json")
    assert (tmp_path / "result.json").read_text() == text and capsys.readouterr().out == "a table\n"
    deliver(result, lambda: print("a table"), Path("-"))
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("on_stdout", ["json", "csv", None])
def test_only_one_form_goes_to_stdout(
    on_stdout: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    json_file, csv_file = (Path("-") if name == on_stdout else tmp_path / name for name in ("json", "csv"))
    deliver(Count(1), lambda: print("a table"), json_file, csv_file, "bytes\n1\n")
    assert capsys.readouterr().out == {"json": ONE, "csv": "bytes\n1\n", None: "a table\n"}[on_stdout]
    assert {path.name for path in tmp_path.iterdir()} == {"json", "csv"} - {on_stdout}
    if on_stdout != "json":
        assert json.loads(json_file.read_text()) == {"bytes": 1}


def test_settings_are_distinct_combinations() -> None:
    """The bytes of a text are decoded once, whatever the temperatures; the last value varies fastest."""
    made = combined_settings([None], [1], ["none", "auto"], [None], [7], ["generated", "text"], [0.0, 0.7])
    assert made == tuple(
        Setting(None, 1, draft, None, 7, decode, temperature)
        for draft in ("none", "auto")
        for decode, temperature in (("generated", 0.0), ("generated", 0.7), ("text", 0.0))
    )


def test_texts_have_names_that_tell_them_apart(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a/same", "b/same", "other")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(path.name.encode())
    texts = [(text.name, text.data) for text in texts_of_files(paths)]
    assert texts == [(str(paths[0]), b"same"), (str(paths[1]), b"same"), ("other", b"other")]


def test_values_that_options_list() -> None:
    assert DRAFTS == "none, patcher, decoder, heads, ngram, auto"
    assert RECIPES == "int8, int4, int4-small, sparse-int8, sparse-int4, nf4"
    assert listed_providers(None) == (None,) and listed_providers("cpu, cuda,cpu") == ("cpu", "cuda")
    assert listed_providers("patcher=cpu,global=cuda") == ("patcher=cpu,global=cuda",)
