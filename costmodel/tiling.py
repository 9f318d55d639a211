"""What a plan is (its words, its tile) and the call that it is for (how its tensors lie in memory). Standard library only."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from costmodel.algebra import product
from costmodel.problem import ConvProblem, Pass

if TYPE_CHECKING:
    from costmodel.prologue import Prologue

#: The largest alignment in elements that is told to the compiler; larger ones would tell it nothing more.
MAX_ALIGN = 16
#: Most taps whose validity bits fit one 32-bit word per pixel.
MAX_BIT_TAPS = 32
#: Most warps per program (CUDA: 1024 threads), and most values per tensor (Triton).
MAX_WARPS, MAX_VALUES = 32, 1 << 20
#: Elements of the largest box that one instruction copies: 256 pixels along an axis times 64 channels.
LARGEST_BOX = 256 * 64


class Tile(NamedTuple):
    m: int
    n: int
    k: int
    warps: int
    stages: int


#: The interpreter's menu. Its time depends on the number of programs and trips, so its tiles are larger than any GPU's.
INTERPRETED_MENU = tuple(
    Tile(m, n, k, 4, 3) for m in (16, 128, 512, 2048) for n in (16, 64) for k in (16, 64, 256, 1024) if m * k <= MAX_VALUES
)


def arithmetic(dtype: str, precision: str) -> str:
    """The menu's name for the arithmetic of a dtype: "half", "tf32", "fp32" or "fp64"."""
    if dtype in ("float16", "bfloat16"):
        return "half"
    if dtype == "float64":
        return "fp64"
    return "tf32" if precision == "tf32" else "fp32"


