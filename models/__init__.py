"""Language models: protocols, Hugging Face adapters, exact tabular models, the embedded pair."""
