"""The one place for the defaults of `caopd route` and `caopd proxy`."""

from __future__ import annotations

from dataclasses import dataclass, field

from caopd_verl.evaluation.readouts.names import ReadoutName
from caopd_verl.evaluation.settings import DEFAULTS as EVALUATION


@dataclass(frozen=True)
class Goal:
    """What the threshold is chosen for on the validation questions; exactly one of the two is set.

    Attributes:
        max_cost: best accuracy at a mean cost of at most this share of always-large's. It is the
            default because a budget can be met by any small model that costs less than the large
            one, and because it holds several routers to the same cost.
        min_accuracy: least cost that keeps this share of the large model's accuracy.
    """

    max_cost: float | None = 0.5
    min_accuracy: float | None = None


@dataclass(frozen=True)
class Routing:
    """How `caopd route` splits, resamples and draws."""

    # The proxy reads a response's text, where no other readout can be found.
    readout: ReadoutName = "stated"
    validation_fraction: float = 0.5  # of the questions
    split_seed: int = 0
    # The bootstrap is the evaluation's, so that both reports' intervals mean the same.
    n_resamples: int = EVALUATION.summary.n_resamples
    level: float = EVALUATION.summary.level
    bootstrap_seed: int = EVALUATION.summary.seed
    curve_points: int = 101  # costs at which the curves and their bands are written and drawn
    formats: str = "png,svg"


@dataclass(frozen=True)
class Proxy:
    """How `caopd proxy` listens and speaks to its upstreams, the small and the large model.

    Times are in seconds. The keys come from the environment variables that `*_key_env` name.
    """

    # Not reachable from outside: whoever reaches the port uses the keys.
    host: str = "127.0.0.1"
    port: int = 8100
    model_name: str = "caopd-cascade"
    small_key_env: str = "CAOPD_SMALL_API_KEY"
    large_key_env: str = "CAOPD_LARGE_API_KEY"
    # Clients do not ask for a confidence, and a query without one is deferred.
    instruction: bool = True
    connect_timeout_s: float = 5.0
    # Of the whole response: it is buffered, and the large model's time comes on top.
    small_timeout_s: float = 60.0
    large_timeout_s: float = 600.0  # between two pieces of the response
    max_body_mb: float = 32.0
    max_concurrency: int = 512  # connections; more get 503


@dataclass(frozen=True)
class Defaults:
    """All of them."""

    goal: Goal = field(default_factory=Goal)
    routing: Routing = field(default_factory=Routing)
    proxy: Proxy = field(default_factory=Proxy)


DEFAULTS = Defaults()
