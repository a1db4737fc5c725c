"""Loss of accuracy from removing feed-forward channels, by stage: chosen on a calibration text, or by magnitude.

    python benchmarks/channels.py [SHARE ...]

On the bundled model in int8, by the recipe of that name otherwise; bits per byte on the held-out texts of the kinds it
was trained on. By magnitude those channels stay whose three norms, of the rows of gate and up and of the column of
down, have the largest product, with the weights they have. The last line is JSON.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from edgeblt import load
from edgeblt.export.checkpoints.checkpoint import open_checkpoint
from edgeblt.export.checkpoints.stored_names import transformers_name
from edgeblt.export.export_bundle import export_bundle
from edgeblt.measure.texts import DEMO_CHECKPOINT, held_out_text
from edgeblt.quant.compress import quantize_checkpoint
from edgeblt.quant.methods.channels import kept_count

SHARES = ("75%", "50%")
STAGES = ("encoder", "global", "decoder")
TEXTS = ("prose", "code", "typos")
INT8 = 'format = "int8"\nblock_size = {block}\nsymmetric = true\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shares", nargs="*", default=SHARES, metavar="SHARE", help="of channels kept, as 75%%")
    shares = parser.parse_args().shares
    with tempfile.TemporaryDirectory() as folder:
        whole = measure(Path(folder), "whole", DEMO_CHECKPOINT, {})
        print(f"all channels: {whole['bits_per_byte']:.4f} bits per byte, {whole['bundle_bytes'] / 1e6:.2f} MB")
        print("| stages | share | channels | bundle | by magnitude | calibrated |")
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        points = []
        for stages in (*((stage,) for stage in STAGES), STAGES):
            for share in shares:
                points.append(compare(Path(folder), dict.fromkeys(stages, share), whole["bits_per_byte"]))
        print(json.dumps({"whole": whole, "points": points}))


def compare(folder: Path, kept: dict[str, str], whole: float) -> dict[str, Any]:
    """One line of the table: stages with the share of channels that each keeps."""
    name = "-".join([*kept, next(iter(kept.values()))])
    calibrated = measure(folder, f"{name}-calibrated", DEMO_CHECKPOINT, kept)
    magnitude = measure(folder, f"{name}-magnitude", by_magnitude(folder / name, kept), {})
    increases = [point["bits_per_byte"] - whole for point in (magnitude, calibrated)]
    counts = [calibrated["channels"][stage] for stage in kept]
    channels, size = ", ".join(map(str, counts)), f"{calibrated['bundle_bytes'] / 1e6:.2f} MB"
    share = next(iter(kept.values()))
    line = f"| {', '.join(kept)} | {share} | {channels} | {size} | {increases[0]:+.4f} | {increases[1]:+.4f} |"
    print(line, flush=True)
    return {"stages": kept, "calibrated": calibrated, "magnitude": magnitude}


def measure(folder: Path, name: str, checkpoint: Path, kept: dict[str, str]) -> dict[str, Any]:
    """A checkpoint in int8, of some stages so many channels."""
    recipe = folder / f"{name}.toml"
    sections = {"patcher": 16, **dict.fromkeys((*STAGES, "tables"), 128)}
    texts = (
        f"[{part}]\n{INT8.format(block=block)}" + (f'channels = "{kept[part]}"\n' if part in kept else "")
        for part, block in sections.items()
    )
    recipe.write_text("".join(texts))
    compressed = quantize_checkpoint(checkpoint, folder / f"{name}.checkpoint", recipe)
    model = load(export_bundle(compressed, folder / f"{name}.bundle").path)
    held_out = [held_out_text(text) for text in TEXTS]
    bits = sum(model.score(text).bits_per_byte * len(text) for text in held_out) / sum(map(len, held_out))
    config = model.bundle.manifest.config
    stacks = dict(zip(STAGES, (config.encoder, config.global_, config.decoder), strict=True))
    channels = {stage: stack.intermediate_size for stage, stack in stacks.items()}
    return {"bits_per_byte": bits, "bundle_bytes": model.bundle.size, "channels": channels}


def by_magnitude(path: Path, kept: dict[str, str]) -> Path:
    """The bundled model with only these channels, as a checkpoint in transformers' form."""
    original, tensors = open_checkpoint(DEMO_CHECKPOINT), load_file(DEMO_CHECKPOINT / "model.safetensors")
    config = json.loads((DEMO_CHECKPOINT / "config.json").read_text())
    for stage, share in kept.items():
        stack = config[f"{stage}_config"]
        stack["intermediate_size"] = count = kept_count(share, stack["intermediate_size"])
        for layer in range(stack["num_hidden_layers"]):
            names = [f"{stage}.layers.{layer}.{part}" for part in ("gate", "up", "down")]
            gate, up, down = (original.tensor(name) for name in names)
            sizes = np.linalg.norm(gate, axis=1) * np.linalg.norm(up, axis=1) * np.linalg.norm(down, axis=0)
            largest = np.sort(np.argsort(-sizes, kind="stable")[:count])
            keys = [transformers_name(name, encoder_cross_layer=0) for name in names]
            tensors |= {key: tensors[key][largest] for key in keys[:2]}
            tensors[keys[2]] = tensors[keys[2]][:, largest].contiguous()
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    save_file(tensors, path / "model.safetensors")
    return path


if __name__ == "__main__":
    main()
