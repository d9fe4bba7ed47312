"""Training on a stream: a Python generator makes the pairs during training, and they are never all in memory.

python streaming.py

The task: convert dates as people write them to ISO 8601. Replace `dates` by a generator of your own, such as one that
reads a database.
"""

import datetime
import random

import keras
import tensorflow as tf

from pipelines import CharTokenizer, batch_pairs
from seq2seq import Seq2Seq

STYLES = ["%B %d, %Y", "%d %B %Y", "%A, %d %b %Y", "%d/%m/%Y"]
START, DAYS = datetime.date(1900, 1, 1), 60_000  # to 2064


def written(day, drawn):
    """A day, in a style that the random numbers `drawn` choose, and as ISO 8601 writes it."""
    date = START + datetime.timedelta(day)
    return date.strftime(drawn.choice(STYLES)), date.isoformat()


def dates():
    """Yield pairs of texts without end, the same each time; every tenth day is held out."""
    drawn = random.Random(0)  # its own, as the pipeline reads ahead in another thread
    while True:
        day = drawn.randrange(DAYS)
        if day % 10:
            yield written(day, drawn)


def main(steps=240):
    keras.utils.set_random_seed(0)
    text = tf.TensorSpec([], tf.string)
    stream = tf.data.Dataset.from_generator(dates, output_signature=(text, text))

    source, target = CharTokenizer(), CharTokenizer("0123456789-")
    source.adapt(stream.map(lambda source, _: source).take(2000))  # a sample: the characters are soon known

    # `window`: this many pairs are shuffled, grouped by length and cut into batches; the next ones are not read yet.
    batches = batch_pairs(stream, source, target, batch_size=64, window=64 * 20)
    model = Seq2Seq(source, target, cell="gru", units=64, bidirectional=True, attention="general")
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, steps)))
    model.fit(batches, steps_per_epoch=steps // 3, epochs=3, verbose=2)

    drawn = random.Random(1)
    texts, right = zip(*(written(day, drawn) for day in range(0, DAYS, 100)), strict=True)
    found = model.translate(texts, as_text=True)
    for text, iso in zip(texts[:4], found, strict=False):
        print(f"    {text}  ->  {iso}")
    correct = sum(one == other for one, other in zip(found, right, strict=True))
    print(f"{correct / len(right):.1%} of {len(right)} held-out days right")


if __name__ == "__main__":
    main()
