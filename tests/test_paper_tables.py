"""The paper's tables: every row as the paper has it, and a figure of ours in a column of theirs only where it was declared."""

from pathlib import Path
from typing import Any

import pytest

from perception_r1.evaluation.folders import Run, read_runs
from perception_r1.evaluation.tables import check_declared, general_with_ours, paper_facts, paper_tables, size_note, with_ours
from perception_r1.records import BadData

HEADLINES = {
    "RefCOCO:": {"Qwen2-VL": "86.8 77.2 33.0", "Perception-R1": "89.1 79.5 35.0"},
    "RefCOCO+:": {"Qwen2-VL": "77.1 68.7 29.4", "Perception-R1": "81.7 73.6 32.6"},
    "RefCOCOg:": {"Qwen2-VL": "83.3 72.7 28.9", "Perception-R1": "85.7 75.7 32.1"},
    "Page OCR": {"Qwen2-VL": "8.0 94.4 90.9", "Perception-R1": "3.5 98.2 96.7"},
    "PixMo": {"Qwen2-VL": "60.2 50.5", "Perception-R1": "78.1 75.6"},
    "COCO 2017": {"Qwen2.5-VL": "16.1 23.7 16.7", "Perception-R1": "31.9 46.7 33.4"},
}
"""The figures of the paper's abstract and introduction, typed from there: val at 50/75/95, English edit/F1/BLEU, val/test, AP/AP50/AP75."""


def table_named(part: str) -> Any:
    return next(table for table in paper_tables() if part in table.title)


def figures(value: Any) -> list[Any]:
    """Every number and word at the leaves of a JSON value."""
    if isinstance(value, dict):
        return [leaf for inside in value.values() for leaf in figures(inside)]
    return [leaf for inside in value for leaf in figures(inside)] if isinstance(value, list) else [value]


def entry(value: float) -> dict[str, Any]:
    return {"value": value, "ci95": [value - 0.01, value + 0.01], "n": 50}


METRICS = {
    "grounding": {name: entry(0.6 + 0.01 * k) for k, name in enumerate(("acc@0.5", "acc@0.75", "acc@0.95", "acc@avg", "mean_iou"))},
    "counting": {"count_acc": entry(0.5)},
    "detection": {"AP": entry(0.2), "AP50": entry(0.3), "AP75": {"value": None, "ci95": None, "n": 50}},
    "ocr": {"edit_distance": entry(0.1), "f1": entry(0.9)},
}


def a_run(task: str = "grounding", declared: str | None = None, name: str = "runs/a", model: str = "m", samples: int = 50) -> Run:
    about = {"task": task, "data": {"path": "mine.jsonl", "sha256": "a", "samples": samples}, "model": {"name": model}}
    return Run(name=name, folder=Path(name), about=about, metrics=METRICS[task], declared=declared)


def test_every_row_and_figure_of_the_facts_stands_in_its_table() -> None:
    facts = {name: value for name, value in paper_facts().items() if name != "source"}
    assert len(facts) == 12
    for (name, value), table in zip(facts.items(), paper_tables(), strict=True):
        expected = value.items() if isinstance(value, dict) else [(row["terms"], row) for row in value]
        shown = {row[0].text: [cell.text.replace(",", "") for cell in row] for row in with_ours(table, []).rows}
        assert set(shown) == {title.replace("_", " ") if name == "settings" else title for title, _ in expected}, name
        for title, row in expected:
            cells = next(cells for first, cells in shown.items() if first in (title, title.replace("_", " ")))
            for leaf in figures(row):
                assert ("–" if leaf is None else str(leaf)) in cells or str(leaf) in " ".join(cells).split(), (name, title, leaf)


@pytest.mark.parametrize("title", HEADLINES)
def test_the_headline_figures_are_those_of_the_paper(title: str) -> None:
    table = table_named(title)
    wanted = {"RefCOCO": ("val@50", "val@75", "val@95"), "Page": ("edit_distance_en", "f1_en", "bleu_en"), "PixMo": ("val", "test")}
    columns = next((names for start, names in wanted.items() if title.startswith(start)), ("AP", "AP50", "AP75"))
    rows = dict(table.rows)
    for model, expected in HEADLINES[title].items():
        assert " ".join(str(rows[model][column]) for column in columns) == expected


