"""What a session did, as numbers and as text."""

from dataclasses import dataclass

from plans import Method, Plan
from plans.macs import plan_macs


@dataclass(frozen=True)
class SessionSummary:
    """Counts cover every run since the plan was applied; bytes are measured on the tensors themselves."""

    methods: dict[Method, int]  # block calls by method
    plan: Plan
    runs_begun: int
    runs_finished: int
    cache_bytes: int
    peak_cache_bytes: int
    predicted_peak_cache_bytes: int
    kernel: str | None  # with what it was chosen by; None before the first run
    runtime: list[str]  # lines on how steps are executed; none in eager mode

    @property
    def attention_macs_percent(self) -> float:
        """Attention MACs of the plan in percent of full attention, projections counted (the paper's convention)."""
        return plan_macs(self.plan).percent

    def __str__(self) -> str:
        calls = sum(self.methods.values())
        shares = ", ".join(
            f"{method} {100 * count / calls:.1f} %"
            for method, count in sorted(self.methods.items(), key=lambda item: -item[1])
        )
        return "\n".join(
            [
                f"runs             {self.runs_finished} finished, {self.runs_begun} begun ({self.plan.steps} steps)",
                f"methods used     {shares or 'none yet'}",
                f"attention MACs   {self.attention_macs_percent:.1f} % of full (planned, projections counted)",
                f"cache            {self.cache_bytes / 2**20:.2f} MiB now, {self.peak_cache_bytes / 2**20:.2f} MiB at "
                f"most ({self.predicted_peak_cache_bytes / 2**20:.2f} MiB predicted)",
                f"kernel           {self.kernel or 'chosen at the first run'}",
                *self.runtime,
            ]
        )
