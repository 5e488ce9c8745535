"""What to say about a key that nobody knows: it is gone, of the other trainer, or a slip."""

from collections.abc import Iterable, Mapping

from rapidfuzz.distance import OSA

GONE = {
    "adafactor": "give optim adafactor",
    "chars_per_token": "nothing is packed here",
    "dataset_batch_size": "nothing is packed here",
    "dispatch_batches": "give accelerator_config",
    "evaluation_strategy": "eval_data is measured before and after the training",
    "fp16_backend": "give fp16 or bf16",
    "fp16_opt_level": "give fp16 or bf16",
    "fsdp_min_num_params": "give fsdp_config",
    "fsdp_transformer_layer_cls_to_wrap": "give fsdp_config",
    "group_by_length": "give train_sampling_strategy",
    "half_precision_backend": "give fp16 or bf16",
    "include_inputs_for_metrics": "give include_for_metrics",
    "include_tokens_per_second": "give include_num_input_tokens_seen",
    "jit_mode_eval": "give torch_compile",
    "logging_dir": "logs go to output_dir",
    "max_prompt_length": "a prompt is never cut, as image tokens would be lost; give max_pixels",
    "max_seq_length": "a conversation is never cut, as image tokens would be lost; give max_pixels",
    "no_cuda": "give use_cpu",
    "num_of_sequences": "nothing is packed here",
    "overwrite_output_dir": "name another output_dir, or go on with resume",
    "past_index": "leave it out",
    "per_gpu_eval_batch_size": "give eval_batch_size",
    "per_gpu_train_batch_size": "give per_device_train_batch_size",
    "push_to_hub_model_id": "give hub_model_id",
    "push_to_hub_organization": "give hub_model_id, as organization/name",
    "push_to_hub_token": "give hub_token",
    "ray_scope": "leave it out",
    "save_safetensors": "weights are always saved as safetensors",
    "split_batches": "give accelerator_config",
    "torch_dtype": "give dtype",
    "torchdynamo": "give torch_compile_backend",
    "tpu_num_cores": "leave it out",
    "use_ipex": "leave it out",
    "use_legacy_prediction_loop": "leave it out",
    "use_liger_loss": "give use_liger_kernel",
    "use_mps_device": "the device is found without it",
    "vllm_device": "give vllm_mode",
    "vllm_dtype": "give dtype",
    "vllm_guided_decoding_regex": "give vllm_structured_outputs_regex",
    "vllm_max_model_len": "give vllm_max_model_length",
    "wandb_log_unique_prompts": "give log_unique_prompts",
    "warmup_ratio": "give warmup_steps, which below 1 is a share of the steps",
}
"""Keys that TRL or transformers once had, and what stands in their place. None is back: a test."""

EDITS = 2
"""A key is near another when so many letters at most were mistyped, and one in four."""


def unknown_key(key: str, known: Iterable[str], elsewhere: Mapping[str, Iterable[str]]) -> str:
    """What is the matter with a key that is not `known`; `elsewhere` has other trainers' keys.

    >>> unknown_key("bata", ["beta", "data"], {}), unknown_key("max_seq", ["max_steps", "seed"], {})
    ('did you mean beta or data?', "see docs/task.md for ours and TRL's documentation for the rest")
    """
    if key in GONE:
        return f"TRL and transformers have it no more: {GONE[key]}"
    if others := [name for name, keys in elsewhere.items() if key in keys]:
        return f"it is a key of `perception-r1 {others[0]}`"
    if near := nearest(key, known):
        return f"did you mean {' or '.join(near)}?"
    return "see docs/task.md for ours and TRL's documentation for the rest"


def nearest(key: str, known: Iterable[str]) -> list[str]:
    """The `known` names from which the key is a slip away, all as near as the nearest."""
    most = min(EDITS, len(key) // 4)
    distances = {name: OSA.distance(key, name, score_cutoff=most) for name in known}
    least = min(distances.values(), default=most + 1)
    return sorted(name for name, distance in distances.items() if distance == least <= most)
