"""docs/api.md is what the sources say, and says something of every argument."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "tools"))

import api_page


def test_the_page_is_up_to_date() -> None:
    assert api_page.PAGE.read_text(encoding="utf-8") == api_page.page(), "run python tools/api_page.py"


def test_every_argument_is_explained() -> None:
    for entries in api_page.SECTIONS.values():
        for _, file, name in entries:
            found = api_page.find_definition(file, name)
            members = [node for node in found.body if isinstance(node, ast.FunctionDef)]
            for function in [found] if isinstance(found, ast.FunctionDef) else members:
                if function.name.startswith("_") or function.name.startswith("stream"):  # as generate or submit
                    continue
                said = ast.get_docstring(function) or ""
                arguments = [*function.args.args, *function.args.kwonlyargs, function.args.kwarg]
                names = {argument.arg for argument in arguments if argument} - {"self", "cls"}
                explained = {name for line in said.splitlines() for name in line.partition(":")[0].split(", ")}
                assert names <= explained, f"{name}.{function.name} does not explain {names - explained}"


def test_an_old_page_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "docs" / "api.md"
    old.parent.mkdir()
    old.write_text(api_page.page() + "more\n")
    monkeypatch.setattr(api_page, "PAGE", old)
    monkeypatch.setattr(api_page, "ROOT", tmp_path)
    monkeypatch.setattr(api_page, "page", lambda: "as it should be\n")
    monkeypatch.setattr(sys, "argv", ["api_page.py", "--check"])
    with pytest.raises(SystemExit) as exit:
        api_page.main()
    assert exit.value.code == "docs/api.md is not what the docstrings say; run python tools/api_page.py"
    monkeypatch.setattr(sys, "argv", ["api_page.py"])
    api_page.main()
    assert old.read_text() == "as it should be\n"


def test_the_command() -> None:
    script = Path(api_page.__file__)
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
