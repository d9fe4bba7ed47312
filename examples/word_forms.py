"""Inflection with features: from a noun and a set of features to a form, such as `ev` and `PL;LOC` to `evlerde`.

python word_forms.py

The rules are those of Turkish nouns. The model learns them from made-up nouns and is asked for forms of real ones. A
file of UniMorph (unimorph.github.io) can take the place of `nouns.tsv`: lemma, form, features.
"""

import random
import tempfile
from pathlib import Path

from seq2seq import Config, train

CASES = {"NOM": "", "ACC": "(y)I", "DAT": "(y)A", "LOC": "DA", "ABL": "DAn"}
REAL = ["kedi", "kapı", "okul", "göz", "masa", "kalem", "kuş", "deniz", "araba", "ev", "çanta", "telefon"]


def attach(stem, ending):
    """Add an ending, in which A and I stand for the vowels that harmonise, D for d or t, (y) for y after a vowel."""
    last = [letter for letter in stem if letter in "aeıioöuü"][-1]
    harmony = {"A": "a" if last in "aıou" else "e", "D": "t" if stem[-1] in "çfhkpsşt" else "d"}
    harmony["I"] = dict(zip("aeıioöuü", "ıiıiuüuü", strict=True))[last]
    ending = ending.replace("(y)", "y" if stem[-1] == last else "")
    return stem + "".join(harmony.get(letter, letter) for letter in ending)


def forms(noun):
    """All rows of a noun: itself, a form, its features."""
    for number, stem in (("SG", noun), ("PL", attach(noun, "lAr"))):
        yield from ((noun, attach(stem, ending), f"{number};{case}") for case, ending in CASES.items())


def made_up_noun():
    onset, coda = ["", *"bcçdfghjklmnprsştvyz"], ["", "", *"klmnrstşz"]
    syllables = [random.choice(onset) + random.choice("aeıioöuü") + random.choice(coda) for _ in range(3)]
    return "".join(syllables[random.randrange(3) :])


def main(folder):
    random.seed(0)
    nouns = {made_up_noun() for _ in range(3000)} - set(REAL)
    rows = [row for noun in sorted(nouns) for row in random.sample(list(forms(noun)), 2)]
    (folder / "nouns.tsv").write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    # The source has two columns: the noun's characters, and features between semicolons, whose order does not count. A
    # real file needs the larger model of `seq2seq.configure("inflection", corpus=...)`.
    reading = {"columns": (1, 3, 2), "source_tokenizer": "char,;", "validation_fraction": 0}
    small = {"cell": "gru", "units": 64, "learning_rate": 0.01, "dropout": 0.1, "updates": 800}
    model = train(Config(str(folder / "nouns.tsv"), **reading, **small), folder / "run")

    asked = [row for noun in REAL for row in forms(noun)]
    found = model.translate([f"{noun}\t{features}" for noun, _, features in asked], as_text=True)
    for (noun, form, features), answer in list(zip(asked, found, strict=True))[8::20]:
        print(f"    {noun}, {features}  ->  {answer}   ({form})")
    right = sum(answer == form for (_, form, _), answer in zip(asked, found, strict=True))
    print(f"{right / len(asked):.1%} of {len(asked)} forms of real nouns right")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
