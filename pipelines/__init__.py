"""From text on disk to batches of tensors: `read_pairs`, `CharTokenizer`, `batch_pairs`."""

import lazy_loader

# The names in __init__.pyi, imported on first use, so that code that does not need TensorFlow does not wait for it.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
