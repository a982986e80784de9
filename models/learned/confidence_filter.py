"""The filter of Learn2PD (arXiv 2509.25188): from the confidences of a block, which of its tokens are settled.

    c_i = max_a q_i(a),  i = 1 .. B        of masked places and, at the present law, of filled ones
    logits = W_2 relu(W_1 c + b_1) + b_2   sigma(logit_i): the probability that the likeliest token of place i is right

With B = 32 places and as many hidden units it has 2,112 parameters. Places that a block lacks, since the canvas ends
before, count as sure.
"""

from __future__ import annotations

from torch import Tensor, nn

from smc_bridge.models.protocols import LanguageModel


class ConfidenceFilter(nn.Module):
    """The network (module docstring).

    Args:
        places: B, of a block.
        hidden: units of the hidden layer.
    """

    def __init__(self, places: int = 32, hidden: int = 32) -> None:
        super().__init__()
        self.config = {"places": places, "hidden": hidden}
        self.places = places
        self.layers = nn.Sequential(nn.Linear(places, hidden), nn.ReLU(), nn.Linear(hidden, places))

    @classmethod
    def untrained(cls, model: LanguageModel) -> ConfidenceFilter:
        """The network before it is trained: of the alphabet it knows nothing."""
        return cls()

    def forward(self, confidences: Tensor) -> Tensor:
        """Logits of confidences, `[..., B]` -> `[..., B]`, in the dtype of the weights."""
        logits: Tensor = self.layers(confidences.to(next(self.parameters()).dtype))
        return logits
