"""The byte-level BPE tokenizer that both models of the pair share.

Digits are tokens of their own, so that a number is written digit by digit and arithmetic is learnable. Byte-level
coding makes it lossless: `decode(encode(text)) == text` for every string. Ids 0 to 3 are pad, bos, eos and mask.
"""

import itertools
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY_SIZE = 640
PAD, BOS, EOS, MASK = "<pad>", "<bos>", "<eos>", "<mask>"
PAD_ID, BOS_ID, EOS_ID, MASK_ID = range(4)
#: Frequent words of word problems that the generator does not use: a user's own prompt then costs words, not bytes.
EXTRA_WORDS = (
    " about after all also altogether an any apple as at bag because been before both box boxes but by can cents"
    " children class day days did does dollars down each eats every few first for found from gets girl give given"
    " go got had half her his if into just know left less like made make man many money most much must need new no"
    " not number of on only or other out over people put red remain school second see she he sum take teacher than"
    " the their there they thing this three time total two under up use was way week were what when which who will"
    " with would year you your minus plus equals answer question"
)
TOKENIZER_FILE = Path(__file__).with_name("tokenizer.json")


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Return a byte-level BPE of `VOCABULARY_SIZE` tokens, merges learnt from `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, BOS, EOS, MASK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.chain(texts, [EXTRA_WORDS]), trainer)
    return tokenizer


@cache
def load_tokenizer(path: Path = TOKENIZER_FILE) -> PreTrainedTokenizerFast:
    """Return the tokenizer stored at `path` (default: the shipped one). Raises FileNotFoundError if there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"path={path}: no tokenizer file; run `make train PART=pair`, or reinstall it")
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path),
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        mask_token=MASK,
        clean_up_tokenization_spaces=False,
    )


def format_prompt(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Return the token ids of a prompt as the pair was trained on them: bos, the text, a newline.

    The response follows directly and ends with eos. Raises ValueError on an empty or blank text.
    """
    if not text.strip():
        raise ValueError(f"text={text!r}: the prompt is empty; give a word problem")
    ids: list[int] = tokenizer.encode(text.strip() + "\n", add_special_tokens=False)
    return [BOS_ID, *ids]
