"""Translation and scoring in NumPy: the equations alone, without Keras, in about fifty lines.

python from_scratch.py

It takes the weights of the model that comes with the library, an LSTM encoder-decoder with attention, and shows that
these equations compute the same: the same translations, and the same score of a given one.
"""

import numpy as np

from pipelines.tokens import END, START
from seq2seq import load_run


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


def lstm(x, state, weights):
    """One step of an LSTM (Hochreiter & Schmidhuber 1997): what to forget, what to add, and what to show."""
    h, c = state
    from_input, from_state, bias = weights
    add, keep, new, show = np.split(x @ from_input + h @ from_state + bias, 4)
    c = sigmoid(keep) * c + sigmoid(add) * np.tanh(new)
    h = sigmoid(show) * np.tanh(c)
    return h, c


def read(vectors, weights):
    """Run the LSTM over vectors, one after another; return the output at each, and the last state."""
    state = np.zeros(len(weights[1])), np.zeros(len(weights[1]))
    outputs = []
    for x in vectors:
        state = lstm(x, state, weights)
        outputs.append(state[0])
    return np.array(outputs), state


def encode(w, source):
    """The memory, a vector for each source token, and the state from which the decoder starts.

    One LSTM reads forwards, another one backwards (Schuster & Paliwal 1997), so that each vector of the memory knows
    both sides of its token.
    """
    vectors = w["source vectors"][source]
    forwards, (h, c) = read(vectors, w["forwards"])
    backwards, (h_back, c_back) = read(vectors[::-1], w["backwards"])
    memory = np.concatenate([forwards, backwards[::-1]], axis=1)
    return memory, (np.concatenate([h, h_back]), np.concatenate([c, c_back]))


def decode(w, token, state, memory):
    """The probability of each next token after this one, and the new state.

    Attention (Luong et al. 2015) compares the decoder's output with each vector of the memory, and adds their mean,
    weighted by how well each matches.
    """
    state = lstm(w["target vectors"][token], state, w["decoder"])
    output = state[0]
    attention = softmax(memory @ w["match"] @ output)
    context = attention @ memory
    output = np.tanh(np.concatenate([context, output]) @ w["combine"])
    return softmax(output @ w["output"] + w["bias"]), state


def translate(w, source, limit=200):
    """Greedy search: the likeliest token at each step, which is also the input of the next one."""
    memory, state = encode(w, source)
    tokens = [START]
    while tokens[-1] != END and len(tokens) < limit:
        probabilities, state = decode(w, tokens[-1], state, memory)
        tokens.append(END + probabilities[END:].argmax())  # the ids below END are no text
    return tokens[1:]


def log_likelihood(w, source, target):
    """The logarithm of P(target | source): the sum of those of its tokens, each after the correct ones before it.

    That is teacher forcing: the input of a step is the correct token, whatever the model would have said. Training
    adjusts the weights so that this number grows, by its gradient, which TensorFlow computes.
    """
    memory, state = encode(w, source)
    total, before = 0.0, START
    for token in [*target, END]:
        probabilities, state = decode(w, before, state, memory)
        total += np.log(probabilities[token])
        before = token
    return total


def weights_of(model):
    """The weights of a `Seq2Seq` of one layer in two directions, with `general` attention, by what they are for."""
    encoder, decoder = model.encoder, model.decoder
    (forwards, backwards), (only,) = encoder.recurrent[0].directions, decoder.recurrent[0].directions
    sides = [("source vectors", encoder.vectors), ("target vectors", decoder.vectors)]
    w = {name: vectors.matrix.numpy() * vectors.size**0.5 for name, vectors in sides}
    for name, layer in (("forwards", forwards), ("backwards", backwards), ("decoder", only)):
        w[name] = layer.get_weights()
    w["match"], w["combine"] = decoder.attention.key.kernel.numpy(), decoder.combine.kernel.numpy()
    w["output"], w["bias"] = decoder.output_layer.get_weights()
    return w


def main():
    model = load_run("phrasebook")
    w = weights_of(model)
    texts = ["Good morning.", "Where is the station?", "I don't understand."]
    sources, theirs = model.source_tokenizer.tokenize(texts), model.translate(texts, as_text=True)
    for source, text, by_library in zip(sources.numpy(), texts, theirs, strict=True):
        ids = translate(w, source[source > 0])
        ours = model.target_tokenizer.detokenize([ids]).numpy()[0]
        print(f"    {text}  ->  {ours.decode()}   (the library: {by_library})")

    source, target = sources.numpy()[0], model.target_tokenizer.tokenize(["Buenos días."]).numpy()[0]
    ours = log_likelihood(w, source[source > 0], target)
    score = float(model.score(["Good morning."], ["Buenos días."])[0])
    print(f"log P(Buenos días. | Good morning.) = {ours:.3f}, by the library {score:.3f}")


if __name__ == "__main__":
    main()
