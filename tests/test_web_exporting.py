import functools
import http.server
import json
import os
import shutil
import threading

import numpy as np
import pytest
from command_line import in_process as seq2seq
from conftest import WORDS, open_browser, save_run
from pages import ROOT, blocks
from playwright.sync_api import expect
from test_onnx_runtime import SAMPLE, TOKENIZERS

from pipelines.columns import ColumnsTokenizer
from pipelines.tokenizers import LetterTokenizer, WhitespaceTokenizer
from seq2seq import web_exporting
from seq2seq.onnx_exporting import describe_tokenizer
from seq2seq.onnx_runtime import Tokenizer, Translator
from seq2seq.records import RunError
from seq2seq.web_exporting import PAGE, read_onnxruntime_web

pytestmark = pytest.mark.slow
ODD = ["", "a\tb", " ", "\t", "\n", "e\u0301", "a\u0328\u0301", "niño", "nin\u0303o", "árbol", "XYZ", "x" * 40]
ODD += [
    "😀",
    "👩\u200d👧",
    "sol😀mar",
    "\u200b\u2028",
    "\ufeffsol",
    "ẞﬁ½",
    "각",
    "\U00010330\U0001d11e",
    "\0",
    "solmar" * 6,
]
SPACES = ("a\tb", " ", "\t", "\n", "\u200b\u2028", "\ufeffsol")  # which the page takes out, as the demo does


@pytest.fixture(scope="module")
def package():
    """The files of the npm package, from the Keras cache or the registry, which not every machine reaches."""
    try:
        return read_onnxruntime_web()
    except RunError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def site(exported_onnx, package, tmp_path_factory):
    """The folder that the command made of a run, with the graphs of `exported_onnx`."""
    (model, folder), home = exported_onnx, tmp_path_factory.mktemp("web")
    (home / "run").mkdir()
    save_run(model, home / "run")
    shutil.copy(folder / "probe.json", home / "run")

    def export_onnx(model, out, probe):
        assert probe == list(json.loads((folder / "probe.json").read_text()))
        shutil.copytree(folder, out, ignore=shutil.ignore_patterns("__pycache__"))

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(web_exporting, "export_onnx", export_onnx)
        done = seq2seq("export", home / "run", home / "site", "--format", "web")
    assert (done.returncode, done.stdout.decode()) == (0, f"{home / 'site'}\n"), done.stderr
    return home / "site"


