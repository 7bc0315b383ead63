"""Small faults planted in a module's syntax tree, one at a time."""

from __future__ import annotations

import ast
import copy
import itertools
from collections.abc import Container, Iterator
from dataclasses import dataclass

COMPARED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.MatMult: ast.Mult,
}


@dataclass(frozen=True)
class Mutant:
    """A changed module: what was changed, where, and its whole tree; `function` is the outermost function that it lies in."""

    line: int
    change: str
    function: tuple[str, ...]
    tree: ast.Module

    def __str__(self) -> str:
        return f"{self.line}: {self.change}"


def mutants(source: str, numbers: Container[int] | None = None) -> Iterator[Mutant]:
    """Every mutant of a module: operators, comparisons, constants, conditions, steps of ranges, and statements left out.

    Texts, annotations and what only makes a message stay as they are. With `numbers`, only the mutants with these numbers,
    counted from 0 in the order of `changes`.
    """
    tree = ast.parse(source)
    count = itertools.count()
    for place in _places(tree, (), False):
        node, function = place
        for changed in _changes(node):
            number = changed[0]
            if numbers is not None and next(count) not in numbers:
                continue
            made = copy.deepcopy(tree)
            twin = next(
                other for other, original in zip(ast.walk(made), ast.walk(tree), strict=True) if original is node
            )
            line = getattr(node, "lineno", 0)
            yield Mutant(line, _apply(twin, node, number, changed[1]), function, ast.fix_missing_locations(made))


def changes(source: str) -> Iterator[tuple[int, str]]:
    """The line and the change of every mutant, without the mutants' trees."""
    for node, _ in _places(ast.parse(source), (), False):
        for number, what in _changes(node):
            yield getattr(node, "lineno", 0), _apply(copy.deepcopy(node), node, number, what)


def _places(node: ast.AST, function: tuple[str, ...], inside: bool) -> Iterator[tuple[ast.AST, tuple[str, ...]]]:
    """The nodes that may change, each with the qualified name of the outermost function around it (empty at module level)."""
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Assert):
        return
    if isinstance(node, ast.keyword) and node.arg == "strict":  # of zip: an assertion
        return
    left_out: tuple[str, ...] = ()
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and not inside:
        function = (*function, node.name)
        inside = isinstance(node, ast.FunctionDef)
        if isinstance(node, ast.FunctionDef):
            # Defaults are computed where the function is defined, so they are not in its code.
            for default in (*node.args.defaults, *(one for one in node.args.kw_defaults if one)):
                yield from _places(default, (), False)
            left_out = ("args",)
    yield node, function if inside else ()
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases", *left_out):
            continue
        children = value if isinstance(value, list) else [value]
        for child in children:
            docstring = name == "body" and isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            if isinstance(child, ast.AST) and not docstring:
                yield from _places(child, function, inside)


def _changes(node: ast.AST) -> Iterator[tuple[int, object]]:
    """What can be done to a node: (number, argument) as `_apply` takes them."""
    if isinstance(node, ast.Compare):
        for n, op in enumerate(node.ops):
            yield from ((n, other) for other in COMPARED[type(op)])
    elif isinstance(node, ast.BinOp | ast.AugAssign):
        if type(node.op) in COMPUTED and not _is_union(node):
            yield 0, COMPUTED[type(node.op)]
    elif isinstance(node, ast.BoolOp):
        yield 0, ast.Or if isinstance(node.op, ast.And) else ast.And
    elif isinstance(node, ast.Constant):
        value = node.value
        if isinstance(value, bool):
            yield 0, not value
        elif isinstance(value, int | float):
            yield 0, value + 1
            if isinstance(value, int) and value > 0:
                yield 0, value - 1
    elif isinstance(node, ast.IfExp | ast.If | ast.While):
        yield 0, "negated"
    elif (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "range"
        and len(node.args) < 3
    ):
        yield 0, "step 2"
    elif isinstance(node, ast.Break | ast.Continue):
        yield 0, "other"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield 0, "dropped"
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield 0, "left out"


def _is_union(node: ast.BinOp | ast.AugAssign) -> bool:
    """Whether `A | B` joins types, as in isinstance(value, int | float)."""
    sides = [node.left, node.right] if isinstance(node, ast.BinOp) else []
    names = {
        side.id if isinstance(side, ast.Name) else side.attr if isinstance(side, ast.Attribute) else ""
        for side in sides
    }
    return isinstance(node.op, ast.BitOr) and bool(
        names & {"int", "float", "str", "bool", "tuple", "list", "dict", "None"}
    )


def _apply(twin: ast.AST, node: ast.AST, number: int, what: object) -> str:
    """Change `twin`, the copy of `node`; what was done, in words."""
    before = ast.unparse(node).splitlines()[0] if not isinstance(node, ast.If | ast.While) else ast.unparse(node.test)
    if isinstance(twin, ast.Compare):
        assert isinstance(what, type)
        twin.ops[number] = what()
    elif isinstance(twin, ast.BinOp | ast.AugAssign | ast.BoolOp):
        assert isinstance(what, type)
        twin.op = what()
    elif isinstance(twin, ast.Constant):
        twin.value = what  # type: ignore[assignment]
    elif isinstance(twin, ast.IfExp | ast.If | ast.While):
        twin.test = ast.UnaryOp(ast.Not(), twin.test)
        return f"condition negated: {before[:70]}"
    elif isinstance(twin, ast.Call):
        if len(twin.args) == 1:
            twin.args.insert(0, ast.Constant(0))
        twin.args.append(ast.Constant(2))
    elif isinstance(twin, ast.Break | ast.Continue):
        twin.__class__ = ast.Continue if isinstance(twin, ast.Break) else ast.Break
    elif isinstance(twin, ast.UnaryOp):
        twin.op = ast.UAdd() if isinstance(twin.op, ast.USub) else ast.Not()
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            twin.operand = ast.UnaryOp(ast.Not(), twin.operand)
    elif isinstance(twin, ast.Expr):
        twin.value = ast.Constant(None)
    after = ast.unparse(twin).splitlines()[0]
    return f"{before[:60]} → {after[:60]}"
