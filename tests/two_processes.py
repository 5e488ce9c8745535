"""What the tests run in two processes (gloo, CPU): `in_two_processes("sharded", folder)` calls `sharded(folder)` in both."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def in_two_processes(job: str, folder: Path) -> None:
    """Calls a function of this module in two processes that know each other; what went wrong in one is the error's text."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    settings = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    settings |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "tests.two_processes", job, str(folder)]
    logs = [folder / f"{job}-{rank}.log" for rank in range(2)]
    running = []
    for rank, log in enumerate(logs):
        with log.open("w") as out:
            running.append(subprocess.Popen(command, stdout=out, stderr=out, env=settings | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, cwd=ROOT))
    try:
        codes = [process.wait(timeout=1200) for process in running]
    finally:
        for process in running:
            process.kill()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log, code in zip(logs, codes, strict=True) if code)


def sharded(folder: Path) -> None:
    """Models sharded by FSDP2, a prompt a process: writes each family's log-probabilities, gradients and greedy rollouts."""
    import torch
    import torch.distributed as dist
    from tests.small_families import FAMILIES, completions, prompts
    from tests.test_shared_prefix import GRIDS, images, only, ours, sharing, weights_of
    from torch.distributed.fsdp import fully_shard

    from perception_r1.training.rollouts import prefill_once

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    mesh = dist.init_device_mesh("cpu", (2,))
    ids, mask = completions(2, 4, 7)
    given = only(prompts(GRIDS), rank)
    for family in FAMILIES:
        model = sharing(family)
        for layer in model.model.language_model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model.model.visual, mesh=mesh)  # generate calls it by itself
        fully_shard(model, mesh=mesh)
        logps, _ = ours(model, given, ids[rank : rank + 1], mask[rank : rank + 1])
        (logps * weights_of(ids)[rank]).sum().backward()
        gradients = torch.cat([parameter.grad.full_tensor().flatten() for parameter in model.parameters() if parameter.grad is not None])
        both = [torch.empty_like(logps) for _ in range(2)]
        dist.all_gather(both, logps.detach())
        with prefill_once(model, 3), torch.no_grad():
            inputs = {"input_ids": given.ids, "attention_mask": given.mask, "mm_token_type_ids": given.types, **images(given)}
            tokens = model.generate(**inputs, do_sample=False, max_new_tokens=4 + 6 * rank)
        torch.save({"logps": torch.cat(both), "gradients": gradients, "tokens": tokens}, folder / f"{family}-{rank}.pt")
    dist.destroy_process_group()


def zero3(folder: Path) -> None:
    """The same with DeepSpeed's ZeRO-3, which keeps a part of each weight in each process."""
    import deepspeed
    import torch
    import torch.distributed as dist
    from deepspeed.utils import safe_get_full_grad
    from tests.small_families import FAMILIES, completions, prompts
    from tests.test_shared_prefix import GRIDS, images, only, ours, sharing, weights_of
    from transformers.integrations import HfDeepSpeedConfig

    from perception_r1.training.rollouts import prefill_once

    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    rank = dist.get_rank()
    ids, mask = completions(2, 4, 7)
    given = only(prompts(GRIDS), rank)
    stage = {"stage": 3, "stage3_param_persistence_threshold": 0}
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": stage, "zero_allow_untested_optimizer": True}
    models = {family: sharing(family) for family in FAMILIES}
    known = HfDeepSpeedConfig(config)  # from here on, as long as it lives, transformers knows of ZeRO-3, as from a trainer's settings
    assert known.is_zero3()
    for family, model in models.items():
        engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), config=config)
        assert all(parameter.numel() == 0 for parameter in model.parameters())  # what is left here is on the other side of the partition
        logps, _ = ours(engine, given, ids[rank : rank + 1], mask[rank : rank + 1])
        engine.backward((logps * weights_of(ids)[rank]).sum())
        full = [safe_get_full_grad(parameter) for parameter in model.parameters()]
        both = [torch.empty_like(logps) for _ in range(2)]
        dist.all_gather(both, logps.detach())
        with prefill_once(model, 3), torch.no_grad():
            inputs = {"input_ids": given.ids, "attention_mask": given.mask, "mm_token_type_ids": given.types, **images(given)}
            tokens = model.generate(**inputs, do_sample=False, max_new_tokens=4 + 6 * rank)
        gradients = torch.cat([gradient.flatten() for gradient in full if gradient is not None])
        torch.save({"logps": torch.cat(both), "gradients": gradients, "tokens": tokens}, folder / f"{family}-{rank}.pt")
    dist.destroy_process_group()


