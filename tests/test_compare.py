"""`costmodel compare`: traces of both dialects, tables, what is refused and in which words, what is found and shown.

Every trace with a GPU is made up by `tests/kineto.py`; the CPU ones are recorded here by torch.profiler.
"""

import csv
import json
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import costmodel
from bench.rows import append
from costmodel.__main__ import main
from costmodel.compare import analysis, events, tables
from costmodel.compare.analysis import check
from costmodel.compare.geometry import read
from costmodel.compare.measured import Measured, MeasuredLayer, MeasuredNetwork
from costmodel.compare.study import study
from costmodel.problem import ConvProblem, Pass
from tests.kineto import MAIN, Layer, Trace
from tests.test_rows import ROW

STEM = Layer([8, 3, 32, 32], [16, 3, 3, 3], padding=1)
NEXT = Layer([8, 16, 32, 32], [32, 16, 3, 3], stride=2, padding=1)
A100 = costmodel.find_device("a100")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.next = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)

    def forward(self, x):
        return self.next(self.stem(x))


def small():
    """For --model."""
    return Net()


# ---- traces ---------------------------------------------------------------------------------------------------------


def test_a_step_of_todays_dialect(tmp_path):
    trace = Trace()

    def body():
        for layer in (STEM, NEXT):
            trace.forward(layer)
        trace.operator("aten::relu", [[8, 32, 16, 16]], [""], [("vectorized_elementwise_kernel", 3.5)])
        trace.operator("aten::cudnn_batch_norm", [[8, 32, 16, 16]], [""], [("bn_fw_tr_1C11_kernel_NCHW", 4.5)])
        trace.backward(NEXT)
        trace.backward(STEM, first=True)
        trace.kernel("ncclDevKernel_AllReduce", 9.5, 0)

    for number in (1, 2):
        trace.step(number, body)
    (found,) = study(trace.write(tmp_path / "trace.json.gz"))
    assert found.device.name == "NVIDIA A100-SXM4-80GB" and found.steps == 2
    rows = {(row.name, row.passes): row for row in found.layers}
    assert [passes for _, passes in rows] == ["forward", "forward", "dx+dw", "dw"]
    stem = rows["conv2d 3x32x32 k3 p1 c16 n8", "forward"]
    assert stem.measured_seconds == pytest.approx(60e-6) and stem.copies == pytest.approx(19.5e-6)
    assert (stem.calls, stem.layout, stem.dtype) == (1, "contiguous", "float16")
    problem = ConvProblem.conv(NEXT.x, NEXT.w, (2, 2), (1, 1), (1, 1))
    both = rows["conv2d 16x32x32 k3 s2 p1 c32 n8", "dx+dw"]
    asked = {"device": "a100", "dtype": "float16"}
    assert both.measured_seconds == pytest.approx(112e-6)
    assert both.predicted_seconds == sum(costmodel.predict(problem, w, **asked).seconds for w in ("dgrad", "wgrad"))
    assert both.roofline_seconds == sum(
        costmodel.roofline(problem, "a100", "float16", which=w).seconds for w in ("dgrad", "wgrad")
    )
    assert both.gap == pytest.approx(both.measured_seconds - both.predicted_seconds)
    kinds = {"convolution": 254.5, "layout copies": 39, "pointwise": 3.5, "normalisation": 4.5, "communication": 9.5}
    assert found.kinds == pytest.approx({kind: us * 1e-6 for kind, us in kinds.items()})
    assert found.busy == pytest.approx(sum(kinds.values()) * 1e-6)
    assert "channels_last" in stem.advice


def test_a_training_step_of_2021_takes_strides_from_the_model_and_gradients_apart(tmp_path):
    trace = Trace(old=True)
    for number in (1, 2, 3):

        def body():
            trace.forward(STEM)
            trace.forward(NEXT)
            trace.backward(NEXT)
            trace.backward(STEM, first=True)

        trace.step(number, body)
    path = trace.write(tmp_path / "trace.json", "Tesla V100-SXM2-16GB")
    with pytest.raises(ValueError, match=r"recorded shapes and no strides and paddings.*--model"):
        study(path)
    (found,) = study(path, model=f"{__file__}:small")
    assert [(row.name, row.passes, row.calls) for row in found.layers] == [
        ("conv2d 3x32x32 k3 p1 c16 n8", "forward", 1),
        ("conv2d 16x32x32 k3 s2 p1 c32 n8", "forward", 1),
        ("conv2d 16x32x32 k3 s2 p1 c32 n8", "dx", 1),
        ("conv2d 16x32x32 k3 s2 p1 c32 n8", "dw", 1),
        ("conv2d 3x32x32 k3 p1 c16 n8", "dw", 1),
    ]
    with pytest.raises(ValueError, match=r"forward convolution 1 has input \[8, 3, 32, 32\].*--input"):
        study(path, model=f"{__file__}:small", shapes=[(4, 3, 32, 32)])
    with pytest.raises(ValueError, match="6 forward convolutions, and the model 4 per step"):
        study(path, model=f"{__file__}:twice")


