"""Compare a function with another on small inputs, and show the first on which it differs.

A function that still raises NotImplementedError is not written yet; that is printed and not raised,
so that a notebook with open exercises runs through.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch


class Mismatch(AssertionError):
    """The function is not right.

    The message shows the small input, what was expected and what came.
    """


def compare(
    function: Callable, expected: Callable, cases: Mapping[str, Mapping[str, Any]], *, hint: str
) -> None:
    """Call a function on every case, and print how many agree with what was expected.

    Numbers may differ by 1e-4 relative or 1e-5 absolute. The function must not change its input.

    Args:
        function: the student's; its arguments are passed by position.
        expected: gives the right result for the same arguments.
        cases: {title: {argument: value}}, each small enough to be read.
        hint: the last line of the message.

    Raises:
        Differs: on the first case that is not right.
    """
    name = function.__name__
    for title, arguments in cases.items():
        given = copy.deepcopy(arguments)
        wanted = expected(*copy.deepcopy(arguments).values())
        inputs = "\n".join(f"  {key} = {_text(value)}" for key, value in arguments.items())
        shown = f'{name} is not right yet. Small input "{title}":\n{inputs}'
        try:
            got = function(*given.values())
        except NotImplementedError:
            print(f"{name}: not written yet")
            return
        except Exception as error:
            raise Mismatch(
                f"{shown}\nit raised {type(error).__name__}: {error}\nHint: {hint}"
            ) from error
        problem = _difference(got, wanted)
        if problem is None and any(
            _difference(given[key], value) for key, value in arguments.items()
        ):
            problem = "it changed its input: work on a copy"
        if problem is not None:
            raise Mismatch(
                f"{shown}\nexpected {_text(wanted)}\ngot      {_text(got)}\n{problem}\nHint: {hint}"
            )
    print(f"{name}: right, {len(cases)} small inputs agree")


def _difference(got: object, wanted: object) -> str | None:
    """What is wrong with `got`, or None."""
    if got is None:
        return "it returned nothing: is the `return` there?"
    try:
        got, wanted = _array(got), _array(wanted)
        if got.shape != wanted.shape:
            return f"shape {got.shape}, expected {wanted.shape}"
        same = (
            got == wanted
            if wanted.dtype.kind in "USO"
            else np.isclose(got, wanted, rtol=1e-4, atol=1e-5, equal_nan=True)
        )
    except (TypeError, ValueError):
        return f"a {type(got).__name__} that cannot be compared"
    return None if np.all(same) else f"{np.sum(~same)} of {same.size} values differ"


def _array(value: object) -> np.ndarray:
    """A tensor, number, sequence or text as an array."""
    return np.asarray(value.detach() if isinstance(value, torch.Tensor) else value)


def _text(value: object) -> str:
    """A small value for reading: arrays with three digits, masks as 0 and 1."""
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    if not isinstance(value, np.ndarray):
        return str(value)
    value = value.astype(int) if value.dtype == bool else value
    text = np.array2string(value, precision=3, suppress_small=True)
    return "\n" + text if "\n" in text else text
