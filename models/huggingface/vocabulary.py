"""The alphabet that two models share, and the ids of it that are not text.

A product `q^w p^(1-w)` has a meaning only if token a of one model is token a of the other, so the two tokenizers are
compared id by id. What may differ are the ids that no law may draw: mask, padding and begin of sequence of either
tokenizer. These, and output columns that no token belongs to, are banned from both laws alike. What ends a sequence
never is, whatever else it stands for: the padding of a chat model is often one of its ends.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from smc_bridge.models.ends import Ends, EosId, as_eos_id, ends_of
from smc_bridge.models.huggingface.adapter import output_size

#: How many differing ids an error lists.
LISTED = 5


@dataclass(frozen=True)
class SharedVocabulary:
    """The alphabet of a pair.

    Attributes:
        size: A, output columns of both models.
        ends: tokens that end a sequence.
        banned_ids: ids that are not text, or not the same in both models.
    """

    size: int
    ends: Ends
    banned_ids: tuple[int, ...]


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of mask, padding and begin of sequence, as far as the tokenizer has them."""
    return {i for i in (tokenizer.mask_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) if i is not None}


def ignorable_ids(a: Any, b: Any, *, mask_id: int, ends: Ends) -> frozenset[int]:
    """Ids that may differ between the tokenizers `a` and `b` because no law draws them: `mask_id` and `special_ids`,
    but for the ends of a sequence."""
    return frozenset(({mask_id} | special_ids(a) | special_ids(b)).difference(ends))


def differing_ids(a: Any, b: Any) -> dict[int, tuple[str | None, str | None]]:
    """Ids that are different tokens in the tokenizers `a` and `b`: id -> (token of a, token of b), None if absent."""
    left, right = ({i: token for token, i in t.get_vocab().items()} for t in (a, b))
    return {i: (left.get(i), right.get(i)) for i in sorted(left | right) if left.get(i) != right.get(i)}


def check_shared_vocabulary(a: Any, b: Any, *, ignore: frozenset[int] = frozenset()) -> None:
    """Compare two tokenizers id by id.

    Args:
        a, b: transformers tokenizers.
        ignore: ids that may differ, because neither law draws them.
    Raises:
        ValueError: with the number of differing ids and the first few of them.
    """
    different = {i: tokens for i, tokens in differing_ids(a, b).items() if i not in ignore}
    if different:
        first = ", ".join(f"{i}: {x!r} against {y!r}" for i, (x, y) in list(different.items())[:LISTED])
        more = ", ..." if len(different) > LISTED else ""
        raise ValueError(
            f"tokenizers differ in {len(different)} ids ({first}{more}): give two models with one vocabulary, or set "
            "reduce = True to restrict both laws to the shared ids"
        )


def _faults(ends: Ends, dlm_tokenizer: Any, ar_tokenizer: Any, *, mask_id: int | None, size: int) -> dict[int, str]:
    """What is wrong with each end of a sequence that the two models cannot share."""
    names = [{i: token for token, i in t.get_vocab().items() if i in ends} for t in (dlm_tokenizer, ar_tokenizer)]
    faults = {}
    for end in ends:
        left, right = (known.get(end) for known in names)
        if end == mask_id:
            faults[end] = f"mask_id = {end} is eos_id too: a position cannot be unknown and the end"
        elif left != right:
            faults[end] = (
                f"eos_id = {end} is not the same token in both tokenizers, {left!r} of the diffusion model's and "
                f"{right!r} of the target's"
            )
        elif left is None or end >= size:
            faults[end] = f"eos_id = {end} is no token that the models and their tokenizers share"
    return faults


