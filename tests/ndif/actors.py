"""NDIF's actors on a CPU: what the server imports (never the tests), named in its environment.

NDIF 0.1.2 is written for GPUs: it measures their memory, synchronizes them, parks models beside
them. It also lets its operator name other classes for the controller and for the models, which is
all that is used here: no installed file is changed.

    NDIF_CONTROLLER_IMPORT_PATH=actors.CPUControllerActor
    NDIF_DEFAULT_MODEL_ACTOR_CLASS=actors.CPUModelActor
"""

import gc
import inspect
from typing import Any

import ray
import torch
from ndif.services.ray.deployments.controller.controller import _ControllerActor
from ndif.services.ray.deployments.modeling.base import BaseModelDeployment
from ndif.services.ray.sandbox.model import SandboxModelDeployment
from nnsight.modeling.huggingface import HuggingFaceModel
from nnsight.modeling.mixins.remotable import Remotable


def accept_trust_remote_code() -> None:
    """Let nnsight 0.8.1 be asked about a checkpoint as NDIF 0.1.2 asks.

    NDIF passes `trust_remote_code=` to two class methods from which nnsight 0.8.1 removed it (it
    now stands in the model key). A no-op where they accept it.
    """
    for name in ("describe_checkpoint", "max_tp_size"):
        method = getattr(Remotable, name)
        if "trust_remote_code" not in inspect.signature(method).parameters:
            setattr(Remotable, name, classmethod(_without_trust_remote_code(method.__func__)))


def _without_trust_remote_code(function: Any) -> Any:
    def called(cls: type, *args: Any, trust_remote_code: bool = False, **options: Any) -> Any:
        return function(cls, *args, **options)

    return called


class CPUModelDeployment(BaseModelDeployment):
    """One model, loaded on the CPU and held there."""

    # Not parked in memory when another model needs its place: it is there already.
    CACHEABLE = False

    def load_from_disk(self) -> HuggingFaceModel:
        """The base's, with a CPU instead of a device map, and one thread per model."""
        torch.set_num_threads(1)
        model = HuggingFaceModel.from_model_key(
            self.model_key, dispatch=True, dtype=self.dtype_name, device="cpu", **self.kwargs
        )
        model._module.requires_grad_(False)
        return model

    def cleanup(self) -> None:
        """The base's, without `torch.cuda.synchronize()`."""
        self.kill_switch.clear()
        self.kill_reason = None
        self.execution_ident = None
        self.model.interleaver.cancel()
        gc.collect()


@ray.remote(num_cpus=1, num_gpus=0, max_restarts=-1, resources={"head": 1})
class CPUControllerActor(_ControllerActor):
    """NDIF's controller, able to talk to nnsight 0.8.1."""

    def __init__(self, *args: Any, **options: Any) -> None:
        accept_trust_remote_code()
        super().__init__(*args, **options)


@ray.remote(num_cpus=1, max_restarts=-1)
class CPUModelActor(SandboxModelDeployment, CPUModelDeployment):
    """Runs a trusted request in the model's own process, gradients included.

    Any other request's code runs in a process of its own, made for it and then thrown away: it has
    the module tree without the weights, and no gradients.
    """
