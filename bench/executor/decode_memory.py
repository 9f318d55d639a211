"""Decoding of instructions that access memory: ld, st, cp.async, ldmatrix, stmatrix, TMA, and the matrix products."""

from __future__ import annotations

import re

from bench.executor.builder import Builder, Op, Unknown
from bench.executor.decode_arithmetic import bits_of
from bench.executor.text import address, group, split

HINTS = re.compile(r"weak|nc|ca|cg|cs|lu|cv|wb|wt|L1::\w+|L2::(cache_hint|evict_\w+|\d+B)|shared::cta|v[24]|global|shared")
FIELDS = ("D", "A", "B", "C")


def load_parameter(b: Builder, parts: list[str], operands: list[str]) -> None:
    kind = parts[-1]
    names, (base, at) = group(operands[0]), address(operands[1])
    if base not in b.params:
        raise Unknown(f"parameter {base}")
    size = bits_of(kind) // 8
    for k, name in enumerate(names):
        slot = b.argument(b.params[base].offset + at + k * size, size, kind[0] == "s")
        wide = b.width(name) == 64
        if wide and size < 8:
            b.emit("sext64" if kind[0] == "s" else "zext64", b.register(name), slot)
        else:
            b.emit("mov64" if size == 8 else "mov32", b.register(name), slot)


