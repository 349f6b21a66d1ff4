"""Muon for the hidden matrices, AdamW for the rest.

Muon (Jordan 2024, kellerjordan.github.io/posts/muon): momentum, then the nearest orthogonal matrix by
five Newton-Schulz steps; its update is scaled to AdamW's usual size, .2 sqrt(max(m, n)) (Liu et al.
2025, arXiv:2502.16982), so that one learning rate serves both. Kernels count as [out, in * 9] matrices;
equal shapes go through the products together.
"""
import torch


@torch.no_grad()
def orthogonal(g):
    """[n, a, b] with a <= b: U V^T of each, about."""
    x = g.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        s = x @ x.mT
        x = 3.4445 * x + (-4.7750 * s + 2.0315 * s @ s) @ x
    return x.float()


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum=.95, weight_decay=.01):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]:
                shapes.setdefault((p.shape[0], p.numel() // p.shape[0]), []).append(p)
            for (a, b), ps in shapes.items():
                updates = []
                for p in ps:
                    m = self.state[p].setdefault("m", torch.zeros(a, b))
                    g = p.grad.reshape(a, b)
                    m.mul_(group["momentum"]).add_(g)
                    updates.append(g + group["momentum"] * m)
                u = torch.stack(updates)
                u = orthogonal(u) if a <= b else orthogonal(u.mT).mT
                for p, d in zip(ps, u):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(d.reshape(p.shape), alpha=-group["lr"] * .2 * max(a, b) ** .5)


def is_hidden(name, p):
    return p.ndim > 1 and not any(s in name for s in ("embedding", "conv_in", "conv_out"))


class Both:
    """The two as one, for some of the parameters: (name, parameter, scale of the rate)."""

    def __init__(self, named):
        def groups(hidden):
            return [dict(params=[p for n, p, k in named if k == s and is_hidden(n, p) == hidden], k=s)
                    for s in sorted({k for _, _, k in named})]
        self.opts = [Muon(groups(True), 0), torch.optim.AdamW(groups(False), 0, betas=(.9, .99),
                                                              weight_decay=.01)]

    def step(self, lr):
        for o in self.opts:
            for g in o.param_groups:
                g["lr"] = lr * g["k"]
            o.step()

    def state_dict(self):
        return [o.state_dict() for o in self.opts]

    def load_state_dict(self, s):
        for o, d in zip(self.opts, s):
            o.load_state_dict(d)
