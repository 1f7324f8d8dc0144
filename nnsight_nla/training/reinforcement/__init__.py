"""The second stage: reinforcement learning makes a warm start an NLA.

The verbalizer draws several texts for each vector, the reconstructor turns each back into a vector,
and the verbalizer learns to write what brings its vector back::

    rl("av", "rows.parquet", ar="ar", out="rl")

Read `run` first (what is read, checked and written), then `loop` (a step), `policy` (the
log-probabilities), `reward`, and `held_out` (what is watched, truth included).
"""

from .reward import Reward
from .run import Reinforced, rl
from .settings import RLSettings, RLWatching

__all__ = ["RLSettings", "RLWatching", "Reinforced", "Reward", "rl"]