def test_a_run_that_nobody_declared_stands_in_no_column_of_the_paper() -> None:
    for task in METRICS:
        fitting = [table for table in paper_tables() if table.fits(a_run(task))]
        assert fitting, task
        for table in fitting:
            shown = with_ours(table, [a_run(task)])
            ours, theirs = shown.rows[-1], 1 + len(table.columns)
            assert shown.ours == {len(table.rows)}
            assert {cell.text for cell in ours[1:theirs]} == {"–"}
            assert any(cell.text != "–" for cell in ours[theirs:])
            assert all(name.startswith("your data: ") for name in shown.head[theirs:])
            assert ours[0].quiet == "your data: mine.jsonl, n=50"
            assert all(cell.text == "–" for row in shown.rows[: len(table.rows)] for cell in row[theirs:])


def test_a_declared_run_stands_in_the_columns_of_its_data_alone_with_its_interval() -> None:
    table = table_named("RefCOCO:")
    shown = with_ours(table, [a_run(declared="refcoco_testA")])
    filled = {name: cell for name, cell in zip(shown.head[1:], shown.rows[-1][1:], strict=True) if cell.text != "–"}
    assert set(filled) == {"testA@50", "testA@75", "testA@95", "testA avg"}
    assert (filled["testA@50"].text, filled["testA@50"].quiet) == ("60.0", "[59.0, 61.0]")
    assert not any("your data" in name for name in shown.head)
    assert "refcoco_testA as declared: mine.jsonl, n=50" in shown.rows[-1][0].quiet
    assert not table_named("RefCOCO+").fits(a_run(declared="refcoco_testA"))


def test_runs_of_one_model_on_declared_splits_share_a_row_and_others_do_not() -> None:
    runs = [a_run(declared="refcoco_val"), a_run(declared="refcoco_testB"), a_run(declared="refcoco_val", model="other"), a_run(name="runs/b")]
    shown = with_ours(table_named("RefCOCO:"), runs)
    ours = shown.rows[-3:]
    assert [row[0].text for row in ours] == ["m", "other", "runs/b"]
    assert sum(cell.text != "–" for cell in ours[0][1:]) == 8
    assert sum(cell.text != "–" for cell in ours[1][1:]) == 4
    assert [name for name, cell in zip(shown.head, ours[2], strict=True) if cell.text != "–"][1:] == [
        f"your data: {metric}" for metric in ("acc@0.5", "acc@0.75", "acc@0.95", "acc@avg")
    ]


@pytest.mark.parametrize(
    ("task", "declared", "message"),
    [
        ("grounding", "refcoco", "declared as 'refcoco', expected one of refcoco_val"),
        ("counting", "refcoco_val", "is for grounding, but the run is one of counting"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused(task: str, declared: str, message: str) -> None:
    with pytest.raises(BadData, match=message):
        check_declared([a_run(task, declared)])


def test_another_number_of_samples_than_the_published_set_has_is_said() -> None:
    assert size_note(a_run(declared="pixmo_val", task="counting", samples=540)) is None
    assert size_note(a_run()) is None
    note = size_note(a_run(declared="refcoco_val"))
    assert note is not None
    assert "10,834 samples, but was measured on 50 of mine.jsonl" in note
    assert "AP" not in note
    assert "COCO's AP of another number of images does not compare" in str(size_note(a_run("detection", "coco2017_val")))


def test_general_benchmarks_stand_beside_the_papers_as_they_report_themselves() -> None:
    assert general_with_ours([a_run()]) is None
    general = {"mmstar": {"average": 0.4625}, "mme": {"mme_cognition_score": 418.5, "mme_perception_score": 1471.1}, "other": {"acc": 0.5}}
    run = Run(name="runs/g", folder=Path("runs/g"), about={}, metrics={}, general=general)
    shown = general_with_ours([run])
    assert shown is not None
    filled = {name: cell.text for name, cell in zip(shown.head, shown.rows[-1], strict=True) if cell.text != "–"}
    assert filled == {"": "runs/g", "MMStar": "0.4625", "MME cognition": "418.5", "MME perception": "1471.1"}
    assert len(shown.rows) == 1 + len(paper_facts()["general"])


def test_a_declaration_is_for_all_folders_or_for_one_of_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text('{"task": "grounding", "data": {}, "metrics": {}}')
    folders = [tmp_path / "a", tmp_path / "b"]
    assert [run.declared for run in read_runs(folders, ["refcoco_val"])] == ["refcoco_val"] * 2
    assert [run.declared for run in read_runs(folders, [f"{tmp_path}/b/=refcoco_val"])] == [None, "refcoco_val"]
    assert [run.declared for run in read_runs(folders)] == [None, None]
    with pytest.raises(BadData, match="expected one of the folders of this report"):
        read_runs(folders, ["c=refcoco_val"])
