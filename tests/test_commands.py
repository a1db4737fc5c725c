"""The commands as a user meets them: help, options, JSON, exit codes, and what happens when they are stopped."""

import hashlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from conftest import default_signals
from edgeblt import cli
from edgeblt.bundle.manifest import open_bundle
from edgeblt.installing import install_hint
from edgeblt.measure.benchmark import Benchmark
from edgeblt.measure.noise import NOISES
from edgeblt.measure.reference_file import ReferenceFile
from edgeblt.measure.texts import HELD_OUT_TEXTS, held_out_text
from edgeblt.measure.validation import Passage, Report, Validation
from edgeblt.model import load
from edgeblt.runtime import native

COMMANDS = ("demo", "quantize", "export", "validate", "prepare", "bench", "tune", "compare", "sweep", "report",
            "score", "generate", "serve", "inspect", "doctor")  # fmt: skip
OPTIONS = {
    "demo": ["--bundle", "--recipe", "--quiet"],
    "quantize": ["CHECKPOINT", "OUT", "--recipe", "--calibration", "--table-hits", "--kv-cache", "--memory-limit",
                 "--patcher", "--strict", "--force", "--quiet"],
    "export": ["CHECKPOINT", "BUNDLE", "--recipe", "--calibration", "--table-hits", "--kv-cache", "--target", "--embed",
               "--memory-limit", "--patcher", "--strict", "--force", "--quiet"],
    "validate": ["BUNDLE...", "--reference", "--patcher", "--reference-logits", "--text", "--noise / --no-noise",
                 "--suite", "--quick",
                 "--provider", "--threads", "--json", "--save-reference-logits", "--max-bpb-increase", "--max-kl",
                 "--min-boundary-agreement", "--min-top1", "--min-greedy-agreement", "--threshold", "--strict",
                 "--quiet"],
    "prepare": ["BUNDLE", "--json", "--quiet"],
    "bench": ["BUNDLE", "--provider", "--threads", "--draft", "--threshold", "--prompt-bytes", "--new-bytes",
              "--decode", "--temperature", "--seed", "--repeats", "--text", "--bandwidth / --no-bandwidth",
              "--price-per-hour", "--json", "--csv", "--markdown", "--quiet"],
    "tune": ["BUNDLE", "--max-bpb-increase", "--text", "--provider", "--threads", "--json", "--quiet"],
    "compare": ["BUNDLE...", "--tokens", "--text", "--noise / --no-noise", "--prompt-bytes", "--new-bytes", "--repeats",
                "--threads", "--json", "--quiet"],
    "sweep": ["CHECKPOINT", "DIRECTORY", "--recipe", "--threshold", "--provider", "--threads", "--trials", "--at-most",
              "--at-least", "--text", "--calibration", "--patcher", "--storage", "--study", "--lease", "--memory-limit",
              "--seed", "--json", "--quiet"],
    "report": ["RESULTS", "--out"],
    "score": ["BUNDLE", "FILES", "--out", "--column", "--format", "--row-bytes", "--per-byte", "--processes",
              "--threads", "--ray", "--shared-bundle", "--provider", "--threshold", "--json", "--force", "--quiet"],
    "generate": ["BUNDLE", "PROMPT", "--max-new-bytes", "--temperature", "--top-k", "--top-p", "--min-p", "--seed",
                 "--draft", "--stop", "--ignore-eos", "--utf8", "--dry-multiplier", "--json-schema", "--regex",
                 "--grammar", "--settings", "--load-state", "--save-state", "--provider", "--threads", "--threshold",
                 "--verify", "--prompt-file", "--prompts", "--out", "--interactive", "--echo", "--raw", "--json",
                 "--details", "--quiet"],
    "serve": ["BUNDLE...", "--alias", "--host", "--port", "--api-key", "--no-auth", "--cors", "--slots", "--queue",
              "--prefix-cache-mb", "--chat-template", "--max-body-bytes", "--max-prompt-bytes", "--max-grammar-bytes",
              "--max-new-bytes", "--max-connections", "--request-timeout", "--slow-timeout", "--grace", "--log-prompts",
              "--provider", "--threads", "--threshold", "--verify", "--quiet"],
    "inspect": ["BUNDLE|CHECKPOINT", "--recipe", "--bytes-per-patch", "--verify", "--provider", "--json", "--patcher",
                "--strict"],
    "doctor": ["--speed", "--json"],
}  # fmt: skip
VALIDATION_FIELDS = ["bits_per_byte", "reference_bits_per_byte", "boundary_agreement", "mean_kl", "top1_agreement",
                     "greedy_agreement", "max_abs_logit_difference", "bytes", "provider"]  # fmt: skip
