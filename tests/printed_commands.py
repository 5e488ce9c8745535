"""Runs the commands of a document as they are printed: `perception-r1` in a process that has loaded everything, once, and is forked.

Installers, downloads and launchers are stand-ins (tests/printed_programs.py) that look at what they are told and do nothing.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROGRAMS = (
    "perception-r1",
    "accelerate",
    "pip",
    "python",
    "python3",
    "hf",
    "wget",
    "unzip",
    "transformers",
    "vllm",
)
SERVER = "http://localhost:8000"
"""The address of somebody's server in the documents."""

SHORT: dict[str, list[str]] = {
    "grpo": "--max_steps 1 --save_steps 1 --per_device_train_batch_size 4 --num_generations 4".split(),
    "sft": "--max_steps 1 --save_steps 1 --per_device_train_batch_size 2".split(),
    "evaluate": "--limit 3 --max-new-tokens 4".split(),
    "probe": "--num_generations 2 --max-new-tokens 4".split(),
    "study": ["--max-runs", "0"],
    "demo": ["--max-new-tokens", "4"],
}
"""Words that make a command short; the last of an option counts."""
TRAINING = "--gradient_accumulation_steps 1 --max_completion_length 4 --use_cpu true --bf16 false"
TRAINING += " --gradient_checkpointing false --eval_limit 2 --eval_batch_size 2"


def shortened(words: list[str], *, server: str, port: int, recipe: str) -> list[str]:
    """A printed command with the words that make it short, and its addresses where they lead here."""
    found = [word.replace(SERVER, server) for word in words]
    command = found[0]
    if command in ("grpo", "sft"):
        found += SHORT[command] + (
            TRAINING.split() if command == "grpo" else TRAINING.split()[:2] + TRAINING.split()[4:10]
        )
    elif command == "evaluate" and "--general" in found:
        pass
    else:
        found += SHORT.get(command, [])
    if "detection-curriculum" in found:  # whole groups of 16, and a step of every stage
        found += [
            "--per_device_train_batch_size",
            "16",
            "--num_generations",
            "16",
            "--max_steps",
            "3",
            "--save_steps",
            "3",
        ]
    if command == "demo":
        found += ["--port", str(port)]
    if command == "data" and "--sample" in found:
        found += ["--sample", "1"]
    if found[:2] == ["data", "scenes"]:
        found += ["-n", "6"]
    if found[:3] == ["data", "recipe", "paper"]:
        found[2] = recipe
    return found


@contextmanager
def programs(folder: Path, server: str, recipe: Path) -> Iterator[dict[str, str]]:
    """The environment in which a document's commands run; `server` answers where they name SERVER."""
    bin_folder, address = folder / "bin", str(folder / "socket")
    bin_folder.mkdir()
    for name in PROGRAMS:
        path = bin_folder / name
        script = ROOT / "tests" / "printed_programs.py"
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -SE "{script}" {name} "$@"\n')
        path.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "PRINTED_SOCKET": address,
    }
    environment |= {
        "PRINTED_PYTHON": sys.executable,
        "COLUMNS": "80",
        "PYTHONUTF8": "1",
        "OMP_NUM_THREADS": "1",
    }
    environment |= {"XDG_CACHE_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    paths = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    command = [sys.executable, "-m", "tests.printed_commands", address, server, str(recipe)]
    with subprocess.Popen(command, cwd=ROOT, env=environment | {"PYTHONPATH": paths}) as worker:
        try:
            _wait_for(address, worker)
            yield environment
        finally:
            worker.terminate()


def _wait_for(address: str, worker: Any) -> None:
    deadline = time.monotonic() + 300
    while not Path(address).exists():
        assert worker.poll() is None, "the process that runs the commands has died"
        assert time.monotonic() < deadline, "the process that runs the commands did not start"
        time.sleep(0.05)


def serve(address: str, server: str, recipe: str) -> None:
    """Answers one request after the other: a command's words and folder in, its exit code out."""
    import perception_r1.cli
    import perception_r1.evaluation.probe
    import perception_r1.evaluation.report
    import perception_r1.evaluation.server
    import perception_r1.training.grpo
    import perception_r1.training.sft  # noqa: F401 - loaded once, for every command

    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"{address}.new")
    listening.listen()
    os.rename(f"{address}.new", address)
    while True:
        talk, _ = listening.accept()
        with talk:
            request, fds, _, _ = socket.recv_fds(talk, 1_000_000, 2)
            asked = json.loads(request)
            child = os.fork()
            if child == 0:
                listening.close()
                _run(asked, fds, server, recipe)
            _, status, used = os.wait4(child, 0)
            if log := os.environ.get("PRINTED_TIMES"):
                with open(log, "a") as file:
                    print(f"{used.ru_utime + used.ru_stime:.1f}", *asked["words"], file=file)
            for fd in fds:
                os.close(fd)
            talk.sendall(json.dumps(os.waitstatus_to_exitcode(status)).encode())


def _run(asked: dict[str, Any], fds: list[int], server: str, recipe: str) -> None:
    """In the forked process: one command, then the end."""
    code = 70
    try:
        os.chdir(asked["cwd"])
        for number, fd in enumerate(fds, 1):
            os.dup2(fd, number)
        from perception_r1.cli import main

        port = _free_port() if asked["words"][0] == "demo" else 0
        words = shortened(asked["words"], server=server, port=port, recipe=recipe)
        if words[0] == "demo":
            threading.Thread(target=_leave, args=(port,), daemon=True).start()
        main(words)
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException:  # noqa: BLE001 - the test that asked shows it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _leave(port: int) -> None:
    """Presses Ctrl-C once the page answers, as whoever copied the command will."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as page:
                assert page.status == 200
                break
        except OSError:
            time.sleep(0.2)
    time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGINT)


def blocks(text: str) -> list[tuple[int, str, str, str]]:
    """(line, language, content, reason not to run it or '') of the fenced blocks of a document."""
    found = []
    pattern = r"(?:^<!-- not run: (.+?) -->\n+)?^```(\w+)\n(.*?)^```$"
    for block in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        line = text[: block.start(2)].count("\n") + 1
        found.append((line, block[2], block[3], block[1] or ""))
    return found


if __name__ == "__main__":
    serve(*sys.argv[1:])
