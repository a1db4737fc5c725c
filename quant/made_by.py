"""Versions of the packages that make a checkpoint or a bundle, which both record."""

from importlib.metadata import PackageNotFoundError, version


def package_versions(*packages: str) -> dict[str, str]:
    """Installed versions by package; "unknown" for edgeblt itself if its sources are used uninstalled."""
    return {package: _version(package) for package in packages}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
