"""Makes the goldens of tests/test_tokenizer.c with transformers' fast CLIPTokenizer.

    python tests/golden/tokenizer.py SHARED        (transformers 5.24.0, tokenizers 0.23.3)

SHARED is the folder that holds tokenizer/ (CLIP's own vocabulary) and prompts/; the small vocabulary is
the demo model's, assets/model/tokenizer. Written are, little-endian:

    data/tokenizer_generated.bin.gz   N (u32), then for each prompt its UTF-8 (u16 length, bytes) and for
                                      each vocabulary, CLIP's first, its ids (u16 count, u16 each)
    data/tokenizer_shared.bin         for each prompt of the files in PROMPTS, for each vocabulary, FNV-1a
                                      (64 bits) of its ids as u32: prompts that are not ours to copy

There is neither a start nor an end token in the ids.
"""
import gzip
import json
import os
import random
import struct
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
from transformers import CLIPTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
DEMO = os.environ.get("WEFT_DEMO_TOKENIZER", os.path.join(HERE, "../../assets/model/tokenizer"))
PROMPTS = ["3d_spatial_val.txt", "PartiPrompts.tsv", "color_val.txt", "complex_val.txt",
           "evaluation_metadata.jsonl", "generation_prompts.txt", "non_spatial_val.txt",
           "numeracy_val.txt", "shape_val.txt", "spatial_val.txt", "texture_val.txt"]
COUNT = 5000

WORDS = """a the of in on with and by red apple blue key small owl castle photo portrait masterpiece
best quality detailed cinematic lighting studio ghibli greg rutkowski artstation volumetric fog neon
city astronaut horse dragon teapot watercolour oil painting 35mm bokeh ultra-realistic hyperdetailed
don't it's they're we've i'm she'll he'd cat's dogs' rock'n'roll CAPS MiXeD iPhone x-ray e.g. t-shirt
donaudampfschifffahrtsgesellschaft antidisestablishmentarianism sks ohwx zwx""".split()
ACCENTED = """café naïve Zürich Ångström São Łódź œuvre fiancée jalapeño Türkiye İstanbul ISTANBUL ıslak
Straße STRASSE ẞ ß Σίσυφος ΣΊΣΥΦΟΣ ὈΔΥΣΣΕΎΣ Москва ЁЛКА Ǆ ǅ ﬁne ﬀ ﬃ ﬆ Đặng Nguyễn ậ ș ț Ḱ ẛ̣ Å K Ω""".split()
SCRIPTS = """猫 東京タワー 夜景 美しい 生活的真谛是 龍 ｆｕｌｌ ﾊﾝｶｸ カ゛ が 고양이 한국어 ㄱㅏ 각 힣 مرحبا بالعالم قطة ١٢٣ שלום
שָׁלוֹם สวัสดี แมว น้ำ नमस्ते बिल्ली क़ বিড়াল தமிழ் ខ្មែរ ༄༅ ქართული Ქ հայ አማርኛ ᏣᎳᎩ ꭰ ᠮᠣᠩ 𐐀𐐨 𝒜 𝟘𝟡 𠮷 𪚥""".split()
EMOJI = """😂 👍 ❤️ ❤ 👩‍👩‍👧‍👦 🏴󠁧󠁢󠁥󠁮󠁧󠁿 👨🏻‍❤️‍💋‍👨🏼 🇫🇷 1️⃣ ☆ ★ ✨ 🧑‍🤝‍🧑 🕵️‍♂️ 🫠 🩷 🫨 🥳 ☺ ♂ ™ ©""".split()
DIGITS = "0 7 10 1024 3.14 1,000 ½ ² Ⅷ ⅷ ① ٣ ४२ ৫ ๙ 〇 ５ 𝟗 ↉ ੧ ௧ ⑩ 10k 4k 8K 1girl 2d x264".split()
PUNCTUATION = """, . ! ? !!! ... … ?! -- — «» “q” ‘q’ ( ) (( )) [ ] {a|b} ~ ～ ^_^ :) :-( </w> <w> _ __init__ # ##
@ $5 €4 £ ¥ ₹ 100% & && * ** + = == / // \\ | || ' '' ''' " ` ´ ¨ ¿ ¡ 、 。 ・ 「」 ― ▁ ∑ √ → ␀ ﹏ ׳ ྾""".split()
CONTRACTED = """'s 'S 't 'T 're 'RE 'Re 've 'VE 'm 'M 'll 'LL 'Ll 'd 'D ''s 's's 'sx '1s ’s ´s 'ſ 'İ n't I'LLBE
y'all'd've 'tis !'s -'re""".split()
SPECIAL = """<|endoftext|> <|startoftext|> <|ENDOFTEXT|> <|StartOfText|> <|endoftext <|endoftext|>> <<|endoftext|>
!<|endoftext|>! a<|startoftext|>b <|endoftext|><|endoftext|> <|endofte×t|> |> <| <|startoftext|>'s <|İ|>""".split()
SPACES = [" ", " ", " ", " ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\u2028", "\u0085",
          "\u202f", "\u200b", "\u180e", "\ufeff", "\u001c", "\u000b", " \u3000\n "]
