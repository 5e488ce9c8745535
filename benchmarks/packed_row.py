"""Draws the packed row of a small example, from what `pack` really makes: tokens, who attends to whom, and rotary positions.

python benchmarks/packed_row.py -o docs/packed-row.png
"""

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from random_model import config_of
from transformers import Qwen2VLForConditionalGeneration

from perception_r1.training.shared_prefix import Packed, pack

IMAGE, VIDEO, START, END = 5, 6, 3, 4
PROMPT = (START, *(IMAGE,) * 6, END, 10, 11)
NAMES = {START: "<|vision_start|>", IMAGE: "image", END: "<|vision_end|>", 10: "count", 11: "dogs"}
ANSWERS = ((20, 21, 22), (23, 24, 0), (25, 26, 27))
"""Three answers, the second of two tokens and a pad."""
CELL, LEFT, TOP = 26, 190, 150
COLOURS = ("#64748b", "#2563eb", "#d97706", "#059669")
"""The prompt's, and those of the answers."""


def example() -> Packed:
    marks = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(config_of("prototype", **marks))
    prompt, answers = torch.tensor([PROMPT]), torch.tensor([ANSWERS])
    grid = torch.tensor([[1, 4, 6]])  # patches; 2 × 3 image tokens
    masks = {"prompt_mask": torch.ones_like(prompt), "completion_mask": (answers != 0).long()}
    ids = {"prompt_ids": prompt, "completion_ids": answers, "mm_token_type_ids": (prompt == IMAGE).int()}
    return pack(model, **ids, **masks, image_grid_thw=grid)


def sees(packed: Packed) -> torch.Tensor:
    """Who attends to whom, (T, T): the prefix causally to itself, each suffix as the packed mask says."""
    total, prefix = packed.inputs["input_ids"].shape[1], packed.prefix
    seen_TT = torch.zeros(total, total, dtype=torch.bool)
    seen_TT[:prefix, :prefix] = torch.ones(prefix, prefix, dtype=torch.bool).tril()
    mask_LK = packed.inputs["attention_mask"][0, 0]
    for start in range(prefix, total, len(mask_LK)):
        own = slice(start, start + len(mask_LK))
        seen_TT[own, :prefix], seen_TT[own, own] = mask_LK[:, :prefix], mask_LK[:, prefix:]
    return seen_TT


def names_and_colours(packed: Packed) -> list[tuple[str, str]]:
    """What is written at each token, and its colour."""
    ids, length = packed.inputs["input_ids"][0].tolist(), len(ANSWERS[0]) + 1
    found = [(NAMES[token], COLOURS[0]) for token in ids[: packed.prefix]]
    for answer in range(len(ANSWERS)):
        for place, token in enumerate(ids[packed.prefix + answer * length :][:length]):
            name = NAMES[token] if place == 0 else f"answer {answer + 1}, token {place}" if token else "pad"
            found.append((name, COLOURS[answer + 1]))
    return found


def draw(packed: Packed) -> Image.Image:
    tokens, seen_TT = names_and_colours(packed), sees(packed)
    side = len(tokens) * CELL
    picture = Image.new("RGB", (LEFT + side + 90, TOP + side + 40), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=14)
    for row, (name, colour) in enumerate(tokens):
        y = TOP + row * CELL
        pen.text((LEFT - 8, y + CELL / 2), name, fill=colour, font=font, anchor="rm")
        place = ", ".join(str(int(axis)) for axis in packed.inputs["position_ids"][:, 0, row])
        pen.text((LEFT + side + 8, y + CELL / 2), place, fill=colour, font=font, anchor="lm")
        for column in range(len(tokens)):
            x = LEFT + column * CELL
            fill = tokens[column][1] if seen_TT[row, column] else "#f1f5f9"
            pen.rectangle((x + 1, y + 1, x + CELL - 2, y + CELL - 2), fill=fill)
    above = Image.new("RGB", (TOP, side), "white")  # the columns' names, written upwards
    for column, (name, colour) in enumerate(tokens):
        ImageDraw.Draw(above).text((4, column * CELL + CELL / 2), name, fill=colour, font=font, anchor="lm")
    picture.paste(above.transpose(Image.Transpose.ROTATE_90), (LEFT, 0))
    pen.text((LEFT + side + 8, TOP - 8), "t, row, col", fill="#475569", font=font, anchor="ls")
    pen.text((LEFT, TOP + side + 10), "a row attends to the filled columns", fill="#475569", font=font)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/bench/packed-row.png"))
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    draw(example()).quantize(64).save(options.output, optimize=True)
    print(options.output)


if __name__ == "__main__":
    main()
