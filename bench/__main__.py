"""`python -m bench`, run from the checkout: each command is a module of this package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.tables import MAINTAINERS, tables

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(tables)
#: One of the two parts of `python -m bench --help`.
USERS = "For users: what these kernels do on your machine"


@app.callback()
def main() -> None:
    """Convolutions in Triton: what they compute, how they compile and how long they take."""


@app.command(rich_help_panel=USERS)
def demo(out: Annotated[Path, typer.Option(help="Where pictures and rows are written.")] = Path("build/demo")) -> None:
    """The main job on real input: ResNet-50's layers on a GPU, a photograph in Triton's interpreter without one."""
    from bench.demo import run

    run(out)


def words(value: str) -> list[str]:
    return [word.strip() for word in value.split(",") if word.strip()]


@app.command("run", rich_help_panel=USERS)
def measure(
    suite: Annotated[list[str] | None, typer.Option(help="A suite of bench/workloads, such as resnet50 or 'mamba*'.")] = None,
    problem: Annotated[list[str] | None, typer.Option(help="A layer in words: 'conv2d n32 c64 56x56 -> 64 k3 p1'.")] = None,
    fixed: Annotated[list[str] | None, typer.Option("--list", help="A fixed list: goals or sample.")] = None,
    passes: Annotated[str, typer.Option("--pass", help="fprop, dgrad and wgrad of the layer, with commas.")] = "fprop",
    dtype: Annotated[str, typer.Option(help="fp16, bf16, fp32, tf32 or fp64.")] = "bf16",
    layout: Annotated[
        str, typer.Option(help="The layout of the tensors: channels_last or contiguous. By default only 1-D is contiguous.")
    ] = "",
    provider: Annotated[
        str, typer.Option(help="Of tritonconv, cudnn, matmul, inductor, flaggems and causal_conv1d, with commas.")
    ] = "tritonconv,cudnn,matmul",
    minutes: Annotated[float | None, typer.Option(help="Stop before this much time has passed; rows are kept.")] = None,
    out: Annotated[Path | None, typer.Option(help="The directory of the rows.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be measured.")] = False,
) -> None:
    """Time layers against torch on the GPU: ratio, share of the roofline, error. Goes on where the last run stopped."""
    from bench.run import command

    try:
        command(
            suites=suite or [],
            problems=problem or [],
            lists=fixed or [],
            passes=words(passes),
            dtype=dtype,
            layout=layout,
            providers=words(provider),
            minutes=minutes,
            out=out,
            dry_run=dry_run,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@app.command(rich_help_panel=USERS)
def probe(out: Annotated[Path | None, typer.Option(help="Where probe.json is written.")] = None) -> None:
    """Ask a GPU what the design leaves open: tensor maps, rates, the same bits every time, what a launch costs."""
    from bench.probe import command

    command(out)


@app.command(rich_help_panel=USERS)
def gpu(
    stages: Annotated[
        list[str] | None, typer.Argument(help="calls, bits, counters, goals, probe, tests; all unless named.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The directory of the results.")] = None,
    prepared: Annotated[Path, typer.Option(help="Kernels that 'bench warm' compiled elsewhere, if any.")] = Path(
        "build/gpu-cache"
    ),
) -> None:
    """What only a GPU can answer, in stages that each stand alone, eight minutes in all. Goes on where it stopped."""
    from bench.gpu.stages import main

    try:
        main(stages or [], out, prepared)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@app.command(rich_help_panel=MAINTAINERS)
def warm(
    stage: Annotated[list[str] | None, typer.Option(help="calls, bits, goals or probe; all of them unless named.")] = None,
    device: Annotated[
        str, typer.Option(help="A GPU that costmodel knows, such as h200: its plans, for its architecture.")
    ] = "h200",
    out: Annotated[Path, typer.Option(help="The folder of compiled kernels, which may travel.")] = Path("build/gpu-cache"),
) -> None:
    """Compile, without a GPU, what the stages of `gpu` launch there, by the Triton at hand. Goes on where it stopped."""
    from bench.prepared.fill import STAGES, command

    try:
        command(device, stage or list(STAGES), out)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@app.command(rich_help_panel=USERS)
def overhead(
    out: Annotated[Path | None, typer.Option(help="Where overhead.json is written.")] = None,
    stub: Annotated[str, typer.Option(metavar="ARCH", help="Without a GPU: warm calls, launches left out (sm_90).")] = "",
    keep: Annotated[
        str, typer.Option(help="Host times for the cost model: into the user's table of this device, or the package's.")
    ] = "",
) -> None:
    """Host time of a call against torch's, and of the first call of a shape, new and already compiled."""
    if stub:
        from bench.warm import command as warm

        warm(int(stub.removeprefix("sm_")))
        return
    from bench.overhead import command

    if keep not in ("", "user", "package"):
        raise typer.BadParameter(f"--keep must be user or package, got {keep}")
    command(out, keeps=keep)


