"""Makes tests/golden/data/sampler.txt: diffusers' schedulers run as a pipeline runs them.

    ATEN_CPU_CAPABILITY=default python tests/golden/sampler.py

diffusers 0.42.1, torch 2.15.0, numpy 2.4.6. There is no network: the model is a formula, `ratio` or
`wave`, given in float64 and rounded to float32. A latent has 16 values. The generator is seeded
with 7 and draws the first noise, then whatever the scheduler draws; img2img's picture is
latent[i] = i / 8 - 1.

Lines, by how they begin:

    {...}                     a scheduler's config for schedule_from_config; cases follow
    case NAME MODEL STEPS STRENGTH ETA CLIP OFFSET   CLIP is the range, 0 where nothing is clipped
    t N ...                   timesteps that run
    s N ...                   the sigmas of those and the last, bits; N is 0 where it has none
    x PEAK ...                the largest norm on the way, and the final values, bits

Lines t and s are left out where they are those of the case before. CLIP and OFFSET stand apart
since schedule_from_config, like StableDiffusionPipeline, turns clipping off and sets the offset.
"""
import json
import os
import pathlib

os.environ.setdefault("ATEN_CPU_CAPABILITY", "default")

import diffusers
import numpy as np
import torch

assert torch.backends.cpu.get_cpu_capability() == "DEFAULT"
assert diffusers.__version__ == "0.42.1"

CLASSES = {
    "ddim": diffusers.DDIMScheduler,
    "pndm": diffusers.PNDMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_a": diffusers.EulerAncestralDiscreteScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
    "lcm": diffusers.LCMScheduler,
}
KARRAS = ["euler", "heun", "dpmpp_2m", "unipc"]
NO_SAMPLE = ["pndm", "euler_a"]
NO_ZERO_SNR = ["pndm", "heun"]

SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
          set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1)
SD21 = dict(SD, prediction_type="v_prediction")
DEMO = dict(SD21, timestep_spacing="leading")
LINEAR = dict(beta_start=0.0001, beta_end=0.02, beta_schedule="linear")


def model(which, x, t):
    x, t = x.double().numpy(), float(t)
    if which == "ratio":
        y = x * t / (t + 1)
    else:
        y = 0.8 * np.tanh(x) + 0.15 * np.sin(3 * x + t / 100) + 0.05
    return torch.from_numpy(y.astype(np.float32))


def bits(v):
    return " ".join(f"{b:08x}" for b in np.asarray(v, dtype=np.float32).reshape(-1).view(np.uint32))


def run(name, config, which, steps, strength, eta):
    """The denoising loop of StableDiffusion(Img2Img)Pipeline without guidance."""
    scheduler = CLASSES[name].from_config(config)
    g = torch.Generator("cpu").manual_seed(7)
    noise = torch.randn((1, 4, 2, 2), generator=g)
    scheduler.set_timesteps(steps)
    order, timesteps = scheduler.order, scheduler.timesteps
    sigmas = scheduler.sigmas if hasattr(scheduler, "sigmas") else torch.zeros(0)
    if strength == 0:
        # The pipeline leaves this to a search for the first timestep, which fails where Karras
        # timesteps are rounded to the same number twice; it never finds another place.
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        x = noise * scheduler.init_noise_sigma
    else:
        start = max(steps - min(int(steps * strength), steps), 0)
        timesteps = timesteps[start * order :]
        sigmas = sigmas[start * order :]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(start * order)
        picture = (torch.arange(16, dtype=torch.float32) / 8 - 1).reshape(1, 4, 2, 2)
        x = scheduler.add_noise(picture, noise, timesteps[:1])
    peak = x.norm().item()
    extra = {"eta": eta} if name == "ddim" else {}
    if name in ("ddim", "euler", "euler_a", "lcm"):
        extra["generator"] = g
    for t in timesteps:
        out = model(which, scheduler.scale_model_input(x, t), t)
        x = scheduler.step(out, t, x, return_dict=False, **extra)[0]
        peak = max(peak, x.norm().item())
    assert torch.isfinite(x).all(), (name, config, which, steps, strength)
    return timesteps.double().numpy(), sigmas.numpy(), x.numpy(), peak, scheduler.config


cases = {}


def case(name, config, which="wave", steps=10, strength=0.0, eta=0.0):
    t, s, x, peak, used = run(name, config, which, steps, strength, eta)
    clip = used.get("clip_sample_range", 1.0) if used.get("clip_sample", False) else 0
    offset = used.get("steps_offset", 0)
    config = json.dumps(dict(config, _class_name=CLASSES[name].__name__), separators=(",", ":"))
    cases.setdefault(config, []).append((
        f"case {name} {which} {steps} {strength} {eta} {clip} {offset}",
        f"t {t.size} " + " ".join(f"{v:.9g}" for v in t) + f"\ns {s.size} " + bits(s),
        f"x {peak:.9g} " + bits(x),
    ))


