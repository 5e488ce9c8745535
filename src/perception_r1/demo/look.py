"""How the page looks: colours of `visualize`, fonts of the system. Nothing is loaded from another host."""

from typing import Any

import gradio as gr

from ..visualize import MATCHED, RULE, TRUTH, UNMATCHED

HEAD = f"""
<header id="head"><h1>Perception-R1</h1>
<p>Ask a perception policy about a picture.
<span class="key" style="--c:{TRUTH}">truth</span><span class="key" style="--c:{MATCHED}">answer</span>
<span class="key dashed" style="--c:{UNMATCHED}" title="{RULE}">answer that does not match</span>
</p></header>
"""

CSS = f"""
.gradio-container {{ width: 100% !important; max-width: 1500px !important; margin: 0 auto; }}
footer {{ display: none !important; }}
#head {{ display: flex; align-items: baseline; justify-content: space-between; gap: 1em 2em; flex-wrap: wrap; padding: .6em 0 .2em; }}
#head h1 {{ font-size: 1.7em; font-weight: 700; letter-spacing: -.02em; margin: 0; }}
#head p {{ margin: 0; color: var(--body-text-color-subdued); }}
.key {{ margin-left: 1.2em; white-space: nowrap; }}
.key::before {{ content: ""; display: inline-block; width: 1.1em; height: .8em; margin-right: .45em;
  border: 2.5px solid var(--c); border-radius: 2px; }}
.key.dashed::before {{ border-style: dashed; }}
.card {{ padding: .2em .1em; }}
.card .said {{ margin: 0 0 .5em; font-weight: 600; overflow-wrap: anywhere; }}
.card .said.bad {{ color: #c0392b; }}
.card .hint {{ margin: 0; color: var(--body-text-color-subdued); }}
.terms, .terms tr, .terms th, .terms td {{ border: none !important; background: none !important; }}
.terms {{ width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }}
.terms th {{ text-align: left; font-weight: 400; padding: .18em .8em .18em 0; width: 1%; vertical-align: middle; }}
.terms .value {{ text-align: right; padding-left: .8em; width: 1%; font-weight: 600; }}
.terms .of {{ color: var(--body-text-color-subdued); white-space: nowrap; padding-left: .4em; width: 1%; }}
.terms .bar {{ height: .6em; border-radius: .3em; background: var(--border-color-primary); overflow: hidden; }}
.terms .bar i {{ display: block; height: 100%; background: {TRUTH}; border-radius: .3em; }}
.terms .total th, .terms .total .value {{ font-weight: 700; }}
.terms tr.total > * {{ border-top: 1px solid var(--border-color-primary) !important; padding: .45em 0 .1em !important; }}
.terms tr.total > .value, .terms tr.total > .of {{ padding-left: .8em !important; }}
.result {{ gap: .6em !important; }}
.named {{ display: flex; align-items: baseline; gap: .7em; margin: 0 0 .1em; overflow-wrap: anywhere; }}
.named b {{ font-size: 1.1em; }}
.named span {{ color: var(--body-text-color-subdued); }}
.raw textarea {{ font-family: ui-monospace, Consolas, monospace !important; font-size: .85em !important; }}
"""


def theme() -> gr.themes.Base:
    """Soft, with plain words for labels."""
    fonts: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "Consolas", "monospace"]}
    soft = gr.themes.Soft(primary_hue="emerald", neutral_hue="slate", **fonts)
    words = {"body_text_color_subdued": "*neutral_600", "block_title_text_color": "*body_text_color_subdued"}
    words |= {"block_title_background_fill": "transparent", "block_title_padding": "0"}
    green = {"button_primary_background_fill": TRUTH, "button_primary_background_fill_hover": "*primary_700"}
    return soft.set(**words, **green, block_shadow="none", block_border_width="1px")
