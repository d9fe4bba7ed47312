"""A local web page that translates as you type. It needs the extra `demo`."""

import base64
import os
import socket
from collections.abc import Sequence
from html import escape
from typing import Any

from pipelines import OptionError
from pipelines.options import extra
from pipelines.tokens import START
from seq2seq.contract import check_strategy
from seq2seq.model import Seq2Seq
from seq2seq.strategies import BeamSearch, Greedy, Strategy

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it at import
with extra("demo"):
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI

    from seq2seq.pictures import attention_svg

LOCALHOST = "127.0.0.1"
_STYLE = """
/* Text starts at the side where its script starts. */
textarea, td, .gallery button { unicode-bidi: plaintext; text-align: start !important }
table.hypotheses { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums }
.hypotheses :is(th, td) { border: 0; padding: 3px 1.5em 3px 0; font-weight: normal; white-space: nowrap }
.hypotheses th { text-align: start }
.hypotheses th, .attention figcaption { opacity: 0.7 }
.hypotheses :is(th, td):first-child { width: 100%; white-space: normal }
.attention figure { overflow-x: auto }
.attention img { max-width: none; margin-top: 8px; background: white }
"""
_CAPTION = "Attention: where the model looked in the source for each token of the translation"
_LONGEST_PICTURE = 300  # characters; longer ones take more than seconds to draw


def demo_page(model: Seq2Seq, examples: Sequence[str] = (), search: Strategy | None = None) -> gr.Blocks:
    """Make the page: a text, its translation, the n best hypotheses, and the attention if the decoder has any.

    A source of several columns has a box for each.

    Args:
        model: the model that translates.
        examples: sources to click on.
        search: a strategy offered next to greedy search and beam search, under the name of its class.
    """
    names = model.source_tokenizer.column_names
    widest = min(10, model.target_tokenizer.vocabulary_size - START - 1)  # no wider than the vocabulary
    more = {type(search).__name__: check_strategy(search)} if search else {}
    kinds = ["greedy", "beam", *more]

    def translate(kind, width, *columns):
        first, *others = (" ".join((column or "").split()) for column in columns)  # on one line, as in a corpus
        if not first:
            return "", "", None
        text = "\t".join([first, *others])
        strategies = {"greedy": Greedy(), "beam": BeamSearch(width, n_best=width), **more}
        found = model.translate([text], strategies[kind], details=True)
        best = found.texts.numpy()[0, 0].decode()
        return best, _table(found), (text, best, found.ids.numpy()[:1, 0])

    def draw(known):
        small = known and max(map(len, known[:2])) <= _LONGEST_PICTURE
        return _picture(model, *known) if model.has_attention and small else ""

    for kind in kinds:  # the first call of each strategy takes seconds, for tracing
        draw(translate(kind, min(5, widest), *["."] * len(names))[-1])
    with gr.Blocks(analytics_enabled=False, title="seq2seq demo") as page:
        with gr.Row():
            with gr.Column():
                if len(names) == 1:
                    texts = [gr.Textbox(label="Text", placeholder="Type a text", lines=3, autofocus=True)]
                else:
                    texts = [gr.Textbox(label=name, autofocus=name == names[0]) for name in names]
                if examples:
                    rows = [source.split("\t", len(names) - 1) for source in examples]
                    gr.Examples(rows, texts, label="Examples from the corpus")
            with gr.Column():
                translation = gr.Textbox(label="Translation", lines=3, interactive=False)
                with gr.Row():
                    chosen = gr.Radio(kinds, value="greedy", label="Search")
                    width = gr.Slider(1, widest, min(5, widest), step=1, label="Beam width", buttons=[], visible=False)
        hypotheses = gr.HTML(apply_default_css=False, padding=True)
        picture = gr.HTML(apply_default_css=False, padding=True, elem_classes="attention", visible=model.has_attention)
        known = gr.State()  # what to draw: a text, its translation, and the ids of that
        # While one text is translated, only the last text typed waits. A picture takes longer, so it is drawn
        # separately, and translations do not wait for it.
        typing: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last"}
        changes = [*(text.change for text in texts), chosen.change, width.change]
        typed = gr.on(changes, translate, [chosen, width, *texts], [translation, hypotheses, known], **typing)
        typed.then(draw, known, picture, **typing)
        chosen.change(lambda kind: gr.Slider(visible=kind == "beam"), chosen, width, **typing)
    return page


def _table(found):
    """The hypotheses of one text, `Translations`, as an HTML table."""
    rows = zip(*(part.numpy()[0] for part in found[:4]), strict=True)
    cells = [
        f"<tr><td>{escape(text.decode())}</td><td>{score:.2f}</td><td>{rank:.2f}</td><td>{stopped.decode()}</td></tr>"
        for text, score, rank, stopped in rows
    ]
    head = "<tr><th>hypothesis</th><th>log-likelihood</th><th>ranked by</th><th>stopped by</th></tr>"
    return f'<table class="hypotheses">{head}{"".join(cells)}</table>'


def _picture(model, text, translation, ids):
    """The attention of a translation, of which the ids `[1, T]` are known, drawn as SVG in HTML."""
    (alignment,) = model.attention([text], ids)
    svg = base64.b64encode(attention_svg(alignment).encode()).decode()
    image = f'<img alt="{escape(f"attention: {text} → {translation}")}" src="data:image/svg+xml;base64,{svg}">'
    return f"<figure><figcaption>{_CAPTION}</figcaption>{image}</figure>"


def listen(port: int) -> socket.socket:
    """Open a port that can be reached only from this machine; return its socket, for `serve`.

    Args:
        port: its number, or 0 for any free port.

    Raises:
        OptionError: if the port is in use or needs more permissions.
    """
    try:
        return socket.create_server((LOCALHOST, port))
    except OSError as error:
        raise OptionError(f"port={port}: {os.strerror(error.errno or 0)}; choose another with --port") from None


def serve(page: gr.Blocks, listener: socket.socket) -> None:
    """Serve a page on a listening socket until a signal is received, and then raise that signal."""
    # `gr.Blocks.launch` would take another port, request the page through a proxy, and hide the signal.
    app = FastAPI(openapi_url=None)  # its documentation pages load scripts from elsewhere
    options = {"run_history": False, "footer_links": [], "ssr_mode": False, "pwa": False}
    app = gr.mount_gradio_app(app, page, "/", css=_STYLE, **options)
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])
