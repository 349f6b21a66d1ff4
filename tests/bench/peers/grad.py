"""weft and PyTorch's autograd (diffusers) beside each other: gradients with respect to the latent.

    OMP_NUM_THREADS=2 python tests/bench/peers/grad.py [MODEL]

(torch 2.15, diffusers 0.42.1.) Both go forth and back through the same UNet in float32, three rows: from its output, and
from what three tokens of a row are attended to at a quarter of the latent's side, where both end the pass behind the last such
attention. Turns are taken in one run, the best of eight each. Memory: of PyTorch the storages that autograd keeps for the
way back, parameters left out; of weft all of a pass's activations.
"""
import json
import os
import subprocess
import sys
import time

import torch
from diffusers import UNet2DConditionModel

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../..")
WEFT = os.path.join(ROOT, "build/weft")
ROWS, TURNS, KEYS = 3, 8, [1, 2, 5, 6]


class Over(Exception):
    pass


class Maps:
    """Cross attentions at a quarter of the latent's side; the last one ends the pass."""

    def __init__(self, unet):
        self.side, self.seen = unet.config.sample_size // 4, []
        self.some = [m for n, m in unet.named_modules() if n.endswith("attn2")]
        for m in self.some:
            m.processor = self
        self.last = None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        q, k, v = (f(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for f, x in (
            (attn.to_q, hidden_states), (attn.to_k, encoder_hidden_states), (attn.to_v, encoder_hidden_states)))
        if hidden_states.shape[1] == self.side ** 2:
            self.seen.append((q @ k.mT * attn.scale).softmax(-1)[..., KEYS].mean(1))
            if attn is self.last:
                raise Over
            self.latest = attn
        return attn.to_out[0](torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def storages(unet, run):
    """Bytes of the distinct storages that autograd keeps, without parameters."""
    own, kept = {p.untyped_storage().data_ptr() for p in unet.parameters()}, {}

    def pack(t):
        s = t.untyped_storage()
        if s.data_ptr() not in own:
            kept[s.data_ptr()] = s.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        held = run()
    n = sum(kept.values())
    del held
    return n


def torch_times(model):
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet").eval().requires_grad_(False)
    side, c = unet.config.sample_size, unet.config.in_channels
    x = torch.randn(ROWS, c, side, side, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    with open(os.path.join(model, "text_encoder/config.json"), encoding="utf8") as f:
        tokens = json.load(f)["max_position_embeddings"]
    text = torch.randn(ROWS, tokens, unet.config.cross_attention_dim)
    unet = unet.to(memory_format=torch.channels_last)
    t = torch.full((ROWS,), 801)
    out = {}
    for what in ("from the output", "from maps"):
        maps = Maps(unet) if what == "from maps" else None
        if maps:
            with torch.no_grad():
                unet(x, t, text)
            maps.last = maps.latest

        def forth():
            z = x.clone().requires_grad_(True)
            if not maps:
                return z, unet(z, t, text).sample.sum()
            maps.seen = []
            try:
                unet(z, t, text)
            except Over:
                pass
            return z, sum(m.sum() for m in maps.seen)

        best = [9e9, 9e9]
        for _ in range(TURNS):
            at = time.perf_counter()
            z, loss = forth()
            mid = time.perf_counter()
            loss.backward()
            best = [min(best[0], mid - at), min(best[1], time.perf_counter() - mid)]
        out[what] = best + [storages(unet, forth)]
    return out


def weft_figures(model):
    lines = subprocess.run([WEFT, "bench", "grad", "--json", "--rows", str(ROWS), *(["--model", model] if model else [])],
                           check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return {r["name"]: r["value"] for r in map(json.loads, lines)}


def main():
    model = sys.argv[1] if len(sys.argv) > 1 else os.path.join(ROOT, "assets/model")
    theirs, ours = torch_times(model), weft_figures(model)
    print(f"{'':18} {'torch forth, back, ms':>22} {'weft forth, back, ms':>22} {'faster':>8} {'MB':>14}")
    for what, (forth, back, kept) in theirs.items():
        f = {k: ours[f"{what}, {ROWS} rows, {k}"] for k in ("forth, noted", "back", "activations with it")}
        print(f"{what:18} {forth * 1e3:11.1f} {back * 1e3:10.1f} {f['forth, noted']:11.1f} {f['back']:10.1f} "
              f"{(forth + back) * 1e3 / (f['forth, noted'] + f['back']):8.2f} {kept / 1e6:7.1f} {f['activations with it']:6.1f}")


if __name__ == "__main__":
    main()
