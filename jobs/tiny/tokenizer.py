"""A small byte-pair vocabulary in CLIP's file format."""

import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

from jobs.tiny import emoji, latent, scene

START, END = "<|startoftext|>", "<|endoftext|>"
# CLIP's own pre-tokeniser.
WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+")
# Words of later parts (styles, concepts) and common prompt words, so that they are not spelled in bytes.
OTHER_WORDS = (
    "style flat blob pixel art sepia pastel dinosaur dull vaporwave photo realistic beautiful detailed cute funny big "
    "large tiny little old new happy sad the of in with at to by for my your his her is are two three many some best "
    "quality worst bad low high blurry masterpiece night day light dark brown colourful colorful bright simple nice"
)


def _byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, extra = {}, 0
    for byte in range(256):
        if byte in printable:
            table[byte] = chr(byte)
        else:
            table[byte] = chr(256 + extra)
            extra += 1
    return [table[byte] for byte in (*printable, *(b for b in range(256) if b not in printable))]


def count_words(config: dict[str, Any]) -> Counter[str]:
    """How often each word stands in the captions."""
    rng, nouns = random.Random(0), emoji.load_nouns()
    counts: Counter[str] = Counter()
    for item in latent.list_scenes(config):
        counts.update(WORD.findall(scene.describe(item, nouns, rng).lower()))
    counts.update(dict.fromkeys(OTHER_WORDS.split(), 20))
    return counts


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged, index = [], 0
    while index < len(word):
        if word[index : index + 2] == pair:
            merged.append(pair[0] + pair[1])
            index += 2
        else:
            merged.append(word[index])
            index += 1
    return tuple(merged)


def learn_merges(counts: Counter[str], limit: int) -> list[tuple[str, str]]:
    """Byte-pair merges, the most frequent pair first. Only ASCII words are learned from."""
    words = {(*word[:-1], f"{word[-1]}</w>"): count for word, count in counts.items() if word.isascii()}
    merges = []
    while len(merges) < limit:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = {_merge(word, best): count for word, count in words.items()}
    return merges


def write_tokenizer(merges: list[tuple[str, str]], folder: Path) -> None:
    """Write the files `CLIPTokenizer.from_pretrained` reads."""
    alphabet = _byte_alphabet()
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *(a + b for a, b in merges), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges)]) + "\n")
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    settings = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77}
    settings |= {"tokenizer_class": "CLIPTokenizer", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1))


def build(config: dict[str, Any], out: Path) -> None:
    """Side effects: writes `out`/tokenizer."""
    write_tokenizer(learn_merges(count_words(config), config["tokenizer"]["merges"]), out / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    for text in ("a red apple on a blue background", "T-shirt, zzqx wombat 7!", ""):
        print(len(tokenizer), text, tokenizer.tokenize(text), tokenizer(text).input_ids, flush=True)
