"""Two adapters through gates in a whole UNet, by the training code: python tests/golden/gates.py

writes tests/golden/data/gates.safetensors (random gates at some sites of the tiny SD 1.x model, as
assets/train/gates.py writes them) and gates-out.safetensors: the UNet's output with lora-peft and lora-diffusers
together, and with the first alone. Everywhere else they are added up as they are.
"""
import os
import sys

import torch
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__)) + "/data/"
sys.path.insert(0, os.path.join(HERE, "../../../assets/train"))
import gates  # noqa: E402
from diffusers import UNet2DConditionModel  # noqa: E402
from torch.nn import functional as F  # noqa: E402


class Two:
    """What gates.Zoo is, of two files."""

    def __init__(self, *adapters):
        self.at, self.up, self.down = {}, {}, {}
        for site in sorted({s for a in adapters for s in a}):
            have = [i for i, a in enumerate(adapters) if site in a]
            self.at[site] = {i: k for k, i in enumerate(have)}
            pairs = [adapters[i][site] for i in have]
            self.up[site] = torch.stack([F.pad(b.flatten(1), (0, gates.RANK - b.shape[1])) for b, _ in pairs] +
                                        [torch.zeros(pairs[0][0].shape[0], gates.RANK)])
            self.down[site] = torch.stack([F.pad(a, (0, 0) * (a.dim() - 1) + (0, gates.RANK - a.shape[0])) for _, a in pairs] +
                                          [torch.zeros(gates.RANK, *pairs[0][1].shape[1:])])

    factors = gates.Zoo.factors


def read(file, scale, up, down, site):
    t = {k: v.float() for k, v in load_file(HERE + file).items()}
    return {site(k[:-len(up)]): (t[k] * scale, t[k[:-len(up)] + down]) for k in t if k.endswith(up) and "text_encoder" not in k}


def old_site(name):
    block, proj = name.rsplit(".processor.", 1)
    return f"{block}.{proj.removesuffix('_lora')}".replace(".to_out", ".to_out.0")


@torch.no_grad()
def main():
    unet = UNet2DConditionModel.from_pretrained(HERE + "tiny-sd1", subfolder="unet").float().eval()
    zoo = Two(read("lora-peft.safetensors", 1.5, ".lora_B.weight", ".lora_A.weight", lambda k: k[5:]),
              read("lora-diffusers.safetensors", 1, ".up.weight", ".down.weight", old_site))
    chosen = [s for s in sorted(zoo.at) if not s.endswith("time_emb_proj")][::7]
    widths = {s: zoo.up[s].shape[1] for s in chosen}
    g, rand = gates.Gates(widths), torch.Generator().manual_seed(4)
    for p in g.parameters():
        p.copy_((torch.randn(p.shape, generator=rand) * .7).half().float())
    save_file(g.tensors(widths), HERE + "gates.safetensors")
    both = gates.Together(unet, zoo, lambda site, h, u, s: g(site, h, u, s) if site in widths else u.sum(1))
    golden = load_file(HERE + "tiny-sd1/golden.safetensors")
    x, t, out = golden["unet_square_x"].permute(0, 3, 1, 2), golden["unet_square_t"].long(), {}
    for name, some in (("both", [[0, 1]] * 2), ("one", [[0]] * 2)):
        both.put(some, t)
        out[name] = unet(x, t, golden["text"]).sample.permute(0, 2, 3, 1).contiguous()
    save_file(out, HERE + "gates-out.safetensors")


if __name__ == "__main__":
    main()
