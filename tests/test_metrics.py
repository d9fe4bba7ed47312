import numpy as np
import tensorflow as tf

from seq2seq.metrics import Perplexity, token_accuracy, token_crossentropy

LABELS = np.eye(3)[[[0, 1], [2, 0]]] * [[[1], [1]], [[1], [0]]]  # the second row ends in padding
LOGITS = np.array([[[2.0, 0, 0], [2, 0, 0]], [[0, 0, 2], [5, 0, 0]]])
WEIGHTS = LABELS.sum(-1)
NATS = [np.log(np.exp(2) + 2) - 2, np.log(np.exp(2) + 2), np.log(np.exp(2) + 2) - 2]  # of the three real tokens


def test_loss_accuracy_and_perplexity_count_real_tokens_only():
    np.testing.assert_allclose(token_crossentropy()(LABELS, LOGITS, WEIGHTS), np.mean(NATS), rtol=1e-6)
    accuracy, perplexity = token_accuracy(), Perplexity()
    for metric in (accuracy, perplexity):
        metric.update_state(LABELS, LOGITS, sample_weight=WEIGHTS)
    np.testing.assert_allclose(accuracy.result(), 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(perplexity.result(), np.exp(np.mean(NATS)), rtol=1e-6)


def test_more_padding_changes_none_of_them():
    wider = [np.pad(array, [(0, 0), (0, 3), (0, 0)]) for array in (LABELS, LOGITS)]
    same = token_crossentropy()(*wider, np.pad(WEIGHTS, [(0, 0), (0, 3)]))
    tf.debugging.assert_near(same, token_crossentropy()(LABELS, LOGITS, WEIGHTS))
