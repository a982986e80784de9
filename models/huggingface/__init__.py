"""Adapters that present models of Hugging Face transformers as the two protocols of `models.protocols`."""

from models.huggingface.causal import HuggingFaceCausalLM
from models.huggingface.masked import HuggingFaceMaskedLM
from models.huggingface.vocabulary import SharedVocabulary, check_shared_vocabulary, shared_vocabulary

__all__ = [
    "HuggingFaceCausalLM",
    "HuggingFaceMaskedLM",
    "SharedVocabulary",
    "check_shared_vocabulary",
    "shared_vocabulary",
]