def trained(folder: Path) -> None:
    """Three GRPO steps in DDP on the policy in `folder`, half of the prompts in each process: writes weights and losses."""
    import torch
    from tests.small_runs import Told, make_trainer, weights

    trainer = make_trainer(
        folder, folder / "two", Told, given={"share": "on"}, per_device_train_batch_size=8, gradient_accumulation_steps=1, max_steps=3
    )
    assert trainer.accelerator.num_processes == 2
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    torch.save({"weights": weights(trainer), "losses": losses}, folder / f"trained-{trainer.accelerator.process_index}.pt")
    torch.distributed.destroy_process_group()


def staged(folder: Path) -> None:
    """A run in stages from the command words in `folder`/words.json."""
    import json

    import torch

    from perception_r1.training import grpo

    grpo.run("quickstart", json.loads((folder / "words.json").read_text()))
    torch.distributed.destroy_process_group()


def saved_in_parts(folder: Path) -> None:
    """A policy parted by FSDP2, with an adapter and without: writes each, also as one process would."""
    import peft
    import torch
    import transformers
    from tests.small_runs import Parity
    from torch.distributed.fsdp import fully_shard
    from trl import GRPOConfig

    from perception_r1.data.mixture import load_data
    from perception_r1.dialects import dialect_named
    from perception_r1.training.dataset import prompt_dataset, tasks_for
    from perception_r1.training.grpo import Trainer

    policy = str(folder / "policy")
    samples = load_data("scenes:ocr?n=4&seed=3", cache=folder / f"cache-{os.environ['RANK']}")
    rows = prompt_dataset(samples, tasks_for(samples, dialect=dialect_named("qwen3-vl")))
    adapter = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    small = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "beta": 0.0}
    small |= {"per_device_train_batch_size": 4, "num_generations": 4, "report_to": "none"}
    for name, lora in (("adapter", adapter), ("whole", None)):
        args = GRPOConfig(output_dir=str(folder / "out"), **small)
        given = {"processing_class": transformers.AutoProcessor.from_pretrained(policy)}
        given |= {"train_dataset": rows, "peft_config": lora}
        trainer = Trainer(model=policy, reward_funcs=Parity(), args=args, **given)
        torch.manual_seed(0)
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.01 * torch.randn_like(parameter)
        if args.process_index == 0:
            trainer.model.save_pretrained(folder / f"expected-{name}")
        torch.distributed.barrier()
        mesh = torch.distributed.init_device_mesh("cpu", (2,))
        base = trainer.model.get_base_model() if lora else trainer.model
        for layer in base.model.language_model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(trainer.model, mesh=mesh)
        trainer.save_model(str(folder / name))
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def measured_slowly(folder: Path) -> None:
    """As `staged`, where measuring before training takes 24 seconds more: collectives wait for 12."""
    import time

    from perception_r1.training import comparison

    evaluate = comparison.evaluate

    def slowly(**given: Any) -> object:
        if given["output"].name == "before":
            time.sleep(24)
        return evaluate(**given)

    comparison.evaluate = slowly
    staged(folder)


def waited(folder: Path) -> None:
    """One process comes ten seconds late to where both wait, and collectives wait for three."""
    import time
    from datetime import timedelta

    import torch.distributed as dist

    from perception_r1.evaluation.waiting import LaunchedProcesses

    dist.init_process_group("gloo", timeout=timedelta(seconds=3))
    processes = LaunchedProcesses()
    begun = time.monotonic()
    if processes.index == 0:
        time.sleep(10)
    processes.wait()
    assert time.monotonic() - begun >= 9
    dist.destroy_process_group()


def evaluated(folder: Path) -> None:
    """The command `evaluate` of the bundled policy on `folder`/data.jsonl, as `accelerate launch` starts it: writes `folder`/two."""
    from perception_r1.cli import main

    data = str(folder / "data.jsonl")
    main(["evaluate", "--model", "tiny", "--data", data, "--max-new-tokens", "24", "--batch-size", "2", "-o", str(folder / "two")])


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
