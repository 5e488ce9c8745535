"""Page OCR: the page's text and nothing else.

    user     OCR this image.
    model    The quick brown fox …
    reward   format (1: some text, in the demanded tags) + edit = 1 − Levenshtein distance / longer length, in characters
             (+ words: the same in words, where `weights` names it)
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from ..primitives.text import (
    edits,
    normalised_edit_distance,
    set_agreement,
    text_agreement,
    words_of,
)
from ..records import Answer, BadData, Frame, Malformed, Sample, Truth
from .task import Task
from .words import bleu, meteor, meteor_name, split_words

PAGE_METRICS = ("edit_distance", "f1", "precision", "recall", "bleu", "meteor", "meteor_without_synonyms")
"""Means over pages; the rates `cer` and `wer` are edits over the true length of all pages together."""


MOST_PAGES = 5
"""The reward compares this many lengths of the page; what an answer holds beyond is all wrong."""


class Ocr(Task):
    name: ClassVar[str] = "ocr"
    TERMS: ClassVar = {"format": (0.0, 1.0), "edit": (0.0, 1.0)}
    OPTIONAL: ClassVar = {"words": (0.0, 1.0)}
    MAIN_METRIC: ClassVar[str] = "edit_distance"
    LOWER_IS_BETTER: ClassVar = frozenset({"edit_distance", "cer", "wer"})
    TESTED: ClassVar = ("edit_distance", "f1")
    BOUNDED: ClassVar = dict.fromkeys(PAGE_METRICS, ())

    def question(self, sample: Sample) -> str:
        return "OCR this image."

    def snapped(self, sample: Sample, frame: Frame) -> Truth:
        text = self._page(sample)
        if not text:
            raise BadData(
                f"sample {sample.id}: ocr needs the page's text as its truth; "
                "a blank page has nothing to read: leave it out"
            )
        self.refuse_tags(sample, text)
        return Truth(text=text)

    def _page(self, sample: Sample) -> str:
        """The page's text as it can be answered: without the tokenizer's special tokens."""
        try:
            return self.dialect.bare(sample.truth.text or "").strip()
        except Malformed as problem:
            raise BadData(f"sample {sample.id}: the page's text: {problem}") from problem

    def write_truth(self, sample: Sample, frame: Frame) -> str:
        return str(self.snapped(sample, frame).text)

    def read_answer(self, text: str, frame: Frame) -> Answer:
        if not text.strip():
            raise Malformed("expected the page's text, found an empty answer")
        return Answer(text=text.strip())

    def terms(self, answer: Answer, truth: Truth, frame: Frame) -> dict[str, float]:
        page = str(truth.text)
        found = {"format": float(answer.exact)}
        found["edit"] = text_agreement(answer.text, page, MOST_PAGES)
        if self.weight("words"):
            found["words"] = text_agreement(words_of(answer.text), words_of(page), MOST_PAGES)
        return found

    def measure(self, answer: Answer | None, sample: Sample) -> dict[str, float]:
        true = str(sample.truth.text).strip()
        found = answer.text if answer else ""
        found_words, true_words = split_words(found, true)
        f1, precision, recall = set_agreement(found_words, true_words)
        scores = {"edit_distance": normalised_edit_distance(found, true), "f1": f1, "precision": precision, "recall": recall}
        scores |= {"bleu": bleu(found_words, true_words), meteor_name(): meteor(found_words, true_words)}
        lengths = {"characters": float(len(true)), "words": float(len(true_words))}
        return scores | lengths | {"character_edits": float(edits(found, true)), "word_edits": float(edits(found_words, true_words))}

    def metrics(self, means: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        pages = {name: value for name, value in means.items() if name in PAGE_METRICS}
        return pages | {"cer": means["character_edits"] / means["characters"], "wer": means["word_edits"] / means["words"]}
