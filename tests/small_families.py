"""Small random models of the three families, and prompts with images for them, without tokenizer or processor."""

from dataclasses import dataclass

import torch
import transformers as hf
from torch import Tensor

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
IMAGE, START, END, VIDEO, EOS, VOCABULARY = 5, 3, 4, 6, 2, 120


def small_model(family: str, layers: int = 2, **text_settings: object) -> hf.PreTrainedModel:
    """Two text layers of width 64 with grouped queries, and vision as each family has it (windows; DeepStack)."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    text: dict = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": layers, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True, "rope_parameters": rope, "bos_token_id": None}
    text |= {"eos_token_id": EOS, "pad_token_id": 0, "initializer_range": 0.15} | text_settings
    vision: dict = {"depth": 2, "hidden_size": 64, "num_heads": 4, "initializer_range": 0.1}
    if family == "qwen2_vl":
        vision |= {"embed_dim": 32, "mlp_ratio": 2, "patch_size": 4}
        config, kind = hf.Qwen2VLConfig, hf.Qwen2VLForConditionalGeneration
    elif family == "qwen2_5_vl":
        vision |= {"intermediate_size": 64, "patch_size": 4, "out_hidden_size": 64, "window_size": 16, "fullatt_block_indexes": [1]}
        config, kind = hf.Qwen2_5_VLConfig, hf.Qwen2_5_VLForConditionalGeneration
    else:
        vision |= {"intermediate_size": 64, "patch_size": 4, "out_hidden_size": 64, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
        config, kind = hf.Qwen3VLConfig, hf.Qwen3VLForConditionalGeneration
    special = {"image_token_id": IMAGE, "vision_start_token_id": START, "vision_end_token_id": END, "video_token_id": VIDEO}
    torch.manual_seed(0)
    model = kind(config(text_config=text, vision_config=vision, tie_word_embeddings=True, **special))
    model.generation_config.update(eos_token_id=EOS, pad_token_id=0)
    return model


@dataclass
class Prompts:
    """Prompts (P, T), padded on the left, with their images."""

    ids: Tensor
    mask: Tensor
    types: Tensor
    pixel_values: Tensor
    grid: Tensor
    images: list[int]
    """Images of each prompt."""

    def rows(self, group: int) -> dict[str, Tensor]:
        """What a stock trainer passes: every prompt, with its pixels, `group` times."""
        patches = self.grid.prod(1).tolist()
        by_image = self.pixel_values.split(patches)
        picks = [k for p, count in enumerate(self.images) for _ in range(group) for k in range(sum(self.images[:p]), sum(self.images[:p]) + count)]
        return {"pixel_values": torch.cat([by_image[k] for k in picks]), "image_grid_thw": self.grid[picks]}


def prompts(grids: list[list[tuple[int, int]]], seed: int = 0, dtype: torch.dtype = torch.float32) -> Prompts:
    """One prompt for each entry of `grids`, which lists the (height, width) of its images in patches of 4 pixels; unequal lengths."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number, sizes in enumerate(grids):
        row = [10 + number]
        for height, width in sizes:
            row += [START, *[IMAGE] * (height * width // 4), END, 11]
        rows.append(row + torch.randint(10, VOCABULARY, (3 + 2 * number,), generator=generator).tolist())
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    grid = torch.tensor([(1, height, width) for sizes in grids for height, width in sizes])
    pixels = torch.randn(int(grid.prod(1).sum()), 3 * 2 * 4 * 4, generator=generator, dtype=torch.float64).to(dtype)
    return Prompts(ids=ids, mask=mask, types=(ids == IMAGE).int(), pixel_values=pixels, grid=grid, images=[len(sizes) for sizes in grids])


def completions(count: int, group: int, longest: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Completions (P, G, S) of unequal lengths, padded on the right, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count, group, 1), generator=generator)
    lengths[0, 0] = longest
    mask = (torch.arange(longest) < lengths).long()
    return torch.randint(10, VOCABULARY, (count, group, longest), generator=generator) * mask, mask
