"""The commands of `costmodel`. Each reads its words, asks the model, and prints or writes; no command computes.

Imports that take long (torch, sympy, matplotlib) wait until a command needs them.
"""

from __future__ import annotations

from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from costmodel.arithmetic import arithmetic_named
from costmodel.compare.command import compare
from costmodel.count import cost, training_cost
from costmodel.device import devices
from costmodel.reports import export, terminal
from costmodel.reports.notation import parse
from costmodel.reports.options import (
    arguments_named,
    device_named,
    form_named,
    inputs_named,
    measured_times,
    padding_named,
    picture_form,
    rate_named,
)
from costmodel.reports.rows import estimate, figures, pass_rows

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown.")]
Latex = Annotated[bool, typer.Option("--latex", help="Print LaTeX.")]
DEVICE = typer.Option("--device", help="h100, a driver's name, a TOML file, h100,bandwidth=3000, or here for the GPU at hand.")
DtypeName = Annotated[
    str | None, typer.Option("--dtype", help="fp16, bf16, tf32, fp32 or fp64; left out bf16, or fp16 where there is no bf16.")
]


class Picture(StrEnum):
    """What --png and --svg draw."""

    ALL = "all"
    ROOFLINE = "roofline"
    RECEPTIVE = "receptive"
    TIME = "time"


