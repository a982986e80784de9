"""Adapters that present models of Hugging Face transformers as the two protocols of `smc_bridge.models.protocols`."""

from smc_bridge.models.huggingface.causal import HuggingFaceCausalLM
from smc_bridge.models.huggingface.masked import HuggingFaceMaskedLM
from smc_bridge.models.huggingface.vocabulary import SharedVocabulary, check_shared_vocabulary, shared_vocabulary

__all__ = [
    "HuggingFaceCausalLM",
    "HuggingFaceMaskedLM",
    "SharedVocabulary",
    "check_shared_vocabulary",
    "shared_vocabulary",
]