@app.command(rich_help_panel=USERS)
def model(
    name: Annotated[str, typer.Argument(help="A network of torchvision or timm, such as convnext_tiny.")],
    train: Annotated[bool, typer.Option("--train", help="Forward and backward instead of forward alone.")] = False,
    batch: Annotated[int, typer.Option(min=1)] = 32,
    size: Annotated[int, typer.Option(min=1, help="Height and width of the images.")] = 224,
    dtype: Annotated[str, typer.Option(help="fp16, bf16 or fp32.")] = "bf16",
    compiled: Annotated[bool, typer.Option("--compile/--eager", help="With torch.compile too.")] = True,
    out: Annotated[Path | None, typer.Option(help="The directory of the result.")] = None,
) -> None:
    """A whole network with torch's convolutions and with ours: step time and memory."""
    from bench.model import command

    try:
        command(name, train, batch, size, dtype, compiled, out)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@app.command(rich_help_panel=USERS)
def chains(
    suite: Annotated[str, typer.Option(help="Suites of bench/chains, a pattern such as 'mamba*'.")] = "*",
    step: Annotated[bool, typer.Option("--step", help="Forward and backward instead of forward alone.")] = False,
    dtype: Annotated[str, typer.Option(help="fp16, bf16, fp32, tf32 or fp64.")] = "bf16",
    minutes: Annotated[float | None, typer.Option(help="Begin no chain after this much time; rows are kept.")] = None,
    out: Annotated[Path | None, typer.Option(help="The directory of the rows.")] = None,
    predicted: Annotated[
        bool,
        typer.Option("--predicted", help="Only print docs' table of predicted times, without a GPU."),
    ] = False,
) -> None:
    """Time functions that replace several calls of torch, beside those calls and a copy of as many bytes."""
    from bench.chains.run import command, summary

    if predicted:
        typer.echo(summary())
        return

    try:
        command(suite, step, dtype, minutes, out)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@app.command(rich_help_panel=USERS)
