"""Draws the lists anew: python lists.py. The lists in prompts/ and the manifests are what counts; they stay as
they are."""
import itertools
import json
import os
import random
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../assets/train"))
from adapters import rows  # noqa: E402
from world import GROUNDS, article, concepts  # noqa: E402

PROMPTS = os.path.join(HERE, "prompts")


def on(text, r):
    return text if r.random() < .5 else f"{text} on a {r.choice(list(GROUNDS))} background"


def write(name, head, lines):
    with open(os.path.join(PROMPTS, name + ".tsv"), "w") as f:
        f.write("".join("\t".join(l) + "\n" for l in [head, *lines]))


def paired(r, names, n):
    """n pairs in which all names come up about equally often."""
    bag, out = [], []
    while len(out) < n:
        if len(bag) < 2:
            bag += r.sample(names, len(names))
        a, b = bag.pop(), bag.pop()
        if a != b:
            out.append((a, b))
    return out


def scene(a, b, layout, r):
    if layout == "above":
        return f"{a} above {b}"
    return r.choice((f"{a} on the left and {b} on the right", f"{b} on the right and {a} on the left",
                     f"{a} on the left and {b} on the right"))


def split(r):
    """Each category in two halves, by lot."""
    out = {"dev": [], "test": []}
    for category in ORDER:
        names = [a for a in rows() if a["category"] == category]
        r.shuffle(names)
        for i, a in enumerate(names):
            out["test" if i % 2 else "dev"].append(a)
    return out


ORDER = ("character", "object", "food", "place", "style")  # a character first, as switch wants it
MOST = {"dev": {2: 30, 3: 30, 4: 30, 5: 15}, "test": {2: 60, 3: 60, 4: 60, 5: 30}}


def words_of(a):
    return f"{a['trigger']} {a['class_word']}" + (" style" if a["category"] == "style" else "")


def set_prompt(adapters):
    things = [article(words_of(a)) for a in adapters if a["category"] != "style"]
    style = [f" in {words_of(a)}" for a in adapters if a["category"] == "style"]
    if len(things) == 2:
        text = f"{things[0]} on the left and {things[1]} on the right"
    elif len(things) == 3 and not style:  # else longer than the text encoder reads at once
        text = f"{things[0]} on the left, {things[1]} in the middle and {things[2]} on the right"
    else:
        text = ", ".join(things[:-1]) + (" and " if len(things) > 1 else "") + things[-1]
    return text + "".join(style)


def manifest(name, adapters, r):
    """Sets from distinct categories; all are equally likely."""
    sets, by = [], {c: [a for a in adapters if a["category"] == c] for c in ORDER}
    for n, most in MOST[name].items():
        every = [s for cats in itertools.combinations(ORDER, n)
                 for s in itertools.product(*(by[c] for c in cats))]
        for s in r.sample(every, min(most, len(every))):
            sets.append({"adapters": [a["name"] for a in s], "prompt": set_prompt(s)})
    keep = ("name", "category", "subject", "caption")
    m = {"name": name, "folder": "../../assets/adapters", "seeds": [0, 1], "sizes": list(MOST[name]),
         "options": ["--cfg", "1.5", "--steps", "20"],  # of what was tried on dev
         "adapters": [dict({k: a[k] for k in keep}, file=a["name"] + ".safetensors",
                           words=words_of(a)) for a in adapters], "sets": sets}
    with open(os.path.join(HERE, f"manifest-{name}.json"), "w") as f:
        json.dump(m, f, indent=1)


def same(r):
    """Pairs of one category, where merging fails most; of test's adapters."""
    with open(os.path.join(HERE, "manifest-test.json")) as f:
        m = json.load(f)
    chosen = {a["name"]: a for a in rows()}
    by = [[a["name"] for a in m["adapters"] if a["category"] == c] for c in ORDER if c != "style"]
    every = [r.sample(p, 2) for names in by for p in itertools.combinations(names, 2)]
    m["name"], m["sizes"] = "same", [2]
    m["adapters"] = [a for a in m["adapters"] if a["category"] != "style"]
    m["sets"] = [{"adapters": p, "prompt": set_prompt([chosen[n] for n in p])} for p in r.sample(every, 40)]
    with open(os.path.join(HERE, "manifest-same.json"), "w") as f:
        json.dump(m, f, indent=1)


def main():
    r = random.Random(0)
    learnt = [c[1] for c in concepts("core", "more")]
    singles = [(on(article(n), r), n) for n in learnt]
    singles += [(on(article(f"small {n}" if r.random() < .7 else n), r), n)
                for n in r.sample(learnt, 80)]
    write("singles", ("prompt", "thing"), singles)
    pairs = []
    for i, (a, b) in enumerate(paired(r, learnt, 100)):
        layout = "beside" if i % 10 < 7 else "above"
        pairs.append((on(scene(article(a), article(b), layout, r), r), a, b, layout))
    write("pairs", ("prompt", "first", "second", "layout"), pairs)
    things = [a for a in rows() if a["category"] != "style"]
    word = {a["name"]: article(f"{a['trigger']} {a['class_word']}") for a in things}
    merges = [(scene(word[a], word[b], "beside", r), a, b, "beside")
              for a, b in paired(r, sorted(word), 40)]
    write("merges", ("prompt", "first", "second", "layout"), merges)
    r = random.Random(1)
    for name, adapters in split(r).items():
        manifest(name, adapters, r)
    same(random.Random(2))


if __name__ == "__main__":
    main()
