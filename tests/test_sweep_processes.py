"""Several `edgeblt sweep` processes on one study, some of them killed."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from conftest import Exported

pytest.importorskip("optuna")

import optuna
from optuna.storages.journal import JournalFileBackend, JournalStorage
from sqlalchemy.pool import NullPool

TEXT = b"The history of the village begins with a mill by the river. " * 40
SERVER = next(
    (found for found in map(shutil.which, ("postgres", "/usr/lib/postgresql/15/bin/postgres")) if found), None
)


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a database of a server started for this test, as another user where this one is root."""
    if SERVER is None:
        pytest.skip("no PostgreSQL server is installed (Debian's package postgresql)")
    pytest.importorskip("psycopg")
    import pwd

    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    folder = Path(tmp_path_factory.mktemp("postgresql"))
    if user:
        folder = Path(shutil.copytree(folder, f"/tmp/edgeblt-postgresql-{os.getpid()}"))
        os.chown(folder, user.pw_uid, user.pw_gid)

    def become() -> None:
        if user:
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    programs = Path(os.path.realpath(SERVER)).parent
    initdb = shutil.which("initdb") or str(programs / "initdb")
    made = subprocess.run(
        [initdb, "-D", folder / "data", "-U", "edgeblt", "--auth", "trust", "-E", "UTF8", "--locale", "C"],
        capture_output=True, preexec_fn=become, cwd="/",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr.decode()
    command = [SERVER, "-D", str(folder / "data"), "-p", str(port), "-h", "127.0.0.1", "-k", str(folder)]
    with subprocess.Popen(command, preexec_fn=become, cwd="/", stderr=subprocess.DEVNULL) as server:
        try:
            _wait_for(port, server)
            yield f"postgresql+psycopg://edgeblt@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)
            if user:
                shutil.rmtree(folder)


def _wait_for(port: int, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(300):
        assert server.poll() is None
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the server does not answer")


@pytest.fixture
def start(exported: Callable[[int], Exported], tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Starts `edgeblt sweep` on a tiny model, with a directory of its own for each name."""
    (tmp_path / "text").write_bytes(TEXT)
    started = []

    def begin(name: str, url: str, *options: str) -> "subprocess.Popen[bytes]":
        text = str(tmp_path / "text")
        command = [sys.executable, "-m", "edgeblt", "sweep", str(exported(0).checkpoint), str(tmp_path / name)]
        command += ["--text", text, "--calibration", text, "--threads", "1", "--storage", url, "--lease", "4"]
        command += ["--json", str(tmp_path / f"{name}.json"), *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def _opened(url: str) -> optuna.storages.BaseStorage:
    """The study's storage for a test to look into; it leaves no connection open."""
    if url.startswith("journal:"):
        return JournalStorage(JournalFileBackend(url.removeprefix("journal:")))
    return optuna.storages.RDBStorage(url, engine_kwargs={"poolclass": NullPool})


def _running(study: optuna.Study) -> list[int]:
    states = optuna.trial.TrialState
    return [trial.number for trial in study.get_trials(deepcopy=False) if trial.state == states.RUNNING]


def _wait_until_running(
    process: "subprocess.Popen[bytes]", storage: optuna.storages.BaseStorage, complete: int = 0
) -> None:
    """Waits until a trial runs, and so many are complete."""
    for _ in range(1200):
        assert process.poll() is None, process.communicate()[1].decode()
        with suppress(KeyError):  # the study is not there yet
            study = optuna.load_study(study_name="sweep", storage=storage)
            done = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
            if len(done) >= complete and _running(study):
                return
        time.sleep(0.1)
    raise AssertionError("the study does not grow")


def _check(study: optuna.Study, results: list[Path], trials: int) -> None:
    """Every configuration has one trial that counts; both processes report the same of them."""
    counted = [
        json.dumps(trial.params, sort_keys=True)
        for trial in study.get_trials(deepcopy=False)
        if trial.state in (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    ]
    assert len(counted) == len(set(counted)) == trials
    assert not _running(study)
    documents = [json.loads(path.read_text()) for path in results]
    assert all(document["trials"] == documents[0]["trials"] for document in documents)
    assert len(documents[0]["trials"]) == trials
    assert all(trial["state"] in ("complete", "stopped early") for trial in documents[0]["trials"])


@pytest.mark.slow
def test_two_processes_on_one_postgresql_study_and_a_third_killed_between(
    postgresql: str, start: Callable[..., "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    trials = 14
    options, storage = ("--trials", str(trials)), _opened(postgresql)
    first, killed = start("first", postgresql, *options), start("killed", postgresql, *options)
    _wait_until_running(killed, storage, 2)
    killed.kill()
    second = start("second", postgresql, *options)
    for process in (first, second):
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0, said.decode()
    study = optuna.load_study(study_name="sweep", storage=storage)
    _check(study, [tmp_path / "first.json", tmp_path / "second.json"], trials)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite:///", "journal:"])
def test_a_killed_process_is_gone_on_with(
    kind: str, start: Callable[..., "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    url = f"{kind}{tmp_path / 'study'}"
    options, storage = ("--recipe", "fp32", "--recipe", "int8", "--recipe", "fp16", "--recipe", "int4"), _opened(url)
    first = start("first", url, *options)
    _wait_until_running(first, storage, 1)
    first.kill()
    last = start("second", url, *options)
    _, said = last.communicate(timeout=600)
    assert last.returncode == 0, said.decode()
    _check(optuna.load_study(study_name="sweep", storage=storage), [tmp_path / "second.json"], 4)


def test_a_process_that_is_asked_to_stop_gives_its_trial_back(
    start: Callable[..., "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'study'}"
    options = ("--recipe", "fp32", "--recipe", "int8", "--lease", "3600")  # nobody waits an hour
    process = start("first", url, *options)
    _wait_until_running(process, _opened(url))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    again = start("second", url, *options)
    _, said = again.communicate(timeout=300)
    assert again.returncode == 0, said.decode()
    assert len(json.loads((tmp_path / "second.json").read_text())["trials"]) == 2
