"""Textual inversions in the text tower, with transformers on the tiny Stable Diffusion models.

    python tests/golden/words.py

(torch 2.15, transformers 5.24) writes tests/golden/data/words.safetensors, read by tests/test_words.c:
for each model and prompt the token ids, found as A1111 finds embeddings in a prompt (longest name first,
by tokens), a word's places being -1 - (row of its first vector), -2 - …; and the last hidden states with
the input embeddings there replaced by the vectors.
"""
import os

import torch
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

HERE = os.path.dirname(os.path.abspath(__file__)) + "/data/"
WORDS = [("birb-style", 2), ("<krk>", 1), ("owl", 3), ("owl key", 1)]
PROMPTS = ["a birb-style key", "an Owl, BIRB-style.", "<krk> and a red owl <krk>",
           "owl birb-style owls an owl key owl", "nothing of them"]


def ids_of(tokenizer, text, length):
    plain = lambda s: tokenizer(s, add_special_tokens=False)["input_ids"]
    known, row = [], 0
    for name, n in WORDS:
        known.append((plain(name), row, n))
        row += n
    known.sort(key=lambda k: -len(k[0]))
    ids, out, i = plain(text), [], 0
    while i < len(ids):
        hit = next((k for k in known if ids[i:i + len(k[0])] == k[0]), None)
        if hit:
            out += [-1 - hit[1] - k for k in range(hit[2])]
            i += len(hit[0])
        else:
            out.append(ids[i])
            i += 1
    assert len(out) <= length - 2, (text, len(out))
    out = [tokenizer.bos_token_id] + out + [tokenizer.eos_token_id]
    return out + [tokenizer.pad_token_id] * (length - len(out))


@torch.no_grad()
def main():
    out = {}
    for name in ("tiny-sd1", "tiny-sd2"):
        model = CLIPTextModel.from_pretrained(HERE + name + "/text_encoder", dtype=torch.float32)
        model.eval()
        tokenizer = CLIPTokenizer.from_pretrained(HERE + name + "/tokenizer")
        width, length = model.config.hidden_size, model.config.max_position_embeddings
        g = torch.Generator().manual_seed(11)
        vec = torch.randn(sum(n for _, n in WORDS), width, generator=g)
        ids = torch.tensor([ids_of(tokenizer, p, length) for p in PROMPTS])

        def replace(module, args, x):
            x = x.clone()
            for at in (ids < 0).nonzero().tolist():
                x[tuple(at)] = vec[-1 - ids[tuple(at)]]
            return x

        table = next(m for n, m in model.named_modules() if n.endswith("token_embedding"))
        hook = table.register_forward_hook(replace)
        hidden = model(ids.clamp(min=0)).last_hidden_state
        hook.remove()
        assert not torch.allclose(hidden[0], model(ids.clamp(min=0)).last_hidden_state[0])
        out |= {name + ".vec": vec, name + ".ids": ids.int(), name + ".hidden": hidden}
    save_file({k: v.contiguous() for k, v in out.items()}, HERE + "words.safetensors")


main()
