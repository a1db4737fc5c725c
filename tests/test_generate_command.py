"""`edgeblt generate`: settings from options and files, lines of details, many prompts, a text written in turn."""

import base64
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeblt.commands.interactive import Conversation, converse
from edgeblt.commands.prompt_lines import answer_prompts, read_prompt_lines
from edgeblt.decoding.constraints import Constraint
from edgeblt.decoding.settings import GenerationSettings
from edgeblt.decoding.settings_json import NAMES, settings_from_json
from edgeblt.errors import EdgebltError
from edgeblt.ids import OFFSET, decode
from edgeblt.model import Model, load
from test_commands import run_command, run_process, sentence


@pytest.fixture
def bundle(tiny_bundle: tuple[Path, Path]) -> Path:
    return tiny_bundle[1]


@pytest.fixture
def model(bundle: Path) -> Model:
    return load(bundle)


def shown(text: bytes) -> str:
    return text.decode(errors="replace") + "\n"


# Settings as JSON.


def test_every_setting_has_a_name() -> None:
    document = {
        "temperature": 0.5, "top_k": 3, "top_p": 0.9, "seed": 1, "min_p": 0.1,
        "logit_bias": {"x": 1.0, "\n": -math.inf},
        "dry_multiplier": 1, "dry_base": 2, "dry_allowed_length": 3, "dry_range": 4,
        "dry_sequence_breakers": ["\n", "é"], "max_new_bytes": 5,
        "stop": ["a"], "utf8": True, "ignore_eos": True, "draft": "none", "regex": "a+",
    }  # fmt: skip
    found = settings_from_json(document | {"grammar": None}, GenerationSettings(top_k=9))
    assert found == GenerationSettings(
        temperature=0.5, top_k=3, top_p=0.9, seed=1, min_p=0.1, logit_bias={b"x": 1.0, b"\n": -math.inf},
        dry_multiplier=1, dry_base=2, dry_allowed_length=3, dry_range=4,
        dry_sequence_breakers=[b"\n", "é"], max_new_bytes=5, stop=b"a", utf8=True,
        ignore_eos=True, draft="none", constraint=Constraint.regex("a+"),
    )  # fmt: skip
    assert set(NAMES) == {*document, "json_schema", "grammar"}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (3, "the settings are 3; give a JSON object"),
        ({"topk": 3}, "there is no setting 'topk'; use one of temperature, top_k,"),
        ({"regex": "a", "grammar": "b"}, "regex and grammar are both given; a text has one constraint"),
        ({"presence_penalty": 1}, "presence_penalty is not offered: counted by byte it forbids the letters of the"),
        ({"logit_bias": [[300]]}, "logit_bias is [[300]]; it must map bytes or ids to nats"),
    ],
)
def test_what_is_no_settings_file(document: object, said: str) -> None:
    with pytest.raises(EdgebltError) as refused:
        settings_from_json(document, GenerationSettings())
    assert str(refused.value).startswith(said)


def test_options_are_settings(bundle: Path, model: Model, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "settings.json").write_text(json.dumps({"temperature": 1.5, "seed": 2, "max_new_bytes": 40}))
    (tmp_path / "schema.json").write_text('{"enum": ["red", "green"]}')
    (tmp_path / "grammar.lark").write_text('start: "ab" /[cd]/')
    given = ("--settings", tmp_path / "settings.json")
    schema, grammar = '{"enum": ["red", "green"]}', 'start: "ab" /[cd]/'
    chosen = GenerationSettings(temperature=1.5, seed=2, max_new_bytes=40)
    text = model.generate("hello", settings=chosen)
    assert run_command(capfd, "generate", bundle, "hello", *given).stdout == shown(text)
    longer = run_command(capfd, "generate", bundle, "hello", *given, "--max-new-bytes", 60, "--ignore-eos", "--utf8")
    assert longer.stdout == shown(model.generate("hello", 60, settings=chosen, ignore_eos=True, utf8=True))
    for options, changes in (
        (("--min-p", 0.2, "--echo"), {"min_p": 0.2}),
        (
            ("--dry-multiplier", 2.0, "--stop", "\udcff", "--stop", "a"),
            {"dry_multiplier": 2.0, "stop": [b"\xff", b"a"]},
        ),
        (("--regex", "[a-d]{9}"), {"constraint": Constraint.regex("[a-d]{9}")}),
        (
            ("--json-schema", tmp_path / "schema.json"),
            {"constraint": Constraint.json_schema(schema)},
        ),
        (("--grammar", tmp_path / "grammar.lark"), {"constraint": Constraint.lark(grammar)}),
    ):
        expected = model.generate("hello", settings=chosen, **changes)
        result = run_command(capfd, "generate", bundle, "hello", *given, *options)
        assert result.stdout == ("hello" if "--echo" in options else "") + shown(expected)
    refused = run_command(capfd, "generate", bundle, "a", "--repetition-penalty", 2)
    assert sentence(refused).startswith("repetition_penalty is not offered: counted by byte")
    (tmp_path / "schema.json").write_text('{"type": "foo"}')
    said = sentence(run_command(capfd, "generate", bundle, "a", "--json-schema", tmp_path / "schema.json"))
    assert said.startswith(f"{tmp_path / 'schema.json'}: the JSON schema ") and said.endswith("foo); correct it")
    (tmp_path / "settings.json").write_text('{"topk": 3}')
    said = sentence(run_command(capfd, "generate", bundle, "a", *given))
    assert said.startswith(f"{tmp_path / 'settings.json'}: there is no setting 'topk'")
    (tmp_path / "settings.json").write_text("{")
    said = sentence(run_command(capfd, "generate", bundle, "a", *given))
    assert said.endswith("is no JSON; give a JSON object of settings")