def load_store(b: Builder, parts: list[str], operands: list[str]) -> None:
    """ld and st of global and shared memory."""
    base, kind, form = parts[0], parts[-1], ".".join(parts)
    if unknown := [part for part in parts[1:-1] if not HINTS.fullmatch(part)]:
        raise Unknown(f"{form} ({', '.join(unknown)})")
    in_global = "global" in parts
    if not in_global and not any(part.startswith("shared") for part in parts):
        raise Unknown(form)
    data, where = (operands[0], operands[1]) if base == "ld" else (operands[1], operands[0])
    names = group(data)
    vector = next((int(part[1:]) for part in parts if part in ("v2", "v4")), 1)
    width = bits_of(kind)
    if len(names) != vector or (len(operands) > 2 and "L2::cache_hint" not in parts):
        raise Unknown(form)
    register, at = address(where)
    place = b.value(register, 64 if in_global else 32)
    fields = {"E": place, "IMM": at, "COUNT": vector, "SIZE": width // 8}
    after: list[tuple[str, int, int]] = []
    if base == "st":
        slots = [b.value(name, width) for name in names]
    else:
        slots = []
        fields["FLAG"] = width // 8
        for name in names:
            register_bits = width if name == "_" else b.width(name)
            if kind in ("s8", "s16"):
                fields["FLAG"] = -(width // 8) - (0 if register_bits == 16 else 16)
            if register_bits == 64 and width < 64:
                slots.append(b.new_slot("i"))
                after.append(("sext64" if kind[0] == "s" else "zext64", b.register(name), slots[-1]))
            else:
                slots.append(b.register(name))
    fields |= dict(zip(FIELDS, slots, strict=False))
    op = {("ld", True): Op.LOAD_GLOBAL, ("ld", False): Op.LOAD_SHARED}.get((base, in_global))
    b.add(op or (Op.STORE_GLOBAL if in_global else Op.STORE_SHARED), **fields)
    for name, target, source in after:
        b.emit(name, target, source)


def copy_async(b: Builder, parts: list[str], operands: list[str]) -> None:
    form = ".".join(parts)
    if parts[2] in ("ca", "cg"):
        if unknown := [p for p in parts[3:] if p not in ("shared", "shared::cta", "global") and not p.startswith("L2::")]:
            raise Unknown(f"{form} ({', '.join(unknown)})")
        (target, at), (source, source_at) = address(operands[0]), address(operands[1])
        size = int(operands[2], 0)
        hint = "L2::cache_hint" in parts
        source_size = operands[3] if len(operands) - hint > 3 else None
        fields = {"D": b.value(target), "IMM": at, "A": b.value(source, 64), "EXTRA": source_at, "SIZE": size}
        if source_size is not None:
            fields |= {"B": b.value(source_size), "FLAG": 1}
        b.add(Op.COPY, **fields)
    elif parts[2:] == ["commit_group"]:
        b.add(Op.COPY_COMMIT)
    elif parts[2:] == ["wait_group"]:
        b.add(Op.COPY_WAIT, IMM=int(operands[0], 0))
    elif parts[2:] == ["wait_all"]:
        b.add(Op.COPY_WAIT, FLAG=1)
    elif parts[2:4] == ["bulk", "tensor"]:
        _tensor(b, parts, operands, form)
    elif parts[2:] == ["bulk", "commit_group"]:
        b.add(Op.TMA_COMMIT)
    elif parts[2:] in (["bulk", "wait_group"], ["bulk", "wait_group", "read"]):
        b.add(Op.TMA_WAIT, IMM=int(operands[0], 0), FLAG=int("read" in parts))
    else:
        raise Unknown(form)


def _tensor(b: Builder, parts: list[str], operands: list[str], form: str) -> None:
    """cp.async.bulk.tensor: a box of a tensor to shared memory, or back."""
    rest = [part for part in parts[5:] if part != "tile" and part != "L2::cache_hint"]
    hint = "L2::cache_hint" in parts
    if len(operands) - hint not in (2, 3):
        raise Unknown(form)

    def tensor(text: str) -> tuple[int, list[int]]:
        descriptor, coordinates = split(text.strip()[1:-1])
        return b.value(descriptor, 64), b.slots_of(coordinates, 32)

    if rest[0] in ("shared::cta", "shared::cluster") and rest[1:] == ["global", "mbarrier::complete_tx::bytes"]:
        (target, at), (barrier, barrier_at) = address(operands[0]), address(operands[2])
        descriptor, coordinates = tensor(operands[1])
        fields = {"D": b.value(target), "IMM": at, "A": descriptor, "B": b.value(barrier), "SIZE": barrier_at}
        b.add(Op.TMA_LOAD, **fields, EXTRA=b.extra(coordinates), COUNT=len(coordinates))
    elif rest == ["global", "shared::cta", "bulk_group"]:
        descriptor, coordinates = tensor(operands[0])
        source, at = address(operands[1])
        fields = {"D": b.value(source), "IMM": at, "A": descriptor}
        b.add(Op.TMA_STORE, **fields, EXTRA=b.extra(coordinates), COUNT=len(coordinates))
    else:
        raise Unknown(form)


def matrix_move(b: Builder, parts: list[str], operands: list[str]) -> None:
    """ldmatrix and stmatrix of 8 x 8 elements of 16 bits."""
    load = parts[0] == "ldmatrix"
    count = next((int(part[1:]) for part in parts if part in ("x1", "x2", "x4")), 0)
    if "m8n8" not in parts or parts[-1] != "b16" or not count:
        raise Unknown(".".join(parts))
    data, where = (operands[0], operands[1]) if load else (operands[1], operands[0])
    register, at = address(where)
    names = group(data)
    if len(names) != count:
        raise Unknown(".".join(parts))
    slots = [b.register(name) if load else b.value(name) for name in names]
    fields = dict(zip(FIELDS, slots, strict=False)) | {
        "E": b.value(register),
        "IMM": at,
        "COUNT": count,
        "FLAG": int("trans" in parts),
    }
    b.add(Op.LOAD_MATRIX if load else Op.STORE_MATRIX, **fields)


MMA: dict[tuple[str, tuple[str, ...]], tuple[int, int]] = {  # (shape, types) -> (k, the engine's name of the type)
    ("m16n8k16", ("f32", "f16", "f16", "f32")): (16, 0),
    ("m16n8k8", ("f32", "f16", "f16", "f32")): (8, 0),
    ("m16n8k16", ("f32", "bf16", "bf16", "f32")): (16, 1),
    ("m16n8k8", ("f32", "bf16", "bf16", "f32")): (8, 1),
    ("m16n8k8", ("f32", "tf32", "tf32", "f32")): (8, 2),
    ("m16n8k4", ("f32", "tf32", "tf32", "f32")): (4, 2),
}


def matrix_product(b: Builder, parts: list[str], operands: list[str]) -> None:
    """mma.sync."""
    shape, types = next((part for part in parts if re.fullmatch(r"m\d+n\d+k\d+", part)), ""), tuple(parts[-4:])
    if parts[1] != "sync" or "row.col" not in ".".join(parts):
        raise Unknown(".".join(parts))
    if types == ("f64", "f64", "f64", "f64") and shape in ("m8n8k4", "m16n8k4", "m16n8k8", "m16n8k16"):
        height, depth = (int(n) for n in re.findall(r"m(\d+)n8k(\d+)", shape)[0])
        slots = [slot for operand in operands for slot in b.slots_of(operand, 64)]
        b.add(Op.PRODUCT_DOUBLE, EXTRA=b.extra(slots), SIZE=height, COUNT=depth)
    elif (shape, types) in MMA:
        depth, kind = MMA[shape, types]
        slots = [slot for operand in operands for slot in b.slots_of(operand, 32)]
        b.add(Op.PRODUCT, EXTRA=b.extra(slots), COUNT=depth, FLAG=kind)
    else:
        raise Unknown(".".join(parts))


def warpgroup(b: Builder, parts: list[str], operands: list[str]) -> None:
    """wgmma."""
    form = ".".join(parts)
    if parts[1] == "fence":
        b.add(Op.WGMMA_FENCE)
    elif parts[1] == "commit_group":
        b.add(Op.WGMMA_COMMIT)
    elif parts[1] == "wait_group":
        b.add(Op.WGMMA_WAIT, IMM=int(operands[0], 0))
    elif parts[1] == "mma_async":
        shape = next((m for part in parts if (m := re.fullmatch(r"m64n(\d+)k(\d+)", part))), None)
        kind = {"f16": 0, "bf16": 1, "tf32": 2}.get(parts[-1])
        if shape is None or kind is None or parts[-3] != "f32" or parts[-2] != parts[-1]:
            raise Unknown(form)
        columns, depth = int(shape[1]), int(shape[2])
        if depth != (8 if kind == 2 else 16):
            raise Unknown(form)
        accumulators = [b.register(name) for name in group(operands[0])]
        if len(accumulators) != columns // 2 or operands[4:6] != ["1", "1"]:
            raise Unknown(f"{form} with {len(accumulators)} accumulators, scales {operands[4:6]}")
        from_registers = operands[1].startswith("{")
        left = b.slots_of(operands[1], 32) if from_registers else []
        tail = [int(text) for text in operands[6:]]
        if len(tail) not in ((0, 1) if from_registers else (0, 2)):
            raise Unknown(f"{form} with {len(tail)} transpositions")
        flag = kind | 16 * from_registers
        if tail:
            flag |= 8 * tail[-1] | (0 if from_registers else 4 * tail[0])
        fields = {"A": 0 if from_registers else b.value(operands[1], 64), "B": b.value(operands[2], 64)}
        b.add(Op.WGMMA, **fields, C=b.predicate(operands[3]), EXTRA=b.extra(accumulators + left), COUNT=columns, FLAG=flag)
    else:
        raise Unknown(form)
