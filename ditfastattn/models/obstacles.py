"""What keeps a model, or a part of one, from following a plan."""

from torch import nn


def common_obstacles(model: nn.Module) -> list[str]:
    """What keeps any model from following a plan."""
    found = []
    if any(module._compiled_call_impl is not None for module in model.modules()):
        found.append("it was compiled with module.compile(): compiled code would run past the plan; load it anew")
    if any(parameter.is_meta for parameter in model.parameters()):
        found.append("its parameters are not loaded (sequential CPU offload?); undo that first")
    return found


def bypassed(name: str, part: nn.Module) -> list[str]:
    """The obstacle of a module that is not called, if it carries what only a call would run."""
    if part._forward_hooks or part._forward_pre_hooks or "forward" in part.__dict__:
        return [f"{name} carries hooks that would be bypassed; remove them first"]
    return []
