"""What each engine really hands to a reward, written down from its code, and what it reads of the
reply.

TRL 1.16.0, ms-swift 4.6.0 (`swift/rl_core/grpo_algorithm.py`), verl 0.9.1
(`experimental/reward_loop`), EasyR1 b44b311 (`verl/workers/reward/function.py`), OpenRLHF 0.11.2
(`openrlhf/utils/agent.py`).
"""

import io
import json
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from perception_r1.dialects import DIALECTS, frame_of
from perception_r1.engines import Rewards
from perception_r1.frames import ScaledBefore
from perception_r1.records import BadData, Frame, Sample, Truth
from perception_r1.tasks import make_task

BOX = [200.0, 300.0, 900.0, 1000.0]
ROW: dict[str, Any] = {
    "id": "a",
    "task": "grounding",
    "image": "a.png",
    "width": 1600,
    "height": 1200,
    "query": "dog",
}
ROW |= {"truth": {"boxes": [BOX], "labels": ["dog"]}}
TEXT = json.dumps(ROW)
SAMPLE = Sample(
    id="a",
    task="grounding",
    image="a.png",
    width=1600,
    height=1200,
    query="dog",
    truth=Truth(boxes=np.array([BOX]), labels=("dog",)),
)
PIXELS = 501_760


def right(dialect: str, seen: tuple[int, int] | None = None) -> str:
    """The true box in a dialect; qwen2.5-vl's in an image of at most PIXELS unless it was seen
    otherwise.
    """
    task = make_task("grounding", dialect=dialect)
    return task.write(SAMPLE, frame_of(1600, 1200, task.dialect, seen=seen, max_pixels=PIXELS))


# --- ms-swift -------------------------------------------------------------------------------------
def swift_columns(count: int) -> dict[str, Any]:
    """What its `compute_rewards_per_func` passes beside the data set's own columns."""
    row = {
        "messages": [{"role": "user", "content": "<image>Where?"}],
        "prompt_id": "p",
        "request_id": "r",
        "finish_reason": "stop",
        "is_truncated": False,
        "rollout_infos": {},
        "response_token_ids": [1, 2],
        "images": [{"path": "a.png"}],
    }
    return {"trainer_state": object()} | {name: [value] * count for name, value in row.items()}


def test_ms_swift_takes_all_columns_and_gets_a_number_each() -> None:
    texts = [right("qwen2.5-vl"), "nothing"]
    found = Rewards(dialect="qwen2.5-vl", max_pixels=PIXELS).ms_swift(
        texts, sample=[TEXT] * 2, **swift_columns(2)
    )
    assert found == [2.0, 0.0]


def test_ms_swifts_limits_of_a_row_are_those_that_it_is_read_by() -> None:
    texts = [right("qwen2.5-vl"), right("qwen2.5-vl", (252, 168)), right("qwen2.5-vl", (84, 56))]
    kwargs = [{"min_pixels": 3136, "max_pixels": PIXELS}, None, '{"max_pixels": 200704}']
    rows = [ROW, ROW | {"seen": [252, 168]}, ROW | {"seen": [84, 56]}]
    rewards = Rewards(dialect="qwen2.5-vl")
    assert rewards.ms_swift(
        texts, sample=rows, chat_template_kwargs=kwargs, **swift_columns(3)
    ) == [2.0, 2.0, 2.0]
    with pytest.raises(BadData, match="nothing says to what size"):
        rewards.ms_swift(
            texts[:1], sample=rows[:1], chat_template_kwargs=[{"enable_thinking": False}]
        )


# --- verl -----------------------------------------------------------------------------------------
def verl_calls(function: Any, reward_kwargs: dict[str, Any], solution: str, truth: Any) -> Any:
    """As `_call_with_kwargs` and the reward managers call it: by keyword, the settings of the
    configuration merged in.
    """
    call = {"data_source": "refcoco", "solution_str": solution, "ground_truth": truth}
    call |= {
        "extra_info": {
            "index": 3,
            "split": "train",
            "id": "a",
            "num_turns": None,
            "rollout_reward_scores": {},
        }
    }
    return function(**{**call, **reward_kwargs})


