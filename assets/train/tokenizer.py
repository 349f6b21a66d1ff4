"""A CLIP tokenizer for the world's words: python tokenizer.py

Byte-level BPE as CLIP has it, merged until every word of the captions is one token. Words that no
caption holds (held-out things, names of one's own) fall into pieces, as they should.
"""
import collections
import json
import os
import re

from common import LENGTH, path
from world import World, concepts, article

PATTERN = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]+")


def byte_letters():
    """CLIP's printable stand-ins for the 256 bytes, in its order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(rest))]


def train(words):
    """words: how often each occurs. Merges until each is one token."""
    split = {w: (*w[:-1], w[-1] + "</w>") for w in words}
    merges = []
    while True:
        pairs = collections.Counter()
        for w, s in split.items():
            for p in zip(s, s[1:]):
                pairs[p] += words[w]
        if not pairs:
            return merges
        a, b = max(pairs, key=lambda p: (pairs[p], p))
        merges.append((a, b))
        for w, s in split.items():
            out, i = [], 0
            while i < len(s):
                hit = s[i:i + 2] == (a, b)
                out.append(a + b if hit else s[i])
                i += 2 if hit else 1
            split[w] = tuple(out)


def main():
    world, words = World(5), collections.Counter()
    for _ in range(8000):
        for w in PATTERN.findall(world.sample()[1]):
            words[w] += 1
    letters = byte_letters()
    merges = train(words)
    tokens = letters + [c + "</w>" for c in letters] + [a + b for a, b in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder = path("model", "tokenizer", "x")[:-2]
    json.dump({t: i for i, t in enumerate(tokens)}, open(folder + "/vocab.json", "w"),
              ensure_ascii=False)
    with open(folder + "/merges.txt", "w") as f:
        f.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = dict(bos_token="<|startoftext|>", eos_token="<|endoftext|>",
                   unk_token="<|endoftext|>", pad_token="<|endoftext|>")
    json.dump(special, open(folder + "/special_tokens_map.json", "w"), indent=1)
    json.dump(dict(special, add_prefix_space=False, do_lower_case=True, errors="replace",
                   model_max_length=LENGTH, tokenizer_class="CLIPTokenizer"),
              open(folder + "/tokenizer_config.json", "w"), indent=1)

    from transformers import CLIPTokenizer
    tok = CLIPTokenizer.from_pretrained(folder)
    longest = max((len(tok(world.sample()[1]).input_ids) for _ in range(3000)))
    held = [len(tok(article(r[1])).input_ids) - 2 for r in concepts("held")]
    print(len(tokens), "tokens,", len(words), "words, longest caption", longest,
          "held-out names take %.1f tokens" % (sum(held) / len(held)))


if __name__ == "__main__":
    main()
