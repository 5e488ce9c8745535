"""The command line: full marks for the truth, one line for an error, the promised exit codes, and a quick --help."""

import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from perception_r1.cli import app, data_app, main
from perception_r1.data.coco import coco_samples
from perception_r1.data.samples import read_samples, write_samples
from perception_r1.dialects import DIALECTS, frame_of
from perception_r1.records import BadData
from perception_r1.tasks import TASKS, make_task

ROW: dict[str, Any] = {"id": "7", "task": "grounding", "image": "a.png", "width": 64, "height": 48, "query": "dog"}
ROW |= {"truth": {"boxes": [[16, 12, 48, 36]]}}
RIGHT = "<|object_ref_start|>dog<|object_ref_end|><|box_start|>(250,250),(750,750)<|box_end|>"
COMMANDS = [[name] for name in ("tasks", "score", "check", "sft", "grpo", "evaluate", "probe", "report", "show", "demo", "study")]
COMMANDS += [["merge"]]
COMMANDS += [["data", reader] for reader in ("scenes", "coco", "refcoco", "pixmo", "pages", "recipe")]


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def run(*words: object) -> Ran:
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Ran(int(left.value.code or 0), out, err)

    return run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with one good sample file `s.jsonl` of one sample and its image."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48)).save("a.png")
    lines("s.jsonl", ROW)
    return tmp_path


