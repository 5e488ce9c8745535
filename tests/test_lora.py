"""LoRA: it trains what it should, and its checkpoints answer as the models merged of them do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.random_models import build_random_model
from tests.two_processes import in_two_processes

from perception_r1.cli import main
from perception_r1.demo.policies import load_policies
from perception_r1.evaluation.backends import TransformersBackend
from perception_r1.evaluation.merging import merge
from perception_r1.evaluation.run import evaluate
from perception_r1.policy import WEIGHTS, tiny
from perception_r1.records import BadData
from perception_r1.training import grpo, sft
from perception_r1.training.checkpoints import MARKER

FAMILIES = ("tiny", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
SMALL = [
    *(
        "--task",
        "ocr",
        "--data",
        "scenes:ocr?n=8&seed=3",
        "--per_device_train_batch_size",
        "8",
        "--max_steps",
        "2",
    ),
    *(
        "--save_steps",
        "1",
        "--save_total_limit",
        "9",
        "--logging_steps",
        "1",
        "--learning_rate",
        "1e-2",
    ),
]
GRPO_RUN = [*SMALL, "--eval_data", "", "--max_completion_length", "8", "--num_generations", "4"]
LORA = ["--use_peft", "true", "--lora_r", "4"]
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module", autouse=True)
def _one_cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def model(
    tmp_path_factory: pytest.TempPathFactory, data_folder: Callable[[str], Path]
) -> Callable[[str], Path]:
    """`model("qwen3_vl")` is a folder of that family with random weights; `tiny` is there too."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            if family == "tiny":
                tiny.save_untrained(made[family])
            else:
                build_random_model(made[family], family, data_folder("qwen_tokenizer_config"))
        return made[family]

    return make


def random_adapter(base: Path, folder: Path, **lora: object) -> peft.PeftModel:
    """Writes an adapter of random weights, as PEFT does, and returns the model with it."""
    torch.manual_seed(1)
    whole = transformers.AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    adapted = peft.get_peft_model(whole, peft.LoraConfig(r=4, task_type="CAUSAL_LM", **lora))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    adapted.save_pretrained(str(folder))
    return adapted.eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(40, 60)[None]).logits


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def trained(model: Path, output: Path, *more: str) -> Path:
    return grpo.run(
        "quickstart", ["--model", str(model), *GRPO_RUN, "--output_dir", str(output), *LORA, *more]
    )