class Server(http.server.SimpleHTTPRequestHandler):
    """A file server, as `python -m http.server` is, which says nothing."""

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address(site):
    """Where the folder with the site in it is served."""
    handler = functools.partial(Server, directory=site.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    expect.set_options(timeout=60_000)  # milliseconds
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def page(browser, address):
    """The page, loaded, with the JavaScript runtime as `runtime` and the translator of the site as `translator`."""
    page = browser.new_page()
    page.goto(f"{address}site/")
    expect(page.get_by_label("Text", exact=True)).to_be_visible()
    page.evaluate("""async () => {
        runtime = await import('./translator.js');
        translator = await runtime.Translator.load(new URL('./', location));
    }""")
    return page


SEARCHES = [{}, {"beam_width": 5}, {"beam_width": 4, "n_best": 3, "length_penalty": 1.0}]
SEARCHES += [{"max_length": 2}, {"min_length": 60}, {"beam_width": 3, "min_length": 24, "max_length": 24}]


@pytest.mark.parametrize("python", SEARCHES, ids=str)
def test_the_javascript_runtime_finds_what_the_python_runtime_finds(page, site, python):
    names = {"beam_width": "beamWidth", "n_best": "nBest", "length_penalty": "lengthPenalty"}
    names |= {"min_length": "minLength", "max_length": "maxLength"}
    texts = [*json.loads((site / "probe.json").read_text()), *ODD]
    options = {names[name]: value for name, value in python.items()}
    found = page.evaluate(
        """async ([texts, options]) => (await translator.search(texts, options)).map((each) =>
            each.map((one) => [one.text, one.stopped, one.ids, String(one.score), String(one.rankedBy)]))""",
        [texts, options],
    )
    right = Translator(site).search(texts, **python)
    assert [[each[:3] for each in row] for row in found] == [
        [[each.text, each.stopped, each.ids] for each in row] for row in right
    ]
    figures = [[float(number) for number in each[3:]] for row in found for each in row]
    np.testing.assert_allclose(figures, [each[1:3] for row in right for each in row], atol=1e-4)
    assert len({row[0].text for row in right}) > 10
    if python == {"min_length": 60}:
        assert {row[0].stopped for row in right} == {"end", "repetition"}


def test_options_that_contradict_each_other_are_refused_as_in_python(page, site):
    wrong = [
        ("sol", {}, {}),
        (["sol"], {"n_best": 2}, {"nBest": 2}),
        (["sol"], {"beam_width": 2, "n_best": 3}, {"beamWidth": 2, "nBest": 3}),
        (["sol"], {"min_length": 3, "max_length": 2}, {"minLength": 3, "maxLength": 2}),
        (["sol"], {"max_length": 100_001}, {"maxLength": 100_001}),
        (["sol"], {"beam_width": 1000}, {"beamWidth": 1000}),
        (["sol"], {"length_penalty": 11}, {"lengthPenalty": 11}),
    ]
    for texts, python, options in wrong:
        with pytest.raises(ValueError) as error:
            Translator(site).search(texts, **python)
        said = page.evaluate("given => translator.search(...given).catch((error) => error.message)", [texts, options])
        camel = {"n_best": "nBest", "max_length": "maxLength"}
        camel |= {"beam_width": "beamWidth", "length_penalty": "lengthPenalty"}
        assert said == functools.reduce(lambda text, name: text.replace(name, camel[name]), camel, str(error.value))


def test_the_javascript_runtime_tokenizes_as_the_python_runtime_does(page):
    texts = [
        *ODD,
        *SAMPLE,
        "V;PST\tx",
        "Σς İ\u0345 \ufdfa",
        "a; b;; c",
        "né  ▁ na\u0308ive",
        "abc ab cab abbc",
        "\ud800",
    ]
    scores = {"▁a": -1.5, "▁ab": -1, "bc": -2, "c": -1.2, "abc": -1.1, "▁": -3, "a": -4, "b": -5}
    pieces = {"kind": "subwords", "normal_form": "NFC", "tokens": list(scores), "scores": list(scores.values())}
    described = [pieces]
    for tokenizer in TOKENIZERS:
        tokenizer.adapt(["\t".join(SAMPLE[:3])] * 3 if isinstance(tokenizer, ColumnsTokenizer) else SAMPLE * 3)
        if isinstance(tokenizer, LetterTokenizer | WhitespaceTokenizer):
            tokenizer.add_unknown_token()
        described.append(describe_tokenizer("source", tokenizer))
    for saved in json.loads(json.dumps(described)):
        python = Tokenizer(saved)
        known = texts if python.normal_form else texts[:-1]  # half a character is three bytes of none
        ids, back, read = page.evaluate(
            """([saved, texts]) => {
                const tokenizer = new runtime.Tokenizer(saved);
                const ids = texts.map((text) => tokenizer.encode(text));
                const back = ids.map((each) => saved.columns ? "" : tokenizer.decode([...each, 3, 4], ["\u0301", "ж"]));
                return [ids, back, texts.map((text) => tokenizer.lookUp(text))];
            }""",
            [saved, known],
        )
        expected = [python.encode(text) for text in known]
        assert ids == expected, saved
        assert read == [[list(each) for each in python.look_up(text)] for text in known], saved
        written = ["" if python.parts else python.decode([*each, 3, 4], ["\u0301", "ж"]) for each in expected]
        assert back == written, saved


def test_attention_weights_are_those_of_the_model(page, site, upper_case):
    model, _ = upper_case
    translator = Translator(site)
    for text in ("árbol", "gatonube", ""):
        ids = translator.search([text])[0][0].ids
        (right,) = model.attention([text], [translator.target.decode(ids)])
        source, target, weights = page.evaluate(
            "async (given) => Object.values(await translator.attention(...given))", [text, ids]
        )
        assert (source, target) == (right.source, right.target)
        for found in (np.array(weights), translator.attention(text, ids)):
            np.testing.assert_allclose(found, right.weights, atol=1e-5)


def test_the_page_translates_while_one_types_and_offline_once_loaded(browser, address, site):
    page, requests, translator = browser.new_page(), [], Translator(site)
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"{address}site/")
    text, result = page.get_by_label("Text", exact=True), page.get_by_role("status", name="Translation")
    expect(text).to_be_focused()
    page.context.set_offline(True)

    def shown(text, **options):
        """Wait until the page shows what Python's runtime finds."""
        found = translator.search([text], **options)[0]
        expect(result).to_have_text(found[0].text, use_inner_text=True)
        cells = ["–"] if not options else [f"{each.score:.2f}" for each in found if each.ids]
        expect(page.locator(".hypotheses tbody tr td:first-child")).to_have_text(cells)
        expect(page.locator(".hypotheses tbody tr td:last-child")).to_have_text(
            [each.text for each in found if each.ids]
        )
        expect(page.locator(".weights tbody tr")).to_have_count(len(found[0].ids))
        expect(page.locator(".weights td")).to_have_count(len(found[0].ids) * len(text))
        expect(page.get_by_role("img", name=f"attention: {text} → {found[0].text}", exact=True)).to_be_visible()

    beam = {"beam_width": 5, "n_best": 5}
    for typed in ("s", "so", "sol"):
        text.press_sequentially(typed[-1])
        shown(typed, **beam)
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")  # from beam search to greedy search
    shown("sol")
    expect(page.get_by_label("Beam width")).to_be_hidden()
    for odd in (each for each in ODD if each.strip() and each not in SPACES):
        text.fill(odd)
        expect(result).to_have_text(translator.translate([odd])[0], use_inner_text=True)
    text.fill(" sol\n mar ")
    shown("sol mar")
    page.get_by_role("button", name=WORDS[2]).click()
    shown(WORDS[2])
    text.fill("")
    expect(page.locator(".hypotheses")).to_be_hidden()
    expect(page.locator("figure")).to_be_hidden()
    expect(result).to_have_text("")
    assert requests and all(url.startswith((f"{address}site/", "data:")) for url in requests)


