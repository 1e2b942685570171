"""Does a model copy from the prompt what J, Q and K count for? What real_models.md says of it and no stage measures.

    python docs/copying.py RUN                       which values a run's SFT checkpoints copy
    python docs/copying.py RUN --put-back 5 120      what of step 5's weights lets step 120 copy again

The rule gives all three faces one value, so that no card has to be matched with its own. The answer breaks off before
the number of the face card, which stands first or last in its hand. Rows of RUN/copying.csv: seed, step, what was put
back, where the face card stands, the value stated; then the mean probabilities, among 1 to 30, of that value, of 1 and
of 10.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from oodlib.inference.token_probabilities import continuation_probabilities
from oodlib.models.loading import load_model, load_weights
from oodlib.models.names import matrices
from oodlib.spectral.surgery import Edit
from oodlib.spectral.svd import spectrum
from oodlib.tasks import get_task

TASK = get_task("general_points")
RULE = {"J": 5, "Q": 6, "K": 7}
WORDS = "count as 5, 6 and 7"  # of the prompt; a rule by name ends at 13
STATED = (*range(1, 20), 20, 23, 26, 30)
PUT_BACK = (3, 5, 7, 9, 10)
STEPS = (5, 15, 40, 120)
HANDS = 2  # a face
PLACES = {"first": ",", "last": "],"}  # of the face card; what follows its number


def copied(model, tokenizer, stated):
    """A row a place and value: the probabilities of the value, of 1 and of 10, means over faces and hands."""
    draw = np.random.default_rng(0)
    others = [tuple(map(str, draw.integers(2, 10, 3))) for _ in range(HANDS)]
    rows = []
    for place, after in PLACES.items():
        prompts, begun = [], []
        for face in RULE:
            for cards in others:
                hand, numbers = ((face, *cards), "") if place == "first" else ((*cards, face), ", ".join(cards) + ", ")
                asked = TASK.prompt(TASK.problem(hand, RULE), "chat")
                prompts.append(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
                begun.append(f'{{"cards": {json.dumps(list(hand))}, "numbers": [{numbers}')
        for value in stated:
            new = f"count as {value}, {value} and {value}"
            texts = [prompt.replace(WORDS, new) + start for prompt, start in zip(prompts, begun, strict=True)]
            assert all(new in text for text in texts)
            chances = continuation_probabilities(model, tokenizer, texts, [f"{v}{after}" for v in range(1, 31)]).mean(0)
            rows.append((place, value, *(round(float(chances[v - 1]), 4) for v in (value, 1, 10)), len(texts)))
    return pd.DataFrame(rows, columns=["place", "stated", "itself", "one", "ten", "n"])


def edits(layers):
    """What is put back, by name; None: all of the donor. `layers`: how many the model has."""
    quarter, middle, late = range(layers // 4 + 1), range(8, 16), range(16, layers)
    return {
        "nothing": Edit("whole", layers=()),
        "everything": None,
        "vectors": Edit(),
        "vectors, top 0.5": Edit(top=0.5),
        "vectors, top 0.25": Edit(top=0.25),
        "vectors, layers 1 to 8": Edit(layers=quarter),
        "vectors, layers 9 to 16": Edit(layers=middle),
        "vectors, layers 17 on": Edit(layers=late),
        "signs, layers 9 to 16": Edit("signs", layers=middle),
        "values": Edit("values"),
        "embedding and head": Edit("whole", layers=(), embeddings=True),
        "official layer edit": Edit("whole", layers=quarter, embeddings=True),
        "random": Edit("random"),
        "signs": Edit("signs"),
        "noise": Edit("noise"),
    }


def put_back(donor, recipient):
    """What the recipient copies when parts of the donor's weights are put into it."""
    model, tokenizer = load_model(recipient, to_train=True)
    own, other = {n: t.clone() for n, t in model.state_dict().items()}, load_weights(donor)
    spectra = {n: (spectrum(own[n], n), spectrum(other[n], n)) for n in matrices(own)}
    for name, edit in edits(model.config.num_hidden_layers).items():
        state = edit.state(own, other, spectra) if edit else other
        model.load_state_dict(state, strict=False)  # a checkpoint lacks a head that is tied
        yield name, copied(model, tokenizer, PUT_BACK)


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("run", type=Path)
    words.add_argument("--put-back", nargs=2, type=int, metavar=("DONOR", "RECIPIENT"))
    given = words.parse_args()
    file = given.run / "copying.csv"
    found = [pd.read_csv(file)] if file.exists() else []

    def keep(seed, step, edit, table):
        found.append(table.assign(seed=seed, step=step, put_back=edit)[["seed", "step", "put_back", *table.columns]])
        means = table.groupby("place")[["itself", "one", "ten"]].mean().round(2).to_dict("index")
        print(seed, step, edit, means, flush=True)
        pd.concat(found).to_csv(file, index=False)

    for folder in sorted(given.run.glob("checkpoints/seed-*")):
        sft = next(folder.glob("sft-*/checkpoint-*")).parent
        seed = int(folder.name.removeprefix("seed-"))
        if given.put_back:
            donor, recipient = (sft / f"checkpoint-{step}" for step in given.put_back)
            for name, table in put_back(donor, recipient):
                keep(seed, given.put_back[1], f"{name}, from {given.put_back[0]}", table)
        else:
            for step in STEPS:
                keep(seed, step, "", copied(*load_model(sft / f"checkpoint-{step}", precision="bfloat16"), STATED))


if __name__ == "__main__":
    main()
