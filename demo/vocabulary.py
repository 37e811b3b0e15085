"""Make the demo's `vocab.json` and `merges.txt`: `python -m demo.vocabulary --out DIR`.

The layout is CLIP's. Every byte is a token, so that any text can be a prompt, and so is every word of the demo's
prompts.
"""

import argparse
import json
from itertools import product
from pathlib import Path

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from demo.dataset import COLOURS, RELATIONS, SHAPES, SIZES, Figure, pair_prompt, single_prompt
from sd_core.text.tokenizer import BOS, EOS, MERGES_FILE, VOCAB_FILE


def corpus() -> list[str]:
    """The prompts from whose words the merges are learned."""
    singles = [single_prompt(*words) for words in product(SIZES, COLOURS, SHAPES, COLOURS)]
    first, second = Figure("red", "circle"), Figure("blue", "square")
    return singles + [pair_prompt(first, relation, second, "white") for relation in RELATIONS] * 100


def train() -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens in CLIP's order (bytes, bytes that end a word, merges, start, end) and the merges."""
    tokenizer = Tokenizer(BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(vocab_size=4096, show_progress=False, end_of_word_suffix="</w>", min_frequency=2)
    words = [word for prompt in corpus() for word in prompt.split()]
    tokenizer.train_from_iterator(words, trainer)
    merges = [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(merge) for merge in merges), BOS, EOS]
    return tokens, merges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    tokens, merges = train()
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (out / VOCAB_FILE).write_text(json.dumps(vocabulary, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (out / MERGES_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
