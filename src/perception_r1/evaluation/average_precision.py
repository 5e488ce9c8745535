"""COCO average precision through hotcoco: the twelve figures with intervals, and the same by class and by size."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import not_installed
from ..records import Answer, BadData, Sample
from .ap_swaps import PERMUTATIONS, swapped_p
from .coco_tables import AP_NAMES, AREAS, SIZES, CocoTables, coco_tables
from .intervals import normal_interval


def check_hotcoco() -> Any:
    """The package hotcoco. Raises BadData where it is not installed."""
    try:
        import hotcoco
    except ImportError as missing:
        raise BadData(not_installed("hotcoco", "eval")) from missing
    return hotcoco


def _evaluated(tables: CocoTables) -> Any:
    hotcoco = check_hotcoco()
    true_M8 = tables.true_M8
    truth = hotcoco.COCO.from_arrays(
        [{"id": image, "width": 1, "height": 1} for image in range(tables.images)],
        [{"id": index + 1, "name": name} for index, name in enumerate(tables.names)],
        true_M8[:, 0].astype(np.int64),
        true_M8[:, 1].astype(np.int64),
        np.ascontiguousarray(true_M8[:, 2:6]),
        area=np.ascontiguousarray(true_M8[:, 6]),
        iscrowd=true_M8[:, 7].astype(np.int64),
    )
    evaluation = hotcoco.COCOeval(truth, truth.load_res(np.ascontiguousarray(tables.found_N7)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summary_lines()
    return evaluation


def average_precision(tables: CocoTables) -> np.ndarray:
    """COCO's twelve figures (12,), in the order of AP_NAMES; NaN where there is no truth to compute one from."""
    stats = np.asarray(_evaluated(tables).stats, dtype=np.float64)
    return np.where(stats < 0, np.nan, stats)


def _ap_and_draws(tables: CocoTables, seed: int, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    picks = (np.sort(random.integers(tables.images, size=tables.images)) for _ in range(resamples))
    draws_R12 = np.array([average_precision(tables.resampled(picked_S)) for picked_S in picks])
    return average_precision(tables), draws_R12.reshape(resamples, len(AP_NAMES))


def _images_with_truth(tables: CocoTables) -> list[int]:
    """How many images have a truth to compute each of the twelve figures from."""
    true_M8 = tables.true_M8[tables.true_M8[:, 7] == 0]
    image_M, area_M = true_M8[:, 0], true_M8[:, 6]
    by_class = [len(np.unique(image_M[(area_M >= low) & (area_M <= high)])) for low, high in AREAS]
    return [by_class["sml".find(name[-1]) + 1] for name in AP_NAMES]


def _figure(
    value: float, draws_R: np.ndarray, images: int, limits: tuple[float, float]
) -> dict[str, Any]:
    if not np.isfinite(value):
        return {"value": None, "ci95": None}
    edges = normal_interval(float(value), draws_R, size=images, limits=limits)
    return {"value": float(value), "ci95": edges}


def coco_ap(samples: Sequence[Sample], answers: Sequence[Answer | None], *, seed: int = 0, resamples: int = 100) -> dict[str, dict[str, Any]]:
    """COCO's twelve figures as `{"value", "ci95", "n"}`: ± 1.96 standard deviations of a bootstrap.

    Images are resampled, and every image counts, answered or not. The interval is for data of
    as many images: of fewer, average precision is higher.
    """
    tables = coco_tables(samples, answers)
    value_12, draws_R12 = _ap_and_draws(tables, seed, resamples)
    images_12 = _images_with_truth(tables)
    return {
        name: _figure(value_12[k], draws_R12[:, k], images_12[k], (0.0, 1.0)) | {"n": len(samples)}
        for k, name in enumerate(AP_NAMES)
    }


def coco_ap_difference(
    samples: Sequence[Sample],
    before: Sequence[Answer | None],
    after: Sequence[Answer | None],
    *,
    seed: int = 0,
    resamples: int = 100,
    permutations: int = PERMUTATIONS,
) -> dict[str, dict[str, Any]]:
    """After minus before for COCO's twelve figures, `{"value", "ci95", "p"}`.

    The interval is from resamples of the images that both share. `p` is two-sided, of a test that
    swaps the two runs on random images; None where there is no value.
    """
    tables = [coco_tables(samples, answers) for answers in (before, after)]
    (value_0, draws_0), (value_1, draws_1) = (_ap_and_draws(run, seed, resamples) for run in tables)
    change_12, changes_R12 = value_1 - value_0, draws_1 - draws_0
    images_12 = _images_with_truth(tables[0])
    p_values = swapped_p(tables[0], tables[1], seed=seed, permutations=permutations)
    found = {}
    for k, name in enumerate(AP_NAMES):
        figure = _figure(change_12[k], changes_R12[:, k], images_12[k], (-1.0, 1.0))
        found[name] = figure | {"p": p_values[name]}
    return found


def ap_by_class_and_size(samples: Sequence[Sample], answers: Sequence[Answer | None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`{class: {"AP", "AP50", "n"}}` and `{size: {"AP", "AP50", "AR100", "n"}}`; n counts true objects without crowd regions.

    A figure without any truth to compute it from is None.
    """
    tables = coco_tables(samples, answers)
    found = _evaluated(tables).eval
    precision_TRKA, recall_TKA = found["precision"][..., -1], found["recall"][..., -1]  # at most 100 detections
    true_M8 = tables.true_M8[tables.true_M8[:, 7] == 0]
    number_K = np.bincount(true_M8[:, 1].astype(int), minlength=len(tables.names) + 1)[1:]
    size_M = np.digitize(true_M8[:, 6], [32**2, 96**2])
    classes = {
        name: {"AP": _mean(precision_TRKA[:, :, k, 0]), "AP50": _mean(precision_TRKA[0, :, k, 0]), "n": int(number_K[k])}
        for k, name in enumerate(tables.names)
    }
    sizes = {
        name: {
            "AP": _mean(precision_TRKA[..., a]), "AP50": _mean(precision_TRKA[0, ..., a]), "AR100": _mean(recall_TKA[..., a]),
            "n": int((size_M == a - 1).sum()),
        }
        for a, name in enumerate(SIZES, start=1)
    }  # fmt: skip
    return classes, sizes


def _mean(values: np.ndarray) -> float | None:
    """COCO's mean: over what is defined (not −1)."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None
