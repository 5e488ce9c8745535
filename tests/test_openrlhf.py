"""What OpenRLHF hands to a reward: tokens of prompt and response as text, special ones included;
and end tokens of any engine.
"""

import time

import pytest
from tests.test_engine_contracts import PIXELS, ROW, SAMPLE, TEXT, right

from perception_r1.dialects import frame_of
from perception_r1.endings import END_TOKENS, response_of, without_ends
from perception_r1.engines import Rewards
from perception_r1.evaluation.score import ScoreSettings
from perception_r1.records import BadData
from perception_r1.tasks import make_task

# --- OpenRLHF -------------------------------------------------------------------------------------
CHATML = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{}"
CHATML += "Output the bounding box of the dog in the image.<|im_end|>\n<|im_start|>assistant\n"
QWEN = "<|vision_start|>{}<|vision_end|>"
OPENRLHF = {
    "qwen2.5-vl": (
        CHATML.format(QWEN.format("<|image_pad|>")),
        CHATML.format(QWEN.format("<|image_pad|>" * 391)),
        "<|im_end|>",
    ),
    "qwen2-vl": (
        CHATML.format(QWEN.format("<|image_pad|>")),
        CHATML.format(QWEN.format("<|image_pad|>" * 9)),
        "<|im_end|>\n<|endoftext|>",
    ),
    "qwen3-vl": (
        CHATML.format(QWEN.format("<|image_pad|>")),
        CHATML.format(QWEN.format("<|image_pad|>")),
        "<|im_end|>",
    ),
    "internvl": (
        CHATML.format("<IMG_CONTEXT>\n"),
        CHATML.format(f"<img>{'<IMG_CONTEXT>' * 256}</img>\n"),
        "<|im_end|>",
    ),
    "llava": (
        "USER: <image>\nWhere is the dog? ASSISTANT:",
        f"USER: {'<image>' * 576} \nWhere is the dog? ASSISTANT:",
        "</s>",
    ),
    "plain": ("Where is the dog?", "Where is the dog?", "<|eot_id|><|eot_id|>"),
}
"""By dialect: the prompt, the same as its processor expands it, and what the tokenizer ends a
reply with.
"""


@pytest.mark.parametrize("dialect", OPENRLHF)
def test_openrlhf_has_its_reward_behind_expanded_placeholders_and_end_tokens(dialect: str) -> None:
    torch = pytest.importorskip("torch")
    prompt, expanded, end = OPENRLHF[dialect]
    reward_func = Rewards(dialect=dialect, max_pixels=PIXELS).openrlhf
    for completion, total in ((right(dialect), 2.0), ("I see no such thing.", 0.0)):
        found = reward_func(
            [expanded + completion + end], [prompt], [TEXT]
        )  # one call a rollout, in a thread
        assert found["rewards"].tolist() == [total]
        assert found["scores"].tolist() == [total / 2]
        assert float(found["extra_logs"]["malformed"].flatten()[0]) == (total == 0)
        assert torch.tensor([found["rewards"]]).shape == (1,)  # as its SamplesGenerator takes it


def test_openrlhf_a_group_is_told_apart() -> None:
    pytest.importorskip("torch")
    prompt, expanded, end = OPENRLHF["qwen2.5-vl"]
    texts = [right("qwen2.5-vl"), right("qwen2.5-vl").replace("588", "400"), "[]", "nothing"]
    found = Rewards(dialect="qwen2.5-vl", max_pixels=PIXELS).openrlhf(
        [expanded + text + end for text in texts], [prompt] * 4, [ROW] * 4
    )
    task = make_task("grounding", dialect="qwen2.5-vl")
    frame = frame_of(1600, 1200, task.dialect, max_pixels=PIXELS)
    assert found["rewards"].tolist() == pytest.approx(
        [task.score(text, SAMPLE, frame).total for text in texts]
    )


def test_what_a_response_repeats_of_its_prompt_is_part_of_the_response() -> None:
    prompt, expanded, _ = OPENRLHF["qwen2.5-vl"]
    for response in (prompt, expanded, "<|image_pad|><|image_pad|>[]", ""):
        assert response_of(expanded + response, prompt) == response
    two = "<image><image>Compare."
    assert response_of("<image>" * 40 + "Compare.[]", two) == "[]"
    with pytest.raises(BadData, match="begin with its prompt"):
        response_of(expanded[:-3], prompt)


def test_an_image_of_many_patches_is_found_at_once() -> None:
    prompt = "".join(f"{QWEN.format('<|image_pad|>')} picture {k}. " for k in range(8)) + "Which?"
    query = prompt.replace("<|image_pad|>", "<|image_pad|>" * 16_384)
    begun = time.perf_counter()
    assert response_of(query + "[]", prompt) == "[]"
    with pytest.raises(BadData, match="begin with its prompt"):
        response_of(query.replace("Which?", "What?") + "[]", prompt)
    assert time.perf_counter() - begun < 0.5


# --- end tokens -----------------------------------------------------------------------------------
ENDS = [token for tokens in END_TOKENS.values() for token in tokens]


@pytest.mark.parametrize("end", ENDS)
def test_end_tokens_are_taken_off_for_every_engine(end: str) -> None:
    pytest.importorskip("torch")
    rewards = Rewards(dialect="qwen3-vl")
    text = right("qwen3-vl")
    for ended in (text + end, text + end * 3, f"{text}{end}\n", f"{text}\n{end}\n{end}"):
        assert rewards.trl([ended], sample=[ROW]) == [2.0]
        assert rewards.ms_swift([ended], sample=[ROW]) == [2.0]
        assert rewards.verl("x", ended, ROW)["score"] == 2.0
        assert rewards.easyr1([{"response": ended, "ground_truth": TEXT}])[0]["overall"] == 2.0
        assert rewards.openrlhf(["P" + ended], ["P"], [ROW])["rewards"].tolist() == [2.0]
        assert ScoreSettings(dialect="qwen3-vl").score(ended, SAMPLE).total == 2.0


def test_end_tokens_are_taken_off_at_the_end_only() -> None:
    for text in ("a<|im_end|>b", "<|im_end|>a", "a </s> b\n", "a\n", "<|box_end|>", "", " \n"):
        assert without_ends(text) == text
    assert without_ends("<|im_end|>") == ""
    begun = time.perf_counter()
    without_ends("x" + "</s> " * 250_000)
    without_ends("x" + " " * 1_000_000)
    assert time.perf_counter() - begun < 2
