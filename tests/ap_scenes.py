"""Random detections for simulations of average precision, as tables: faster than through answers."""

import numpy as np

from perception_r1.evaluation.coco_tables import CocoTables

NAMES = tuple("abc")


def random_truths(random: np.random.Generator, images: int) -> np.ndarray:
    """(M, 8): 1 + Poisson(3) objects an image, of three classes, of all sizes."""
    image_M = np.repeat(np.arange(images), 1 + random.poisson(3, images))
    count = len(image_M)
    size_M2 = np.exp(random.uniform(np.log(15), np.log(200), (count, 2)))
    corner_M2 = random.uniform(0, 400, (count, 2))
    category_M = random.integers(1, len(NAMES) + 1, count)
    return np.column_stack(
        [image_M, category_M, corner_M2, size_M2, size_M2.prod(axis=1), np.zeros(count)]
    )


def random_answers(
    random: np.random.Generator, true_M8: np.ndarray, images: int, found: float = 0.6
) -> CocoTables:
    """Some of the objects, with boxes a little off, and Poisson(1) wrong boxes an image; no scores."""
    hit_M8 = true_M8[random.random(len(true_M8)) < found]
    moved = (
        random.exponential(0.12, (len(hit_M8), 1))
        * hit_M8[:, 4:6]
        * random.choice([-1, 1], (len(hit_M8), 2))
    )
    wrong = np.repeat(np.arange(images), random.poisson(1, images))
    corner, size = random.uniform(0, 400, (len(wrong), 2)), random.uniform(15, 200, (len(wrong), 2))
    category = np.concatenate([hit_M8[:, 1], random.integers(1, len(NAMES) + 1, len(wrong))])
    image = np.concatenate([hit_M8[:, 0], wrong])
    boxes = np.concatenate(
        [np.column_stack([hit_M8[:, 2:4] + moved, hit_M8[:, 4:6]]), np.column_stack([corner, size])]
    )
    found_N7 = np.column_stack([image, boxes, np.ones(len(image)), category])
    order = np.argsort(image, kind="stable")
    return CocoTables(names=NAMES, true_M8=true_M8, found_N7=found_N7[order], images=images)


def random_tables(random: np.random.Generator, images: int, found: float = 0.6) -> CocoTables:
    return random_answers(random, random_truths(random, images), images, found)
