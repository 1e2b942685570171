"""DFT, dynamic fine-tuning (arXiv:2508.05629): each token's loss times its probability, taken as a constant.

TRL's own loss of this name.
"""

from oodlib.training.mitigations import Mitigation

MITIGATION = Mitigation("DFT", options={"loss_type": "dft"})
