"""Per-sample statistics of each task, for simulations of intervals: without samples and answers."""

import numpy as np

from perception_r1.evaluation.metrics import ALWAYS

Random = np.random.Generator
Stats = dict[str, np.ndarray]


def completed(count: int, **columns: np.ndarray) -> Stats:
    """These statistics, and none of the answers malformed or cut off."""
    rest = {name: np.zeros(count) for name in ALWAYS if name not in columns}
    return {name: np.asarray(column, dtype=float) for name, column in columns.items()} | rest


def grounding(iou_S: np.ndarray, **columns: np.ndarray) -> Stats:
    accuracy = {f"acc@{at}": iou_S >= at for at in (0.5, 0.75, 0.95)}
    return completed(len(iou_S), mean_iou=iou_S, **accuracy, **columns)


def counting(error_S: np.ndarray) -> Stats:
    near = {"count_acc": error_S == 0, "count_within1": error_S <= 1}
    return completed(
        len(error_S), **near, count_mae=error_S, squared=error_S**2, distance_score=error_S == 0
    )


def detection(random: Random, count: int, recall: float) -> Stats:
    """Images with 1 + Poisson(4) objects, of which some images have all found and others few: boxes are clustered."""
    true_S = 1 + random.poisson(4, count)
    hits_S = random.binomial(true_S, random.beta(3 * recall, 3 * (1 - recall), count))
    columns = {
        "true": true_S,
        "hits@0.5": hits_S,
        "hits@0.75": hits_S // 2,
        "predicted": hits_S + random.poisson(1, count),
    }
    return completed(count, **columns)


def ocr(distance_S: np.ndarray) -> Stats:
    names = ("edit_distance", "f1", "precision", "recall", "bleu", "meteor")
    length_S = np.full(len(distance_S), 100.0)
    edits = {
        "character_edits": distance_S * 100,
        "word_edits": distance_S * 50,
        "characters": length_S,
        "words": length_S,
    }
    return completed(len(distance_S), **dict.fromkeys(names, distance_S), **edits)
