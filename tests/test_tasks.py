"""Bundles in lm-evaluation-harness: the same answers as by the Python API, and as transformers' model gives there."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Exported
from edgeblt.decoding.sampling import log_softmax
from edgeblt.decoding.settings import GenerationSettings
from edgeblt.errors import EdgebltError
from edgeblt.evaluation import __main__ as command
from edgeblt.evaluation.generation_arguments import task_settings
from edgeblt.export.reference import TransformersReference
from edgeblt.ids import BOE, BOS, BPE_DELIMITER, EOS, OFFSET, encode
from edgeblt.model import Model

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.model import LM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from edgeblt.evaluation.lm_eval_model import BundleLM  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness and what it imports warn of their own matters

TASKS = Path(__file__).parents[1] / "examples" / "tasks"
CHOICES: list[dict[str, Any]] = [
    {"context": "It was the best of times", "choices": [", it was", " größer", "最高"], "gold": 0},
    {"context": "", "choices": ["a", "Once upon", "\x00"], "gold": 1},
    {"context": "Grüße an alle ", "choices": ["x" * 40, "y", "the end of the "], "gold": 2},
    {"context": "das Ende ", "choices": ["ä", "e", "é"], "gold": 1},
]
TEXTS: list[dict[str, Any]] = [
    {"text": "It was the best of times, größer, 最高. " * 3},
    {"text": "x"},
    {"text": "To be, or not to be"},
]
PROMPTS: list[dict[str, Any]] = [
    {"text": "Once upon a time", "rest": "?"},
    {"text": "größer", "rest": "?"},
    {"text": "", "rest": "?"},
]
STOPS, TOKENS = ["e", "\n\n"], 8
BYTES = 4 * TOKENS
COMMON = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
  cache_dir: {cache}
test_split: test
target_delimiter: ""
output_type: {kind}
{rest}
"""
RESTS = {
    "multiple_choice": 'doc_to_text: "{{context}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: gold',
    "loglikelihood_rolling": 'doc_to_text: ""\ndoc_to_target: "{{text}}"\nmetric_list:\n  - metric: bits_per_byte',
    "generate_until": f"""doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{rest}}}}"
metric_list:
  - metric: exact_match
generation_kwargs:
  until: {json.dumps(STOPS)}
  max_gen_toks: {TOKENS}
  do_sample: false""",
}