def test_drafts_that_a_model_cannot_make(bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts").write_text('{"prompt": "a"}')
    for given in (("a",), ("--prompts", tmp_path / "prompts", "-o", tmp_path / "answers")):
        said = sentence(run_command(capfd, "generate", bundle, *given, "--draft", "heads"))
        assert said.endswith("this model cannot draft by heads; use one of none, patcher, decoder, ngram, auto")


def test_lines_of_details(bundle: Path, model: Model, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ("--max-new-bytes", 12, "--temperature", 1, "--seed", 1, "--details", 2)
    text = model.generate("hello", 12, 1.0, seed=1)
    printed = run_command(capfd, "generate", bundle, "hello", *options, "--json", "-", "--echo")
    lines = [json.loads(line) for line in printed.stdout.splitlines()]
    assert bytes(line["byte"] for line in lines[:-1]) == text and lines[-1] == {"end": "length"}
    assert all(len(line["alternatives"]) == 2 and line["logprob"] < 0 for line in lines[:-1])
    assert {key for line in lines[:-1] for key in line} == {
        "byte", "logprob", "alternatives", "entropy", "starts_patch", "origin",
    }  # fmt: skip
    both = run_command(capfd, "generate", bundle, "hello", *options, "--json", tmp_path / "lines")
    assert both.stdout == shown(text) and (tmp_path / "lines").read_text() == printed.stdout
    assert "give --json FILE, too" in sentence(run_command(capfd, "generate", bundle, "hello", "--details", 1))
    stopped = run_command(capfd, "generate", bundle, "x", "--regex", "ab", "--stop", "b", "--json", "-")
    assert json.loads(stopped.stdout.splitlines()[-1]) == {"end": "stop", "stop": [98]}


# Many prompts.

PROMPTS: list[dict[str, Any]] = [
    {"prompt": "hello", "id": 7},
    {"prompt": "grün", "settings": {"max_new_bytes": 5, "utf8": True}},
    {"prompt": "", "id": ["a"], "settings": {"regex": "(yes|no)!"}},
    {"prompt": "x", "settings": {"stop": ["a", "e"], "temperature": 1, "seed": 4}},
]
GREEDY = [{**document, "settings": {"temperature": 0, "max_new_bytes": 9}} for document in PROMPTS[:2]]
BASE = GenerationSettings(max_new_bytes=20, temperature=0.8, seed=1)


@pytest.mark.parametrize("documents", [GREEDY, PROMPTS])
def test_answers_are_those_of_one_by_one(model: Model, tmp_path: Path, documents: list[dict[str, Any]]) -> None:
    """Complete, and however they were cut short before: greedy ones, and others, which share steps."""
    (tmp_path / "prompts").write_text("\n\n".join(map(json.dumps, documents)))
    lines, out = read_prompt_lines(tmp_path / "prompts", BASE), tmp_path / "out"
    answer_prompts(model, lines, out)
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    for line, document, answer in zip(lines, documents, answers, strict=True):
        stream = model.stream(line.prompt, settings=line.settings)
        text = b"".join(stream)
        assert stream.end and answer["end"] == stream.end.reason and answer.get("id") == document.get("id")
        assert (base64.b64decode(answer["base64"]) if "base64" in answer else answer["text"].encode()) == text
    whole = out.read_bytes()
    for size in (0, 1, 40, len(whole) // 2, whole.index(b"\n"), whole.index(b"\n") + 1, len(whole) - 1, len(whole)):
        out.write_bytes(whole[:size])
        answer_prompts(model, lines, out)
        assert out.read_bytes() == whole


def test_answers_to_other_prompts(
    bundle: Path, model: Model, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts").write_text("\n".join(map(json.dumps, PROMPTS)))
    command = ("generate", bundle, "--prompts", tmp_path / "prompts", "-o", tmp_path / "out", "--max-new-bytes", 4)
    assert run_command(capfd, *command, "-q").code == 0
    before = (tmp_path / "out").read_bytes()
    said = sentence(run_command(capfd, *command, "--top-k", 3))
    assert said.endswith("out, line 1, answers another prompt, or with other settings or another bundle; give another"
                         " file, or remove it")  # fmt: skip
    (tmp_path / "prompts").write_text(json.dumps(PROMPTS[0]))
    assert "out has 4 answers to 1 prompts; give another file" in sentence(run_command(capfd, *command))
    assert (tmp_path / "out").read_bytes() == before
    for text, said in (
        ("{", "prompts, prompt 1: b'{' is no JSON; write one JSON object to a line"),
        ('{"prompt": 3}', "prompts, prompt 1: prompt is 3; it must be bytes or str"),
        ('{"text": "a"}', "give an object with prompt, and maybe id and settings"),
        (
            '{"prompt": "a"}\n{"prompt": "a", "settings": {"top_k": 0}}',
            "prompts, prompt 2: top_k is 0; it must be at least 1",
        ),
    ):
        (tmp_path / "prompts").write_text(text)
        assert said in sentence(run_command(capfd, *command))
    dead_end = {"regex": "ab", "logit_bias": {"b": -math.inf}}
    (tmp_path / "prompts").write_text(json.dumps({"prompt": "a", "settings": dead_end}))
    said = sentence(run_command(capfd, *command[:4], "-o", tmp_path / "other"))
    assert said.startswith("prompt 1: logit_bias, utf8 and constraint together forbid every byte")
    assert "needs -o FILE" in sentence(run_command(capfd, *command[:4]))
    assert "needs -o FILE" in sentence(run_command(capfd, *command, "-i"))
    for option in ("--echo", "--raw"):
        said = f"--prompts cannot be combined with {option}; leave one of them out"
        assert sentence(run_command(capfd, *command, option)) == said
    (tmp_path / "prompts").write_text(json.dumps(PROMPTS[0]))
    refused = sentence(run_command(capfd, *command[:4], "-o", tmp_path))
    assert "cannot be written (Is a directory)" in refused
    assert "is no regular file" in sentence(run_command(capfd, *command[:4], "-o", "/dev/null"))


# A text written in turn.


def test_a_conversation_is_one_text(model: Model) -> None:
    """Each answer is the continuation of the whole text so far; what is taken back leaves no trace."""
    chosen = GenerationSettings(max_new_bytes=12, temperature=0.9, seed=3)
    conversation, text = Conversation(model, chosen), b""
    for turn, typed in enumerate((b"Once ", b"and ", b"", b"\xff again")):
        expected = model.generate(text + typed, settings=chosen, seed=3 + turn)
        assert "".join(conversation.go_on(typed)) == expected.decode(errors="replace")
        text += typed + expected
        assert conversation.text() == text
    conversation.undo()
    conversation.undo()
    list(conversation.go_on(b" more"))
    shorter = conversation.text()
    assert shorter.startswith(text[: len(b"Once ") + 12]) and conversation.undo() and conversation.undo()
    assert conversation.undo() and not conversation.undo() and conversation.text() == b""


def test_an_answer_cut_short_stays_as_far_as_it_was_shown(model: Model) -> None:
    conversation = Conversation(model, GenerationSettings(max_new_bytes=50, temperature=0.0, ignore_eos=True))
    pieces = conversation.go_on(b"Once")
    shown_so_far = [next(pieces), next(pieces)]
    pieces.close()  # type: ignore[attr-defined]
    assert conversation.text().startswith(b"Once") and len(conversation.text()) <= 4 + 4 * len(shown_so_far)


def test_ctrl_c_stops_the_answer_and_not_the_program(
    model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the model writes, and while a line is typed."""
    go_on = Conversation.go_on
    lines: list[str | BaseException] = ["Once", KeyboardInterrupt(), "/text", EOFError()]
    typed = iter(lines)

    def interrupted(conversation: Conversation, line: bytes) -> Iterator[str]:
        pieces = go_on(conversation, line)
        yield next(pieces)
        pieces.close()  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    def read(prompt: str) -> str:
        line = next(typed)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr(Conversation, "go_on", interrupted)
    monkeypatch.setattr("builtins.input", read)
    chosen = GenerationSettings(max_new_bytes=50, temperature=0.0, ignore_eos=True, utf8=True)
    converse(model, b"", chosen)
    first = model.generate("Once", settings=chosen).decode()[0]
    assert capsys.readouterr().out == f"{first}\n\nOnce{first}\n"


def test_ctrl_c_stops_a_command_and_not_the_program(
    model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Patches of a long text take a while, and may fail."""
    results: Iterator[BaseException] = iter([KeyboardInterrupt(), EdgebltError("no memory")])

    def fail(_: Conversation) -> str:
        raise next(results)

    lines = iter(["/patches", "/patches", "/text", "/quit"])
    monkeypatch.setattr(Conversation, "patches", fail)
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    converse(model, b"Once", GenerationSettings(max_new_bytes=0))
    said = capsys.readouterr()
    assert said.out == "\n\nOnce\n" and said.err == "edgeblt: no memory\n"


def test_a_conversation_shows_how_far_it_has_read(
    model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("edgeblt.commands.reading.time.monotonic", lambda: now.__setitem__(0, now[0] + 9) or now[0])
    conversation = Conversation(model, GenerationSettings(max_new_bytes=1))
    for _ in range(2):
        list(conversation.go_on(b"a" * 1500))
        assert "reading the prompt: 1.5 kB of 1.5 kB" in capsys.readouterr().err


def test_what_a_conversation_is_not_combined_with(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for options in (("--json", "-"), ("--echo",), ("--raw",)):
        said = sentence(run_command(capfd, "generate", bundle, "-i", *options))
        assert said == f"--interactive cannot be combined with {options[0]}; leave one of them out"
    said = sentence(run_command(capfd, "generate", bundle, "-i", "-"))
    assert said.startswith("--interactive reads lines from stdin; give the prompt as an argument")


@pytest.mark.parametrize("stop", [(), ("a", "e", "\x00")])
def test_a_session_goes_on_where_the_text_ends(stop: tuple[str, ...], model: Model) -> None:
    session = model.session()
    text = b"".join(model.stream("some", 30, 1.2, seed=1, session=session, stop=stop))
    assert (session.ids[1:] - OFFSET).tolist() == list(b"some" + text)
    stream = model.stream(" more", 30, 1.2, seed=1, session=session)
    taken = next(stream) + next(stream)
    stream.close()
    assert (session.ids[1:] - OFFSET).tolist() == list(b"some" + text + b" more" + taken)


def test_the_interactive_command(bundle: Path, model: Model) -> None:
    """Lines from a pipe: no prompt is shown, and every command answers."""
    lines = b"Once\n/patches\n/undo\n/undo\n/text\nfirst\\\nsecond\n/text\n/what\n/save\n/help\n//x\n/quit\nnever\n"
    result = run_process("generate", bundle, "--interactive", "--max-new-bytes", 4, "--utf8", input=lines)
    said = result.stdout.decode()
    once, both = (model.generate(text, 4, utf8=True).decode() for text in ("Once", "first\nsecond"))
    assert said.startswith(once + "\n") and "taken back\nthere is nothing to take back\n" in said
    assert f"first\nsecond{both}\n" in said and "there is no /what; /help says what there is" in said
    assert "/save needs the name of a file" in said
    assert "never" not in said and result.stderr == b""


# Saved sessions.


def test_a_text_goes_on_from_a_file(
    bundle: Path, model: Model, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two runs write what one writes; the file may be replaced by the next."""
    state, sampled = tmp_path / "text.state", ("--temperature", 1, "--seed", 2, "--ignore-eos", "--raw")
    whole = model.generate("hello", 40, 1.0, seed=2, ignore_eos=True)
    first = run_process("generate", bundle, "hello", "--max-new-bytes", 15, *sampled, "--save-state", state)
    goes_on = ("--max-new-bytes", 25, *sampled, "--load-state", state, "--save-state", state)
    second = run_process("generate", bundle, *goes_on)
    assert first.stdout + second.stdout == whole
    assert decode(model.restore(state).ids) == b"hello" + whole
    again = model.generate(b"hello" + whole + b" again", max_new_bytes=9)
    ran = run_command(capfd, "generate", bundle, " again", "--max-new-bytes", 9, "--load-state", state)
    assert ran.stdout == shown(again)


def test_states_that_cannot_be(bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text("hello")
    said = sentence(run_command(capfd, "generate", bundle, "a", "--save-state", tmp_path / "text"))
    assert said.endswith("exists already and is not a saved session; remove it or choose another name")
    said = sentence(run_command(capfd, "generate", bundle, "--load-state", tmp_path / "text"))
    assert said.endswith("is not a saved session; give a file that Session.save or --save-state wrote")
    said = sentence(run_command(capfd, "generate", bundle, "--prompts", "a", "-o", "b", "--load-state", tmp_path / "t"))
    assert said.startswith("--prompts FILE needs -o FILE for the answers")


def test_a_conversation_is_saved(model: Model, tmp_path: Path) -> None:
    chosen = GenerationSettings(max_new_bytes=12)
    conversation = Conversation(model, chosen)
    list(conversation.go_on(b"Once "))
    conversation.save(str(tmp_path / "state"))
    text = conversation.text()
    other = Conversation(model, chosen)
    other.load(str(tmp_path / "state"))
    assert other.text() == text
    assert [*other.go_on(b"and ")] == [*conversation.go_on(b"and ")]
