"""Episodes: several attempts, the checker's message between them, and which tokens are the player's own."""

import numpy as np
import pytest
import torch

from oodlib.inference import episodes
from oodlib.inference.episodes import as_text, discounted, play
from oodlib.inference.evaluation import evaluate, summarise
from oodlib.inference.generation import Generator
from oodlib.models.base import build_tokenizer
from oodlib.models.loading import load_model
from oodlib.models.sources import model_folder
from oodlib.tasks import get_task

TASK = get_task("general_points")
RULE = {"J": 11, "Q": 12, "K": 13}
HAND = TASK.problem(["J", "2", "A", "A"], RULE)  # 2 * 11 + 1 + 1
RIGHT = '{"cards":" J 2 A A ","numbers":" 11 2 1 1 ","formula":" 2 * 11 + 1 + 1 "}'
WRONG_RULE = '{"cards":" J 2 A A ","numbers":" 10 2 1 1 ","formula":" 2 * 10 + 1 + 1 "}'
WRONG_VALUE = '{"cards":" J 2 A A ","numbers":" 11 2 1 1 ","formula":" 2 + 11 + 1 + 1 "}'


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TASK.words())


@pytest.fixture
def scripted(monkeypatch, tokenizer):
    """The player says what the script holds for its turn; returns the dialogues that it was shown."""

    def script(*turns, end=True, words=tokenizer):
        seen, left = [], list(turns)
        tail = [words.eos_token_id] if end else []

        class Actor:
            def __init__(self, _model, _tokenizer, contexts, *_):
                self.heard = list(contexts)

            def extend(self, kept, new):
                self.heard = [self.heard[i] + tokens for i, tokens in zip(kept, new, strict=True)]

            def answer(self):
                seen.append([words.decode(c) for c in self.heard])
                answers = [words(text)["input_ids"] + tail for text in left.pop(0)]
                self.heard = [c + a for c, a in zip(self.heard, answers, strict=True)]
                return answers

        monkeypatch.setattr(episodes, "make_generator", lambda _, *arguments: Actor(*arguments))
        return seen

    return script


def test_a_wrong_attempt_gets_the_message_and_another_one(scripted, tokenizer):
    seen = scripted([WRONG_RULE, RIGHT], [WRONG_VALUE], [RIGHT])
    one, two = play(None, tokenizer, TASK, [HAND, HAND], "compact", 32, attempts=5)
    assert [v.outcome for v in one.verdicts] == ["wrong_numbers", "wrong_value", "correct"]
    assert [v.outcome for v in two.verdicts] == ["correct"] and one.solved and two.solved
    assert [len(turn) for turn in seen] == [2, 1, 1], "episodes that are over are played no further"
    assert seen[1][0].endswith("<eos> no ; numbers 11 2 1 1 ; as json :")
    assert seen[2][0].endswith("<eos> no ; value ; as json :")
    assert seen[2][0].startswith(seen[1][0]), "everything said stays in view"


def test_only_the_player_s_tokens_are_its_own(scripted, tokenizer):
    scripted([WRONG_RULE], [RIGHT])
    (episode,) = play(None, tokenizer, TASK, [HAND], "compact", 32, attempts=2)
    own = [t for t, mine in zip(episode.tokens, episode.own, strict=True) if mine]
    said = [*tokenizer(WRONG_RULE)["input_ids"], 1, *tokenizer(RIGHT)["input_ids"], 1]
    assert tokenizer.eos_token_id == 1 and own == said
    others = [t for t, mine in zip(episode.tokens, episode.own, strict=True) if not mine]
    assert tokenizer.decode(others) == "no ; numbers 11 2 1 1 ; as json :"
    assert episode.starts == [0, len(tokenizer(WRONG_RULE)["input_ids"]) + 1 + len(others)]


def test_an_answer_cut_off_is_ended_for_the_player_and_that_end_is_not_its_own(scripted, tokenizer):
    scripted(["7 7 7"], [RIGHT], end=False)
    (episode,) = play(None, tokenizer, TASK, [HAND], "compact", 3, attempts=2)
    assert episode.tokens[3] == tokenizer.eos_token_id and episode.own[:4] == [1, 1, 1, 0]
    assert episode.verdicts[0].outcome == "malformed"