class TransformersLM(LM):  # type: ignore[misc]  # the harness has no type information
    """transformers' model as the harness's simplest kind: each text alone, the whole of it for every answer."""

    def __init__(self, reference: TransformersReference) -> None:
        super().__init__()
        self._reference = reference

    def _logits(self, data: bytes) -> Any:
        return self._reference.row(np.concatenate([[BOS], encode(data)])).logits.astype(np.float64)

    def _nats(self, context: str, continuation: str) -> tuple[float, bool]:
        data, first = (context + continuation).encode(), len(context.encode())
        logits = self._logits(data)[first : len(data)]
        targets = encode(data[first:])
        nats = log_softmax(logits)[np.arange(len(targets)), targets].sum()
        return float(nats), bool((logits.argmax(1) == targets).all())

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        return [self._nats(*request.args) for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        return [self._nats("", *request.args)[0] for request in requests]

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        return [self._continued(request.args[0].encode()).decode(errors="replace") for request in requests]

    def _continued(self, prompt: bytes) -> bytes:
        text = b""
        while len(text) < BYTES:
            logits = self._logits(prompt + text)[-1]
            logits[[BOE, BOS, BPE_DELIMITER]] = -np.inf  # no text has them
            chosen = int(logits.argmax())
            if chosen == EOS:
                break
            text += bytes([chosen - OFFSET])
            for stop in STOPS:
                if text.endswith(stop.encode()):
                    return text.removesuffix(stop.encode())
        return text


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    """A task of each kind, from files alone."""
    folder = tmp_path_factory.mktemp("tasks")
    documents: dict[str, list[dict[str, Any]]] = {
        "multiple_choice": CHOICES,
        "loglikelihood_rolling": TEXTS,
        "generate_until": PROMPTS,
    }
    for kind, rest in RESTS.items():
        file = folder / f"{kind}.jsonl"
        file.write_text("".join(json.dumps(document) + "\n" for document in documents[kind]))
        text = COMMON.format(name=f"test_{kind}", file=file, cache=folder / "cache", kind=kind, rest=rest)
        (folder / f"{kind}.yaml").write_text(text)
    return TaskManager(include_path=str(folder), include_defaults=False)


@pytest.fixture(scope="module")
def answered(tasks: TaskManager) -> Callable[..., dict[str, Any]]:
    """Runs the harness with a model."""

    def run(model: Any, **arguments: Any) -> dict[str, Any]:
        names = [f"test_{kind}" for kind in RESTS]
        results = lm_eval.simple_evaluate(model, tasks=names, task_manager=tasks, bootstrap_iters=0, **arguments)
        assert isinstance(results, dict)
        return results

    return run


@pytest.fixture(scope="module")
def ours(exported: Callable[[int], Exported], answered: Callable[..., dict[str, Any]]) -> tuple[Model, dict[str, Any]]:
    bundle = exported(10).bundle
    return exported(10).model, answered("edgeblt", model_args={"bundle": str(bundle)})


def answers(results: dict[str, Any], kind: str) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """Documents, with the model's answers to each."""
    for sample in sorted(results["samples"][f"test_{kind}"], key=lambda sample: sample["doc_id"]):
        yield sample["doc"], [response[0] for response in sample["resps"]]


def test_choices_are_scored_as_the_python_api_scores_them(ours: tuple[Model, dict[str, Any]]) -> None:
    model, results = ours
    right = 0
    for document, given in answers(results, "multiple_choice"):
        context = document["context"].encode()
        expected = []
        for choice in document["choices"]:
            nats = model.score(context + choice.encode()).logprobs[len(context) :].sum(dtype=np.float64)
            targets = encode(context + choice.encode())
            logits = model.session().feed(np.append(BOS, targets[:-1]))
            greedy = (logits.argmax(1) == targets)[len(context) :].all()
            expected.append((float(nats), bool(greedy)))
        assert given == expected
        right += int(np.argmax([nats for nats, _ in expected]) == document["gold"])
    assert results["results"]["test_multiple_choice"]["acc,none"] == right / len(CHOICES)


def test_the_likeliest_bytes_are_told(ours: tuple[Model, dict[str, Any]], tiny_bundle: tuple[Path, Path]) -> None:
    """A continuation is greedy if every byte is the likeliest; an empty one is, at no cost."""
    letters = [chr(code) for code in range(32, 127)]
    likeliest = {letter: int(ours[0].session().feed([BOS, ord(letter) + OFFSET])[-1].argmax()) for letter in letters}
    first, chosen = next((letter, id - OFFSET) for letter, id in likeliest.items() if id in range(OFFSET, OFFSET + 128))
    pairs = [(first, chr(chosen)), (first, chr(chosen ^ 1)), (first, chr(chosen) + "\x00"), (first, "")]
    given = BundleLM(str(tiny_bundle[1])).loglikelihood([request("loglikelihood", pair) for pair in pairs])
    second = ours[0].session().feed([BOS, ord(first) + OFFSET, chosen + OFFSET])[-1].argmax() == OFFSET
    assert [greedy for _, greedy in given] == [True, False, second, True] and given[3][0] == 0.0


def test_whole_texts_are_scored_as_the_python_api_scores_them(ours: tuple[Model, dict[str, Any]]) -> None:
    model, results = ours
    nats = size = 0.0
    for document, given in answers(results, "loglikelihood_rolling"):
        scores = model.score(document["text"])
        assert given == [scores.logprobs.sum(dtype=np.float64)]
        nats, size = nats + given[0], size + len(scores.logprobs)
    found = results["results"]["test_loglikelihood_rolling"]["bits_per_byte,none"]
    assert found == pytest.approx(-nats / size / np.log(2))


def test_texts_are_generated_as_the_python_api_generates_them(ours: tuple[Model, dict[str, Any]]) -> None:
    model, results = ours
    for document, given in answers(results, "generate_until"):
        expected = model.generate(document["text"], max_new_bytes=BYTES, temperature=0.0, stop=STOPS)
        assert given == [expected.decode(errors="replace")]


def test_transformers_gives_the_same_answers(
    ours: tuple[Model, dict[str, Any]],
    exported: Callable[[int], Exported],
    answered: Callable[..., dict[str, Any]],
) -> None:
    theirs, results = answered(TransformersLM(exported(10).reference)), ours[1]
    for kind in RESTS:
        for (document, given), (_, expected) in zip(answers(results, kind), answers(theirs, kind), strict=True):
            if kind == "generate_until":
                assert given == expected, document
                continue
            for ours_, theirs_ in zip(given, expected, strict=True):
                np.testing.assert_allclose(ours_, theirs_, rtol=1e-4, atol=1e-4)
        assert results["results"][f"test_{kind}"] == pytest.approx(
            {name: value if isinstance(value, str) else pytest.approx(value, rel=1e-4, nan_ok=True)
             for name, value in theirs["results"][f"test_{kind}"].items()}
        )  # fmt: skip


def test_the_batch_size_changes_no_answer(
    ours: tuple[Model, dict[str, Any]], answered: Callable[..., dict[str, Any]]
) -> None:
    path = str(ours[0].bundle.path)
    for size in ("auto:4", 2):
        again = answered("edgeblt", model_args=f"bundle={path},threads=1", batch_size=size)
        for kind in RESTS:
            assert list(answers(again, kind)) == list(answers(ours[1], kind))


def request(kind: Any, arguments: tuple[Any, ...]) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def test_repeated_samples_differ_and_come_again(tiny_bundle: tuple[Path, Path]) -> None:
    model = BundleLM(str(tiny_bundle[1]), bytes_per_token=1)
    sampled = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12, "until": []}
    requests = [request("generate_until", ("Once", sampled))] * 3
    texts = model.generate_until(requests)
    assert len(set(texts)) == 3 and model.generate_until(requests) == texts
    alone = model.model.generate("Once", max_new_bytes=12, temperature=1.0, seed=1)
    assert texts[1] == alone.decode(errors="replace")


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ({"until": "\n"}, GenerationSettings(stop="\n", max_new_bytes=1024, temperature=0.0)),
        (
            {"until": ["", "a"], "stop": ["a", "b"], "max_gen_toks": 3},
            GenerationSettings(stop=["a", "b"], max_new_bytes=12, temperature=0.0),
        ),
        ({"temperature": 0.7, "max_tokens": 0}, GenerationSettings(temperature=0.7, seed=0, max_new_bytes=0)),
        ({"temperature": 0.7, "do_sample": False}, GenerationSettings(temperature=0.0, max_new_bytes=1024)),
        ({"do_sample": True, "seed": 3, "top_k": 5}, GenerationSettings(seed=3, top_k=5, max_new_bytes=1024)),
        ({"max_new_bytes": 5, "num_beams": 1}, GenerationSettings(temperature=0.0, max_new_bytes=5)),
    ],
)
def test_settings_of_a_task(arguments: dict[str, Any], settings: GenerationSettings) -> None:
    assert task_settings(arguments) == settings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length_penalty": 1.0}, "'length_penalty' is no setting of generated texts; leave it out of generation_"),
        ({"num_beams": 4}, "num_beams is 4; there is no beam search, leave it out"),
        ({"until": [3]}, r"until is \[3\]; it must be a string or several of them"),
        ({"temperature": "hot"}, "temperature is 'hot'; it must be a number"),
    ],
)
def test_other_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgebltError, match=f"^{message}"):
        task_settings(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bytes_per_token": 0}, "bytes_per_token is 0; it must be a number above 0"),
        ({"batch_size": "many"}, "batch_size is 'many'; it must be a whole number"),
    ],
)
def test_other_arguments_are_refused(arguments: dict[str, Any], message: str, tiny_bundle: tuple[Path, Path]) -> None:
    with pytest.raises(EdgebltError, match=message):
        BundleLM(str(tiny_bundle[1]), **arguments)


def test_the_command_answers_bad_input_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise EdgebltError("this is wrong")

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", fail)
    with pytest.raises(SystemExit, match="2"):
        command.main()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        command.main()
    first, second = capsys.readouterr().err.splitlines()
    assert first == "edgeblt: this is wrong"
    assert second.startswith("edgeblt: this command needs lm-evaluation-harness; install it with: ")


@pytest.mark.slow
def test_the_command_runs_the_tasks_of_the_examples(tiny_bundle: tuple[Path, Path]) -> None:
    arguments = ("--model", "edgeblt", "--model_args", f"bundle={tiny_bundle[1]}", "--include_path", TASKS, "--limit",
                 "3", "--tasks", "edgeblt_next_words,edgeblt_texts,edgeblt_rest_of_words")  # fmt: skip
    result = run_harness(*arguments)
    assert result.returncode == 0, result.stderr
    assert all(name in result.stdout for name in ("edgeblt_next_words", "bits_per_byte", "exact_match"))
    wrong = run_harness(*arguments[:2], "--model_args", "bundle=missing", *arguments[4:])
    assert wrong.returncode == 2 and wrong.stderr.splitlines()[-1].startswith("edgeblt: ")


def run_harness(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "edgeblt.evaluation", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)
