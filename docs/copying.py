"""Does a model copy from the prompt what J, Q and K count for? What real_models.md says of it and no stage measures.

python docs/copying.py CHECKPOINT...                  which values each checkpoint copies
python docs/copying.py --put-back DONOR RECIPIENT     what of DONOR's weights lets RECIPIENT copy again
"""

import argparse

from oodlib.inference.token_probabilities import continuation_probabilities
from oodlib.models.loading import load_model, load_weights
from oodlib.models.names import matrices
from oodlib.spectral.surgery import Edit
from oodlib.spectral.svd import spectrum
from oodlib.tasks import get_task

RULE = "count as 5, 6 and 7"
CLOZES = [cloze for cloze in get_task("general_points").clozes("chat") if cloze.split == "cloze_new_rule"][::8]
ODD = 3, 5, 7, 9  # values that the rule gives when weights are put back
CONTINUATIONS = [f"{value}," for value in range(1, 31)]


def said(model, tokenizer, value):
    """The probability of 1 to 30 where the rule gives J, Q and K all this value: the mean over the three, a hand each.

    Returns [30], which sums to 1.
    """
    prompts = [tokenizer.apply_chat_template(c.prompt, tokenize=False, add_generation_prompt=True) for c in CLOZES]
    begun = [
        prompt.replace(RULE, f"count as {value}, {value} and {value}") + cloze.begun
        for prompt, cloze in zip(prompts, CLOZES, strict=True)
    ]
    return continuation_probabilities(model, tokenizer, begun, CONTINUATIONS).mean(0)


def digits(folder):
    """Print how often a checkpoint copies each value, and says 10 in its place."""
    model, tokenizer = load_model(folder, precision="bfloat16")
    for value in range(1, 31):
        chances = said(model, tokenizer, value)
        print(f"{folder} {value:2}: itself {chances[value - 1]:.2f}, 10 {chances[9]:.2f}", flush=True)


def edits(layers):
    """What is put back, by name; None: all of the donor. `layers`: how many the model has."""
    official, middle, late = range(8), range(8, 16), range(16, layers)
    return {
        "nothing": Edit("whole", layers=()),
        "everything": None,
        "singular vectors of all projections": Edit(),
        "the leading half of them": Edit(top=0.5),
        "the leading quarter of them": Edit(top=0.25),
        "the vectors of layers 9 to 16 alone": Edit(layers=middle),
        "singular values of all projections": Edit("values"),
        "embedding and head": Edit("whole", layers=(), embeddings=True),
        "the official code's layer edit": Edit("whole", layers=official, embeddings=True),
        "layers 9 to 16, whole": Edit("whole", layers=middle),
        "later layers, whole": Edit("whole", layers=late),
        "null: the vectors turned by the same angles at random": Edit("random"),
        "null: the same turn with random signs": Edit("signs"),
        "null: noise of the same size": Edit("noise"),
    }


def put_back(donor, recipient):
    """Print what the recipient copies when parts of the donor's weights are put into it."""
    model, tokenizer = load_model(recipient, to_train=True)
    own, other = {n: t.clone() for n, t in model.state_dict().items()}, load_weights(donor)
    spectra = {n: (spectrum(own[n], n), spectrum(other[n], n)) for n in matrices(own)}
    for name, edit in edits(model.config.num_hidden_layers).items():
        model.load_state_dict(edit.state(own, other, spectra) if edit else other)
        chances = {value: said(model, tokenizer, value) for value in (*ODD, 10)}
        copied = sum(float(chances[v][v - 1]) for v in ODD) / len(ODD)
        ten = sum(float(chances[v][9]) for v in ODD) / len(ODD)
        right = float(chances[10][9])
        print(f"{name}: itself {copied:.2f}, 10 in its place {ten:.2f}, 10 as the rule says {right:.2f}", flush=True)


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("checkpoints", nargs="+")
    words.add_argument("--put-back", action="store_true")
    given = words.parse_args()
    if given.put_back:
        put_back(*given.checkpoints)
    else:
        for checkpoint in given.checkpoints:
            digits(checkpoint)