def test_verls_reward_kwargs_are_settings() -> None:
    plain, boxed = right("plain"), right("qwen2.5-vl")
    rewards = Rewards()
    assert verl_calls(rewards.verl, {"dialect": "plain"}, plain, TEXT) == {
        "score": 2.0,
        "malformed": 0.0,
    }
    given = {
        "dialect": "qwen2.5-vl",
        "min_pixels": 3136,
        "max_pixels": PIXELS,
        "weights": {"iou": 3, "format": 0.5},
    }
    assert verl_calls(rewards.verl, given, boxed, TEXT)["score"] == 3.5
    assert (
        verl_calls(rewards.verl, given | {"weights": "iou=3,format=0"}, boxed, TEXT)["score"] == 3.0
    )
    assert (
        verl_calls(
            rewards.verl,
            {"dialect": "plain", "iou_shape": "thresholded"},
            "dog: [200, 300, 900, 900]",
            TEXT,
        )["score"]
        == 2.0
    )
    assert (
        verl_calls(rewards.verl, {"dialect": "plain", "thinking": True}, plain, TEXT)["score"]
        == 0.0
    )
    own = {"reward_router_address": "host:1", "reward_model_tokenizer": object()}
    assert verl_calls(Rewards(dialect="plain").verl, own, plain, TEXT)["score"] == 2.0