def sweep(
    suite: Annotated[list[str] | None, typer.Option(help="A suite of bench/workloads, such as resnet50 or 'mamba*'.")] = None,
    problem: Annotated[list[str] | None, typer.Option(help="A layer in words: 'conv2d n32 c64 56x56 -> 64 k3 p1'.")] = None,
    fixed: Annotated[list[str] | None, typer.Option("--list", help="A fixed list: goals or sample.")] = None,
    sample: Annotated[int | None, typer.Option(help="This many layers of all suites, always the same: 15 a session.")] = None,
    passes: Annotated[str, typer.Option("--pass", help="fprop, dgrad and wgrad of the layer, with commas.")] = "fprop",
    dtype: Annotated[str, typer.Option(help="fp16, bf16, fp32, tf32 or fp64.")] = "bf16",
    layout: Annotated[str, typer.Option(help="As for run.")] = "",
    most: Annotated[int, typer.Option(help="Plans of a layer, those of least predicted time; 0 for all of them.")] = 40,
    minutes: Annotated[float | None, typer.Option(help="Stop before this much time has passed; rows are kept.")] = None,
    out: Annotated[Path | None, typer.Option(help="The directory of the rows.")] = None,
) -> None:
    """Time every candidate plan of layers: how good the first choice and the predicted times are. Goes on where it stopped."""
    from bench.sweep import command

    try:
        command(
            suites=suite or [],
            problems=problem or [],
            lists=fixed or [],
            count=sample,
            passes=words(passes),
            dtype=dtype,
            layout=layout,
            most=most or None,
            minutes=minutes,
            out=out,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@app.command(rich_help_panel=MAINTAINERS)
def calibrate(
    rows: Annotated[list[Path] | None, typer.Option(help="Files or directories of rows, if not the committed ones.")] = None,
    gpu: Annotated[str, typer.Option(help="Part of the GPU's name, where the rows are of several.")] = "",
    write: Annotated[bool, typer.Option("--write", help="Write the package's table, not the user's own.")] = False,
) -> None:
    """Fit the cost model's constants to measured rows, and write the device's table. Needs no GPU."""
    from bench.calibrate import command

    try:
        command(rows or [], gpu, write)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@app.command(rich_help_panel=USERS)
def report(
    gpu: Annotated[str, typer.Option(help="Part of a GPU's name; all of them unless given.")] = "",
    out: Annotated[Path, typer.Option(help="Where the report and its pictures are written.")] = Path("build/report"),
    readme: Annotated[bool, typer.Option("--readme", help="Only rewrite the README's table of measurements.")] = False,
) -> None:
    """Tables and pictures of the committed rows, the slowest layers first. Needs no GPU."""
    from bench.report import run

    try:
        run(gpu, out, readme)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@app.command(rich_help_panel=MAINTAINERS)
def validate(
    fit: Annotated[bool, typer.Option("--fit", help="Fit the library term's constants again first.")] = False,
    choice: Annotated[
        bool,
        typer.Option(
            "--choice",
            help="Hold chosen plans against their candidates instead, by counts of executed code, and write docs/choice.md.",
        ),
    ] = False,
) -> None:
    """Hold the cost model against times that others published, and write docs/validation.md. Needs no GPU."""
    if choice:
        from bench.compiled import regret

        regret.command(print)
        return
    from bench.measured.validate import command

    command(fit)


@app.command(rich_help_panel=MAINTAINERS)
def audit(
    only: Annotated[str, typer.Option(help="Rows whose key holds this, such as fprop:gather:half:wide.")] = "",
    arch: Annotated[list[int] | None, typer.Option(help="80, 90 or 100; all of them unless named.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes that compile.")] = 2,
    write: Annotated[
        bool, typer.Option("--write", help="Commit the rows to the table that plans are chosen by, 20 at a time.")
    ] = False,
    missing: Annotated[
        bool,
        typer.Option(
            "--missing",
            help="Only rows that the table lacks for this Triton, most registers on other versions first; prints how many rows"
            " each version has. With --write a run may be stopped and started again.",
        ),
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Compile only this many rows, from the first one on.")] = None,
    coverage: Annotated[bool, typer.Option("--coverage", help="Only print how many rows each Triton version has.")] = False,
    summary: Annotated[bool, typer.Option("--summary", help="Only print docs' table, from the committed rows.")] = False,
) -> None:
    """Compile the plan's menu ahead of time, without a GPU: registers, spills, shared memory, the main loop's instructions."""
    from bench import audit as tables

    if summary:
        typer.echo(tables.summary())
    elif coverage:
        typer.echo(tables.coverage(tables.menu(arch or tables.ARCHITECTURES), tables.committed()))
    else:
        tables.run(only, arch or None, jobs, write, missing, limit)


@app.command(rich_help_panel=MAINTAINERS)
def compiled(
    device: Annotated[str, typer.Option(help="Part of a GPU's name, whose plans alone are executed.")] = "",
    dtype: Annotated[str, typer.Option(help="float16, tf32, bfloat16, float32 or float64 alone.")] = "",
    tests: Annotated[bool, typer.Option(help="Run the test files too.")] = True,
    plans: Annotated[bool, typer.Option(help="Execute the plans that GPUs choose too.")] = True,
    minutes: Annotated[float | None, typer.Option(help="Stop each part before this much time has passed.")] = None,
    jobs: Annotated[int, typer.Option(help="Test files at a time.")] = 2,
    table: Annotated[bool, typer.Option("--table", help="Only write docs/compiled.md and the README's block.")] = False,
) -> None:
    """Execute compiled code on the CPU: the tests, and the plans that GPUs choose. Goes on where it stopped."""
    from bench.compiled.command import run

    run(device, dtype, tests, plans, minutes, jobs, table)


@app.command(rich_help_panel=MAINTAINERS)
def count(
    arch: Annotated[list[int] | None, typer.Option(help="80 or 90; both unless named.")] = None,
    only: Annotated[str, typer.Option(help="Calls whose name holds this; all unless given.")] = "",
    table: Annotated[bool, typer.Option("--table", help="Only write docs/counts.md.")] = False,
) -> None:
    """Execute one kernel of every kind on the CPU and count instructions, sectors and wavefronts: what is missing or stale."""
    from bench.compiled.counts import ARCHS, run
    from bench.compiled.counts_page import write

    if not table:
        run(arch or tuple(ARCHS), only, typer.echo)
    write()


@app.command(rich_help_panel=MAINTAINERS)
def pages() -> None:
    """Renew every block of README and docs that is made from the code and the committed results; says which were stale."""
    from bench.pages import command

    command(typer.echo)


if __name__ == "__main__":
    app()
