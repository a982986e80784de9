"""A masked diffusion language model of transformers as a `MaskedDiffusionLM`.

One bidirectional forward over prefix and canvas, mask tokens where the canvas is not known, gives independent marginals
of all M positions. Two conventions say which output is about which position:

- `shift=True`: the output at place i - 1 predicts place i, kept from the autoregressive model it was made of (Dream,
  Ye et al. 2025, arXiv 2508.15487; DiffuLLaMA, Gong et al. 2024, arXiv 2410.17891);
- `shift=False`: the output at place i predicts place i (LLaDA, Nie et al. 2025, arXiv 2502.09992; MDLM, Sahoo et al.
  2024, arXiv 2406.07524; every BERT).

Two kinds say what a place sees: all others, or, of a *block-causal* model (BD3LM, Arriola et al. 2025, arXiv
2503.09573; Fast-dLLM v2, Wu et al. 2025, arXiv 2509.26328), its own block and those before (`block_size`).

The cost of a forward grows with the prefix. A cache keeps keys and values of committed tokens
(`smc_bridge.models.caches` says which): exactly those of the finished blocks of a block-causal model, else
approximately, at the price of acceptance. A proposal may be approximate: its density is that of the very logits it was
drawn from.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from smc_bridge.models.arguments import whole_number
from smc_bridge.models.caches import CachePolicy, Spectrum, fitting
from smc_bridge.models.ends import EosId
from smc_bridge.models.host import listed, places, sent
from smc_bridge.models.huggingface.adapter import ADDITIVE_ATTENTION, HuggingFaceAdapter, additive_mask, open_mask
from smc_bridge.models.huggingface.attention import attention_of
from smc_bridge.models.huggingface.canvas import Fresh, lay_out, seen_by_block
from smc_bridge.models.huggingface.dual import keep_behind, score_block
from smc_bridge.models.huggingface.masked_cache import PrefixCache
from smc_bridge.models.huggingface.probes import check_masked
from smc_bridge.models.protocols import ABSENT, MASKED, Scored
from smc_bridge.models.rows import Rows, append_ragged
from smc_bridge.models.spectrum import SpectrumSession


class HuggingFaceMaskedLM(HuggingFaceAdapter):
    """Masked diffusion language model of transformers (implements `MaskedDiffusionLM`).

    Args:
        model: a transformers model with a language-modelling head; it is put into evaluation mode.
        mask_id: id that stands for a masked position in the model's input; it may lie past `vocab_size`.
        shift: whether the output at place i - 1 predicts place i.
        eos_id: token that ends a sequence, several of them, or None.
        banned_ids: ids that are not text (mask, padding, unused rows).
        vocab_size: alphabet size A; logits past it are cut off. Default: all output columns.
        causal_backbone: the architecture is that of a causal model, made bidirectional by a 4-D attention mask; if
            False it is bidirectional by itself and gets a 2-D mask. Default: whether transformers can generate with it.
        block_size: tokens of a block of a block-causal model, which sees whole blocks, its own and those before it,
            counted from position 0 of prompt and continuation. None: every place sees all others. It needs a causal
            backbone that takes `position_ids`.
        cache: what is kept of committed tokens, a policy or the name of one (`smc_bridge.models.caches`): "prefix",
            "freecache", "refresh", "dual", "window:W" or "spectrum"; it needs a causal backbone whose attention is
            known. "none" computes everything anew. "auto": "prefix" where there is one. Without a block size kept
            values are approximate, so here scores are the network's own unless something else is asked for;
            `load_pair` asks for "auto". With one, finished blocks are kept, and nothing approximate is taken.
        max_logit_bytes: cap on the bytes of logits that the head computes at once, or None (`HuggingFaceAdapter.cap`).
    Raises:
        ValueError: an argument out of range, or one that does not fit the model.
    """

    #: Of models that it is run like (`smc_bridge.models.conventions`), if loading it found that out.
    family: str | None = None

    def __init__(
        self,
        model: Any,
        *,
        mask_id: int,
        shift: bool,
        eos_id: EosId,
        banned_ids: Sequence[int] = (),
        vocab_size: int | None = None,
        causal_backbone: bool | None = None,
        block_size: int | None = None,
        cache: str | CachePolicy = "none",
        max_logit_bytes: int | None = None,
    ) -> None:
        super().__init__(
            model, eos_id=eos_id, banned_ids=banned_ids, vocab_size=vocab_size, max_logit_bytes=max_logit_bytes
        )
        if not 0 <= mask_id < self._input_size:
            raise ValueError(f"mask_id = {mask_id}: give an id from 0 to {self._input_size - 1}")
        self.mask_id = mask_id
        self.shift = shift
        self.min_length = int(shift)
        self.causal_backbone = bool(model.can_generate()) if causal_backbone is None else causal_backbone
        attention = model.config._attn_implementation
        if self.causal_backbone and attention not in ADDITIVE_ATTENTION:
            raise ValueError(
                f"attn_implementation = {attention!r} of a causal backbone takes no bidirectional mask: load the model "
                f"with one of {ADDITIVE_ATTENTION}"
            )
        remedy = "give a block's tokens, a whole number, or None where every place sees all others"
        #: Tokens of a block, or None where every place sees all others.
        self.block_size = None if block_size is None else whole_number("block_size", block_size, remedy=remedy)
        if self.block_size is not None and not self.explicit:
            raise ValueError(f"block_size = {block_size} {self._implicit()}: leave it out")
        self._keep(cache)
        check_masked(self)

    def _implicit(self) -> str:
        return f"needs a causal backbone that takes position_ids, which {type(self.model).__name__} is not"

    def _keep(self, cache: str | CachePolicy) -> None:
        """Keep what is meant; ValueError if the model cannot have it."""
        lacks = None
        if not self.explicit:
            lacks = f" {self._implicit()}"
        elif attention_of(self.model) is None:
            lacks = f": it is not known how a model of type {self.model.config.model_type!r} keeps keys and values"
        #: What its sessions keep, None for nothing.
        self.policy = fitting(cache, block_size=self.block_size, lacks=lacks)
        #: The same, by its name.
        self.cache = "none" if self.policy is None else str(self.policy)

    @property
    def explicit(self) -> bool:
        """Whether a token's position and what it sees are said to the model, so that its column does not matter."""
        return self.causal_backbone and "position_ids" in self._accepts

    def with_cache(self, cache: str | CachePolicy) -> HuggingFaceMaskedLM:
        """The same model with another cache in its sessions; errors are those of the class."""
        other = copy.copy(self)
        other._keep(cache)
        return other

    def session(self, tokens: Tensor, length: Tensor) -> HuggingFaceDiffusionSession | SpectrumSession:
        """Open a session on prefixes `tokens: [R, S]`, of which the first `length: [R]` count."""
        if isinstance(self.policy, Spectrum):
            plain = HuggingFaceDiffusionSession(self.with_cache("none"), tokens, length)
            return SpectrumSession(plain, self.policy, self.head)
        return HuggingFaceDiffusionSession(self, tokens, length)

    def embed(self, tokens: Tensor) -> Tensor:
        """Input embeddings `[..., E]` of token ids `[...]`, `MASKED` among them (`FeaturedLM.embed`)."""
        ids = torch.where(tokens == MASKED, self.mask_id, tokens.clamp_min(0))
        found: Tensor = self.model.get_input_embeddings()(ids)
        return found.detach()

    def head(self, hidden: Tensor) -> Tensor:
        """Logits `[..., A]` of features `[..., D]` (`FeaturedLM.head`).

        Raises:
            ValueError: the model changes what its head gives.
        """
        head = self.plain_head
        if head is None:
            raise ValueError(
                f"dlm = {type(self.model).__name__}: its logits are not what its head gives; use a model whose are"
            )
        weights = {name: value.detach() for name, value in head.named_parameters()}
        return self.scores(torch.func.functional_call(head, weights, hidden.to(self.model.dtype)))

    def forward(self, fresh: Fresh, lookahead: int, cache: Any = None, *, hidden: bool = False) -> Tensor:
        """Logits `[B, M, A]` of the last `lookahead` places of `fresh`, one bidirectional forward of a causal backbone.

        Args:
            fresh: the tokens to run. All real ones and all cached ones see each other, or, of a block-causal model,
                those of their own block and before.
            lookahead: M.
            cache: a transformers `Cache` with what stands before, or None.
            hidden: give what the head reads after them, `[B, M, A + D]`.
        """
        keep = lookahead + int(self.shift)
        out = self.outputs(fresh, keep, cache, hidden=hidden)
        first = out.shape[1] - keep
        out = out[:, first : first + lookahead]
        return out if hidden else self.scores(out)

    def outputs(self, fresh: Fresh, keep: int, cache: Any = None, *, hidden: bool = False) -> Tensor:
        """Outputs of the network of the last `keep` columns of `fresh`, or of all (`network`); wide scores if `hidden`.
        """
        self.check_inputs(fresh.ids, int(fresh.position.max()) + 1)
        (batch, width), device = fresh.ids.shape, self.device
        held = 0 if cache is None else cache.get_seq_length()
        seen = None if fresh.seen is None else fresh.seen[:, None]
        if self.block_size is not None:
            seen = seen_by_block(fresh, held, self.block_size)
        if seen is None:
            mask = open_mask(self.model.dtype, device).expand(batch, 1, width, held + width)
        else:
            mask = additive_mask(sent(seen, device), self.model.dtype).expand(batch, -1, width, -1)
        return self.network(
            sent(fresh.ids, device), mask=mask, position=sent(fresh.position, device), cache=cache, keep=keep,
            hidden=hidden,
        )


