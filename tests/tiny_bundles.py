"""Bundles of tiny models for those who change them: every kind of weight format, both targets."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from transformers import BltConfig

import tiny_models
from edgeblt.export.export_bundle import export_bundle
from edgeblt.runtime import native
from test_compress import recipe_text

_PRUNED = 'symmetric = true, pruning = "magnitude", method = "nearest"'
RECIPES = {
    "fp32": "",
    "fp16": recipe_text('format = "fp16"'),
    "int8": recipe_text('format = "int8", method = "nearest"'),
    "int4": recipe_text('format = "int4", block_size = 16, method = "nearest"'),
    "nf4": recipe_text('format = "nf4"', 'format = "int8"'),
    "tiles": recipe_text(f'format = "int8", sparsity = "2:4", {_PRUNED}', 'format = "int8"'),
    "wide-tiles": recipe_text(f'format = "int4", sparsity = "4:8", {_PRUNED}', 'format = "int4"'),
    "mask": recipe_text(f'format = "int4", sparsity = "50%", {_PRUNED}', 'format = "int8"'),
}
# A recipe, the target, and the number of the configuration in `tiny_models`; None is `whole_layers`.
CASES: tuple[tuple[str, str, int | None], ...] = (
    ("fp32", "cpu", 10), ("int8", "cpu", None), ("int4", "cpu", None), ("int4", "cpu", 7), ("nf4", "cpu", 2),
    ("tiles", "cpu", 5), ("wide-tiles", "cpu", 15), ("mask", "cpu", 2), ("fp16", "cuda", 7), ("int8", "cuda", 10),
    ("int8", "portable", None), ("int4", "portable", 7),
)  # fmt: skip


def whole_layers() -> BltConfig:
    """Heads of 16 and silu, for which a layer in int8 or int4 is one operator."""
    stack = {
        "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2,
        "intermediate_size": 40, "hidden_act": "silu", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }  # fmt: skip
    crosses = {"cross_attn_k": 2, "hidden_size_global": 64, "cross_attn_all_layers": True}
    return BltConfig(
        patching_threshold=3.0, local_attention_window_len=16, cross_attn_k=2, encoder_hash_byte_group_size=[3, 4],
        encoder_hash_byte_group_vocab=50, encoder_hash_byte_group_nb_functions=1,
        patcher_config=stack | {"sliding_window": 12}, encoder_config=stack | crosses,
        decoder_config=stack | crosses, global_config=stack | {"hidden_size": 64, "num_attention_heads": 4},
        tie_word_embeddings=False, use_cache=False,
    )  # fmt: skip


PREPARED = ("int4-cpu-7", "fp32-cpu-10")  # bundles that also exist with packed weights


def small_bundles(directory: Path, cases: tuple[tuple[str, str, int | None], ...] = CASES) -> dict[str, Path]:
    """By name, in `directory`; those that are there already are taken as they are."""
    bundles = {}
    directory.mkdir(parents=True, exist_ok=True)
    for recipe, target, seed in cases:
        name = f"{recipe}-{target}-{'layers' if seed is None else seed}"
        bundles[name] = directory / name
        if bundles[name].exists():
            continue
        config = whole_layers() if seed is None else tiny_models.random_config(seed)
        checkpoint = directory / f"checkpoint-{'layers' if seed is None else seed}"
        if not checkpoint.exists():
            tiny_models.save_model(tiny_models.random_model(config, seed or 0), checkpoint)
        (directory / f"{recipe}.toml").write_text(RECIPES[recipe])
        export_bundle(checkpoint, bundles[name], directory / f"{recipe}.toml", target)
    for name in set(PREPARED) & bundles.keys():
        copy = bundles[f"packed-{name}"] = directory / f"packed-{name}"
        if not copy.exists():
            shutil.copytree(bundles[name], copy)
            _prepare(copy)
    return bundles


def _prepare(bundle: Path) -> None:
    """In a process without the native library, as ONNX Runtime packs nothing for our own kernels."""
    command = [sys.executable, "-c", "import sys, edgeblt.prepare as p; p.prepare(sys.argv[1])", str(bundle)]
    subprocess.run(command, env={**os.environ, native.VARIABLE: "0"}, check=True, capture_output=True)
