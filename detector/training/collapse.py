"""A model that has learnt nothing: one answer for every picture."""

import numpy as np
from numpy.typing import ArrayLike

from detector import metrics

# A spread of p(AI) below this is one answer for all pictures, even where it lies on both sides of one half.
CONSTANT_STD = 1e-4


def is_constant(p_ai: ArrayLike) -> bool:
    """Whether the probabilities float [N] are those of a model that looks at nothing. False for no pictures."""
    values = np.asarray(p_ai, dtype=np.float64)
    return bool(values.size) and (metrics.is_collapsed(metrics.predict(values)) or float(values.std()) < CONSTANT_STD)
