"""The commands `evaluate` (a model, a server, a file of answers, or general benchmarks) and `probe`."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from .terminal import IouShape, Matching, Weights, WrongUsage, progress, usage


def evaluate(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for answers.jsonl and metrics.json.")],
    data: Annotated[str | None, typer.Option(help="Sample file, or a shorthand: coco:ROOT, scenes:counting?n=1000&split=test.")] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint folder, or hub id; with --server, its name there.")] = None,
    server: Annotated[str | None, typer.Option(help="Address of a server that speaks OpenAI's chat completions.")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help='Lines of {"id", "completion", "seen"}, COCO results (.json), or a folder of ID.txt.')
    ] = None,
    categories: Annotated[Path | None, typer.Option(help="Instances JSON with the category ids of COCO results, when not COCO's own.")] = None,
    general: Annotated[str | None, typer.Option(help="Benchmarks of lmms-eval instead of --data, as mmstar,mmbench_en_dev.")] = None,
    task: Annotated[str | None, typer.Option(help="grounding, counting, detection or ocr; the data's own by default.")] = None,
    dialect: Annotated[str | None, typer.Option(help="How answers write boxes; the model's own by default.")] = None,
    thinking: Annotated[bool | None, typer.Option(help="Whether answers think first; the model's own way by default.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many samples.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Ask everything again, where the folder holds answers.")] = False,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 2048,
    min_pixels: Annotated[int | None, typer.Option(min=1, help="Smallest image the model sees; for a server or a file, what it was told.")] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Largest image the model sees; for a server or a file, what it was told.")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap; decoding is greedy.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; the GPU when there is one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    vllm: Annotated[bool, typer.Option("--vllm", help="Let vLLM run --model.")] = False,
    parallel: Annotated[int, typer.Option(help="Questions that a server has at a time.")] = 8,
    timeout: Annotated[float, typer.Option(help="Seconds after which a server is asked again.")] = 300,
    retries: Annotated[int, typer.Option(help="Times that a server is asked again, with growing waits.")] = 8,
    general_python: Annotated[Path | None, typer.Option(help="The Python that has lmms-eval.")] = None,
    general_args: Annotated[str, typer.Option(help="More words for lmms-eval, as '--limit 8'.")] = "",
) -> None:
    """Metrics with 95 % intervals of a model (--model, --server) or of answers in a file (--predictions).

    A run that was stopped goes on where it was when the same command is given again. Under `accelerate launch` the processes
    share the samples. The key of a server is read from OPENAI_API_KEY.
    """
    from .evaluation.asking import Reach
    from .evaluation.run import evaluate as run
    from .tasks import make_task

    if general is not None:
        from .evaluation.general import run_general

        if model is None or server or predictions or data:
            raise WrongUsage("--general: expected --model, without --data, --server and --predictions: run those by themselves")
        run_general(general, model, output, python=general_python, arguments=general_args, device=device)
        return
    if (model is None and server is None) == (predictions is None):
        raise WrongUsage("expected exactly one of --model, --server and --predictions")
    if vllm and (server or model is None):
        raise WrongUsage("--vllm: expected --model, a folder or hub id, and no --server")
    with usage():
        make_task(task or "grounding", dialect=dialect or "qwen2-vl")
        reach = Reach(parallel=parallel, timeout=timeout, retries=retries)
    with progress("answering") as step:
        run(
            data=data, output=output, model=model, server=server, predictions=predictions, categories=categories, task=task, dialect=dialect,
            thinking=thinking, limit=limit, batch_size=batch_size, max_new_tokens=max_new_tokens, min_pixels=min_pixels, max_pixels=max_pixels,
            seed=seed, device=device, dtype=dtype, vllm=vllm, reach=reach, overwrite=overwrite, processes=launched(server or predictions),
            on_progress=step,
        )  # fmt: skip


def launched(elsewhere: object) -> Any:
    """The processes of `accelerate launch` or torchrun that share an evaluation; None for one that runs by itself."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    if elsewhere:
        raise WrongUsage("found several processes, expected one: without --model there is nothing for them to share")
    from .evaluation.waiting import LaunchedProcesses

    return LaunchedProcesses()


def probe(
    data: Annotated[str, typer.Option(help="Sample file, or a shorthand: coco:ROOT, scenes:counting?n=1000&split=test.")],
    model: Annotated[str | None, typer.Option(help="Checkpoint folder, or hub id; without one, only the data is looked at.")] = None,
    task: Annotated[str | None, typer.Option(help="What all samples must be, and what coco: makes.")] = None,
    num_generations: Annotated[int, typer.Option("--num_generations", "--num-generations", help="Answers to each sample.")] = 8,
    groups_per_step: Annotated[int, typer.Option("--groups_per_step", "--groups-per-step", help="Groups that make a step, over all devices.")] = 2,
    limit: Annotated[int | None, typer.Option(help="Only so many samples, drawn at random with each source's share.")] = None,
    save_difficulty: Annotated[Path | None, typer.Option("--save-difficulty", help="File for a line a sample, which a curriculum reads.")] = None,
    dialect: Annotated[str | None, typer.Option(help="How answers write boxes; the model's own by default.")] = None,
    thinking: Annotated[bool | None, typer.Option(help="Whether answers think first; the model's own way by default.")] = None,
    matching: Matching = "hungarian",
    iou_shape: IouShape = "iou",
    weights: Weights = "",
    temperature: Annotated[float, typer.Option(help="Of the sampling, as in the run that is planned.")] = 1.0,
    batch_size: Annotated[int, typer.Option(help="Answers sampled at a time.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 2048,
    min_pixels: Annotated[int | None, typer.Option(min=1, help="Smallest image the model sees.")] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Largest image the model sees.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sampling, and of --limit's choice.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; the GPU when there is one.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File for the figures, as JSON.")] = None,
) -> None:
    """Before GPU hours are spent: how many matchings the data allows and, with --model, how much RL can make of its answers."""
    from .evaluation.probe import ProbeSettings, print_probe
    from .evaluation.probe import probe as run
    from .evaluation.run import write_metrics
    from .tasks import make_task, parse_weights

    if save_difficulty and not model:
        raise WrongUsage("--save-difficulty needs --model: difficulty is what a model's answers earn")
    with usage():
        make_task(task or "grounding", dialect=dialect or "qwen2-vl")
        settings = ProbeSettings(
            num_generations=num_generations, groups_per_step=groups_per_step, limit=limit, temperature=temperature, batch_size=batch_size, seed=seed,
            max_new_tokens=max_new_tokens, min_pixels=min_pixels, max_pixels=max_pixels, thinking=thinking, matching=matching,
            iou_shape=iou_shape, weights=parse_weights(weights),
        )  # fmt: skip
    sharing = None
    if model:
        from .training.rollouts import shared_prefill as sharing
    with progress("answering") as step:
        found = run(
            data, model=model, task=task, settings=settings, save_difficulty=save_difficulty, dialect=dialect, device=device, sharing=sharing,
            on_progress=step,
        )  # fmt: skip
    print_probe(found)
    if output:
        write_metrics(found, output)
