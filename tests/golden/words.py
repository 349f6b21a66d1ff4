"""Textual inversions in the text tower, with transformers on the tiny Stable Diffusion models.

    python tests/golden/words.py

(torch 2.15, transformers 5.24, diffusers 0.42.1) writes tests/golden/data/words.safetensors, read by tests/test_words.c:
for each model and prompt the token ids, found as A1111 finds embeddings in a prompt (longest name first,
by tokens), a word's places being -1 - (row of its first vector), -2 - …; and the last hidden states with
the input embeddings there replaced by the vectors.

"layered.": a word of ED-LoRA's kind (torch_adapters.py's <c1>) in the first model: the states of a prompt for
each of the UNet's 16 cross attentions, and the UNet's output where each looks at its own.
"""
import os

import torch
from diffusers import UNet2DConditionModel
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


def in_order(name):
    return ["down", "mid_", "up_b"].index(name[:4]), name


@torch.no_grad()
def layered():
    dir_ = HERE + "tiny-sd1/"
    model = CLIPTextModel.from_pretrained(dir_ + "text_encoder", dtype=torch.float32).eval()
    unet = UNet2DConditionModel.from_pretrained(dir_ + "unet", torch_dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(dir_ + "tokenizer")
    vec = torch.load(HERE + "torch/ed_lora.pth")["params"]["new_concept_embedding"]["<c1>"]
    before, after = (tokenizer(s, add_special_tokens=False)["input_ids"] for s in ("a red", "and a key"))
    ids = [tokenizer.bos_token_id] + before + [-1] + after + [tokenizer.eos_token_id]
    ids = torch.tensor([ids + [tokenizer.pad_token_id] * (model.config.max_position_embeddings - len(ids))])
    table = next(m for n, m in model.named_modules() if n.endswith("token_embedding"))
    hidden = []
    for v in vec:
        hook = table.register_forward_hook(
            lambda module, args, x, v=v: torch.where((ids < 0)[..., None], v, x))
        hidden.append(model(ids.clamp(min=0)).last_hidden_state)
        hook.remove()
    names = sorted((n for n, _ in unet.named_modules() if n.endswith("attn2")), key=in_order)
    assert len(names) == len(vec) == 16
    for n, h in zip(names, hidden):
        unet.get_submodule(n).register_forward_pre_hook(
            lambda module, args, kwargs, h=h: (args, kwargs | {"encoder_hidden_states": h}),
            with_kwargs=True)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(12))
    y = unet(x, 321, torch.zeros_like(hidden[0])).sample
    return {"layered.ids": ids.int(), "layered.vec": vec, "layered.hidden": torch.cat(hidden),
            "layered.x": x.permute(0, 2, 3, 1), "layered.y": y.permute(0, 2, 3, 1)}


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
    out |= layered()
    save_file({k: v.contiguous() for k, v in out.items()}, HERE + "words.safetensors")


main()
