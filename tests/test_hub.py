"""Checkpoints on the hub: what is downloaded, kept, continued and refused, against a stand-in hub on loopback."""

import hashlib
import logging
import os
import resource
import shutil
import socket
import string
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not to mypy
from hypothesis import example, given
from hypothesis import strategies as st

from edgeblt import cli
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import open_checkpoint
from edgeblt.export.checkpoints.generation_config import GENERATION
from edgeblt.export.checkpoints.naming import checkpoint_name
from edgeblt.export.hub.repository import is_hub_id, local_checkpoint, needed_files
from edgeblt.export.reference import TransformersReference
from edgeblt.quant.compress import quantize_checkpoint
from edgeblt.quant.optimum_quantizer import BltQuantizer
from hub_server import TOKEN, HubServer, fake_commit, running_hub

SINGLE, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
CHUNK = 1 << 12  # bytes that huggingface_hub writes at a time; by default more than a whole tiny model
META_FORM = [
    "config.json",
    "entropy_model/consolidated.pth",
    "entropy_model/params.json",
    "model.safetensors",
    "train_args.json",
]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "home" / "hub"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A running hub that this process takes for the real one, as it would with the variables in `environment`."""
    with running_hub() as server:
        point_to(server.endpoint, monkeypatch)
        for name, value in (
            ("HF_HUB_CACHE", str(cache)),
            ("HF_TOKEN_PATH", str(cache.parent / "token")),
            ("HF_HUB_OFFLINE", False),
            ("HF_HUB_DISABLE_XET", True),
            ("DOWNLOAD_CHUNK_SIZE", CHUNK),
        ):
            monkeypatch.setattr(constants, name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("NO_PROXY", "*")
        huggingface_hub.close_session()
        yield server
        huggingface_hub.close_session()


def point_to(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_URL_HOSTS", frozenset({"127.0.0.1"}), raising=False)


@pytest.fixture
def checkpoint(tiny_bundle: tuple[Path, Path]) -> Path:
    return tiny_bundle[0]


@pytest.fixture
def unused_port() -> Iterator[int]:
    with socket.socket() as bound:  # and never listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def refusal(name: str | Path) -> str:
    with pytest.raises(EdgebltError) as raised:
        local_checkpoint(name)
    message = str(raised.value)
    assert message.isprintable() and "; " in message  # a sentence, its remedy
    return message


def files(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def blobs(cache: Path, pattern: str = "*") -> list[Path]:
    return sorted(cache.glob(f"models--*/blobs/{pattern}"))


# Paths and ids.


@pytest.mark.parametrize(
    "name",
    [
        "facebook/blt-1b",
        "facebook/blt-1b@main",
        "facebook/blt-1b@refs/pr/3",
        "facebook/blt-1b@0123456789abcdef0123456789abcdef01234567",
        "a/b",
        "A_1.x/y-z_0",
    ],
)
def test_ids(name: str) -> None:
    assert is_hub_id(name) and is_hub_id(Path(name))


@pytest.mark.parametrize(
    "path",
    ["", ".", "blt", "blt@main", "/a/b", "./a/b", "../b", "a/..", "~/b", "a/b/c", "a/b/", "a//b", "a\\b/c", "a b/c",
     "a/b\n", "a/-b", "a--b/c", "a/b.git", "é/b", "a/" + "b" * 97, "C:/b",
     "a/b@", "a/b@ ", "a/b@../c", "a/b@/c", "a/b@x\x00", "a/b@\udcff"],
)  # fmt: skip
def test_paths(path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id(path)
    assert local_checkpoint(path) == Path(path)


def test_what_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("facebook").mkdir()
    assert is_hub_id("facebook/blt-1b")
    Path("facebook/blt-1b").symlink_to("nowhere")
    assert not is_hub_id("facebook/blt-1b")
    assert local_checkpoint("facebook/blt-1b") == Path("facebook/blt-1b")


@given(st.text(alphabet=string.ascii_letters + string.digits + "-_./@", max_size=20))
@example("a/b.git@v1")
@example("a/b--c@v--1")
def test_an_id_is_what_huggingface_hub_takes_for_one(text: str) -> None:
    repository, at, revision = text.partition("@")
    try:
        validate_repo_id(repository)
        valid = "/" in repository
    except HFValidationError:
        valid = False
    if not at:
        assert is_hub_id(text) == valid
    elif is_hub_id(text):
        assert valid and revision and ".." not in revision


def test_a_path_needs_no_huggingface_hub(tmp_path: Path) -> None:
    code = (
        "import sys; from edgeblt.export.hub import repository; repository.local_checkpoint(sys.argv[1]); "
        "print(*sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert not {"huggingface_hub", "torch", "safetensors"} & set(result.stdout.split())


# What is needed.


@pytest.mark.parametrize(
    ("there", "needed"),
    [
        (["config.json", "model.safetensors", "pytorch_model.bin", "README.md"], ["config.json", "model.safetensors"]),
        (
            ["config.json", INDEX, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", INDEX],
        ),
        (["config.json", SINGLE, INDEX, "model-00001-of-00001.safetensors"], ["config.json", SINGLE]),
        (["config.json", INDEX, "a.safetensors", "b/c.safetensors"], ["a.safetensors", "config.json", INDEX]),
        ([*META_FORM, "consolidated.pth", "pytorch_model.bin", "tokenizer.json", "entropy_model/x.bin"], META_FORM),
        (["config.json", "params.json", "consolidated.pth"], ["config.json", "consolidated.pth", "params.json"]),
        (["params.json", "consolidated.pth"], ["consolidated.pth", "params.json"]),
        (["config.json", "pytorch_model.bin", "training_args.bin"], ["config.json", "pytorch_model.bin"]),
        (
            ["config.json", f"{PICKLE}.index.json", "pytorch_model-1.bin", "pytorch_model-2.bin"],
            ["config.json", "pytorch_model-1.bin", "pytorch_model-2.bin", f"{PICKLE}.index.json"],
        ),
        (["config.json", "model.bin"], []),
        (["model.safetensors"], []),
        ([], []),
    ],
)  # fmt: skip
def test_needed_files(there: list[str], needed: list[str], hub: HubServer) -> None:
    hub.add("tiny/blt", {name: name.encode() for name in there})
    assert needed_files(there) == needed
    if not needed:
        assert "tiny/blt" in refusal("tiny/blt")
    else:
        assert files(local_checkpoint("tiny/blt")) == {name: name.encode() for name in needed}
    assert hub.downloaded() == needed


def test_links_lead_to_content_that_is_the_model_s_own(hub: HubServer, cache: Path) -> None:
    hub.add("meta/blt", {name: name.encode() for name in META_FORM})
    folder = local_checkpoint("meta/blt")
    assert folder.is_relative_to(cache / "models--meta--blt" / "snapshots")
    for name in META_FORM:
        assert (folder / name).is_symlink()
        assert (folder / name).resolve().parent == cache / "models--meta--blt" / "blobs"


# Downloaded.


def test_a_downloaded_checkpoint_is_that_of_the_directory(
    hub: HubServer, checkpoint: Path, cache: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeblt.progress.FIRST_LINE_AFTER", 0.0)  # a line however soon it is done
    hub.add_directory("tiny/blt", checkpoint)
    opened, local = open_checkpoint("tiny/blt"), open_checkpoint(checkpoint)
    assert opened.path.is_relative_to(cache) and checkpoint_name(opened) == "tiny/blt"
    assert opened.names() == local.names() and opened.config == local.config
    for name in opened.names():
        np.testing.assert_array_equal(opened.tensor(name), local.tensor(name))
    assert hub.downloaded() == ["config.json", GENERATION, SINGLE]
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.splitlines()[-1] == "downloading tiny/blt: 1/1 MB"
    hub.log.clear()
    assert local_checkpoint("tiny/blt") == opened.path
    assert hub.downloaded() == [] and capfd.readouterr().err == ""


def test_shards(hub: HubServer, checkpoint: Path, tmp_path: Path) -> None:
    from transformers import BltForCausalLM

    BltForCausalLM.from_pretrained(checkpoint).save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    shards = [path.name for path in sorted((tmp_path / "shards").glob("*.safetensors"))]
    assert len(shards) > 2
    hub.add_directory("tiny/blt", tmp_path / "shards")
    opened, local = open_checkpoint("tiny/blt"), open_checkpoint(checkpoint)
    for name in local.names():
        np.testing.assert_array_equal(opened.tensor(name), local.tensor(name))
    assert hub.downloaded() == ["config.json", GENERATION, *shards, INDEX]


def test_a_compressed_checkpoint(hub: HubServer, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('[global]\nformat = "int8"\n')
    quantize_checkpoint(checkpoint, tmp_path / "small", tmp_path / "own.toml")
    hub.add_directory("tiny/small", tmp_path / "small")
    opened = open_checkpoint("tiny/small")
    assert opened.record and opened.record.recipe.name == "own"
    (opened.path / SINGLE).unlink()
    (opened.path / SINGLE).symlink_to(tmp_path / "small" / SINGLE)
    assert open_checkpoint(opened.path).record == opened.record
    (tmp_path / "small" / SINGLE).unlink()
    with pytest.raises(EdgebltError, match="no regular file"):
        open_checkpoint(opened.path)


def test_a_revision(hub: HubServer) -> None:
    old, new = ({"config.json": b"{}", SINGLE: content} for content in (b"old", b"new"))
    model = hub.add("tiny/blt", new)
    model.commits[fake_commit(old)] = old
    model.revisions |= {"v1": fake_commit(old), "refs/pr/1": fake_commit(old)}
    assert files(local_checkpoint("tiny/blt@v1")) == old
    assert [request.path for request in hub.sent("GET", "/cdn/")] == [f"/cdn/{hashlib.sha256(b'old').hexdigest()}"]
    assert files(local_checkpoint("tiny/blt")) == new
    for revision in ("v1", "refs/pr/1", fake_commit(old)):
        assert files(local_checkpoint(f"tiny/blt@{revision}")) == old
    assert sorted(path.name for path in local_checkpoint("tiny/blt").parent.iterdir()) == sorted(model.commits)
    model.revisions["main"] = fake_commit(old)  # the hub moves on
    assert files(local_checkpoint("tiny/blt")) == old


@pytest.mark.parametrize("kept_in", ["variable", "file"])
def test_the_token_goes_to_the_hub_and_nowhere_else(
    kept_in: str, hub: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("tiny/blt", {"config.json": b"{}", SINGLE: b"weights"}, gated=True, private=True)
    if kept_in == "variable":
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    else:
        cache.parent.mkdir()
        (cache.parent / "token").write_text(TOKEN)  # where `hf auth login` puts it
    assert set(files(local_checkpoint("tiny/blt"))) == {"config.json", SINGLE}
    stored = hub.sent("GET", "/cdn/")
    assert [request.authorization for request in stored] == [None]
    assert {request.authorization for request in hub.log if request not in stored} == {f"Bearer {TOKEN}"}


def test_two_at_once_download_a_file_once(hub: HubServer) -> None:
    content = {"config.json": b"{}", SINGLE: os.urandom(50 * CHUNK)}
    hub.add("tiny/blt", content)
    found: list[dict[str, bytes]] = []
    threads = [threading.Thread(target=lambda: found.append(files(local_checkpoint("tiny/blt")))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [content] * 4
    assert len(hub.sent("GET", "/cdn/")) == 1


def test_the_cache_is_that_of_huggingface_hub(hub: HubServer) -> None:
    for name in ("a/theirs", "b/ours"):
        hub.add(name, {"config.json": b"{}", SINGLE: name.encode()})
    theirs = Path(huggingface_hub.hf_hub_download("a/theirs", SINGLE)).parent
    assert local_checkpoint("a/theirs") == theirs
    assert local_checkpoint("b/ours") == Path(huggingface_hub.hf_hub_download("b/ours", SINGLE)).parent
    assert len(hub.sent("GET", "/cdn/")) == 2


def test_content_shared_by_all_models(hub: HubServer, checkpoint: Path, cache: Path) -> None:
    """As huggingface_hub lays it out with Xet; the stand-in has none, so the file is moved there."""
    hub.add_directory("tiny/blt", checkpoint)
    folder = local_checkpoint("tiny/blt")
    blob, shared = (folder / SINGLE).resolve(), cache / "blobs" / "ab" / "abcd"
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(Path("../../blobs/ab/abcd"))
    assert open_checkpoint("tiny/blt").path == open_checkpoint(folder).path == folder
    shared.unlink()
    with pytest.raises(EdgebltError, match="is a link that leads nowhere"):
        open_checkpoint(folder)


def test_links_of_subfolders_are_followed(hub: HubServer, cache: Path) -> None:
    from edgeblt.export.checkpoints.files.checkpoint_files import checkpoint_file

    hub.add("meta/blt", {name: name.encode() for name in META_FORM})
    folder = local_checkpoint("meta/blt")
    name = "entropy_model/params.json"
    assert os.readlink(folder / name).startswith("../../../blobs/")
    assert checkpoint_file(folder, name).read_bytes() == name.encode()


def test_the_reference_and_optimum_s_quantizer_take_ids(hub: HubServer, checkpoint: Path) -> None:
    hub.add_directory("tiny/blt", checkpoint)
    reference, ids = TransformersReference("tiny/blt@main"), np.array([1, 50, 60])
    assert reference.name == "tiny/blt"
    np.testing.assert_array_equal(reference.row(ids).logits, TransformersReference(checkpoint).row(ids).logits)
    assert BltQuantizer.from_pretrained("tiny/blt").checkpoint == open_checkpoint("tiny/blt").path


# Broken off, and continued.


def test_a_download_is_continued_by_the_next_run(
    hub: HubServer, checkpoint: Path, cache: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeblt.progress.FIRST_LINE_AFTER", 0.0)  # a line however soon it is done
    hub.add_directory("tiny/blt", checkpoint)
    hub.break_after = (checkpoint / SINGLE).stat().st_size // 2
    broken = hub.break_after
    message = refusal("tiny/blt")
    assert message.startswith("the download of tiny/blt broke off (503 Service Unavailable); ")
    assert message.endswith("run the same command again to continue it")
    (partial,) = blobs(cache, "*.incomplete")
    arrived = partial.stat().st_size
    assert broken - CHUNK < arrived <= broken and not list(cache.glob("*/snapshots/*/*"))
    hub.repair()
    capfd.readouterr()
    assert (local_checkpoint("tiny/blt") / SINGLE).read_bytes() == (checkpoint / SINGLE).read_bytes()
    assert [request.range for request in hub.sent("GET", "/cdn/")] == [f"bytes={arrived}-"]
    assert capfd.readouterr().err.splitlines()[-1] == "downloading tiny/blt: 1/1 MB"
    assert not blobs(cache, "*.incomplete")


def test_a_connection_that_is_lost(
    hub: HubServer, unused_port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    hub.add("tiny/blt", {"config.json": b"{}", SINGLE: b"weights"})
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        f"http://127.0.0.1:{unused_port}/{{repo_id}}/{{revision}}/{{filename}}",
    )
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)  # between five attempts
    message = refusal("tiny/blt")
    assert message.startswith("the download of tiny/blt broke off (") and "refused" in message
    assert message.endswith("run the same command again to continue it")
    assert not caplog.records and logger.level == level


@pytest.mark.parametrize("left", [b"damaged", b"weight", b"weights and more", b"weights"])
def test_what_an_earlier_run_left(left: bytes, hub: HubServer, cache: Path) -> None:
    content = {"config.json": b"{}", SINGLE: b"weights"}
    hub.add("tiny/blt", content)
    blob = cache / "models--tiny--blt" / "blobs" / hashlib.sha256(b"weights").hexdigest()
    blob.parent.mkdir(parents=True)
    blob.with_name(f"{blob.name}.incomplete").write_bytes(left)
    if left == b"damaged":
        assert "arrived damaged" in refusal("tiny/blt")
        assert not blobs(cache)
    assert files(local_checkpoint("tiny/blt")) == content
    assert len(hub.sent("GET", "/cdn/")) == (left != b"weights")
    assert [path.name for path in blobs(cache, "*.incomplete")] == []


def test_too_little_room(hub: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("tiny/blt", {"config.json": b"{}", SINGLE: bytes(6_000_000)})
    usage = shutil.disk_usage(cache.parent.parent)._replace(free=4_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    message = refusal("tiny/blt")
    assert message.startswith("tiny/blt takes 0.01 GB more, but ") and "has 0.00 GB free; free some space" in message
    assert hub.downloaded() == []


def test_a_disk_that_fills_up(hub: HubServer, cache: Path) -> None:
    content = {"config.json": b"{}", SINGLE: os.urandom(40 * CHUNK)}
    hub.add("tiny/blt", content)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30 * CHUNK, hard))
    try:
        message = refusal("tiny/blt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert message.startswith(f"{cache} cannot be written (File too large); free some space, or set HF_HOME")
    hub.log.clear()
    assert files(local_checkpoint("tiny/blt")) == content
    assert [request.range for request in hub.sent("GET", "/cdn/")] == [f"bytes={30 * CHUNK}-"]


# Refused.


def test_a_model_that_is_not_there(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = (
        f"modles/blt is neither a directory nor a model that {hub.endpoint} shows you; correct the path or the name, "
        "or, if it is private, log in with `hf auth login` or set HF_TOKEN"
    )
    assert refusal("modles/blt") == expected
    hub.add("modles/blt", {"config.json": b"{}", SINGLE: b""}, private=True)
    assert refusal(Path("modles/blt")) == expected
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "missing/blt is neither" in refusal("missing/blt@main")
    assert len(hub.log) == 3  # one question each


def test_a_revision_that_is_not_there(hub: HubServer) -> None:
    """Even where the cache has what it was."""
    model = hub.add("tiny/blt", {"config.json": b"{}", SINGLE: b""})
    model.revisions["v1"] = model.revisions["main"]
    local_checkpoint("tiny/blt@v1")
    del model.revisions["v1"]
    for revision in ("v1", "v2", "0" * 40):
        assert refusal(f"tiny/blt@{revision}") == (
            f"the model tiny/blt has no revision {revision}; give a branch, tag or commit listed on "
            f"{hub.endpoint}/tiny/blt"
        )


def test_a_gated_model(hub: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("tiny/blt", {"config.json": b"{}", SINGLE: b"weights"}, gated=True)
    assert refusal("tiny/blt") == (
        f"the model tiny/blt is gated; accept its licence on {hub.endpoint}/tiny/blt, and log in with `hf auth login` "
        "or set HF_TOKEN"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    assert refusal("tiny/blt").startswith(f"{hub.endpoint} refuses access to tiny/blt (401); ")
    assert not list(cache.glob("models--*/snapshots/*/*"))


def test_a_model_of_another_kind(hub: HubServer) -> None:
    hub.add("a/pickles", {"config.json": b"{}", "model.ckpt": b"", "onnx/model.onnx": b""})
    assert refusal("a/pickles") == (
        f"the model a/pickles has its weights only as 'model.ckpt', which is not read; give one that has {SINGLE} or "
        f"{PICKLE}, and config.json"
    )
    for name, content in {"a/empty": {}, "a/text": {"README.md": b""}, "a/adapter": {SINGLE: b""}}.items():
        hub.add(name, content)
        assert refusal(name).startswith(f"the model {name} lacks {SINGLE} ")
    assert hub.downloaded() == []


def test_what_is_no_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("tiny/blt", {"config.json": b"{}", SINGLE: b""})
    for answer in ("<html>Log in to this network</html>", "[]", '{"id": "x", "siblings": [{}]}'):
        monkeypatch.setattr("hub_server.json.dumps", lambda value, answer=answer: answer)
        assert refusal("tiny/blt").startswith(f"{hub.endpoint} does not answer as the Hugging Face hub does; correct")


# Without the hub.


@pytest.mark.parametrize("without", ["offline", "refused", "down"])
def test_without_the_hub_the_cache_serves(
    without: str, hub: HubServer, cache: Path, unused_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each revision that was downloaded, and no other; nor for what was not downloaded whole."""
    for name in ("tiny/blt", "tiny/other"):
        hub.add(name, {"config.json": b"{}", SINGLE: name.encode()})
    hub.models["tiny/blt"].revisions["v1"] = hub.models["tiny/blt"].revisions["main"]
    folder = local_checkpoint("tiny/blt")
    huggingface_hub.hf_hub_download("tiny/other", "config.json")
    remedy = {"offline": "unset HF_HUB_OFFLINE", "refused": "connect to the network", "down": "try later"}[without]
    if without == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif without == "refused":
        point_to(f"http://127.0.0.1:{unused_port}", monkeypatch)
    hub.hub_is_down = True
    hub.log.clear()
    assert local_checkpoint("tiny/blt") == local_checkpoint(f"tiny/blt@{folder.name}") == folder
    for missing in ("tiny/blt@v1", "tiny/other", "modles/blt"):
        message = refusal(missing)
        assert message.find(missing.partition("@")[0]) >= 0 and remedy in message
    if without != "down":
        assert not hub.log
        assert f"modles/blt is neither a directory nor a model in the cache {cache}" in message


