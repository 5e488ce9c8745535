"""Rollouts that prefill a prompt once are transformers' own: the same tokens from the same draws, the same distribution from others."""

import pytest
import torch
import transformers
from scipy.stats import chi2_contingency
from tests.small_families import FAMILIES, Prompts, prompts, small_model
from torch import Tensor

from perception_r1.training import rollouts
from perception_r1.training.cpu import packed_linears
from perception_r1.training.rollouts import prefill_once
from perception_r1.training.static_decode import StaticSteps

GRIDS = [[(4, 4)], [(4, 8), (8, 4)]]
ENDS = list(range(10, 24))
"""Tokens that end an answer: so many that answers end at different times."""


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def inputs_of(given: Prompts) -> dict[str, Tensor]:
    images = {"pixel_values": given.pixel_values, "image_grid_thw": given.grid}
    return {"input_ids": given.ids, "attention_mask": given.mask, "mm_token_type_ids": given.types, **images}


def stock(model: transformers.PreTrainedModel, given: Prompts, group: int, seed: int = 0, **settings: object) -> Tensor:
    """transformers' own generate, with every prompt, and its pixels, `group` times."""
    torch.manual_seed(seed)
    own = {name: rows.repeat_interleave(group, 0) for name, rows in inputs_of(given).items() if len(rows) == len(given.ids)}
    return model.generate(**own | given.rows(group), **settings)


def ours(model: transformers.PreTrainedModel, given: Prompts, group: int, seed: int = 0, **settings: object) -> Tensor:
    torch.manual_seed(seed)
    with prefill_once(model, group):
        return model.generate(**inputs_of(given), **settings)


def lengths(tokens: Tensor, prompt: int) -> list[int]:
    """Tokens of each answer, up to the first that ends it."""
    ended = torch.isin(tokens[:, prompt:], torch.tensor(ENDS))
    return [int(row.int().argmax()) + 1 if row.any() else tokens.shape[1] - prompt for row in ended]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_rollouts_are_the_tokens_of_repeated_rows(family: str) -> None:
    model, given = small_model(family).eval(), prompts(GRIDS)
    settings = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": ENDS}
    expected = stock(model, given, 3, **settings)
    assert torch.equal(ours(model, given, 3, **settings), expected)
    assert torch.equal(expected[0], expected[1])
    alone = prompts(GRIDS[1:], seed=3)  # one prompt: no padding, so transformers passes no mask
    assert torch.equal(ours(model, alone, 2, **settings), stock(model, alone, 2, **settings))


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_rollouts_are_the_tokens_of_repeated_rows_from_the_same_draws(family: str) -> None:
    model, given = small_model(family).eval(), prompts(GRIDS)
    settings = {"do_sample": True, "max_new_tokens": 12, "eos_token_id": ENDS}
    found, expected = ours(model, given, 8, **settings), stock(model, given, 8, **settings)
    assert torch.equal(found, expected)
    assert len(set(lengths(found, given.ids.shape[1]))) >= 4  # answers end at different times
    assert not torch.equal(found, ours(model, given, 8, seed=1, **settings))
    follows = torch.rand(1)
    stock(model, given, 8, seed=1, **settings)
    assert torch.equal(torch.rand(1), follows)  # and what is drawn after them is the same


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.5, "top_p": 0.8},
        {"top_k": 5, "repetition_penalty": 1.3},
        {"min_p": 0.05, "min_new_tokens": 4},
        {"no_repeat_ngram_size": 1, "encoder_repetition_penalty": 1.5},
        {"group": 1},
    ],
    ids=str,
)
def test_every_sampling_setting_is_transformers_own(settings: dict) -> None:
    model, given = small_model("qwen2_5_vl").eval(), prompts(GRIDS)
    settings = {"do_sample": True, "max_new_tokens": 8, "eos_token_id": ENDS, "group": 4} | settings
    assert torch.equal(ours(model, given, **settings), stock(model, given, **settings))


def test_rollouts_from_other_draws_have_the_same_distribution() -> None:
    model, given = small_model("qwen2_vl", layers=1).eval(), prompts([[(4, 4)]])

    def counts(sample, seed: int, **settings: object) -> Tensor:
        tokens = sample(model, given, 800, seed=seed, do_sample=True, max_new_tokens=2, eos_token_id=[2], **settings)[:, given.ids.shape[1] :]
        return torch.stack([torch.bincount(column, minlength=120) for column in tokens.T])

    def chance(a: Tensor, b: Tensor) -> float:
        """How likely two samples of one distribution differ this much: the smaller of both tokens' χ² tests; rare tokens count together."""
        tables = []
        for x, y in zip(a, b, strict=True):
            often = x + y >= 20
            tables.append(torch.stack([torch.cat([side[often], side[~often].sum()[None]]) for side in (x, y)]))
        return min(float(chi2_contingency(table[:, table.sum(0) > 0]).pvalue) for table in tables)

    reference = counts(stock, seed=1)
    assert chance(counts(ours, seed=2), reference) > 0.01
    assert chance(counts(ours, seed=2, temperature=0.5), reference) < 1e-3  # the test does see a difference


