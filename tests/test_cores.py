"""Threads: how many a process can use, in containers too, and what becomes of those it cannot."""

import logging
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from conftest import Exported
from edgeblt.errors import EdgebltError
from edgeblt.measure.bandwidth import measure_bandwidth
from edgeblt.measure.benchmark import Setting, bench
from edgeblt.measure.tuning import tune
from edgeblt.model import load
from edgeblt.quant.torch_threads import keep_to_usable_cores
from edgeblt.runtime.machine import cores
from edgeblt.runtime.machine.cores import check_threads, cpu_quota, most_threads, usable_cores
from edgeblt.runtime.providers import LARGE_STAGE_BYTES, ThreadCounts
from test_commands import run_command, sentence


@pytest.fixture(autouse=True)
def not_warned_yet() -> Iterator[None]:
    cores.warn_of_waiting.cache_clear()
    yield
    cores.warn_of_waiting.cache_clear()


def system(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A system's files below `root`, as Linux has them."""
    files = {"proc/self/cgroup": groups} | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        # Version 2: the group's own limit, those around it, a container that sees its own group as the uppermost.
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 0.5),
        ("0::/../outside\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/not/mounted/here\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/a\n", {"a/cpu.max": "max 100000\n"}, math.inf),
        # Version 1: only the controller `cpu` counts, mounted under either name; -1 is no limit.
        ("4:memory:/m\n3:cpu,cpuacct:/c\n", {"cpu,cpuacct/c/cpu.cfs_quota_us": "250000",
                                              "cpu,cpuacct/c/cpu.cfs_period_us": "100000"}, 2.5),
        ("1:cpu:/c\n", {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "50000\n"}, 2),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ("5:cpuset:/c\n", {"cpuset/c/cpu.max": "100000 100000\n"}, math.inf),
        # Both at once, and nothing of use.
        ("1:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "9\n",
                             "unified/cpu.max": "700000 100000\n"}, 7),
        ("nonsense\n0\n\n", {}, math.inf),
        ("0::/a\n", {"a/cpu.max": "many few\n"}, math.inf),
        ("0::/a\n", {"a/cpu.max": "0 0\n"}, math.inf),
    ],
)  # fmt: skip
def test_the_quota_of_a_container(groups: str, files: dict[str, str], quota: float, tmp_path: Path) -> None:
    assert cpu_quota(system(tmp_path, groups, files)) == quota


def test_a_system_without_control_groups(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) == math.inf
    if hasattr(os, "sched_getaffinity"):
        assert usable_cores(tmp_path) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("maximum", "usable"), [("50000", 1), ("199999", 1), ("300000", 3), ("900000", 8)])
def test_usable_cores(maximum: str, usable: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert usable_cores(system(tmp_path, "0::/\n", {"cpu.max": f"{maximum} 100000"})) == usable


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeblt.runtime.machine.cores.usable_cores", lambda: 2)
    monkeypatch.setattr("edgeblt.runtime.providers.usable_cores", lambda: 2)
    monkeypatch.setattr("edgeblt.quant.torch_threads.usable_cores", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)


@pytest.mark.usefixtures("two_cores")
def test_threads_beyond_the_cores(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for threads in (None, 1, 2):
        check_threads(threads)
    assert caplog.messages == []
    for _ in range(3):  # said once
        check_threads(3)
        check_threads(24)
    assert most_threads() == 24
    assert caplog.messages == [
        f"threads is {threads}, and this process can use 2 cores: threads that wait for each other make it slower"
        for threads in (3, 24)
    ]
    for threads, shown in ((25, "25"), (5000, "5000"), (10**5000, "a number of thousands of digits")):
        with pytest.raises(EdgebltError) as refused:
            check_threads(threads)
        assert str(refused.value) == (
            f"threads is {shown}, and this process can use 2 cores; give at most 24, best leave it out"
        )
    for threads in (0, -1, -(10**20)):
        with pytest.raises(EdgebltError, match=r"^threads is -?\d+; it must be at least 1$"):
            check_threads(threads)


@pytest.mark.usefixtures("two_cores")
def test_threads_by_default_are_those_that_can_run() -> None:
    assert ThreadCounts.of(None, LARGE_STAGE_BYTES, True) == (2, 2, 1)
    assert ThreadCounts.of(None, LARGE_STAGE_BYTES, False) == (2, 2, None)
    assert ThreadCounts.of(None, LARGE_STAGE_BYTES - 1, False) == (1, 2, 1)
    assert ThreadCounts.of(5, 0, True) == ThreadCounts.of(5, LARGE_STAGE_BYTES, True) == (5, 5, 2)
    assert ThreadCounts.of(1, 0, True).share is None


@pytest.mark.usefixtures("two_cores")
def test_torch_keeps_to_the_cores_that_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
        keep_to_usable_cores()
        assert torch.get_num_threads() == 4  # as the user says
        monkeypatch.delenv("OMP_NUM_THREADS")
        keep_to_usable_cores()
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        keep_to_usable_cores()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_far_too_many_threads_start_none(
    exported: Callable[[int], Exported], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = exported(10)
    monkeypatch.setattr("edgeblt.runtime.opening.open_stage", lambda *_: pytest.fail("a graph was opened"))
    calls: list[Callable[[], object]] = [
        lambda: load(tiny.bundle, threads=5000),
        lambda: bench(tiny.bundle, [Setting(threads=1), Setting(threads=5000)]),
        lambda: tune(tiny.bundle, 0.1, threads=5000),
        lambda: measure_bandwidth(5000),
    ]
    for call in calls:
        with pytest.raises(EdgebltError, match=r"^threads is 5000, and this process can use \d+ cores?; give at most"):
            call()
    for command in (["bench"], ["generate", "x"], ["tune", "--max-bpb-increase", 1],
                    ["validate", "--reference", tiny.checkpoint]):  # fmt: skip
        said = sentence(run_command(capfd, command[0], tiny.bundle, *command[1:], "--threads", 5000))
        assert said.startswith("threads is 5000, and this process can use ")
