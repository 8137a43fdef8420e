"""A tokenizing process: batches of texts in, arrays of tokens out. As a script it imports nothing but tokenizers."""

import pickle
import sys
from itertools import chain

import numpy as np
from tokenizers import Tokenizer


def load(description: str) -> Tokenizer:
    """The tokenizer that `to_str` serialized, set to encode every text unchanged and in full."""
    tokenizer = Tokenizer.from_str(description)
    tokenizer.encode_special_tokens = True  # a text that holds "<|endoftext|>" is text, not the end of it
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str], eos: int, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The texts' tokens end to end, each text ended by EOS, (tokens,) of dtype `kind`; tokens and UTF-8 bytes per text,
    both (texts,) int64."""
    encoded = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    for ids in encoded:
        ids.append(eos)
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    tokens = np.fromiter(chain.from_iterable(encoded), kind, int(lengths.sum()))
    return tokens, lengths, np.fromiter((len(text.encode()) for text in texts), np.int64, len(texts))


def main() -> None:
    """Answer each batch from stdin on stdout until stdin ends: then the parent is done, or dead."""
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    description, eos, kind = pickle.load(questions)
    tokenizer = load(description)
    while True:
        try:
            texts = pickle.load(questions)
        except EOFError:
            return
        pickle.dump(encode(tokenizer, texts, eos, kind), answers, protocol=5)
        answers.flush()


if __name__ == "__main__":
    main()