def lines(name: str, *rows: Any) -> None:
    Path(name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


@pytest.mark.parametrize("task", ["detection", "counting"])
def test_the_truth_of_every_coco_sample_earns_the_greatest_total_in_every_dialect(
    task: str, run: Callable[..., Ran], data_folder: Callable[[str], Path], folder: Path
) -> None:
    samples = coco_samples(data_folder("coco_val206"), task).samples
    write_samples(samples, "truths.jsonl")
    for dialect in DIALECTS:
        chapter = make_task(task, dialect=dialect)
        completions = [chapter.write(sample, frame_of(sample.width, sample.height, chapter.dialect)) for sample in samples]
        lines("answers.jsonl", *({"id": sample.id, "completion": text} for sample, text in zip(samples, completions, strict=True)))
        words = ["--answers", "answers.jsonl", "--dialect", dialect, "--max-pixels", 1_000_000]
        assert run("score", "truths.jsonl", *words, "-o", "scores.jsonl").code == 0
        scores = [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]
        assert [score["id"] for score in scores] == [sample.id for sample in samples]
        assert {score["problem"] for score in scores} == {None}
        assert min(score["total"] for score in scores) == pytest.approx(chapter.bounds()[1], rel=1e-9)


def test_score_answers_line_for_line_with_repeated_ids_and_no_image(run: Callable[..., Ran], folder: Path) -> None:
    Path("a.png").unlink()
    lines("both.jsonl", *(ROW | {"completion": text} for text in (RIGHT, "no box", RIGHT + " or so")))
    ran = run("score", "both.jsonl")
    scores = [json.loads(line) for line in ran.out.splitlines()]
    assert [set(score) for score in scores] == [{"id", "total", "terms", "problem"}] * 3
    assert [score["terms"] for score in scores] == [{"format": 1, "iou": 1}, {"format": 0, "iou": 0}, {"format": 0, "iou": 1}]
    assert [score["total"] for score in scores] == [2, 0, 1]
    assert [score["problem"] is None for score in scores] == [True, False, True]
    assert ran.err == "3 completions, mean total 1.0000, malformed 1\n"


def test_score_takes_weights_matching_thinking_and_pixels(run: Callable[..., Ran], folder: Path) -> None:
    lines("a.jsonl", {"id": "7", "completion": f"<think>…</think><answer>{RIGHT}</answer>"})
    ran = run("score", "s.jsonl", "--answers", "a.jsonl", "--thinking", "--weights", "format=0.5,iou=2", "--matching", "greedy")
    assert json.loads(ran.out)["terms"] == {"format": 0.5, "iou": 2}
    lines("a.jsonl", {"id": "7", "completion": '[{"bbox_2d": [14, 14, 42, 42], "label": "dog"}]'})  # right where the image was seen at 56x56
    words = ["score", "s.jsonl", "--answers", "a.jsonl", "--dialect", "qwen2.5-vl", "--max-pixels", 1_000_000]
    seen = [run(*words, "--min-pixels", least) for least in (3136, 12544)]
    assert json.loads(seen[0].out)["terms"] == {"format": 1, "iou": 1}
    assert json.loads(seen[1].out)["terms"]["iou"] < 0.5


def test_tasks_lists_every_task_with_its_terms(run: Callable[..., Ran]) -> None:
    ran = run("tasks")
    assert ran.code == 0
    for name, task in TASKS.items():
        assert name in ran.out
        assert all(term in ran.out for term in task.TERMS)


def test_data_check_show_and_evaluate_follow_on_each_other(run: Callable[..., Ran], folder: Path) -> None:
    assert run("data", "scenes", "counting", "-n", 6, "--seed", 4, "--set", "min_count=2", "-o", "scenes/s.parquet").code == 0
    samples = list(read_samples("scenes/s.parquet"))
    assert min(len(sample.truth) for sample in samples) >= 2
    checked = run("check", "scenes/s.parquet")
    assert checked.code == 0
    assert re.search(r"counting\W+6\W", checked.out)
    task = make_task("counting")
    lines("a.jsonl", *({"id": s.id, "completion": task.write(s, frame_of(s.width, s.height, task.dialect))} for s in samples))
    assert run("show", "scenes/s.parquet", "--answers", "a.jsonl", "--limit", 5, "-o", "page.html").code == 0
    page = Path("page.html").read_text()
    assert page.count('<img src="data:image/') == 5
    assert page.count("total 2.000") == 5
    assert run("evaluate", "--data", "scenes/s.parquet", "--predictions", "a.jsonl", "-o", "eval").code == 0
    assert json.loads(Path("eval/metrics.json").read_text())["metrics"]["count_acc"]["value"] == 1
    assert run("report", "eval", "eval", "-o", "runs.html").code == 0
    assert "count_acc" in Path("runs.html").read_text()


def test_a_picture_page_reads_no_model_text_as_html(run: Callable[..., Ran], folder: Path) -> None:
    lines("both.jsonl", ROW | {"completion": "<script>alert(1)</script>", "query": "<b>dog</b>"})
    assert run("show", "both.jsonl", "-o", "page.html").code == 0
    page = Path("page.html").read_text()
    assert "<script>" not in page
    assert "&lt;b&gt;dog&lt;/b&gt;" in page
    assert "malformed" in page


def test_data_coco_keeps_the_images_where_they_are(run: Callable[..., Ran], data_folder: Callable[[str], Path], folder: Path) -> None:
    ran = run("data", "coco", data_folder("coco_val206"), "--task", "counting", "-o", "deep/er/coco.jsonl")
    assert (ran.code, ran.out.split(" to ")[0]) == (0, "wrote 706 samples")
    assert all(sample.image_path.is_file() for sample in read_samples("deep/er/coco.jsonl"))


SUBSETS = {"scenes": ["scenes", "grounding", "-n", 12], "coco": ["coco", "coco_val206", "--task", "counting"], "pages": ["pages", "ocr_tesseract"]}


@pytest.mark.parametrize("words", SUBSETS.values(), ids=SUBSETS)
def test_every_reader_writes_a_subset_that_is_the_same_for_the_same_seed(
    words: list[Any], run: Callable[..., Ran], data_folder: Callable[[str], Path], folder: Path
) -> None:
    words = [data_folder(word) if word in ("coco_val206", "ocr_tesseract") else word for word in words]
    assert run("data", *words, "-o", "all.jsonl").code == 0
    for name, seed in (("a", 0), ("b", 0), ("c", 5)):
        # Scenes and absent categories follow from the seed as well, so only the same seed must give part of the same whole.
        assert run("data", *words, "--sample", 3, "--seed", seed, "-o", f"{name}.jsonl").code == 0
    every, *subsets = [Path(f"{name}.jsonl").read_text().replace("_images", "").splitlines() for name in ("all", "a", "b", "c")]
    a, b, c = ([json.loads(row)["id"] for row in subset] for subset in subsets)
    assert len(a) == len(c) == 3
    assert a == b
    assert a != c
    assert set(a) < {json.loads(row)["id"] for row in every}


FAILURES = {
    "no file": (["score", "none.jsonl"], 1, "none.jsonl: found no such file"),
    "a folder as file": (["check", "."], 1, "found a folder"),
    "an empty data file": (["score", "empty.jsonl"], 1, "empty.jsonl: found no line, expected at least one completion"),
    "an empty data file to check": (["check", "empty.jsonl"], 1, "empty.jsonl: found no sample"),
    "no completion": (["score", "s.jsonl"], 1, "s.jsonl:1: sample '7': field completion: found None"),
    "a box outside its image": (["score", "outside.jsonl"], 1, "outside.jsonl:1: sample '7': field truth.boxes[0]"),
    "NaN": (["score", "nan.jsonl"], 1, "expected [x1, y1, x2, y2], finite numbers"),
    "missing truth": (["score", "untrue.jsonl"], 1, "field truth: found nothing"),
    "an answer to no question": (["score", "s.jsonl", "--answers", "stray.jsonl"], 1, "stray.jsonl:1: found an answer for 'x'"),
    "answers without id": (["score", "s.jsonl", "--answers", "s2.jsonl"], 1, "s2.jsonl:1: found 7, expected"),
    "the same id twice": (["score", "twice.jsonl", "--answers", "stray.jsonl"], 1, "sample '7' is there twice"),
    "missing image": (["check", "imageless.jsonl"], 1, "imageless.jsonl: 1 problems"),
    "missing image to show": (["show", "imageless.jsonl", "-o", "x.html"], 1, "none.png: found no such file"),
    "corrupt image": (["show", "corrupt.jsonl", "-o", "x.html"], 1, "s.jsonl: found no readable image"),
    "unwritable output": (["score", "both.jsonl", "-o", "s.jsonl/x"], 1, "s.jsonl: "),
    "a folder as output": (["score", "both.jsonl", "-o", "."], 1, "found a folder, expected the name of a file"),
    "a run without metrics": (["report", ".", "-o", "x.html"], 1, "found no metrics.json"),
    "no COCO": (["data", "coco", "none", "-o", "x.jsonl"], 1, "coco: none: found no such folder"),
    "a model that is not there": (["evaluate", "--model", "none/at/all", "--data", "s.jsonl", "-o", "x"], 1, "none/at/all"),
    "unknown command": (["socre"], 2, "No such command 'socre'"),
    "unknown option": (["score", "s.jsonl", "--dailect", "plain"], 2, "--dailect"),
    "unknown dialect": (["score", "none.jsonl", "--dialect", "qwen9"], 2, "dialect 'qwen9' is not known: expected one of qwen2-vl"),
    "unknown matching": (["score", "s.jsonl", "--matching", "best-ever"], 2, "matching 'best-ever' is not known"),
    "unknown term": (["score", "s.jsonl", "--weights", "giou=1"], 2, "no task has the term 'giou'"),
    "negative weight": (["score", "s.jsonl", "--weights", "iou=-1"], 2, "expected a finite number of at least 0"),
    "weights without numbers": (["score", "s.jsonl", "--weights", "iou"], 2, "expected name=number"),
    "pixels the wrong way round": (["score", "s.jsonl", "--min-pixels", "9", "--max-pixels", "8"], 2, "1 <= min <= max"),
    "unknown task to evaluate": (["evaluate", "--predictions", "s.jsonl", "--task", "count", "-o", "x"], 2, "task 'count' is not known"),
    "unknown dialect to evaluate": (["evaluate", "--predictions", "s.jsonl", "--dialect", "q", "-o", "x"], 2, "dialect 'q' is not known"),
    "nothing to evaluate": (["evaluate", "--data", "s.jsonl", "-o", "x"], 2, "exactly one of --model, --server and --predictions"),
    "no address of a server": (["evaluate", "--server", "here", "--data", "s.jsonl", "-o", "x"], 1, "expected an address such as"),
    "no questions at a time": (["evaluate", "--server", "http://x", "--parallel", "0", "--data", "s.jsonl", "-o", "x"], 2, "parallel of at least 1"),
    "vLLM for a server": (["evaluate", "--server", "http://x", "--vllm", "--data", "s.jsonl", "-o", "x"], 2, "--vllm: expected --model"),
    "general benchmarks of no model": (["evaluate", "--general", "mmstar", "-o", "x"], 2, "--general: expected --model"),
    "unknown task to draw": (["data", "scenes", "count", "-o", "x.jsonl"], 2, "task 'count' is not known"),
    "unknown way of drawing": (["data", "scenes", "ocr", "--set", "font=3", "-o", "x.jsonl"], 2, "option 'font' is not known"),
    "no number of samples": (["data", "coco", "none", "--sample", "5x", "-o", "x.jsonl"], 2, "found '5x', expected a whole number"),
    "more samples than there are": (["data", "scenes", "ocr", "-n", "2", "--sample", "3", "-o", "x.jsonl"], 1, "found 2 samples, expected at least"),
    "boxes that nobody declared": (["data", "refcoco", "s.jsonl", "-o", "x.jsonl"], 1, "nobody says how the boxes are written"),
    "unknown boxes": (["data", "refcoco", "s.jsonl", "--boxes", "xyhw", "-o", "x.jsonl"], 2, "boxes 'xyhw' is not known: expected one of xywh"),
    "unknown column": (["data", "refcoco", "s.jsonl", "--columns", "txt=a", "-o", "x.jsonl"], 2, "column 'txt' is not known"),
    "half a column": (["data", "refcoco", "s.jsonl", "--columns", "text", "-o", "x.jsonl"], 2, "expected name=value"),
    "no pages": (["data", "pages", "none", "-o", "x.jsonl"], 1, "none: found no such file or folder"),
    "no images of PixMo": (["data", "pixmo", "none.parquet", "--images", "none", "-o", "x.jsonl"], 1, "none: found no such folder"),
    "no scenes": (["data", "scenes", "ocr", "-n", "0", "-o", "x.jsonl"], 2, "-n"),
    "no output named": (["data", "scenes", "ocr"], 2, "-o"),
    "an override where the recipe should be": (["grpo", "--beta", "3"], 2, "write the recipe's name first"),
    "no recipe": (["sft"], 2, "RECIPE"),
}


@pytest.mark.parametrize("words, code, message", FAILURES.values(), ids=FAILURES)
def test_a_failure_is_one_line_with_its_exit_code(words: list[str], code: int, message: str, run: Callable[..., Ran], folder: Path) -> None:
    lines("empty.jsonl")
    lines("both.jsonl", ROW | {"completion": RIGHT})
    lines("outside.jsonl", ROW | {"completion": RIGHT, "truth": {"boxes": [[1, 2, 65, 40]]}})
    lines("nan.jsonl", ROW | {"completion": RIGHT, "truth": {"boxes": [[1, 2, float("nan"), 40]]}})
    lines("untrue.jsonl", {key: value for key, value in ROW.items() if key != "truth"} | {"completion": RIGHT})
    lines("stray.jsonl", {"id": "x", "completion": RIGHT})
    lines("s2.jsonl", 7)
    lines("twice.jsonl", ROW, ROW)
    lines("imageless.jsonl", ROW | {"image": "none.png"})
    lines("corrupt.jsonl", ROW | {"image": "s.jsonl"})
    before = sorted(path.name for path in folder.iterdir())
    ran = run(*words)
    last = ran.err.splitlines()[-1]
    assert ran.code == code
    assert last.startswith("error: ")
    assert message in last
    assert len(ran.err.splitlines()) == (2 if "problems" in last else 1)  # check lists the problems first
    assert "Traceback" not in ran.err
    assert sorted(path.name for path in folder.iterdir() if path.name not in ("x", "x_images")) == before


@pytest.mark.parametrize("command, recipe", [("sft", "tiny-base"), ("grpo", "quickstart")])
@pytest.mark.parametrize("words, message", [(["no-such"], "no-such"), (["RECIPE", "--no_such_key", "3"], "no_such_key")])
def test_an_unknown_recipe_or_key_is_one_line(
    command: str, recipe: str, words: list[str], message: str, run: Callable[..., Ran], folder: Path
) -> None:
    pytest.importorskip("trl")
    ran = run(command, *(recipe if word == "RECIPE" else word for word in words))
    assert ran.code in (1, 2)
    assert ran.err.splitlines()[-1].startswith("error: ")
    assert message in ran.err.splitlines()[-1]
    assert "Traceback" not in ran.err


def test_debug_shows_the_traceback(folder: Path) -> None:
    with pytest.raises(BadData, match="no such file"):
        main(["score", "none.jsonl", "--debug"])


def test_a_bug_of_ours_is_not_passed_off_as_bad_input(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perception_r1.evaluation.score.score_file", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["score", "s.jsonl"])
    monkeypatch.setattr("perception_r1.evaluation.score.score_file", lambda *_: int("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        main(["score", "s.jsonl"])


def test_a_missing_extra_says_how_to_install_it(run: Callable[..., Ran], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("perception_r1.training")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    ran = run("grpo", "quickstart")
    assert ran.code == 1
    assert re.fullmatch(r"error: \w+ is not installed: pip install -e '\.\[train\]' -c constraints\.txt, in a checkout of Perception-R1\n", ran.err)


@pytest.mark.parametrize("command", [[], ["data"], *COMMANDS], ids=" ".join)
def test_help_answers_with_an_example(command: list[str], run: Callable[..., Ran]) -> None:
    ran = run(*command, "--help")
    assert ran.code == 0
    assert command in ([], ["data"]) or f"Example: perception-r1 {' '.join(command)}" in ran.out


def test_every_command_is_tested_for_its_help() -> None:
    own = {(command.name or command.callback.__name__,) for command in app.registered_commands if command.callback}
    own |= {("data", command.name or command.callback.__name__) for command in data_app.registered_commands if command.callback}
    assert own <= {tuple(command) for command in COMMANDS}


def test_no_command_prints_the_help_and_is_wrong_usage(run: Callable[..., Ran]) -> None:
    for words in ([], ["data"]):
        ran = run(*words)
        assert ran.code == 2
        assert "Usage: perception-r1" in ran.out + ran.err
        assert "error:" not in ran.err


def program(*words: object, stdout: Any = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "perception_r1.cli", *map(str, words)], stdout=stdout, stderr=subprocess.PIPE, text=True)


def test_help_takes_less_than_half_a_second_of_work() -> None:
    def seconds() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    taken = []
    for _ in range(3):
        before = seconds()
        assert "Usage" in program("--help").stdout
        taken.append(seconds() - before)
    assert min(taken) < 0.5


def test_a_full_disk_behind_standard_output_is_one_line(folder: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    lines("both.jsonl", ROW | {"completion": RIGHT})
    with open("/dev/full", "w") as full:
        ran = program("score", "both.jsonl", stdout=full)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith("error: output: No space left on device")
    assert "Traceback" not in ran.stderr
    assert "Exception ignored" not in ran.stderr


def test_scoring_needs_no_torch(folder: Path) -> None:
    lines("both.jsonl", ROW | {"completion": RIGHT})
    blocked = "import sys; sys.modules['torch'] = None; from perception_r1.cli import main; main(sys.argv[1:])"
    for words in (["score", "both.jsonl"], ["check", "s.jsonl"], ["show", "s.jsonl", "-o", "x.html"], ["tasks"]):
        ran = subprocess.run([sys.executable, "-c", blocked, *words], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
