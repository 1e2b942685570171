"""What a notebook needs of its own kernel: the values of its `parameters` cell, and the code that does the work."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from IPython import get_ipython
from IPython.display import Code

INJECTED = "# Parameters"  # the first line of the cell that papermill puts behind the parameters cell


def parameters(
    cells: list[str] | None = None, namespace: Mapping[str, Any] | None = None, first: str = "preset"
) -> dict[str, Any]:
    """The values that a notebook's `parameters` cell, and papermill's cell behind it, give to names.

    They are read from what was run last (`cells`: the kernel's history), not from the notebook's variables: whatever
    other cells call their variables, and how often they are run, these values stay, and a misspelt name is seen every
    time. `namespace` is only asked for a value that is no literal. `first`: a name that this cell gives a value, and no
    other cell. RuntimeError where no such cell was run.
    """
    shell = get_ipython()
    cells = cells if cells is not None else shell.user_ns.get("In", []) if shell else []
    namespace = namespace if namespace is not None else shell.user_ns if shell else {}
    found: dict[str, Any] | None = None
    for cell in cells:
        assigned = _assignments(cell)
        if first in assigned and not cell.startswith(INJECTED):
            found = {}
        if found is not None and (first in assigned or cell.startswith(INJECTED)):
            found |= {name: _value(name, node, namespace) for name, node in assigned.items()}
    if found is None:
        raise RuntimeError(f"no parameters cell was run: run the cell that begins with `{first} = …` first")
    return found


def _assignments(cell: str) -> dict[str, ast.expr]:
    """Name -> value of a cell that holds plain assignments and nothing else; empty for any other."""
    try:
        statements = ast.parse(cell).body
    except SyntaxError:
        return {}
    plain = [s for s in statements if isinstance(s, ast.Assign) and isinstance(s.targets[0], ast.Name)]
    return {s.targets[0].id: s.value for s in plain} if len(plain) == len(statements) else {}


def _value(name: str, node: ast.expr, namespace: Mapping[str, Any]) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return namespace.get(name)


def show_code(function: Callable) -> Code:
    """The source of a function, as the run executes it, to read in a notebook."""
    return Code(inspect.getsource(function), language="python")
