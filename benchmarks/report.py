"""The report of two evaluations of 5,000 detection samples each, compared with each other: seconds, and the sizes of what it writes.

    python benchmarks/report.py

The samples are the real images of PERCEPTION_R1_DATA (../shared/data by default) again and again under new ids; the answers are
their truths, moved and thinned at random. Evaluating them is not counted. Prints the greatest memory of the process as well.
"""

import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from perception_r1.data.coco import coco_samples
from perception_r1.data.samples import write_samples
from perception_r1.dialects import dialect_named, frame_of
from perception_r1.evaluation.report import write_runs_report
from perception_r1.evaluation.run import evaluate
from perception_r1.records import Sample

COCO = Path(os.environ.get("PERCEPTION_R1_DATA") or Path(__file__).parents[2] / "shared" / "data") / "coco_val206"
SAMPLES = 5_000
MODELS = {"first": (0.10, 0.4), "second": (0.05, 0.2)}
"""Of two pretended models: how far its boxes are off, as a share of their size, and which share of the objects it misses."""


def repeated(samples: Sequence[Sample]) -> list[Sample]:
    return [replace(sample, id=f"{sample.id}-{number}") for number, sample in enumerate(islice(cycle(samples), SAMPLES))]


def answers(samples: Sequence[Sample], noise: float, missed: float) -> Iterator[str]:
    random, dialect = np.random.default_rng(0), dialect_named("qwen3-vl")
    for sample in samples:
        boxes_M4, size_2 = sample.truth.needed_boxes(), np.array([sample.width, sample.height])
        side_M4 = np.tile(boxes_M4[:, 2:] - boxes_M4[:, :2], 2)
        moved_M4 = np.clip(boxes_M4 + noise * side_M4 * random.normal(size=boxes_M4.shape), 0, np.tile(size_2, 2))
        kept = (random.random(len(boxes_M4)) > missed) & (moved_M4[:, :2] + 1 < moved_M4[:, 2:]).all(1)
        labels = tuple(label for label, is_kept in zip(sample.truth.labels, kept, strict=True) if is_kept)
        text = dialect.write(moved_M4[kept], labels, frame_of(sample.width, sample.height, dialect))
        yield json.dumps({"id": sample.id, "completion": text if random.random() > 0.02 else "There is nothing that I could name."})


def main() -> None:
    samples = repeated(coco_samples(COCO, "detection").samples)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_samples(samples, folder / "data.jsonl")
        for model, (noise, missed) in MODELS.items():
            (folder / f"{model}.jsonl").write_text("\n".join(answers(samples, noise, missed)))
            given = {"data": str(folder / "data.jsonl"), "predictions": folder / f"{model}.jsonl", "dialect": "qwen3-vl", "ap_resamples": 2}
            evaluate(**given, output=folder / model)
        for runs in (["first"], ["first", "second"]):
            start = time.perf_counter()
            html, markdown = write_runs_report([folder / model for model in runs], folder / "report.html")
            seconds, sizes = time.perf_counter() - start, [path.stat().st_size / 1e6 for path in (html, markdown)]
            print(f"report of {len(runs)} x {SAMPLES:,} samples: {seconds:.1f} s, HTML {sizes[0]:.1f} MB, Markdown {sizes[1]:.2f} MB")
    print(f"greatest memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")


if __name__ == "__main__":
    main()
