"""A tokenizing process: batches of texts in, arrays of tokens out. Run as a script, it imports tokenizers alone."""

import pickle
import sys
from itertools import chain

import numpy as np
from tokenizers import Tokenizer


def load(description: str) -> Tokenizer:
    """The tokenizer that `to_str` described, set to take every text as it is and whole."""
    tokenizer = Tokenizer.from_str(description)
    tokenizer.encode_special_tokens = True  # a text that holds "<|endoftext|>" is text, and ends nothing
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str], eos: int, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The texts' tokens end to end, each text's ended by EOS, (all tokens,) of dtype `kind`; lengths; UTF-8 bytes."""
    found = [each.ids for each in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    for ids in found:
        ids.append(eos)
    lengths = np.fromiter(map(len, found), np.int64, len(found))
    tokens = np.fromiter(chain.from_iterable(found), kind, int(lengths.sum()))
    return tokens, lengths, np.fromiter((len(text.encode()) for text in texts), np.int64, len(texts))


def main() -> None:
    """Answer each batch of stdin on stdout, until stdin ends: then the parent is done, or dead."""
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
