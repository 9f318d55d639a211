"""The commands of `python -m bench` that print a table of the docs: predicted times, and what the compiler makes of kernels."""

from __future__ import annotations

from typing import Annotated

import typer

tables = typer.Typer()
#: The other part of `python -m bench --help`.
MAINTAINERS = "For maintainers: tables, fits, and what compiles or executes without a GPU"


@tables.command(rich_help_panel=MAINTAINERS)
def networks() -> None:
    """Print the table of networks of docs/cost-model.md, from the cost model."""
    from bench.networks import table

    typer.echo(table())


@tables.command(rich_help_panel=MAINTAINERS)
def depthwise() -> None:
    """Compile the depthwise kernels ahead of time, without a GPU: instructions per output, load widths, multiply-adds per
    load."""
    from bench.depthwise import run

    run()


@tables.command(rich_help_panel=MAINTAINERS)
def video() -> None:
    """Compile the kernel of causal_conv3d ahead of time, without a GPU: registers, instructions per trip."""
    from bench.video import run

    run()


@tables.command(rich_help_panel=MAINTAINERS)
def blocks(layers: Annotated[bool, typer.Option("--images", help="Image layers behind a GroupNorm instead.")] = False) -> None:
    """Print docs' table of blocks of video and image decoders, from the cost model: normalisation, SiLU, convolution."""
    from bench.chains import blocks, images

    print((images if layers else blocks).summary())


@tables.command(rich_help_panel=MAINTAINERS)
def band() -> None:
    """Print docs' table of large depthwise filters, from the cost model."""
    from bench.band import summary

    typer.echo(summary())


@tables.command(rich_help_panel=MAINTAINERS)
def separable(
    compiled: Annotated[bool, typer.Option("--compiled", help="Compile the menu ahead of time instead, and count.")] = False,
) -> None:
    """Print docs' table of depthwise and pointwise pairs, as one kernel and as two, from the cost model."""
    from bench.separable import show_compiled, table

    if compiled:
        show_compiled()
    else:
        typer.echo(table())


@tables.command(rich_help_panel=MAINTAINERS)
def deform() -> None:
    """Print docs' table of deformable convolutions of published networks, from the cost model."""
    from bench.deform import table

    typer.echo(table())


@tables.command(rich_help_panel=MAINTAINERS)
def unfold() -> None:
    """Print docs' table of windows as columns, and back, in published networks, from the cost model."""
    from bench.unfold import table

    typer.echo(table())


@tables.command(rich_help_panel=MAINTAINERS)
def padded() -> None:
    """Print docs' table of layers that pad with pixels, from the cost model."""
    from bench.padded import table

    typer.echo(table())
