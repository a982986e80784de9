"""The form of a prompt: from a user's text to the ids that a model is prompted with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

from smc_bridge.models.arguments import called, check_callable, is_bool, said, whole_numbers

#: Turns a tokenizer and a user's text into the ids that a model is prompted with: a list of whole numbers, or what a
#: tokenizer of transformers returns (`ids_of_prompt`).
PromptFormat = Callable[[Any, str], Any]
#: Whether a prompt is a turn of a conversation; "auto": where the tokenizer has a chat template.
Chat = bool | Literal["auto"]


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

    What it puts behind (an end of sequence, a separator that stands for one) closes a text, and a prompt is open: it is
    left out. What the user wrote stays.
    """
    ids = ids_of_prompt(tokenizer.encode(text), "the tokenizer")
    return ids[: len(ids) - _closing(tokenizer, text)] if hasattr(tokenizer, "all_special_ids") else ids


def _closing(tokenizer: Any, text: str) -> int:
    """How many tokens a tokenizer of transformers puts behind a text.

    That is the same for every text, so a letter tells, which is no special token as `text` may be; and `text` does if
    the vocabulary lacks the letter.
    """
    for sample in ("a", text):
        own = ids_of_prompt(tokenizer.encode(sample, add_special_tokens=False), "the tokenizer")
        if own:
            closed = ids_of_prompt(tokenizer.encode(sample), "the tokenizer")
            ends = range(len(own), len(closed) + 1)
            return next((len(closed) - end for end in ends if closed[end - len(own) : end] == own), 0)
    return 0


def chat_prompt(tokenizer: Any, text: str, system: str | None = None) -> list[int]:
    """Ids of a conversation of which `text` is the user's first turn and the model's answer is next.

    A turn's content is its text, or, for a template that wants one, a list with the text as its only part. The
    template writes all special tokens by itself: none is added to them, and none taken away.

    Args:
        system: text of a system turn before the user's; None for none but what the template writes by itself.
    Raises:
        ValueError: the template fails on both forms, or leaves a turn out.
    """
    texts = {"user": text} if system is None else {"system": system, "user": text}
    why, other = "", "give system, or set chat = False" if system is None else "leave system out"
    remedy = f"{other}, or give format_prompt, a function of the tokenizer and the text that returns ids"
    for as_parts in (False, True):
        try:
            lost = next((role for role in texts if _without(tokenizer, texts, role, as_parts=as_parts)), None)
        except Exception as error:  # anything: a template is a program, and says by any error what it does not take
            why = why or f"raised {type(error).__name__}: {' '.join(str(error).split())}"
            continue
        if lost is None:
            turns = _turns(texts, as_parts=as_parts)
            ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
            return ids_of_prompt(ids, "the chat template")
        why = why or f"leaves the text of the {lost} turn out"
    raise ValueError(f"the tokenizer's chat template {why}; {remedy}")


def _turns(texts: Mapping[str, str], *, as_parts: bool) -> list[dict[str, Any]]:
    """Turns of a conversation, role -> text, each a text or a list of one part."""
    return [
        {"role": role, "content": [{"type": "text", "text": text}] if as_parts else text}
        for role, text in texts.items()
    ]


def _without(tokenizer: Any, texts: dict[str, str], role: str, *, as_parts: bool) -> bool:
    """Whether the template writes the same for another text, as long, in the turn of that role.

    The text itself is not looked for: a template may quote, trim or escape it.
    """
    other = {**texts, role: ("x" if set(texts[role]) != {"x"} else "y") * len(texts[role])}
    one, two = (
        tokenizer.apply_chat_template(_turns(each, as_parts=as_parts), add_generation_prompt=True, tokenize=False)
        for each in (texts, other)
    )
    return bool(one == two)


def prompt_format(tokenizer: Any, chat: Chat = "auto", system: str | None = None) -> PromptFormat:
    """How a user's text becomes a prompt of a model that is loaded with its tokenizer.

    Args:
        chat: True for the tokenizer's chat template, False for the text as it is, "auto" for the template where the
            tokenizer has one.
        system: text of a system turn, which needs the template.
    Raises:
        ValueError: `chat` is none of these, there is no template, or `system` is no text or has no turn.
    """
    check_form(chat, system)
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if chat != "auto" and chat and not has_template:
        raise ValueError(
            "chat = True: the target's tokenizer has no chat template; leave chat out, or give format_prompt"
        )
    if not chat or not has_template:
        if system is not None:
            raise ValueError(
                f"system = {said(system)}: the target's tokenizer has no chat template to put it in; write it into the "
                "prompt, or give format_prompt"
            )
        return plain_prompt
    if system is None:
        return chat_prompt

    def with_system(tokenizer: Any, text: str) -> list[int]:
        return chat_prompt(tokenizer, text, system)

    return with_system


def form_said(format_prompt: PromptFormat) -> str:
    """What makes a prompt of a text, in a few words."""
    if format_prompt is plain_prompt:
        return "the text as it is"
    if format_prompt is chat_prompt:
        return "by the chat template"
    name = str(getattr(format_prompt, "__qualname__", ""))
    with_system = name.startswith(f"{prompt_format.__qualname__}.")
    return "by the chat template, with a system turn" if with_system else f"by {called(format_prompt)}"


def check_form(chat: Any, system: Any, format_prompt: PromptFormat | None = None) -> None:
    """Raise ValueError unless these arguments of `load_pair` say one form of a prompt; no tokenizer is needed."""
    automatic = isinstance(chat, str) and chat == "auto"
    if not automatic and (not is_bool(chat) or getattr(chat, "ndim", 0) > 0):
        raise ValueError(f"chat = {said(chat)}: give True, False or 'auto'")
    check_callable("format_prompt", format_prompt, "a function of the tokenizer and the text")
    if system is not None and (not isinstance(system, str) or not system.strip()):
        raise ValueError(f"system = {said(system)}: give the text of a system turn, or None")
    if format_prompt is not None and (system is not None or not automatic):
        given = f"chat = {chat}" if system is None else f"system = {said(system)}"
        raise ValueError(f"{given} with format_prompt: that makes the whole prompt; give one of them")
    if system is not None and not chat:
        raise ValueError(f"system = {said(system)} with chat = False: a text as it is has no turns; give one of them")


def formatted(format_prompt: PromptFormat, tokenizer: Any, text: str) -> list[int]:
    """Ids of the prompt made of `text`, whatever `format_prompt` returns them in.

    Raises:
        ValueError: it failed, or returned something else (`ids_of_prompt`).
    """
    own = str(getattr(format_prompt, "__module__", "")).split(".")[0] == __name__.split(".")[0]
    name = f"format_prompt = {called(format_prompt)}"
    # transformers would warn of a prompt that is longer than its tokenizer says; who reads it says so (`Pair.encode`).
    silence: AbstractContextManager[None] = nullcontext()
    if "transformers" in sys.modules:
        from smc_bridge.models.loading import quiet  # imports torch, which the command line's parsers do without

        silence = quiet(progress=True)
    try:
        with silence:
            found = format_prompt(tokenizer, text)
    except Exception as error:  # anything: it is the user's own function
        if own and isinstance(error, ValueError):  # says what is wrong by itself
            raise
        reason = " ".join(str(error).split())
        raise ValueError(f"{name} raised {type(error).__name__}: {reason}; mend it, or leave it out") from error
    return ids_of_prompt(found, name)
