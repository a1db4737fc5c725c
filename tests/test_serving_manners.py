"""How the server treats clients: keys, other sites, limits, those that are slow or wrong, and its own end."""

import http.client
import json
import random
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from edgeblt.errors import EdgebltError
from edgeblt.serving.options import ServerOptions, ServingLimits
from serving_process import ServerProcess, events, wait_for
from test_commands import run_command, sentence

SECRET = "the prompt that nobody may see"


@pytest.fixture(scope="module")
def bundle(tiny_bundle: tuple[Path, Path]) -> Path:
    return tiny_bundle[1]


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[ServerProcess]:
    """Patient for a second only."""
    with ServerProcess(bundle, "--slow-timeout", 1, "--max-connections", 40, "--max-body-bytes", 50_000) as process:
        yield process


def head(length: int | str, *lines: str) -> bytes:
    first = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*first, f"Content-Length: {length}", *lines, "", ""]).encode()


def read_all(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    parts = []
    try:
        while part := connection.recv(65_536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


# Who may ask.


def test_a_key_is_asked_for(bundle: Path) -> None:
    with ServerProcess(bundle, "--cors", "https://one.example", variables={"EDGEBLT_API_KEY": "s3cret"}) as server:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic s3cret"},
            {"Authorization": ""},
        ):
            status, answered, data = server.ask("POST", "/v1/completions", {"prompt": "x"}, headers)
            assert (status, answered["www-authenticate"]) == (401, "Bearer")
            assert json.loads(data)["error"]["code"] == "invalid_api_key"
        assert server.ask("GET", "/metrics")[0] == server.ask("GET", "/v1/models")[0] == 401
        assert server.ask("GET", "/health")[0] == server.ask("GET", "/openapi.json")[0] == 200
        right = {"Authorization": "Bearer s3cret", "Host": "any.example"}
        assert server.ask("POST", "/v1/completions", {"prompt": "x", "max_tokens": 1}, right)[0] == 200
        # Pages of the origin that was named may ask, and no others.
        asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        status, answered, _ = server.ask(
            "OPTIONS", "/v1/completions", None, {"Origin": "https://one.example", **asking}
        )
        assert (status, answered["access-control-allow-origin"]) == (200, "https://one.example")
        status, answered, _ = server.ask(
            "OPTIONS", "/v1/completions", None, {"Origin": "https://two.example", **asking}
        )
        assert status == 400 and "access-control-allow-origin" not in answered
        assert not any("s3cret" in line for line in server.lines)


def test_without_a_key_only_this_machine_by_its_name(server: ServerProcess) -> None:
    body = {"prompt": "x", "max_tokens": 1}
    for host in ("evil.example", "evil.example:8080", "", "[::1", "127.0.0.1.evil.example"):
        status, _, data = server.ask("POST", "/v1/completions", body, {"Host": host})
        assert status == 403 and b"by its own name" in data
    for host in ("localhost", "127.0.0.1:1", "[::1]:8080", "LOCALHOST"):
        assert server.ask("POST", "/v1/completions", body, {"Host": host})[0] == 200
    status, headers, _ = server.ask("OPTIONS", "/v1/completions", None, {"Origin": "https://evil.example"})
    assert status == 405 and not [name for name in headers if name.startswith("access-control")]
    # A page can send such a body without asking before.
    assert server.ask("POST", "/v1/completions", body, {"Content-Type": "text/plain"})[0] == 415


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org", ""])
def test_other_addresses_need_a_key(host: str) -> None:
    with pytest.raises(EdgebltError, match="can be reached from other machines; give --api-key"):
        ServerOptions(host=host)
    assert not ServerOptions(host=host, api_key="x").is_loopback
    assert ServerOptions(host=host, no_auth=True).api_key is None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_the_loopback_interface_needs_none(host: str) -> None:
    assert ServerOptions(host=host).is_loopback


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"port": 70_000}, "--port is 70000; it must be at most 65,535"),
        ({"grace_s": 0}, "--grace is 0; it must be above 0"),
        ({"api_key": "a b"}, "the API key must be visible ASCII characters"),
        ({"api_key": ""}, "the API key must be visible ASCII characters"),
        ({"api_key": "x" * 5000}, "at most 4,096"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], said: str) -> None:
    with pytest.raises(EdgebltError, match=said.replace("(", r"\(")):
        ServerOptions(**options)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"slots": 0}, "--slots is 0; it must be at least 1"),
        ({"queue": -1}, "--queue is -1"),
        ({"body_bytes": 0}, "--max-body-bytes is 0"),
        ({"request_s": 0}, "--request-timeout is 0"),
        ({"slow_s": float("nan")}, "--slow-timeout is nan"),
        ({"connections": 0}, "--max-connections is 0"),
    ],
)
def test_limits_out_of_range(limits: dict[str, Any], said: str) -> None:
    with pytest.raises(EdgebltError, match=said):
        ServingLimits(**limits)