def test_a_prompt_is_encoded_and_prefilled_once_and_finished_rows_leave_the_forward() -> None:
    model, given = small_model("qwen2_vl").eval(), prompts(GRIDS)
    rows, encoded = [], []
    model.model.language_model.layers[0].register_forward_pre_hook(lambda _, args, kwargs: rows.append(args[0].shape[:2]), with_kwargs=True)
    model.model.visual.register_forward_pre_hook(lambda _, args, kwargs: encoded.append(len(args[0])), with_kwargs=True)
    found = ours(model, given, 8, do_sample=True, max_new_tokens=16, eos_token_id=ENDS)
    assert encoded == [len(given.pixel_values)]
    ends = lengths(found, given.ids.shape[1])
    assert rows[0] == given.ids.shape
    assert [tuple(shape) for shape in rows[1:]] == [(sum(end > step for end in ends), 1) for step in range(1, max(ends))]
    assert rows[-1][0] < 16


def test_a_process_that_has_finished_goes_on_with_one_row_until_all_have(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = small_model("qwen2_vl").eval(), prompts(GRIDS)
    settings = {"do_sample": True, "max_new_tokens": 6, "eos_token_id": ENDS}
    expected = ours(model, given, 4, **settings)
    rows, asked = [], []

    def others_need_ten_tokens(waiting: Tensor) -> None:
        asked.append(waiting.item())
        waiting += len(asked) < 10

    monkeypatch.setattr(rollouts, "_sharded", lambda model: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", others_need_ten_tokens)
    model.model.language_model.layers[0].register_forward_pre_hook(lambda _, args, kwargs: rows.append(len(args[0])), with_kwargs=True)
    found = ours(model, given, 4, **settings)
    assert torch.equal(found, expected)
    assert len(rows) == 10
    assert rows[-4:] == [1, 1, 1, 1]
    assert asked[5:] == [0.0] * 5


def test_generate_is_itself_again_afterwards_even_after_an_error() -> None:
    model = small_model("qwen2_vl")
    before = model.generate
    with pytest.raises(RuntimeError, match="stop"), prefill_once(model, 2):
        raise RuntimeError("stop")
    assert model.generate == before
    assert "generate" not in vars(model)


@torch.no_grad()
def test_packed_layers_multiply_as_they_did_and_are_given_back() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(96, 130), torch.nn.Linear(130, 64, bias=False), torch.nn.Linear(64, 8).double())
    states, last = torch.randn(5, 1, 96), torch.randn(3, 64).double()
    expected = model[:2](states)
    with packed_linears(model, 5):
        assert torch.allclose(model[:2](states), expected, rtol=0, atol=1e-6)
        assert torch.allclose(model[:2](states[:2]), expected[:2], rtol=0, atol=1e-6)  # rows that have finished leave
        assert "forward" in vars(model[0])
        assert torch.equal(model[2](last), torch.nn.functional.linear(last, model[2].weight, model[2].bias))
        assert "forward" not in vars(model[2])  # float64 is not touched
    assert all("forward" not in vars(layer) for layer in model)
    model[0].weight.zero_()
    assert torch.equal(model[0](states), model[0].bias.expand(5, 1, -1))  # and what was packed is forgotten


@pytest.fixture
def fixed_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of fixed shapes on a CPU, where they are run and not recorded; their buffers end after three tokens, then after six more."""
    monkeypatch.setattr(rollouts, "can_record", lambda *_: True)
    monkeypatch.setattr(StaticSteps, "ROOM", 3)


@pytest.mark.usefixtures("fixed_shapes")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampled"])
def test_steps_of_fixed_shapes_give_the_same_tokens(family: str, sample: bool) -> None:
    model, given = small_model(family).eval(), prompts(GRIDS)
    settings = {"do_sample": sample, "max_new_tokens": 12, "eos_token_id": ENDS if sample else [2]}
    found = ours(model, given, 24, **settings)
    follows = torch.rand(1)
    assert torch.equal(found, stock(model, given, 24, **settings))
    assert torch.equal(torch.rand(1), follows)
    assert found.shape[1] - given.ids.shape[1] > 9  # beyond the second buffers


@pytest.mark.usefixtures("fixed_shapes")
def test_steps_of_fixed_shapes_keep_shape_and_place() -> None:
    """What a CUDA graph repeats: the same inputs of the same shape at the same address, until the buffers end."""
    model, given = small_model("qwen2_vl").eval(), prompts(GRIDS)
    calls = []

    def noted(_: object, args: tuple, kwargs: dict) -> None:
        cache = kwargs["past_key_values"].layers[0]
        states = (kwargs["attention_mask"], kwargs["position_ids"], getattr(cache, "keys", None))
        calls.append([(tuple(state.shape), state.data_ptr()) for state in states if isinstance(state, Tensor)])

    model.register_forward_pre_hook(noted, with_kwargs=True)
    ours(model, given, 4, do_sample=True, max_new_tokens=9, min_new_tokens=9)
    assert len(calls) == 9  # the prompts, then a call for each token but the last
    assert calls[1] == calls[2] == calls[3]
    assert calls[4] == calls[5] == calls[8]
    assert calls[3] != calls[4]


def test_a_step_is_recorded_on_a_gpu_only_where_nothing_forbids_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("qwen2_vl")
    assert not rollouts.can_record(model, False)
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    assert rollouts.can_record(model, False)
    assert not rollouts.can_record(model, True)
    model.set_attn_implementation("eager")
    assert not rollouts.can_record(model, False)
