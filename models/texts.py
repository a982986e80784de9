"""The text of a continuation: what it adds to the text before it.

A decoder that joins words, or that strips the space in front of a text (SentencePiece: Kudo & Richardson 2018), gives
another text for tokens by themselves than for the same tokens behind others: `decode(prompt + continuation)` is not
`decode(prompt) + decode(continuation)`. So a continuation is decoded behind its prompt, whose text is then taken off;
behind one word that is always there if the prompt is not known, or if its text changes with what follows (it ends
within a character, or with a blank that the decoder takes away before a full stop).
"""

from __future__ import annotations

from typing import Any


def anchor_of(tokenizer: Any) -> tuple[int, str] | None:
    """A token whose text is one ASCII word, and that text; None for a tokenizer that shows no vocabulary."""
    vocabulary: dict[str, int] = getattr(tokenizer, "get_vocab", dict)()
    special = set(getattr(tokenizer, "all_special_ids", ()))
    letter = None
    for token in sorted(set(vocabulary.values()) - special):
        text = str(tokenizer.decode([token]))
        if text.isascii() and text.isalnum():
            if len(text) > 1:
                return token, text
            letter = letter or (token, text)  # a second choice: it may be a byte, which is read together with others
    return letter


def continuation_text(
    tokenizer: Any, ids: list[int], anchor: tuple[int, str] | None, prompt: list[int] | None = None
) -> str:
    """Text that `ids` add behind the ids of `prompt`, or else behind `anchor`, which is that of `anchor_of`."""
    before = [] if prompt is None else [(prompt, str(tokenizer.decode(prompt)))]
    before += [] if anchor is None else [([anchor[0]], anchor[1])]
    for others, text in before:
        whole = str(tokenizer.decode([*others, *ids]))
        if whole.startswith(text):
            return whole[len(text) :]
    return str(tokenizer.decode(ids))
