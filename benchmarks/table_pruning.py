"""Size and accuracy after dropping unused rows of the hash tables: a curve on the bundled model.

    python benchmarks/table_pruning.py [--format fp32] [--calibration TEXT] [SHARE ...]

For each share of the calibration text's lookups: the rows that carry it, what they take on disk with their index, and
bits per byte on the held-out texts of the kinds the model was trained on, which are not the calibration text. The last
line is JSON.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from edgeblt import load
from edgeblt.export.checkpoints.checkpoint import open_checkpoint
from edgeblt.export.export_bundle import export_bundle
from edgeblt.measure.texts import DEMO_CHECKPOINT, held_out_text
from edgeblt.quant.compress import quantize_checkpoint
from edgeblt.quant.recipes.recipe import HASH_TABLES

SHARES = (1.0, 0.999, 0.99, 0.95, 0.9, 0.8, 0.6, 0.4, 0.2)
TEXTS = ("prose", "code", "typos")
RECIPE = '[tables]\nformat = "{format}"\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shares", nargs="*", type=float, default=SHARES)
    parser.add_argument("--format", default="fp32", help="of the tables; everything else is fp32")
    parser.add_argument("--calibration", type=Path, help="by default the text that comes with the package")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        points = [
            measure(Path(folder), arguments.format, arguments.calibration, share) for share in (None, *arguments.shares)
        ]
    print(f"{'share of hits':>14} {'rows':>7} {'of all':>7} {'tables':>11} {'bits/byte':>10} {'increase':>9}")
    for point in points:
        share = "all rows" if point["share"] is None else f"{point['share']:.3f}"
        increase = point["bits_per_byte"] - points[0]["bits_per_byte"]
        kept = f"{point['rows']:>7,} {point['rows'] / points[0]['rows']:>7.1%} {point['table_bytes']:>11,}"
        print(f"{share:>14} {kept} {point['bits_per_byte']:>10.4f} {increase:>+9.4f}")
    print(json.dumps({"format": arguments.format, "texts": TEXTS, "points": points}))


def measure(folder: Path, format: str, calibration: Path | None, share: float | None) -> dict[str, Any]:
    """One point of the curve; `share` None keeps all rows."""
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(format=format))
    compressed = quantize_checkpoint(
        DEMO_CHECKPOINT, folder / f"checkpoint-{share}", recipe, calibration, table_hits=share
    )
    model = load(export_bundle(compressed, folder / f"bundle-{share}").path)
    opened = open_checkpoint(compressed)
    texts = [held_out_text(name) for name in TEXTS]
    bits = sum(model.score(text).bits_per_byte * len(text) for text in texts) / sum(map(len, texts))
    rows = opened.shape(HASH_TABLES)[0] - (share is not None)
    return {
        "share": share,
        "rows": rows,
        "table_bytes": opened.stored_bytes(HASH_TABLES),
        "bits_per_byte": bits,
    }


if __name__ == "__main__":
    main()