def test_the_return_of_an_episode_by_hand(scripted, tokenizer):
    scripted([WRONG_RULE], [WRONG_VALUE], [RIGHT])
    (episode,) = play(None, tokenizer, TASK, [HAND], "compact", 32, attempts=3)
    rewards = [v.reward for v in episode.verdicts]
    assert rewards == [-4, -1, 5]
    assert discounted([rewards, [2.0]], 0.9) == pytest.approx([-4 - 0.9 + 0.81 * 5, 2.0])


class ChatTokenizer:
    """A chat format in the manner of ChatML, over characters."""

    eos_token, eos_token_id, pad_token_id = "|", 0, 1

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [0 if c == "|" else ord(c) for c in text]}

    def decode(self, ids, skip_special_tokens=False):
        return "".join("" if i == 0 and skip_special_tokens else "|" if i == 0 else chr(i) for i in ids)

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        return "".join(f"<{m['role']}>{m['content']}|\n" for m in messages) + "<assistant>"


def test_a_model_without_a_chat_template_is_said_so():
    with pytest.raises(ValueError, match=r"task\.prompt_style chat needs a model whose tokenizer has a chat template"):
        as_text([{"role": "user", "content": "hello"}], load_model(model_folder("tiny"))[1])


@pytest.mark.parametrize("ended", [True, False])
def test_chat_messages_go_through_the_model_s_template(scripted, ended):
    chat = ChatTokenizer()
    seen = scripted(["24"], ['{"formula": "2*11+1+1"}'], end=ended, words=chat)
    (episode,) = play(None, chat, TASK, [HAND], "chat", 32, attempts=3)
    assert episode.solved and len(episode.verdicts) == 2
    (first,), (second,) = seen
    assert second.startswith(first + "24|\n<user>No formula found.")
    assert second.endswith("Try again, in the same format.|\n<assistant>")
    assert second == chat.decode(episode.prompt + episode.tokens[: episode.starts[1]])


def test_a_template_that_rewrites_the_past_is_refused(scripted):
    class Forgetful(ChatTokenizer):
        def apply_chat_template(self, messages, **_):
            return f"{len(messages)}<assistant>"

    scripted(["7"], words=ChatTokenizer())
    with pytest.raises(ValueError, match=r"eval\.attempts 1"):
        play(None, Forgetful(), TASK, [HAND], "chat", 32, attempts=2)


@pytest.fixture(scope="module")
def tiny():
    return load_model(model_folder("tiny"))


def test_the_first_of_several_attempts_is_what_a_single_one_would_be(tiny):
    one = evaluate(*tiny, TASK, "ood", "compact", 32, every=40)
    three = evaluate(*tiny, TASK, "ood", "compact", 32, every=40, attempts=3)
    first_right = (three["outcome"] == "correct") & (three["tries"] == 1)
    np.testing.assert_array_equal(first_right, one["outcome"] == "correct")
    found = summarise(three, 3)
    assert found["accuracy@1"] == summarise(one)["accuracy"]
    assert found["accuracy@1"] <= found["accuracy@2"] <= found["accuracy@3"] == found["accuracy"]


def test_what_is_kept_between_attempts_is_what_would_be_read_again(tiny):
    """Keys and values kept from earlier attempts give the same answers as reading the whole dialogue anew."""
    model, tokenizer = tiny
    hands = TASK.split("ood")[::60]
    for episode in play(model, tokenizer, TASK, hands, "compact", 32, attempts=3, batch_size=5):
        for start, end in zip(episode.starts, [*episode.starts[1:], len(episode.tokens)], strict=True):
            (anew,) = Generator(model, tokenizer, [episode.prompt + episode.tokens[:start]], 32).answer()
            own = [t for t, mine in zip(episode.tokens[start:end], episode.own[start:end], strict=True) if mine]
            assert own == anew
            assert own[-1] == tokenizer.eos_token_id or len(own) == 32
            assert tokenizer.eos_token_id not in own[:-1]


def test_playing_leaves_the_model_in_the_mode_it_was_in(tiny):
    model, tokenizer = tiny
    for mode in (True, False):
        model.train(mode)
        play(model, tokenizer, TASK, [HAND], "compact", 4)
        assert model.training is mode
    assert torch.is_grad_enabled()
