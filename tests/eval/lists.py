"""Draws the prompt lists anew: python lists.py. The lists in prompts/ are what counts; they stay as they are."""
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


if __name__ == "__main__":
    main()