REPORT_FIELDS = ["bundle", "bundle_id", "recipe", "bundle_bytes", "device", "threshold", "texts", "passage"]
BENCHMARK_FIELDS = [field.name for field in fields(Benchmark)]

HIDE_WORKBENCH = """
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "onnx", "onnx_ir", "safetensors"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
"""


@dataclass(frozen=True)
class Result:
    code: int
    stdout: str
    stderr: str


def run_command(capture: pytest.CaptureFixture[str], *arguments: object) -> Result:
    """`edgeblt ARGUMENTS` in this process, through the entry point; what C++ writes to the descriptors counts too."""
    capture.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["edgeblt", *map(str, arguments)])
        patch.setattr(sys, "excepthook", sys.excepthook)  # typer sets its own
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    code = stopped.value.code
    captured = capture.readouterr()
    return Result(code if isinstance(code, int) else 0, captured.out, captured.err)


def sentence(result: Result) -> str:
    """What a refused command says: exit code 2, nothing on stdout, one line on stderr beside progress."""
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("exporting ", "validating "))]
    assert (result.code, result.stdout) == (2, ""), result
    assert len(lines) == 1 and lines[0].startswith("edgeblt: ") and lines[0].isprintable(), result.stderr
    return lines[0].removeprefix("edgeblt: ")


def run_process(*arguments: object, before: str = "", **options: Any) -> "subprocess.CompletedProcess[bytes]":
    """`edgeblt ARGUMENTS` as a process of its own, running the Python code `before` first."""
    code = f"import sys\n{before}\nfrom edgeblt.cli import main\nmain()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=120, env=os.environ | {"COLUMNS": "80"}, **options)


@pytest.fixture
def bundle(tiny_bundle: tuple[Path, Path]) -> Path:
    return tiny_bundle[1]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes("It was the best of times, größer, 最高".encode() + b"\xff\x00")
    return path


