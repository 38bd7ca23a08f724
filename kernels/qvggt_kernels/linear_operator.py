"""A product with a packed weight as an operator of PyTorch, whatever its implementations are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from torch import Tensor

from .backends import Backend, choose, uses_operator
from .registry import register
from .weight import Epilogue, IntegerWeight, PackedWeight

Implementations = Mapping[Backend, Callable[..., Any]]

Weight = TypeVar("Weight", PackedWeight, IntegerWeight)

_SCHEMAS = {
    PackedWeight: "Tensor qweight, Tensor scales, Tensor? bias, Tensor? zeros",
    IntegerWeight: "Tensor qweight, Tensor scales, Tensor? bias, int activation_bits, Tensor clip",
}


class LinearOperator(Generic[Weight]):
    """A linear as an operator that returns its result and, if `adds`, one that adds it."""

    def __init__(
        self,
        name: str,
        bundle: type[Weight],
        implementations: Implementations,
        *,
        adds: bool = True,
        differentiable: bool = False,
    ) -> None:
        """Register the operators.

        Args:
            name: of the operator.
            bundle: what the weight is made of.
            implementations: by backend; that of the reference is always there.
            adds: whether there is one that adds its result to tokens.
            differentiable: whether gradients flow, through the reference.
        """
        self._name = name
        self._bundle: type[Any] = bundle
        self._implementations = implementations
        self._differentiable = differentiable
        reference = implementations[Backend.REFERENCE]

        def empty_result(x: Tensor, weight: Weight, epilogue: Epilogue) -> Tensor:
            # PyTorch takes this for a mixture of devices too, if one is meta.
            weight.check(x)
            epilogue.check(x, weight.outputs)
            return x.new_empty(*x.shape[:-1], weight.outputs)

        self._operator = register(
            f"{name}(Tensor x, {_SCHEMAS[bundle]}, bool gelu) -> Tensor",
            self._returning(self.compute),
            fake=self._returning(empty_result),
            reference=self._returning(reference),
        )
        if adds:
            self._add = register(
                f"{name}_add_(Tensor(a!) total, Tensor x, Tensor gamma, {_SCHEMAS[bundle]}) -> ()",
                self._adding(self.compute),
                fake=self._adding(empty_result),
                reference=self._adding(reference),
            )

    def __call__(self, x: Tensor, weight: Weight, gelu: bool, backend: Backend | None) -> Tensor:
        """Return the linear's result or its GELU; `backend` None takes the fastest."""
        if backend is not None:
            return self.compute(x, weight, Epilogue(gelu), backend)
        if self._is_operator_call(x, weight):
            result: Tensor = self._operator(x, *weight, gelu)
            return result
        return self.compute(x, weight, Epilogue(gelu), Backend.REFERENCE)

    def add_(self, total: Tensor, x: Tensor, gamma: Tensor, weight: Weight) -> None:
        """Add gamma times the linear's result to `total`."""
        if self._is_operator_call(x, weight):
            self._add(total, x, gamma, *weight)
        else:
            self.compute(x, weight, Epilogue(False, gamma, total), Backend.REFERENCE)

    def compute(
        self, x: Tensor, weight: Weight, epilogue: Epilogue, backend: Backend | None = None
    ) -> Tensor:
        """Run the implementation that is given or chosen."""
        weight.check(x)
        epilogue.check(x, weight.outputs)
        implementation = self._implementations[backend or choose(self._name, x, weight)]
        result: Tensor = implementation(x, weight, epilogue)
        return result

    def _is_operator_call(self, x: Tensor, weight: Weight) -> bool:
        if self._differentiable:
            return uses_operator(x, weight.bias)
        return x.device.type in ("cpu", "cuda")

    def _returning(self, linear: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(x: Tensor, *arguments: Any) -> Tensor:
            *weight, gelu = arguments
            return linear(x, self._bundle(*weight), Epilogue(gelu))

        return run

    def _adding(self, linear: Callable[..., Tensor]) -> Callable[..., None]:
        def run(total: Tensor, x: Tensor, gamma: Tensor, *weight: Any) -> None:
            linear(x, self._bundle(*weight), Epilogue(False, gamma, total))

        return run
