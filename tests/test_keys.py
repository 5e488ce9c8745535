"""Keys of a recipe: each is honoured, or refused in one line. None is accepted and swallowed."""

import importlib.util
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from trl import GRPOConfig, ModelConfig, SFTConfig

from perception_r1 import recipes
from perception_r1.policy import tiny
from perception_r1.records import BadData
from perception_r1.training import grpo, loading, prepare
from perception_r1.training.keys import HONOURED, NEEDS, OURS, OVERRULED, REFUSED
from perception_r1.training.loading import adapter_config, init_kwargs, quantization
from perception_r1.training.recipe import RecipeArguments, load_recipe

CPU = ["--use_cpu", "true", "--bf16", "false"]


def grpo_recipe(*words: str):
    return load_recipe("quickstart", words, GRPOConfig)


def sft_recipe(*words: str):
    return load_recipe("tiny-sft", words, SFTConfig)


def test_every_key_of_trls_model_config_is_honoured_or_refused() -> None:
    """A key that a new TRL brings is in neither table: read what it does, and add it to one."""
    assert {field.name for field in fields(ModelConfig)} == HONOURED.keys() | REFUSED.keys()
    assert not HONOURED.keys() & REFUSED.keys()
    assert NEEDS.keys() <= HONOURED.keys()


def test_the_other_tables_name_keys_that_there_are() -> None:
    for kind, names in OVERRULED.items():
        assert names.keys() <= {field.name for field in fields(kind)}
    for names in OURS.values():
        assert set(names) <= {field.name for field in fields(RecipeArguments)}


def test_no_recipe_of_the_package_is_refused() -> None:
    for name in recipes.names():
        config = GRPOConfig if "num_generations" in recipes.read(name) else SFTConfig
        load_recipe(name, CPU, config)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--model_name_or_path", "a/b"],
            "model_name_or_path is 'a/b': the model of a run is our key `model`",
        ),
        (
            ["--trust_remote_code", "true"],
            "trust_remote_code is true: code of a model's own is never run",
        ),
        (
            ["--load_in_4bit", "true"],
            "load_in_4bit is True, which does nothing without use_peft: add --use_peft true",
        ),
        (
            ["--load_in_8bit", "true", "--use_peft", "false"],
            "load_in_8bit is True, which does nothing without use_peft",
        ),
        (
            ["--lora_r", "16"],
            "lora_r is 16, which does nothing without use_peft: add --use_peft true, or leave it out",
        ),
        (
            ["--lora_target_modules", "q_proj"],
            "lora_target_modules is 'q_proj', which does nothing without use_peft",
        ),
        (["--use_dora", "true"], "use_dora is True, which does nothing without use_peft"),
        (
            ["--use_peft", "true", "--bnb_4bit_quant_type", "fp4"],
            "bnb_4bit_quant_type is 'fp4', .*without load_in_4bit",
        ),
        (
            ["--use_peft", "true", "--load_in_8bit", "true", "--use_bnb_nested_quant", "true"],
            "use_bnb_nested_quant",
        ),
        (
            ["--use_peft", "true", "--load_in_8bit", "true", "--load_in_4bit", "true"],
            "8 bit and 4 bit",
        ),
        (
            ["--use_peft", "true", "--lora_task_type", "SEQ_CLS"],
            "lora_task_type is 'SEQ_CLS', expected CAUSAL_LM",
        ),
        (
            ["--model_init_kwargs", '{"trust_remote_code": true}'],
            "model_init_kwargs: found trust_remote_code",
        ),
        (
            ["--model_init_kwargs", '{"revision": "v2"}'],
            "model_init_kwargs: found revision.*write --model_revision",
        ),
        (
            ["--model_init_kwargs", '{"quantization_config": {"load_in_4bit": true}}'],
            "found quantization_config.*write --load_in_4bit true",
        ),
        (
            ["--dtype", "float32", "--model_init_kwargs", '{"dtype": "bfloat16"}'],
            "dtype is 'float32', and 'bfloat16' in model_init_kwargs: leave one out",
        ),
        (
            ["--remove_unused_columns", "true"],
            "remove_unused_columns is True, which a run sets to false",
        ),
        (
            ["--resume_from_checkpoint", "runs/x/checkpoint-2"],
            "resume_from_checkpoint: write --resume true",
        ),
        (["--turns", "4"], "turns is a key of perception-r1 sft"),
        (["--dtype", "float8"], "dtype"),
    ],
)
def test_what_a_grpo_run_would_not_heed_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(BadData, match=message) as refused:
        grpo_recipe(*words)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--max_length", "2048"],
            "max_length is 2048, which a run sets to none, because a cut conversation would lose",
        ),
        (
            ["--assistant_only_loss", "false"],
            "assistant_only_loss is False, which a run sets to true",
        ),
        (
            ["--completion_only_loss", "true"],
            "completion_only_loss is True, which a run sets to none",
        ),
        (["--dataset_kwargs", '{"a": 1}'], "dataset_kwargs is"),
        (["--remove_unused_columns", "true"], "remove_unused_columns is True"),
        (
            ["--packing", "true"],
            "packing is True, which a run sets to false, because every conversation has its picture",
        ),
        (["--padding_free", "true"], "padding_free is True"),
        (["--shuffle_dataset", "true"], "shuffle_dataset is True"),
        (["--trust_remote_code", "true"], "trust_remote_code is true"),
        (["--load_in_4bit", "true"], "load_in_4bit is True, which does nothing without use_peft"),
        (["--eval_data", "scenes:ocr"], "eval_data is a key of perception-r1 grpo"),
        (["--weights", "format=0"], "weights is a key of perception-r1 grpo"),
    ],
)
def test_what_supervised_fine_tuning_would_not_heed_is_refused(
    words: list[str], message: str
) -> None:
    with pytest.raises(BadData, match=message) as refused:
        sft_recipe(*words)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "words",
    [
        ["--remove_unused_columns", "false"],
        ["--lora_r", "16", "--use_peft", "false"],  # who says false has decided
        ["--load_in_4bit", "false", "--bnb_4bit_quant_type", "nf4"],
        ["--trust_remote_code", "false"],
        ["--model_init_kwargs", '{"use_kernels": false, "dtype": "bfloat16"}'],
        ["--model_revision", "main"],
        ["--turns", "1"],
    ],
)
def test_what_changes_nothing_is_no_reason_to_stop(words: list[str]) -> None:
    grpo_recipe(*words)


