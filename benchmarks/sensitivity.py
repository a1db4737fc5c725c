"""Loss of accuracy from rounding: each stage alone in int4, the rest fp32; and rounding methods on the same weights.

    python benchmarks/sensitivity.py

On the bundled model and its held-out texts of the kinds it was trained on (prose, code, typos), against transformers in
float32. The stages are measured as bundles, inputs rounded as ONNX Runtime does. The methods are compared by weights
alone (4 bits, blocks of 32, zero points, all matrices of encoder, global and decoder): decoded again, they run in fp32.
The last line is JSON.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from onnxruntime.quantization.matmul_nbits_quantizer import HQQWeightOnlyQuantConfig, HQQWeightOnlyQuantizer
from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor, quant_tensor_k_quant_cpu
from safetensors.torch import load_file, save_file

from edgeblt import Model, load
from edgeblt.bundle.contract import STAGES
from edgeblt.export.checkpoints.checkpoint import open_checkpoint
from edgeblt.export.checkpoints.stored_names import transformers_name
from edgeblt.export.export_bundle import export_bundle
from edgeblt.export.reference import TransformersReference
from edgeblt.measure.reference import ComputedRows, Text
from edgeblt.measure.texts import DEMO_CHECKPOINT, held_out_text
from edgeblt.measure.validation import validate
from edgeblt.quant.compress import quantize_checkpoint
from edgeblt.quant.formats.weight_format import Linear, Matrix
from edgeblt.quant.methods.data_free import METHODS

TEXTS = ("prose", "code", "typos")
BLOCK = 32
INT4 = Linear(4, BLOCK, symmetric=False)
PARTS = (*STAGES, "tables")
COMPARED = ("encoder", "global", "decoder")  # stages in the comparison of methods


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        stages = {name: load(staged(folder, name, text)) for name, text in stage_recipes().items()}
        methods = {name: load(replaced(folder, name, weights)) for name, weights in method_weights(folder).items()}
        models = stages | methods
        rows = ComputedRows(TransformersReference(DEMO_CHECKPOINT), [Text(name, held_out_text(name)) for name in TEXTS])
        reports = dict(zip(models, validate(list(models.values()), rows), strict=True))
        result: dict[str, object] = {}
        for title, group in (("stage alone in int4", stages), ("method, weights only", methods)):
            print(f"| {title} | increase in bits/byte | boundary agreement | bundle |\n| --- | ---: | ---: | ---: |")
            for name, model in group.items():
                report = reports[name]
                increase, agreement = report.bits_per_byte_increase, report.boundary_agreement
                print(f"| {name} | {increase:+.4f} | {agreement:.4f} | {size(model, group is stages)} |")
                result[name] = {"increase": round(increase, 5), "boundary_agreement": round(agreement, 5)}
        print(json.dumps(result))


def size(model: Model, counts: bool) -> str:
    return f"{model.bundle.size / 1e6:.1f} MB" if counts else ""


def stage_recipes() -> dict[str, str]:
    """Recipes in TOML, by the stage that each rounds."""
    recipes = {"nothing": ""}
    for method in ("nearest", "gptq"):
        section = f'format = "int4"\nblock_size = {BLOCK}\nmethod = "{method}"\n'
        for part in PARTS:
            if not (part == "tables" and method == "gptq"):
                recipes[f"{part}, {method}"] = f"[{part}]\n{section}"
    nearest = f'format = "int4"\nblock_size = {BLOCK}\nmethod = "nearest"\n'
    recipes["all, nearest"] = "".join(f"[{part}]\n{nearest}" for part in PARTS)
    return recipes


def staged(folder: Path, name: str, recipe: str) -> Path:
    file = folder / f"{name.replace(', ', '-')}.toml"
    file.write_text(recipe)
    checkpoint = quantize_checkpoint(DEMO_CHECKPOINT, file.with_suffix(".checkpoint"), file)
    return export_bundle(checkpoint, file.with_suffix(".bundle")).path


def method_weights(folder: Path) -> dict[str, dict[str, Matrix]]:
    """Decoded matrices, by canonical names, of every method."""
    original = open_checkpoint(DEMO_CHECKPOINT)
    names = [
        name
        for name in original.names()
        if name.partition(".")[0] in COMPARED and len(original.shape(name)) == 2 and "embedding" not in name
    ]
    names = [name for name in names if name != "encoder.hash_tables"]
    rounders: dict[str, Callable[[Matrix], Matrix]] = {
        "nearest": lambda weight: METHODS["nearest"](weight, INT4).dequantize(),
        "least-squares": lambda weight: METHODS["least-squares"](weight, INT4).dequantize(),
        "ONNX Runtime's rtn": lambda weight: decoded(weight, *quant_tensor(weight, 4, BLOCK, "asym", "uint")),
        "ONNX Runtime's k_quant": lambda weight: decoded(weight, *quant_tensor_k_quant_cpu(weight, 4, BLOCK)),
        "ONNX Runtime's hqq": half_quadratic,
    }
    found = {name: {key: rounder(original.tensor(key)) for key in names} for name, rounder in rounders.items()}
    section = f'format = "int4"\nblock_size = {BLOCK}\nmethod = "gptq"\n'
    file = folder / "method.toml"
    file.write_text("".join(f"[{stage}]\n{section}" for stage in COMPARED))
    compressed = open_checkpoint(quantize_checkpoint(DEMO_CHECKPOINT, folder / "method.checkpoint", file))
    found["gptq"] = {name: compressed.tensor(name) for name in names}
    return found


def decoded(weight: Matrix, codes: np.ndarray, scales: np.ndarray, zero_points: np.ndarray) -> Matrix:
    blocks: Matrix = ((codes - zero_points) * scales).astype(np.float32)
    return blocks.reshape(weight.shape)


def half_quadratic(weight: Matrix) -> Matrix:
    quantizer = HQQWeightOnlyQuantizer(HQQWeightOnlyQuantConfig(block_size=BLOCK, bits=4))
    codes, scales, zeros = quantizer.quantize_internal(torch.from_numpy(weight), 4, group_size=BLOCK, axis=1)
    zeros = torch.round(zeros)  # MatMulNBits stores integers
    blocks = codes.reshape(len(weight), -1, BLOCK)
    restored: Matrix = ((blocks - zeros[..., None]) * scales[..., None]).reshape(weight.shape).float().numpy()
    return restored


def replaced(folder: Path, name: str, weights: dict[str, Matrix]) -> Path:
    """A fp32 bundle of the bundled model with these weights instead of its own."""
    checkpoint = folder / f"{name.replace(' ', '-')}.replaced"
    checkpoint.mkdir()
    shutil.copyfile(DEMO_CHECKPOINT / "config.json", checkpoint / "config.json")
    tensors = {key: value.float() for key, value in load_file(DEMO_CHECKPOINT / "model.safetensors").items()}
    cross_layer = 0  # the bundled model's encoder has one layer
    tensors |= {transformers_name(key, cross_layer): torch.from_numpy(value) for key, value in weights.items()}
    save_file(tensors, checkpoint / "model.safetensors")
    return export_bundle(checkpoint, checkpoint.with_suffix(".bundle")).path


if __name__ == "__main__":
    main()
