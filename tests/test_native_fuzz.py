"""Models of one native operator that lie (`fuzz_operators`): each is answered or refused, and none ends a process."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fuzz_operators
from edgeblt.runtime import native
from test_native import ROOT, needs_library


@needs_library
def test_operators_answer_or_refuse() -> None:
    findings = fuzz_operators.run(seed=1, count=400, library=native.library_path())
    assert not findings, "\n".join(map(str, findings))


@needs_library
def test_the_fuzzer_reports_what_dies(tmp_path: Path) -> None:
    """A library that ends the process where it is asked which levels there are."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    source, library = tmp_path / "dying.c", tmp_path / "libdying.so"
    source.write_text(
        "#include <stdlib.h>\nint edgeblt_level_available(int level) { return 1; }\n"
        "int edgeblt_use_level(int level) { abort(); }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    findings = fuzz_operators.run(seed=1, count=2, library=library)
    assert [finding.number for finding in findings] == [0, 1]
    assert all("ended with -6" in finding.what for finding in findings)


@needs_library
def test_the_fuzzer_reports_a_refusal_of_what_is_legal(monkeypatch: pytest.MonkeyPatch) -> None:
    path = native.library_path()
    assert path
    case = next(case for case in (fuzz_operators.make(1, number) for number in range(1000)) if not case.changes)
    assert fuzz_operators.judge(case, path, 1) is None
    broken = replace(case, attributes={name: -1 for name in case.attributes})
    assert "a legal case was refused: " in str(fuzz_operators.judge(broken, path, 1))
    assert fuzz_operators.judge(replace(broken, changes=("all",)), path, 1) is None
    answers = iter([0, 1])
    monkeypatch.setattr(fuzz_operators, "answer", lambda *_: [np.full(3, next(answers)) for _ in range(2)])
    assert fuzz_operators.judge(case, path, 1) == "two runs gave two answers"


@pytest.mark.slow
@pytest.mark.skipif(not all(map(shutil.which, ("cmake", "g++", "make"))), reason="no cmake, make or g++")
def test_operators_under_sanitizers(tmp_path: Path) -> None:
    command = ["cmake", "-S", str(ROOT / "native"), "-B", str(tmp_path), "-DEDGEBLT_SANITIZE=ON", "-DEDGEBLT_CUDA=OFF"]
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run(["cmake", "--build", tmp_path, "--parallel", "2"], check=True, capture_output=True)
    library, environment = tmp_path / "libedgeblt.so", fuzz_operators.sanitizers()
    findings = fuzz_operators.run(seed=2, count=4000, library=library, environment=environment)
    assert not findings, "\n".join(map(str, findings))
