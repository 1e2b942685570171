"""ASFT, anchored fine-tuning: DFT held near to the base by its KL, weight * KL(model || base) on the answers' tokens.

`sft.mitigation_weight`: the weight.
"""

from oodlib.training.mitigations import Mitigation
from oodlib.training.mitigations.kl import penalty

MITIGATION = Mitigation("ASFT", options={"loss_type": "dft"}, penalty=penalty)
