"""Evaluation runs: the truth earns everything, nothing earns nothing, and a batch answers as each of its members would alone."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.random_models import build_random_model

from perception_r1.data.coco import coco_samples
from perception_r1.data.samples import open_image, write_samples
from perception_r1.dialects import DIALECTS, frame_of
from perception_r1.evaluation.run import evaluate
from perception_r1.records import BadData, Sample, Truth
from perception_r1.tasks import make_task

FAMILIES = ("qwen2_vl", "qwen3_vl")


def drawn_samples(folder: Path, sizes: list[tuple[int, int]], task: str = "grounding") -> list[Sample]:
    random = np.random.default_rng(0)
    samples = []
    for index, (width, height) in enumerate(sizes):
        Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        truth = Truth(boxes=np.array([[5, 5, 30.0, 25.0]]), labels=("dog",))
        query = "dog" + " that stands behind the others" * index
        samples.append(Sample(id=f"s{index}", task=task, image=f"{index}.png", width=width, height=height, query=query, truth=truth, root=folder))
    return samples


def answers_file(path: Path, completions: dict[str, str], **fields: str) -> Path:
    path.write_text("".join(json.dumps({"id": name, "completion": text, **fields}) + "\n" for name, text in completions.items()))
    return path


def true_texts(samples: list[Sample], dialect: str) -> dict[str, str]:
    task = make_task(samples[0].task, dialect=dialect)
    return {sample.id: task.write(sample, frame_of(sample.width, sample.height, task.dialect)) for sample in samples}


# --- predictions ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dialect", ["qwen2-vl", "qwen2.5-vl", "plain"])
@pytest.mark.parametrize("name", ["detection", "counting"])
def test_the_truth_as_prediction_is_perfect_on_real_coco(name: str, dialect: str, data_folder: Callable[[str], Path], tmp_path: Path) -> None:
    samples = coco_samples(data_folder("coco_val206"), name).samples
    write_samples(samples, tmp_path / "data.jsonl")
    answers = answers_file(tmp_path / "answers.jsonl", true_texts(samples, dialect))
    run = {"data": str(tmp_path / "data.jsonl"), "predictions": answers, "resamples": 20, "ap_resamples": 2}
    found = evaluate(**run, output=tmp_path / "run", dialect=dialect, max_pixels=1_000_000)["metrics"]
    assert found["parse_failure_rate"]["value"] == found["truncated_rate"]["value"] == 0
    if name == "counting":
        assert found["count_acc"]["value"] == 1
        assert found["count_mae"]["value"] == found["count_rmse"]["value"] == 0
        assert found["distance_score"]["value"] > 0.97
    else:
        assert found["unknown_label_rate"]["value"] == 0
        assert found["AP50"]["value"] > (0.999 if dialect == "plain" else 0.99)
        assert found["f1@0.5"]["value"] > 0.995
        if dialect != "plain":  # a thousandth of the image is a coarse step for COCO's smallest objects
            assert found["APl"]["value"] > 0.99


def test_the_exact_boxes_of_real_coco_have_an_average_precision_of_one(data_folder: Callable[[str], Path]) -> None:
    from perception_r1.evaluation.average_precision import coco_ap
    from perception_r1.records import Answer
    from perception_r1.tasks.task import true_objects

    samples = coco_samples(data_folder("coco_val206"), "detection").samples
    assert any(any(sample.crowd or ()) for sample in samples)
    truths = [true_objects(sample) for sample in samples]
    found = coco_ap(samples, [Answer(boxes=truth.boxes, labels=truth.labels) for truth in truths], resamples=0)
    limited = {"AR1", "AR10"}  # one and ten predictions per image and class
    assert all(found[name]["value"] == pytest.approx(1, abs=1e-9) for name in set(found) - limited)
    assert all(0 < found[name]["value"] < 1 for name in limited)


@pytest.mark.parametrize("name", ["grounding", "counting", "detection"])
def test_no_answer_at_all_is_a_parse_failure_and_earns_nothing(name: str, tmp_path: Path) -> None:
    write_samples(drawn_samples(tmp_path, [(64, 64), (80, 50)], name), tmp_path / "data.jsonl")
    empty = answers_file(tmp_path / "answers.jsonl", {"s0": ""}, finish="length")
    found = evaluate(data=str(tmp_path / "data.jsonl"), predictions=empty, output=tmp_path / "run", resamples=10, ap_resamples=2)
    metrics = found["metrics"]
    assert metrics["parse_failure_rate"]["value"] == 1
    assert metrics["truncated_rate"]["value"] == 0.5
    assert found["model"]["without_answer"] == 1
    assert metrics[make_task(name).MAIN_METRIC]["value"] == 0
    other = {"count_mae", "count_rmse", "answer_length"}
    higher = [entry["value"] for metric, entry in metrics.items() if not metric.endswith("_rate") and metric not in other]
    assert set(higher) <= {0, None}


def test_metrics_json_has_the_shape_of_the_contract(tmp_path: Path) -> None:
    samples = drawn_samples(tmp_path, [(64, 64), (80, 50), (40, 60)])
    data = tmp_path / "data.jsonl"
    write_samples(samples, data)
    answers, seen = answers_file(tmp_path / "a.jsonl", true_texts(samples, "llava")), []
    options = {"data": str(data), "predictions": answers, "dialect": "llava", "limit": 2, "resamples": 50}
    result = evaluate(**options, output=tmp_path / "run", on_progress=lambda done, total: seen.append((done, total)))
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert written == json.loads(json.dumps(result))
    assert set(written) == {"task", "data", "model", "settings", "versions", "metrics", "strict", "breakdown", "notes"}
    assert written["task"] == "grounding"
    assert written["data"]["samples"] == 2
    assert len(written["data"]["sha256"]) == 64
    assert written["settings"]["dialect"] == "llava"
    for name in ("acc@0.5", "acc@0.75", "acc@0.95", "acc@avg", "mean_iou", "parse_failure_rate", "truncated_rate"):
        entry = written["metrics"][name]
        assert set(entry) == {"value", "ci95", "n"}
        assert entry["ci95"][0] <= entry["value"] <= entry["ci95"][1]
        assert entry["n"] == 2
    assert seen == [(1, 2), (2, 2)]
    lines = [json.loads(line) for line in (tmp_path / "run" / "answers.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"id", "completion", "finish"}] * 2


def test_lines_that_hold_both_need_no_data_file_and_repeat_the_run(tmp_path: Path) -> None:
    samples = drawn_samples(tmp_path, [(64, 64), (80, 50)])
    data, both = tmp_path / "data.jsonl", tmp_path / "both.jsonl"
    write_samples(samples, data)
    texts = true_texts(samples, "plain")
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    both.write_text("".join(json.dumps(row | {"completion": texts[row["id"]]}) + "\n" for row in rows))
    joined = evaluate(data=str(data), predictions=answers_file(tmp_path / "a.jsonl", texts), output=tmp_path / "one", dialect="plain")
    alone = evaluate(predictions=both, output=tmp_path / "two", dialect="plain")
    assert alone["metrics"] == joined["metrics"]
    assert alone["metrics"]["mean_iou"]["value"] == 1


def test_a_sample_that_states_the_size_seen_is_read_in_that_frame(tmp_path: Path) -> None:
    sample = replace(drawn_samples(tmp_path, [(64, 64)])[0], seen=(252, 140))
    write_samples([sample], tmp_path / "data.jsonl")
    task = make_task("grounding", dialect="qwen2.5-vl")
    text = task.write(sample, frame_of(64, 64, task.dialect, seen=sample.seen))
    options = {"data": str(tmp_path / "data.jsonl"), "predictions": answers_file(tmp_path / "a.jsonl", {"s0": text}), "dialect": "qwen2.5-vl"}
    assert evaluate(**options, output=tmp_path / "run")["metrics"]["mean_iou"]["value"] > 0.95


def test_the_size_seen_in_a_file_of_answers_is_the_frame_of_the_answer(tmp_path: Path) -> None:
    sample = drawn_samples(tmp_path, [(64, 64)])[0]
    write_samples([sample], tmp_path / "data.jsonl")
    task = make_task("grounding", dialect="qwen2.5-vl")
    text = task.write(sample, frame_of(64, 64, task.dialect, seen=(252, 140)))
    options: dict[str, Any] = {"data": str(tmp_path / "data.jsonl"), "dialect": "qwen2.5-vl", "resamples": 5}
    for seen, least, most in (([252, 140], 0.95, 1.0), (None, 0.0, 0.3)):
        answers = answers_file(tmp_path / "a.jsonl", {"s0": text}, seen=seen)  # type: ignore[arg-type]
        found = evaluate(**options, predictions=answers, output=tmp_path / "run", max_pixels=1_000_000)
        assert least <= found["metrics"]["mean_iou"]["value"] <= most
    answers_file(tmp_path / "a.jsonl", {"s0": text}, seen=[252])  # type: ignore[arg-type]
    with pytest.raises(BadData, match=r"a\.jsonl:1: sample 's0': found seen \[252\], expected \[width, height\]"):
        evaluate(**options, predictions=tmp_path / "a.jsonl", output=tmp_path / "run")


BAD_ANSWERS = {
    "unknown id": ('{"id": "zebra", "completion": ""}', "answers.jsonl:1: found an answer for 'zebra'"),
    "twice": ('{"id": "s0", "completion": ""}\n{"id": "s0", "completion": ""}', "answers.jsonl:2: sample 's0' is answered twice"),
    "no completion": ('{"id": "s0"}', "answers.jsonl:1: found"),
    "not JSON": ("{", "answers.jsonl:1: found"),
    "finish": ('{"id": "s0", "completion": "", "finish": "eos"}', "found finish 'eos', expected stop or length"),
}


@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_a_bad_answers_file_is_one_line_that_names_the_place(case: str, tmp_path: Path) -> None:
    text, message = BAD_ANSWERS[case]
    write_samples(drawn_samples(tmp_path, [(64, 64)]), tmp_path / "data.jsonl")
    (tmp_path / "answers.jsonl").write_text(text + "\n")
    with pytest.raises(BadData) as error:
        evaluate(data=str(tmp_path / "data.jsonl"), predictions=tmp_path / "answers.jsonl", output=tmp_path / "run")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_several_tasks_in_one_file_are_named(tmp_path: Path) -> None:
    mixed = [*drawn_samples(tmp_path, [(64, 64)]), *(drawn_samples(tmp_path, [(64, 64), (64, 64)], "counting")[1:])]
    write_samples(mixed, tmp_path / "data.jsonl")
    with pytest.raises(BadData, match="found samples of counting, grounding, expected one task"):
        evaluate(data=str(tmp_path / "data.jsonl"), predictions=answers_file(tmp_path / "a.jsonl", {}), output=tmp_path / "run")


@pytest.mark.parametrize("options", [{}, {"model": "m", "predictions": "p"}, {"model": "m", "limit": 0}, {"predictions": "p", "batch_size": 0}])
def test_settings_that_make_no_sense_are_refused_before_anything_is_written(options: dict[str, Any], tmp_path: Path) -> None:
    write_samples(drawn_samples(tmp_path, [(64, 64)]), tmp_path / "data.jsonl")
    with pytest.raises(BadData, match="expected"):
        evaluate(data=str(tmp_path / "data.jsonl"), output=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_predictions_need_no_torch(tmp_path: Path) -> None:
    samples = drawn_samples(tmp_path, [(64, 64)])
    write_samples(samples, tmp_path / "data.jsonl")
    answers_file(tmp_path / "a.jsonl", true_texts(samples, "plain"))
    program = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "from perception_r1.evaluation.run import evaluate\n"
        "found = evaluate(data='data.jsonl', predictions='a.jsonl', output='run', dialect='plain')\n"
        "assert found['metrics']['mean_iou']['value'] == 1"
    )
    source = Path(__file__).parents[1] / "src"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(source)}, check=True, timeout=60, capture_output=True)


# --- models -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="session", params=FAMILIES)
def tiny_folder(request: pytest.FixtureRequest, data_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp(request.param)
    build_random_model(folder, request.param, data_folder("qwen_tokenizer_config"))
    return folder


@pytest.fixture(scope="session")
def backend(tiny_folder: Path) -> Any:
    from perception_r1.evaluation.backends import TransformersBackend

    return TransformersBackend(tiny_folder, device="cpu")


ONE_FAMILY = pytest.mark.parametrize("tiny_folder", ["qwen2_vl"], indirect=True)
SIZES = [(100, 60), (64, 64), (90, 170), (60, 60)]


def prompts_and_images(folder: Path) -> tuple[list[str], list[Image.Image]]:
    samples = drawn_samples(folder, SIZES)
    task = make_task("grounding")
    return [task.prompt(sample) for sample in samples], [open_image(sample) for sample in samples]


def plain_greedy(backend: Any, prompt: str, image: Image.Image, steps: int) -> list[int]:
    """Token by token, without cache, padding, batch or `generate`."""
    import torch

    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
    text = backend.processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    inputs = backend.processor(text=[text], images=[image], return_tensors="pt")
    ids, kinds = inputs.pop("input_ids"), inputs.pop("mm_token_type_ids", None)
    inputs.pop("attention_mask")
    found: list[int] = []
    with torch.inference_mode():
        for _ in range(steps):
            extra = {} if kinds is None else {"mm_token_type_ids": torch.nn.functional.pad(kinds, (0, len(found)))}
            logits = backend.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **inputs, **extra).logits
            found.append(int(logits[0, -1].argmax()))
            ids = torch.cat([ids, torch.tensor([[found[-1]]])], dim=1)
    return found


def test_a_padded_batch_decodes_as_a_plain_greedy_loop_over_each_prompt(backend: Any, tmp_path: Path) -> None:
    from perception_r1.evaluation.backends import decode_completions

    prompts, images = prompts_and_images(tmp_path)
    replies = backend.generate(prompts, images, max_new_tokens=12, batch_size=3)
    ids = [plain_greedy(backend, prompt, image, 12) for prompt, image in zip(prompts, images, strict=True)]
    assert any(len(set(row)) < len(row) for row in ids), "nothing repeats: a repetition penalty would go unseen"
    assert [reply.completion for reply in replies] == decode_completions(backend.processor.tokenizer, ids)
    assert len({reply.completion for reply in replies}) == len(SIZES)
    assert {reply.finish for reply in replies} == {"length"}
    assert backend.dialect is DIALECTS[{"qwen2_vl": "qwen2-vl", "qwen3_vl": "qwen3-vl"}[backend.model_type]]


def test_frames_hold_the_size_that_the_processor_really_made(backend: Any, tmp_path: Path) -> None:
    prompts, images = prompts_and_images(tmp_path)
    frames = [reply.frame for reply in backend.generate(prompts, images, max_new_tokens=1)]
    expected = [frame_of(*size, backend.dialect, min_pixels=3136, max_pixels=20_000) for size in SIZES]
    assert frames == expected


@ONE_FAMILY
def test_pixel_limits_replace_those_of_the_processor(tiny_folder: Path, tmp_path: Path) -> None:
    from perception_r1.evaluation.backends import TransformersBackend

    backend = TransformersBackend(tiny_folder, device="cpu", max_pixels=6000)
    prompts, images = prompts_and_images(tmp_path)
    assert backend.generate(prompts[2:3], images[2:3], max_new_tokens=1)[0].frame == frame_of(90, 170, backend.dialect, max_pixels=6000)
    with pytest.raises(BadData, match="min_pixels 7000 above max_pixels 6000"):
        TransformersBackend(tiny_folder, device="cpu", min_pixels=7000, max_pixels=6000)


def test_an_end_token_stops_and_is_not_part_of_the_completion(backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, images = prompts_and_images(tmp_path)
    free = plain_greedy(backend, prompts[0], images[0], 6)
    monkeypatch.setattr(backend.model.generation_config, "eos_token_id", [151645, free[3]])
    replies = backend.generate(prompts, images, max_new_tokens=6)
    assert replies[0].finish == "stop"
    assert replies[0].completion == backend.processor.tokenizer.decode(free[: free.index(free[3])])


def test_special_tokens_are_kept_but_the_end_and_the_padding(backend: Any) -> None:
    import torch

    from perception_r1.evaluation.backends import decode_completions

    tokenizer = backend.processor.tokenizer
    text = "<|object_ref_start|>the dog<|object_ref_end|><|box_start|>(157,459),(208,622)<|box_end|>"
    ids = tokenizer(text).input_ids
    padded = torch.tensor([*ids, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.pad_token_id])
    assert decode_completions(tokenizer, [ids, padded, [tokenizer.eos_token_id, *ids], []]) == [text, text, "", ""]


@ONE_FAMILY
def test_a_model_is_evaluated_from_its_folder_alone(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / "perception_r1.json").write_text(json.dumps({"task": "counting", "dialect": "llava", "thinking": True}))
    write_samples(drawn_samples(tmp_path, SIZES, "counting"), tmp_path / "data.jsonl")
    run = {"data": str(tmp_path / "data.jsonl"), "model": folder, "device": "cpu", "max_new_tokens": 4, "resamples": 20}
    found = evaluate(**run, output=tmp_path / "run", batch_size=3)
    assert (found["settings"]["dialect"], found["settings"]["thinking"]) == ("llava", True)
    assert found["metrics"]["truncated_rate"]["value"] == found["metrics"]["parse_failure_rate"]["value"] == 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "answers.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["s0", "s1", "s2", "s3"]
    assert found["data"]["samples"] == 4
    same = {"dialect": "llava", "thinking": True, "resamples": 20}
    again = evaluate(data=run["data"], predictions=tmp_path / "run" / "answers.jsonl", output=tmp_path / "again", **same)
    assert again["metrics"] == found["metrics"]


MISSING = {
    "processor": (("processor_config.json", "preprocessor_config.json"), "has no processor (processor_config.json or preprocessor_config.json)"),
    "config": (("config.json",), "expected config.json in the folder"),
    "weights": (("model.safetensors",), "could not be loaded"),
}


@ONE_FAMILY
@pytest.mark.parametrize("part", MISSING)
def test_an_incomplete_model_folder_is_one_line_that_says_what_is_missing(part: str, tiny_folder: Path, tmp_path: Path) -> None:
    from perception_r1.evaluation.backends import TransformersBackend

    names, message = MISSING[part]
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    for name in names:
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(BadData) as error:
        TransformersBackend(folder, device="cpu")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@ONE_FAMILY
def test_corrupt_weights_are_one_line(tiny_folder: Path, tmp_path: Path) -> None:
    from perception_r1.evaluation.backends import TransformersBackend

    shutil.copytree(tiny_folder, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(BadData, match="could not be loaded"):
        TransformersBackend(tmp_path / "model", device="cpu")


def test_a_folder_that_is_not_there_is_not_looked_up_on_the_hub(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from perception_r1.evaluation.backends import TransformersBackend

    with pytest.raises(BadData, match="found no such folder"):
        TransformersBackend(tmp_path / "none")


def test_a_missing_image_is_named_before_the_model_is_loaded(tmp_path: Path) -> None:
    write_samples(drawn_samples(tmp_path, [(64, 64)]), tmp_path / "data.jsonl")
    (tmp_path / "0.png").unlink()
    with pytest.raises(BadData, match=r"0\.png"):
        evaluate(data=str(tmp_path / "data.jsonl"), model=tmp_path / "no-such-model", output=tmp_path / "run")