@pytest.fixture(scope="module")
def run(model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(model("qwen2_5_vl"), tmp_path_factory.mktemp("lora") / "run")


# --- training --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", FAMILIES)
def test_by_default_all_linear_layers_of_the_language_model_are_trained_and_no_others(
    model: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    output = trained(model(family), tmp_path / "run")
    start, end = weights(model(family)), weights(output)
    assert start.keys() == end.keys()
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    linear = {
        name
        for name in start
        if "visual" not in name and any(f".{layer}.weight" in name for layer in LAYERS)
    }
    assert len(linear) >= 14
    assert moved == linear


def test_supervised_fine_tuning_with_lora_ends_in_a_whole_model_too(
    model: Callable[[str], Path], tmp_path: Path
) -> None:
    words = [
        "--model",
        str(model("tiny")),
        *SMALL,
        "--use_cpu",
        "true",
        "--bf16",
        "false",
        "--output_dir",
        str(tmp_path / "run"),
        *LORA,
    ]
    output = sft.run("tiny-sft", words)
    start, end = weights(model("tiny")), weights(output)
    assert start.keys() == end.keys()
    assert any(not torch.equal(start[name], end[name]) for name in start)
    assert json.loads((output / "perception_r1.json").read_text())["task"] == "ocr"
    evaluate(
        model=output / "checkpoint-1",
        data="scenes:ocr?n=2&seed=9",
        output=tmp_path / "evaluation",
        max_new_tokens=4,
    )


def test_embeddings_that_are_trained_whole_are_kept(
    model: Callable[[str], Path], tmp_path: Path
) -> None:
    output = trained(
        model("tiny"),
        tmp_path / "run",
        "--lora_target_modules",
        "q_proj",
        "--lora_modules_to_save",
        "lm_head",
    )
    start, end = weights(model("tiny")), weights(output)
    embedding = start["model.language_model.embed_tokens.weight"]
    assert torch.equal(end["model.language_model.embed_tokens.weight"], embedding)
    assert not torch.equal(end["lm_head.weight"], embedding)  # the two were one tensor


# --- an intermediate checkpoint --------------------------------------------------------------------------------------
def test_a_checkpoint_is_as_complete_as_the_last_and_names_its_base(
    model: Callable[[str], Path], run: Path
) -> None:
    last = json.loads((run / "perception_r1.json").read_text())
    for name in ("checkpoint-1", "checkpoint-2", "adapter"):
        assert json.loads((run / name / "perception_r1.json").read_text()) == last
        assert (run / name / "processor_config.json").is_file()
        base = json.loads((run / name / "adapter_config.json").read_text())[
            "base_model_name_or_path"
        ]
        assert base == str(model("qwen2_5_vl"))
    assert (last["task"], last["dialect"], last["base"]) == (
        "ocr",
        "qwen2.5-vl",
        str(model("qwen2_5_vl")),
    )
    assert {"prompt", "thinking", "matching", "weights", "iou_shape"} <= last.keys()
    assert last["image"] == {"min_pixels": 3136, "max_pixels": 20_000}


def test_the_last_checkpoint_merged_is_the_runs_own_model(run: Path, tmp_path: Path) -> None:
    merged = merge(run / "checkpoint-2", tmp_path / "merged")
    a, b = weights(merged), weights(run)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    first = weights(merge(run / "checkpoint-1", tmp_path / "first"))
    assert any(not torch.equal(a[name], first[name]) for name in a)


def test_a_checkpoint_answers_as_the_model_that_is_merged_of_it(run: Path, tmp_path: Path) -> None:
    merged = merge(run / "checkpoint-1", tmp_path / "merged")
    found = []
    for name, folder in (("adapter", run / "checkpoint-1"), ("merged", merged), ("last", run)):
        evaluate(
            model=folder, data="scenes:ocr?n=3&seed=9", output=tmp_path / name, max_new_tokens=12
        )
        found.append(
            [
                json.loads(line)["completion"]
                for line in (tmp_path / name / "answers.jsonl").read_text().splitlines()
            ]
        )
    assert found[0] == found[1]
    assert found[0] != found[2]  # one step more
    about = json.loads((tmp_path / "adapter" / "metrics.json").read_text())
    assert about["settings"]["dialect"] == "qwen2.5-vl"
    assert about["model"]["image"]["max_pixels"] == 20_000


def test_which_weights_answered_depends_on_the_adapter_and_on_its_base(
    run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run / "checkpoint-1", tmp_path / "copy")
    revisions = {
        TransformersBackend(folder).about(4)["revision"]
        for folder in (run / "checkpoint-1", tmp_path / "copy")
    }
    assert len(revisions) == 1
    own = {
        name: tensor + 1
        for name, tensor in load_file(tmp_path / "copy" / "adapter_model.safetensors").items()
    }
    save_file(own, tmp_path / "copy" / "adapter_model.safetensors", metadata={"format": "pt"})
    assert TransformersBackend(tmp_path / "copy").about(4)["revision"] not in revisions


def test_the_demo_shows_a_checkpoint(run: Path) -> None:
    base, policy = load_policies(str(run / "checkpoint-1"), str(run), device="cpu")
    assert base.backend.dialect.name == policy.backend.dialect.name == "qwen2.5-vl"


@pytest.mark.parametrize("named", ["tiny", "relative"])
def test_the_base_is_found_from_another_folder(
    model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(WEIGHTS if named == "tiny" else model("tiny"), tmp_path / "relative")
    output = trained(Path(named), Path("run"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    merged = merge(tmp_path / output / "checkpoint-2", Path("merged"))
    assert all(
        torch.equal(tensor, weights(merged)[name])
        for name, tensor in weights(tmp_path / output).items()
    )


def test_the_base_of_a_hub_is_asked_for_at_its_revision(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict]] = []
    folder = tmp_path / "adapter"
    shutil.copytree(run / "checkpoint-1", folder)
    settings = json.loads((folder / "perception_r1.json").read_text()) | {
        "base": "someone/policy",
        "revision": "v2",
    }
    (folder / "perception_r1.json").write_text(json.dumps(settings))
    config = json.loads((folder / "adapter_config.json").read_text()) | {
        "base_model_name_or_path": "someone/policy"
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))

    known = transformers.AutoConfig.from_pretrained(WEIGHTS)

    def config_of(name: str, **options: object) -> object:
        asked.append((name, options))
        return known

    def refuse(name: str, **options: object) -> None:
        asked.append((name, options))
        raise OSError("not here")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", config_of)
    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", refuse)
    with pytest.raises(BadData, match="adapter on someone/policy' could not be loaded: not here"):
        merge(folder, tmp_path / "merged")
    assert len(asked) == 2  # the config, then the weights
    assert {(name, options["revision"]) for name, options in asked} == {("someone/policy", "v2")}
    assert not list(tmp_path.glob("*merged*"))


# --- merging ---------------------------------------------------------------------------------------------------------
TIED = (
    {"target_modules": ["q_proj", "v_proj"]},
    {"target_modules": ["embed_tokens", "q_proj"]},
    {"target_modules": ["lm_head", "q_proj"]},
    {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    {"target_modules": "all-linear", "use_dora": True, "use_rslora": True},
)


@pytest.mark.parametrize("lora", TIED, ids=lambda lora: "-".join(map(str, lora.values())))
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
def test_a_merged_model_is_the_model_with_its_adapter_also_where_embeddings_are_tied(
    model: Callable[[str], Path], tmp_path: Path, lora: dict
) -> None:
    adapted = random_adapter(model("qwen3_vl"), tmp_path / "adapter", **lora)
    merged = merge(tmp_path / "adapter", tmp_path / "merged")
    again = transformers.AutoModelForImageTextToText.from_pretrained(merged, dtype=torch.float32)
    expected = logits(adapted)
    assert (logits(again) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (
        expected - logits(adapted.get_base_model().__class__.from_pretrained(model("qwen3_vl")))
    ).abs().max() > 0.1


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_an_adapter_that_peft_alone_wrote_gets_its_bases_processor(
    model: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    random_adapter(model(family), tmp_path / "adapter", target_modules=["q_proj"])
    merged = merge(tmp_path / "adapter", tmp_path / "merged", dtype="bfloat16")
    assert {tensor.dtype for tensor in weights(merged).values()} == {torch.bfloat16}
    found = [
        TransformersBackend(folder, dtype="bfloat16") for folder in (tmp_path / "adapter", merged)
    ]
    assert [backend.dialect.name for backend in found] == [
        {"qwen2_vl": "qwen2-vl", "qwen2_5_vl": "qwen2.5-vl"}[family]
    ] * 2
    assert torch.equal(logits(found[0].model), logits(found[1].model))


def command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out + said.err


def test_the_command_takes_a_run_by_its_adapter(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = command(capsys, "merge", run, "-o", tmp_path / "merged")
    assert (code, said.splitlines()[0]) == (0, f"wrote {tmp_path / 'merged'}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged"]
    assert (tmp_path / "merged" / "perception_r1.json").is_file()
    assert all(
        torch.equal(tensor, weights(tmp_path / "merged")[name])
        for name, tensor in weights(run).items()
    )


def test_the_command_refuses_in_one_line(
    model: Callable[[str], Path], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep me")
    (tmp_path / "file").write_text("keep me")
    other, kind, torn, none = (tmp_path / name for name in ("other", "kind", "torn", "none"))
    for folder in (other, kind, torn, none):
        shutil.copytree(run / "checkpoint-1", folder)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "perception_r1.json").unlink()
    (other / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": str(model("tiny"))})
    )
    (kind / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3"}))
    (torn / "adapter_model.safetensors").write_bytes(b"cut off")
    (none / "adapter_model.safetensors").unlink()
    new = tmp_path / "new"
    for folder, output, expected in (
        (run / "checkpoint-1", tmp_path / "full", "full: found something there"),
        (run / "checkpoint-1", tmp_path / "file", "file: found something there"),
        (model("qwen2_5_vl"), new, "found a whole model, which needs no merging"),
        (tmp_path / "full", new, "found no adapter_config.json"),
        (tmp_path / "nowhere", new, "found no such folder"),
        (other, new, "does not fit its base"),
        (kind, new, "found peft_type IA3, expected LORA"),
        (torn, new, "could not be loaded"),
        (none, new, "expected adapter_model.safetensors, found none"),
    ):
        code, said = command(capsys, "merge", folder, "-o", output)
        assert code == 1
        assert expected in said.splitlines()[-1], said
        assert not new.exists()
    assert [path.read_text() for path in (tmp_path / "full").iterdir()] == ["keep me"]


def test_weights_that_have_no_place_in_the_base_are_not_left_out(
    model: Callable[[str], Path], tmp_path: Path
) -> None:
    random_adapter(model("qwen2_vl"), tmp_path / "adapter", target_modules=["q_proj"])
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    own = load_file(path)
    renamed = {name.replace("layers.1.", "layers.7."): tensor for name, tensor in own.items()}
    save_file(renamed, path, metadata={"format": "pt"})
    with pytest.raises(BadData, match="2 weights have no place in it, as .*layers.7"):
        merge(tmp_path / "adapter", tmp_path / "merged")
    save_file(
        {name: tensor for name, tensor in own.items() if "layers.1." not in name},
        path,
        metadata={"format": "pt"},
    )
    with pytest.raises(BadData, match="2 weights are not there, as .*layers.1"):
        merge(tmp_path / "adapter", tmp_path / "merged")


def test_an_adapter_is_no_model_to_train_on_and_the_remedy_is_named(
    run: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        BadData,
        match="found an adapter, expected a whole model: perception-r1 merge .*checkpoint-1 -o",
    ):
        trained(run / "checkpoint-1", tmp_path / "run")


# --- several processes -----------------------------------------------------------------------------------------------
def test_parted_weights_are_saved_by_all_processes_together(
    model: Callable[[str], Path], tmp_path: Path
) -> None:
    """FSDP2 in two processes: an adapter, and a whole model, as one process would write them."""
    shutil.copytree(model("tiny"), tmp_path / "policy")
    in_two_processes("saved_in_parts", tmp_path)
    for name, file in (("adapter", "adapter_model.safetensors"), ("whole", "model.safetensors")):
        parted, expected = (
            load_file(tmp_path / name / file),
            load_file(tmp_path / f"expected-{name}" / file),
        )
        assert parted.keys() == expected.keys()
        assert all(torch.equal(parted[key], expected[key]) for key in expected)
    merged = merge(tmp_path / "adapter", tmp_path / "merged")
    assert any(
        not torch.equal(tensor, weights(tmp_path / "policy")[name])
        for name, tensor in weights(merged).items()
    )


def test_two_processes_leave_one_whole_model_and_whole_checkpoints(
    model: Callable[[str], Path], tmp_path: Path
) -> None:
    words = ["--model", str(model("tiny")), *GRPO_RUN, "--output_dir", str(tmp_path / "run"), *LORA]
    (tmp_path / "words.json").write_text(json.dumps([*words, "--per_device_train_batch_size", "4"]))
    in_two_processes("staged", tmp_path)
    assert (tmp_path / "run" / "checkpoint-1" / MARKER).is_file()
    assert len(list((tmp_path / "run" / "checkpoint-1").glob("rng_state_*.pth"))) == 2
    merged = merge(tmp_path / "run" / "checkpoint-2", tmp_path / "merged")
    assert all(
        torch.equal(tensor, weights(merged)[name])
        for name, tensor in weights(tmp_path / "run").items()
    )
