"""What `tritonconv` asks of a kernel family: how its plans are launched, and the words of `explain` for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from costmodel.problem import ConvProblem, Pass
from costmodel.tiling import Call, Operand
from tritonconv.prepared import FusedKey, TensorKey
from tritonconv.steps import Copies, Launch


class Laid(NamedTuple):
    """A call as the kernels of a plan see it: the plan, the problem, shape and strides of a, b and the result, which of a and b
    are copies, and what makes the copies."""

    plan: Any
    problem: ConvProblem
    a: TensorKey
    b: TensorKey
    out: TensorKey
    copied: tuple[str, ...] = ()
    copies: Copies = Copies()


class Launcher(ABC):
    """The half of a kernel family that launches its plans. `title` says in a few words what its kernels do."""

    name: str
    title: str

    @abstractmethod
    def launch(
        self,
        plan: Any,
        call: Call,
        a: TensorKey,
        b: TensorKey,
        out: TensorKey,
        bias_stride: int | None,
        fused: FusedKey | None,
        upcast: bool,
    ) -> Launch:
        """The launch of a plan, for operands in the layout that it needs, which `call` describes. `upcast`: the interpreter
        multiplies bfloat16 in float32."""

    @abstractmethod
    def words(self, call: Call, plan: Any) -> list[str]:
        """Words on a plan's tile, programs and copies, one line each."""

    def laid(self, plan: Any, call: Call, a: TensorKey, b: TensorKey, out: TensorKey) -> Laid:
        """The call as the plan's kernels see it."""
        return Laid(plan, call.problem, a, b, out)

    def describes(self, problem: ConvProblem) -> Callable[..., Operand] | None:
        """The function that describes the layout of a problem's tensors, as `layout.operand` does, for problems that this
        family may run and for which its kernels may assume more; None for other problems."""
        return None

    def is_far(self, problem: ConvProblem, which: Pass, a: TensorKey, b: TensorKey, out: TensorKey) -> bool:
        """Whether a program of this family's largest tile needs 64-bit offsets, where the choice of a plan asks for that."""
        return False

    def launches(self, constants: Mapping[str, Any]) -> bool:
        """Whether a launch with these constants, of a kernel that several families have, belongs to this family."""
        return True

    def kernels_of(self, which: Pass) -> str:
        """The family whose kernels compute a pass."""
        return self.name

    def remark(self, call: Call, plan: Any) -> str:
        """Words that follow `title` on its line."""
        return ""

    def fused_in(self, plan: Any) -> str:
        """Words on which kernel runs an epilogue."""
        return "the same kernel"


#: The operands a and b of a pass.
OPERANDS = {Pass.FPROP: ("x", "w"), Pass.DGRAD: ("dy", "w"), Pass.WGRAD: ("dy", "x")}


def named(letters: tuple[str, ...], which: Pass) -> str:
    """The names of the operands in `plan.pack`, joined as in a sentence."""
    return " and ".join(OPERANDS[which]["ab".index(letter)] for letter in letters)
