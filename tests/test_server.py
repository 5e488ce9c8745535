"""Answers from a server: the same as the model gives here, whatever the server does on the way; and what no retry mends is one line."""

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.chat_server import Act, prompt_of, said, serving

from perception_r1.data.samples import open_image, write_samples
from perception_r1.data.scenes import scene_samples
from perception_r1.dialects import frame_of
from perception_r1.evaluation import server as server_module
from perception_r1.evaluation.asking import Question, Reach
from perception_r1.evaluation.run import evaluate
from perception_r1.evaluation.server import ServerBackend
from perception_r1.policy import WEIGHTS
from perception_r1.records import BadData, Sample, Truth
from perception_r1.tasks import make_task

SOURCE = Path(__file__).parents[1] / "src"
QUICK = Reach(parallel=4, timeout=20, retries=3)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries follow on each other at once; that the waits grow is the client's own affair."""
    pytest.importorskip("openai")
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(server_module, "sleep", lambda _: None)


def samples_in(folder: Path, count: int = 6) -> list[Sample]:
    random = np.random.default_rng(0)
    found = []
    for k in range(count):
        Image.fromarray(random.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(folder / f"{k}.png")
        truth = Truth(boxes=np.array([[6, 8, 30.0, 24.0]]), labels=(f"thing {k}",))
        query = f"thing {k}"
        found.append(Sample(id=f"s{k}", task="grounding", image=f"{k}.png", width=60, height=40, query=query, truth=truth, root=folder))
    write_samples(found, folder / "data.jsonl")
    return found


def truth_of(body: Any, _: int = 0) -> Act:
    name = str(prompt_of(body)).split(" of the ")[-1].split(" in the ")[0]
    return Act(body=said(f"{name}: [6, 8, 30, 24]" if prompt_of(body) else "Hi"))


def lines(folder: Path) -> list[dict[str, Any]]:
    with (folder / "answers.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def run(folder: Path, url: str, output: str = "run", **options: Any) -> dict[str, Any]:
    given = {"dialect": "plain", "resamples": 10, "reach": QUICK} | options
    return evaluate(data=str(folder / "data.jsonl"), server=url, output=folder / output, **given)


# --- what is sent -----------------------------------------------------------------------------------------------------
def test_every_image_arrives_as_it_is_stored_whatever_its_exif_says(tmp_path: Path) -> None:
    samples = samples_in(tmp_path, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    with Image.open(samples[1].image_path) as image:
        image.save(tmp_path / "1.jpg", quality=90, exif=exif)
    turned = Sample(id="t", task="grounding", image="1.jpg", width=60, height=40, query="turned", truth=samples[1].truth, root=tmp_path)
    write_samples([*samples, turned], tmp_path / "data.jsonl")
    with serving(truth_of) as heard:
        run(tmp_path, heard.url)
    sent = {prompt_of(body): body for body in heard.bodies if prompt_of(body)}
    task = make_task("grounding", dialect="plain")
    for sample in [*samples, turned]:
        url = next(part for part in sent[task.prompt(sample)]["messages"][0]["content"] if part["type"] == "image_url")["image_url"]["url"]
        with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as found:
            assert np.array_equal(np.asarray(found), np.asarray(open_image(sample)))
            assert not found.getexif()


def test_the_request_is_greedy_and_asks_for_the_whole_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples_in(tmp_path, 2)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with serving(truth_of, models=("qwen",)) as heard:
        found = run(tmp_path, heard.url, max_new_tokens=77)
    asked = [body for body in heard.bodies if prompt_of(body)]
    assert len(asked) == 2
    for body in asked:
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("qwen", 0.0, 77)
        assert body["skip_special_tokens"] is body["spaces_between_special_tokens"] is False
        assert not body.get("stream")
    assert {headers["authorization"] for headers in heard.headers} == {"Bearer sk-secret"}
    assert found["model"]["decoding"] == {"greedy": True, "max_new_tokens": 77, "ends": "the server's own", "special_tokens": "kept"}
    written = "".join(path.read_text() for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert "sk-secret" not in written


def test_no_more_than_so_many_questions_wait_at_a_time(tmp_path: Path) -> None:
    samples_in(tmp_path, 12)
    with serving(lambda body, _: Act(**(vars(truth_of(body)) | {"after": 0.05}))) as heard:
        run(tmp_path, heard.url, reach=Reach(parallel=3, timeout=20, retries=0))
    assert heard.most_at_once == 3


# --- a hostile server -------------------------------------------------------------------------------------------------
HOSTILE = {
    "too many requests": [Act(429, {"error": {"message": "slow down"}}, headers={"Retry-After": "0.01"})],
    "errors of its own": [Act(500, {"error": "boom"}), Act(503, {"error": "loading"})],
    "no reply in time": [Act(body=said("late"), after=3)],
    "a reply cut off": [Act(body=said("cut"), keep=40)],
    "a connection cut off": [Act(hang_up=True)],
    "no chat completion": [Act(body={"error": "out of memory"})],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_passes_is_mended_by_asking_again(case: str, tmp_path: Path) -> None:
    samples_in(tmp_path, 3)
    acts = HOSTILE[case]
    with serving(lambda body, before: acts[before] if prompt_of(body) and before < len(acts) else truth_of(body)) as heard:
        found = run(tmp_path, heard.url, reach=Reach(parallel=3, timeout=1, retries=3))
    assert found["metrics"]["mean_iou"]["value"] == 1
    assert set(heard.asked.values()) - {1} == {len(acts) + 1}


LASTING = {
    "errors of its own": (Act(500, {"error": {"message": "boom"}}), r"answered 500: .*boom.*, 2 times: run the same command again to go on"),
    "a refused image": (Act(400, {"error": {"message": "image\ntoo large"}}), r"answered 400: .*image.{1,2}too large"),
    "a refused key": (Act(401, {"error": {"message": "who are you"}}), "answered 401: .*: set OPENAI_API_KEY to its key"),
    "no reply in time": (Act(body=said("late"), after=3), r"no reply within 0\.5 s, 2 times: raise --timeout"),
    "replies cut off": (Act(body=said("cut"), keep=40), "expected a chat completion, found .*, 2 times"),
}


@pytest.mark.parametrize("case", LASTING)
def test_what_lasts_is_one_line_and_the_other_answers_are_kept(case: str, tmp_path: Path) -> None:
    samples_in(tmp_path, 6)
    act, message = LASTING[case]
    with serving(lambda body, _: act if "thing 4" in str(prompt_of(body)) else truth_of(body)) as heard:
        with pytest.raises(OSError, match=message) as error:
            run(tmp_path, heard.url, reach=Reach(parallel=2, timeout=0.5, retries=1))
        assert "\n" not in str(error.value)
        kept = {row["id"] for row in lines(tmp_path / "run")}
        assert {"s0", "s1", "s2", "s3"} <= kept
        assert "s4" not in kept
    with serving(truth_of) as again:  # mended, at another address
        assert run(tmp_path, again.url)["metrics"]["mean_iou"]["value"] == 1
    assert sum(again.asked.values()) == 1 + 6 - len(kept)


def test_a_permanent_refusal_is_not_asked_again(tmp_path: Path) -> None:
    samples_in(tmp_path, 1)
    with serving(lambda body, _: Act(404, {"error": {"message": "no such model"}}) if prompt_of(body) else truth_of(body)) as heard:
        with pytest.raises(OSError, match="answered 404: .*no such model"):
            run(tmp_path, heard.url)
        assert heard.asked[make_task("grounding").prompt(samples_in(tmp_path, 1)[0])] == 1


def test_nothing_there_is_one_line(tmp_path: Path) -> None:
    samples_in(tmp_path, 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(OSError, match="found no connection, 1 times .*: is it running there"):
        run(tmp_path, url, model="m", reach=Reach(retries=0, timeout=2))


def test_a_cut_answer_is_cut_and_an_empty_one_is_an_answer(tmp_path: Path) -> None:
    samples_in(tmp_path, 2)
    acts = {"thing 0": Act(body=said("thing 0: [6, 8", "length")), "thing 1": Act(body=said(None, "content_filter"))}
    with serving(lambda body, _: next((act for name, act in acts.items() if name in str(prompt_of(body))), truth_of(body))) as heard:
        found = run(tmp_path, heard.url)["metrics"]
    assert found["truncated_rate"]["value"] == 0.5
    assert found["parse_failure_rate"]["value"] == 1
    found_lines = [(row["id"], row["completion"], row["finish"]) for row in lines(tmp_path / "run")]
    assert found_lines == [("s0", "thing 0: [6, 8", "length"), ("s1", "", "stop")]


def refusing(field: str) -> Any:
    return lambda body, _: Act(400, {"error": {"message": f"Unrecognized request argument: {field}"}}) if field in body else truth_of(body)


def test_fields_that_a_server_does_not_know_are_left_out_and_recorded(tmp_path: Path) -> None:
    samples_in(tmp_path, 3)
    with serving(refusing("skip_special_tokens")) as heard:
        found = run(tmp_path, heard.url)
    assert found["metrics"]["mean_iou"]["value"] == 1
    assert found["model"]["decoding"]["special_tokens"] == "stripped by the server"
    assert [body for body in heard.bodies if prompt_of(body) and "skip_special_tokens" in body] == []


def test_the_newer_name_of_the_length_is_found(tmp_path: Path) -> None:
    samples_in(tmp_path, 1)
    def act(body: Any, _: int) -> Act:
        return Act(400, {"error": {"message": "use max_completion_tokens, not max_tokens"}}) if "max_tokens" in body else truth_of(body)
    with serving(act) as heard:
        run(tmp_path, heard.url, max_new_tokens=9)
    assert [body["max_completion_tokens"] for body in heard.bodies if prompt_of(body)] == [9]


# --- what must be declared --------------------------------------------------------------------------------------------
def test_the_way_of_writing_boxes_must_be_named(tmp_path: Path) -> None:
    samples_in(tmp_path, 1)
    with serving(truth_of) as heard, pytest.raises(BadData, match="does not say how its model writes boxes: name it with --dialect"):
        run(tmp_path, heard.url, dialect=None)


def test_numbers_in_resized_pixels_need_the_limit_and_are_read_by_it(tmp_path: Path) -> None:
    sample = samples_in(tmp_path, 1)[0]
    task = make_task("grounding", dialect="qwen2.5-vl")
    frame = frame_of(60, 40, task.dialect, min_pixels=3136, max_pixels=100_352)
    assert (frame.seen_width, frame.seen_height) != (60, 40)
    with serving(lambda body, _: Act(body=said(task.write(sample, frame)))) as heard:
        with pytest.raises(BadData, match="qwen2.5-vl writes pixels of the resized image.*--max-pixels"):
            run(tmp_path, heard.url, dialect="qwen2.5-vl")
        found = run(tmp_path, heard.url, dialect="qwen2.5-vl", max_pixels=100_352)
    assert found["model"]["image"] == {"min_pixels": 3136, "max_pixels": 100_352, "needed": True}
    assert found["metrics"]["mean_iou"]["value"] > 0.9


@pytest.mark.parametrize("models, said_of_them", [((), "found none"), (("a", "b"), "found 2, a, b")])
def test_of_several_models_one_must_be_named(models: tuple[str, ...], said_of_them: str, tmp_path: Path) -> None:
    samples_in(tmp_path, 1)
    with serving(truth_of, models) as heard:
        with pytest.raises(BadData, match=f"expected one model, {said_of_them}: name one with --model"):
            run(tmp_path, heard.url)
        assert run(tmp_path, heard.url, model="b")["model"]["name"] == "b"


def test_a_server_needs_no_torch(tmp_path: Path) -> None:
    samples_in(tmp_path, 2)
    program = "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\nfrom perception_r1.cli import main; main(sys.argv[1:])"
    with serving(truth_of) as heard:
        words = ["evaluate", "--server", heard.url, "--dialect", "plain", "--data", "data.jsonl", "-o", "run"]
        settings = os.environ | {"PYTHONPATH": str(SOURCE)}
        done = subprocess.run([sys.executable, "-c", program, *words], cwd=tmp_path, env=settings, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]["mean_iou"]["value"] == 1


# --- a real one -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`transformers serve` with the bundled policy on loopback; its address."""
    for needed in ("torch", "fastapi", "uvicorn"):
        pytest.importorskip(needed)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", str(WEIGHTS), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    program = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    settings = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(log.parent / "hub"), "CUDA_VISIBLE_DEVICES": ""}
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "-c", program, *words], stdout=out, stderr=out, env=settings)
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                    break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def test_transformers_serve_gives_the_answers_that_the_model_gives_here(transformers_serve: str, tmp_path: Path) -> None:
    from perception_r1.evaluation.backends import TransformersBackend

    samples = scene_samples("counting", folder=tmp_path / "images", n=6, seed=3, max_count=2)
    write_samples(samples, tmp_path / "data.jsonl")
    options: dict[str, Any] = {"data": str(tmp_path / "data.jsonl"), "max_new_tokens": 48, "resamples": 10, "dialect": "qwen3-vl"}
    served = evaluate(**options, server=transformers_serve, model=str(WEIGHTS), output=tmp_path / "served", reach=Reach(parallel=2))
    here = evaluate(**options, model="tiny", device="cpu", output=tmp_path / "here")
    assert served["model"]["decoding"]["special_tokens"] == "stripped by the server"
    assert served["metrics"] == here["metrics"]
    assert here["metrics"]["parse_failure_rate"]["value"] < 1
    texts = [[(row["id"], row["completion"]) for row in lines(tmp_path / name)] for name in ("served", "here")]
    assert texts[0] == texts[1]
    task = make_task("counting", dialect="qwen3-vl")
    backend = TransformersBackend("tiny", device="cpu")
    prompts, images = [task.prompt(sample) for sample in samples], [open_image(sample) for sample in samples]
    direct = backend.generate(prompts, images, max_new_tokens=48, batch_size=1)
    assert [reply.completion for reply in direct] == [text for _, text in texts[0]]


def test_a_wrong_name_of_the_model_is_one_line(transformers_serve: str) -> None:
    with pytest.raises(OSError, match="answered 400: .*pinned to"):
        ServerBackend(transformers_serve, "another", task="ocr", reach=Reach(retries=0))


def test_a_question_opens_its_image_only_when_it_is_asked(tmp_path: Path) -> None:
    sample = samples_in(tmp_path, 1)[0]
    question = Question(sample, "what")
    sample.image_path.unlink()
    with pytest.raises(BadData, match="no such file"):
        question.image()
