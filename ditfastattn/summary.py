"""What a session did, as numbers and as text."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from plans import Method, Plan, SiteName
from plans.macs import besides, plan_macs, shown_macs, site_macs


@dataclass(frozen=True)
class SiteSummary:
    """The part of one site."""

    methods: dict[Method, int]  # cells run, by method; in a skipped step nothing is called for them
    peak_cache_bytes: int
    predicted_peak_cache_bytes: int
    kernel: str | None  # with what it was chosen by; None before the first run


@dataclass(frozen=True)
class SessionSummary:
    """Counts cover every run since the plan was applied; bytes are measured on the tensors themselves.

    The peaks are of all sites at once, which may be less than the sum of the sites' own.
    """

    sites: dict[SiteName, SiteSummary]
    plan: Plan
    runs_begun: int
    runs_finished: int
    cache_bytes: int
    peak_cache_bytes: int
    predicted_peak_cache_bytes: int
    runtime: list[str]  # lines on how steps are executed; none in eager mode

    @property
    def methods(self) -> dict[Method, int]:
        """Cells run, by method, of all sites."""
        return dict(sum((Counter(site.methods) for site in self.sites.values()), Counter[Method]()))

    @property
    def kernel(self) -> str | None:
        """What computes the windows, with what it was chosen by, site by site if there are several."""
        reports = {name: site.kernel for name, site in self.sites.items() if site.kernel}
        if len(self.plan.attention_sites) == 1 or not reports:
            return next(iter(reports.values()), None)
        return "; ".join(f"{name}: {report}" for name, report in reports.items())

    @property
    def attention_macs_percent(self) -> float:
        """Attention MACs of the plan in percent of full attention, projections counted (the paper's convention)."""
        return plan_macs(self.plan).percent

    def __str__(self) -> str:
        more = besides(self.plan)
        several = self.sites.items() if len(self.sites) > 1 else ()
        attentions = self.plan.attention_sites if len(self.plan.attention_sites) > 1 else ()
        skipped = f"skipped          {len(self.plan.skipped)} of {self.plan.steps} steps, in which no layer runs"
        return "\n".join(
            [
                f"runs             {self.runs_finished} finished, {self.runs_begun} begun ({self.plan.steps} steps)",
                f"methods used     {_shares(self.methods)}",
                *(f"  {name:<14} {_shares(site.methods)}" for name, site in several),
                *([skipped] if self.plan.skipped else []),
                f"attention MACs   {self.attention_macs_percent:.1f} % of full (planned, projections counted)",
                *(f"  {name:<14} {site_macs(self.plan, name).percent:.1f} %" for name in attentions),
                *([f"{f'with {more}':<16} {shown_macs(self.plan).percent:.1f} %"] if more else []),
                f"cache            {self.cache_bytes / 2**20:.2f} MiB now, {self.peak_cache_bytes / 2**20:.2f} MiB at "
                f"most ({self.predicted_peak_cache_bytes / 2**20:.2f} MiB predicted)",
                *(
                    f"  {name:<14} {site.peak_cache_bytes / 2**20:.2f} MiB at most "
                    f"({site.predicted_peak_cache_bytes / 2**20:.2f} MiB predicted)"
                    for name, site in several
                ),
                f"kernel           {self.kernel or 'chosen at the first run'}",
                *self.runtime,
            ]
        )


def _shares(methods: Mapping[Method, int]) -> str:
    calls = sum(methods.values())
    shares = sorted(methods.items(), key=lambda item: -item[1])
    return ", ".join(f"{method} {100 * count / calls:.1f} %" for method, count in shares) or "none yet"
