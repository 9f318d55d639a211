"""How long a GPU is idle before each operator of a network, where the host takes longer to launch operators than the GPU to run
them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.calibration import Host
from costmodel.networks.clock import Time


def idle_before(busy: Sequence[float], launch: Sequence[float]) -> list[float]:
    """Seconds that the GPU is idle before each of several operators in order. `busy` are the GPU's seconds for each, and
    `launch` the host's. The host goes on to the next operator at once; it never waits for the GPU.

    >>> idle_before([1.0, 1.0, 5.0, 1.0], [2.0, 2.0, 2.0, 2.0])  # the third takes so long that the fourth is ready in time
    [2.0, 1.0, 1.0, 0.0]
    """
    issued = free = 0.0  # when the host has launched the operator, and when the GPU is done with the one before
    idle = []
    for seconds, launching in zip(busy, launch, strict=True):
        issued += launching
        idle.append(max(0.0, issued - free))
        free = max(free, issued) + seconds
    return idle


@dataclass(frozen=True)
class Launched:
    """The times of one layer, forward first, then its gradients; `own`: it is a convolution that this package computes."""

    times: Sequence[Time]
    own: bool


def waiting(layers: Sequence[Launched], host: Host | None) -> list[list[Time]]:
    """The times of each layer with the idle time before its operators, as eager mode runs them: every layer forwards, then the
    gradients of every layer from the last to the first. They are unchanged where the host was not measured."""
    times = [list(layer.times) for layer in layers]
    if host is None:
        return times
    order = [(i, 0) for i in range(len(layers))]
    order += [(i, j) for i in reversed(range(len(layers))) for j in range(1, len(layers[i].times))]
    launch = []
    for i, j in order:
        forward, backward = (host.forward, host.backward) if layers[i].own else (host.operator, host.operator_backward)
        launch.append(forward if j == 0 else backward / (len(layers[i].times) - 1))
    idle = idle_before([times[i][j].seconds for i, j in order], launch)
    for (i, j), seconds in zip(order, idle, strict=True):
        times[i][j] = _after(times[i][j], seconds, host)
    return times


def _after(time: Time, idle: float, host: Host) -> Time:
    """The time of an operator with the idle time before it. The interval is the GPU's; the host's time is taken as it is."""
    if not idle:
        return time
    return time._replace(
        seconds=time.seconds + idle,
        bound="host" if idle > time.seconds else time.bound,
        low=time.low + idle,
        high=time.high + idle,
        source=f"{time.source}; the GPU waits for the host: {host.source}",
    )
