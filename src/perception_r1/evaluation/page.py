"""What a report is made of: words, tables, drawings, pictures. Each block writes itself as HTML and as Markdown.

The HTML is one file without script, which a policy in its head forbids along with every request. What comes from a model or
from data is text here and nothing else: it is cleaned of characters that cannot be shown, cut to a bounded length, and escaped.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Protocol

from ..visualize import MATCHED, MATCHES, MATCHES_NOT, RULE, TRUTH, UNMATCHED

LONGEST_TEXT = 2_000
"""Characters of a model's answer or of a page's text that are shown."""
LONGEST_WORD = 300
"""Characters of a name, label or caption that are shown."""

_UNSHOWN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
"""Control characters, those that turn the direction of the text around them, and halves of surrogate pairs."""
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#~&])")

_STYLE = f"""
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1f2937; background: #fff; max-width: 1320px; margin: 2rem auto; padding: 0 1.5rem }}
h1 {{ font-size: 1.5rem; margin-bottom: .2rem }} h2 {{ font-size: 1.15rem; margin: 2rem 0 .6rem }} h3 {{ font-size: 1rem; margin: 1.2rem 0 .4rem }}
.quiet {{ color: #6b7280; font-size: .85em }} summary {{ cursor: pointer; font-weight: 600 }} details {{ margin: .6rem 0 }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }} td, p, pre, figcaption, li {{ unicode-bidi: isolate }}
th, td {{ padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #e5e7eb }} td .quiet {{ white-space: nowrap }}
th:first-child, td:first-child {{ text-align: left; overflow-wrap: anywhere; min-width: 9rem }} thead th {{ border-bottom: 2px solid #9ca3af }}
.scroll {{ overflow-x: auto }} .ours td {{ background: #eff6ff }} .ours td:first-child {{ font-weight: 600 }}
.curves {{ display: flex; flex-wrap: wrap; gap: 1rem 1.5rem }} figure {{ margin: 0 }} figcaption {{ font-size: .9em; overflow-wrap: anywhere }}
svg text {{ font: 11px system-ui, sans-serif; fill: #4b5563 }} .curves figcaption {{ font-weight: 600 }}
.sample {{ margin: 0 0 1.6rem }} .sample p {{ margin: 0 0 .3rem; overflow-wrap: anywhere }}
.panels {{ display: grid; gap: .8rem }} .panels img {{ max-width: 100%; border: 1px solid #d1d5db }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; max-height: 22rem; overflow-y: auto; margin: 0; background: #f9fafb }}
pre {{ border: 1px solid #d1d5db; padding: .5rem }}
.truth {{ color: {TRUTH} }} .matched {{ color: {MATCHED} }} .unmatched {{ color: {UNMATCHED} }}
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Block(Protocol):
    """A part of a report."""

    def html(self) -> str: ...
    def markdown(self) -> str: ...


def clean(text: str, most: int = LONGEST_WORD) -> str:
    """The first `most` characters of a text, with a note of how many there were; what cannot be shown is U+FFFD.

    >>> clean("a\\x00b"), clean("abcdef", 4)
    ('a\ufffdb', 'abcd… (the first 4 of 6 characters)')
    """
    note = f"… (the first {most:,} of {len(text):,} characters)" if len(text) > most else ""
    return _UNSHOWN.sub("\ufffd", text[:most]) + note


def in_html(text: str, most: int = LONGEST_WORD) -> str:
    """A text for HTML, inside an element or an attribute in double quotes."""
    return escape(clean(text, most))


def in_markdown(text: str, most: int = LONGEST_WORD) -> str:
    r"""A text for one line or cell of Markdown: no character of it is markup.

    >>> print(in_markdown("a|b\n<script>"))
    a\|b \<script\>
    """
    return _MARKDOWN.sub(r"\\\1", " ".join(clean(text, most).split()))


def fenced(text: str) -> str:
    """A text as a fenced block of Markdown, whose fence is longer than any run of backticks in the text."""
    shown = clean(text, LONGEST_TEXT)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{fence}text\n{shown}\n{fence}"


@dataclass(frozen=True, kw_only=True)
class Heading:
    text: str
    level: int = 2

    def html(self) -> str:
        return f"<h{self.level}>{in_html(self.text)}</h{self.level}>"

    def markdown(self) -> str:
        return f"{'#' * self.level} {in_markdown(self.text)}"


@dataclass(frozen=True, kw_only=True)
class Words:
    """A paragraph; `strong` for what must not be overlooked, else `quiet` explanations are small."""

    text: str
    strong: bool = False
    quiet: bool = False

    def html(self) -> str:
        inside = in_html(self.text, LONGEST_TEXT)
        return f"<p{' class=quiet' * self.quiet}>{f'<b>{inside}</b>' if self.strong else inside}</p>"

    def markdown(self) -> str:
        inside = in_markdown(self.text, LONGEST_TEXT)
        return f"**{inside}**" if self.strong else inside


@dataclass(frozen=True, kw_only=True)
class Items:
    lines: Sequence[str]

    def html(self) -> str:
        return f"<ul>{''.join(f'<li>{in_html(line, LONGEST_TEXT)}</li>' for line in self.lines)}</ul>"

    def markdown(self) -> str:
        return "\n".join(f"- {in_markdown(line, LONGEST_TEXT)}" for line in self.lines)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table: its figure, what stands small behind it (an interval), and whether it is emphasised."""

    text: str
    quiet: str = ""
    strong: bool = False

    def html(self) -> str:
        text = f"<b>{in_html(self.text)}</b>" if self.strong else in_html(self.text)
        return f"<td>{text}{f' <span class=quiet>{in_html(self.quiet)}</span>' if self.quiet else ''}</td>"

    def markdown(self) -> str:
        text = f"**{in_markdown(self.text)}**" if self.strong else in_markdown(self.text)
        return f"{text} {in_markdown(self.quiet)}".strip()


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under a head; the first column is words, the others are figures. Rows in `ours` stand out."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    ours: frozenset[int] = frozenset()

    def html(self) -> str:
        head = "".join(f"<th>{in_html(name)}</th>" for name in self.head)
        rows = (f"<tr{' class=ours' * (k in self.ours)}>{''.join(cell.html() for cell in row)}</tr>" for k, row in enumerate(self.rows))
        return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'

    def markdown(self) -> str:
        rule = ["---", *["---:"] * (len(self.head) - 1)]
        rows = [[cell.markdown() for cell in row] for row in self.rows]
        for k in self.ours:
            rows[k][0] = f"**{rows[k][0]}**"
        return "\n".join(f"| {' | '.join(row)} |" for row in [[in_markdown(name) for name in self.head], rule, *rows])


@dataclass(frozen=True, kw_only=True)
class Drawings:
    """SVG drawings with their names, side by side. Markdown leaves them out: the figures stand in a table beside them."""

    svgs: Sequence[tuple[str, str]]

    def html(self) -> str:
        drawn = (f"<figure><figcaption>{in_html(name)}</figcaption>{svg}</figure>" for name, svg in self.svgs)
        return f'<div class="curves">{"".join(drawn)}</div>'

    def markdown(self) -> str:
        return ""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A picture (its data: address), a text, or both; with a name and words below."""

    name: str
    words: str = ""
    picture: str = ""
    text: str = ""

    def html(self) -> str:
        inside = f'<img alt="{in_html(self.name)}" src="{self.picture}">' if self.picture else ""
        if self.text or not self.picture:
            inside += f"<pre>{in_html(self.text, LONGEST_TEXT)}</pre>"
        return f"<figure>{inside}<figcaption><b>{in_html(self.name)}</b>{': ' if self.words else ''}{in_html(self.words)}</figcaption></figure>"

    def markdown(self) -> str:
        line = f"{in_markdown(self.name)}: {in_markdown(self.words)}".removesuffix(": ")
        return f"{line}\n\n{fenced(self.text)}" if self.text else line


@dataclass(frozen=True, kw_only=True)
class Example:
    """One sample: a caption, notes, and panels side by side."""

    caption: str
    panels: Sequence[Panel]
    notes: Sequence[str] = ()

    def html(self) -> str:
        shares = "minmax(0, 30rem) minmax(0, 1fr)" if len(self.panels) == 2 else f"repeat({len(self.panels)}, minmax(0, 1fr))"
        columns = f"grid-template-columns: {shares}"
        notes = "".join(f'<p class="quiet">{in_html(note)}</p>' for note in self.notes)
        panels = "".join(panel.html() for panel in self.panels)
        return f'<section class="sample"><p>{in_html(self.caption)}</p>{notes}<div class="panels" style="{columns}">{panels}</div></section>'

    def markdown(self) -> str:
        return "\n\n".join([f"**{in_markdown(self.caption)}**", *map(in_markdown, self.notes), *(panel.markdown() for panel in self.panels)])


@dataclass(frozen=True)
class Legend:
    """What the colours of the pictures mean."""

    def html(self) -> str:
        colours = ("truth", "truth"), ("matched", MATCHES), ("unmatched", MATCHES_NOT)
        words = " · ".join(f"<b class={name}>{words}</b>" for name, words in colours)
        return f"<p>{words}. <span class=quiet>{RULE}</span></p>"

    def markdown(self) -> str:
        return "The pictures are in the HTML report."


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Blocks that HTML shows when they are asked for."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)

    def html(self) -> str:
        return f"<details><summary>{in_html(self.title)}</summary>\n{_joined([block.html() for block in self.blocks])}</details>"

    def markdown(self) -> str:
        return _joined([f"**{in_markdown(self.title)}**", *(block.markdown() for block in self.blocks)])


def _joined(parts: Sequence[str]) -> str:
    return "\n\n".join(part for part in parts if part)


def html_page(title: str, blocks: Sequence[Block]) -> str:
    """The blocks as one HTML file that asks for nothing else."""
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    head += f'<meta name="viewport" content="width=device-width"><title>{in_html(title)}</title><style>{_STYLE}</style>'
    body = "\n".join(block.html() for block in blocks)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body><h1>{in_html(title)}</h1>\n{body}\n</body></html>\n'


def markdown_page(title: str, blocks: Sequence[Block]) -> str:
    """The same blocks as Markdown; drawings and pictures are left out, their figures and texts are not."""
    return _joined([f"# {in_markdown(title)}", *(block.markdown() for block in blocks)]) + "\n"
