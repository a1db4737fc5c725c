"""Every script of benchmarks/ and tools/ runs: at toy size where it has one, and otherwise up to its own help."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from edgeblt.export.export_bundle import export_bundle
from edgeblt.measure.texts import DEMO_CHECKPOINT
from edgeblt.runtime import native

ROOT = Path(__file__).parents[1]
BUNDLE = "BUNDLE"  # stands for the bundled model's
# By script, arguments of a run of a second or two whose last line is JSON.
TOY = {
    "benchmarks/attention.py": ("--toy",),
    "benchmarks/batching.py": (BUNDLE, "--sequences", "1", "2", "--context", "8", "--steps", "2", "--rounds", "1"),
    "benchmarks/batch_memory.py": (BUNDLE, "--sequences", "2", "--bytes", "140", "--texts", "18"),
    "benchmarks/byte_profile.py": (BUNDLE, "--bytes", "4", "--context", "8", "--threads", "1"),
    "benchmarks/caches.py": ("--toy",),
    "benchmarks/constraints.py": (BUNDLE, "--rounds", "1"),
    "benchmarks/drafting.py": (BUNDLE, "--new-bytes", "4", "--repeats", "1", "--texts", "prose", "--drafts", "none"),
    "benchmarks/kernels.py": ("--toy",),
    "benchmarks/long_prompts.py": (BUNDLE, "--bytes", "300", "--letter-bytes", "40"),
    "benchmarks/many_prompts.py": (BUNDLE, "--prompts", "3", "--new-bytes", "4", "--rounds", "1"),
    "benchmarks/prefixes.py": (BUNDLE, "--prompt-bytes", "300", "320", "--last-bytes", "20", "--rounds", "1"),
    "benchmarks/mambabyte.py": ("long", BUNDLE, "--bytes", "20"),
    "benchmarks/mapped_tables.py": ("run", BUNDLE, "--bytes", "20"),
    "benchmarks/memory.py": (BUNDLE, "--bytes", "20"),
    "benchmarks/operators.py": ("--inputs", "32", "--outputs", "16", "--repeats", "1"),
    "benchmarks/prepared.py": (BUNDLE, "--new-bytes", "1", "--repeats", "1"),
    "benchmarks/side_by_side.py": (
        BUNDLE,
        "--score-bytes",
        "600",
        "--rounds",
        "1",
        "--decode-rounds",
        "1",
        "--decode-bytes",
        "2",
    ),
    "benchmarks/recurrence.py": ("--toy",),
    "benchmarks/serving.py": (BUNDLE, "--clients", "1", "2", "--new-bytes", "4", "--rounds", "1"),
    "benchmarks/table_memory.py": (BUNDLE, "--bytes", "20"),
}
NATIVE = {"benchmarks/attention.py", "benchmarks/kernels.py", "benchmarks/recurrence.py"}  # need the library
# These measure accuracies of the bundled model or make large ones, or need a GPU or a network: minutes at least.
LONG = {
    "benchmarks/against_transformers.py", "benchmarks/channels.py", "benchmarks/corpus.py", "benchmarks/evaluation.py",
    "benchmarks/formats.py", "benchmarks/large_model.py", "benchmarks/portable_clients.py", "benchmarks/pruning.py",
    "benchmarks/recipes.py",
    "benchmarks/sensitivity.py", "benchmarks/table_pruning.py", "tools/api_page.py", "tools/check_cuda.py",
    "tools/train_demo.py",
}  # fmt: skip
# Modules of other scripts, and scripts without arguments that test_kernel_table.py and test_check_cuda.py test.
MODULES = {
    "benchmarks/processes.py", "benchmarks/synthetic_checkpoint.py", "tools/cuda_kernels.py", "tools/cuda_results.py",
    "tools/cuda_stages.py", "tools/demo_card.py", "tools/demo_corpus.py", "tools/demo_evaluation.py",
    "tools/demo_layers.py", "tools/demo_model.py", "tools/demo_texts.py", "tools/demo_training.py",
}  # fmt: skip


def run(script: str, arguments: tuple[str, ...], patch: pytest.MonkeyPatch) -> None:
    path = ROOT / script
    patch.syspath_prepend(str(path.parent))
    patch.setattr(sys, "argv", [str(path), *arguments])
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        assert not end.code


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("scripts") / "bundle"
    return export_bundle(DEMO_CHECKPOINT, target).path


def test_every_script_is_listed() -> None:
    found = {str(path.relative_to(ROOT)) for folder in ("benchmarks", "tools") for path in (ROOT / folder).glob("*.py")}
    assert found == TOY.keys() | LONG | MODULES


@pytest.mark.parametrize("script", sorted(TOY))
def test_a_script_runs_at_toy_size(
    script: str, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if script in NATIVE and native.library_path() is None:
        pytest.skip("no native library")
    run(script, tuple(str(bundle) if argument == BUNDLE else argument for argument in TOY[script]), monkeypatch)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("script", sorted(LONG))
def test_a_long_script_explains_itself(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that it imports is there."""
    run(script, ("--help",), monkeypatch)
    assert "usage" in capsys.readouterr().out.lower()


@pytest.mark.parametrize("script", sorted(MODULES))
def test_a_module_is_imported(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / script
    monkeypatch.syspath_prepend(str(path.parent))
    runpy.run_path(str(path), run_name="imported")
