"""Two tasks for the classroom: reversing a word, and adding two numbers.

python classroom.py

Both use pairs of texts that a program generates, so there are as many as you like, and the correct answer is known. The
model sees only characters and does not know what a number is. It is tested on pairs that it was not trained on.
"""

import random
import string

import keras

from pipelines import CharTokenizer, batch_pairs, read_pairs
from seq2seq import Seq2Seq


def words_and_their_reverse(count=4000):
    """Random words of three to eight letters: `abc` becomes `cba`."""
    words = {"".join(random.choices(string.ascii_lowercase, k=random.randint(3, 8))) for _ in range(count)}
    return [(word, word[::-1]) for word in sorted(words)]


def sums():
    """All sums of two numbers below 100, the digits of all numbers in reverse, so that the ones come first and a carry
    is known before it is needed: `7+52` for 7 + 25 becomes `23`. For most held-out sums, the training set has the same
    sum with its two numbers exchanged."""
    return [(f"{a}"[::-1] + "+" + f"{b}"[::-1], f"{a + b}"[::-1]) for a in range(100) for b in range(100)]


def learn(task, pairs, epochs, **options):
    """Train a model on nine pairs in ten, and print the share of the others that it answers without an error."""
    random.shuffle(pairs)
    held_out, training = pairs[: len(pairs) // 10], pairs[len(pairs) // 10 :]
    source, target = CharTokenizer(), CharTokenizer()
    source.adapt([question for question, _ in training])
    target.adapt([answer for _, answer in training])
    model = Seq2Seq(source, target, attention="general", **options)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, epochs * len(training) // 64)))
    model.fit(batch_pairs(read_pairs(training), source, target, batch_size=64), epochs=epochs, verbose=2)

    found = model.translate([question for question, _ in held_out], as_text=True)
    for (question, answer), given in list(zip(held_out, found, strict=True))[:3]:
        print(f"    {question}  ->  {given}   ({answer})")
    right = sum(answer == given for (_, answer), given in zip(held_out, found, strict=True))
    print(f"{task}: {right / len(held_out):.1%} of {len(held_out)} held-out pairs right")


if __name__ == "__main__":
    random.seed(0)
    keras.utils.set_random_seed(0)
    learn("reversing", words_and_their_reverse(), epochs=10, cell="gru", units=64)
    learn("adding", sums(), epochs=15, cell="gru", units=64)