def test_the_example_of_the_documentation_translates(browser, address, site):
    (example,) = (block for block in blocks(ROOT / "docs" / "guides" / "web.md") if block.language == "html")
    (site.parent / "example.html").write_text(example.text.replace("./page/", "./site/"))
    page = browser.new_page()
    page.goto(f"{address}example.html")
    page.wait_for_function("document.querySelector('input').onchange !== null")
    page.get_by_label("Text").fill("mar")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text(Translator(site).translate(["mar"], beam_width=5))


def test_a_source_of_several_columns_has_a_box_for_each(page):
    page.evaluate("prepare({ names: ['lemma', 'features'], widest: 3, examples: ['ab\\tV;PST'] })")
    page.get_by_role("button", name="ab | V;PST").click()
    assert [page.get_by_label(name).input_value() for name in ("lemma", "features")] == ["ab", "V;PST"]
    page.get_by_label("lemma").fill(" a  b ")
    assert page.evaluate("wanted()") == ["a b\tV;PST", {"beamWidth": 3, "nBest": 3}]


@pytest.mark.parametrize("name", ["decoder.onnx", "probe.json"])
def test_the_page_names_a_file_that_is_damaged_or_missing(browser, address, site, name):
    broken = shutil.copytree(site, site.parent / f"broken-{name}", copy_function=os.link)
    content = (broken / name).read_bytes()
    (broken / name).unlink()
    for damage, message in (
        (lambda: None, "cannot be loaded"),
        (lambda: (broken / name).write_bytes(content[:99]), "cannot be read"),
    ):
        damage()
        page = browser.new_page()
        page.goto(f"{address}{broken.name}/")
        expect(page.get_by_text(f"{broken.name}/{name}: ")).to_contain_text(message)
        page.close()


def test_the_folder_has_all_files_and_a_licence(site):
    assert {path.name for path in site.iterdir()} == {path.name for path in PAGE.iterdir()} | {
        *("encoder.onnx", "decoder.onnx", "vocabulary.json", "probe.json"),
        *("onnxruntime-web.js", "onnxruntime-web.wasm"),
    }
    assert "Copyright (c) Microsoft Corporation" in (site / "LICENSE.onnxruntime-web.txt").read_text()


def test_the_package_is_read_from_an_unpacked_folder_too(package, site, tmp_path):
    (tmp_path / "dist").mkdir()
    for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"):
        shutil.copy(site / f"onnxruntime-web{'.js' if name.endswith('mjs') else '.wasm'}", tmp_path / "dist" / name)
    assert read_onnxruntime_web(tmp_path) == package


def test_a_package_that_is_missing_or_damaged_is_said_and_leaves_nothing(model, tmp_path, monkeypatch):
    damaged = tmp_path / "damaged.tgz"
    damaged.write_bytes(b"\x1f\x8b not a package")
    (tmp_path / "empty").mkdir()
    for path in (damaged, tmp_path / "empty", tmp_path / "missing.tgz"):
        with pytest.raises(RunError, match=f"{path}: expected the npm package onnxruntime-web"):
            model.export(tmp_path / "site", format="web", onnxruntime_web=path)
    monkeypatch.setattr(web_exporting, "ONNXRUNTIME_WEB", "http://127.0.0.1:9/nobody-listens.tgz")
    with pytest.raises(RunError, match=r"nobody-listens.tgz elsewhere and name the file: --onnxruntime-web FILE"):
        model.export(tmp_path / "site", format="web")
    with pytest.raises(RunError, match="already exists"):
        model.export(tmp_path, format="web")
    assert not (tmp_path / "site").exists()


def test_options_of_one_format_are_refused_for_another(untrained, tmp_path):
    for options, message in (
        (["--format", "web", "--beam-width", 3], b"--beam-width: applies only to --format savedmodel"),
        (["--onnxruntime-web", tmp_path], b"--onnxruntime-web: applies only to --format web"),
    ):
        done = seq2seq("export", untrained, tmp_path / "site", *options)
        assert done.returncode == 2 and message in done.stderr and not (tmp_path / "site").exists()
