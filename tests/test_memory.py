"""Memory that conversions take, and the limit they keep to."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tiny_models
from checkpoint_oracle import assert_one_sentence
from conftest import tiny_oracle
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import open_checkpoint
from edgeblt.export.export_bundle import export_bundle
from edgeblt.quant.compress import quantize_checkpoint

SEED = 10
TABLES = "model.encoder_hash_tok_embedding.weight"
LIMIT = 300_000_000  # bytes beyond the imports
RECIPES = {
    "calibrated": '[tables]\nformat = "int4"\nsymmetric = true\n[decoder]\nformat = "int4"\nmethod = "gptq"',
    "plain": '[tables]\nformat = "int8"\nblock_size = 16\nmethod = "nearest"',
}
# What it prints: bytes that converting added to the peak of resident memory.
CONVERTING = """
import sys
from pathlib import Path
from edgeblt.export.export_bundle import export_bundle
from edgeblt.quant.compress import quantize_checkpoint

def peak():
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines["VmHWM"].split()[0])

checkpoint, out, recipe, text, limit = sys.argv[1:]
before = peak()
compressed = quantize_checkpoint(checkpoint, Path(out) / "compressed", recipe, text, int(limit))
quantized = peak()
export_bundle(compressed, Path(out) / "bundle", memory_limit=int(limit))
print(quantized - before, peak() - before)
"""


def with_tables(rows: int, path: Path) -> Path:
    """A tiny model whose hash tables have so many rows each."""
    tiny_models.save_model(tiny_oracle(SEED), path)
    config = json.loads((path / "config.json").read_text())
    tables = open_checkpoint(path).config.hashes.table_count
    config["encoder_hash_byte_group_vocab"] = rows
    tensors = load_file(path / "model.safetensors")
    width = tensors[TABLES].shape[1]
    block = np.random.default_rng(0).standard_normal((4096, width)).astype(np.float16)
    tensors[TABLES] = np.resize(block, (tables * rows, width))
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text(json.dumps(config))
    return path


def short_text(folder: Path) -> Path:
    path = folder / "text"
    path.write_bytes(bytes(id - 4 for id in tiny_models.random_ids(3, 2100)[1:]))
    return path


def recipe(name: str, folder: Path) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(RECIPES[name])
    return path


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("name", RECIPES)
def test_tables_larger_than_the_limit(name: str, tmp_path: Path) -> None:
    """However many rows the tables have, converting them takes the same."""
    peaks = []
    for megabytes in (400, 800):  # of the tables in float32
        tiny = open_checkpoint(tiny_models.save_model(tiny_oracle(SEED), tmp_path / f"tiny-{megabytes}")).config
        rows = megabytes * 1_000_000 // (4 * tiny.hashes.table_count * tiny.encoder.hidden_size)
        checkpoint = with_tables(rows, tmp_path / f"checkpoint-{megabytes}")
        out = tmp_path / f"out-{megabytes}"
        out.mkdir()
        arguments = [str(checkpoint), str(out), str(recipe(name, tmp_path)), str(short_text(tmp_path)), str(LIMIT)]
        run = subprocess.run(
            [sys.executable, "-c", CONVERTING, *arguments], capture_output=True, text=True, timeout=900
        )
        assert run.returncode == 0, run.stderr
        peaks.append([int(figure) for figure in run.stdout.split()])
    assert max(map(max, peaks)) < LIMIT
    assert max(peaks[1]) - max(peaks[0]) < LIMIT // 5


@pytest.mark.parametrize("name", RECIPES)
def test_a_limit_that_is_too_low(name: str, tmp_path: Path) -> None:
    checkpoint, out = tiny_models.save_model(tiny_oracle(SEED), tmp_path / "checkpoint"), tmp_path / "out"
    with pytest.raises(
        EdgebltError, match=r"the memory limit is 0\.05 GB, but .* needs 0\.\d+; set --memory-limit to "
    ) as low:
        quantize_checkpoint(checkpoint, out, recipe(name, tmp_path), short_text(tmp_path), memory_limit=50_000_000)
    assert_one_sentence(str(low.value))
    assert not out.exists()
    enough = re.search(r"to ([\d.]+) or more", str(low.value))
    assert enough
    limit = int(float(enough[1]) * 1e9)
    made = quantize_checkpoint(checkpoint, out, recipe(name, tmp_path), short_text(tmp_path), limit)
    with pytest.raises(EdgebltError, match="set --memory-limit to"):
        export_bundle(made, tmp_path / "bundle", memory_limit=50_000_000)


def test_the_limit_changes_no_byte(tmp_path: Path) -> None:
    """With room for nothing all activations wait on disk."""
    checkpoint = tiny_models.save_model(tiny_oracle(SEED), tmp_path / "checkpoint")
    written = []
    for room in (0, 1 << 30):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("edgeblt.quant.compress.scratch_bytes", lambda *_, room=room: room)
            path = quantize_checkpoint(
                checkpoint, tmp_path / str(room), recipe("calibrated", tmp_path), short_text(tmp_path)
            )
        written.append((path / "model.safetensors").read_bytes())
    assert written[0] == written[1]
