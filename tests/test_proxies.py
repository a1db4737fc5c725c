"""The reverse proxies of `deploy/` before a real server: streams pass byte by byte, and clients that leave are seen."""

import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from page_server import PageServer, bundled_model, started_server

DEPLOY = Path(__file__).parents[1] / "deploy"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
CADDY = shutil.which("caddy")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    if not (NGINX or CADDY):
        pytest.skip("neither nginx nor caddy is installed (Debian: apt install nginx-light caddy)")
    with started_server(bundled_model(tmp_path_factory.mktemp("proxied") / "demo-int8")) as started:
        yield started


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def nginx_command(server: PageServer, port: int, directory: Path) -> list[str]:
    location = (DEPLOY / "nginx.conf").read_text()
    assert location.count("http://127.0.0.1:8080;") == 1
    location = location.replace("http://127.0.0.1:8080;", f"http://{urlsplit(server.address).netloc};")
    scratch = "".join(
        f"{name}_temp_path {directory}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path = directory / "nginx.conf"
    path.write_text(
        f"daemon off; worker_processes 1; pid {directory}/pid; error_log {directory}/errors; events {{}}\n"
        f"http {{ access_log off; {scratch} server {{ listen 127.0.0.1:{port};\n{location}}} }}\n"
    )
    return [NGINX or "", "-p", str(directory), "-e", str(directory / "errors"), "-c", str(path)]


def caddy_command(server: PageServer, port: int, directory: Path) -> list[str]:
    source = (DEPLOY / "Caddyfile").read_text()
    assert source.count("127.0.0.1:8080") == 1 and source.startswith("blt.example.org {")
    source = source.replace("127.0.0.1:8080", urlsplit(server.address).netloc)
    source = source.replace("blt.example.org", f"http://127.0.0.1:{port}")
    path = directory / "Caddyfile"
    path.write_text("{\n\tadmin off\n}\n" + source)
    return [CADDY or "", "run", "--config", str(path), "--adapter", "caddyfile"]


@pytest.fixture(
    params=[
        pytest.param("nginx", marks=pytest.mark.skipif(not NGINX, reason="no nginx (Debian: apt install nginx-light)")),
        pytest.param("caddy", marks=pytest.mark.skipif(not CADDY, reason="no caddy (Debian: apt install caddy)")),
    ]
)
def proxied(request: pytest.FixtureRequest, server: PageServer, tmp_path: Path) -> Iterator[http.client.HTTPConnection]:
    """A connection to a proxy before the server."""
    port = free_port()
    command = (nginx_command if request.param == "nginx" else caddy_command)(server, port, tmp_path)
    with (tmp_path / "log").open("w") as log:
        home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/usr/sbin"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=home)
        try:
            wait_for(port, process, tmp_path / "log")
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            yield connection
            connection.close()
        finally:
            process.terminate()
            process.wait(timeout=60)


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(log.read_text())


def test_bytes_pass_while_the_text_is_still_being_written(
    proxied: http.client.HTTPConnection, server: PageServer
) -> None:
    body = json.dumps({"prompt": "It was", "max_tokens": 16000, "temperature": 0.7, "seed": 3, "stream": True})
    proxied.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    answer = proxied.getresponse()
    assert answer.status == 200 and answer.getheader("Content-Type", "").startswith("text/event-stream")
    first = answer.readline()
    assert json.loads(first.removeprefix(b"data: "))["object"] == "text_completion"
    assert server.health()["active"] == 1  # the first bytes are here, and more are being written
    answer.close()
    proxied.close()
    server.wait_until_idle()  # the proxy told the server that the client has gone


def test_the_page_passes_with_its_policy(proxied: http.client.HTTPConnection) -> None:
    proxied.request("GET", "/")
    answer = proxied.getresponse()
    page = answer.read()
    assert answer.status == 200 and b"<title>edgeblt</title>" in page
    assert answer.getheader("Content-Security-Policy", "").startswith("default-src 'none'")


def test_large_bodies_end_at_the_proxy(proxied: http.client.HTTPConnection) -> None:
    body = json.dumps({"input": "a" * 2_100_000})
    proxied.request("POST", "/v1/score", body, {"Content-Type": "application/json"})
    assert proxied.getresponse().status in (413, 502)
