"""What vLLM is handed in training, on a stand-in that writes image tokens as vLLM does.

tests/test_real_vllm.py asks vLLM itself.
"""

from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl.generation.vllm_generation as theirs
from PIL import Image
from tests.small_families import END, FAMILIES, IMAGE, START, VIDEO
from tests.small_runs import make_trainer
from tests.vllm_runs import GROUP, LIMITS, save_model
from transformers import AutoProcessor

from perception_r1.dialects import smart_resize
from perception_r1.records import BadData


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder of a small model of each family, made when it is asked for."""
    made: dict[str, Path] = {}

    def find(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            save_model(family, made[family])
        return made[family]

    return find


class LLM:
    """Makes of the next image token as many as a picture has, for each picture, as vLLM does."""

    def __init__(self, model: str, **settings: Any) -> None:
        self.processor = AutoProcessor.from_pretrained(model)
        self.asked: list[dict[str, Any]] = []
        loader = SimpleNamespace(load_weights=lambda weights: None)
        runner = SimpleNamespace(model_runner=SimpleNamespace(model=loader))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=runner))

    def reset_prefix_cache(self) -> None:
        pass

    def generate(
        self, prompts: list[dict[str, Any]], sampling_params: Any, use_tqdm: bool
    ) -> list[Any]:
        self.asked += prompts
        return [self.answer(prompt, sampling_params.n) for prompt in prompts]

    def answer(self, prompt: dict[str, Any], answers: int) -> Any:
        logprobs = [
            {30: SimpleNamespace(rank=1, logprob=-1.0)},
            {31: SimpleNamespace(rank=1, logprob=-2.0)},
        ]
        outputs = [SimpleNamespace(token_ids=[30, 31], logprobs=logprobs) for _ in range(answers)]
        return SimpleNamespace(prompt_token_ids=self.read(prompt), outputs=outputs)

    def read(self, prompt: dict[str, Any]) -> list[int]:
        given = list(prompt["prompt_token_ids"])
        pictures = prompt.get("multi_modal_data", {}).get("image", [])
        read: list[int] = []
        for picture in pictures if isinstance(pictures, list) else [pictures]:
            at = given.index(IMAGE)
            read += given[:at] + [IMAGE] * self.tokens(
                picture, prompt.get("mm_processor_kwargs", {})
            )
            given = given[at + 1 :]
        return read + given

    def tokens(self, picture: Image.Image, limits: dict[str, int]) -> int:
        images = self.processor.image_processor
        own = {
            "min_pixels": images.size["shortest_edge"],
            "max_pixels": images.size["longest_edge"],
        }
        side = images.patch_size * images.merge_size
        width, height = smart_resize(*picture.size, factor=side, **(own | limits))
        return width * height // side**2


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's colocate mode on the stand-in. The environment that it writes to is put back."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(theirs, "is_vllm_available", lambda: True)
    monkeypatch.setattr(theirs, "LLM", LLM, raising=False)
    monkeypatch.setattr(
        theirs, "SamplingParams", lambda **given: SimpleNamespace(**given), raising=False
    )


def rollouts(policy: Path, output: Path, prompts: int = 4, **options: Any) -> tuple[Any, Any]:
    """A colocated trainer after its first rollouts, and their batch."""
    settings = {
        "per_device_train_batch_size": prompts * GROUP,
        "num_generations": GROUP,
        "use_vllm": True,
        "vllm_max_model_length": 1024,
    }
    trainer = make_trainer(policy, output, limits=LIMITS, **settings, **options)
    rows = [trainer.train_dataset[number] for number in range(prompts) for _ in range(GROUP)]
    return trainer, trainer._generate_and_score_completions(rows)


def collapsed(ids: list[int]) -> list[int]:
    return [
        token for token, run in groupby(ids) for _ in range(1 if token == IMAGE else len(list(run)))
    ]


@pytest.mark.parametrize("share", ["on", "off"])
@pytest.mark.parametrize("family", FAMILIES)
def test_vllm_reads_the_prompt_that_is_trained_on(
    family: str, share: str, folders: Any, vllm: None, tmp_path: Path
) -> None:
    trainer, batch = rollouts(folders(family), tmp_path, given={"share": share})
    llm = trainer.vllm_generation.llm
    ids, mask = (batch[name].flatten(0, -2) for name in ("prompt_ids", "prompt_mask"))
    trained = [row[real == 1].tolist() for row, real in zip(ids, mask, strict=True)]
    asked = trained[::GROUP] if share == "on" else trained
    assert [prompt["prompt_token_ids"] for prompt in llm.asked] == [collapsed(row) for row in asked]
    assert [prompt["mm_processor_kwargs"] for prompt in llm.asked] == [LIMITS] * len(asked)
    assert [llm.read(prompt) for prompt in llm.asked] == asked
    sizes = {prompt["multi_modal_data"]["image"].size for prompt in llm.asked}
    assert all(
        width * height > LIMITS["max_pixels"] for width, height in sizes
    )  # so the limits did matter
    tokens = (batch["image_grid_thw"].prod(1) // 4).tolist()
    assert [row.count(IMAGE) for row in asked] == tokens
    assert len(set(tokens)) > 1


def test_pixels_go_to_vllm_once_a_group(folders: Any, vllm: None, tmp_path: Path) -> None:
    trainer, batch = rollouts(folders("qwen3_vl"), tmp_path, given={"share": "on"})
    assert len(trainer.vllm_generation.llm.asked) == 4
    assert trainer.vllm_generation.generation_kwargs["n"] == GROUP
    assert batch["completion_ids"].shape == (4, GROUP, 2)
    assert torch.equal(
        batch["sampling_per_token_logps"], torch.tensor([-1.0, -2.0]).expand(4, GROUP, 2)
    )


def asked_for(
    prompts: list[dict[str, Any]], processor: Any, read: list[list[int]] | None = None
) -> list[dict[str, Any]]:
    """What reaches a colocated vLLM that reads the prompts so; as they were given by default."""
    from perception_r1.training.vllm_rollouts import read_as_trained

    asked: list[dict[str, Any]] = []

    def generate(given: list[dict[str, Any]], **_: Any) -> list[Any]:
        asked.extend(given)
        return [
            SimpleNamespace(prompt_token_ids=ids)
            for ids in read or [prompt["prompt_token_ids"] for prompt in prompts]
        ]

    generation = SimpleNamespace(mode="colocate", llm=SimpleNamespace(generate=generate))
    read_as_trained(generation, processor)
    generation.llm.generate(prompts, sampling_params=None, use_tqdm=False)
    return asked


PICTURE = Image.new("RGB", (8, 8))
FORMS = {
    "one picture": ([9, START, IMAGE, IMAGE, IMAGE, END, 8], [9, START, IMAGE, END, 8]),
    "already one token": ([START, IMAGE, END], [START, IMAGE, END]),
    "two pictures": (
        [START, IMAGE, IMAGE, END, 9, START, IMAGE, END, 8],
        [START, IMAGE, END, 9, START, IMAGE, END, 8],
    ),
    "side by side": (
        [START, IMAGE, IMAGE, END, START, IMAGE, IMAGE, END],
        [START, IMAGE, END, START, IMAGE, END],
    ),
    "a video": ([START, VIDEO, VIDEO, VIDEO, END, 8], [START, VIDEO, END, 8]),
    "a picture beside a video": ([IMAGE, IMAGE, VIDEO, VIDEO, 9], [IMAGE, VIDEO, 9]),
    "at both ends": ([IMAGE, IMAGE, 9, IMAGE, IMAGE], [IMAGE, 9, IMAGE]),
    "other runs": ([9, 9, IMAGE, IMAGE, 8, 8, 8], [9, 9, IMAGE, 8, 8, 8]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_run_of_image_tokens_is_one_token(form: str, folders: Any) -> None:
    given, expected = FORMS[form]
    prompt = {"prompt_token_ids": given, "multi_modal_data": {"image": PICTURE}}
    asked = asked_for([prompt], AutoProcessor.from_pretrained(folders("qwen2_vl")))
    assert [request["prompt_token_ids"] for request in asked] == [expected]
    assert prompt["prompt_token_ids"] is given  # what is trained on stays as it was
    assert given == FORMS[form][0]


def test_a_text_is_handed_on_as_it_is_beside_a_picture_too(folders: Any) -> None:
    text = {"prompt_token_ids": [9, 9, IMAGE, IMAGE, 8]}
    picture = {"prompt_token_ids": [IMAGE, IMAGE], "multi_modal_data": {"image": PICTURE}}
    asked = asked_for(
        [text, picture, {"prompt_token_ids": []}],
        AutoProcessor.from_pretrained(folders("qwen2_vl")),
    )
    assert asked[0] == text
    assert asked[1]["prompt_token_ids"] == [IMAGE]
    assert asked[2] == {"prompt_token_ids": []}


class FixedSize:
    """A processor that resizes every picture to one size, as LLaVA's, and has no videos."""

    image_token_id = IMAGE
    image_processor = SimpleNamespace(size={"height": 32, "width": 32})


