"""Page OCR: the page's text and nothing else.

    user     OCR this image.
    model    The quick brown fox …
    reward   format (1: some text, in the demanded tags) + edit = 1 − Levenshtein distance / longer length, in characters
"""

from typing import ClassVar

from ..primitives.text import normalised_edit_distance
from ..records import Answer, BadData, Frame, Malformed, Sample, Truth
from .task import Task


class Ocr(Task):
    name: ClassVar[str] = "ocr"
    TERMS: ClassVar = {"format": (0.0, 1.0), "edit": (0.0, 1.0)}
    MAIN_METRIC: ClassVar[str] = "edit_distance"
    LOWER_IS_BETTER: ClassVar = frozenset({"edit_distance"})

    def question(self, sample: Sample) -> str:
        return "OCR this image."

    def snapped(self, sample: Sample, frame: Frame) -> Truth:
        if sample.truth.text is None or not sample.truth.text.strip():
            raise BadData(f"sample {sample.id}: ocr needs the page's text as its truth; a blank page has nothing to read: leave it out")
        return sample.truth

    def write_truth(self, sample: Sample, frame: Frame) -> str:
        return str(self.snapped(sample, frame).text).strip()

    def read_answer(self, text: str, frame: Frame) -> Answer:
        if not text.strip():
            raise Malformed("expected the page's text, found an empty answer")
        return Answer(text=text.strip())

    def terms(self, answer: Answer, truth: Truth, frame: Frame) -> dict[str, float]:
        return {"format": float(answer.exact), "edit": 1 - edit_distance(answer, truth)}

    def measure(self, answer: Answer | None, sample: Sample) -> dict[str, float]:
        return {"edit_distance": edit_distance(answer, sample.truth) if answer else 1.0}


def edit_distance(answer: Answer, truth: Truth) -> float:
    """Normalised edit distance in [0, 1] of the answer to the page's text, white space at either end left out."""
    return normalised_edit_distance(answer.text, str(truth.text).strip())
