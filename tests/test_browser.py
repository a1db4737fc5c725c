"""The server's page in a real browser, against a real server with the bundled model; `make browser-tests` runs these.

Oracles: `Model.generate` for what is written, `Model.score` for entropies, patches and probabilities.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeblt
from browsers import started_chromium, until
from edgeblt.scores import Scores
from page_server import PageServer, bundled_model, started_server

pytestmark = pytest.mark.browser

PROMPT = "It was a bright morning, and the captain of the ship"
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundled_model(tmp_path_factory.mktemp("page") / "demo-int8")


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[PageServer]:
    with started_server(bundle) as started:
        yield started


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[edgeblt.Model]:
    with edgeblt.load(bundle) as opened:
        yield opened


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with started_chromium() as browser:
        yield browser


@pytest.fixture
def open_page(chromium: Any, server: PageServer) -> Iterator[Callable[..., Any]]:
    """Opens the page, after what `prepare` does to it; fails at the end if it asked another host or had an error."""
    contexts, errors, asked = [], list[str](), list[str]()

    def opened(prepare: Callable[[Any], None] = lambda _: None, allowed: str = "", **options: Any) -> Any:
        def noted(said: Any) -> None:
            if said.type == "error" and not (allowed and allowed in said.text):
                errors.append(said.text)

        context = chromium.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", noted)
        prepare(page)
        page.goto(server.address)
        until(page, "document.getElementById('model').textContent.trim() !== ''")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert errors == []
    assert asked and all(url.startswith(server.address) for url in asked)


def wait_for_scores(page: Any, text: str) -> None:
    count = len(text.encode())
    until(
        page,
        f"document.querySelectorAll('.byte').length === {count} && !document.querySelector('.byte.unknown')",
    )


def write(page: Any, prompt: str, count: int, seed: int = 3) -> None:
    page.fill("#text", prompt)
    page.fill("#max", str(count))
    page.fill("#seed", str(seed))
    page.click("#write")
    page.wait_for_selector("#take:not([hidden])")


def shown_starts(page: Any) -> list[bool]:
    shown: list[bool] = page.evaluate(
        "[...document.querySelectorAll('.byte')].map(cell => cell.classList.contains('start'))"
    )
    return shown


def rule(scores: Scores, threshold: float) -> list[bool]:
    starts = scores.entropies > np.float32(threshold)
    return [True, *starts[1:].tolist()]


def counts_of(starts: list[bool]) -> str:
    patches = sum(starts)
    return f"{patches} {'patch' if patches == 1 else 'patches'}, {len(starts) / patches:.1f} bytes a patch"


def test_what_it_writes_is_what_the_model_writes(open_page: Callable[..., Any], model: edgeblt.Model) -> None:
    page = open_page()
    wait_for_scores(page, PROMPT)  # the text that it comes with is scored at once
    write(page, PROMPT, 80)
    wanted = model.generate(PROMPT, max_new_bytes=80, temperature=0.7, seed=3)
    wait_for_scores(page, PROMPT + wanted.decode())
    assert page.locator(".byte.written").count() == 80
    scores = model.score(PROMPT.encode() + wanted)
    assert shown_starts(page) == rule(scores, model.config.patching.threshold) == [True, *scores.patch_starts[1:]]
    assert page.inner_text("#counts") == counts_of(shown_starts(page))
    heights = page.evaluate(
        "[...document.querySelectorAll('.byte')].map(cell => +cell.style.getPropertyValue('--entropy'))"
    )
    np.testing.assert_allclose(heights, scores.entropies, atol=6e-5)
    assert page.inner_text("#said").startswith("80 bytes written")
    page.click("#take")
    assert page.input_value("#text") == PROMPT + wanted.decode()
    until(page, "!document.querySelector('.byte.written')")
    assert shown_starts(page) == [True, *scores.patch_starts[1:]]


# In the page, as a text may be at its end before a click from outside comes.
STOP_AT_THE_FIRST_BYTE = """() => {
    const [write, stop] = ["write", "stop"].map(id => document.getElementById(id));
    new MutationObserver((_, observer) => {
        if (!document.querySelector(".byte.written")) return;
        observer.disconnect();
        window.seen = {write: !write.disabled, stop: !stop.disabled};
        stop.click();
    }).observe(document.body, {childList: true, subtree: true, attributes: true});
}"""


def test_it_stops(open_page: Callable[..., Any], server: PageServer) -> None:
    page = open_page()
    page.fill("#max", "16000")
    page.fill("#temperature", "0")  # a sampled text may end by itself
    page.evaluate(STOP_AT_THE_FIRST_BYTE)
    page.click("#write")
    until(page, "window.seen")
    assert page.evaluate("window.seen") == {"write": False, "stop": True}
    page.wait_for_selector("#write:enabled")
    assert re.fullmatch(r"Stopped after [\d,]+ bytes?\.", page.inner_text("#said"))
    server.wait_until_idle()
    until(page, "document.getElementById('batch').textContent.startsWith('0 of ')")
    written = page.locator(".byte.written").count()
    assert 0 < written < 16000
    page.keyboard.press("Escape")  # nothing is being written: nothing happens
    assert page.locator(".byte.written").count() == written


def test_stop_sequences_and_seeds_reach_the_server(open_page: Callable[..., Any], model: edgeblt.Model) -> None:
    page = open_page()
    page.fill("#stops", "e t\n\\n")
    page.fill("#temperature", "0.3")
    write(page, PROMPT, 400, seed=11)
    wanted = model.generate(PROMPT, max_new_bytes=400, temperature=0.3, seed=11, stop=["e t", "\n"])
    assert len(wanted) < 400
    until(page, "document.getElementById('heard').textContent !== ''")
    assert page.text_content("#heard") == f"The model wrote: {wanted.decode()}"


def test_the_threshold_redraws_the_patches(open_page: Callable[..., Any], model: edgeblt.Model) -> None:
    page = open_page()
    wait_for_scores(page, PROMPT)
    scores = model.score(PROMPT)
    page.focus("#threshold")
    seen = set()
    for keys in (["Home"], ["End"], ["PageDown"] * 5, ["ArrowRight"] * 20):
        for key in keys:
            page.keyboard.press(key)
        threshold = float(page.input_value("#threshold"))
        assert shown_starts(page) == rule(scores, threshold)
        assert page.inner_text("#counts") == counts_of(rule(scores, threshold))
        assert page.inner_text("#level") == f"{threshold:.2f} nats"
        drawn = page.locator("#draw-steps .big").count()
        seen.add((page.inner_text("#counts"), drawn))
    assert len(seen) == 4
    page.click("#own")
    assert shown_starts(page) == [True, *scores.patch_starts[1:]]
    said = page.get_attribute("#threshold", "aria-valuetext")
    assert said == f"2.39 nats, the model's own: {page.inner_text('#counts')}"


def test_a_byte_pointed_at_shows_what_else_was_likely(open_page: Callable[..., Any], model: edgeblt.Model) -> None:
    page = open_page()
    write(page, PROMPT, 40)
    text = PROMPT.encode() + model.generate(PROMPT, max_new_bytes=40, temperature=0.7, seed=3)
    wait_for_scores(page, text.decode())
    scores = model.score(text)
    for index in (20, len(PROMPT) + 5, len(text) - 1):
        page.locator(f"#byte-{index}").hover()
        card = page.locator("#card")
        said = card.inner_text()
        assert f"(byte {text[index]}, hex {text[index]:02X})" in said
        assert f"Entropy before it {scores.entropies[index]:.2f} nats" in said
        assert f"byte {index - max(np.flatnonzero(scores.patch_starts[: index + 1])) + 1} of " in said
        assert ("Written by the model" in said) == (index >= len(PROMPT))
        rows = card.locator("tr").count()
        assert rows in (6, 7) and card.locator("tr.chosen").count() == 1
        share = float(np.exp(scores.logprobs[index])) * 100
        chosen = card.locator("tr.chosen td").last.inner_text()
        assert chosen == "< 0.1%" if share < 0.09 else abs(float(chosen.strip("%")) - share) <= 0.51
    page.mouse.move(5, 5)
    assert not page.is_visible("#card")


def test_a_keyboard_is_enough(open_page: Callable[..., Any], model: edgeblt.Model) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the text"
    page.keyboard.press("Enter")
    page.focus("#text")
    page.keyboard.press("Control+a")
    page.keyboard.type("The whale ")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#take:not([hidden])")
    reached = []
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
        if reached[-1] == "ribbon":
            break
    assert {"write", "score", "take", "copy", "temperature", "max", "seed", "stops", "key", "threshold"} <= set(reached)
    assert reached[-1] == "ribbon" and page.is_visible("#card")
    page.keyboard.press("Home")
    assert page.get_attribute("#ribbon", "aria-activedescendant") == "byte-0"
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("#ribbon", "aria-activedescendant") == "byte-1"
    label = page.get_attribute("#byte-1", "aria-label")
    assert label.startswith("h (byte 104, hex 68). Your text") and "Likeliest: " in label
    second = shown_starts(page).index(True, 2)
    page.keyboard.press("ArrowDown")
    assert page.get_attribute("#ribbon", "aria-activedescendant") == f"byte-{second}"
    page.keyboard.press("ArrowUp")
    assert page.get_attribute("#ribbon", "aria-activedescendant") in ("byte-0", "byte-1")
    page.keyboard.press("Escape")
    assert not page.is_visible("#card")
    assert page.inner_text("#heard").startswith("The model wrote: ")


def test_it_fits_a_phone(open_page: Callable[..., Any]) -> None:
    page = open_page(**PHONE)
    wait_for_scores(page, PROMPT)
    page.tap("#settings summary")
    page.fill("#seed", "3")
    page.fill("#max", "60")
    page.tap("#write")
    page.wait_for_selector("#take:not([hidden])")
    page.locator("#byte-10").scroll_into_view_if_needed()
    page.tap("#byte-10")
    assert page.is_visible("#card")
    frame = page.locator("#card").bounding_box()
    assert frame["x"] >= 0 and frame["x"] + frame["width"] <= 360
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    too_wide = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(each => each.getBoundingClientRect().right > 361).length"
    )
    assert too_wide == 0


def test_it_follows_the_system_into_the_dark(open_page: Callable[..., Any]) -> None:
    grounds = [
        open_page(color_scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    ]
    assert grounds == ["rgb(255, 255, 255)", "rgb(21, 24, 29)"]


def test_any_text_is_shown_byte_by_byte(open_page: Callable[..., Any], model: edgeblt.Model) -> None:
    page = open_page()
    text = 'né\t吾輩🐋\n<b onclick="x">&amp;'
    page.fill("#text", text)
    wait_for_scores(page, text)
    shown = page.evaluate("[...document.querySelectorAll('.byte')].map(cell => cell.textContent)")
    assert "".join(shown) == 'né‥⇥吾‥‥輩‥‥🐋‥‥‥↵<b·onclick="x">&amp;'
    page.click("#score")
    until(page, "document.getElementById('said').textContent.includes('bits a byte')")
    assert page.inner_text("#said").startswith(f"{model.score(text).bits_per_byte:.2f} bits a byte")


def test_the_policy_is_in_force(open_page: Callable[..., Any]) -> None:
    page = open_page(allowed="Content Security Policy")
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.in=1'}))")
    assert page.evaluate("window.in") is None
    refused = page.evaluate("fetch('https://example.invalid/').then(() => 'asked', error => error.name)")
    assert refused == "TypeError"


def events(*parts: dict[str, Any], end: str = "data: [DONE]\n\n") -> str:
    return "".join(f"data: {json.dumps(part)}\n\n" for part in parts) + end


def written(data: bytes, reason: str | None = None) -> dict[str, Any]:
    details = [
        {"byte": byte, "logprob": -1.0, "entropy": 1.0, "starts_patch": False, "alternatives": [[byte, -1.0]]}
        for byte in data
    ]
    return {"choices": [{"index": 0, "text": "", "finish_reason": reason, "edgeblt": details}]}


REFUSED = {"error": {"message": "max_tokens is 9; it must be 8", "type": "invalid_request_error"}}


ANSWERS: list[tuple[dict[str, Any] | None, str]] = [
    ({"status": 400, "json": REFUSED}, "max_tokens is 9; it must be 8"),
    ({"status": 401, "json": REFUSED}, "The server asks for its API key: see Settings."),
    ({"status": 429, "json": REFUSED, "headers": {"Retry-After": "7"}}, "The server is full; try again in 7 seconds."),
    ({"status": 502, "body": "<html>"}, "The server answered 502."),
    (None, "The server cannot be reached."),
    ({"body": events(written(b"ab"), end="")}, "The connection ended before the text did."),
    ({"body": events(written(b"ab"), REFUSED, end="")}, "max_tokens is 9; it must be 8"),
]


def test_refusals_are_said(open_page: Callable[..., Any]) -> None:
    answers = iter(ANSWERS)

    def answered(route: Any) -> None:
        answer, _ = next(answers)
        route.fulfill(**answer) if answer else route.abort()

    page = open_page(lambda page: page.route("**/v1/completions", answered), allowed="Failed to load resource")
    wait_for_scores(page, PROMPT)
    for _, said in ANSWERS:
        page.click("#write")
        until(page, f"document.getElementById('said').textContent === {json.dumps(said)}")
        assert "error" in page.get_attribute("#said", "class")
        assert page.is_enabled("#write") and page.is_disabled("#stop")


def test_a_key_is_sent_and_not_kept(open_page: Callable[..., Any]) -> None:
    sent: list[str | None] = []

    def guarded(route: Any) -> None:
        sent.append(route.request.headers.get("authorization"))
        route.fulfill(status=401, json=REFUSED) if sent[-1] != "Bearer secret" else route.continue_()

    page = open_page(lambda page: page.route("**/v1/*", guarded), allowed="Failed to load resource")
    page.wait_for_selector("#said.error")
    page.fill("#key", "secret")
    page.keyboard.press("Tab")
    wait_for_scores(page, PROMPT)
    assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    assert set(sent) == {None, "Bearer secret"}


def test_what_a_model_writes_is_text(open_page: Callable[..., Any]) -> None:
    hostile = b"<script>document.title='broken'</script><img src=x onerror=alert(1)>\xff\xe5\x90"
    body = events(written(hostile), written("吾".encode()[2:], "stop"))
    page = open_page(lambda page: page.route("**/v1/completions", lambda route: route.fulfill(body=body)))
    page.click("#write")
    page.wait_for_selector("#take:not([hidden])")
    assert page.locator(".byte.written").count() == len(hostile) + 1
    assert page.locator("#ribbon img, #ribbon script").count() == 0 and "broken" not in page.title()
    assert page.locator(".byte.written").nth(len(hostile) - 3).inner_text() == "FF"
    assert "The text ended" in page.inner_text("#said")


@pytest.mark.parametrize(("threshold", "level"), [(None, "\u2013"), (0.001, "0.00 nats")])
def test_other_patching_rules_leave_the_slider_alone(
    open_page: Callable[..., Any], threshold: float | None, level: str
) -> None:
    """A model without a threshold, and one whose starts are not those of its threshold."""

    def other(route: Any) -> None:
        route.fulfill(json=route.fetch().json() | {"threshold": threshold})

    page = open_page(lambda page: page.route("**/health", other))
    wait_for_scores(page, PROMPT)
    assert page.is_disabled("#threshold") and page.inner_text("#level") == level
    assert page.locator(".byte.start").count() > 1


def test_several_models_can_be_chosen(open_page: Callable[..., Any]) -> None:
    asked = []

    def prepare(page: Any) -> None:
        models = {"object": "list", "data": [{"id": "first"}, {"id": "second"}]}
        page.route("**/v1/models", lambda route: route.fulfill(json=models))
        page.route("**/v1/completions", lambda route: route.fulfill(body=events(written(b"ab", "length"))))
        page.route("**/v1/score", lambda route: route.fulfill(status=404, json=REFUSED))
        page.on("request", lambda request: asked.append(request.post_data) if request.post_data else None)

    page = open_page(prepare, allowed="Failed to load resource")
    page.select_option("#which", "second")
    page.click("#write")
    page.wait_for_selector("#take:not([hidden])")
    assert json.loads(asked[0])["model"] == "first" and json.loads(asked[-1])["model"] == "second"
