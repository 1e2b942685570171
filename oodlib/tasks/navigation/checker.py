"""The actions that an answer names, read without running any of it."""

from __future__ import annotations

import re

from oodlib.tasks.navigation.routes import SPACES

_FIELD = re.compile(r"""["']actions["']\s*:\s*(?=[\["'])""")
_ACTION = re.compile(r"(forward|stop)(?:\(\))?|turn(?:_direction\(|[ _])[ ]?(slightly[ _][a-z]+|[a-z]+)\)?")
_BETWEEN = re.compile(r"""[\s,"']*""")
_ENTRY = re.compile(r"""[^\s,"']+""")
_EVERY = {"forward", "stop", *(f"turn {word}" for words in SPACES.values() for word in words)}


def read_actions(text: str) -> tuple[list[str] | None, str]:
    """The entries of the last closed "actions" field, None where there is none; and the first that is no action."""
    last = {mark: text.rfind(mark) for mark in "]\"'"}
    start, closing = None, ""
    for match in _FIELD.finditer(text):
        mark = "]" if text[match.end()] == "[" else text[match.end()]
        if last[mark] > match.end():
            start, closing = match.end() + 1, mark
    if start is None:
        return None, ""
    end, entries, foreign = text.find(closing, start), [], ""
    place = _BETWEEN.match(text, start, end).end()
    while place < end:
        match = _ACTION.match(text, place, end)
        entry = match and (match[1] or f"turn {match[2].replace('_', ' ')}")
        after = match.end() if match else place
        if entry not in _EVERY or not (after == end or _BETWEEN.match(text, after, end)[0]):
            match = _ENTRY.match(text, after if entry else place, end)
            after = match.end() if match else after
            entry = text[place:after]
            foreign = foreign or entry[:40]
        entries.append(entry)
        place = _BETWEEN.match(text, after, end).end()
    return entries, foreign
