import asyncio
import base64
import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys

import gradio
import pytest
from command_line import SEQ2SEQ
from command_line import in_process as seq2seq
from conftest import open_browser, save_run
from playwright.sync_api import expect

from pipelines import CharTokenizer, ColumnsTokenizer, SeparatorTokenizer
from seq2seq import BeamSearch, Sampling, Seq2Seq
from seq2seq.demo import demo_page

expect.set_options(timeout=60_000)  # milliseconds
SMALL = {"units": 8, "cell": "gru", "bidirectional": False, "attention": None}


@pytest.fixture
def browser():
    with open_browser() as browser:
        yield browser


@pytest.mark.slow
def test_the_translation_follows_the_typing_and_nothing_leaves_the_machine(upper_case, tmp_path, browser):
    (model, words), page, requests = upper_case, browser.new_page(), []
    save_run(model, tmp_path)
    (tmp_path / "probe.json").write_text(json.dumps(dict.fromkeys(words, "")))
    page.on("request", lambda request: requests.append(request.url))
    page.on("websocket", lambda websocket: requests.append(websocket.url))
    text, translation = (page.get_by_label(label, exact=True) for label in ("Text", "Translation"))
    rows = page.locator(".hypotheses tr:has(td)")

    def shown(text, strategy="greedy"):
        """Wait until the page shows what the model makes of a text, and return the best translation."""
        found = [part.numpy()[0] for part in model.translate([text], strategy, details=True)[:4]]
        best = found[0][0].decode()
        expect(translation).to_have_value(best)
        expect(rows).to_have_text(
            [
                f"{text.decode()}{score:.2f}{rank:.2f}{why.decode()}"
                for text, score, rank, why in zip(*found, strict=True)
            ]
        )
        picture = page.get_by_alt_text(f"attention: {text} → {best}", exact=True)
        expect(picture).to_be_visible()
        assert picture.evaluate("picture => picture.naturalWidth > 100 && picture.naturalHeight > 100")
        svg = base64.b64decode(picture.get_attribute("src").partition("base64,")[2]).decode()
        labels = "".join(re.findall(r">([^<]*)</text>", svg))
        assert text in labels and f"{best}[END]" in labels
        return best

    command = [SEQ2SEQ, "demo", tmp_path, "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)  # or what fails here would wait for it without end
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
        page.goto(address)
        for typed in ("s", "so", "sol"):
            text.press_sequentially(typed[-1])
            best = shown(typed)
        assert best == "SOL"
        page.get_by_label("beam", exact=True).check()
        shown("sol", BeamSearch(5, n_best=5))
        expect(rows).to_have_count(5)
        text.fill("")
        expect(translation).to_have_value("")
        expect(rows).to_have_count(0)
        expect(page.get_by_alt_text("attention")).to_have_count(0)
        page.locator(".gallery button").nth(1).click()
        assert shown(words[1], BeamSearch(5, n_best=5)) == "MAR"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130 and process.stderr.read() == "Interrupted.\n"
    assert requests and all(url.startswith((address, "data:")) for url in requests)


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = seq2seq("demo", tmp_path, "--port", port)
    assert done.returncode == 2 and done.stdout == b""
    assert done.stderr.decode() == f"seq2seq: port={port}: Address already in use; choose another with --port\n"


def test_of_several_runs_the_page_shows_the_ensemble(untrained, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("seq2seq.demo.demo_page", lambda model, *_: shown.append(model))
    monkeypatch.setattr("seq2seq.demo.serve", lambda *_: None)
    done = seq2seq("demo", untrained, shutil.copytree(untrained, tmp_path / "other"), "--port", 0)
    assert done.returncode == 0, done.stderr
    assert [type(model.decoder).__name__ for model in shown] == ["EnsembleDecoder"]


def test_without_attention_there_is_no_picture_and_gradio_tells_nobody(tokenizers, model):
    async def page(model):  # where a loop runs; else Gradio makes one for each page and leaves it open
        return demo_page(model)

    for shown in (model, Seq2Seq(*tokenizers, **SMALL)):
        made = asyncio.run(page(shown))
        pictures = [block for block in made.blocks.values() if "attention" in block.elem_classes]
        assert [picture.visible for picture in pictures] == [shown.has_attention]
        assert not made.analytics_enabled and not gradio.analytics.analytics_enabled()


def test_a_custom_strategy_is_a_third_choice(model):
    async def page(model):
        return demo_page(model, search=Sampling(n_best=3))

    made = asyncio.run(page(model))
    (chosen,) = (block for block in made.blocks.values() if isinstance(block, gradio.Radio))
    assert [value for value, _ in chosen.choices] == ["greedy", "beam", "Sampling"]
    (translate,) = (made_of.fn for made_of in made.fns.values() if made_of.name == "translate")
    best, table, _ = translate("Sampling", 1, "sol")
    found = [text.decode() for text in model.translate("sol", Sampling(n_best=3)).numpy()]
    assert best == found[0] and re.findall(r"<tr><td>([^<]*)</td>", table) == found


def test_only_the_demo_imports_gradio():
    code = "import seq2seq.cli, seq2seq.runs, sys; sys.exit('gradio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_source_of_several_columns_has_a_box_for_each():
    async def page(model):
        return demo_page(model, ["ab\tV;PST"])

    source = ColumnsTokenizer([CharTokenizer("ab"), SeparatorTokenizer(";", ["V", "PST"])], ["lemma", "features"])
    model = Seq2Seq(source, CharTokenizer("ab"), **SMALL)
    made = asyncio.run(page(model))
    boxes = [block.label for block in made.blocks.values() if isinstance(block, gradio.Textbox)]
    assert boxes == ["lemma", "features", "Translation"]
    (translate,) = (made_of.fn for made_of in made.fns.values() if made_of.name == "translate")
    *known, ids = translate("greedy", 1, " ab ", "V;PST")[2]
    found = model.translate(["ab\tV;PST"], details=True)
    assert known == ["ab\tV;PST", found.texts.numpy()[0, 0].decode()]
    assert ids.tolist() == found.ids[:, 0].numpy().tolist()  # also where the translation has no END
    assert translate("greedy", 1, " ", "V")[2] is None
