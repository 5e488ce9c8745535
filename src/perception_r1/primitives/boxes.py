"""Areas, intersections and distances of boxes: `xyxy`, continuous edges, area = (x2 − x1)(y2 − y1)."""

import numpy as np


def area(boxes_N4: np.ndarray) -> np.ndarray:
    """Areas (N,) of boxes (N, 4), in square units of the input. An inverted box has area 0.

    >>> area(np.array([[0, 0, 2, 3], [1, 1, 1, 5]])).tolist()
    [6.0, 0.0]
    """
    sides_N2 = np.clip(boxes_N4[:, 2:] - boxes_N4[:, :2], 0, None)
    return sides_N2[:, 0] * sides_N2[:, 1] * 1.0


def _intersection_and_union(a_N4: np.ndarray, b_M4: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inter_NM = np.ones((len(a_N4), len(b_M4)))
    for low, high in ((0, 2), (1, 3)):  # one axis at a time: several times faster than (N, M, 2) arrays
        side_NM = np.minimum.outer(a_N4[:, high], b_M4[:, high]) - np.maximum.outer(a_N4[:, low], b_M4[:, low])
        inter_NM *= np.clip(side_NM, 0, None)
    return inter_NM, area(a_N4)[:, None] + area(b_M4)[None] - inter_NM


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.zeros_like(top, dtype=np.float64), where=bottom > 0)


def pairwise_iou(a_N4: np.ndarray, b_M4: np.ndarray) -> np.ndarray:
    """Intersection over union (N, M) in [0, 1] of boxes (N, 4) and (M, 4); 0 where the union is empty.

    >>> pairwise_iou(np.array([[0., 0, 2, 2]]), np.array([[1., 0, 3, 2], [0, 0, 2, 2]])).round(3).tolist()
    [[0.333, 1.0]]
    """
    return _ratio(*_intersection_and_union(a_N4, b_M4))


def pairwise_giou(a_N4: np.ndarray, b_M4: np.ndarray) -> np.ndarray:
    """Generalised IoU (N, M) in [−1, 1]: IoU − (hull − union) / hull (Rezatofighi et al., CVPR 2019).

    >>> pairwise_giou(np.array([[0., 0, 1, 1]]), np.array([[2., 0, 3, 1]])).round(3).tolist()
    [[-0.333]]
    """
    inter_NM, union_NM = _intersection_and_union(a_N4, b_M4)
    low_NM2 = np.minimum(a_N4[:, None, :2], b_M4[None, :, :2])
    high_NM2 = np.maximum(a_N4[:, None, 2:], b_M4[None, :, 2:])
    hull_NM = np.clip(high_NM2 - low_NM2, 0, None).prod(-1)
    return _ratio(inter_NM, union_NM) - _ratio(hull_NM - union_NM, hull_NM)


def centres(boxes_N4: np.ndarray) -> np.ndarray:
    """Centres (N, 2) of boxes (N, 4).

    >>> centres(np.array([[0., 0, 4, 2]])).tolist()
    [[2.0, 1.0]]
    """
    return (boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2


def diagonals(boxes_N4: np.ndarray) -> np.ndarray:
    """Lengths (N,) of the diagonals of boxes (N, 4).

    >>> diagonals(np.array([[0., 0, 3, 4]])).tolist()
    [5.0]
    """
    return np.linalg.norm(boxes_N4[:, 2:] - boxes_N4[:, :2], axis=1)


def pairwise_distance(a_N2: np.ndarray, b_M2: np.ndarray) -> np.ndarray:
    """Euclidean distances (N, M) of points (N, 2) and (M, 2).

    >>> pairwise_distance(np.array([[0., 0]]), np.array([[3., 4]])).tolist()
    [[5.0]]
    """
    return np.linalg.norm(a_N2[:, None] - b_M2[None], axis=-1)
