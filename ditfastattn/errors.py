"""What this package raises. Every message says what was given, what was expected and what to do."""


class DitFastAttnError(Exception):
    """Base class: anything the user can mend. The command line prints its message and exits with 2."""


class ApplyError(DitFastAttnError):
    """A plan cannot be installed on this pipeline, transformer or scheduler."""


class StepError(DitFastAttnError):
    """A model call does not fit the plan's timesteps; raised before that call computes anything, or where only
    its layers tell, before it returns."""


class KernelError(DitFastAttnError):
    """The kernel asked for does not exist or does not fit the inputs."""


class LoadError(DitFastAttnError):
    """A pipeline, checkpoint or sampler cannot be loaded."""


class CostError(DitFastAttnError):
    """A cost cannot be measured, or a table of costs does not fit a plan."""


class RankError(DitFastAttnError):
    """Processes that torchrun started cannot work together, or one of them has ended."""


class MetricError(DitFastAttnError):
    """A metric cannot be computed from the images, reference, network or weights that were given."""


def pydantic_reason(error: Exception) -> str:
    """The sentence in the middle of a validation error of several lines."""
    stripped = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in stripped if not line.startswith("For further information")]
    return lines[min(2, len(lines) - 1)] if lines else type(error).__name__
