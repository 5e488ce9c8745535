"""What the tests run in a real vLLM, a process each: `in_vllm("rollouts", "qwen2_vl", folder)`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIMITS = {"min_pixels": 2048, "max_pixels": 4096}
"""A recipe's, in pixels: narrower than the model folder's, and than any picture of `save_model`."""
GROUP = 4


def in_vllm(job: str, *words: str | Path) -> Any:
    """What a function of this module finds in its own process; the last of `words` is a folder."""
    folder = Path(words[-1])
    paths = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT / "src"), str(ROOT)]).strip(
        os.pathsep
    )
    log = folder / f"{job}.log"
    with log.open("w") as out:
        command = [sys.executable, "-m", "tests.vllm_runs", job, *map(str, words)]
        run = subprocess.run(
            command,
            stdout=out,
            stderr=out,
            env=os.environ | {"PYTHONPATH": paths},
            cwd=ROOT,
            timeout=900,
            check=False,
        )
    assert run.returncode == 0, log.read_text()[-5000:]
    return json.loads((folder / f"{job}.json").read_text())


def save_model(family: str, folder: Path) -> None:
    """A random model of a family (or the bundled policy), and scenes for it above the limits."""
    import shutil

    import transformers as hf
    from tests.small_families import small_model

    from perception_r1.policy import WEIGHTS, tiny

    save_scenes(folder)
    if family == "tiny":
        shutil.copytree(WEIGHTS, folder, dirs_exist_ok=True)
        return
    tokenizer = tiny.make_tokenizer()
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    if family == "qwen3_vl":  # transformers knows it by the family, vLLM by the config
        rope["mrope_interleaved"] = True
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    # vLLM on a CPU takes heads of 32, not the 16 of the other tests.
    text: dict[str, Any] = {"head_dim": 32, "rope_parameters": rope, **heads}
    text |= {"vocab_size": -(-len(tokenizer) // 64) * 64, "max_position_embeddings": 4096}
    small_model(family, **text).save_pretrained(folder)
    images = hf.Qwen2VLImageProcessor(
        patch_size=4, merge_size=2, min_pixels=64, max_pixels=1_000_000
    )
    kinds: dict[str, Any] = {
        "qwen2_vl": (hf.Qwen2VLProcessor, hf.Qwen2VLVideoProcessor),
        "qwen2_5_vl": (hf.Qwen2_5_VLProcessor, hf.Qwen2VLVideoProcessor),
        "qwen3_vl": (hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor),
    }
    kind, videos = kinds[family]
    parts = {
        "image_processor": images,
        "video_processor": videos(patch_size=4, merge_size=2),
        "tokenizer": tokenizer,
    }
    kind(**parts, chat_template=tiny.CHAT_TEMPLATE).save_pretrained(folder)


def save_scenes(folder: Path) -> None:
    """Eight scenes, each on a larger sheet of another shape than the last."""
    from dataclasses import replace

    from PIL import Image

    from perception_r1.data.samples import write_samples
    from perception_r1.data.scenes import scene_samples

    samples = []
    for number, sample in enumerate(
        scene_samples("grounding", folder=folder / "scenes", n=8, seed=3)
    ):
        with Image.open(sample.image_path) as scene:
            sheet = Image.new(
                "RGB", (sample.width + 40 * number, sample.height + 8 * number), "white"
            )
            sheet.paste(scene)
        sheet.save(sample.image_path)
        samples.append(replace(sample, width=sheet.width, height=sheet.height))
    write_samples(samples, folder / "samples.jsonl")


def watched(llm: Any, asked: list[Any]) -> None:
    """Notes what reaches vLLM itself and what it made of it."""
    generate = llm.generate

    def noting(prompts: list[Any], sampling_params: Any, **options: Any) -> Any:
        found = generate(prompts, sampling_params=sampling_params, **options)
        for prompt, output in zip(prompts, found, strict=True):
            asked.append(
                {
                    "given": list(prompt["prompt_token_ids"]),
                    "read": list(output.prompt_token_ids),
                    "limits": prompt.get("mm_processor_kwargs"),
                    "answers": len(output.outputs),
                }
            )
        return found

    llm.generate = noting


def rollouts(family: str, folder: str) -> Any:
    """The first rollouts of a run: what vLLM was handed and read, and how far they are apart."""
    import trl.generation.vllm_generation as theirs
    from tests.small_runs import make_trainer

    asked: list[Any] = []
    real = theirs.LLM

    class Watched(real):  # type: ignore[misc, valid-type]
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            watched(self, asked)

    theirs.LLM = Watched
    save_model(family, Path(folder))
    settings = {
        "per_device_train_batch_size": 4 * GROUP,
        "num_generations": GROUP,
        "generation_kwargs": None,
        "vllm_max_model_length": 1024,
    }
    trainer = make_trainer(
        Path(folder),
        Path(folder) / "run",
        use_vllm=True,
        limits=LIMITS,
        max_completion_length=12,
        **settings,
    )
    rows = [trainer.train_dataset[number] for number in (0, 1, 2, 3) for _ in range(GROUP)]
    batch = trainer._generate_and_score_completions(rows)
    mask = batch["completion_mask"].bool()
    apart = (batch["sampling_per_token_logps"] - batch["old_per_token_logps"])[mask].abs()
    token = trainer.processing_class.image_token_id
    return {
        "shared": trainer.group_shared,
        "asked": [
            {**request, "image": [request["given"].count(token), request["read"].count(token)]}
            for request in asked
        ],
        "trained": [
            ids[real == 1].tolist()
            for ids, real in zip(batch["prompt_ids"][:, 0], batch["prompt_mask"][:, 0], strict=True)
        ],
        "grid": batch["image_grid_thw"].tolist(),
        "sizes": [row["images"][0].size for row in rows[::GROUP]],
        "tokens": int(mask.sum()),
        "apart": float(apart.max()),
        "ratios": [
            float(batch["importance_sampling_ratio"].min()),
            float(batch["importance_sampling_ratio"].max()),
        ],
    }


def training(folder: str) -> Any:
    """Three steps of a recipe with pixel limits, as the command runs it: what each logged."""
    from perception_r1.training import grpo

    words = {
        "model": "tiny",
        "data": "scenes:counting?n=64&seed=7&min_count=2&max_count=4",
        "output_dir": f"{folder}/run",
        "use_vllm": "true",
    }
    words |= {
        "per_device_train_batch_size": "16",
        "max_completion_length": "48",
        "max_steps": "3",
        "save_steps": "3",
        "logging_steps": "1",
    }
    words |= {
        "min_pixels": "1024",
        "max_pixels": "2304",
        "learning_rate": "1e-3",
        "vllm_max_model_length": "512",
    }
    settings = [word for name, value in words.items() for word in (f"--{name}", value)]
    Path(folder, "recipe.yaml").write_text(recipe_without_evaluation())
    output = grpo.run(f"{folder}/recipe.yaml", settings)
    return json.loads((output / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]


def recipe_without_evaluation() -> str:
    """The quickstart, without the measurement before and after it."""
    import yaml

    from perception_r1 import recipes

    return yaml.safe_dump(
        {name: value for name, value in recipes.read("quickstart").items() if name != "eval_data"}
    )


def evaluation(family: str, folder: str) -> Any:
    """The same evaluation through transformers and vLLM, with pixel limits: the replies of both."""
    from perception_r1.evaluation.run import evaluate

    save_model(family, Path(folder))
    options: dict[str, Any] = {
        "data": f"{folder}/samples.jsonl",
        "model": folder,
        "max_new_tokens": 24,
        "dtype": "float32",
        "resamples": 10,
        **LIMITS,
    }
    evaluate(**options, device="cpu", output=f"{folder}/transformers", dialect="qwen3-vl")
    evaluate(**options, vllm=True, output=f"{folder}/vllm", dialect="qwen3-vl")
    return [
        Path(folder, engine, "answers.jsonl").read_text().splitlines()
        for engine in ("transformers", "vllm")
    ]


if __name__ == "__main__":
    from tests.vllm_on_cpu import prepare

    prepare()
    found = globals()[sys.argv[1]](*sys.argv[2:])
    Path(sys.argv[-1], f"{sys.argv[1]}.json").write_text(json.dumps(found))
