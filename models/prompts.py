"""The form of a prompt: from a user's text to the ids that a model is prompted with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from smc_bridge.models.arguments import called, said, whole_numbers

#: Turns a tokenizer and a user's text into the ids that a model is prompted with: a list of whole numbers, or what a
#: tokenizer of transformers returns (`ids_of_prompt`).
PromptFormat = Callable[[Any, str], Any]


def ids_of_prompt(found: Any, source: str) -> list[int]:
    """Token ids as a list, from any of the forms that tokenizers return one prompt in.

    Args:
        found: a list, array or tensor `[S]` or `[1, S]`, a mapping with such `input_ids` (`BatchEncoding`), or an
            object with `ids` (`tokenizers.Encoding`).
        source: what returned it, for messages.
    Raises:
        ValueError: it is none of these, or holds several prompts.
    """
    ids = found["input_ids"] if isinstance(found, Mapping) and "input_ids" in found else getattr(found, "ids", found)
    ids = ids.tolist() if hasattr(ids, "tolist") else ids
    if isinstance(ids, list | tuple) and len(ids) == 1 and isinstance(ids[0], list | tuple):
        ids = ids[0]
    try:
        return whole_numbers("ids", ids, remedy="")
    except ValueError:
        raise ValueError(f"{source} returned {said(found)}: return the ids of one prompt, whole numbers") from None


def plain_prompt(tokenizer: Any, text: str) -> list[int]:
    """Ids of `text` with the special tokens that the tokenizer puts before it.

    What it puts behind (an end of sequence, a separator) closes a text, and a prompt is open: it is left out.
    """
    ids = ids_of_prompt(tokenizer.encode(text), "the tokenizer")
    special = set(getattr(tokenizer, "all_special_ids", ()))
    if ids and ids[-1] in special:
        own = ids_of_prompt(tokenizer.encode(text, add_special_tokens=False), "the tokenizer")
        ids = ids[: len(ids) - (_closing(ids, special) - _closing(own, special))]
    return ids


def _closing(ids: list[int], special: set[int]) -> int:
    """How many special tokens stand at the end."""
    return next((count for count, token in enumerate(reversed(ids)) if token not in special), len(ids))


def chat_prompt(tokenizer: Any, text: str) -> list[int]:
    """Ids of a conversation of which `text` is the user's first turn and the model's answer is next.

    The turn's content is the text, or, for a template that wants one, a list with the text as its only part.

    Raises:
        ValueError: the template fails on both, or leaves the text out.
    """
    why = "leaves the prompt's text out"
    for content in (text, [{"type": "text", "text": text}]):
        turn = [{"role": "user", "content": content}]
        try:
            written = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # anything: a template is a program, and says by any error what it does not take
            if content is text:
                why = f"raised {type(error).__name__}: {' '.join(str(error).split())}"
            continue
        if "".join(text.split()) in "".join(str(written).split()):
            ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=True, return_dict=False)
            return ids_of_prompt(ids, "the chat template")
    raise ValueError(
        f"the tokenizer's chat template {why}; give format_prompt, a function of the tokenizer and the text that "
        "returns ids"
    )


def default_prompt(tokenizer: Any) -> PromptFormat:
    """The chat template where the tokenizer has one, else the text as it is encoded."""
    return chat_prompt if getattr(tokenizer, "chat_template", None) else plain_prompt


def formatted(format_prompt: PromptFormat, tokenizer: Any, text: str) -> list[int]:
    """Ids of the prompt made of `text`, whatever `format_prompt` returns them in.

    Raises:
        ValueError: it failed, or returned something else (`ids_of_prompt`).
    """
    own = str(getattr(format_prompt, "__module__", "")).split(".")[0] == __name__.split(".")[0]
    name = f"format_prompt = {called(format_prompt)}"
    try:
        found = format_prompt(tokenizer, text)
    except Exception as error:  # anything: it is the user's own function
        if own and isinstance(error, ValueError):  # says what is wrong by itself
            raise
        reason = " ".join(str(error).split())
        raise ValueError(f"{name} raised {type(error).__name__}: {reason}; mend it, or leave it out") from error
    return ids_of_prompt(found, name)