class HuggingFaceDiffusionSession(Rows):
    """Session of a `HuggingFaceMaskedLM` (implements `DiffusionSession`)."""

    def __init__(self, model: HuggingFaceMaskedLM, tokens: Tensor, length: Tensor) -> None:
        super().__init__(tokens.to(model.device), length.to(model.device))
        self.model = model
        policy = model.policy
        self._cache = None if policy is None else PrefixCache(len(length), policy)
        #: Whether a row's scores depend on the forwards before, and not on its tokens alone.
        self.has_history = policy is not None and not policy.exact
        self.in_turn = policy is not None
        # Whether scores are made wide: for a cache that keeps them, from the first time on that features are wanted.
        self._wide = False

    def _follow(self, source: list[int]) -> None:
        """Let the cache follow."""
        if self._cache is not None:
            self._cache.gather(source, self.device)

    def crop(self, length: Tensor) -> None:
        """Keep the first `length[r]` tokens of row r (`[R]`), of its cache too."""
        super().crop(length)
        if self._cache is not None:
            self._cache.crop(self.lengths)

    @overload
    def score(self, rows: Tensor, canvas: Tensor, *, hidden: Literal[False] = False) -> Tensor: ...

    @overload
    def score(self, rows: Tensor, canvas: Tensor, *, hidden: Literal[True]) -> Scored: ...

    def score(self, rows: Tensor, canvas: Tensor, *, hidden: bool = False) -> Tensor | Scored:
        """Logits of the M positions after the prefixes, `[B, M, A]`, with features `[B, M, D]` if they are wanted
        (`DiffusionSession.score`).

        A dual cache keeps features with its scores from the first time on that they are wanted, and computes its
        blocks anew then.

        Raises:
            ValueError: on an empty prefix if the outputs are shifted, on logits that are no law, and if features are
                wanted of a model whose head cannot be listened to.
            MemoryError: one row does not fit into memory.
        """
        model = self.model
        batch, lookahead = canvas.shape
        if batch == 0 or lookahead == 0:
            none = model.empty(batch, lookahead)
            return Scored(none, none.new_empty(batch, lookahead, model.hidden_size)) if hidden else none
        index, shown = listed(rows, canvas)
        lengths = [self.lengths[r] for r in index]
        if model.shift and min(lengths) < 1:
            raise ValueError(
                f"length[{index[lengths.index(0)]}] = 0: with shifted outputs nothing predicts the first token; "
                "start the prefix from bos or a prompt"
            )
        cache = self._cache
        if hidden and not self._wide and cache is not None and cache.behind is not None:
            cache.begin_anew()
            self._wide = True
        forward = self._cached if cache is not None else self._recomputed if model.explicit else self._padded
        out = forward(index, np.array(shown), lengths, hidden or self._wide)
        logits = out[..., : model.vocab_size] if out.shape[-1] > model.vocab_size else out
        model.check_logits(logits, lambda b, c: (index[b], lengths[b] + c))
        return Scored(logits, out[..., model.vocab_size :]) if hidden else logits

    def _chunked(self, forward: Callable[[slice], Tensor], canvas: np.ndarray, width: int) -> Tensor:
        """Run `forward` over the rows of `canvas: [B, M]`, each `width` tokens long."""
        batch, lookahead = canvas.shape
        kept = (lookahead + int(self.model.shift)) * self.model.vocab_size
        return self.model.chunks(forward, batch, tokens=width, logits=kept)

    def _recomputed(self, rows: list[int], canvas: np.ndarray, lengths: list[int], wide: bool) -> Tensor:
        """Forwards over prefixes and canvases; scores `[B, M, A]`, or wide ones, as of the next two."""
        model = self.model

        def forward(part: slice) -> Tensor:
            """Logits of the canvases of these of the rows."""
            fresh = lay_out(
                self.texts, rows[part], lengths[part], canvas[part], mask_id=model.mask_id, shift=model.shift
            )
            return model.forward(fresh, canvas.shape[1], hidden=wide)

        return self._chunked(forward, canvas, max(lengths) + canvas.shape[1])

    def _cached(self, rows: list[int], canvas: np.ndarray, lengths: list[int], wide: bool) -> Tensor:
        """Forwards over tokens that are not kept, and canvases; a row that is given again comes after the first."""
        model, cache = self.model, self._cache
        assert cache is not None
        first = list({r: b for b, r in reversed(list(enumerate(rows)))}.values())[::-1]
        if len(first) < len(rows):
            out = model.empty(*canvas.shape, hidden=wide)
            for part in (first, [b for b in range(len(rows)) if b not in set(first)]):
                out[part] = self._cached([rows[b] for b in part], canvas[part], [lengths[b] for b in part], wide)
            return out
        plan = cache.plan(rows, canvas, lengths, shift=model.shift)

        def forward(part: slice) -> Tensor:
            """Logits of the canvases of these of the rows."""
            own = plan.of(part)
            fresh = lay_out(
                self.texts, rows[part], lengths[part], canvas[part], mask_id=model.mask_id, shift=model.shift,
                cached=own.start,
            )
            if cache.behind is not None:
                return score_block(
                    cache, cache.behind, rows[part], fresh, canvas[part], lengths[part], own, shift=model.shift,
                    run=partial(model.outputs, hidden=wide), scores=_same if wide else model.scores,
                    device=self.device,
                )
            held = cache.open(rows[part], fresh, max(own.start), self.device)
            out = model.forward(fresh, canvas.shape[1], held, hidden=wide)
            cache.keep(rows[part], fresh, own, lengths=lengths[part], shift=model.shift, device=self.device)
            return out

        fresh_tokens = max(n - k for n, k in zip(lengths, plan.start, strict=True))
        out = self._chunked(forward, canvas, fresh_tokens + canvas.shape[1])
        if cache.behind is not None:
            keep_behind(cache.behind, rows, canvas, lengths, plan, out, shift=model.shift)
        cache.mark(rows, plan, self.texts, self.lengths, self.device)
        return out

    def _padded(self, rows: list[int], canvas: np.ndarray, lengths: list[int], wide: bool) -> Tensor:
        """Forwards over right-padded rows, for models that count positions themselves."""
        model, lookahead, device = self.model, canvas.shape[1], self.device
        length = sent(lengths, device)
        shown = sent(np.where(canvas == MASKED, model.mask_id, canvas), device)
        ids, whole = append_ragged(
            self.tokens[sent(rows, device)], length, shown, sent((canvas != ABSENT).sum(1).tolist(), device), fill=0
        )
        width = ids.shape[1]
        real = places(width, ids.device) < whole[:, None]  # [B, W]
        # Places that a row does not have read its last one.
        place = length[:, None] + places(lookahead, ids.device)
        wanted = place.clamp_max(whole[:, None] - 1) - int(model.shift)

        def forward(part: slice) -> Tensor:
            """Logits of the canvases of these of the rows."""
            mask = real[part].long()
            if model.causal_backbone:
                mask = additive_mask(real[part, None, :], model.model.dtype).expand(-1, -1, width, -1)
            return model.logits(ids[part], wanted[part], attention_mask=mask, position_ids=None, hidden=wide)

        return self._chunked(forward, canvas, width)


def _same(scores: Tensor) -> Tensor:
    """Scores that are made already."""
    return scores
