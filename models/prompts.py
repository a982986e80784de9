"""The form of a prompt: from a user's text to the ids that a model is prompted with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: Turns a tokenizer and a user's text into the ids that a model is prompted with.
PromptFormat = Callable[[Any, str], list[int]]


def plain_prompt(tokenizer: Any, text: str) -> list[int]:
    """Ids of `text` with the special tokens that the tokenizer adds by itself."""
    return list(tokenizer.encode(text))


def chat_prompt(tokenizer: Any, text: str) -> list[int]:
    """Ids of a conversation of which `text` is the user's first turn and the model's answer is next."""
    turn = [{"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=True, return_dict=False)
    return list(ids)


def default_prompt(tokenizer: Any) -> PromptFormat:
    """The chat template where the tokenizer has one, else the text as it is encoded."""
    return chat_prompt if getattr(tokenizer, "chat_template", None) else plain_prompt
