"""The server as clients meet it: OpenAI's own client, curl, and what each answer says."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from edgeblt.model import Model, load
from serving_process import ServerProcess, events, wait_for

ROOT = Path(__file__).parents[1]
PROMPT = "It was the best of times"
SAMPLED: dict[str, Any] = {"temperature": 0.9, "seed": 7, "max_tokens": 40}


@pytest.fixture(scope="module")
def bundle(tiny_bundle: tuple[Path, Path]) -> Path:
    return tiny_bundle[1]


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[Model]:
    with load(bundle) as opened:
        yield opened


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[ServerProcess]:
    with ServerProcess(bundle, "--alias", "tiny") as process:
        yield process


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as opened:
        yield opened


def generated(model: Model, prompt: str | bytes = PROMPT, seed: int = 7, count: int = 40, **settings: Any) -> bytes:
    """What the model gives for `SAMPLED`."""
    return model.generate(prompt, count, temperature=0.9, seed=seed, **settings)


def as_text(data: bytes) -> str:
    return data.decode(errors="replace")


# Completions.


def test_completions_are_what_the_model_generates(client: openai.OpenAI, model: Model) -> None:
    answer = client.completions.create(model="tiny", prompt=PROMPT, n=3, **SAMPLED)
    expected = [generated(model, seed=7 + index) for index in range(3)]
    assert [choice.text for choice in answer.choices] == [as_text(text) for text in expected]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.finish_reason for choice in answer.choices} <= {"stop", "length"}
    assert answer.usage
    sizes = (len(PROMPT), sum(map(len, expected)))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == sizes
    assert answer.usage.to_dict()["unit"] == "bytes"
    assert answer.model == "tiny"


def test_prompts_come_as_lists_and_as_ids(server: ServerProcess, model: Model) -> None:
    prompts = ["a", "größer", ""]
    ids = [[1, *(byte + 4 for byte in prompt.encode())] for prompt in prompts]
    expected = [as_text(generated(model, prompt)) for prompt in prompts]
    for given in (prompts, ids):
        answer = server.post("/v1/completions", {"prompt": given, **SAMPLED})
        assert [choice["text"] for choice in answer["choices"]] == expected
    (choice,) = server.post("/v1/completions", {"prompt": ids[1], **SAMPLED})["choices"]
    assert choice["text"] == expected[1]


def test_a_stream_gives_the_same_text(client: openai.OpenAI, model: Model) -> None:
    options: Any = {"include_usage": True}
    with client.completions.create(
        model="tiny", prompt=PROMPT, n=2, stream=True, stream_options=options, **SAMPLED
    ) as stream:
        chunks = list(stream)
    for index in range(2):
        own = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert "".join(choice.text for choice in own) == as_text(generated(model, seed=7 + index))
        assert [choice.finish_reason for choice in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1].finish_reason in ("stop", "length")
    usage = chunks[-1].usage
    assert usage and usage.completion_tokens == sum(len(generated(model, seed=7 + index)) for index in range(2))


def test_settings_act_as_they_do_in_python(server: ServerProcess, model: Model) -> None:
    given = {"top_k": 20, "top_p": 0.9, "min_p": 0.01, "utf8": True, "ignore_eos": True, "dry_multiplier": 2.0}
    expected = generated(model, logit_bias={101 + 4: 2.0, 97 + 4: -3.5}, **given)  # type: ignore[arg-type]
    (choice,) = server.complete(PROMPT, **SAMPLED, **given, logit_bias={"105": 2, "101": -3.5})["choices"]
    assert choice["text"].encode() == expected
    assert choice["end_reason"] == "length"


def test_stop_sequences_end_a_text(server: ServerProcess, model: Model) -> None:
    text = generated(model, count=200, ignore_eos=True, utf8=True).decode()
    stop = text[30:32]
    (choice,) = server.complete(PROMPT, **SAMPLED | {"max_tokens": 200}, ignore_eos=True, utf8=True, stop=stop)[
        "choices"
    ]
    assert choice["text"] == text[: text.index(stop)]
    assert (choice["finish_reason"], choice["end_reason"]) == ("stop", "stop")


def test_log_probabilities_are_those_of_score(client: openai.OpenAI, model: Model) -> None:
    answer = client.completions.create(model="tiny", prompt=PROMPT, logprobs=2, echo=True, **SAMPLED)
    (choice,) = answer.choices
    text = PROMPT.encode() + generated(model)
    assert choice.text == as_text(text)
    assert choice.logprobs and choice.logprobs.token_logprobs and choice.logprobs.tokens
    np.testing.assert_allclose(choice.logprobs.token_logprobs, model.score(text).logprobs, rtol=0, atol=1e-4)
    names = [chr(byte) if byte < 128 else f"bytes:\\x{byte:02x}" for byte in text]
    assert choice.logprobs.tokens == names
    assert [len(top) for top in choice.logprobs.top_logprobs or []] == [2] * len(text)
    offsets = choice.logprobs.text_offset
    assert offsets and offsets == sorted(offsets)
    for name, offset in zip(names, offsets, strict=True):
        if len(name) == 1:
            assert choice.text[offset] == name


def test_a_prompt_is_scored_where_nothing_is_generated(server: ServerProcess, model: Model) -> None:
    (choice,) = server.complete(PROMPT, max_tokens=0, echo=True, logprobs=0)["choices"]
    assert choice["text"] == PROMPT
    np.testing.assert_allclose(choice["logprobs"]["token_logprobs"], model.score(PROMPT).logprobs, rtol=0, atol=1e-4)
    (choice,) = server.complete(PROMPT, max_tokens=0)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("", "length")


def test_details_come_with_every_byte(server: ServerProcess, model: Model) -> None:
    stream = model.stream(PROMPT, 40, temperature=0.9, seed=7, details=2)
    expected = [each for _ in stream for each in stream.details]
    with server.streaming(prompt=PROMPT, ignore_eos=False, details=2, **SAMPLED) as response:
        chunks = list(events(response))
    found = [each for chunk in chunks for each in chunk["choices"][0]["edgeblt"]]
    assert [each["byte"] for each in found] == [each.byte[0] for each in expected]
    assert [each["starts_patch"] for each in found] == [each.starts_patch for each in expected]
    for name in ("logprob", "entropy"):
        np.testing.assert_allclose(
            [each[name] for each in found], [getattr(each, name) for each in expected], atol=1e-4
        )
    for each in found:
        assert len(each["alternatives"]) == 2 and not each["drafted"] and not each["forced"]
        assert all(byte is None or 0 <= byte < 256 for byte, _ in each["alternatives"])


# Chats.


def test_a_chat_continues_its_template(client: openai.OpenAI, server: ServerProcess, model: Model) -> None:
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    answer = client.chat.completions.create(
        model="tiny", messages=messages, logprobs=True, top_logprobs=1, n=2, **SAMPLED
    )
    prompt = "system: Be brief.\nuser: Hi\nassistant:"
    for index, choice in enumerate(answer.choices):
        expected = generated(model, prompt, seed=7 + index, stop=b"\nuser:")
        assert choice.message.content == as_text(expected)
        assert choice.logprobs and choice.logprobs.content
        assert bytes(byte for each in choice.logprobs.content for byte in each.bytes or []) == expected
    assert "base model" in answer.to_dict()["note"]  # type: ignore[operator]
    with client.chat.completions.create(model="tiny", messages=messages, stream=True, **SAMPLED) as stream:
        deltas = [choice.delta for chunk in stream for choice in chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == answer.choices[0].message.content


# Constraints.


def test_json_regex_and_grammar_are_met(client: openai.OpenAI, server: ServerProcess) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}},
              "required": ["n"], "additionalProperties": False}  # fmt: skip
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    chat = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "A number"}], response_format=wanted, temperature=1, seed=1
    )
    assert json.loads(chat.choices[0].message.content or "")["n"] in range(10)
    answer = server.complete("x", regex="(red|blue){2}", temperature=1, details=0)
    assert re.fullmatch("(red|blue){2}", answer["choices"][0]["text"])
    assert answer["choices"][0]["end_reason"] == "constraint"
    assert any(each["forced"] for each in answer["choices"][0]["edgeblt"])
    answer = server.complete("x", grammar='start: "yes" | "no"')
    assert answer["choices"][0]["text"] in ("yes", "no")


# Errors.


def test_errors_are_openais(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as absent:
        client.completions.create(model="other", prompt="x")
    assert absent.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="tiny", prompt="x", best_of=3)
    assert (refused.value.param, refused.value.code) == ("best_of", "unsupported_parameter")
    assert client.completions.create(model="tiny", prompt="x", max_tokens=1, user="me", frequency_penalty=0)


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"tmperature": 1}, "tmperature", "tmperature is not offered here; leave it out"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "counted by byte it forbids letters"),
        ({"suffix": "x"}, "suffix", "cannot fill a gap"),
        ({"temperature": -1}, "temperature", "temperature is -1; it must be at least 0 and at most 100"),
        ({"top_p": 0}, "top_p", "above 0 and at most 1"),
        ({"max_tokens": "3"}, "max_tokens", "max_tokens is '3'; it must be a whole number or null"),
        ({"max_tokens": True}, "max_tokens", "max_tokens is True; it must be a whole number or null"),
        ({"max_tokens": 10**9}, "max_tokens", "at most 16384"),
        ({"n": 9}, "n", "at most 8"),
        ({"stop": [""]}, "stop[0]", "it must have at least 1"),
        ({"logit_bias": {"300": 1}}, "logit_bias", "no id from 0 to 259"),
        ({"logit_bias": {"30": 1e9}}, "logit_bias.30", "at most 100"),
        ({"prompt": []}, "prompt", "give text, ids"),
        ({"prompt": [3]}, "prompt", "the id 3, which is no byte"),
        ({"prompt": [1, "x"]}, "prompt", "give text, ids"),
        ({"prompt": "\ud800"}, None, "no UTF-8 form"),
        ({"prompt": "x" * 70_000}, None, "this server takes at most 65,536"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "use one of text, json_object, json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is missing"),
        ({"regex": "("}, None, "the regular expression '(' cannot be used"),
        ({"regex": "a", "grammar": "b"}, None, "a text has one constraint"),
        ({"grammar": "x" * 20_000}, None, "at most 16,384"),
        ({"prompt": ["x"] * 50, "n": 2}, None, "ask for too many answers"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(server: ServerProcess, fields: dict[str, Any], param: str | None, said: str) -> None:
    error = server.post("/v1/completions", {"prompt": "x", **fields}, 400)["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param), error
    assert said in error["message"]
    assert error["message"].isprintable() and len(error["message"]) < 400


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the body is no JSON"),
        (b"{", "the body is no JSON"),
        (b"[1]", "the body is [1]; it must be an object"),
        (b'{"prompt": NaN}', "NaN is no JSON number"),
        (b'{"prompt": "\xff"}', "the body is no JSON"),
        (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "the body is no JSON (too deep)"),
        (b'{"seed": ' + b"9" * 5000 + b', "prompt": ""}', "the body is no JSON"),
        (b"{}", "prompt is missing"),
    ],
)
def test_a_body_that_is_no_request(server: ServerProcess, body: bytes, said: str) -> None:
    assert said in server.post("/v1/completions", body, 400)["error"]["message"]


def test_routes_and_methods_that_are_not_there(server: ServerProcess) -> None:
    assert server.get("/v2", 404)["error"]["type"] == "not_found_error"
    status, headers, data = server.ask("DELETE", "/v1/completions")
    assert (status, headers["allow"]) == (405, "POST")
    assert "takes no DELETE" in json.loads(data)["error"]["message"]


# Scores.


@pytest.mark.parametrize("text", ["", "To be, or not to be", "größer 最高"])
def test_scores_are_the_models(server: ServerProcess, model: Model, text: str) -> None:
    found, expected = server.post("/v1/score", {"input": text, "details": 1}), model.score(text)
    assert (found["bytes"], found["patches"]) == (len(text.encode()), int(expected.patch_starts.sum()))
    np.testing.assert_allclose(found["logprobs"], expected.logprobs, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found["entropies"], expected.entropies, rtol=0, atol=1e-4)
    assert found["patch_starts"] == expected.patch_starts.tolist()
    assert [len(each) for each in found["alternatives"]] == [1] * len(text.encode())
    if text:
        assert found["bits_per_byte"] == pytest.approx(expected.bits_per_byte, abs=1e-4)
    else:
        assert found["bits_per_byte"] is None


def test_scores_with_another_threshold(server: ServerProcess, model: Model) -> None:
    text = "To be, or not to be"
    threshold = float(np.sort(model.score(text).entropies)[3])
    found = server.post("/v1/score", {"input": text, "threshold": threshold})
    expected = model.with_threshold(threshold).score(text)
    assert found["patch_starts"] == expected.patch_starts.tolist() != model.score(text).patch_starts.tolist()
    np.testing.assert_allclose(found["logprobs"], expected.logprobs, rtol=0, atol=1e-4)


# What else it answers.


def test_models_health_and_metrics(client: openai.OpenAI, server: ServerProcess, model: Model) -> None:
    assert [each.id for each in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "edgeblt"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    server.complete("x", max_tokens=5, ignore_eos=True)
    health = server.get("/health")
    assert (health["status"], health["slots"], health["active"], health["queued"]) == ("ok", 8, 0, 0)
    assert health["threshold"] == pytest.approx(model.config.patching.threshold)
    assert health["model"] == "tiny" and health["bytes_per_second"] >= 0
    status, headers, data = server.ask("GET", "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain")
    metrics = dict(re.findall(r"^(\w+(?:{.*})?) (\S+)$", data.decode(), re.MULTILINE))
    assert float(metrics['edgeblt_requests_total{endpoint="/v1/completions",status="200"}']) >= 1
    assert float(metrics['edgeblt_generated_bytes_total{model="tiny"}']) >= 5
    assert float(metrics['edgeblt_rows_total{model="tiny"}']) >= float(metrics['edgeblt_steps_total{model="tiny"}']) > 0
    assert float(metrics["edgeblt_time_to_first_byte_seconds_count"]) >= 1
    assert float(metrics["edgeblt_inter_byte_seconds_count"]) >= 1
    assert metrics['edgeblt_queued_texts{model="tiny"}'] == "0.0"


def test_several_models(bundle: Path, exported: Any) -> None:
    other = exported(7).bundle
    names = ("--alias", "one", "--alias", "two")
    with ServerProcess(bundle, other, *names) as server, load(other) as second, load(bundle) as first:
        for name, model in (("one", first), ("two", second)):
            (choice,) = server.complete(PROMPT, model=name, **SAMPLED)["choices"]
            assert choice["text"] == as_text(generated(model))
        assert server.complete(PROMPT, **SAMPLED)["model"] == "one"


def test_a_client_that_goes_away_frees_its_slot(bundle: Path) -> None:
    with ServerProcess(bundle, "--slots", 1, "--queue", 4) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)
        for _ in range(3):
            body = {"ignore_eos": True}
            with (
                client,
                client.completions.create(
                    model="bundle", prompt="x", max_tokens=16_000, stream=True, extra_body=body
                ) as stream,
            ):
                next(iter(stream))
                assert server.get("/health")["active"] == 1
            wait_for(lambda: server.get("/health")["active"] == 0)
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)
        client.close()
        # Neither does one that waits for a whole answer, nor one that waits for a slot.
        with server.connected() as running, server.connected() as waiting:
            request = json.dumps({"prompt": "x", "max_tokens": 16_000, "ignore_eos": True}).encode()
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            for each in (running, waiting):
                each.sendall(f"{head}Content-Length: {len(request)}\r\n\r\n".encode() + request)
            wait_for(lambda: server.get("/health")["queued"] == 1)
        wait_for(lambda: (server.get("/health")["active"], server.get("/health")["queued"]) == (0, 0))
        assert server.complete("x", max_tokens=3)
        assert sum(" 499 " in line for line in server.lines) == 5


# The documentation.


def documented_commands() -> list[str]:
    """Every curl line of docs/serving.md, with its continuations."""
    text = (ROOT / "docs" / "serving.md").read_text()
    return [found.replace("\\\n", " ") for found in re.findall(r"^    (curl (?:.*\\\n)*.*)$", text, re.MULTILINE)]


@pytest.mark.parametrize("command", documented_commands())
def test_the_documents_curl_lines_work(server: ServerProcess, command: str) -> None:
    if not shutil.which("curl"):
        pytest.skip("there is no curl")
    arguments = shlex.split(command.replace("localhost:8080", f"localhost:{server.port}").replace("my-bundle", "tiny"))
    result = subprocess.run([*arguments, "--silent", "--fail-with-body", "--ipv4"], capture_output=True, timeout=60)
    assert result.returncode == 0, result
    assert result.stdout
