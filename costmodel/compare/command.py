"""The command `costmodel compare`: measured times beside the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="A trace, a table, or rows of bench run.")],
    device: Annotated[str | None, typer.Option(help="The GPU, where the file does not name it: h100, or a TOML file.")] = None,
    model: Annotated[str, typer.Option(help="package.module:callable, for a trace or table that lacks sizes.")] = "",
    input: Annotated[list[str] | None, typer.Option(help="The traced input's shape, such as 32x3x224x224.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report that needs no network.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the rows of all layers and networks; - prints them.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write pictures, .png, .svg or .pdf: roofline, time by kind.")] = None,
    top: Annotated[int, typer.Option(min=0, help="Rows in the terminal, those that take longest; 0 for all.")] = 20,
    most: Annotated[int, typer.Option(min=0, help="Networks of a table that are traced; 0 for all.")] = 20,
) -> None:
    """Measured times beside the roofline, this package's predictions and cuDNN's: per layer, and where a step's time goes.

    \b
    FILE is a torch.profiler trace (record_shapes=True), a benchmark CSV of timm,
    rows of bench run, or a CSV of layers.
    costmodel compare trace.json.gz --html report.html
    costmodel compare old-trace.json --device v100 --model torchvision.models:resnet50
    costmodel compare benchmark-infer-amp-nhwc-rtx4090.csv
    """
    from costmodel.compare import show
    from costmodel.compare.study import study
    from costmodel.reports import export, terminal
    from costmodel.reports.options import device_named, picture_form, shape_named

    chosen = device_named(device) if device else None
    shapes = [shape_named(text) for text in input or []]
    comparisons = [comparison for path in files for comparison in study(path, chosen, model, shapes, most)]
    outputs: dict[Path, str | bytes] = {}
    if csv is not None:
        # layers and networks have other columns: two tables where a file of each is compared
        kinds: list[list[object]] = [
            [row for comparison in comparisons for row in comparison.layers],
            [row for comparison in comparisons for row in comparison.networks],
        ]
        outputs[csv] = "\n".join(export.to_csv(rows) for rows in kinds if rows)
    if html is not None:
        from costmodel.compare.page import page

        outputs[html] = page(comparisons)
    if png is not None:
        from costmodel.compare.drawing import drawn
        from costmodel.reports.pictures import render

        form = picture_form(png, "png")
        for number, comparison in enumerate(comparisons):
            for name, figure in drawn(comparison).items():
                several = len(comparisons) > 1
                outputs[png.with_stem(f"{png.stem}-{name}{f'-{number + 1}' if several else ''}")] = render(figure, form)
    printed = outputs.pop(Path("-"), None)
    for path, content in outputs.items():
        export.write(path, content)
    if isinstance(printed, str):
        typer.echo(printed, nl=False)
        return
    out = terminal.console()
    for comparison in comparisons:
        show.show(out, comparison, top)
    for path in outputs:
        out.print(f"wrote {path}", markup=False, soft_wrap=True)