# Help.


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    result = run_command(capfd, command, "--help")
    assert (result.code, result.stderr) == (0, "")
    description, _, listing = result.stdout.partition("Options:")
    assert len(" ".join(description.split())) > 80
    for option in OPTIONS[command]:
        # On its line or the next: words that say what it is for.
        line = rf"^  (?:-\w, )?{re.escape(option)}( <?[\w\[\]]+>?)?\s+[A-Z0-9].*\w"
        described = re.search(line, result.stdout, re.MULTILINE)
        assert described, f"{option} has no help in {result.stdout}"
    shown = re.findall(r"^  (?:-\w, )?(--[a-z0-9-]+(?: / --[a-z0-9-]+)?)", listing, re.MULTILINE)
    assert sorted(shown) == sorted([option for option in OPTIONS[command] if option.startswith("--")] + ["--help"])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples_as_they_are_typed(
    command: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line for each, whatever the width."""
    monkeypatch.setenv("COLUMNS", "80")
    shown = run_command(capfd, command, "--help").stdout
    examples = [line for line in shown.splitlines() if line.startswith("  edgeblt ")]
    assert all(line.count("edgeblt ") == 1 and not line.endswith("\\") for line in examples)
    if "For example:" in " ".join(shown.split()):
        assert examples


def test_the_summary_of_every_command_is_whole(capfd: pytest.CaptureFixture[str]) -> None:
    result = run_command(capfd, "--help")
    assert result.code == 0
    for command in COMMANDS:
        assert re.search(rf"^  {command} +[A-Z][^.]+\.$", result.stdout, re.MULTILINE), result.stdout
    assert "edgeblt demo" in result.stdout


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(capfd, "--version") == Result(0, f"edgeblt {native.package_version()}\n", "")


def test_no_arguments_show_the_help(capfd: pytest.CaptureFixture[str]) -> None:
    result = run_command(capfd)
    assert (result.stdout + result.stderr).startswith("Usage: edgeblt [OPTIONS] COMMAND")


# Generate.


def test_generate_writes_what_the_model_does(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = {"max_new_bytes": 12, "temperature": 0.9, "top_k": 50, "top_p": 0.9, "seed": 5}
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    result = run_command(capfd, "generate", bundle, "hello", *flags, "--threads", 1, "--verify")
    expected = load(bundle).generate("hello", 12, 0.9, 50, 0.9, 5).decode(errors="replace")
    assert result == Result(0, expected + "\n", "")
    other = run_command(capfd, "generate", bundle, "hello", *flags[:-1], 6)
    assert other.code == 0 and other.stdout != result.stdout


def test_generate_reads_the_prompt_from_stdin(bundle: Path) -> None:
    prompt = "größer".encode() + b"\xff\n"  # any bytes, the last newline included
    result = run_process("generate", bundle, "-", "--max-new-bytes", 8, input=prompt)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == load(bundle).generate(prompt, 8).decode(errors="replace").encode() + b"\n"


def test_generate_reads_the_prompt_from_a_file(bundle: Path, tmp_path: Path) -> None:
    prompt = b"gr\xc3\xb6\xff\x00\n"
    (tmp_path / "prompt").write_bytes(prompt)
    expected = load(bundle).generate(prompt, 8)
    from_file = run_process("generate", bundle, "--prompt-file", tmp_path / "prompt", "--max-new-bytes", 8)
    assert (from_file.returncode, from_file.stderr) == (0, b"")
    assert from_file.stdout == expected.decode(errors="replace").encode() + b"\n"
    raw = run_process("generate", bundle, "--prompt-file", "-", "--max-new-bytes", 8, "--raw", input=prompt)
    assert (raw.returncode, raw.stdout, raw.stderr) == (0, expected, b"")
    with pytest.raises(UnicodeDecodeError):
        expected.decode()  # or the two would not differ


def test_generate_wants_one_prompt(bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = "give a prompt, or --prompt-file FILE, and not both"
    assert sentence(run_command(capfd, "generate", bundle)) == said
    assert sentence(run_command(capfd, "generate", bundle, "hello", "--prompt-file", "x")) == said
    gone = tmp_path / "gone"
    assert "gone cannot be read" in sentence(run_command(capfd, "generate", bundle, "--prompt-file", gone))


def test_generate_takes_a_prompt_that_is_no_unicode(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = run_command(capfd, "generate", bundle, os.fsdecode(b"a\xff"), "--max-new-bytes", 8)
    assert result == Result(0, load(bundle).generate(b"a\xff", 8).decode(errors="replace") + "\n", "")


def test_generate_streams_whole_characters(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    written: list[str] = []
    monkeypatch.setattr(
        "edgeblt.model.Model.stream", lambda *_, **__: (bytes([byte]) for byte in "ä最x".encode() + b"\xe6")
    )
    monkeypatch.setattr("builtins.print", lambda piece="", end="\n", flush=False: written.append(piece + end * flush))
    assert run_command(capfd, "generate", bundle, "hello").code == 0
    assert written.pop() == "\n" and written == ["ä", "最", "x", "\ufffd"]  # each flushed at once: `end` is empty


def test_generate_where_stdout_cannot_show_it(bundle: Path) -> None:
    before = "import os; sys.stdout.reconfigure(encoding='ascii')"
    result = run_process("generate", bundle, "hello", "--max-new-bytes", 8, before=before)
    expected = load(bundle).generate("hello", 8).decode(errors="replace") + "\n"
    assert not expected.isascii()
    assert (result.returncode, result.stdout, result.stderr) == (0, expected.encode("ascii", "replace"), b"")


# JSON.


def assert_validation(document: Any, texts: dict[str, int]) -> None:
    """The figures of a bundle that is exact, on texts of these sizes."""
    assert list(document) == [*VALIDATION_FIELDS, *REPORT_FIELDS]
    assert {name: figures["bytes"] for name, figures in document["texts"].items()} == texts
    assert document["bytes"] == sum(texts.values())
    for figures in (document, *document["texts"].values()):
        assert list(figures)[: len(VALIDATION_FIELDS)] == VALIDATION_FIELDS and figures["provider"] == "cpu"
        assert figures["boundary_agreement"] == figures["top1_agreement"] == figures["greedy_agreement"] == 1.0
        assert figures["bits_per_byte"] == pytest.approx(figures["reference_bits_per_byte"], abs=1e-4)
        assert 0 < figures["max_abs_logit_difference"] < 1e-4 and abs(figures["mean_kl"]) < 1e-6


def test_validate(
    tiny_bundle: tuple[Path, Path], text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint, bundle = tiny_bundle
    arguments = ["validate", bundle, "--reference", checkpoint, "--text", text]
    limits = ["--max-bpb-increase", 1e-3, "--min-boundary-agreement", 1, "--max-kl", 1e-6, "--min-top1", 1,
              "--min-greedy-agreement", 1]  # fmt: skip
    result = run_command(capfd, *arguments, "--json", "-", *limits)
    assert result.code == 0
    assert_validation(json.loads(result.stdout), {"text.txt": text.stat().st_size})
    result = run_command(capfd, *arguments, "--json", tmp_path / "result.json", "--provider", "cpu", "--threads", 1)
    assert result.code == 0
    assert_validation(json.loads((tmp_path / "result.json").read_text()), {"text.txt": text.stat().st_size})
    for shown in ("bits per byte", "boundary agreement", "mean KL", "top-1 agreement", "greedy agreement",
                  "largest logit difference"):  # fmt: skip
        assert shown in result.stdout


def test_validate_on_several_texts_and_their_noise(
    tiny_bundle: tuple[Path, Path], text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint, bundle = tiny_bundle
    other = tmp_path / "other" / "text.txt"  # a name that is taken: shown with its path
    other.parent.mkdir()
    other.write_bytes(b"x" * 70)
    arguments = ["validate", bundle, "--reference", checkpoint, "--text", text, "--text", other]
    sizes = {}
    for path in (text, other):
        sizes[str(path)] = path.stat().st_size
        noised = {f"{path}, {name}": noise(path.read_bytes()) for name, noise in NOISES.items()}
        sizes |= {name: len(data) for name, data in noised.items() if data != path.read_bytes()}
    result = run_command(capfd, *arguments, "--noise", "--json", "-")
    assert result.code == 0
    assert_validation(json.loads(result.stdout), sizes)
    result = run_command(capfd, *arguments, "--no-noise")
    assert result.code == 0 and "accuracy over all texts" in result.stdout
    assert str(other)[:20] in result.stdout and "dropped" not in result.stdout


def test_validate_on_the_texts_of_the_package(
    tiny_bundle: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("edgeblt.measure.texts.held_out_text", lambda name: held_out_text(name)[:20])
    result = run_command(capfd, "validate", tiny_bundle[1], "--reference", tiny_bundle[0], "--json", "-")
    assert result.code == 0
    assert_validation(json.loads(result.stdout), dict.fromkeys(HELD_OUT_TEXTS, 20))


def test_both_kinds_of_reference_give_the_same(
    tiny_bundle: tuple[Path, Path], text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint, bundle = tiny_bundle
    logits, json_file = tmp_path / "logits", tmp_path / "result.json"
    arguments = ["validate", bundle, "--reference", checkpoint, "--text", text, "--noise", "--json", "-"]
    result = run_command(capfd, *arguments, "--save-reference-logits", logits, "--min-top1", 2)
    assert result.code == 1  # a limit is no reason not to save
    recorded = run_command(capfd, "validate", bundle, "--reference-logits", logits, "--json", "-")
    assert recorded.code == 0 and recorded.stdout == result.stdout and json.loads(result.stdout)["texts"]
    sums = b"".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n".encode()
        for path in (checkpoint / "config.json", checkpoint / "model.safetensors")
    )
    recording = ReferenceFile(logits).recording
    assert (recording.checkpoint, recording.checkpoint_sha256) == ("checkpoint", hashlib.sha256(sums).hexdigest())
    shown = run_process("validate", bundle, "--reference-logits", logits, "--json", json_file, before=HIDE_WORKBENCH)
    assert shown.returncode == 0 and json_file.read_text() == result.stdout
    assert f"recorded from checkpoint, sha256 {recording.checkpoint_sha256[:12]}".encode() in shown.stdout
    said = sentence(run_command(capfd, *arguments, "--save-reference-logits", logits))
    assert said == f"{logits} exists already; remove it or choose another name"


def test_validate_beyond_limits(
    tiny_bundle: tuple[Path, Path], text: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    worse = Validation(2.5, 2.25, 0.75, 0.125, 0.5, 0.625, 1.0, 10, "cpu")
    better = Validation(2.0, 9.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1000, "cpu")  # outweighs it over both
    both = Validation(2.0, 8.9, 0.99, 0.001, 0.99, 0.99, 1.0, 1010, "cpu")
    passage = Passage("text.txt", "x", (0.5,), (True,), None)
    report = Report(**vars(both), bundle="b", bundle_id="0", recipe="int8", bundle_bytes=1, device="", threshold=None,
                    texts={"russian": better, "text.txt": worse}, passage=passage)  # fmt: skip
    monkeypatch.setattr("edgeblt.export.reference.validate_against", lambda *_, **__: (report,))
    arguments = ["validate", tiny_bundle[1], "--reference", tiny_bundle[0], "--text", text, "--json", "-"]
    rise = "edgeblt: on the text text.txt, bits per byte rise by 0.250000, more than 0.2\n"
    agreement = "edgeblt: on the text text.txt, boundary agreement is 0.750000, below 0.9\n"
    limits: list[tuple[list[object], str]] = [
        ([], ""),
        (["--max-bpb-increase", 0.25, "--min-boundary-agreement", 0.75], ""),
        (["--max-kl", 0.125, "--min-top1", 0.5, "--min-greedy-agreement", 0.625], ""),
        (["--max-bpb-increase", 0.2], rise),
        (["--min-boundary-agreement", 0.9], agreement),
        (["--max-bpb-increase", 0.2, "--min-boundary-agreement", 0.9], rise + agreement),
        (["--max-kl", 0.1], "edgeblt: on the text text.txt, mean KL is 0.125000, more than 0.1\n"),
        (["--min-top1", 0.51], "edgeblt: on the text text.txt, top-1 agreement is 0.500000, below 0.51\n"),
        (["--min-greedy-agreement", 0.7], "edgeblt: on the text text.txt, greedy agreement is 0.625000, below 0.7\n"),
    ]
    for options, said in limits:
        result = run_command(capfd, *arguments, *options)
        assert (result.code, result.stderr) == (1 if said else 0, said)
        assert json.loads(result.stdout)["bits_per_byte"] == 2.0


def test_references_that_are_refused(
    tiny_bundle: tuple[Path, Path], text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint, bundle = tiny_bundle
    logits = tmp_path / "logits"
    logits.write_bytes(b"x" * 5000)
    refused: dict[tuple[object, ...], str] = {
        (): "there is nothing to compare with; give --reference CHECKPOINT or --reference-logits FILE",
        ("--reference", "a", "--reference-logits", "b"): "a and b are two references; give one of them",
        ("--reference-logits", "b", "--text", text): "b has texts of its own; leave out --text and --noise",
        ("--reference-logits", "b", "--noise"): "b has texts of its own; leave out --text and --noise",
        ("--reference-logits", "b", "--save-reference-logits", "c"): (
            "b is saved already; give --save-reference-logits with --reference only"
        ),
        ("--reference-logits", logits): (
            f"{logits} is not a file of reference logits; give one that --save-reference-logits wrote"
        ),
        ("--reference", checkpoint, "--text", text, "--text", text): (
            f"the text {str(text)!a} is given twice; give each text once, under its own name"
        ),
        ("--reference", checkpoint, "--max-kl", "nan"): "max_kl is nan; it must be a number",
    }
    for options, said in refused.items():
        assert sentence(run_command(capfd, "validate", bundle, *options)) == said


def test_a_quantized_checkpoint_is_no_reference(
    tiny_bundle: tuple[Path, Path], text: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("edgeblt.export.checkpoints.checkpoint.Checkpoint.is_quantized", True)
    said = sentence(run_command(capfd, "validate", tiny_bundle[1], "--reference", tiny_bundle[0], "--text", text))
    assert said == f"{tiny_bundle[0]} is quantized; give the checkpoint it was made from as the reference"


def test_bench(bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", bundle, "--prompt-bytes", 9, "--new-bytes", 5, "--repeats", 1, "--threads", 1]
    result = run_command(capfd, *arguments, "--json", "-", "--provider", "cpu", "--no-bandwidth", "--quiet")
    assert (result.code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert list(document) == BENCHMARK_FIELDS
    assert list(document["inter_byte_latency_ms"]) == ["p50", "p95", "p99"]
    assert document["bundle_bytes"] == open_bundle(bundle).size and document["provider"] == "cpu"
    times = ("load_time_s", "time_to_first_byte_s", "prefill_bytes_per_s", "decode_bytes_per_s")
    assert all(document[name] > 0 for name in times) and document["bytes_per_patch"] >= 1
    result = run_command(capfd, *arguments, "--json", tmp_path / "result.json")
    assert result.code == 0 and "time to first byte" in result.stdout
    assert list(json.loads((tmp_path / "result.json").read_text())) == BENCHMARK_FIELDS


def test_inspect_a_bundle(bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = run_command(capfd, "inspect", bundle, "--verify", "--json", "-")
    assert (result.code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert list(document) == ["kind", "path", "description", "parts", "plans", "placement", "notes"]
    assert document["placement"] == []  # it was not asked for
    assert (document["kind"], document["path"]) == ("bundle", str(bundle))
    sizes = {part["content"]: part["bytes"] for part in document["parts"]}
    assert sizes == {file.name: file.stat().st_size for file in bundle.iterdir() if file.name != "bundle.json"}
    stages = [part["stage"] for part in document["parts"]]
    assert stages == [stage for stage in ("patcher", "encoder", "global", "decoder") for _ in range(2)] + [""]
    result = run_command(capfd, "inspect", bundle, "--json", tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text()) == document
    assert all(name in result.stdout for name in sizes)
    assert "sha256" in result.stdout and "parameters" not in result.stdout  # of which a bundle tells none


def test_inspect_a_checkpoint(tiny_bundle: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    result = run_command(capfd, "inspect", tiny_bundle[0], "--json", "-")
    document = json.loads(result.stdout)
    assert (result.code, document["kind"]) == (0, "checkpoint")
    assert [part["stage"] for part in document["parts"]] == ["patcher", "encoder", "encoder", "global", "decoder"]
    assert all(part["weight_format"] == "float32" and part["sha256"] is None for part in document["parts"])
    shown = run_command(capfd, "inspect", tiny_bundle[0]).stdout
    assert "hash tables" in shown and "parameters" in shown and "sha256" not in shown


def test_quantize_then_export(
    tiny_bundle: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint, recipe, text = tiny_bundle[0], tmp_path / "mine.toml", tmp_path / "calibration.txt"
    recipe.write_text('[decoder]\nformat = "int4"\nblock_size = 16\nmethod = "gptq"\n')
    text.write_bytes(b"Whales are read of, and small models read them. " * 40)
    small, bundle = tmp_path / "small", tmp_path / "bundle"
    quantized = run_command(capfd, "quantize", checkpoint, small, "--recipe", recipe, "--calibration", text)
    assert quantized.code == 0 and "int4, blocks of 16" in quantized.stdout
    inspected = json.loads(run_command(capfd, "inspect", small, "--json", "-").stdout)
    assert inspected["kind"] == "checkpoint" and "mine" in inspected["description"]["quantized"]
    assert "calibration.txt, 1920 bytes" in inspected["description"]["calibrated on"]
    errors = dict(part.split() for part in inspected["description"]["relative error of the weights"].split(", "))
    assert 0.01 < float(errors["decoder"]) < 0.3
    assert all(float(value) == 0 for part, value in errors.items() if part != "decoder")
    assert run_command(capfd, "export", small, bundle).code == 0
    manifest = open_bundle(bundle, verify=True).manifest
    assert manifest.recipe == "mine" and manifest.stages["decoder"].weight_format.startswith("int4, blocks of 16")
    assert manifest.stages["global"].weight_format == "fp32"
    assert run_command(capfd, "generate", bundle, "a", "--max-new-bytes", 3).code == 0


def test_quantize_that_is_refused(
    tiny_bundle: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = tiny_bundle[0], tmp_path / "out"
    short = tmp_path / "short.txt"
    short.write_bytes(b"short")
    refused = {
        "there is no recipe 'int5'": ("--recipe", "int5"),
        "the calibration text has 5 bytes": ("--calibration", short),
        "cannot be read (No such file or directory)": ("--calibration", tmp_path / "none.txt"),
    }
    for message, arguments in refused.items():
        result = run_command(capfd, "quantize", checkpoint, out, *arguments)
        assert result.code == 2 and message in sentence(result)
        assert not out.exists()
        result = run_command(capfd, "export", checkpoint, out, "--recipe", "int4", *arguments)
        assert result.code == 2 and message in sentence(result)
        assert not list(tmp_path.glob("*out*"))


def test_json_that_cannot_be_written(bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = run_command(capfd, "inspect", bundle, "--json", tmp_path)
    said = f"edgeblt: {tmp_path} cannot be written (Is a directory); free some space or choose another place\n"
    assert (result.code, result.stdout, result.stderr) == (2, "", said)


def test_names_that_a_terminal_would_obey(
    tiny_bundle: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rich's markup, control characters, a new line, and bytes that are no Unicode."""
    link = tmp_path / "[" / "bold] \x1b[31m \n "  # the path holds [/bold]
    link.parent.mkdir()
    link.symlink_to(tiny_bundle[0])
    target = link.with_name(link.name + os.fsdecode(b"\xff"))
    result = run_command(capfd, "export", link, target)
    assert result.code == 0, result.stderr
    assert "[/bold] \\x1b[31m \\n \\udcff\n" in result.stdout
    assert "\x1b" not in result.stdout + result.stderr
    assert open_bundle(target, verify=True).manifest.name == "bold] \\x1b[31m \\n \\udcff"
    assert b"# bold] \\x1b[31m \\n " in (target / "README.md").read_bytes()
    (target / "README.md").unlink()
    assert "/[/bold] \\x1b[31m \\n \\udcff/README.md cannot be read" in sentence(run_command(capfd, "inspect", target))


# Refused.


def test_refused_values(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused = {
        ("--temperature", "nan"): "temperature is nan; it must be 0 (greedy) or a positive number",
        ("--temperature", "inf"): "temperature is inf; it must be 0 (greedy) or a positive number",
        ("--temperature", "-1"): "temperature is -1.0; it must be 0 (greedy) or a positive number",
        ("--top-p", "2"): "top_p is 2.0; it must be above 0 and at most 1",
        ("--top-p", "nan"): "top_p is nan; it must be above 0 and at most 1",
        ("--top-k", "0"): "top_k is 0; it must be at least 1",
        ("--seed", "-1"): "seed is -1; it must not be negative",
        ("--max-new-bytes", "-1"): "max_new_bytes is -1; it must not be negative",
        ("--threads", "0"): "threads is 0; it must be at least 1",
        ("--provider", "tpu"): "provider 'tpu' is unknown; this version has cpu, cuda",
    }
    for options, expected in refused.items():
        assert sentence(run_command(capfd, "generate", bundle, "hello", *options)) == expected
    assert "--threads" in run_command(capfd, "generate", bundle, "hello", "--threads", "many").stderr


def test_a_bundle_for_the_cpu_on_cuda(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for command in (["generate", bundle, "hello"], ["bench", bundle], ["inspect", bundle]):
        said = sentence(run_command(capfd, *command, "--provider", "cuda"))
        assert said.endswith("was exported for the cpu, not for cuda; export the checkpoint again with --target cuda")


def test_inspect_where_nodes_run(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = run_command(capfd, "inspect", bundle, "--provider", "cpu", "--json", "-")
    placement = json.loads(result.stdout)["placement"]
    assert [(part["stage"], part["provider"]) for part in placement] == [
        (stage, "CPUExecutionProvider") for stage in ("patcher", "encoder", "global", "decoder")
    ]
    assert all(part["nodes"] == sum(part["operators"].values()) > 0 for part in placement)
    assert "CPUExecutionProvider" in run_command(capfd, "inspect", bundle, "--provider", "cpu").stdout


@pytest.mark.parametrize("option", ["--prompt-bytes", "--new-bytes", "--repeats"])
def test_refused_counts(option: str, bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = option.strip("-").replace("-", "_")
    assert sentence(run_command(capfd, "bench", bundle, option, 0)) == f"{name} is 0; it must be at least 1"


def test_refused_paths(
    tiny_bundle: tuple[Path, Path], text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint, bundle = tiny_bundle
    none, long, empty = tmp_path / "none", tmp_path / ("x" * 5000), tmp_path / "empty"
    empty.write_bytes(b"")
    for path in (none, long, text):
        assert f"{path} is not a bundle directory; make" in sentence(run_command(capfd, "generate", path, "hello"))
        assert f"{path} is not a directory; give" in sentence(run_command(capfd, "inspect", path))
    (tmp_path / "folder").mkdir()
    said = sentence(run_command(capfd, "generate", tmp_path / "folder", "hello"))
    assert said.endswith(f"bundle.json cannot be read (No such file or directory); is {tmp_path / 'folder'} a bundle?")
    for command in (["generate", checkpoint, "hello"], ["bench", checkpoint], ["prepare", checkpoint],
                    ["tune", checkpoint, "--max-bpb-increase", 0.1],
                    ["validate", checkpoint, "--reference", checkpoint, "--text", text]):  # fmt: skip
        assert sentence(run_command(capfd, *command)) == (
            f"{checkpoint} is a checkpoint, not a bundle; export it first: edgeblt export {checkpoint} BUNDLE"
        )
    arguments: list[object] = ["validate", bundle, "--reference"]
    assert sentence(run_command(capfd, *arguments, checkpoint, "--text", none)).endswith("; give a text file")
    assert sentence(run_command(capfd, *arguments, checkpoint, "--text", tmp_path)).endswith("; give a text file")
    assert "is empty; give" in sentence(run_command(capfd, *arguments, checkpoint, "--text", empty))
    assert "config.json" in sentence(run_command(capfd, *arguments, bundle, "--text", text))


def test_demo_replaces_nothing_but_a_bundle(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("x")
    said = sentence(run_command(capfd, "demo", "--bundle", tmp_path / "home"))
    assert said == (
        f"{tmp_path / 'home'} exists already and is not a bundle alone, so it is not replaced; remove it or choose "
        "another name"
    )
    assert (tmp_path / "home" / "thesis.txt").exists()


# What is missing.


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find_spec(name))


def test_without_the_workbench(
    no_torch: None, tiny_bundle: tuple[Path, Path], text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint, bundle = tiny_bundle
    commands: list[list[object]] = [
        ["demo", "--bundle", tmp_path / "out"],
        ["export", checkpoint, tmp_path / "out"],
        ["validate", bundle, "--reference", checkpoint, "--text", text],
        ["inspect", checkpoint],
    ]
    for command in commands:
        assert sentence(run_command(capfd, *command)) == (
            f"this command needs torch; install what is missing with: {install_hint('workbench')}"
        )
    assert not (tmp_path / "out").exists()
    assert run_command(capfd, "inspect", bundle).code == 0


def test_without_onnxruntime(bundle: Path) -> None:
    absent = "onnxruntime"
    result = run_process("generate", bundle, "hello", before=f"sys.modules[{absent!r}] = None")
    said = f"edgeblt needs ONNX Runtime; install it with: {install_hint(absent)} (onnxruntime-gpu for NVIDIA)"
    assert (result.returncode, result.stdout, result.stderr.decode()) == (2, b"", f"edgeblt: {said}\n")


def test_the_device_commands_need_no_workbench(bundle: Path, text: Path) -> None:
    text.write_bytes(text.read_bytes() * 12)
    for arguments in (
        ["generate", bundle, "hello", "--max-new-bytes", 3],
        ["bench", bundle, "--prompt-bytes", 4, "--new-bytes", 2, "--repeats", 1],
        ["tune", bundle, "--max-bpb-increase", 0.01, "--text", text],
    ):
        result = run_process(*arguments, "--quiet", before=HIDE_WORKBENCH)
        assert (result.returncode, result.stderr) == (0, b"")
        assert result.stdout
    assert run_process("inspect", bundle, "--verify", before=HIDE_WORKBENCH).returncode == 0


# Stopped.

ENDLESS = "import itertools; from edgeblt.model import Model; Model.stream = lambda *_, **__: itertools.repeat(b'x')"


def started(*arguments: object, before: str) -> "subprocess.Popen[bytes]":
    code = f"import sys\n{before}\nfrom edgeblt.cli import main\nmain()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=default_signals)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_command_quietly(number: signal.Signals, code: int, bundle: Path) -> None:
    with started("generate", bundle, "hello", before=ENDLESS) as process:
        assert process.stdout and process.stdout.read(1) == b"x"
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (code, b"")
    assert set(stdout) <= {ord("x")}


def test_an_ignored_signal_stays_ignored(bundle: Path) -> None:
    before = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + ENDLESS.replace(
        "repeat(b'x')", "islice(iter(lambda: signal.raise_signal(signal.SIGHUP) or b'x', None), 3)"
    )
    result = run_process("generate", bundle, "hello", before=before)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"xxx\n", b"")


def test_a_reader_that_goes_away(bundle: Path) -> None:
    with started("generate", bundle, "hello", before=ENDLESS) as process:
        assert process.stdout and process.stdout.read(1) == b"x"
        process.stdout.close()
        assert process.stderr and process.stderr.read() == b""
    assert process.returncode == 1
    for arguments in (["inspect", bundle], ["inspect", bundle, "--json", "-"]):
        with started(*arguments, before="sys.stdin.read(1)") as process:
            assert process.stdout and process.stderr
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 1


def test_the_handlers_of_signals_are_given_back(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert run_command(capfd, "inspect", bundle).code == 0
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            MemoryError("9 TB"),
            "there is not enough memory to go on with this text; end other processes or raise this one's limit, or "
            "use a shorter text or a bundle with smaller weights",
        ),
        (
            type("Fail", (RuntimeError,), {"__module__": "onnxruntime.capi"})("a\n b"),
            "onnxruntime cannot run this bundle (a b); export the bundle again",
        ),
    ],
)
def test_errors_while_running(
    error: Exception, said: str, bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("edgeblt.runtime.stage.StageRunner.run", fail)
    assert sentence(run_command(capfd, "generate", bundle, "hello")) == said


def test_our_own_mistakes_are_not_hidden(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("a mistake")

    monkeypatch.setattr("edgeblt.runtime.stage.StageRunner.run", fail)
    monkeypatch.setattr(sys, "argv", ["edgeblt", "generate", str(bundle), "hello"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(KeyError, match="a mistake"):
        cli.main()
