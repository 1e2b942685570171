"""What the measurements say: intervals, the claims of the paper, the sweep."""

from oodlib.analysis import claims
from oodlib.analysis.evidence import Evidence

__all__ = ["Evidence", "claims"]
