"""The supervised warm start of a verbalizer and a reconstructor, for any causal language model.

Both models of an NLA start from the target itself and learn from the same rows,
``(activation_vector, explanation)``, in the published schema (`Row`)::

    AV   vector -> text    next-token loss on the response alone; the vector is written at
                           the marker by the same `injection.write` that inference uses
    AR   text -> vector    blocks 0..K, no final norm, a bias-free head that starts as the
                           identity, read at the last token; mean squared error between
                           L2-normalised vectors

Train on rows and save a folder that ``NLA(av)`` loads::

    model = AutoModelForCausalLM.from_pretrained(base)
    checkpoint = describe(tokenizer, layer=24, d_model=4096, base_model=base)
    av = train_verbalizer(model, tokenizer, rows, checkpoint, Settings(steps=1000, batch_size=64))
    save_verbalizer("av", av, tokenizer, checkpoint)

Do the same from a file of rows, as the command ``nnsight-nla train`` does: it can be resumed, is
measured on held-out documents while it runs, and writes the final folder only when it is complete::

    train("av", "rows.parquet", base="Qwen/Qwen3-8B", out="checkpoints/av")

The second stage, reinforcement learning on the round trip, continues from both::

    rl("checkpoints/av", "rows.parquet", ar="checkpoints/ar", out="checkpoints/rl")
"""

from .curves import plot_log
from .files import Files
from .held_out import HeldOut
from .published import Published
from .question_rows import QuestionRow
from .reconstructor import Reconstructor, train_reconstructor
from .reinforcement import Reinforced, Reward, RLSettings, RLWatching, rl
from .rows import INJECT, Row, TrainingError
from .run import Trained, Watching, train
from .saving import describe, save_reconstructor, save_verbalizer
from .settings import Lora, Settings
from .verbalizer import train_verbalizer

__all__ = [
    "INJECT",
    "Files",
    "HeldOut",
    "Lora",
    "Published",
    "QuestionRow",
    "RLSettings",
    "RLWatching",
    "Reconstructor",
    "Reinforced",
    "Reward",
    "Row",
    "Settings",
    "Trained",
    "TrainingError",
    "Watching",
    "describe",
    "plot_log",
    "rl",
    "save_reconstructor",
    "save_verbalizer",
    "train",
    "train_reconstructor",
    "train_verbalizer",
]
