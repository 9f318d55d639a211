"""Closed forms of a convolution in all its hyper-parameters, with their derivation. Imports sympy."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from typing import Any

from costmodel.arithmetic import arithmetic_named
from costmodel.formulas import derivation
from costmodel.formulas.derivation import Step
from costmodel.formulas.exposition import steps
from costmodel.formulas.quantities import Expr, Quantities
from costmodel.formulas.special import Special, specials
from costmodel.problem import ConvProblem
from costmodel.tiling import itemsize


@dataclass(frozen=True)
class Formulas(Quantities):
    """The quantities of one kind of convolution. `definitions` has them in order, each in terms of earlier ones."""

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        return steps(self)

    @cached_property
    def specials(self) -> tuple[Special, ...]:
        """The classic special cases."""
        return specials(self)

    def latex(self) -> str:
        r"""The derivation as a fragment to \input into a LaTeX document that loads amsmath."""
        return derivation.latex(self.steps)

    def markdown(self) -> str:
        """The derivation as Markdown with mathematics between dollar signs."""
        return derivation.markdown(self.steps)

    def plain(self) -> str:
        """The derivation as text."""
        return derivation.plain(self.steps)

    def closed_form(self, name: str) -> Expr:
        """A quantity such as "MAC_useful" in terms of hyper-parameters only. Raises ValueError for a name that is not
        defined."""
        names = {str(quantity.name): quantity.name for quantity in self.definitions if not quantity.name.is_Function}
        if name not in names:
            raise ValueError(f"name must be one of {', '.join(names)}, got {name!r}")
        return self._closed_forms[names[name]]

    @cached_property
    def _closed_forms(self) -> dict[Expr, Expr]:
        forms: dict[Expr, Expr] = {}
        for quantity in self.definitions:
            if not quantity.name.is_Function:
                forms[quantity.name] = self.without_functions(quantity.expression).xreplace(forms)
        return forms

    def subs(self, problem: ConvProblem, dtype: Any = None) -> dict[str, int | Fraction]:
        """Every quantity by name, with the numbers of `problem` for its letters, without rounding.

        For a transposed convolution `problem` is what `ConvProblem.conv_transpose` returns. Raises ValueError where it has
        another rank, or two paddings per axis where the formulas have one.
        """
        return self.evaluate(self.values(problem, itemsize(arithmetic_named(dtype).dtype)))


@cache
def symbolic(rank: int, transposed: bool = False, *, symmetric: bool = False) -> Formulas:
    """The formulas of conv1d, conv2d or conv3d (`rank` 1, 2 or 3), or of their transposed forms.

    Letters: N images, C input and K output channels, g groups, sizes D H W, kernel T R S, and on each axis stride s,
    dilation d, padding p lo and hi; `symmetric` has one p for both ends. A transposed convolution has one p and the output
    padding a, as in torch. b is the bytes of an element. Raises ValueError for another rank. The shapes
    are those of Dumoulin and Visin, "A guide to convolution arithmetic for deep learning" (arXiv:1603.07285).

    >>> import costmodel
    >>> forms = costmodel.symbolic(2)
    >>> problem = costmodel.conv2d((32, 64, 56, 56), (64, 64, 3, 3), padding=1).problem
    >>> forms.subs(problem)["MAC_useful"] == problem.useful_macs
    True
    """
    if rank not in (1, 2, 3):
        raise ValueError(f"rank must be 1, 2 or 3, got {rank!r}")
    return Formulas(rank, transposed, symmetric)
