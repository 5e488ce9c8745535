"""The search of `make fuzz`: a short one finds nothing, a planted fault is found, and a seed gives the same answers again."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests import fuzz

from perception_r1.dialects import base
from perception_r1.primitives.numbers import number_in
from perception_r1.tasks.grounding import Grounding

ROUND = len(fuzz.SETTINGS)


def test_every_setting_has_its_turn_in_a_round() -> None:
    assert ROUND == 192
    assert len({fuzz.draw_case(0, number).setting for number in range(ROUND)}) == ROUND


def test_a_short_search_finds_no_fault() -> None:
    assert fuzz.search(0, minutes=1, most=4 * ROUND) == (4 * ROUND, [])


def test_a_seed_gives_the_same_answers_again_and_another_does_not() -> None:
    one, same, other = (
        [fuzz.draw_case(seed, number).text for number in range(60)] for seed in (3, 3, 4)
    )
    assert one == same
    assert one != other


def test_what_python_raises_is_found_with_the_line_that_repeats_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The fault that was there: strip takes U+001C off, float does not."""
    monkeypatch.setattr(
        base, "number_in", lambda text: float(text) if text.strip().isdecimal() else number_in(text)
    )
    with pytest.raises(ValueError, match="could not convert"):
        fuzz.search(0, minutes=5, most=400 * ROUND)
    told = capsys.readouterr().out.splitlines()
    assert told[-1].startswith("again: python tests/fuzz.py --seed 0 --case ")
    number = int(told[-1].rpartition(" ")[2])
    assert repr(fuzz.draw_case(0, number).text) == told[-2].removeprefix("text: ")


@pytest.mark.parametrize(
    "limits", [{"format": (0.0, 1.0), "iou": (0.0, 0.5)}, {"format": (0.0, 2.0), "iou": (0.0, 1.0)}]
)
def test_a_broken_law_is_found(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, tuple[float, float]]
) -> None:
    monkeypatch.setattr(Grounding, "TERMS", limits)
    _, found = fuzz.search(0, minutes=1, most=ROUND)
    assert found[0].startswith("grounding, ")


def test_the_command_prints_its_seed_and_repeats_a_case() -> None:
    run = subprocess.run(
        [sys.executable, "tests/fuzz.py", "--seed", "7", "--case", "5"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("seed 7, 192 settings")
    assert f"text: {fuzz.draw_case(7, 5).text!r}" in run.stdout
    assert run.stdout.endswith("1 answers, no fault\n")
