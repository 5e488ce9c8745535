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
    """One line for somebody who lacks a package of one of our extras, with the command that brings it: the README's.

    >>> not_installed("hotcoco", "eval")
    "hotcoco is not installed: pip install -e '.[eval]' -c constraints.txt, in a checkout of Perception-R1"
    """
    # vLLM pins a torch of its own, so constraints.txt would contradict it; it has an environment of its own.
    command = "pip install -e '.[train,eval,vllm]'" if extra == "vllm" else f"pip install -e '.[{extra}]' -c constraints.txt"
    return f"{package} is not installed: {command}, in a checkout of Perception-R1"
