"""The command `evaluate`: a model, a server, a file of answers, or general benchmarks."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from .terminal import WrongUsage, progress, usage


def evaluate(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for answers.jsonl and metrics.json.")],
    data: Annotated[str | None, typer.Option(help="Sample file, or a shorthand: coco:ROOT, scenes:counting?n=1000&split=test.")] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint folder, or hub id; with --server, its name there.")] = None,
    server: Annotated[str | None, typer.Option(help="Address of a server that speaks OpenAI's chat completions.")] = None,
    predictions: Annotated[Path | None, typer.Option(help='Lines of {"id", "completion"}, COCO results (.json), or a folder of ID.txt.')] = None,
    categories: Annotated[Path | None, typer.Option(help="Instances JSON with the category ids of COCO results, when not COCO's own.")] = None,
    general: Annotated[str | None, typer.Option(help="Benchmarks of lmms-eval instead of --data, as mmstar,mmbench_en_dev.")] = None,
    task: Annotated[str | None, typer.Option(help="grounding, counting, detection or ocr; the data's own by default.")] = None,
    dialect: Annotated[str | None, typer.Option(help="How answers write boxes; the model's own by default.")] = None,
    thinking: Annotated[bool | None, typer.Option(help="Whether answers think first; the model's own way by default.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many samples.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Ask everything again, where the folder holds answers.")] = False,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 2048,
    min_pixels: Annotated[int | None, typer.Option(min=1, help="Smallest image the model sees; for a server, what it is told.")] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Largest image the model sees; for a server, what it is told.")] = None,
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
