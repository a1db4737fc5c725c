"""A short run of the fuzzers; `make fuzz` runs more."""

import signal
from pathlib import Path

import pytest

from edgeblt.export.export_bundle import export_bundle
from fuzz_graphs import Worker, fuzz
from mambabyte_models import random_mambabyte
from overencoded_models import random_overencoded
from tiny_bundles import CASES, PREPARED, small_bundles


@pytest.mark.slow
def test_changed_bundles_work_or_are_refused(tmp_path: Path) -> None:
    bundles = small_bundles(tmp_path / "bundles")
    assert len(bundles) == len(CASES) + len(PREPARED)
    outcomes = list(fuzz(bundles, [f"test:{number}" for number in range(250)], tmp_path))
    assert not [str(outcome) for outcome in outcomes if outcome.is_finding]
    ended = [outcome.ended for outcome in outcomes]
    assert ended.count("works") > 15 and ended.count("refused") > 100  # it neither sees nothing nor breaks everything


@pytest.mark.slow
def test_changed_bundles_of_other_architectures_work_or_are_refused(tmp_path: Path) -> None:
    checkpoints = {
        "mambabyte": random_mambabyte(tmp_path / "mambabyte", 0),
        "overencoded": random_overencoded(tmp_path / "overencoded", 1),
    }
    bundles = {
        f"{name}-{recipe}": export_bundle(path, tmp_path / "bundles" / f"{name}-{recipe}", recipe).path
        for name, path in checkpoints.items()
        for recipe in ("fp32", "int8")
    }
    outcomes = list(fuzz(bundles, [f"test:{number}" for number in range(150)], tmp_path))
    assert not [str(outcome) for outcome in outcomes if outcome.is_finding]
    ended = [outcome.ended for outcome in outcomes]
    assert ended.count("works") > 10 and ended.count("refused") > 60


@pytest.mark.slow
def test_a_crash_is_seen(tmp_path: Path) -> None:
    """Both a worker whose process ends and one that does not answer are reported, and the next run works."""
    worker = Worker("portable", 60)
    (tmp_path / "bundle").mkdir()
    try:
        assert worker.run(tmp_path / "bundle")["ended"] == "refused"
        assert worker.process
        worker.process.kill()
        worker.process.wait()
        assert worker.run(tmp_path / "bundle")["ended"].startswith("crashes with exit code -9")
        assert worker.run(tmp_path / "bundle")["ended"] == "refused"
        worker.process.send_signal(signal.SIGSTOP)  # it cannot answer, however fast the machine
        worker.seconds = 1
        assert worker.run(tmp_path / "bundle")["ended"] == "runs longer than 1 s"
        worker.seconds = 60
        assert worker.run(tmp_path / "bundle")["ended"] == "refused"
    finally:
        worker.stop()
