"""Energy that the processor has used, as Linux reports it (RAPL, /sys/class/powercap)."""

from pathlib import Path

_POWERCAP = Path("/sys/class/powercap")


class Energy:
    """Energy of all processor packages, summed from counters that wrap around to 0."""

    def __init__(self, powercap: Path = _POWERCAP) -> None:
        self._packages = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if zone.name.count(":") == 1]
        self._last: dict[Path, int] = {}
        self._microjoules = 0

    def joules(self) -> float | None:
        """Joules used by all packages since the first call; None if they cannot be read (often only root may)."""
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