def test_a_value_that_trl_does_not_know_is_refused_in_a_file_too(tmp_path: Path) -> None:
    for line, name in (
        ("dtype: float8", "dtype"),
        ("use_peft: true\nload_in_4bit: true\nbnb_4bit_quant_type: int4", "bnb_4bit_quant_type"),
    ):
        (tmp_path / "mine.yaml").write_text(
            f"model: tiny\ndata: x.jsonl\nuse_cpu: true\nbf16: false\n{line}\n"
        )
        with pytest.raises(BadData, match=f"{name} is .*: expected one of"):
            load_recipe(str(tmp_path / "mine.yaml"), [], GRPOConfig)


def test_a_curriculum_and_shuffling_contradict_each_other() -> None:
    curriculum = ["--curriculum", "edit", "--difficulty", "d.jsonl"]
    with pytest.raises(
        BadData, match="shuffle_dataset is True, .*a curriculum has an order of its own"
    ):
        grpo_recipe(*curriculum, "--shuffle_dataset", "true")
    grpo_recipe(*curriculum)


# --- revision, type, attention ---------------------------------------------------------------------------------------
def test_a_revision_is_that_of_processor_config_and_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def snapshot(name: str, **options: object) -> str:
        asked.append((name, options["revision"]))
        tiny.save_untrained(tmp_path / "snapshot")
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(prepare, "snapshot_download", snapshot)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = [
        "--model",
        "someone/policy",
        "--model_revision",
        "v2",
        "--task",
        "ocr",
        "--data",
        "scenes:ocr?n=2",
        "--eval_data",
        "scenes:ocr?n=2&split=test",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    ours, args, model_args = grpo_recipe(*words)
    ready = prepare.prepare(ours, args, revision=model_args.model_revision)
    assert asked == [("someone/policy", "v2")]
    assert ready.model == str(tmp_path / "snapshot")
    assert prepare.at_revision("someone/policy", "main") == "someone/policy"


def test_a_folder_has_no_revisions(tmp_path: Path) -> None:
    with pytest.raises(
        BadData,
        match="model_revision is 'v2', but model .* is a folder, which has none: leave it out",
    ):
        prepare.at_revision(str(tmp_path), "v2")


def test_type_and_attention_reach_the_model() -> None:
    _, args, model_args = grpo_recipe("--dtype", "bfloat16", "--attn_implementation", "eager")
    assert init_kwargs(args, model_args) == {"dtype": "bfloat16", "attn_implementation": "eager"}


# --- 4 and 8 bit -----------------------------------------------------------------------------------------------------
QLORA = ["--use_peft", "true", "--load_in_4bit", "true"]


def pretend_installed(
    monkeypatch: pytest.MonkeyPatch, available: bool, problem: Exception | None = None
) -> None:
    def validate(**_: object) -> bool:
        if problem:
            raise problem
        return True

    monkeypatch.setattr(loading, "is_bitsandbytes_available", lambda: available)
    monkeypatch.setattr(loading, "validate_bnb_backend_availability", validate)
    monkeypatch.setattr(
        "importlib.metadata.version", lambda _: "0.50.0"
    )  # BitsAndBytesConfig looks for itself


def test_a_model_in_4_bit_is_asked_for_as_trl_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, True)
    _, args, model_args = grpo_recipe(
        *QLORA,
        "--dtype",
        "bfloat16",
        "--use_bnb_nested_quant",
        "true",
        "--bnb_4bit_quant_type",
        "fp4",
    )
    found = quantization(model_args)
    assert (found.load_in_4bit, found.bnb_4bit_quant_type, found.bnb_4bit_use_double_quant) == (
        True,
        "fp4",
        True,
    )
    assert found.bnb_4bit_compute_dtype == torch.bfloat16
    assert init_kwargs(args, model_args)["device_map"] == {
        "": "cpu"
    }  # use_cpu, also where there is a GPU
    _, _, model_args = grpo_recipe("--use_peft", "true", "--load_in_8bit", "true")
    assert quantization(model_args).load_in_8bit
    assert quantization(grpo_recipe()[2]) is None


