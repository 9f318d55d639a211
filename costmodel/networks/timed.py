"""A network on a device: one row per operator with its predicted time, and every form in which that can be shown or kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from costmodel.arithmetic import Arithmetic
from costmodel.count import Cost
from costmodel.device import Device
from costmodel.reports.needed import needed
from costmodel.reports.tables import Tables, kept

if TYPE_CHECKING:
    from costmodel.networks.network import Layer, Network
    from costmodel.reports.report import Report
    from costmodel.reports.sidebyside import SideBySide


@dataclass(frozen=True)
class Timed:
    """A layer on a device. `share` is its share of the whole network's time."""

    layer: Layer
    cost: Cost  # forward, or forward and backward
    seconds: float
    bound: str  # what bounds the longest operator in the row
    share: float
    low: float  # the interval of the seconds, added up over the operators
    high: float
    sources: frozenset[str]  # where the intervals come from
    plan: str = ""  # the plan of the forward result, where it is a convolution whose plan is modelled


@dataclass(frozen=True, repr=False)
class Forecast(Sequence[Timed], Tables):
    """The sequence of a network's `Timed` rows, in the order they run, with their totals in seconds.

    `print(forecast)` is the table of `costmodel model`; `to_html`, `to_csv`, `to_json`, `to_markdown` and `to_latex` return
    text, and write it where a path is given. They need `pip install 'tritonconv[report]'`, and raise ValueError for a path
    that cannot be written. How times are predicted: `docs/design/prediction.md`.

    >>> import costmodel, torch
    >>> forecast = costmodel.trace(torch.nn.Conv2d(3, 8, 3), (1, 3, 32, 32)).on("h100")
    >>> forecast[0].layer.op, forecast.low < forecast.seconds < forecast.high
    ('conv2d', True)
    >>> forecast.to_csv().splitlines()[0].split(",")[:3]
    ['name', 'op', 'input_shape']
    """

    network: Network
    device: Device
    arithmetic: Arithmetic
    training: bool
    rows: tuple[Timed, ...] = field(repr=False)
    planned: bool = True  # True: the times are those of this package's plans; False: a library's times

    @overload
    def __getitem__(self, place: int) -> Timed: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Timed, ...]: ...
    def __getitem__(self, place: int | slice) -> Timed | tuple[Timed, ...]:
        return self.rows[place]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Timed]:
        return iter(self.rows)

    @property
    def seconds(self) -> float:
        """Seconds of the forward pass, or of the training step: the sum of the rows' times."""
        return sum(row.seconds for row in self.rows)

    @property
    def low(self) -> float:
        return sum(row.low for row in self.rows)

    @property
    def high(self) -> float:
        return sum(row.high for row in self.rows)

    @property
    def timed(self) -> str:
        """The work that the seconds time: "forward pass" or "training step"."""
        return "training step" if self.training else "forward pass"

    def report(self, depth: int | None = None, **more: Any) -> Report:
        """Rows, totals, notes and sources as one frozen report; `depth` adds rows up by module. Needs torch.

        `more` are those of `costmodel.reports.report.report_of`: model, samples, epochs, measured, checks.
        """
        from costmodel.reports.report import report_of

        return report_of(self, depth=depth, **more)

    def compare(self, other: Forecast | Network) -> SideBySide:
        """This forecast beside another: the same network on another device, in another arithmetic, or another network. Raises
        TypeError for what is neither."""
        from costmodel.networks.network import Network
        from costmodel.reports.sidebyside import SideBySide

        if not isinstance(other, (Forecast, Network)):
            raise TypeError(f"other must be a costmodel.Forecast or Network, got {type(other).__name__}")
        if isinstance(other, Network):
            other = other.on(self.device, self.arithmetic.word, training=self.training)
        return SideBySide((self.report(), other.report()))

    def to_html(self, path: str | Path | None = None, **more: Any) -> str:
        """The report as one HTML page that opens without a network. Raises ValueError where the file cannot be written."""
        with needed():
            from costmodel.reports.html import page
        return kept(page(self.report(**more)), path)

    def table_rows(self) -> Sequence[Any]:
        """One row per operator: what `to_csv` writes."""
        return self.report().rows

    def document(self) -> Report:
        """What `to_json` writes."""
        return self.report()

    def __str__(self) -> str:
        with needed():
            from costmodel.reports.terminal import printed, show_report
        return printed(lambda out: show_report(out, self.report(), 20))

    def __repr__(self) -> str:
        return (
            f"<costmodel.Forecast of {self.network.name} on {self.device.name}, {self.arithmetic.word}: "
            f"{self.timed} {1e3 * self.seconds:.3g} ms ({1e3 * self.low:.3g} to {1e3 * self.high:.3g})>"
        )
