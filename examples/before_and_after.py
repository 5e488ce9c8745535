"""Held-out pictures of a run in one image: the answers before RL above those after it, with the truth.

    python examples/before_and_after.py runs/quickstart --data 'scenes:counting?n=1000&split=test' -o picture.png

Nobody chooses the pictures: they are taken evenly over the held-out samples. Needs no torch.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from perception_r1.data import load_data
from perception_r1.data.samples import open_image
from perception_r1.dialects import dialect_named, frame_of
from perception_r1.evaluation.metrics import read_answers
from perception_r1.tasks import make_task
from perception_r1.visualize import draw

WIDTH = 240


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output folder of perception-r1 grpo with eval_data")
    parser.add_argument("--data", required=True, help="the run's eval_data")
    parser.add_argument("--columns", type=int, default=4, help="number of pictures")
    parser.add_argument("-o", "--output", type=Path, required=True, help="image file to write")
    given = parser.parse_args()
    settings = json.loads((given.run / "perception_r1.json").read_text(encoding="utf-8"))
    trained_on = settings["task"]  # several, for a run of a mixture
    samples = load_data(given.data, trained_on if isinstance(trained_on, str) else None)
    task = make_task(samples[0].task, dialect=dialect_named(settings["dialect"]), thinking=settings["thinking"])
    picks = [samples[int(k)] for k in np.linspace(0, len(samples) - 1, given.columns)]
    rows = [[panel(task, sample, completions(given.run / when)[sample.id], when) for sample in picks] for when in ("before", "after")]
    height = max(picture.height for row in rows for picture in row)
    sheet = Image.new("RGB", ((WIDTH + 8) * len(picks), (height + 8) * 2), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * (WIDTH + 8), y * (height + 8)))
    sheet.save(given.output)
    print(f"{given.output}: {len(picks)} of {len(samples)} held-out samples, before RL above, after RL below")


def completions(folder: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    return {row["id"]: row["completion"] for row in rows}


def panel(task, sample, completion: str, when: str) -> Image.Image:
    frame = frame_of(sample.width, sample.height, task.dialect, seen=sample.seen)
    (answer,) = read_answers(task, [completion], [frame])
    said = "malformed" if answer is None else f"{answer.count} of {len(sample.truth)}"
    caption = f"{when} RL: {said} {sample.query}"
    drawn = {"truth": sample.truth, "answer": answer, "task": sample.task}
    return draw(open_image(sample), **drawn, scale_to=WIDTH, caption=caption, names=False)


if __name__ == "__main__":
    main()