# As a user meets it.


def environment(hub: HubServer, home: Path, **others: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    return inherited | own | others


def run_edgeblt(environment: dict[str, str], *arguments: object) -> "subprocess.CompletedProcess[str]":
    return run_python(environment, "from edgeblt.cli import main; main()", *arguments)


def run_python(environment: dict[str, str], code: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def test_export_from_the_hub_and_the_same_model_offline(tiny_bundle: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, expected = tiny_bundle
    with running_hub() as hub:
        hub.add_directory("tiny/blt", checkpoint, gated=True)
        reader = environment(hub, tmp_path / "home", HF_TOKEN=TOKEN)
        result = run_edgeblt(reader, "export", "tiny/blt", tmp_path / "bundle")
        assert result.returncode == 0, result.stderr
        shown = result.stderr.splitlines()  # nothing where it was soon done
        assert all(line.startswith(("downloading tiny/blt: ", "exporting tiny/blt: ")) for line in shown)
        assert hub.downloaded() == ["config.json", GENERATION, SINGLE]
        hub.log.clear()
        offline = environment(hub, tmp_path / "home", HF_HUB_OFFLINE="1")
        code = (
            "from edgeblt.export.hub.repository import local_checkpoint as local; "
            "print(local('tiny/blt')); local('tiny/other')"
        )
        result = run_python(offline, code)
        assert files(Path(result.stdout.strip())).keys() == {"config.json", GENERATION, SINGLE} and not hub.log
        assert result.stderr.splitlines()[-1].endswith("unset HF_HUB_OFFLINE and download the model")
    own, theirs = files(tmp_path / "bundle"), files(expected)
    assert own.keys() == theirs.keys()
    assert {name for name in own if own[name] != theirs[name]} == {
        "README.md",
        "bundle.json",
    }  # they name the checkpoint
    assert own["README.md"].decode().replace("tiny/blt", checkpoint.name) == theirs["README.md"].decode()


@pytest.mark.parametrize("command", ["inspect", "export", "quantize"])
def test_a_refusal_is_one_sentence(
    command: str, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = [] if command == "inspect" else [str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["edgeblt", command, "modles/blt", *out])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer sets its own
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    captured = capfd.readouterr()
    assert (stopped.value.code, captured.out) == (2, "")
    (line,) = captured.err.splitlines()
    assert line.startswith("edgeblt: modles/blt is neither a directory nor a model that ")
    assert not (tmp_path / "out").exists()
