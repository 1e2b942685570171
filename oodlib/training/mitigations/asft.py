"""ASFT, anchored fine-tuning (arXiv:2509.23753): DFT held near to the base, weight * KL(model || base) on the answers.

`sft.mitigation_weight`: the weight. The released code takes the divergence the other way, KL(base || model).
"""

from oodlib.training.mitigations import Mitigation
from oodlib.training.mitigations.kl import penalty

MITIGATION = Mitigation("ASFT", options={"loss_type": "dft"}, penalty=penalty)
