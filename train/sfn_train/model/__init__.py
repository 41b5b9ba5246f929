"""The network, one file a module of the paper; `sfn.py` assembles them."""

from sfn_train.model.config import ModelConfig
from sfn_train.model.sfn import SFN, Prediction

__all__ = ["SFN", "ModelConfig", "Prediction"]
