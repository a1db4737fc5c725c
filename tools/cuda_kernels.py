"""Writes tests/data/cuda_kernels.json: all kernels of the installed onnxruntime-gpu's CUDA provider, by its own list.

    python tools/cuda_kernels.py

No GPU is needed, but gcc and objdump are: the provider is loaded over the tests' stand-in for CUDA.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import cuda_stand_in
import kernel_table

if __name__ == "__main__":
    if reason := cuda_stand_in.unusable():
        sys.exit(f"cannot load the CUDA provider: {reason}")
    with tempfile.TemporaryDirectory() as directory:
        table = kernel_table.compact(kernel_table.installed_kernels(cuda_stand_in.build(Path(directory))))
    kernel_table.write(table)
    print(f"{kernel_table.TABLE}: {len(table)} operators")
