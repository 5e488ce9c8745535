"""Perception-R1: post-train vision-language models to see better, with rewards from physical truth (arXiv 2504.07954)."""

__version__ = "0.1.0"


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, of this package and of those of `packages` that are installed."""
    import platform
    from importlib import metadata

    installed = {}
    for name in packages:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), "perception-r1": __version__} | installed