def _version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"costmodel {version('tritonconv')}")
        except PackageNotFoundError:
            typer.echo("costmodel, run from a checkout that is not installed")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def about(
    context: typer.Context,
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Convolutions as arithmetic: shapes, MAC, FLOP, bytes, the roofline and predicted time, from one layer to a network.

    \b
    costmodel layer conv2d 64x56x56 k3 p1 n32 --device h100
    costmodel model torchvision.models:resnet50 --input 32x3x224x224 --device h200
    costmodel solve --output 112 --input 224 --kernel 7 --stride 2
    costmodel formula conv2d
    costmodel compare trace.json.gz
    costmodel devices

    1 MAC is one multiply-add, 2 FLOP. No GPU is needed.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def formula(
    operator: Annotated[str, typer.Argument(help="conv1d, conv2d, conv3d, or conv_transpose of 1d to 3d.")],
    markdown: Markdown = False,
    latex: Latex = False,
    symmetric: Annotated[bool, typer.Option("--symmetric", help="One padding an axis, the same at both ends.")] = False,
) -> None:
    """Output size, MAC, FLOP, bytes and intensity in symbols, derived step by step.

    \b
    costmodel formula conv2d
    costmodel formula conv_transpose1d --symmetric --latex > conv.tex
    """
    from costmodel.formulas.formula import symbolic
    from costmodel.reports.notation import OPERATORS

    if operator not in OPERATORS:
        raise ValueError(f"operator {operator!r} is unknown: one of {', '.join(OPERATORS)}")
    form = form_named(markdown=markdown, latex=latex)
    formula = symbolic(OPERATORS[operator], operator.startswith("conv_transpose"), symmetric=symmetric)
    if form:
        typer.echo({"latex": formula.latex, "markdown": formula.markdown}[form](), nl=False)
    else:
        terminal.show_derivation(terminal.console(), formula.plain())


@app.command()
def layer(
    words: Annotated[list[str], typer.Argument(metavar="LAYER", help="Such as conv2d 64x56x56 k3 s1 p1 c64 n32.")],
    device: Annotated[str | None, DEVICE] = None,
    dtype: DtypeName = None,
    layers: Annotated[int, typer.Option(min=1, help="How many such layers an estimate is for.")] = 1,
    samples: Annotated[float | None, typer.Option(help="Estimate this many samples, such as 1e6.")] = None,
    rate: Annotated[list[str] | None, typer.Option(help="A sustained rate to assume, such as 0.15TFLOPS; repeatable.")] = None,
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
    latex: Latex = False,
) -> None:
    """One layer: shapes, MAC and FLOP counted three ways, bytes, the roofline, its plan and predicted time, pass by pass.

    \b
    LAYER is an operator (conv1d to conv3d, conv_transpose1d to conv_transpose3d),
    the input CxHxW, and words:
      k3 k3x5    kernel                 c64       output channels (as the input)
      s2 s2x1    stride                 n32       batch (1)
      p1 p1x2    padding of each axis   g4 gdw    groups, depthwise
      p1:2       low and high padding   d2        dilation
      psame      as torch's 'same'      op1       output padding, if transposed
      reflect    what the padding holds: zeros, reflect, replicate, circular,
                 or a word per axis, such as zeros,circular

    \b
    costmodel layer conv2d 64x56x56 k3 p1 n32 --device h100
    costmodel layer conv_transpose2d 64x28x28 k4 s2 p1 c32 n8 --device a100 --json
    costmodel layer conv2d 100x68x68 k5 --layers 10 --samples 1e6 --rate 12TFLOPS
    """
    named, form = parse(" ".join(words)), form_named(json=json, csv=csv, markdown=markdown, latex=latex)
    chosen = device_named(device) if device else None
    kind, precision, remark = meant = arithmetic_named(dtype, chosen)
    rates = [rate_named(text) for text in rate or []]
    rows = pass_rows(named, chosen, kind, precision)
    if samples is None and (rates or layers != 1):
        raise ValueError("--rate and --layers estimate a run over many samples: add --samples 1e6")
    guesses, work = [], None
    if samples is not None:
        if not 0 < samples < float("inf"):
            raise ValueError(f"--samples must be a positive number, got {samples:g}")
        if not rates and chosen is None:
            raise ValueError("an estimate needs --rate 12TFLOPS or --device h100")
        repeats = layers * samples / named.problem.batch
        once = cost(named.problem, next(iter(named.passes)), dtype=kind)
        step = training_cost(named.problem, dtype=kind)
        peak = None if chosen is None else chosen.rate(kind, precision)
        guesses = estimate(repeats * once, repeats * step, rates, rows, chosen, repeats, peak)
        work = [
            (what, spent.dense_macs / named.problem.batch, repeats * spent.dense_macs)
            for what, spent in (("forward", once), ("training", step))
        ]
    if form == "json":
        typer.echo(
            export.to_json(
                {"layer": str(named), "device": chosen and chosen.name, "dtype": kind, "passes": rows, "estimate": guesses}
            ),
            nl=False,
        )
    elif form:
        typer.echo(export.FORMATS[form](guesses or rows), nl=False)
    else:
        out = terminal.console()
        terminal.show_passes(out, named, rows, chosen, meant.word, remark)
        if work is not None:
            heading = f"{layers} such layer{'s' if layers > 1 else ''}, {samples:,.0f} samples"
            terminal.show_estimate(out, guesses, heading, work)


@app.command()
def solve(
    output: Annotated[int | None, typer.Option(help="Output size.")] = None,
    input: Annotated[int | None, typer.Option(help="Input size.")] = None,
    kernel: Annotated[int | None, typer.Option(help="Kernel size.")] = None,
    stride: Annotated[int | None, typer.Option(help="Stride.")] = None,
    padding: Annotated[str | None, typer.Option(help="One number, low:high, same or valid.")] = None,
    dilation: Annotated[int | None, typer.Option(help="Dilation.")] = None,
    output_padding: Annotated[int | None, typer.Option(help="Output padding of a transposed convolution.")] = None,
    transposed: Annotated[bool, typer.Option("--transposed", help="For a transposed convolution.")] = False,
    for_: Annotated[str | None, typer.Option("--for", help="The unknown, where several options are left out.")] = None,
    total: Annotated[bool, typer.Option("--total", help="Solve for the sum of both paddings, not for equal ones.")] = False,
    json: Json = False,
    markdown: Markdown = False,
    latex: Latex = False,
) -> None:
    """Every padding, input, kernel, stride or dilation that gives an output size, on one axis, with the derivation.

    The unknown is the first of output, input, kernel, padding, stride and dilation that is not given, unless --for names it.

    \b
    costmodel solve --output 112 --input 224 --kernel 7 --stride 2
    costmodel solve --output 7 --kernel 3 --padding 1 --stride 2
    costmodel solve --for stride --output 7 --input 56 --kernel 3 --padding 1
    """
    from costmodel.formulas.inverse import solve as solved

    given: dict[str, Any] = {
        "output": output,
        "input": input,
        "kernel": kernel,
        "padding": None if padding is None else padding_named(padding),
        "stride": stride,
        "dilation": dilation,
    }
    form = form_named(json=json, markdown=markdown, latex=latex)
    solution = solved(for_, **given, transposed=transposed, output_padding=output_padding, symmetric=not total)
    if form == "json":
        low_high = {name: getattr(solution, name) for name in ("solved_for", "symbol", "low", "high", "reason")}
        typer.echo(export.to_json(low_high | {"solution": str(solution), "derivation": solution.plain()}), nl=False)
    elif form:
        typer.echo({"markdown": solution.markdown, "latex": solution.latex}[form](), nl=False)
    else:
        out = terminal.console()
        out.print(f"[bold]{solution.solved_for}[/]: {solution}")
        out.print()
        terminal.show_derivation(out, solution.plain())


@app.command(name="devices")
def devices_(
    source: Annotated[bool, typer.Option("--source", help="Every figure with where it is from.")] = False,
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
    latex: Latex = False,
) -> None:
    """The GPUs whose figures are known, and the one at hand held against them.

    \b
    costmodel devices
    costmodel devices --source
    """
    known, form = list(devices().values()), form_named(json=json, csv=csv, markdown=markdown, latex=latex)
    if form:
        rows = [figure for device in known for figure in figures(device)] if source else known
        typer.echo(export.FORMATS[form](rows), nl=False)
        return
    out = terminal.console()
    if source:
        terminal.show_sources(out, known)
        return
    terminal.show_devices(out, known)
    from costmodel.detector import detect

    try:
        here, warnings = detect()
    except ValueError:
        out.print("No CUDA device is at hand.")
        return
    out.print(f"At hand: {here.name}.")
    for warning in warnings or ["Driver and table agree to 3 %."]:
        out.print(warning, markup=False)


@app.command()
def model(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="package.module:callable, file.py:callable or timm:name.")],
    input: Annotated[list[str], typer.Option(help="32x3x224x224, int64:1x16, ids:int64:1x16; one for each input.")],
    arg: Annotated[list[str] | None, typer.Option(help="An argument of the callable: weights=None; repeatable.")] = None,
    device: Annotated[
        list[str] | None, typer.Option("--device", help="As for layer; given twice, both stand side by side. [h100]")
    ] = None,
    beside: Annotated[str | None, typer.Option("--beside", metavar="MODEL", help="A second model, side by side.")] = None,
    dtype: DtypeName = None,
    train: Annotated[bool, typer.Option("--train", help="Time the whole training step, not the forward pass.")] = False,
    samples: Annotated[float | None, typer.Option(help="Samples of a training run, such as 1281167.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of that run.")] = 1,
    depth: Annotated[int | None, typer.Option(min=1, help="Add rows up by this many parts of the module's path.")] = None,
    top: Annotated[int, typer.Option(min=0, help="Rows in the terminal, those that take longest; 0 for all.")] = 20,
    check: Annotated[bool, typer.Option("--check", help="Compare with torch's FlopCounterMode, and explain.")] = False,
    measured: Annotated[Path | None, typer.Option(help="JSON with measured seconds by row, for the roofline.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report that needs no network.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write pictures as the suffix says: .png, .svg, .pdf.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Write pictures as the suffix says: .svg, .png, .pdf.")] = None,
    picture: Annotated[Picture, typer.Option(help="Which picture --png and --svg write.")] = Picture.ALL,
    dark: Annotated[bool, typer.Option("--dark", help="Light on dark in --png and --svg.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write rows and totals; - prints them.")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write rows; - prints them.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write rows; - prints them.")] = None,
    latex_file: Annotated[Path | None, typer.Option("--latex", help="Write rows; - prints them.")] = None,
) -> None:
    """A whole network, operator by operator: no weights are loaded and no GPU is needed.

    \b
    costmodel model torchvision.models:resnet50 --input 32x3x224x224 \\
        --device h200 --html report.html
    costmodel model net.py:Net --input 8x3x64x64 --train --depth 1
    costmodel model net.py:Encoder --input ids:int64:1x16 --arg width=64
    costmodel model timm:resnet50 --input 1x3x224x224 --device h100 --device a100
    """
    from costmodel.reports.report import report_of, traced
    from costmodel.reports.sidebyside import SideBySide

    chosen = [device_named(text) for text in device or ["h100"]]
    if len(chosen) * (1 + (beside is not None)) > 2:
        raise ValueError("two stand side by side: give --device twice, or --beside once")
    arithmetics = [arithmetic_named(dtype, dtype_name) for dtype_name in chosen]
    outputs = [path for path in (html, png, svg, json_file, csv_file, markdown_file, latex_file) if path is not None]
    if len(set(outputs)) < len(outputs):
        raise ValueError(f"two outputs have one name: {', '.join(map(str, outputs))}")
    if Path("-") in (html, png, svg):
        raise ValueError("- prints rows only: name a file for --html, --png and --svg")
    pictures = [(path, picture_form(path, option)) for path, option in ((png, "png"), (svg, "svg")) if path is not None]
    if samples is not None and not 0 < samples < float("inf"):
        raise ValueError(f"samples must be a positive number, got {samples:g}")
    inputs, factory = inputs_named(input), arguments_named(arg or [])
    times = measured_times(measured) if measured else None
    reports = []
    for called in [name] if beside is None else [name, beside]:
        given, checked = factory if called == name else {}, check or html is not None
        network, checks = traced(called, inputs, arithmetics[0].dtype, arguments=given, training=train, check=checked)
        for dtype_name, kind in zip(chosen, arithmetics, strict=True):
            forecast = network.on(dtype_name, kind.dtype, precision=kind.precision, training=train)
            options: dict[str, Any] = {
                "samples": samples,
                "epochs": epochs,
                "depth": depth,
                "measured": times,
                "checks": checks,
            }
            reports.append(report_of(forecast, model=called, remark=kind.remark, **options))
    report, both = reports[0], SideBySide((reports[0], reports[1])) if len(reports) > 1 else None
    files: dict[Path, str | bytes] = {}
    for path, form in ((json_file, "json"), (csv_file, "csv"), (markdown_file, "markdown"), (latex_file, "latex")):
        if path is not None:
            files[path] = export.FORMATS[form](both or report)
    if pictures:
        from costmodel.reports.pictures import DARK, LIGHT, picture_named, render

        for path, form in pictures:
            files[path] = render(picture_named(picture, report, DARK if dark else LIGHT), form)
    if html:
        from costmodel.reports.html import page

        files[html] = page(*reports)
    printed = files.pop(Path("-"), None)
    for path, content in files.items():  # all are made before the first is written
        export.write(path, content)
    if isinstance(printed, str):
        typer.echo(printed, nl=False)
        return
    out = terminal.console()
    if both is None:
        terminal.show_report(out, report, top)
    else:
        out.print(str(both), markup=False, soft_wrap=True)
    for path in files:
        out.print(f"wrote {path}", markup=False, soft_wrap=True)


app.command()(compare)
