"""What answers are worth: one sample, several completions, and the reward each of them earns.

    python examples/score_answers.py

Needs no model, no image and no GPU: a reward is computed from the text and the truth alone.
"""

import numpy as np

from perception_r1.dialects import frame_of
from perception_r1.records import Sample, Truth
from perception_r1.tasks import make_task

DOG = '{"bbox_2d": [40, 95, 320, 430], "label": "dog"}'
PERSON = '{"bbox_2d": [360, 30, 600, 450], "label": "person"}'
SWAPPED = f"[{DOG.replace('dog', 'person')}, {PERSON.replace('person', 'dog')}]"


def main() -> None:
    task = make_task("detection", dialect="qwen2.5-vl")
    truth = Truth(boxes=np.array([[35, 102, 313, 424], [348, 20, 598, 463]]), labels=("dog", "person"))
    sample = Sample(id="1", task="detection", image="park.jpg", width=640, height=480, query="", truth=truth, categories=("dog", "person"))
    frame = frame_of(sample.width, sample.height, task.dialect)  # Qwen2.5-VL writes pixels of the resized image: 644 x 476 here
    completions = {
        "the truth": task.write(sample, frame),
        "a good answer": f"[{DOG}, {PERSON}]",
        "one of two": f"[{DOG}]",
        "one of them twice": f"[{DOG}, {PERSON}, {PERSON}]",
        "names swapped": SWAPPED,
        "words around it": f"I see: [{DOG}, {PERSON}]",
        "no boxes": "A dog and a person.",
    }
    print(task.prompt(sample))
    for name, completion in completions.items():
        score = task.score(completion, sample, frame)
        terms = "  ".join(f"{term} {value:+.2f}" for term, value in score.terms.items())
        print(f"{name:<18} total {score.total:+.3f}   {terms}" + (f"   ({score.problem})" if score.problem else ""))


if __name__ == "__main__":
    main()
