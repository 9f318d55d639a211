"""The one instruction of the engine that does all arithmetic: an LLVM switch over the table of operations."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from bench.executor import layout
from bench.executor.floats import TABLE
from bench.executor.lanes import BITS, LONG, VECTORS, WORD, Lanes

OPERANDS = (layout.A, layout.B, layout.C, layout.E)


def _build(
    builder: ir.IRBuilder, op: ir.Value, row: ir.Value, registers: ir.Value, predicates: ir.Value, mask: ir.Value
) -> None:
    words = builder.inttoptr(row, LONG.as_pointer())

    def field(position: int) -> ir.Value:
        return builder.load(builder.gep(words, [ir.Constant(LONG, position)]))

    def register(position: int, kind: ir.Type) -> ir.Value:
        return builder.inttoptr(builder.add(registers, field(position)), kind.as_pointer())

    def predicate(position: int) -> ir.Value:
        return builder.inttoptr(builder.add(predicates, field(position)), WORD.as_pointer())

    lanes = builder.trunc(mask, WORD)
    full = builder.icmp_unsigned("==", lanes, ir.Constant(WORD, 0xFFFFFFFF))
    after = builder.append_basic_block("after")
    switch = builder.switch(op, after)
    for number, (name, signature, emit) in enumerate(TABLE):
        builder.position_at_end(builder.append_basic_block(name))
        switch.add_case(ir.Constant(LONG, number), builder.block)
        target, sources = signature.split("=")
        values = [
            builder.load(predicate(at)) if kind == "p" else builder.load(register(at, VECTORS[kind]), align=64)
            for kind, at in zip(sources, OPERANDS, strict=False)
        ]
        lane_builder = Lanes(builder, field(layout.IMM))
        result = emit(lane_builder, *values)
        if target == "p":
            if result.type == BITS:
                result = builder.bitcast(result, WORD)
            place = predicate(layout.D)
            kept = builder.and_(builder.load(place), builder.not_(lanes))
            builder.store(builder.or_(kept, builder.and_(result, lanes)), place)
            builder.branch(after)
            continue
        place = register(layout.D, VECTORS[target])
        whole, part = builder.append_basic_block(name + ".whole"), builder.append_basic_block(name + ".part")
        builder.cbranch(full, whole, part)
        builder.position_at_end(whole)
        builder.store(result, place, align=64)
        builder.branch(after)
        builder.position_at_end(part)
        builder.store(builder.select(builder.bitcast(lanes, BITS), result, builder.load(place, align=64)), place, align=64)
        builder.branch(after)
    builder.position_at_end(after)


@intrinsic
def arithmetic(typing_context, op, row, registers, predicates, mask):  # type: ignore[no-untyped-def]
    """Executes operation `op` of the row at an address, for the lanes of a mask."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        _build(builder, *arguments)
        return context.get_dummy_value()

    word = types.int64
    return types.none(word, word, word, word, word), generate