REFUSED = {
    "a typing mistake": (
        {"dialetc": "plain"},
        "verl: setting 'dialetc' is not known: did you mean dialect",
    ),
    "somebody else's": (
        {"overlong_buffer": 3},
        "verl: setting 'overlong_buffer' is not known: expected some of dialect",
    ),
    "no dialect": ({"dialect": "klingon"}, "dialect 'klingon' is not known"),
    "no term": ({"weights": {"giou": 1}}, "no task has the term 'giou'"),
    "no weight": ({"weights": {"iou": "much"}}, "iou is 'much': expected a finite number"),
    "no weights": ({"weights": 3}, "weights: found 3, expected a mapping"),
    "no number of pixels": (
        {"max_pixels": "1e6"},
        "max_pixels: found '1e6', expected a whole number",
    ),
    "no yes or no": ({"thinking": "yes"}, "thinking: found 'yes', expected true or false"),
    "no name": ({"matching": 3}, "matching: found 3, expected a name"),
    "no matching": ({"matching": "best-ever"}, "matching 'best-ever' is not known"),
    "no shape": ({"iou_shape": "dice"}, "iou_shape 'dice' is not known"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_setting_is_refused_in_one_line_and_never_swallowed(case: str) -> None:
    given, message = REFUSED[case]
    with pytest.raises(BadData) as error:
        verl_calls(Rewards(dialect="plain").verl, given, right("plain"), TEXT)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(
        BadData, match=message.partition(": ")[2] if message.startswith("verl: ") else message
    ):
        Rewards(**given)


def test_any_mapping_is_one_such_as_omegaconfs() -> None:
    given = {"dialect": "plain", "weights": MappingProxyType({"iou": np.float64(3)})}
    assert verl_calls(Rewards().verl, given, right("plain"), MappingProxyType(ROW))["score"] == 4.0


def numpy_row() -> dict[str, Any]:
    """The row as pandas gives a struct of a Parquet file: arrays in arrays, numpy's numbers,
    None for what other rows have.
    """
    boxes = np.empty(1, dtype=object)
    boxes[0] = np.array(BOX)
    truth = {
        "boxes": boxes,
        "labels": np.array(["dog"], dtype=object),
        "points": None,
        "text": None,
    }
    sizes = {"width": np.int64(1600), "height": np.int32(1200), "seen": np.array([812, 588])}
    return (
        ROW
        | sizes
        | {
            "truth": truth,
            "crowd": np.array([False]),
            "area": np.array([49.0]),
            "source": None,
            "categories": None,
        }
    )


def test_rows_of_numpys_kinds_are_rows() -> None:
    pytest.importorskip("torch")
    rewards, text, row = Rewards(dialect="qwen2.5-vl"), right("qwen2.5-vl"), numpy_row()
    column = np.empty(2, dtype=object)
    column[:] = [row, json.dumps(ROW | {"seen": [812, 588]})]
    assert rewards.verl("x", text, row)["score"] == 2.0
    assert (
        rewards.verl("x", np.str_(text), json.dumps(ROW | {"seen": [812, 588]}).encode())["score"]
        == 2.0
    )
    assert rewards.trl(np.array([text, text], dtype=object), sample=column) == [2.0, 2.0]
    assert rewards.ms_swift([text, text], sample=column) == [2.0, 2.0]
    assert [
        found["overall"]
        for found in rewards.easyr1(np.array([{"response": text, "ground_truth": row}]))
    ] == [2.0]
    assert rewards.openrlhf(["P" + text], ["P"], column[:1])["rewards"].tolist() == [2.0]
    nothing = row | {
        "truth": {"boxes": np.array([]), "labels": np.array([], dtype=object)},
        "crowd": None,
        "area": None,
    }
    assert rewards.verl("x", "[]", nothing)["score"] == 2.0


def test_a_row_that_has_been_in_a_parquet_file_is_a_row() -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("pandas")
    counted = ROW | {
        "id": "b",
        "task": "counting",
        "truth": {"points": [[3.0, 4.0]], "labels": ["dog"]},
    }
    file = io.BytesIO()
    parquet.write_table(
        arrow.Table.from_pylist(
            [{"reward_model": {"style": "rule", "ground_truth": row}} for row in (ROW, counted)]
        ),
        file,
    )
    table = parquet.read_table(file)
    for rows in (table.to_pandas()["reward_model"], table.to_pylist()):
        found = [
            each["ground_truth"] if "ground_truth" in each else each["reward_model"]["ground_truth"]
            for each in rows
        ]
        assert Rewards(dialect="plain").verl("x", right("plain"), found[0])["score"] == 2.0
        assert Rewards(dialect="plain").verl("x", "dog: [2, 3, 4, 5]", found[1])["score"] == 2.0


# --- EasyR1 ---------------------------------------------------------------------------------------
def test_easyr1_gets_a_list_for_a_list_and_one_for_one() -> None:
    each = {"response": right("plain"), "response_length": 9, "ground_truth": TEXT}
    reward_fn = partial(
        Rewards().easyr1, dialect="plain", weights={"format": 0.5}
    )  # reward_function_kwargs
    assert reward_fn([each]) == [{"overall": 1.5, "accuracy": 1.0, "format": 0.5, "iou": 1.0}]
    assert reward_fn(each) == reward_fn([each])[0]  # REWARD_TYPE = "sequential"
    with pytest.raises(
        BadData, match="EasyR1: setting 'max_pixel' is not known: did you mean max_pixels"
    ):
        Rewards().easyr1([each], max_pixel=3)


def test_easyr1s_filter_key_lies_between_0_and_1_for_every_task() -> None:
    detection = {"task": "detection", "query": "", "truth": {"boxes": [BOX], "labels": ["dog"]}}
    inputs = [
        {"response": "no box", "ground_truth": json.dumps(ROW | fields)}
        for fields in ({}, detection)
    ]
    found = Rewards(dialect="plain").easyr1(inputs)
    assert [row["overall"] for row in found] == [0, -1]
    assert [row["accuracy"] for row in found] == [0, 0]
    nothing = Rewards(dialect="plain", weights={"format": 0, "iou": 0}).easyr1(inputs[:1])
    assert (nothing[0]["overall"], nothing[0]["accuracy"]) == (0, 0)


def test_easyr1_is_read_at_the_size_that_it_makes() -> None:
    """It scales by int() first, and its processor rounds what it is given: another size than a
    processor's own limit makes.
    """
    row = ROW | {"width": 3000, "height": 2000}
    limits = ScaledBefore(min_pixels=3136, max_pixels=1_000_000)
    sample = Sample(
        **{field: getattr(SAMPLE, field) for field in ("id", "task", "image", "query", "truth")},
        width=3000,
        height=2000,
    )
    width, height = limits.size(sample, DIALECTS["qwen2.5-vl"])
    text = make_task("grounding", dialect="qwen2.5-vl").write(
        sample, Frame(width=3000, height=2000, seen_width=width, seen_height=height)
    )
    rewards = Rewards(dialect="qwen2.5-vl", min_pixels=3136, max_pixels=1_000_000)
    assert (
        rewards.easyr1([{"response": text, "ground_truth": json.dumps(row)}])[0]["overall"] == 2.0
    )
    assert rewards.verl("x", text, row)["score"] < 2.0


# --- TRL ------------------------------------------------------------------------------------------
def test_trl_passes_columns_and_a_setting_is_given_once() -> None:
    state = {
        "trainer_state": None,
        "log_extra": print,
        "log_metric": print,
        "completion_ids": [[1]],
        "prompts": ["p"],
        "images": [["a"]],
    }
    completion = [{"role": "assistant", "content": right("plain")}]
    assert Rewards(dialect="plain").trl([completion], sample=[TEXT], difficulty=[3], **state) == [
        2.0
    ]
    assert partial(Rewards().trl, dialect="plain")([completion], sample=[TEXT], **state) == [2.0]
    for call in (Rewards().trl, Rewards().ms_swift):
        with pytest.raises(
            BadData,
            match=r"a column 'dialect', which is the name of a setting: .* Rewards\(dialect=…\)",
        ):
            call([right("plain")], sample=[TEXT], dialect=["plain"])
    assert Rewards(dialect="plain").trl(
        [[{"role": "assistant", "content": None}]], sample=[TEXT]
    ) == [0.0]
