# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---
# %% [markdown]
"""
# Sequence to sequence in ten minutes

A model reads an English sentence character by character, and writes the Spanish one. This notebook trains it (several
minutes on two cores), looks inside, and saves it. [The tutorial](../docs/tutorial.md) explains the steps, and compares
them with those of the old Keras tutorial.

**To open it elsewhere:** in a copy of the repository, `pip install '.[plots]' jupyterlab`, then
`jupyter lab examples/tutorial.ipynb`. On Colab or Kaggle, upload the notebook and a wheel (`python -m build` makes
`dist/keras_seq2seq-0.1.0-py3-none-any.whl`), and begin with a cell `%pip install 'FILE.whl[plots]'`.

**It is generated** from `examples/tutorial.py`, by jupytext: `python tests/test_notebook.py`, with the extra `test`.
"""

# %%
import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # before TensorFlow is imported: fewer of its messages

import keras
from IPython.display import SVG, display

from pipelines import CharTokenizer, batch_pairs, read_pairs, split_by_hash
from seq2seq import Seq2Seq
from seq2seq.pictures import attention_svg

keras.utils.set_random_seed(0)

# %% [markdown]
"""
## Pairs of texts

`read_pairs` returns a `tf.data.Dataset` of pairs of strings, which is read when it is used. Here they come from the
phrasebook that is part of the library; a file with `source TAB target` on each line is read in the same way. One source
in twenty is held out, to measure the model on sentences that it has not seen.
"""

# %%
source_tokenizer, target_tokenizer = CharTokenizer(), CharTokenizer()
training, held_out = split_by_hash(read_pairs("phrasebook"), 0.05, source_tokenizer)
for source, target in training.take(3).as_numpy_iterator():
    print(f"{source.decode()}  ->  {target.decode()}")

# %% [markdown]
"""
## Numbers

A tokenizer turns texts into ids. Its vocabulary comes from the training pairs. Ids 0 to 3 are reserved: padding,
unknown characters, the start and the end of a text.
"""

# %%
source_tokenizer.adapt(training.map(lambda source, _: source))
target_tokenizer.adapt(training.map(lambda _, target: target))
print(target_tokenizer.vocabulary_size, "ids")
print(target_tokenizer.tokenize(["Buenos días."], start_end=True))

# %% [markdown]
"""
## Batches

`batch_pairs` puts pairs of similar length together, so that little is padded. A batch is one-hot: texts, by the
characters of the longest, by the size of the vocabulary.
"""

# %%
batches = batch_pairs(training, source_tokenizer, target_tokenizer, batch_size=64)
validation = batch_pairs(held_out, source_tokenizer, target_tokenizer, shuffle=False)
source, target = next(iter(batches))
print(source.shape, target.shape)

# %% [markdown]
"""
## The model

An LSTM reads the source in both directions. Another writes the target, and looks back at the source before each
character (attention). In training, it is given the correct characters so far, not its own predictions:
teacher forcing.
"""

# %%
model = Seq2Seq(
    source_tokenizer, target_tokenizer, units=256, bidirectional=True, embedding=64, attention="general", dropout=0.3
)
epochs = 38
model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, epochs * 55)))
history = model.fit(batches, validation_data=validation, epochs=epochs, verbose=2)

# %% [markdown]
"""
## Translations

Greedy search takes the most likely character at each step. A beam search keeps five translations at a time, and
often finds a better one.
"""

# %%
sentences = ["Good morning.", "Where is the station?", "My brother lives here."]
for search in ("greedy", "beam"):
    for sentence, text in zip(sentences, model.translate(sentences, search, as_text=True), strict=True):
        print(f"{search:6}  {sentence}  ->  {text}")

# %% [markdown]
"""
How likely is a translation, according to the model? `score` returns log-likelihoods: closer to zero is more likely.
"""

# %%
print(model.score(["Good morning."] * 2, ["Buenos días.", "Buenas noches."]).numpy())

# %% [markdown]
"""
## Attention

Each row is a character of the last translation above, each column one that the model read.
"""

# %%
(alignment,) = model.attention([sentence], [text])
display(SVG(attention_svg(alignment)))

# %% [markdown]
"""
## Saving

The tokenizers are part of the file, so the loaded model translates text again.
"""

# %%
model.save("tutorial.keras")
print(keras.models.load_model("tutorial.keras").translate(["Good morning."]))

# %% [markdown]
"""
From here: [corpora of your own](../docs/guides/corpora.md), [presets and options](../docs/guides/options.md),
[a class of your own](../docs/guides/extending.md). The command line does all of the above, and saves checkpoints on the
way: `seq2seq train`.
"""
