"""vLLM offline: what it is told, and what is made of its tokens, on a stand-in that answers with transformers. vLLM itself needs a GPU."""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from perception_r1.data.samples import write_samples
from perception_r1.data.scenes import scene_samples
from perception_r1.evaluation.run import evaluate
from perception_r1.policy import WEIGHTS
from perception_r1.records import BadData

torch = pytest.importorskip("torch")


class SamplingParams:
    """The arguments of vLLM's own that matter here, with its defaults, some of which would lose an answer."""

    def __init__(
        self, *, n: int = 1, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, repetition_penalty: float = 1.0, seed: int | None = None,
        max_tokens: int | None = 16, stop_token_ids: list[int] | None = None, skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> None:  # fmt: skip
        given = inspect.currentframe()
        assert given is not None
        self.__dict__.update({name: value for name, value in given.f_locals.items() if name not in ("self", "given")})


class LLM:
    """Answers as vLLM does: a request with outputs each, tokens with the end among them, and why it ended."""

    made: ClassVar[dict[str, Any]] = {}

    def __init__(self, model: str, *, dtype: str = "auto", limit_mm_per_prompt: Any = None, mm_processor_kwargs: Any = None) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        type(self).made = {"model": model, "dtype": dtype, "limit_mm_per_prompt": limit_mm_per_prompt, "mm_processor_kwargs": mm_processor_kwargs}
        self.processor = AutoProcessor.from_pretrained(model)
        self.model = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
        self.asked: list[Any] = []

    def generate(self, prompts: list[dict[str, Any]], sampling_params: SamplingParams, *, use_tqdm: bool = True) -> list[Any]:
        type(self).made["params"] = sampling_params
        return [SimpleNamespace(outputs=[self.answer(prompt, sampling_params)]) for prompt in prompts]

    def answer(self, prompt: dict[str, Any], params: SamplingParams) -> Any:
        inputs = self.processor(text=[prompt["prompt"]], images=[prompt["multi_modal_data"]["image"]], return_tensors="pt")
        ids = self.model.generate(**inputs, do_sample=False, max_new_tokens=params.max_tokens, eos_token_id=params.stop_token_ids)[0]
        new = ids[inputs["input_ids"].shape[1] :].tolist()
        return SimpleNamespace(token_ids=new, text="unused", finish_reason="stop" if new[-1] in (params.stop_token_ids or []) else "length")


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    return lambda: LLM.made


@pytest.mark.parametrize("longest", [6, 48])
def test_it_gives_what_transformers_gives(longest: int, vllm: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    write_samples(scene_samples("counting", folder=tmp_path / "images", n=4, seed=3, max_count=2), tmp_path / "data.jsonl")
    options: dict[str, Any] = {"data": str(tmp_path / "data.jsonl"), "model": "tiny", "max_new_tokens": longest, "resamples": 10}
    here = evaluate(**options, device="cpu", output=tmp_path / "here")
    there = evaluate(**options, vllm=True, output=tmp_path / "there")
    assert there["metrics"] == here["metrics"]
    assert (tmp_path / "there" / "answers.jsonl").read_bytes() == (tmp_path / "here" / "answers.jsonl").read_bytes()
    same = {name: there["model"][name] for name in ("name", "revision", "model_type", "image", "decoding", "prompt")}
    assert same == {name: here["model"][name] for name in same}
    assert there["model"]["backend"] == "vllm"


def test_it_is_told_everything_that_a_default_would_change(vllm: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    from perception_r1.evaluation.vllm_backend import VllmBackend

    backend = VllmBackend("tiny", max_pixels=8192, min_pixels=1024)
    picture = Image.fromarray(np.zeros((64, 96, 3), dtype=np.uint8))
    replies = backend.generate(["Output all the bounding boxes of the circle"], [picture], max_new_tokens=7)
    made = vllm()
    assert made["model"] == str(WEIGHTS)
    assert made["limit_mm_per_prompt"] == {"image": 1}
    assert made["mm_processor_kwargs"] == backend.about(7)["image"] == {"min_pixels": 1024, "max_pixels": 8192}
    params = made["params"]
    assert (params.n, params.temperature, params.top_p, params.repetition_penalty, params.max_tokens) == (1, 0.0, 1.0, 1.0, 7)
    assert params.skip_special_tokens is params.spaces_between_special_tokens is False
    assert params.stop_token_ids == sorted(backend.ends()) != []
    assert (replies[0].frame.seen_width, replies[0].frame.seen_height) == (96, 64)


def test_without_vllm_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    write_samples(scene_samples("counting", folder=tmp_path / "images", n=1, seed=3), tmp_path / "data.jsonl")
    with pytest.raises(BadData, match=r"^vLLM is not installed: pip install -e '\.\[train,eval,vllm\]', in a checkout"):
        evaluate(data=str(tmp_path / "data.jsonl"), model="tiny", vllm=True, output=tmp_path / "run")
