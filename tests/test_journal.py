"""A run that was stopped, killed or torn goes on: the same metrics.json as without the stop, and no answer that is there is asked again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.chat_server import Act, serving
from tests.test_server import lines, samples_in, truth_of
from tests.two_processes import in_two_processes

from perception_r1.data.samples import write_samples
from perception_r1.data.scenes import scene_samples
from perception_r1.evaluation.asking import Processes, Reply
from perception_r1.evaluation.journal import Journal
from perception_r1.evaluation.run import evaluate
from perception_r1.records import BadData, Frame

SOURCE = Path(__file__).parents[1] / "src"
FRAME = Frame(width=60, height=40, seen_width=56, seen_height=28)
IDENTITY = {"task": "grounding", "model": {"name": "m", "decoding": {"max_new_tokens": 8}}}


def reply(text: str) -> Reply:
    return Reply(text, "stop", FRAME)


# --- the file ---------------------------------------------------------------------------------------------------------
def test_replies_come_back_as_they_were_added_in_the_order_of_the_samples(tmp_path: Path) -> None:
    samples = samples_in(tmp_path, 3)
    folder = tmp_path / "run"
    with Journal(folder, samples, IDENTITY) as journal:
        journal.add(samples[2], Reply("häßlich\n\u2028 \"x\"", "length", FRAME))
        journal.add(samples[0], reply("a"))
    with Journal(folder, samples, IDENTITY) as journal:
        assert journal.missing() == [samples[1]]
        journal.add(samples[1], reply("b"))
    assert journal.finish() == [reply("a"), reply("b"), Reply("häßlich\n\u2028 \"x\"", "length", FRAME)]
    assert [row["id"] for row in lines(folder)] == ["s0", "s1", "s2"]
    assert lines(folder)[0] == {"id": "s0", "completion": "a", "finish": "stop", "seen": [56, 28]}


@pytest.mark.parametrize("kept", range(1, 60, 7))
def test_a_torn_last_line_is_asked_again_wherever_it_was_torn(kept: int, tmp_path: Path) -> None:
    samples, folder = samples_in(tmp_path, 3), tmp_path / "run"
    with Journal(folder, samples, IDENTITY) as journal:
        for sample in samples[:2]:
            journal.add(sample, reply(f"für {sample.id}"))
    path = folder / "answers.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:kept])
    with Journal(folder, samples, IDENTITY) as journal:
        assert [sample.id for sample in journal.missing()] == ["s1", "s2"]
        for sample in journal.missing():
            journal.add(sample, reply("again"))
    assert [answer.completion for answer in journal.finish()] == ["für s0", "again", "again"]


OTHERS = {
    "another length": ({"model": {"name": "m", "decoding": {"max_new_tokens": 9}}}, "model.decoding.max_new_tokens was 8, now 9"),
    "another model": ({"model": {"name": "n", "decoding": {"max_new_tokens": 8}}}, "model.name was 'm', now 'n'"),
    "another setting": ({"settings": {"thinking": True}}, r"settings was None, now \{'thinking': True\}"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_answers_of_another_run_are_refused_by_name_and_overwritten_on_demand(case: str, tmp_path: Path) -> None:
    samples, folder = samples_in(tmp_path, 2), tmp_path / "run"
    change, message = OTHERS[case]
    with Journal(folder, samples, IDENTITY) as journal:
        journal.add(samples[0], reply("a"))
    with pytest.raises(BadData, match=f"holds answers of another run: {message}.*--overwrite"):
        Journal(folder, samples, IDENTITY | change)
    assert len(lines(folder)) == 1
    assert Journal(folder, samples, IDENTITY | change, overwrite=True).missing() == samples
    assert not (folder / "answers.jsonl").exists()


def test_answers_that_nobody_explains_are_not_taken_over(tmp_path: Path) -> None:
    samples = samples_in(tmp_path, 1)
    (tmp_path / "answers.jsonl").write_text('{"id": "s0", "completion": "", "finish": "stop"}\n')
    with pytest.raises(BadData, match=r"found answers, but no run\.json.*--overwrite"):
        Journal(tmp_path, samples, IDENTITY)


def test_a_line_that_no_run_wrote_is_named(tmp_path: Path) -> None:
    samples = samples_in(tmp_path, 1)
    Journal(tmp_path / "run", samples, IDENTITY)
    (tmp_path / "run" / "answers.jsonl").write_text('{"id": "s0"}\n')
    with pytest.raises(BadData, match=r"answers\.jsonl:1: found .* expected id, completion, finish and seen"):
        Journal(tmp_path / "run", samples, IDENTITY)


class Rank(Processes):
    def __init__(self, index: int, count: int) -> None:
        self.index, self.count = index, count


@pytest.mark.parametrize("now", [1, 2, 3])
def test_processes_share_what_is_left_however_many_there_were_before(now: int, tmp_path: Path) -> None:
    samples, folder = samples_in(tmp_path, 9), tmp_path / "run"
    for journal in [Journal(folder, samples, IDENTITY, processes=Rank(index, 2)) for index in range(2)]:
        with journal:
            for sample in journal.missing()[:2]:  # then it is killed
                journal.add(sample, reply(sample.id))
    journals = [Journal(folder, samples, IDENTITY, processes=Rank(index, now)) for index in range(now)]
    shares = [journal.missing() for journal in journals]
    assert sorted(sample.id for share in shares for sample in share) == ["s4", "s5", "s6", "s7", "s8"]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for journal, share in zip(journals, shares, strict=True):
        with journal:
            for sample in share:
                journal.add(sample, reply(sample.id))
    assert [answer.completion for answer in journals[0].finish()] == [f"s{k}" for k in range(9)]
    assert sorted(path.name for path in folder.iterdir()) == ["answers.jsonl", "run.json"]


# --- real runs --------------------------------------------------------------------------------------------------------
def words(url: str, output: str) -> list[str]:
    program = [sys.executable, "-m", "perception_r1.cli", "evaluate", "--server", url, "--dialect", "plain", "--data", "data.jsonl"]
    return [*program, "--parallel", "2", "-o", output]


def test_a_killed_process_goes_on_and_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    pytest.importorskip("openai")
    samples_in(tmp_path, 30)
    place: Any = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(SOURCE)}, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    path = tmp_path / "killed" / "answers.jsonl"
    with serving(lambda body, _: Act(**(vars(truth_of(body)) | {"after": 0.05}))) as heard:
        first = subprocess.Popen(words(heard.url, "killed"), **place | {"stdout": subprocess.DEVNULL})
        while first.poll() is None and not (path.is_file() and path.read_bytes().count(b"\n") >= 8):
            time.sleep(0.005)
        first.send_signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
        there = {json.loads(line)["id"] for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")}
        assert 8 <= len(there) < 30
        with path.open("ab") as file:
            file.write(b'{"id": "s29", "compl')  # as if the kill had come in the middle of a write
        done = subprocess.run(words(heard.url, "killed"), **place)
        assert done.returncode == 0, done.stdout.decode()
        asked = Counter({f"s{prompt.split('thing ')[1].split(' ')[0]}": count for prompt, count in heard.asked.items() if "thing" in prompt})
        assert all(asked[name] == 1 for name in there)
        assert max(asked.values()) <= 2
        assert sum(asked.values()) <= 30 + 2  # those under way when the kill came
        before = sum(heard.asked.values())
        subprocess.run(words(heard.url, "killed"), check=True, **place)
        assert sum(heard.asked.values()) == before + 1  # whether it is there
        subprocess.run(words(heard.url, "whole"), check=True, **place)
    for name in ("metrics.json", "answers.jsonl", "run.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_local_model_that_was_stopped_is_asked_for_the_rest_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from perception_r1.evaluation.backends import TransformersBackend

    samples = scene_samples("counting", folder=tmp_path / "images", n=8, seed=3)
    write_samples(samples, tmp_path / "data.jsonl")
    options: dict[str, Any] = {"data": str(tmp_path / "data.jsonl"), "model": "tiny", "device": "cpu", "max_new_tokens": 24, "resamples": 10}
    whole = evaluate(**options, batch_size=8, output=tmp_path / "whole")
    asked: list[int] = []
    generate = TransformersBackend.generate

    def counting(self: TransformersBackend, prompts: Sequence[str], *rest: Any, **more: Any) -> list[Reply]:
        asked.append(len(prompts))
        return generate(self, prompts, *rest, **more)

    def stop(done: int, _: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(TransformersBackend, "generate", counting)
    with pytest.raises(KeyboardInterrupt):
        evaluate(**options, batch_size=2, output=tmp_path / "run", on_progress=stop)
    seen: list[tuple[int, int]] = []
    assert evaluate(**options, batch_size=2, output=tmp_path / "run", on_progress=lambda *step: seen.append(step))["metrics"] == whole["metrics"]
    assert asked == [2, 2, 2, 2]
    assert seen == [(5, 8), (6, 8), (7, 8), (8, 8)]
    assert (tmp_path / "run" / "answers.jsonl").read_bytes() == (tmp_path / "whole" / "answers.jsonl").read_bytes()
    with pytest.raises(BadData, match=r"max_new_tokens was 24, now 23"):
        evaluate(**options | {"max_new_tokens": 23}, output=tmp_path / "run")
    with pytest.raises(BadData, match=r"holds the answers of a model.*a folder of its own for a file of answers"):
        evaluate(data=options["data"], predictions=tmp_path / "run" / "answers.jsonl", output=tmp_path / "run", dialect="qwen3-vl")


def test_metrics_json_says_what_the_answers_depend_on_and_nothing_of_the_machine(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    samples = scene_samples("counting", folder=tmp_path / "images", n=1, seed=3)
    write_samples(samples, tmp_path / "data.jsonl")
    found = evaluate(data=str(tmp_path / "data.jsonl"), model="tiny", device="cpu", max_new_tokens=8, resamples=5, output=tmp_path / "run")["model"]
    prompt = found.pop("prompt")
    assert prompt["template"] == "Output all the bounding boxes of the {query}"
    assert prompt["example"] == f"Output all the bounding boxes of the {samples[0].query}"
    assert prompt["as_sent"].count(prompt["example"]) == 1
    assert "<|im_start|>" in prompt["as_sent"]
    assert found.pop("revision").startswith("sha256:")
    assert found == {
        "name": "tiny", "backend": "transformers", "model_type": "qwen3_vl", "device": "cpu", "dtype": "float32",
        "image": {"min_pixels": 4096, "max_pixels": 4096},
        "decoding": {"greedy": True, "max_new_tokens": 8, "ends": ["<|im_end|>"], "special_tokens": "kept"},
    }  # fmt: skip


def test_the_revision_follows_the_weights_and_nothing_else(tmp_path: Path) -> None:
    from perception_r1.evaluation.asking import folder_revision

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"a")
    first = folder_revision(tmp_path)
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "trainer_state.json").write_text("{}")
    assert folder_revision(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"b")
    assert folder_revision(tmp_path) != first


def test_two_processes_give_the_metrics_of_one(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    samples = scene_samples("counting", folder=tmp_path / "images", n=7, seed=3)
    write_samples(samples, tmp_path / "data.jsonl")
    evaluate(data=str(tmp_path / "data.jsonl"), model="tiny", device="cpu", max_new_tokens=24, batch_size=2, output=tmp_path / "one")
    in_two_processes("evaluated", tmp_path)
    logs = [(tmp_path / f"evaluated-{rank}.log").read_text() for rank in range(2)]
    assert "counting, 7 samples" in logs[0]
    assert "counting, 7 samples" not in logs[1]
    for name in ("metrics.json", "answers.jsonl", "run.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()