def shared_ends(
    ends: Ends, dlm_tokenizer: Any, ar_tokenizer: Any, *, mask_id: int | None = None, size: int | None = None
) -> Ends:
    """The ends of a sequence that a target's configuration lists, without those that the two models cannot share.

    A warning tells of each that is left out: one that is not the same token in both tokenizers, the mask, or past the
    alphabet.

    Args:
        ends: of the target.
        dlm_tokenizer, ar_tokenizer: which may be the same object.
        mask_id: of the diffusion model.
        size: alphabet size A, as far as it is known.
    Raises:
        ValueError: none is left.
    """
    room = max(ends, default=0) + 1 if size is None else size
    faults = _faults(ends, dlm_tokenizer, ar_tokenizer, mask_id=mask_id, size=room)
    good = tuple(end for end in ends if end not in faults)
    if ends and not good:
        both = "give two models with one vocabulary, or an eos_id that both share"
        raise ValueError(
            f"the target ends sequences with eos_id = {as_eos_id(ends)}, and none is left: {faults[ends[0]]}; "
            f"{'give eos_id' if dlm_tokenizer is ar_tokenizer else both}"
        )
    for fault in faults.values():
        warnings.warn(f"{fault}, so it ends no sequence here; eos_id = {as_eos_id(good)} does", stacklevel=4)
    return good


def warn_of_other_end(dlm_tokenizer: Any, *, ends: Ends) -> None:
    """Tell of a diffusion model that ends sequences with a token that is none of the target's ends.

    Such pairs are common (a base model's end of text against a chat model's end of turn) and sound, but a draft that
    ends the other way is refused by the target.
    """
    other = dlm_tokenizer.eos_token_id
    if other is None or not ends or other in ends:
        return
    first, *rest = (f"{i} ({dlm_tokenizer.convert_ids_to_tokens(i)!r})" for i in (other, *ends))
    warnings.warn(
        f"end of sequence of the DLM's tokenizer and of the target: {first}, {' or '.join(rest)}; a sequence ends with "
        "the latter, so drafts that end with the former cost acceptance",
        stacklevel=4,
    )


def shared_vocabulary(
    dlm_model: Any,
    ar_model: Any,
    dlm_tokenizer: Any,
    ar_tokenizer: Any,
    *,
    mask_id: int,
    eos_id: EosId,
    reduce: bool = False,
) -> SharedVocabulary:
    """Alphabet and banned ids of a pair.

    Args:
        dlm_model, ar_model: transformers models; the smaller output is the alphabet.
        dlm_tokenizer, ar_tokenizer: their tokenizers, which may be the same object.
        mask_id: id that the diffusion model reads for a masked position; it may lie past the alphabet.
        eos_id: id that ends a sequence, several of them, or None; none is banned, whatever else it stands for.
        reduce: ban the ids that differ rather than refuse the pair; the target is then the AR law restricted to the
            shared ids; a warning says how many these are.
    Raises:
        ValueError: if the tokenizers differ, or have tokens that one of the models has no output for, or an end is not
            the same token in both.
    """
    dlm_size, ar_size = output_size(dlm_model), output_size(ar_model)
    size = min(dlm_size, ar_size)
    ends = ends_of(eos_id)
    special = ignorable_ids(dlm_tokenizer, ar_tokenizer, mask_id=mask_id, ends=ends)
    banned = set(special)
    if reduce:
        banned |= set(differing_ids(dlm_tokenizer, ar_tokenizer))
    else:
        check_shared_vocabulary(dlm_tokenizer, ar_tokenizer, ignore=special)
    for fault in _faults(ends, dlm_tokenizer, ar_tokenizer, mask_id=mask_id, size=size).values():
        raise ValueError(f"{fault}: give another eos_id")
    known = set(dlm_tokenizer.get_vocab().values()) | set(ar_tokenizer.get_vocab().values())
    beyond = sorted(i for i in known - banned if i >= size)
    if beyond and not reduce:
        raise ValueError(
            f"tokenizers have {len(beyond)} ids past the models' outputs (first {beyond[0]}; {dlm_size} columns of the "
            f"DLM, {ar_size} of the AR): give each model its own tokenizer, or set reduce = True"
        )
    banned |= set(range(size)) - known
    warn_of_other_end(dlm_tokenizer, ends=ends)
    if reduce:
        warnings.warn(
            f"reduce = True: both laws are restricted to {size - sum(i < size for i in banned)} of {size} ids",
            stacklevel=3,
        )
    return SharedVocabulary(size, ends, tuple(sorted(i for i in banned if i < size)))