def test_without_bitsandbytes_a_run_says_so_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = [
        *QLORA,
        "--data",
        "nowhere.jsonl",
        "--model",
        "no/model",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    pretend_installed(monkeypatch, False)
    with pytest.raises(
        BadData,
        match="load_in_4bit: bitsandbytes is not installed, or too old: pip install -U bitsandbytes",
    ):
        grpo.run("quickstart", words)
    pretend_installed(
        monkeypatch, True, RuntimeError("None of the available devices\nare supported")
    )
    with pytest.raises(BadData, match="load_in_4bit: None of the available devices are supported"):
        grpo.run("quickstart", words)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
@pytest.mark.parametrize("bits", ["--load_in_4bit", "--load_in_8bit"])
def test_a_run_in_few_bits_trains_an_adapter_and_leaves_a_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kinds, save = set(), grpo._save

    def look(trainer: Any, folder: Path) -> None:
        kinds.update(type(module).__name__ for module in trainer.model.modules())
        save(trainer, folder)

    monkeypatch.setattr(grpo, "_save", look)
    words = [
        "--task",
        "ocr",
        "--data",
        "scenes:ocr?n=8&seed=3",
        "--eval_data",
        "",
        "--max_steps",
        "1",
        "--max_completion_length",
        "8",
    ]
    words += [
        "--per_device_train_batch_size",
        "8",
        "--num_generations",
        "4",
        "--output_dir",
        str(tmp_path / "run"),
        "--use_peft",
        "true",
    ]
    output = grpo.run("quickstart", [*words, bits, "true"])
    assert (output / "adapter" / "adapter_model.safetensors").is_file()
    assert {"--load_in_4bit": "Linear4bit", "--load_in_8bit": "Linear8bitLt"}[bits] in kinds
    whole = transformers.AutoModelForImageTextToText.from_pretrained(output)
    assert {parameter.dtype for parameter in whole.parameters()} == {torch.float32}


# --- layers of an adapter --------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("policy")
    tiny.save_untrained(folder)
    return str(folder)


def adapter(policy: str, *words: str):
    return adapter_config(policy, grpo_recipe("--use_peft", "true", *words)[2])


def test_what_a_recipe_says_of_lora_reaches_peft(policy: str) -> None:
    words = [
        "--lora_r",
        "8",
        "--lora_alpha",
        "4",
        "--lora_dropout",
        "0.1",
        "--use_rslora",
        "true",
        "--use_dora",
        "true",
    ]
    found = adapter(
        policy, *words, "--lora_target_modules", "q_proj", "--lora_modules_to_save", "lm_head"
    )
    assert (found.r, found.lora_alpha, found.lora_dropout, found.use_rslora, found.use_dora) == (
        8,
        4,
        0.1,
        True,
        True,
    )
    assert found.target_modules == {"q_proj"} or list(found.target_modules) == [
        "q_proj"
    ]  # a single name is a name
    assert found.modules_to_save == ["lm_head"]
    assert adapter(policy, "--lora_target_modules", "all-linear").target_modules == "all-linear"
    assert (
        adapter(policy, "--lora_target_modules", r".*layers\.0\..*v_proj").target_modules
        == r".*layers\.0\..*v_proj"
    )
    only = adapter(policy, "--lora_target_parameters", "down_proj.weight")
    assert (only.target_modules, only.target_parameters) == (None, ["down_proj.weight"])
    assert adapter_config(policy, grpo_recipe()[2]) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--lora_target_modules", "q_proj", "v_porj"],
            "lora_target_modules: no part of model .* is called 'v_porj': did you mean v_proj",
        ),
        (
            ["--lora_target_modules", "c_attn"],
            "lora_target_modules: no part of model .* is called 'c_attn'",
        ),
        (
            ["--lora_target_modules", ".*decoder.*"],
            "lora_target_modules: the pattern '.*decoder.*' fits no part",
        ),
        (
            ["--lora_modules_to_save", "score"],
            "lora_modules_to_save: no part of model .* is called 'score'",
        ),
        (["--lora_target_parameters", "experts"], "lora_target_parameters: no part of model"),
        (
            ["--lora_target_modules", "q_proj", "lm_head"],
            "lm_head takes no adapter: train it whole, --lora_modules_to_save",
        ),
    ],
)
def test_a_layer_that_is_not_there_is_refused(policy: str, words: list[str], message: str) -> None:
    with pytest.raises(BadData, match=message):
        adapter(policy, *words)


def test_bf16_auto_may_be_typed_as_it_is_written_in_a_recipe() -> None:
    for words in (["--bf16", "auto"], ["--bf16=auto"]):
        _, args, _ = grpo_recipe(*words)
        assert args.bf16 is (torch.cuda.is_available() and torch.cuda.is_bf16_supported())


def test_a_pattern_of_layers_that_is_none_is_one_line() -> None:
    with pytest.raises(BadData, match=r"lora_target_modules: found '\*_proj' \(nothing to repeat.*, expected names, or a regular"):
        loading._check_names("lora_target_modules", "*_proj", ["a.q_proj"], "tiny")


def test_rollouts_of_processes_that_are_no_more_are_cleared_too(tmp_path: Path) -> None:
    for index in (0, 1, 2, 3):
        (tmp_path / f"rollouts-{index}.jsonl").write_text("")
    of = {}
    for index in (0, 1):
        args = SimpleNamespace(output_dir=str(tmp_path), process_index=index, world_size=2)
        of[index] = [part.name for part in grpo._rollout_parts(args)]
    assert of == {0: ["rollouts-0.jsonl", "rollouts-2.jsonl", "rollouts-3.jsonl"], 1: ["rollouts-1.jsonl"]}
