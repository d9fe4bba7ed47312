"""A program that serves a translator without this library: it needs TensorFlow and tensorflow-text alone.

seq2seq export phrasebook exported/1
python serving.py exported/1 "Good morning." "My brother lives here."

`phrasebook` is the small English-Spanish model that comes with the library; any run folder can take its place. The
folder `exported/1` is all that the serving machine needs. Without texts, the program translates standard input line by
line.
"""

import sys

import tensorflow as tf
import tensorflow_text  # noqa: F401 (its operations are in the SavedModel: they bring texts into a normal form)


def main(folder, *texts):
    translator = tf.saved_model.load(folder)
    texts = tf.constant(texts or [line.rstrip("\n") for line in sys.stdin], tf.string)  # also if there are none
    greedy = translator.greedy(texts)["texts"].numpy()
    beam = translator.beam(texts)  # "texts", "scores" (log-likelihoods) and "ranked_by" of the five best, [N, 5] each
    for text, translation, best, score in zip(texts.numpy(), greedy, beam["texts"], beam["scores"], strict=True):
        print(f"{text.decode()}\n    greedy search: {translation.decode()}")
        print(f"    beam search:   {best[0].numpy().decode()}   (log-likelihood {score[0]:.2f})")


if __name__ == "__main__":
    main(*sys.argv[1:])