def test_a_processor_of_one_size_is_told_no_limits() -> None:
    asked = asked_for(
        [{"prompt_token_ids": [IMAGE, IMAGE, 9], "multi_modal_data": {"image": PICTURE}}],
        FixedSize(),
    )
    assert asked == [{"prompt_token_ids": [IMAGE, 9], "multi_modal_data": {"image": PICTURE}}]


def test_a_prompt_that_vllm_reads_otherwise_is_one_clear_error() -> None:
    prompts = [{"prompt_token_ids": [IMAGE, IMAGE, 9], "multi_modal_data": {"image": PICTURE}}]
    with pytest.raises(
        BadData,
        match="read a prompt of 4 tokens, 3 of them image tokens, expected the trainer's 3 and 2: ",
    ):
        asked_for(prompts, FixedSize(), read=[[IMAGE, IMAGE, IMAGE, 9]])


def placed(lengths: list[int], ids: list[int], processor: Any) -> Any:
    """TRL's own placing of a server's pictures, of so many tokens each, in the trainer's prompt."""
    from perception_r1.training.vllm_rollouts import read_as_trained

    generation = object.__new__(theirs.VLLMGeneration)
    generation.mode, generation.processing_class = "server", processor
    read_as_trained(generation, processor)
    return generation._place_features(
        {"mm_placeholders": {"image": [{"offset": 1, "length": length} for length in lengths]}}, ids
    )


def test_a_server_gets_the_trainers_own_tokens_and_must_see_pictures_of_their_size(
    folders: Any,
) -> None:
    processor = AutoProcessor.from_pretrained(folders("qwen2_vl"))
    ids = [9, START, IMAGE, IMAGE, END, START, IMAGE, END]
    found = placed([2, 1], ids, processor)["mm_placeholders"]["image"]
    assert found == [{"offset": 2, "length": 2}, {"offset": 6, "length": 1}]
    with pytest.raises(BadData) as larger:
        placed([6, 1], ids, processor)
    assert str(larger.value) == (
        "use_vllm: the vLLM server makes [6, 1] image tokens of a prompt's pictures, "
        "expected [2, 1] as the trainer does: "
        "start it with vllm serve --mm-processor-kwargs "
        """'{"min_pixels": 64, "max_pixels": 1000000}'"""
    )


def test_a_servers_text_has_no_pictures_to_place(folders: Any) -> None:
    from perception_r1.training.vllm_rollouts import read_as_trained

    generation = object.__new__(theirs.VLLMGeneration)
    generation.mode = "server"
    read_as_trained(generation, FixedSize())
    assert generation._place_features(None, [9, 8]) is None