MARKS = [0x300, 0x301, 0x302, 0x303, 0x304, 0x307, 0x308, 0x30a, 0x30c, 0x323, 0x327, 0x328, 0x331, 0x334, 0x338,
         0x345, 0x34f, 0x5b0, 0x5b4, 0x5c1, 0x64b, 0x651, 0x93c, 0x94d, 0xe38, 0xe48, 0x3099, 0x309a, 0x200d, 0xfe0f,
         0x1ac1, 0x8d3, 0x20d0, 0x1d165, 0x1e944]
# Characters that not every version of Unicode knows, and some that none does.
NEW = [0x1c89, 0xa7cb, 0xa7da, 0xa7dc, 0x10d50, 0x10d6a, 0x10d40, 0x11383, 0x11382, 0x113c9, 0x16121, 0x1611e, 0x11938,
       0x11935, 0x11930, 0x105c9, 0x105d2, 0x307, 0x1f777, 0x1fadc, 0x31350, 0x2ebf0, 0x13460, 0x1e4ec, 0x1e4d0,
       0x1ccf0, 0x16ea0, 0xa7d2, 0x88f, 0x0378, 0xe000, 0xf8ff, 0xfffe, 0xffff, 0x10ffff, 0x1fffe, 0xe0041, 0, 1, 0x7f,
       0x80, 0xad, 0xfffd, 0x2e80, 0x1f3fb]


def letters(rng):
    first, last = rng.choice([(0x61, 0x7a), (0x41, 0x5a), (0xc0, 0x24f), (0x370, 0x3ff), (0x400, 0x4ff),
                              (0x1e00, 0x1fff), (0x4e00, 0x9fff), (0xac00, 0xd7a3), (0x1100, 0x11ff),
                              (0x600, 0x6ff), (0xe00, 0xe7f), (0x2c00, 0x2dff), (0xa640, 0xa7ff),
                              (0x900, 0x97f), (0x1f600, 0x1f64f), (0xfb00, 0xfb4f), (0x2100, 0x214f)])
    return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 4)))


def anything(rng):
    while True:
        c = rng.choice([rng.randint(0x20, 0x3ff), rng.randint(0, 0xffff), rng.randint(0, 0x10ffff)])
        if not 0xd800 <= c < 0xe000:
            return chr(c)


def marked(rng):
    return rng.choice("aeiouAEIOUnscİkΩ각가") + "".join(chr(rng.choice(MARKS)) for _ in range(rng.randint(1, 4)))


PARTS = [(30, lambda r: r.choice(WORDS)), (9, lambda r: r.choice(ACCENTED)), (8, lambda r: r.choice(SCRIPTS)),
         (7, lambda r: r.choice(EMOJI)), (7, lambda r: r.choice(DIGITS)), (9, lambda r: r.choice(PUNCTUATION)),
         (7, lambda r: r.choice(CONTRACTED)), (3, lambda r: r.choice(SPECIAL)), (6, letters), (4, anything), (5, marked),
         (3, lambda r: chr(r.choice(NEW))), (2, lambda r: r.choice("!?.,-*'|<>") * r.randint(2, 9))]


def prompt(rng):
    length = rng.choices([rng.randint(0, 2), rng.randint(2, 7), rng.randint(300, 310)], [60, 300, 1])[0]
    text = ""
    for kind in rng.choices([part for _, part in PARTS], [weight for weight, _ in PARTS], k=length):
        text += kind(rng)
        if rng.random() < 0.75:
            text += rng.choice(SPACES)
    return text


def shared_prompts(folder):
    for name in PROMPTS:
        for line in open(os.path.join(folder, name), encoding="utf-8", newline="\n").read().split("\n")[:-1]:
            if name.endswith(".tsv"):
                line = line.split("\t")[0]
            elif name.endswith(".jsonl"):
                line = json.loads(line)["prompt"]
            yield line


def encode(tokenizer, prompts):
    return tokenizer(prompts, add_special_tokens=False, verbose=False)["input_ids"]


def fnv(ids):
    h = 0xcbf29ce484222325
    for b in struct.pack(f"<{len(ids)}I", *ids):
        h = (h ^ b) * 0x100000001b3 % 2**64
    return h


def main(shared):
    tokenizers = [CLIPTokenizer.from_pretrained(d) for d in (os.path.join(shared, "tokenizer"), DEMO)]
    rng = random.Random(1)
    prompts = [prompt(rng) for _ in range(COUNT)]
    out = [struct.pack("<I", len(prompts))]
    for text, *ids in zip(prompts, *(encode(t, prompts) for t in tokenizers)):
        data = text.encode()
        out.append(struct.pack("<H", len(data)) + data)
        out += [struct.pack(f"<H{len(i)}H", len(i), *i) for i in ids]
    with open(os.path.join(HERE, "data/tokenizer_generated.bin.gz"), "wb") as f:
        f.write(gzip.compress(b"".join(out), 9, mtime=0))
    prompts = list(shared_prompts(os.path.join(shared, "prompts")))
    with open(os.path.join(HERE, "data/tokenizer_shared.bin"), "wb") as f:
        for ids in zip(*(encode(t, prompts) for t in tokenizers)):
            f.write(struct.pack("<2Q", *map(fnv, ids)))
    print(COUNT, "generated,", len(prompts), "shared")


if __name__ == "__main__":
    main(sys.argv[1])
