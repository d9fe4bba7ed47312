"""Letters to phones, with data of your own: a file of `word TAB phones`, one word a line.

python letters_to_phones.py

The words are those of the phrasebook's Spanish side; the rules below write their pronunciation in Latin America. A
dictionary of your own takes the place of `words.tsv`.
"""

import re
import tempfile
from pathlib import Path

from pipelines import read_pairs
from seq2seq import Config, train

# The first rule that fits at a place of the word applies; a letter without a rule is its own phone.
RULES = {
    "ch": "tʃ", "ll|y(?=.)": "ʝ", "rr|^r": "r", "r": "ɾ", "qu(?=[eéií])|c(?=[^eéií]|$)": "k", "c|z": "s", "h": "",
    "gu(?=[eéií])": "ɡ", "gü": "ɡ w", "g(?=[eéií])|j|(?<=m[eé])x(?=ic)": "x", "g": "ɡ", "v": "b", "ñ": "ɲ",
    "x": "k s", "y": "i", "á": "a", "é": "e", "í": "i", "ó": "o", "ú|ü": "u",
}  # fmt: skip


def phones(word):
    """`queso` becomes `k e s o`."""
    rules = "|".join(f"({letters})" for letters in RULES) + "|."
    by_rule = lambda at: [*RULES.values()][at.lastindex - 1] if at.lastindex else at[0]  # noqa: E731
    return " ".join(f"{by_rule(at)}" for at in re.finditer(rules, word) if by_rule(at))


def main(folder):
    texts = " ".join(target.decode().lower() for _, target in read_pairs("phrasebook").as_numpy_iterator())
    words = sorted(set(re.findall(r"[a-zñáéíóúü]+", texts)))
    pairs = [(word, phones(word)) for word in words]
    held_out, training = pairs[::10], [pair for n, pair in enumerate(pairs) if n % 10]
    (folder / "words.tsv").write_text("".join(f"{word}\t{right}\n" for word, right in training), encoding="utf-8")

    # Letters on one side, phones between spaces on the other, and a small model that learns fast. For real words, take
    # the larger one of `seq2seq.configure("grapheme-to-phoneme", corpus=...)`.
    tokens = {"source_tokenizer": "letter", "target_tokenizer": "whitespace", "validation_fraction": 0}
    small = {"cell": "gru", "units": 64, "learning_rate": 0.01, "dropout": 0.1, "updates": 400}
    model = train(Config(str(folder / "words.tsv"), **tokens, **small), folder / "run")

    found = model.translate([word for word, _ in held_out], "beam", as_text=True)
    for (word, right), text in list(zip(held_out, found, strict=True))[::30]:
        print(f"    {word}  ->  {text}   ({right})")
    wrong = sum(text != right for (_, right), text in zip(held_out, found, strict=True))
    print(f"{wrong / len(held_out):.1%} of {len(held_out)} words that were held out have a wrong phone")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