for name in CLASSES:
    karras = [dict(use_karras_sigmas=True)] if name in KARRAS else []
    few = [1, 2, 3, 10, 20] if name == "lcm" else [1, 2, 3, 10, 20, 50]

    for steps in few + ([50] if name == "lcm" else []):
        for config in [SD, SD21] + [dict(c, **k) for c in (SD,) for k in karras]:
            case(name, config, "wave", steps)
        if steps > 1:  # one step of `ratio` cancels down to float32's last digits
            case(name, SD, "ratio", steps)
    case(name, DEMO, steps=20)
    for predict in ["epsilon", "v_prediction"] + ["sample"] * (name not in NO_SAMPLE):
        case(name, dict(LINEAR, prediction_type=predict), steps=10)
        for k in karras:
            case(name, dict(LINEAR, prediction_type=predict, **k), steps=10)
    for spacing in ["leading", "linspace", "trailing"]:
        for steps in [3, 7, 16]:
            case(name, dict(SD, timestep_spacing=spacing), steps=steps)
    for strength in [0.3, 0.6, 1.0]:
        for steps in [10, 20]:
            case(name, SD, steps=steps, strength=strength)
        case(name, dict(SD21, **(karras or [{}])[0]), steps=10, strength=strength)
    if name != "heun":  # from sigma 20291 its float32 loses 8e-5 against its own float64
        case(name, dict(LINEAR, beta_schedule="squaredcos_cap_v2"), steps=10)
    for k in karras:
        case(name, dict(LINEAR, beta_schedule="squaredcos_cap_v2", **k), steps=10)
        case(name, dict(SD, sigma_min=0.1, sigma_max=10.0, **k), steps=10)
    case(name, dict(SD, num_train_timesteps=400), steps=10)
    case(name, dict(num_train_timesteps=60, original_inference_steps=20, set_alpha_to_one=False,
                    trained_betas=[round(0.001 + 0.0004 * i, 4) for i in range(60)]), steps=6)
    case(name, dict(SD, set_alpha_to_one=True), steps=10)
    if name not in NO_ZERO_SNR:
        for spacing in ["leading", "trailing"]:
            case(name, dict(SD21, rescale_betas_zero_snr=True, timestep_spacing=spacing), steps=10)

case("pndm", dict(SD, skip_prk_steps=False), steps=10, strength=1.0)
for steps in [4, 5, 10, 20]:
    case("pndm", dict(LINEAR, skip_prk_steps=False), steps=steps)
case("pndm", dict(SD21, skip_prk_steps=False), steps=10)
for eta in [0.5, 1.0]:
    for config in [SD, SD21, LINEAR]:
        case("ddim", config, steps=10, eta=eta)
case("ddim", dict(SD, clip_sample=True), steps=10, eta=1.0, strength=0.6)
for predict in ["epsilon", "v_prediction", "sample"]:
    for name in ["ddim", "heun", "lcm"]:
        config = dict(LINEAR, clip_sample=True, clip_sample_range=0.5, prediction_type=predict)
        case(name, config, steps=10)
# numpy.arange's last bits decide how two of these timesteps are rounded
case("ddim", dict(SD, timestep_spacing="trailing"), steps=48)
for name in ["euler", "dpmpp_2m", "unipc"]:
    for k in [{}, dict(use_karras_sigmas=True),
              dict(use_karras_sigmas=True, sigma_min=0.1, sigma_max=10.0)]:
        case(name, dict(SD, final_sigmas_type="sigma_min", **k), steps=10)
for name in ["dpmpp_2m", "unipc"]:
    case(name, dict(SD, solver_order=1), steps=10)
    case(name, dict(SD, final_sigmas_type="sigma_min", lower_order_final=False), steps=10)
for steps in [14, 15]:
    case("dpmpp_2m", dict(SD, solver_type="heun"), steps=steps)
    case("dpmpp_2m", dict(SD, final_sigmas_type="sigma_min", euler_at_final=True), steps=steps)
    case("dpmpp_2m", dict(SD, final_sigmas_type="sigma_min"), steps=steps)
case("lcm", dict(SD, timestep_scaling=0.01, original_inference_steps=40), steps=4)
case("lcm", SD, steps=8, strength=0.5)

lines, before = [], None
for config, list_ in cases.items():
    lines.append(config)
    for head, levels, x in list_:
        lines.extend([head] + [levels] * (levels != before) + [x])
        before = levels
path = pathlib.Path(__file__).parent / "data" / "sampler.txt"
path.write_text("\n".join(lines) + "\n")
print(path, sum(map(len, cases.values())), "cases,", path.stat().st_size, "bytes")
