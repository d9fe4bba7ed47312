"""What the page of `seq2seq export --format web` computes in a browser, beside the Python runtime, in one run.

    pip install -e '.[onnx,test]'
    python tests/benchmarks/web.py texts.txt RUN...

It exports each RUN as a page and opens it in Chromium. Then it translates the first 500 lines of texts.txt, which the
models should not have seen, there, by the ONNX runtime in Python and by the model, by greedy search and by beam search
of width 5. It prints how many translations in Chromium are the Python runtime's and how many are the model's;
milliseconds for a text, the mean of all, one text at a time; kilobytes of the folder without onnxruntime-web, and with
it; and seconds until the page is ready, from the address on.
"""

import argparse
import functools
import http.server
import os
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from playwright.sync_api import Browser, sync_playwright

from seq2seq import BeamSearch, Greedy, Seq2Seq, load_run
from seq2seq.onnx_runtime import Translator
from seq2seq.runs import export_runs

SEARCHES: tuple = ((Greedy(), {}, {}), (BeamSearch(5), {"beam_width": 5}, {"beamWidth": 5}))
LOAD = """async () => {
    const { Translator } = await import("./translator.js");
    translator = await Translator.load(new URL("./", location));
    await translator.search(["."], { beamWidth: 5 });
}"""
TRANSLATE = """async ([texts, options]) => {
    const started = performance.now();
    return [await translator.translate(texts, options), performance.now() - started];
}"""


class Server(http.server.SimpleHTTPRequestHandler):
    """A file server that says nothing."""

    def log_message(self, *_):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    given = parser.parse_args()
    texts = given.texts.read_text().rstrip("\n").split("\n")[:500]
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        for number, run in enumerate(given.runs):
            export_runs([run], Path(home, str(number)), "web")
        handler = functools.partial(Server, directory=home)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        print(f"{len(texts)} texts, {len(os.sched_getaffinity(0))} cores, Chromium {browser.version}")
        print("run | same greedy | same beam 5 | ms greedy | Python | ms beam 5 | Python | kB | with runtime | s ready")
        for number, run in enumerate(given.runs):
            folder, address = Path(home, str(number)), f"http://127.0.0.1:{server.server_address[1]}/{number}/"
            print(" | ".join([run.name, *row(browser, address, folder, load_run(run), texts)]), flush=True)
        server.shutdown()


def row(browser: Browser, address: str, folder: Path, model: Seq2Seq, texts: list[str]) -> list[str]:
    """The figures of one page."""
    page = browser.new_page()
    started = time.perf_counter()
    page.goto(address)
    page.wait_for_selector("textarea")
    ready = time.perf_counter() - started
    page.evaluate(LOAD)
    translator, same, taken = Translator(folder), [], []
    translator.translate(texts[:1], beam_width=5)
    for strategy, python, javascript in SEARCHES:
        started = time.perf_counter()
        right = translator.translate(texts, batch_size=1, **python)
        seconds = time.perf_counter() - started
        found, milliseconds = page.evaluate(TRANSLATE, [texts, javascript])
        known = [text.decode() for text in model.translate(texts, strategy).numpy()]
        same.append("/".join(str(sum(map(str.__eq__, found, other))) for other in (right, known)))
        taken += [f"{milliseconds / len(texts):.1f}", f"{1000 * seconds / len(texts):.1f}"]
    page.close()
    sizes = {file.name: file.stat().st_size / 1000 for file in folder.iterdir()}
    own = sum(size for name, size in sizes.items() if not name.startswith("onnxruntime-web"))
    return [*same, *taken, f"{own:.0f}", f"{sum(sizes.values()):.0f}", f"{ready:.1f}"]


if __name__ == "__main__":
    main()