def test_what_cannot_be_served_is_one_sentence(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "two bundles are called 'bundle'" in sentence(run_command(capfd, "serve", bundle, bundle, "--port", 0))
    assert "there are 1 names for 2" in sentence(run_command(capfd, "serve", bundle, bundle, "--alias", "x"))
    assert str(tmp_path / "none") in sentence(run_command(capfd, "serve", tmp_path / "none", "--port", 0))
    template = tmp_path / "chat.jinja"
    template.write_text("{% for %}")
    assert "the chat template cannot be used" in sentence(
        run_command(capfd, "serve", bundle, "--port", 0, "--chat-template", template)
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = sentence(run_command(capfd, "serve", bundle, "--port", taken.getsockname()[1]))
        assert "cannot listen at" in said and "give another --port" in said
    monkeypatch.setattr("edgeblt.commands.serving._PACKAGES", ("starlette", "not_installed"))
    assert sentence(run_command(capfd, "serve", bundle)).startswith(
        "serving needs not_installed; install what is missing with: "
    )


def test_a_template_is_rendered_in_a_sandbox(bundle: Path, tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text(
        "{{ messages[0].content.__class__.__mro__ }}{% if messages[1] %}{{ raise_exception('odd') }}{% endif %}"
    )
    with ServerProcess(bundle, "--chat-template", template) as server:
        message = {"role": "user", "content": "x"}
        for messages, said in (([message], "SecurityError"), ([message, message], "SecurityError")):
            error = server.post("/v1/chat/completions", {"messages": messages}, 400)["error"]
            assert said in error["message"]


# Sizes and times.


def test_bodies_are_bounded(server: ServerProcess) -> None:
    assert "at most 50,000 bytes" in server.complete("x" * 60_000, 413)["error"]["message"]
    with server.connected() as connection:  # announced, and not sent
        connection.sendall(head(10**9))
        assert b" 413 " in connection.recv(65_536)
    with server.connected() as connection:  # not announced
        connection.sendall(head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
        try:
            for _ in range(20):
                connection.sendall(b"1000\r\n" + b" " * 4096 + b"\r\n")
            answer = connection.recv(65_536)
        except ConnectionError:
            answer = b" 413 "
        assert b" 413 " in answer
    with server.connected() as connection:  # a head that does not end
        connection.sendall(b"GET /health HTTP/1.1\r\nx: " + b"y" * 40_000)
        assert b" 400 " in read_all(connection)
    assert server.complete("x", max_tokens=1)


def test_slow_clients_are_cut_off(server: ServerProcess) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(server.connected()) for _ in range(12)]
        for each in slow[:4]:
            each.sendall(b"POST /v1/completions HT")  # and nothing else
        for each in slow[4:8]:
            each.sendall(head(100) + b'{"prompt":')
        assert server.complete("x", max_tokens=1)
        answers = [read_all(each) for each in slow]
    assert answers[:4] == answers[8:] == [b""] * 4
    assert all(b" 408 " in answer and b"did not come within 1 seconds" in answer for answer in answers[4:8])


def test_connections_are_bounded(server: ServerProcess) -> None:
    with ExitStack() as stack:
        many = [stack.enter_context(server.connected()) for _ in range(60)]
        assert sum(read_all(each) == b"" for each in many) == 60
    assert server.complete("x", max_tokens=1)


def test_a_request_has_its_time(bundle: Path) -> None:
    with ServerProcess(bundle, "--request-timeout", 0.5, "--slots", 1) as server:
        (choice,) = server.complete("x", max_tokens=16_000, ignore_eos=True, utf8=True)["choices"]
        assert (choice["finish_reason"], choice["end_reason"]) == ("length", "time")
        assert choice["text"]
        with server.streaming() as response:
            chunks = list(events(response))
        assert chunks[-1]["choices"][0]["end_reason"] == "time"
        error = server.complete("x" * 65_000, 503, max_tokens=1)["error"]  # reading it takes longer
        assert error["code"] == "timeout"
        wait_for(lambda: server.get("/health")["active"] == 0)


def test_a_full_queue_is_said(bundle: Path) -> None:
    with ServerProcess(bundle, "--slots", 1, "--queue", 0) as server:
        with server.streaming() as response:
            next(events(response))
            status, headers, data = server.ask("POST", "/v1/completions", {"prompt": "x"})
            assert (status, json.loads(data)["error"]["code"]) == (429, "queue_full")
            assert 1 <= int(headers["retry-after"]) <= 60
            status, headers, _ = server.ask("POST", "/v1/completions", {"prompt": "x", "stream": True})
            assert (status, headers["content-type"]) == (429, "application/json")
            assert server.ask("POST", "/v1/score", {"input": "x"})[0] == 429
        wait_for(lambda: server.get("/health")["active"] == server.get("/health")["queued"] == 0)
        assert server.complete("x", max_tokens=1)


# Its log.


def test_the_log_has_no_prompts(bundle: Path) -> None:
    with ServerProcess(bundle) as server, ServerProcess(bundle, "--log-prompts") as telling:
        for each in (server, telling):
            each.complete(SECRET, max_tokens=3, ignore_eos=True)
            each.post("/v1/score", {"input": SECRET})
            each.ask("GET", "/%0d%0aforged%1b%5b31m")
            wait_for(lambda each=each: len(each.lines) >= 4)  # type: ignore[misc]
            assert len(each.lines) == 4 and all(line.isprintable() for line in each.lines)
            assert "POST /v1/completions 200 " in each.lines[1] and f"read={len(SECRET)} generated=3" in each.lines[1]
        assert not any(SECRET[:10] in line for line in server.lines)
        assert sum(SECRET in line for line in telling.lines) == 2


# Its end.


def test_sigterm_finishes_what_runs_and_refuses_the_rest(bundle: Path) -> None:
    with ServerProcess(bundle, "--slots", 1, "--grace", 60) as server:
        with server.streaming(max_tokens=3000, seed=1, temperature=1) as running, server.connected() as waiting:
            stream = events(running)
            first = next(stream)
            body = b'{"prompt": "x"}'
            waiting.sendall(head(len(body)) + body)
            wait_for(lambda: server.get("/health")["queued"] == 1)
            server.signal(signal.SIGTERM)
            refused = read_all(waiting)
            assert b" 503 " in refused and b"draining" in refused and b"retry-after" in refused.lower()
            chunks = [first, *stream]
        assert chunks[-1]["choices"][0]["end_reason"] == "length"
        assert server.wait() == 0
        with pytest.raises(OSError):
            server.connected().close()


def test_the_time_of_grace_ends(bundle: Path) -> None:
    with ServerProcess(bundle, "--grace", 0.3) as server:
        with server.streaming() as response:
            stream = events(response)
            next(stream)
            server.signal(signal.SIGTERM)
            chunks = list(stream)
        assert chunks[-1]["error"]["code"] == "draining"
        assert server.wait() == 0


def test_a_server_that_is_killed_can_be_started_again(bundle: Path) -> None:
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    with ServerProcess(bundle) as server, server.streaming() as response, server.connected() as other:
        stream = events(response)
        next(stream)
        body = b'{"prompt": "x", "max_tokens": 16000, "ignore_eos": true}'
        other.sendall(head(len(body)) + body)
        server.process.send_signal(signal.SIGKILL)
        assert read_all(other) == b""
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):  # not ended as if it were whole
            response.read()
        server.process.wait()
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    with ServerProcess(bundle, "--verify") as server:
        assert server.complete("x", max_tokens=1)


# Those that mean harm.


def wrong_requests(count: int, seed: int) -> Iterator[tuple[bytes, bool]]:
    """Bytes to send, and whether the client waits for an answer."""
    generator = random.Random(seed)
    good = b'{"prompt": "x", "max_tokens": 400, "stream": true, "ignore_eos": true}'
    for _ in range(count):
        kind = generator.randrange(8)
        if kind == 0:
            yield generator.randbytes(generator.randrange(1, 400)), False
        elif kind == 1:  # bytes of a good request changed
            changed = bytearray(head(len(good)) + good)
            for _ in range(generator.randrange(1, 6)):
                changed[generator.randrange(len(changed))] = generator.randrange(256)
            yield bytes(changed), False
        elif kind == 2:  # cut short
            whole = head(len(good)) + good
            yield whole[: generator.randrange(len(whole))], False
        elif kind == 3:  # left after the first bytes
            yield head(len(good)) + good, False
        elif kind == 4:  # too large
            yield head(10 ** generator.randrange(5, 30)) + b"x" * 1000, True
        elif kind == 5:
            yield head(0, "Transfer-Encoding: chunked", "Content-Length: 5") + b"zz\r\n", True
        elif kind == 6:
            body = json.dumps({"prompt": "x", generator.choice(["n", "stop", "regex", "logit_bias"]): [[]] * 50})
            yield head(len(body)) + body.encode(), True
        else:
            yield b"GET /" + b"a" * generator.randrange(1, 20_000) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", True


def misbehave(server: ServerProcess, count: int, seed: int) -> None:
    """Send wrong requests, and after every tenth a good one, which is answered."""
    for number, (data, waits) in enumerate(wrong_requests(count, seed)):
        with server.connected() as connection:
            try:
                connection.sendall(data)
                if waits:
                    connection.recv(1000)
            except ConnectionError:
                pass
        if number % 10 == 9:
            assert server.complete("x", max_tokens=2, ignore_eos=True)["usage"]["completion_tokens"] == 2


def check_misbehaviour(bundle: Path, count: int) -> None:
    with ServerProcess(bundle, "--slow-timeout", 5, "--slots", 4, "--queue", 200) as server:
        misbehave(server, count // 2, 1)
        wait_for(lambda: server.get("/health")["active"] == 0)
        before = server.memory()
        misbehave(server, count, 2)
        wait_for(lambda: server.get("/health")["active"] == 0)
        assert server.memory() - before < 12_000_000
        assert not any("Traceback" in line or " 500 " in line for line in server.lines), server.lines


def test_wrong_requests_leave_the_server_as_it_was(bundle: Path) -> None:
    check_misbehaviour(bundle, 80)


@pytest.mark.slow
def test_many_wrong_requests_leave_the_server_as_it_was(bundle: Path) -> None:
    check_misbehaviour(bundle, 500)


def test_an_answer_that_nobody_reads_is_given_up(bundle: Path) -> None:
    with ServerProcess(bundle, "--slow-timeout", 0.5, "--request-timeout", 2) as server:
        body = json.dumps(
            {"prompt": "x", "max_tokens": 16_000, "n": 4, "ignore_eos": True, "details": 32, "stream": True}
        )
        with server.connected() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(head(len(body)) + body.encode())
            wait_for(lambda: server.get("/health")["active"] == 4)
            wait_for(lambda: server.get("/health")["active"] == 0)
            wait_for(lambda: any("POST /v1/completions" in line for line in server.lines))
        assert server.complete("x", max_tokens=1)
