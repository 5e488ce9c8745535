"""Stand-ins for programs in printed commands: `python -SE printed_programs.py NAME WORDS…`. Standard library alone, so that they are quick.

perception-r1 is asked of the process that tests/printed_commands.py started. The others check their words and do nothing.
"""

import json
import os
import re
import socket
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
KNOWN_PACKAGES = {"lmms-eval", "decord"}
ADDRESSES = r"http://images\.cocodataset\.org/(zips|annotations)/\w+\.zip"
GENERAL = ROOT / "tests" / "test_general.py"


def need(right: object, what: str) -> None:
    if not right:
        sys.exit(f"{sys.argv[1]}: {what}: {' '.join(sys.argv[2:])}")


def perception_r1(words: list[str]) -> int:
    with socket.socket(socket.AF_UNIX) as talk:
        talk.connect(os.environ["PRINTED_SOCKET"])
        asked = json.dumps({"words": words, "cwd": os.getcwd()}).encode()
        socket.send_fds(talk, [asked], [1, 2])
        return json.loads(talk.recv(100))


def accelerate(words: list[str]) -> int:
    """Starts one process where the launcher would start several."""
    need(words[0] == "launch" and "-m" in words, "expected launch … -m MODULE …")
    module = words.index("-m")
    need(words[module + 1] == "perception_r1.cli", "expected our command line")
    need(
        all(word.startswith("--") or word.isdigit() for word in words[1:module]), "expected options"
    )
    return perception_r1(words[module + 2 :])


def pip(words: list[str]) -> int:
    """What is installed is there: extras that we declare, a file of constraints, packages we mean."""
    need(words[0] == "install", "expected install")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    rest = iter(words[1:])
    for word in rest:
        if word == "-e":
            target = re.fullmatch(r"\.(?:\[([\w,]+)\])?", next(rest))
            need(target, "expected this checkout")
            need(
                set((target[1] or "train").split(",")) <= set(declared),
                "expected extras that are declared",
            )
        elif word == "-c":
            need((ROOT / next(rest)).is_file(), "expected a file of constraints")
        else:
            need(word in KNOWN_PACKAGES, "expected a package that the document is about")
    return 0


def python(words: list[str]) -> int:
    """Makes an environment whose programs are these stand-ins, and whose Python has lmms-eval's."""
    need(words[:2] == ["-m", "venv"] and len(words) == 3, "expected -m venv FOLDER")
    place = Path(words[2]) / "bin"
    place.mkdir(parents=True)
    (place / "activate").write_text("")
    script = f'#!/bin/sh\nexec "{sys.executable}" -SE "{__file__}" pip "$@"\n'
    packages = (place / ".." / "packages").resolve()
    (packages / "lmms_eval").mkdir(parents=True)
    stand_in = GENERAL.read_text().partition('STAND_IN = """')[2].partition('"""')[0]
    (packages / "lmms_eval" / "__main__.py").write_text(stand_in.replace("\\\\", "\\"))
    (packages / "lmms_eval" / "__init__.py").write_text("")
    about = packages / "lmms_eval-0.7.3.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: lmms_eval\nVersion: 0.7.3\n")
    own = f'#!/bin/sh\nPYTHONPATH="{packages}" exec "{os.environ["PRINTED_PYTHON"]}" "$@"\n'
    for name, content in (("pip", script), ("python", own)):
        (place / name).write_text(content)
        (place / name).chmod(0o755)
    return 0


def hf(words: list[str]) -> int:
    need(
        words[0] == "download" and "--local-dir" in words, "expected download … --local-dir FOLDER"
    )
    need(re.fullmatch(r"[\w-]+/[\w.-]+", words[1]), "expected OWNER/NAME")
    need(Path(words[words.index("--local-dir") + 1]).is_dir(), "the place has no such data")
    return 0


def wget(words: list[str]) -> int:
    need(all(re.fullmatch(ADDRESSES, word) for word in words), "expected addresses of COCO")
    return 0


def unzip(words: list[str]) -> int:
    need(
        words[0] == "-d" and Path(words[1]).is_dir(), "expected -d FOLDER, whose data the place has"
    )
    return 0


def transformers(words: list[str]) -> int:
    """A server in a terminal of its own; the one of the test answers in its place."""
    need(words[0] == "serve" and "/" in words[1], "expected serve OWNER/NAME")
    return 0


STAND_INS = {
    "perception-r1": perception_r1,
    "accelerate": accelerate,
    "pip": pip,
    "python": python,
    "python3": python,
}
STAND_INS |= {
    "hf": hf,
    "wget": wget,
    "unzip": unzip,
    "transformers": transformers,
    "vllm": transformers,
}

if __name__ == "__main__":
    sys.exit(STAND_INS[sys.argv[1]](sys.argv[2:]))
