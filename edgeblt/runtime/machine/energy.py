"""Energy that the processor has used, where Linux tells it (RAPL, /sys/class/powercap)."""

from pathlib import Path

_POWERCAP = Path("/sys/class/powercap")


class Energy:
    """Adds up the counters of all processor packages, each of which starts again from 0 at its largest value."""

    def __init__(self, powercap: Path = _POWERCAP) -> None:
        self._packages = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if zone.name.count(":") == 1]
        self._last: dict[Path, int] = {}
        self._microjoules = 0

    def joules(self) -> float | None:
        """Joules that all packages used since the first call; None where that cannot be read (often only root may)."""
        try:
            for zone in self._packages:
                now, largest = _number(zone / "energy_uj"), _number(zone / "max_energy_range_uj")
                self._microjoules += (now - self._last.get(zone, now)) % (largest + 1)
                self._last[zone] = now
        except (OSError, ValueError):
            return None
        return self._microjoules * 1e-6 if self._packages else None


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))
