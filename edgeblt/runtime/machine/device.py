"""Names of the devices that a model runs on."""

import platform
from pathlib import Path

from edgeblt.runtime.cuda import gpu_name


def device_name(with_gpu: bool = False) -> str:
    """Name of the processor, after that of the GPU if `with_gpu`. Raises EdgebltError where there is no GPU."""
    return f"{gpu_name()}, {_processor_name()}" if with_gpu else _processor_name()


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
