"""OCR metrics: nltk called directly is the oracle, jieba's words for Chinese, WordNet from a folder or another name for the figure."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jieba
import nltk
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.metrics import f_measure, precision, recall
from nltk.translate import bleu_score, meteor_score

from perception_r1 import not_installed
from perception_r1.primitives.text import edits, normalised_edit_distance, set_agreement
from perception_r1.records import Answer, BadData, Sample, Truth
from perception_r1.tasks import make_task, words

TEXTS = st.text(alphabet="ab cé\n第一页", max_size=25)
SYNSETS = {"noun": [["car", "auto"], ["bank"]], "verb": [["buy", "get"]], "adj": [["big", "grand"]], "adv": [["fast"]]}
"""A WordNet of a few words: each list is one meaning. All are their own stems: nltk looks for synonyms of stems."""


def write_wordnet(folder: Path) -> Path:
    """SYNSETS in the format of WordNet's database files (wndb(5WN)): data.POS with byte offsets, index.POS, POS.exc."""
    folder.mkdir()
    for pos, synsets in SYNSETS.items():
        letter = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}[pos]
        data, index = "  1 WordNet 3.0 Copyright\n", []
        for lemmas in synsets:
            offset = len(data)
            frames = " 01 + 02 00" if pos == "verb" else ""
            named = " ".join(f"{lemma} 0" for lemma in lemmas)
            data += f"{offset:08} 03 {letter} {len(lemmas):02x} {named} 000{frames} | a meaning\n"
            index += [f"{lemma} {letter} 1 0 1 0 {offset:08}" for lemma in lemmas]
        (folder / f"data.{pos}").write_text(data)
        (folder / f"index.{pos}").write_text("".join(f"{line}\n" for line in sorted(index)))
        (folder / f"{pos}.exc").write_text("")
    return folder


class NoSynonyms:
    def synsets(self, word: str) -> list:
        return []


@pytest.fixture
def without_wordnet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(words.WORDNET_VARIABLE, "")


def measure(found: str | None, true: str) -> dict[str, float]:
    sample = Sample(id="s", task="ocr", image="a.png", width=9, height=9, query="", truth=Truth(text=true))
    return make_task("ocr").measure(None if found is None else Answer(text=found), sample)


# --- against nltk ----------------------------------------------------------------------------------------------------
@given(TEXTS, TEXTS)
def test_edit_distances_are_nltks(a: str, b: str) -> None:
    distance = nltk.edit_distance(a, b)
    assert edits(a, b) == distance
    assert normalised_edit_distance(a, b) == (pytest.approx(distance / max(len(a), len(b))) if a or b else 0)
    assert edits(a.split(), b.split()) == nltk.edit_distance(a.split(), b.split())


@given(st.lists(st.sampled_from("abcdef"), max_size=8), st.lists(st.sampled_from("abcdef"), min_size=1, max_size=8))
def test_word_sets_are_compared_as_nltk_compares_them(found: list[str], true: list[str]) -> None:
    sets = set(true), set(found)
    expected = [score(*sets) or 0.0 for score in (f_measure, precision, recall)]  # nltk says None for no word at all
    np.testing.assert_allclose(set_agreement(found, true), expected, atol=1e-12)


PAGES = [
    ("The quick brown fox jumps over the lazy dog.", "The quick brown fox jumped over the lazy dog ."),
    ("It is a guide to action which ensures that armies always obey", "It is a guide to action that ensures that armies will forever heed"),
    ("nothing in common here at all", "quite other words stand there"),
    ("第一页:他来到了网易杭研大厦", "第一页:他来到了杭研大厦。"),
    ("page one 第一页", "page one"),
]


@pytest.mark.filterwarnings("ignore::UserWarning")  # nltk says that there is no common run
@pytest.mark.parametrize("found, true", PAGES)
def test_a_page_is_worth_what_nltk_called_directly_says(found: str, true: str, without_wordnet: None) -> None:
    chinese = any("一" <= letter <= "龥" for letter in found + true)
    found_words, true_words = (jieba.lcut(text) if chinese else text.split() for text in (found, true))
    measured = measure(found, true)
    assert measured["bleu"] == bleu_score.sentence_bleu([true_words], found_words)
    assert measured["meteor_without_synonyms"] == meteor_score.meteor_score([true_words], found_words, wordnet=NoSynonyms())
    assert measured["f1"] == pytest.approx(f_measure(set(true_words), set(found_words)) or 0)
    assert measured["edit_distance"] == pytest.approx(nltk.edit_distance(found, true) / max(len(found), len(true)))


