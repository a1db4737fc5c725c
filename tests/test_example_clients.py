"""The clients of examples/ in JavaScript: a page in a real browser, and a Node program, on the bundled model.

Oracle: the same loop in Python on the same graph. Two runtimes round differently, so a client may write another byte
than Python where the logits of both are as good as equal: every byte must be within `TIE` of the likeliest.
"""

import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from browsers import started_chromium, until
from edgeblt.export.export_bundle import export_bundle
from edgeblt.measure.texts import DEMO_CHECKPOINT
from edgeblt.quant.recipes import recipe as recipe_module
from example_clients import (
    EXAMPLES,
    GreedyBytes,
    built_site,
    graph_file,
    greedy_bytes,
    node_text,
    opened,
    served_site,
    skip_without,
)
from sampled import mostly_slow

PROMPT = "It was a bright morning, and the captain of the ship"
COUNT = 200  # bytes written
TIE = 1e-3  # of logits whose largest is some 20: a few times what float32 products in another order differ by
SMALL = 4_500_000  # bytes of the int4 graph, everything in it
Bundles = Callable[[str], Path]
RECIPE_FILES = Path(recipe_module.__file__).parent
RECIPES = ("int8", "int4")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """The bundled model in a recipe, for any runtime, in one file."""

    @functools.cache
    def exported(name: str) -> Path:
        folder = tmp_path_factory.mktemp("clients")
        recipe = folder / f"{name}.toml"
        # The formats of the recipe, rounded to nearest: GPTQ takes minutes.
        recipe.write_text((RECIPE_FILES / recipe.name).read_text(encoding="utf-8").replace('method = "gptq"', ""))
        return export_bundle(DEMO_CHECKPOINT, folder / name, recipe, target="portable", embed=True).path

    return exported


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    skip_without("browser", "onnxruntime-web")
    with started_chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def addresses(bundles: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The address of the page with each recipe."""
    skip_without("browser", "onnxruntime-web")
    sites = [built_site(bundles(recipe), tmp_path_factory.mktemp("site") / recipe) for recipe in RECIPES]
    with served_site(sites[0]) as first, served_site(sites[1]) as second:
        yield dict(zip(RECIPES, (first, second), strict=True))


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page; fails at the end if it asked another host or had an error."""
    contexts, errors, asked = [], list[str](), list[str]()
    hosts = []

    def opened_page(address: str, prepare: Callable[[Any], None] = lambda _: None, **options: Any) -> Any:
        context = chromium.new_context(**({"viewport": {"width": 1000, "height": 900}} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        context.on("request", lambda request: asked.append(request.url))
        hosts.append(address)
        prepare(page)
        page.goto(address)
        return page

    yield opened_page
    for context in contexts:
        context.close()
    assert errors == []
    assert asked and all(url.startswith((*hosts, "data:", "blob:")) for url in asked)


def wait_until_ready(page: Any) -> None:
    until(page, "document.body.className !== 'loading'")
    assert page.inner_text("#said").startswith("Ready: ")


def write(page: Any, prompt: str, count: int, temperature: float = 0, seed: int = 1) -> str:
    """The text that the page has written, by its own button."""
    page.fill("#prompt", prompt)
    for id, value in (("maxBytes", count), ("temperature", temperature), ("seed", seed)):
        page.fill(f"#{id}", str(value))
    page.click("#write")
    until(page, "document.body.className !== 'writing'")
    return shown(page, ".written")


def shown(page: Any, chosen: str) -> str:
    text: str = page.evaluate(
        f"[...document.querySelectorAll('#text {chosen}')].map(each => each.textContent).join('')"
    )
    return text


def check_greedy(bundle: Path, written: str, unpacked: bool) -> GreedyBytes:
    data = written.encode()
    assert len(data) == COUNT
    compared = greedy_bytes(opened(bundle, unpacked), PROMPT.encode(), data)
    assert compared.gaps.max() <= TIE
    return compared


@pytest.mark.browser
@pytest.mark.parametrize("recipe", mostly_slow(RECIPES, keep=["int4"]))
def test_the_page_writes_what_python_writes(
    recipe: str, bundles: Bundles, addresses: dict[str, str], open_page: Callable[..., Any]
) -> None:
    page = open_page(addresses[recipe])
    wait_until_ready(page)
    written = write(page, PROMPT, COUNT)
    compared = check_greedy(bundles(recipe), written, unpacked=True)
    assert shown(page, ".given") == PROMPT
    assert page.locator(".patch").count() - 1 == compared.patches  # one more stands in the introduction
    assert page.inner_text("#patches") == str(compared.patches)
    assert page.inner_text("#mean") == f"{(len(PROMPT) + COUNT) / compared.patches:.1f}"
    assert page.inner_text("#speed").endswith(" bytes/s") and page.inner_text("#first").endswith(" ms")
    assert page.inner_text("#said") == f"Done: {COUNT} bytes written."
    assert page.inner_text("#machine") == "WebAssembly with SIMD, 2 threads."


@pytest.mark.browser
def test_a_second_visit_needs_no_network(addresses: dict[str, str], open_page: Callable[..., Any]) -> None:
    page = open_page(addresses["int4"])
    wait_until_ready(page)
    before = write(page, PROMPT, 40, temperature=0.8, seed=5)
    # The runtime is the largest file that the service worker keeps.
    until(page, "caches.match('ort/ort-wasm-simd-threaded.wasm').then(found => !!found)")
    asked = list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.context.set_offline(True)
    page.reload()
    wait_until_ready(page)
    assert write(page, PROMPT, 40, temperature=0.8, seed=5) == before
    assert write(page, PROMPT, 40, temperature=0.8, seed=6) != before
    assert asked and not any(url.endswith("/model.onnx") for url in asked)


@pytest.mark.browser
def test_writing_can_be_stopped_and_begun_again(addresses: dict[str, str], open_page: Callable[..., Any]) -> None:
    page = open_page(addresses["int4"])
    wait_until_ready(page)
    stops: list[Callable[[], None]] = [lambda: page.click("#stop"), lambda: page.keyboard.press("Escape")]
    for stop in stops:
        page.fill("#maxBytes", "10000")
        page.focus("#prompt")
        page.keyboard.press("Control+Enter")
        until(page, "document.querySelector('#text .written') !== null")
        assert page.is_disabled("#write") and page.is_enabled("#stop")
        stop()
        until(page, "document.body.className !== 'writing'")
        assert page.inner_text("#said").startswith("Stopped: ")
        assert page.is_enabled("#write") and page.is_disabled("#stop")
        assert 0 < len(shown(page, ".written").encode()) < 10_000
    page.fill("#maxBytes", "0")
    page.click("#write")
    assert page.inner_text("#said").startswith("Stopped: ")  # the browser says what is wrong with the field
    check_characters(page)


def check_characters(page: Any) -> None:
    """A character of several bytes stays whole, and nothing is taken for markup."""
    prompt = "Grüße an 吾輩 🐋,\n<b>und</b> "
    write(page, prompt, 8)
    assert shown(page, ".given") == prompt
    assert page.locator("#text b").count() == 0


@pytest.mark.browser
def test_a_phone_and_the_dark(addresses: dict[str, str], open_page: Callable[..., Any]) -> None:
    options = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    page = open_page(addresses["int4"], color_scheme="light", **options)
    wait_until_ready(page)
    write(page, PROMPT, 30)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    grounds = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(21, 24, 29)"]


@pytest.mark.browser
def test_a_model_that_arrives_broken_is_said(
    addresses: dict[str, str], bundles: Bundles, open_page: Callable[..., Any]
) -> None:
    broken = bytes(graph_file(bundles("int4"))["size"])

    def prepare(page: Any) -> None:
        page.context.route("**/model.onnx", lambda route: route.fulfill(body=broken))

    page = open_page(addresses["int4"], prepare, service_workers="block")
    until(page, "document.body.className === 'failed'")
    assert page.inner_text("#said") == "model/model.onnx did not arrive whole; reload the page"
    assert page.is_disabled("#write")


@contextmanager
def plain_server(site: Path) -> Iterator[str]:
    """Python's own static server, which sends none of the headers that isolate a page."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("localhost", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_address[1]}/"
        server.shutdown()


@pytest.mark.browser
def test_a_host_without_headers_gets_one_thread(
    bundles: Bundles, tmp_path: Path, chromium: Any, open_page: Callable[..., Any]
) -> None:
    with plain_server(built_site(bundles("int4"), tmp_path / "site")) as address:
        page = open_page(address)
        wait_until_ready(page)
        said = page.inner_text("#machine")
        assert said.startswith("WebAssembly with SIMD, 1 thread: more need a host that isolates the page")
        check_greedy(bundles("int4"), write(page, PROMPT, COUNT), unpacked=True)


def test_the_int4_model_is_a_small_download(bundles: Bundles) -> None:
    files = [path for path in bundles("int4").iterdir() if path.suffix not in (".md", ".json")]
    assert [path.name for path in files] == ["model.onnx"]
    assert files[0].stat().st_size == graph_file(bundles("int4"))["size"] < SMALL


@pytest.mark.parametrize("recipe", RECIPES)
def test_node_writes_what_python_writes(recipe: str, bundles: Bundles) -> None:
    skip_without("node", "onnxruntime-node")
    check_greedy(bundles(recipe), node_text(bundles(recipe), PROMPT, "--max-bytes", str(COUNT)), unpacked=False)


def test_node_repeats_a_seed_and_shows_patches(bundles: Bundles) -> None:
    skip_without("node", "onnxruntime-node")
    options = ("--max-bytes", "40", "--temperature", "0.8", "--top-k", "40", "--top-p", "0.9", "--seed")
    first, again, other = (node_text(bundles("int4"), "Grüße 🐋 ", *options, seed) for seed in ("5", "5", "6"))
    assert first == again != other
    patched = node_text(bundles("int4"), "Grüße 🐋 ", *options, "5", "--patches")
    assert "|" in patched
    assert patched.replace("|", "") == ("Grüße 🐋 " + first).replace("|", "")


@pytest.mark.parametrize(
    ("example", "parts"),
    [("browser", ("page.mjs", "worker.mjs", "offline.mjs")), ("node", ("generate.mjs",)), ("javascript", ("blt.mjs",))],
)
def test_clients_are_short(example: str, parts: tuple[str, ...]) -> None:
    lines = [line.strip() for part in parts for line in (EXAMPLES / example / part).read_text("utf-8").splitlines()]
    assert len([line for line in lines if line and not line.startswith("//")]) < 150
    assert max(map(len, lines)) <= 120