def itemsize(dtype: str) -> int:
    """Bytes of one element."""
    return {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[dtype]


@dataclass(frozen=True)
class Operand:
    """How a tensor lies in memory.

    `unit`: the axis of stride 1 (0 batch or filter, 1 channel, 4 last spatial, -1 none). `align`: a power of two that divides
    every other stride and the offset of a group, in elements. `outside`: a power of two that divides every other stride.
    `boxed`: a TMA descriptor can describe the tensor (16-byte aligned base, nested strides, each filter contiguous), if its
    channels are contiguous and its strides multiples of 16 bytes. `far`: a program of the largest tile needs 64-bit offsets.
    `aligned`: the address of the first element is a multiple of 16 bytes, whatever the strides."""

    unit: int = 1
    align: int = MAX_ALIGN
    outside: int = MAX_ALIGN
    boxed: bool = True
    far: bool = False
    aligned: bool = True


@dataclass(frozen=True)
class Call:
    """One pass to plan: the problem, the arithmetic, and the three tensors (a times b gives out).

    `epilogue` says what the same kernel does after the bias. "": nothing. "channels": values per channel, and an activation
    without an exponential. "tensors": also a tensor of the output's size, read (a residual) or written (the value before the
    activation). "heavy": an activation with an exponential, or a residual whose strides are not the output's.

    `prologue` is what the same kernel does to the pixels that it gathers; None: nothing.
    """

    problem: ConvProblem
    which: Pass
    dtype: str
    precision: str = "ieee"
    a: Operand = Operand()
    b: Operand = Operand()
    out: Operand = Operand()
    epilogue: str = ""
    prologue: Prologue | None = None


def channels_last(problem: ConvProblem, which: Pass, dtype: str, precision: str = "ieee") -> Call:
    """The call of dense channels-last tensors, all of whose other strides are multiples of the channel count."""

    def dense(shape: tuple[int, ...], per_group: int) -> Operand:
        outer, channels, *spatial = shape
        if channels > 1:
            return Operand(1, math.gcd(MAX_ALIGN, per_group), math.gcd(MAX_ALIGN, channels))
        # nothing is read along an axis of one channel: weights of depthwise layers are contiguous, filter after filter
        if product(spatial) == 1 < outer:
            return Operand(0)
        steps = (product(spatial[axis:]) for axis in range(len(spatial)))  # of the outer axis and all but the last
        align = math.gcd(MAX_ALIGN, *(step for n, step in zip((outer, *spatial), steps, strict=False) if n > 1))
        return Operand(4, align, align)

    x = dense(problem.input_shape, problem.channels_per_group)
    y = dense(problem.output_shape, problem.filters_per_group)
    w = dense(problem.weight_shape, problem.channels_per_group)
    a, b, out = {Pass.FPROP: (x, w, y), Pass.DGRAD: (y, w, x), Pass.WGRAD: (y, x, w)}[which]
    return Call(problem, which, dtype, precision, a, b, out)


def plan_option(word: str, default: Any, count: int = 1) -> Any:
    """A field of a plan class that is written as `word` and its value, and left out where it has its default.

    The default decides the form: False makes it a word without a value, () a word for each entry, None `count` numbers joined
    by "x"; any other default makes it a number."""
    return field(default=default, metadata={"word": word, "count": count})


@dataclass(frozen=True)
class Plan:
    """A kernel with its tile: the fields that plans of all families have. Each family has a class of its own with further
    fields (`plan_option`); `Plan(which, family, ...)` makes a plan of the family's class.

    block_m, block_n, block_k: the tile, as the family's class reads it. num_warps and num_stages are Triton's.
    """

    which: Pass
    family: str
    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int

    def __new__(cls, *given: Any, **named: Any) -> Plan:
        return object.__new__(_class_of(named["family"] if "family" in named else given[1]) if cls is Plan else cls)

    def __post_init__(self) -> None:
        if type(self) is not (kind := _class_of(self.family)):
            raise TypeError(f"a plan of family {self.family!r} is a {kind.__name__}, not a {type(self).__name__}")

    @property
    def tile(self) -> Tile:
        return Tile(self.block_m, self.block_n, self.block_k, self.num_warps, self.num_stages)

    @classmethod
    def options(cls) -> list[Field[Any]]:
        """The fields of plans of this class besides their tile, in the order of the words."""
        return [option for option in fields(cls) if "word" in option.metadata]

    def __str__(self) -> str:
        """The plan as one word, which `Plan.parse` reads back:
        fprop:patch:128x64x64:w4:s4[:split7][:group8][:step1x1x8x8][:merge4][:fold][:x3][:rows14][:taps1x8][:pack-a]."""
        words = [str(self.which), self.family, f"{self.block_m}x{self.block_n}x{self.block_k}"]
        words += [f"w{self.num_warps}", f"s{self.num_stages}"]
        for option in self.options():
            value, word = getattr(self, option.name), option.metadata["word"]
            if value == option.default:
                continue
            if option.default is False:
                words.append(word)
            elif option.default == ():
                words += [f"{word}{name}" for name in value]
            else:
                words.append(word + ("x".join(map(str, value)) if option.default is None else str(value)))
        return ":".join(words)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The plan that `str(plan)` wrote. Raises ValueError where the text is no plan, has a word that its family does not
        know, or is of a family with another class than this one."""
        form = f"plan {text!r} is not of the form {Plan.__str__.__doc__}"
        which, family, tile, *rest = [*text.split(":"), "", "", ""]
        sizes = _numbers(tile, 3)
        if which not in [*Pass] or not family or sizes is None:
            raise ValueError(form)
        try:
            kind = _class_of(family)
        except ValueError as error:
            raise ValueError(f"plan {text!r}: {error}") from None
        if not issubclass(kind, cls):
            raise ValueError(f"plan {text!r} must be a {cls.__name__}, got a {kind.__name__}")
        given: dict[str, Any] = {"num_warps": 4, "num_stages": 3}
        for word in rest[:-3]:
            if (option_and_value := _read(word, _TILE) or _read(word, kind.options())) is None:
                raise ValueError(f"plan {text!r}: {foreign}" if (foreign := _foreign(word, family)) else form)
            option, value = option_and_value
            given[option.name] = given.get(option.name, ()) + value if option.default == () else value
        return kind(Pass(which), family, *sizes, **given)


def _class_of(family: str) -> type[Plan]:
    """The class of a family's plans. Raises ValueError where there is no such family."""
    from costmodel import families  # here, because its modules import this one

    return families.plan_class(family)


def _numbers(text: str, count: int) -> tuple[int, ...] | None:
    """`count` whole numbers joined by "x", None where the text is something else."""
    return tuple(map(int, text.split("x"))) if re.fullmatch("x".join([r"-?\d+"] * count), text) else None


#: The fields whose words every plan has.
_TILE = [tile_field for tile_field in fields(Plan) if tile_field.name in ("num_warps", "num_stages")]


def _read(word: str, options: Iterable[Field[Any]]) -> tuple[Field[Any], Any] | None:
    """(field, value) of a word; None where it is no word of these fields."""
    for option in options:
        name = {"num_warps": "w", "num_stages": "s"}.get(option.name) or option.metadata["word"]
        if option.default is False:
            if word == name:
                return option, True
        elif word.startswith(name):
            behind = word.removeprefix(name)
            if option.default == ():
                return option, (behind,)
            if (numbers := _numbers(behind, option.metadata.get("count", 1))) is not None:
                return option, numbers if option.default is None else numbers[0]
    return None


def _foreign(word: str, family: str) -> str:
    """What is wrong with a word that only plans of other families have; "" for a word that none has."""
    from costmodel import families

    for other in families.families().values():
        if option_and_value := _read(word, other.plan.options()):
            return f"family {family!r} knows no {option_and_value[0].name}, got {option_and_value[1]}"
    return ""


#: The farthest that a window, a stride or padding may reach, in pixels, for kernels that count coordinates in 32 bits only. It
#: leaves room for a tile beyond the sizes. The gather's kernels count in 64 bits where they must.
FARTHEST = 2**28


def reach_refusal(problem: ConvProblem, farthest: int = FARTHEST) -> str:
    """Why 32 bits cannot count a problem's coordinates; "" where they can."""
    if problem.farthest <= farthest:
        return ""
    return f"a window, stride or padding reaches {problem.farthest} pixels, the kernel counts {farthest}"


def tile_refusal(plan: Plan) -> str:
    """Why no kernel can be compiled for a tile or started; "" where one can. Blocks are powers of two."""
    if plan.num_stages < 1:
        return f"stages must be positive, got {plan.num_stages}"
    if plan.num_warps < 1 or plan.num_warps & (plan.num_warps - 1) or plan.num_warps > MAX_WARPS:
        return f"warps must be a power of two of at most {MAX_WARPS}, got {plan.num_warps}"
    m, n, k, *_ = plan.tile
    if max(m * n, m * k, n * k) > MAX_VALUES:
        return f"each two blocks must span at most {MAX_VALUES} values, got {m}x{n}x{k}"
    return ""


def pack_refusal(pack: tuple[str, ...]) -> str:
    """Why operands cannot be copied as a plan says; "" where they can."""
    return "" if {*pack} <= {"a", "b"} else f"pack names operands a and b, got {', '.join(pack)}"


class Extent(NamedTuple):
    """What a kernel family tiles: m x n results, `repeats` times (groups, phases, taps). Each result sums `loops` passes over
    `depth` terms. wgrad's depth is the number of output pixels, which it walks in boxes. dgrad's `loops` is the average over
    its phases."""

    m: int
    n: int
    repeats: int
    depth: int
    loops: float