# --- WordNet ---------------------------------------------------------------------------------------------------------
def test_synonyms_count_where_wordnet_is_found_and_the_name_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, true = "a grand auto to get", "a big car to buy"
    monkeypatch.setenv(words.WORDNET_VARIABLE, "")
    without = measure(found, true)
    assert without["meteor_without_synonyms"] == meteor_score.meteor_score([true.split()], found.split(), wordnet=NoSynonyms())
    monkeypatch.setenv(words.WORDNET_VARIABLE, str(write_wordnet(tmp_path / "wordnet")))
    measured = measure(found, true)
    assert "meteor_without_synonyms" not in measured
    assert measured["meteor"] == pytest.approx(1 - 0.5 / 5**3)  # five words matched in one run
    assert measured["meteor"] == meteor_score.meteor_score([true.split()], found.split(), wordnet=words.wordnet())


def test_a_named_folder_without_wordnet_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(words.WORDNET_VARIABLE, str(tmp_path))
    with pytest.raises(BadData, match=r"found no data\.noun"):
        measure("a", "b")


def test_nothing_is_ever_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nltk, "download", lambda *_, **__: pytest.fail("nltk.download was called"))
    monkeypatch.setattr("nltk.data.path", [])
    monkeypatch.setattr(words, "WORDNET_FOLDERS", (str(tmp_path),))
    monkeypatch.delenv(words.WORDNET_VARIABLE, raising=False)
    assert "meteor_without_synonyms" in measure("one page", "one page")


# --- corpus rates, malformed, extras ---------------------------------------------------------------------------------
def test_error_rates_are_of_the_corpus_and_not_means_of_ratios(without_wordnet: None) -> None:
    pages = [("abcd", "abce"), (None, "ab cd"), ("a b c", "a x c")]
    rows = [measure(found, true) for found, true in pages]
    means = {name: np.array([np.mean([row[name] for row in rows])]) for name in rows[0]}
    found = make_task("ocr").metrics(means)
    assert found["cer"][0] == pytest.approx((1 + 5 + 1) / (4 + 5 + 5))
    assert found["wer"][0] == pytest.approx((1 + 2 + 1) / (1 + 2 + 3))
    assert rows[1]["edit_distance"] == 1
    assert rows[1]["f1"] == rows[1]["bleu"] == rows[1]["meteor_without_synonyms"] == 0


@pytest.mark.parametrize("package, needs", [("nltk", "one page"), ("jieba", "第一页")])
def test_a_missing_package_costs_no_reward_and_its_metric_names_the_remedy(package: str, needs: str) -> None:
    program = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from perception_r1.records import Answer, BadData, Sample, Truth\n"
        "from perception_r1.dialects import frame_of\n"
        "from perception_r1.tasks import make_task\n"
        "task = make_task('ocr')\n"
        f"page = Sample(id='s', task='ocr', image='a', width=9, height=9, query='', truth=Truth(text={needs!r}))\n"
        f"assert task.score({needs!r}, page, frame_of(90, 90, task.dialect)).total == 2\n"
        "try:\n"
        f"    task.measure(Answer(text={needs!r}), page)\n"
        "except BadData as problem:\n"
        "    print(problem)\n"
    )
    source = Path(__file__).parents[1] / "src"
    environment = {"PYTHONPATH": str(source), "PYTHONUTF8": "1"}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == f"{not_installed(package, 'eval')}\n"


def test_real_pages_as_their_own_answers(data_folder: Callable[[str], Path], without_wordnet: None) -> None:
    for path in sorted(data_folder("ocr_tesseract").glob("*.txt")):
        text = path.read_text(encoding="utf-8").strip()
        found = measure(text, text)
        assert json.dumps([found["edit_distance"], found["f1"], found["character_edits"], found["word_edits"]]) == "[0.0, 1.0, 0.0, 0.0]"
        assert found["bleu"] == pytest.approx(1)
        assert found["meteor_without_synonyms"] == pytest.approx(1, abs=1e-3)
