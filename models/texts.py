"""The text of a continuation: what it adds to the text before it.

A decoder that joins words, or that strips the space in front of a text (SentencePiece: Kudo & Richardson 2018), gives
another text for tokens by themselves than for the same tokens behind others: `decode(prompt + continuation)` is not
`decode(prompt) + decode(continuation)`. So a continuation is decoded behind one word that is always there, whose text
is then taken off. What that word is does not matter: a decoder that looks further back than a word would give tokens
that are committed another text with every token that comes.
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


def continuation_text(tokenizer: Any, ids: list[int], anchor: tuple[int, str] | None) -> str:
    """Text that `ids` add behind other text; behind `anchor`, which is that of `anchor_of`."""
    if anchor is not None and ids:
        token, before = anchor
        whole = str(tokenizer.decode([token, *ids]))
        if whole.startswith(before):
            return whole[len(before) :]
    return str(tokenizer.decode(ids))