def twice():
    """Another model, for --model."""
    return nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)))


def test_a_transposed_layer_is_read_whichever_operator_holds_the_numbers(tmp_path):
    trace = Trace()
    trace.forward(Layer([2, 8, 7, 7], [8, 4, 2, 2], stride=2, transposed=True, kernels=MAIN))
    (row,) = study(trace.write(tmp_path / "t.json"))[0].layers
    assert row.name == "conv_transpose2d 8x7x7 k2 s2 c4 n2" and row.passes == "forward"


@pytest.mark.parametrize("module", [
    nn.Conv1d(6, 8, 3, stride=2, padding=1, dilation=2, groups=2), nn.Conv2d(4, 8, (3, 5), padding="same"),
    nn.Conv3d(3, 4, 2), nn.ConvTranspose2d(8, 4, 3, stride=3, padding=1, output_padding=2, groups=2),
    nn.ConvTranspose1d(4, 6, 4, dilation=3),
])  # fmt: skip
def test_geometry_of_operators_that_torch_recorded_is_that_of_the_model(module, tmp_path):
    """Recorded on a CPU: every operator that holds numbers says the same, forward and backward."""
    rank = int(type(module).__name__[-2])
    x = torch.randn(2, module.in_channels, *(12, 10, 9)[:rank], requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
        module(x).sum().backward()
    profiler.export_chrome_trace(str(tmp_path / "cpu.json"))
    (layer,) = costmodel.trace(module, tuple(x.shape)).convolutions
    met = []
    for event in events.Reader(tmp_path / "cpu.json"):
        of = event.get("args", {})
        if "conv" in str(event.get("name")) and "Input Dims" in of and "mkldnn" not in event["name"]:
            call = read(event["name"], of["Input Dims"], of["Input Strides"], of["Input type"], of["Concrete Inputs"])
            if call is not None and call.problem is not None:
                assert call.problem == layer.problem, event["name"]
                assert call.dtype == "float32" and call.layout == "contiguous"
                met.append((call.backward, call.passes))
    own = Pass.DGRAD if isinstance(module, nn.modules.conv._ConvTransposeNd) else Pass.FPROP
    other = Pass.FPROP if own == Pass.DGRAD else Pass.DGRAD
    assert {(False, (own,)), (True, (other, Pass.WGRAD))} == set(met)
    with pytest.raises(ValueError, match=r"no GPU kernel.*record_shapes=True.*export_chrome_trace"):
        study(tmp_path / "cpu.json")


def test_float32_is_tf32_from_ampere_on_unless_a_kernel_says_otherwise(tmp_path):
    for gpu, kernel, precision in (
        ("NVIDIA A100-SXM4-80GB", "cudnn_generic", "tf32"),
        ("NVIDIA A100-SXM4-80GB", "ampere_scudnn_128x64_relu", "float32"),
        ("Tesla V100-SXM2-16GB", "cudnn_generic", "float32"),
    ):
        trace = Trace(kind="float")
        trace.forward(replace(STEM, kernels=[(kernel, 60.5)]))
        (row,) = study(trace.write(tmp_path / "t.json", gpu))[0].layers
        assert row.dtype == precision


def test_kernels_without_an_external_id_are_joined_by_their_launch(tmp_path):
    trace = Trace()
    trace.forward(STEM)
    for event in trace.events:
        if event["cat"] == "kernel":
            del event["args"]["External id"]
    (row,) = study(trace.write(tmp_path / "t.json"))[0].layers
    assert row.measured_seconds == pytest.approx(60e-6)


def made(gpu="NVIDIA A100-SXM4-80GB", **named):
    trace = Trace(**named)
    trace.forward(STEM)
    return trace, gpu


@pytest.mark.parametrize(
    ("change", "gpu", "words"),
    [
        (lambda t: t.events.clear(), "NVIDIA A100-SXM4-80GB", "neither operators nor kernels"),
        (lambda t: t.events[:] and t.events.__setitem__(slice(None), [e for e in t.events if e["cat"] == "kernel"]),
         "NVIDIA A100-SXM4-80GB", "kernels and no operators"),
        (lambda t: [e["args"].pop("Input Dims", None) for e in t.events], "NVIDIA A100-SXM4-80GB", "record_shapes was off"),
        (lambda t: None, "", "does not say which GPU"),
        (lambda t: None, "AMD Instinct MI300X", "AMD"),
        (lambda t: None, "NVIDIA Unheard Of", "is unknown"),
        (lambda t: [e.update(dur=100) for e in t.events if e["cat"] == "kernel"], "", "looks made up"),
    ],
)  # fmt: skip
def test_traces_that_are_refused_and_why(change, gpu, words, tmp_path):
    trace, _ = made()
    change(trace)
    with pytest.raises(ValueError, match=words):
        study(trace.write(tmp_path / "t.json", gpu))


def test_a_device_may_be_given_where_the_trace_names_none(tmp_path):
    trace, _ = made()
    assert study(trace.write(tmp_path / "t.json", ""), A100)[0].device is A100


@pytest.mark.parametrize("chunk", [7, 64, 1 << 20])
def test_events_are_read_in_pieces_of_any_size(chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(events, "CHUNK", chunk)
    given = [{"name": "é" * n, "n": [1.5, {"deep": "]}"}]} for n in range(9)]
    text = json.dumps({"a": 1234567890123456, "traceEvents": given, "z": [{"name": "x"}]}, ensure_ascii=False, indent=1)
    path = tmp_path / "t.json"
    path.write_text(text, "utf-8")
    reader = events.Reader(path)
    assert list(reader) == given and reader.properties == {"a": 1234567890123456, "z": [{"name": "x"}]}
    path.write_text(json.dumps(given))
    assert list(events.Reader(path)) == given
    path.write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match="ends in the middle"):
        list(events.Reader(path))


# ---- tables ---------------------------------------------------------------------------------------------------------

COLUMNS = "gpu,op,n,c,size,k,kernel,stride,padding,dilation,groups,dtype,math,layout,pass,time_us,name,notes"


def test_a_table_of_layers_and_what_is_below_the_roofline(tmp_path):
    path = tmp_path / "layers.csv"
    path.write_text(
        f"{COLUMNS}\n"
        "NVIDIA L4,conv2d,16,64,512x512,64,3x3,1x1,0x0,1x1,64,float32,tf32 (cudnn default),NCHW,fprop,12100,dw,\n"
        "NVIDIA L4,conv2d,16,64,512x512,64,3x3,1x1,0x0,1x1,64,float32,tf32 (cudnn default),NCHW,fprop,1210,fast,\n"
        "Tesla V100-SXM2-16GB,conv2d,32,64,56x56,64,3x3,1x1,1x1,1x1,1,float32,fp32,NCHW,fprop,300,wino,algo WINOGRAD\n"
        "NVIDIA Nothing,conv2d,32,64,56x56,64,3x3,1x1,1x1,1x1,1,float32,fp32,NCHW,fprop,300,x,\n"
    )
    l4, v100 = study(path)
    assert [(row.name, bool(row.finding)) for row in l4.layers] == [("dw", False), ("fast", True)]
    assert "another GPU, type or batch" in l4.layers[1].finding and "Winograd" not in l4.layers[1].finding
    assert re.search(r"0\.\d+ of the direct roofline: a Winograd or FFT kernel ran", v100.layers[0].finding)
    assert l4.layers[1].roofline_share > 1  # never clipped
    assert "1 rows of NVIDIA Nothing are left out" in l4.notes[0]
    assert l4.layers[0].library_seconds == pytest.approx(12.1e-3, rel=0.3)


def test_rows_of_bench_run(tmp_path):
    ours = replace(ROW, gpu="NVIDIA H100 80GB HBM3", layer="first")
    torchs = replace(ours, provider="cudnn", setting="channels_last benchmark", median_us=45.0)
    path = tmp_path / "rows.jsonl"
    append(path, [ours, torchs, replace(torchs, median_us=None, ok=False)])
    (found,) = study(path)
    assert [(row.name, row.provider) for row in found.layers] == [
        ("first", "tritonconv"),
        ("first", "cudnn channels_last benchmark"),
    ]
    assert [row.measured_seconds for row in found.layers] == [pytest.approx(30.5e-6), pytest.approx(45e-6)]


def test_a_benchmark_of_timm_names_its_run_in_the_files_name(tmp_path):
    path = tmp_path / "benchmark-infer-amp-nhwc-pt240-cu124-rtx4090.csv"
    path.write_text(
        "model,infer_batch_size,infer_samples_per_sec,infer_img_size,infer_gmacs,param_count\n"
        "small,64.0,100000.0,32,,0.01\nsmall,64,100000.0,32,9.5,0.01\nsmall,64,1e9,32,,0.005\n"
    )
    (measured,) = tables.load(path, None)
    of = measured.networks[0]
    assert (of.batch, of.dtype, of.layout, of.mode, of.training) == (64, "float16", "channels_last", "eager", False)
    assert measured.device.name == "NVIDIA GeForce RTX 4090" and of.seconds == pytest.approx(64e-5)
    (found,) = study(path, model=f"{__file__}:small")
    good, gmacs, below = found.networks
    assert good.library_seconds and good.fused_seconds <= good.roofline_seconds < good.measured_seconds
    assert gmacs.roofline_seconds is None and "GMAC" in gmacs.reason
    assert "of the roofline" in below.finding
    train = replace(of, training=True, mode="compiled")
    assert "train" not in str(analysis.network_row(train, measured.device, None, "no model").reason)
    renamed = path.with_name("table.csv")
    renamed.write_text(path.read_text())
    with pytest.raises(ValueError, match="give it with --device"):
        study(renamed)


def test_networks_without_timm_or_a_model_are_refused_in_words(tmp_path, monkeypatch):
    from costmodel.networks import models

    def absent(where):
        raise ValueError(f"cannot import {where}")

    monkeypatch.setattr(models, "imported", absent)
    path = tmp_path / "rtx3090.csv"
    path.write_text("model,samples_per_sec,batch_size,img_size\nresnet18,100,8,224\n")
    with pytest.raises(ValueError, match="pip install timm, or name a network of it with --model"):
        study(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Time (%),Total Time (ns),Instances,Name\n1,2,3,void kernel\n", "Nsight Systems.*no shapes.*record_shapes"),
        ("a,b\n1,2\n", "has the columns a, b; what is read is"),
        (f"{COLUMNS}\nNVIDIA L4,conv2d,x\n", "line 2"),
        (f"{COLUMNS}\n,conv2d,16,64,51x51,64,3x3,1x1,0x0,1x1,64,float32,,NCHW,fprop,12,dw,\n", "no GPU is named"),
    ],
)
def test_tables_that_are_refused(text, words, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        study(path)
    path.with_suffix(".jsonl").write_text('{"problem": 1}\n')
    with pytest.raises(ValueError, match="no row of `bench run`"):
        study(path.with_suffix(".jsonl"))


def test_a_line_of_another_network_is_not_used():
    of = MeasuredNetwork("m", 224, 8, 1.0, 25.6, 4.1, "contiguous", "float16", "eager", False)
    assert check(of, 25_557_032, 4_089_184_256) == ""
    assert "parameters" in check(of, 28_000_000, 4_089_184_256) and "GMAC" in check(of, 25_557_032, 5_000_000_000)


# ---- what is said ---------------------------------------------------------------------------------------------------


def test_advice_names_what_would_mend_a_loss():
    problem = ConvProblem.conv((64, 128, 56, 56), (128, 128, 3, 3), (1, 1), (1, 1), (1, 1))
    layer = MeasuredLayer("l", problem, (Pass.FPROP,), False, "float16", "ieee", "channels_last", 5e-3)
    tiny = replace(layer, problem=replace(problem, batch=1, in_channels=8, out_channels=8), seconds=15e-6)

    def advice(of):
        return analysis.compare(Measured("f", A100, (of,))).layers[0].advice

    assert "this package's plan is predicted" in advice(layer) and "unmeasured" in advice(layer)
    assert "channels_last" in advice(replace(layer, copies=3e-3))
    assert "TF32" in advice(replace(layer, dtype="float32"))
    assert "larger batch" in advice(tiny)
    ours = costmodel.predict(problem, device=A100, dtype="float16").seconds
    assert "fusing" in advice(replace(layer, seconds=ours))


def test_the_command_prints_and_writes(tmp_path, capsys):
    trace, _ = made()
    trace.backward(NEXT)
    path = trace.write(tmp_path / "trace.json")
    outputs = {name: tmp_path / f"out.{name}" for name in ("html", "csv", "png")}
    assert main(["compare", str(path), *(word for name, out in outputs.items() for word in (f"--{name}", str(out)))]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("Where the kernels' time goes", "Largest losses", "layout copies", "were not measured here"):
        assert words in text
    rows = list(csv.DictReader(outputs["csv"].open()))
    assert [row["passes"] for row in rows] == ["forward", "dx+dw"]
    assert float(rows[0]["measured_seconds"]) == pytest.approx(60e-6)
    page = outputs["html"].read_text()
    assert page.count("<svg") == 2 and "http://" not in page.replace("http://www.w3.org", "") and "#01010" not in page
    assert (tmp_path / "out-roofline.png").stat().st_size > 1000 and (tmp_path / "out-time.png").stat().st_size > 1000


def test_the_command_refuses_in_one_line(tmp_path, capsys):
    assert main(["compare", str(tmp_path / "absent.json")]) == 2
    assert capsys.readouterr().err.startswith("costmodel: ") and "\n" not in capsys.readouterr().err.strip()
