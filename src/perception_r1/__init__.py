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


def not_installed(package: str, extra: str) -> str:
    """One line for somebody who lacks a package of one of our extras, with the README's command.

    >>> not_installed("nltk", "eval").partition(", ")[0]
    "nltk is not installed: pip install -e '.[eval]' -c constraints.txt"
    """
    command = f"pip install -e '.[{extra}]' -c constraints.txt"
    if extra == "vllm":  # pins a torch of its own, which constraints.txt would contradict
        command = "pip install -e '.[train,eval,vllm]'"
    return f"{package} is not installed: {command}, in a checkout of Perception-R1"
