"""README, CONTRIBUTING and the pages of `docs/`: every code block runs, or says why it is not run here."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections import Counter

import pytest
from command_line import python, seq2seq
from pages import PAGES, ROOT, Shell, blocks, name

RUN = [
    page for page in PAGES if any(block.language in ("bash", "python") and not block.reason for block in blocks(page))
]
NOT_RUN = {"readme": 3, "contributing": 1, "index": 1}
NOT_RUN |= {
    "guides-corpora": 1,
    "guides-options": 1,
    "guides-python": 1,
    "guides-devices": 3,
    "guides-deployment": 1,
    "guides-onnx": 1,
    "guides-web": 3,
}

# What the pages' Python is changed to, to be quick.
SHORTER = {
    r'read_pairs\("phrasebook"\)': 'read_pairs("phrasebook", limit=300)',
    r"Config\((.*), epochs=\d+\)": r'Config(\1, epochs=1, units=8, cell="gru", bidirectional=False)',
    r"bidirectional=True": "bidirectional=False",
    r"epochs=\d\d": "epochs=1",
    r"units=256": "units=8",
    r"seeds=3": 'seeds=1, options={"epochs": 1, "cell": "gru", "attention": None}',
}


@pytest.fixture(scope="session")
def shell(tmp_path_factory):
    return Shell(tmp_path_factory.mktemp("shell"))


@pytest.fixture(scope="session")
def home(tmp_path_factory, shell):
    """A folder with the small corpora and the trained runs that the pages speak of."""
    home = tmp_path_factory.mktemp("home")
    with (ROOT / "pipelines" / "phrasebook.tsv").open() as phrasebook:
        lines = list(itertools.islice(phrasebook, 200))
    greetings = ["Good morning.\tBuenos días.\n", "Thank you.\tGracias.\n"]
    verbs = [f"{a}{b}\t{a}{b}ed\tV;PST\n" for a in "bcdfghklmn" for b in ("all", "elt", "ow", "ush")]
    files = {
        "pairs.tsv": lines[:120] + greetings,
        "test.tsv": lines[120:160],
        "train.tsv": lines[:120],
        "dev.tsv": lines[160:180],
        "more.tsv": lines[120:] + greetings,
        "my-pairs.tsv": lines[:120],
        "words.tsv": [f"{a}{b}c\t{a.upper()} {b.upper()} K\n" for a in "bdfgklmnprst" for b in "aeiou"],
        "verbs.tsv": verbs,
        "test-verbs.tsv": verbs[:10],
        "questions.txt": ["Where is the station?\n", "Good morning.\n"],
    }
    for number, names in enumerate([("corpus.en", "source.txt"), ("corpus.es", "target.txt")]):
        for file in names:
            files[file] = [line.rstrip("\n").split("\t")[number] + "\n" for line in lines[:60]]
    for number, file in enumerate(["lemmas.txt", "forms.txt", "features.txt"]):
        files[file] = [line.rstrip("\n").split("\t")[number] + "\n" for line in verbs[:10]]
    for file, text in files.items():
        (home / file).write_text("".join(text))
    done = shell.run("seq2seq train pairs.tsv --out runs/mine && seq2seq train --out runs/phrasebook", home)
    assert done.returncode == 0, done.stderr
    for run in ("other", "third"):
        shutil.copytree(home / "runs" / "mine", home / "runs" / run)
    return home


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=name)
def test_the_blocks_of_a_page_run(page, home, shell, tmp_path, monkeypatch):
    folder = tmp_path / "page"
    shutil.copytree(home, folder)
    monkeypatch.chdir(folder)
    scope = {}
    for block in blocks(page):
        if not block.reason:
            run(block, f"{page.relative_to(ROOT)}:{block.line}", shell, folder, scope)
    CHECKS.get(name(page), lambda folder, scope: None)(folder, scope)


def run(block, place, shell, folder, scope):
    """Run a block of shell in a page's folder, or one of Python in the page's scope."""
    text = block.text
    if block.language == "bash":
        lines = text.splitlines(keepends=True)
        served = [line for line in lines if line.startswith("seq2seq demo")]
        done = shell.run("".join(line for line in lines if line not in served), folder)
        assert done.returncode == 0, (place, done.stderr)
        scope["said"] = scope.get("said", "") + done.stderr
        for line in served:
            serve(line, shell, folder)
    elif block.language == "python":
        for pattern, shorter in SHORTER.items():
            text = re.sub(pattern, shorter, text)
        if file := re.match(r"# (\w+\.py)\n", text):
            (folder / file[1]).write_text(text)
        elif "__main__" in text:
            (folder / "script.py").write_text(text)
            done = python("script.py", cwd=folder)
            assert done.returncode == 0, (place, done.stderr.decode())
            scope["stdout"] = done.stdout.decode()
        else:
            exec(compile(text, place, "exec"), scope)


def serve(line, shell, folder):
    """The page of `seq2seq demo` opens, and Ctrl-C ends it."""
    arguments = line.partition("#")[0].split()[1:]
    command = [shell.client, *arguments, "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as demo:
        try:
            with urllib.request.urlopen(demo.stdout.readline().strip()) as page:
                assert "gradio" in page.read().decode()
        finally:
            os.kill(shell.running[demo.pid].pid, signal.SIGINT)
    assert demo.returncode == 130


def check_python(folder, scope):
    assert (folder / "model.keras").is_file() and (folder / "runs/from-python/model.keras").is_file()


def check_tutorial(folder, scope):
    assert scope["model"].translate(["Hello."]).shape == (1,)
    assert (folder / "exported" / "1" / "saved_model.pb").is_file()


def check_experiments(folder, scope):
    assert (folder / "runs" / "sizes.png").is_file() and len(list(folder.glob("runs/search/*/seed-0"))) == 1
    assert "| units=128 | 1 |" in scope["stdout"]
    translated, looked, scored = (
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().split("\n")[:-1]]
        for name in ("translations", "attention", "scores")
    )
    pairs = len((folder / "pairs.tsv").read_text().splitlines())
    assert [len(known["translations"]) for known in translated] == [3, 3] and len(looked) == len(scored) == pairs
    found, model = scope["found"], scope["model"]
    assert [one["text"] for one in translated[0]["translations"]] == [text.decode() for text in found.texts[0].numpy()]
    each = model.score(scope["texts"], scope["best"], per_token=True)
    assert translated[1]["translations"][0]["log_probabilities"] == pytest.approx(each[1].numpy().tolist(), abs=1e-3)
    first = looked[0]["translations"][0]
    assert len(first["attention"]) == len(first["tokens"])
    assert {len(row) for row in first["attention"]} == {len(looked[0]["source_tokens"])}
    assert scope["encoded"].memory.shape == (2, 13, 8)
    records = [json.loads((folder / "runs" / name / "config.json").read_text()) for name in ("mean", "mean-of-all")]
    assert [record["averaged"]["epochs"] for record in records] == [[1, 2, 3], [1, 2, 3]]
    named = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "guides" / "experiments.md").read_text()))
    assert {*translated[0], *translated[0]["translations"][0], *scored[0], *records[0]["training"]} <= named
    assert (folder / "runs/mine/tensorboard").is_dir()


def check_decoding(folder, scope):
    assert len((folder / "answers.txt").read_text().splitlines()) == 2
    (text,) = scope["model"].translate(["Good morning."], prefixes=["Buen"]).numpy()
    assert text.startswith(b"Buen")


def check_extending(folder, scope):
    for own in ("ngrams:NGramDecoder", "convolution:ConvolutionalEncoder", "bigrams:BigramTokenizer"):
        assert f"--import {own}" in scope["said"]
    done = seq2seq("translate", "runs/ngrams", "abc", cwd=folder)
    assert (done.returncode, done.stdout) == (2, b"") and b"--import ngrams:NGramDecoder" in done.stderr, done.stderr
    assert (folder / "exported" / "1" / "saved_model.pb").is_file()


def check_onnx(folder, scope):
    (text,) = scope["translator"].translate(["Good morning."])
    assert json.loads((folder / "exported-onnx" / "probe.json").read_text())
    done = subprocess.run(
        [sys.executable, folder / "exported-onnx" / "translator.py", "Good morning."], capture_output=True
    )
    assert done.stdout.decode() == f"{text}\n"


CHECKS = {
    "guides-onnx": check_onnx,
    "guides-python": check_python,
    "tutorial": check_tutorial,
    "guides-experiments": check_experiments,
    "guides-decoding": check_decoding,
    "guides-extending": check_extending,
}


def test_blocks_that_are_not_run_say_why_and_are_counted():
    found = {name(page): [block for block in blocks(page) if block.language != "text"] for page in PAGES}
    assert {block.language for page in found.values() for block in page} <= {"bash", "html", "python"}
    skipped = {page: sum(block.reason is not None for block in of) for page, of in found.items()}
    assert {page: count for page, count in skipped.items() if count} == NOT_RUN


def test_ci_finds_its_two_commands_in_the_readme():
    comments = Counter(block.comment for block in blocks(ROOT / "README.md"))
    assert comments["ci: main"] == comments["ci: test"] == 1


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 125


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_between_pages_lead_somewhere(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text)
    for link in filter(None, itertools.chain(*links)):
        if not link.startswith("http"):
            path, _, anchor = link.partition("#")
            other = (page.parent / path).resolve() if path else page
            assert other.is_file(), link
            headings = re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE) if anchor else []
            assert not anchor or anchor in map(slug, headings), link


def slug(heading):
    """A heading's anchor, the same on GitHub and in the built pages."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_pictures_are_small_and_fetch_nothing():
    for picture in (ROOT / "docs" / "pictures").iterdir():
        assert picture.stat().st_size < 100_000
        if picture.suffix == ".svg":
            assert not re.search(r"(href|src)=\"(?!data:|#)", picture.read_text())


def test_how_it_works_names_every_source_file():
    text = (ROOT / "docs" / "how-it-works.md").read_text()
    for package in ("pipelines", "seq2seq"):
        for path in (ROOT / package).glob("*.py"):
            assert path.name == "__init__.py" or f"`{package}/{path.name}`" in text
