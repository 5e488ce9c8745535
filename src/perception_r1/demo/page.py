"""The page itself, in Gradio: what is on it, what each click does, and the server, which answers one question at a time."""

import html
import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from ..data.scenes import SceneOptions, scenes
from ..records import BadData
from ..tasks import TASKS
from .forms import TaskForm, form_for
from .look import CSS, HEAD, theme
from .policies import Policy
from .uploads import MAX_BYTES, Gate, own_names, picture_input, read_upload, told
from .view import SIDE, Asked, Form, Marks, View, canvas, judge

UPLOADS = "GRADIO_TEMP_DIR"
"""The variable by which Gradio is told where uploads and drawn pictures go."""
SESSIONS = 32
"""Visitors whose picture is kept in memory at a time; further ones take the place of the oldest."""
KEPT_SECONDS = 3600
"""How long uploads and drawn pictures stay on disk."""


class Page:
    """What the clicks do. Each method takes the view and the form and returns the new view; `outputs` shows it."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self.policies = tuple(policies)

    def ask(self, view: View, form: Form) -> Asked:
        image = view.picture()
        sample = form.sample(image)
        return Asked(form=form, image=image, replies=tuple(policy.reply(sample, image) for policy in self.policies))

    def upload(self, view: View, form: Form, file: Mapping[str, Any]) -> View:
        return View(image=read_upload(str(file.get("path")), os.environ[UPLOADS]))

    def empty(self, view: View, form: Form) -> View:
        return View()

    def mark(self, view: View, form: Form, x: float, y: float) -> View:
        """A click at (x, y), in pixels of the picture as shown."""
        image = view.picture()
        if not form.drawn:
            typed = "the truth of a page is its text: type it below the picture"
            raise BadData(typed if form.of_task.text else form.of_task.hint)
        scale = max(image.size) / SIDE
        x, y = (min(max(0.0, at * scale), float(most)) for at, most in zip((x, y), image.size, strict=True))
        if form.as_points:
            return replace(view, marks=replace(view.marks, points=(*view.marks.points, (x, y))))
        if form.of_task.categories and not form.label.strip():
            raise BadData("type the label of the box first")
        return replace(view, marks=view.marks.click(x, y, form.label.strip()))

    def undo(self, view: View, form: Form) -> View:
        return replace(view, marks=view.marks.undo(form.as_points))

    def clear(self, view: View, form: Form) -> View:
        return replace(view, marks=Marks())

    def keep(self, view: View, form: Form) -> View:
        return view

    def outputs(self, view: View, asked: Asked, form: Form) -> list[Any]:
        """View, canvas, and of every policy picture, card and raw answer."""
        found: list[Any] = [view, canvas(view, form)]
        if asked.form is None or view.image is None or not asked.about(view, form):
            return found + [None, "", ""] * len(self.policies)
        truth = form.truth(view.marks)
        sample = asked.form.sample(view.image, truth)
        for policy, reply in zip(self.policies, asked.replies, strict=True):
            found += judge(policy, reply, sample, truth, view.image)
        return found


def drawn_scene(form: Form) -> tuple[View, Form]:
    """A scene drawn for the form's task, with the question and the truth filled in."""
    kind = form.of_task.scene
    options = SceneOptions(min_count=2, max_count=6) if kind == "counting" else SceneOptions()
    seed = secrets.randbelow(2**31)
    image, asked = next(scenes((kind,), n=1, seed=seed, split="test", options=options))
    sample, truth = asked[0], asked[0].truth
    query = ", ".join(sample.categories or ()) or sample.query or form.query
    query = query if form.of_task.query else ""
    filled = replace(form, query=query, kind="boxes", nothing=False, text=truth.text or "")
    boxes = () if truth.boxes is None else tuple(tuple(box) for box in truth.boxes.tolist())
    if filled.as_points:
        points = tuple(((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in boxes)
        return View(image=image, marks=Marks(points=points)), filled
    return View(image=image, marks=Marks(boxes=boxes, labels=truth.labels)), filled


def build(policies: Sequence[Policy], task: str) -> gr.Blocks:
    """The page for these policies, the base first; `task` is chosen at first."""
    page = Page(policies)
    with gr.Blocks(title="Perception-R1", analytics_enabled=False, delete_cache=(KEPT_SECONDS // 4, KEPT_SECONDS), fill_width=True) as blocks:
        gr.HTML(HEAD, padding=False)
        view = gr.State(View(), time_to_live=KEPT_SECONDS)
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=5, min_width=360):
                question = _Question(task)
            with gr.Column(scale=8, min_width=420), gr.Row():
                results = [part for policy in policies for part in _result(policy)]
        _connect(page, view, gr.State(Asked(), time_to_live=KEPT_SECONDS), question, results)
    blocks.queue(max_size=64, api_open=False, default_concurrency_limit=1)
    return blocks


class _Question:
    """The left column: the question, and the truth drawn by hand."""

    def __init__(self, task: str) -> None:
        form = form_for(task)
        self.task = gr.Radio(list(TASKS), value=task, label="Task", elem_id="task")
        self.query = gr.Textbox("", **_field(form), elem_id="query", max_length=4000)
        self.canvas = picture_input(
            show_label=False, format="png", sources=["upload", "clipboard"], buttons=[], height=440, elem_id="canvas",
            placeholder=f"Drop a picture here\nup to {MAX_BYTES // 1_000_000} MB",
        )  # fmt: skip
        with gr.Row():
            self.ask = gr.Button("Ask", variant="primary", elem_id="ask", min_width=120)
            self.scene = gr.Button("Draw a scene", elem_id="scene", min_width=120)
        with gr.Group(elem_id="truth"):
            self.told = gr.HTML(_hint(task), padding=True)
            both, drawn = len(form.placed) > 1, bool(form.placed)
            kinds: dict[str, Any] = {"choices": ["boxes", "points"], "value": "boxes"}
            self.kind = gr.Radio(**kinds, label="Draw", visible=both, elem_id="kind")
            self.label = gr.Textbox(
                "",
                label="Label of the next box",
                visible=form.categories,
                elem_id="label",
                max_length=200,
            )
            nothing = "Nothing of that kind is in the picture"
            self.nothing = gr.Checkbox(label=nothing, visible=drawn, elem_id="nothing")
            text: dict[str, Any] = {"lines": 3, "max_length": 100_000}
            self.text = gr.Textbox("", label="True text", visible=form.text, elem_id="text", **text)
        with gr.Row(visible=drawn) as self.tools:
            self.undo = gr.Button("Undo the last mark", size="sm", elem_id="undo")
            self.clear = gr.Button("Clear the marks", size="sm", elem_id="clear")
        self.form = [self.task, self.query, self.kind, self.label, self.nothing, self.text]

    def fitting(self, task: str) -> list[Any]:
        """Updates of what depends on the task, for `shaped`."""
        form = form_for(task)
        tools = gr.update(visible=bool(form.placed))
        shown = [len(form.placed) > 1, form.categories, bool(form.placed), form.text]
        others = [gr.update(visible=yes) for yes in shown]
        return [gr.update(**_field(form)), _hint(task), tools, *others]

    @property
    def shaped(self) -> list[Any]:
        return [self.query, self.told, self.tools, self.kind, self.label, self.nothing, self.text]


def _hint(task: str) -> str:
    form = form_for(task)
    then = " Then every reward term is shown." if form.kinds else ""
    return f"<b>The truth, if you know it.</b> {html.escape(form.hint)}{then}"


def _field(form: TaskForm) -> dict[str, Any]:
    """How the field for what to find looks."""
    label = form.query or "What to find"
    return {"label": label, "placeholder": form.example, "visible": bool(form.query)}


def _result(policy: Policy) -> list[Any]:
    """The column of one policy: picture, card and raw answer."""
    kind = policy.title.lower()
    with gr.Column(min_width=300, elem_classes="result"):
        gr.HTML(f'<p class="named"><b>{policy.title}</b><span>{html.escape(policy.name)}</span></p>', padding=False)
        picture = gr.Image(show_label=False, format="png", interactive=False, buttons=["fullscreen"], elem_id=f"{kind}-picture")
        card = gr.HTML(elem_id=f"{kind}-card", padding=False)
        raw = gr.Textbox(label="Raw answer", lines=2, max_lines=8, interactive=False, buttons=["copy"], elem_id=f"{kind}-raw", elem_classes="raw")
    return [picture, card, raw]


def _connect(page: Page, view: gr.State, asked: gr.State, question: _Question, results: list[Any]) -> None:
    """Every click to its method. Only `ask` runs the models; Gradio's queue lets one question through at a time."""
    outputs = [view, question.canvas, *results]
    inputs = [view, asked, *question.form]
    settings: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}

    def shown(step: Callable[..., View], view: View, asked: Asked, *values: Any) -> list[Any]:
        size = len(question.form)
        form = Form(*values[:size])
        with told():
            return page.outputs(step(view, form, *values[size:]), asked, form)

    def clicked(view: View, asked: Asked, task: str, query: str, kind: str, label: str, nothing: bool, text: str, at: gr.SelectData) -> list[Any]:
        x, y = at.index[:2]  # type: ignore[index]
        return shown(page.mark, view, asked, task, query, kind, label, nothing, text, float(x), float(y))

    def uploaded(view: View, asked: Asked, *values: Any) -> list[Any]:
        form = Form(*values[:-1])
        try:
            view = page.upload(view, form, values[-1])
        except BadData as problem:  # told, and the picture from before is shown again instead of the file
            gr.Warning(html.escape(str(problem)), title="That file was not taken")
        return page.outputs(view, asked, form)

    def scene(*values: Any) -> list[Any]:
        made, form = drawn_scene(Form(*values))
        return [*page.outputs(made, Asked(), form), form.query, form.kind, form.nothing, form.text]

    def answered(view: View, *values: Any) -> Asked:
        with told():
            return page.ask(view, Form(*values))

    # preprocess=False: the path comes as it is, and no file is opened before its sides are checked
    question.canvas.upload(uploaded, [*inputs, question.canvas], outputs, preprocess=False, **settings)
    question.canvas.clear(partial(shown, page.empty), inputs, outputs, **settings)
    question.canvas.select(clicked, inputs, outputs, **settings)
    question.undo.click(partial(shown, page.undo), inputs, outputs, **settings)
    question.clear.click(partial(shown, page.clear), inputs, outputs, **settings)
    question.scene.click(scene, question.form, [*outputs, question.query, question.kind, question.nothing, question.text], **settings)
    question.task.input(question.fitting, question.task, question.shaped, **settings)
    changes = [question.task.input, question.kind.input, question.nothing.input, question.text.change]  # a paste is no input to Gradio
    gr.on(changes, partial(shown, page.keep), inputs, outputs, trigger_mode="always_last", **settings)
    asking = {**settings, "show_progress": "full", "show_progress_on": results[:1], "concurrency_limit": 1, "concurrency_id": "model"}
    answer = gr.on([question.ask.click, question.query.submit], answered, [view, *question.form], asked, **asking)
    answer.success(partial(shown, page.keep), inputs, outputs, **settings)


@contextmanager
def served(policies: Sequence[Policy], *, host: str = "127.0.0.1", port: int, task: str = "grounding") -> Iterator[str]:
    """Serves the page while the block runs; gives its address. Raises BadData where the port is taken.

    Gradio keeps uploads and pictures in a temporary folder, the only one whose files it hands out; it is deleted at the end.
    """
    with tempfile.TemporaryDirectory(prefix="perception-r1-") as folder:
        os.environ |= {UPLOADS: folder, "GRADIO_EXAMPLES_CACHE": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        blocks, names = build(policies, task), own_names(host, port)
        try:
            app, address, _ = blocks.launch(
                server_name=host, server_port=port, share=False, inbrowser=False, quiet=True, prevent_thread_lock=True, ssr_mode=False, pwa=False,
                max_file_size=MAX_BYTES, allowed_paths=[], blocked_paths=[], state_session_capacity=SESSIONS, enable_monitoring=False,
                run_history=False, mcp_server=False, footer_links=[], theme=theme(), css=CSS,
                app_kwargs={"middleware": [Middleware(Gate, names=names)]},
            )  # fmt: skip
        except OSError as problem:
            raise BadData(f"{host}:{port}: found the port taken or the host not of this machine ({problem}): name another with --port") from problem
        # Gradio puts its own middleware before ours, which answers a browser's preflight
        app.middleware_stack = Gate(app.middleware_stack or app.build_middleware_stack(), names)
        try:
            yield address
        finally:
            blocks.close(verbose=False)


def serve(policies: Sequence[Policy], *, host: str, port: int, task: str | None = None) -> None:
    """Serves the page until it is interrupted. The task chosen at first is the last policy's own where none is named."""
    known = policies[-1].backend.settings.get("task", "grounding")
    chosen = task or str(known[0] if isinstance(known, list) else known)
    with suppress(KeyboardInterrupt), served(policies, host=host, port=port, task=chosen if chosen in TASKS else "grounding") as address:
        print(f"the page is at {address} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()
