"""A plain PyTorch LSTM encoder-decoder, to measure this library against; run by `speed.py`. It imports no TensorFlow.

As one writes it with what PyTorch offers: embeddings, packed sequences, batches sorted by length, Luong's attention
after the recurrence for all steps at once, Adam, gradients clipped; greedy decoding step by step for a whole batch. On
a GPU it runs there: cuDNN, fused Adam, products as PyTorch rounds them by default.
"""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

PADDING, START, END = 0, 2, 3


class Translator(nn.Module):
    def __init__(self, source_size, target_size, units, embedding, attention, layers=1):
        super().__init__()
        self.source_vectors = nn.Embedding(source_size, embedding, padding_idx=PADDING)
        self.target_vectors = nn.Embedding(target_size, embedding, padding_idx=PADDING)
        self.encoder = nn.LSTM(embedding, units, layers, batch_first=True)
        self.decoder = nn.LSTM(embedding, units, layers, batch_first=True)
        self.attention = attention
        self.combine = nn.Linear(2 * units, units, bias=False)
        self.output = nn.Linear(units, target_size)

    def encode(self, source, lengths):
        packed = pack_padded_sequence(self.source_vectors(source), lengths, batch_first=True, enforce_sorted=False)
        memory, state = self.encoder(packed)
        return pad_packed_sequence(memory, batch_first=True)[0], state

    def logits(self, output, memory, mask):
        if self.attention:
            scores = output @ memory.transpose(1, 2)
            weights = scores.masked_fill(~mask[:, None], float("-inf")).softmax(-1)
            output = torch.tanh(self.combine(torch.cat([weights @ memory, output], -1)))
        return self.output(output)

    def forward(self, source, target, source_lengths, target_lengths):
        memory, state = self.encode(source, source_lengths)
        packed = pack_padded_sequence(
            self.target_vectors(target), target_lengths, batch_first=True, enforce_sorted=False
        )
        output, _ = pad_packed_sequence(self.decoder(packed, state)[0], batch_first=True)
        return self.logits(output, memory, source != PADDING)

    @torch.inference_mode()
    def greedy(self, source, steps):
        """Ids `[B, steps]`: as many steps for every row, so that work does not depend on what has been learned."""
        memory, state = self.encode(source, lengths(source))
        mask = source != PADDING
        token = torch.full([len(source), 1], START, device=source.device)
        ids = []
        for _ in range(steps):
            output, state = self.decoder(self.target_vectors(token), state)
            token = self.logits(output, memory, mask).argmax(-1)
            ids.append(token)
        return torch.cat(ids, 1)


def lengths(ids):
    """The lengths of rows, on the CPU, as packing needs them."""
    return (ids != PADDING).sum(1).cpu()


def trainer(model):
    """A function that takes one step of (source ids, target ids and the lengths of both) and returns the loss, in nats
    a real token, as a tensor. It never waits for the device."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=next(model.parameters()).is_cuda)

    def step(source, target, *lengths):
        optimizer.zero_grad()
        logits = model(source, target[:, :-1], *lengths)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=PADDING)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return step
