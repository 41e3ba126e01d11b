"""Signatures read from the source of this package, without importing it.

The modules of this package import torch, Lightning and transformers, which takes seconds. Of a signature
only names, annotations and defaults are needed, and they stand in the text. An annotation or a default is
evaluated in the names of its module; a name that another package defines becomes a class of which only the
module is known.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import dataclasses
import functools
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

NO_DEFAULT: Any = object()

_PACKAGE = "longspan"
_ROOT = Path(__file__).resolve().parents[2]
# Bases that give a class no parameters.
_BARE_BASES = ("object", "ABC", "Protocol", "Generic")


class Parameter(NamedTuple):
    """A parameter of a class or function; `default` is NO_DEFAULT where it has none."""

    name: str
    annotation: Any
    default: Any


class Signature(NamedTuple):
    """What a class or function takes.

    Attributes:
        parameters: those that can be given by name.
        takes_any_key: whether there is a `**kwargs`.
        supplied_by_run: parameters that the run supplies itself: no keys of a configuration.
        read_by_run: keys of a configuration, with their types, that the run reads itself: no parameters.

    """

    parameters: tuple[Parameter, ...]
    takes_any_key: bool
    supplied_by_run: tuple[str, ...]
    read_by_run: dict[str, Any]


class Unreadable(Exception):
    """The source does not show the signature: a decorator, a metaclass or a foreign base class makes it."""


def read_signature(target: str) -> Signature | None:
    """The signature of a dotted name; None where the source of this package does not show it."""
    with contextlib.suppress(Unreadable, SyntaxError):
        module, node = _find(target)
        if isinstance(node, ast.FunctionDef) and not node.decorator_list:
            supplied = module.attributes.get((node.name, "supplied_by_run"))
            return Signature(
                tuple(_arguments(module, node.args)),
                node.args.kwarg is not None,
                () if supplied is None else module.evaluate(supplied, tuple),
                {},
            )
        if isinstance(node, ast.ClassDef):
            classes = list(_with_bases(module, node))
            return Signature(
                *_of_class(classes),
                _attribute(classes, "supplied_by_run", ()),
                _attribute(classes, "read_by_run", {}),
            )
    return None


class _Imported(NamedTuple):
    """A name that an import statement binds: to a module where `name` is None."""

    module: str
    name: str | None


class _Module:
    """The names that a module's source binds at its top level, with the nodes that bind them."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.names: dict[str, ast.AST | _Imported] = {}
        self.attributes: dict[tuple[str, str], ast.expr] = {}
        self._bind(ast.parse(path.read_text(encoding="utf-8")).body)

    def _bind(self, statements: list[ast.stmt]) -> None:
        for node in statements:
            match node:
                case ast.ClassDef() | ast.FunctionDef():
                    self.names[node.name] = node
                case ast.Import():
                    for alias in node.names:
                        bound = alias.asname or alias.name.partition(".")[0]
                        self.names[bound] = _Imported(alias.name if alias.asname else bound, None)
                case ast.ImportFrom(module=str(), level=0):
                    for alias in node.names:
                        self.names[alias.asname or alias.name] = _Imported(str(node.module), alias.name)
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                    self.names[name] = value
                case ast.Assign(value=value):
                    for target in node.targets:
                        match target:
                            case ast.Name(id=name):
                                self.names[name] = value
                            case ast.Attribute(value=ast.Name(id=owner), attr=name):
                                self.attributes[owner, name] = value
                case ast.If():
                    # Such as `if TYPE_CHECKING`.
                    self._bind(node.body)

    def evaluate(self, node: ast.expr, kind: type = object) -> Any:
        """The value of an expression; raises Unreadable where these names give it none of that type."""
        scope = _Scope(self)
        try:
            value = eval(compile(ast.Expression(node), self.name, "eval"), scope, scope)
        except Exception as error:
            raise Unreadable(f"{self.name}: {ast.unparse(node)}: {error}") from error
        if not isinstance(value, kind):
            raise Unreadable(f"{self.name}: {ast.unparse(node)}")
        return value

    def annotation(self, node: ast.expr | None) -> Any:
        """The type that an annotation stands for; Any where it cannot be evaluated."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        with contextlib.suppress(Unreadable):
            return Any if node is None else self.evaluate(node)
        return Any


class _Scope(dict[str, Any]):
    """The names of a module as values, each worked out when it is asked for."""

    def __init__(self, module: _Module) -> None:
        super().__init__(__builtins__=builtins)
        self._module = module

    def __missing__(self, name: str) -> Any:
        if name not in self._module.names:
            raise KeyError(name)
        self[name] = value = _value(self._module, name)
        return value


class _Unknown(type):
    """The type of what is known by name alone: has any attribute, item and result, all of them as unknown."""

    def __getattr__(cls, name: str) -> _Unknown:
        if name.startswith("__"):
            raise AttributeError(name)
        return _unknown(cls.__module__, name)

    def __getitem__(cls, item: Any) -> _Unknown:
        return cls

    def __call__(cls, *args: Any, **kwargs: Any) -> _Unknown:
        return cls


def _unknown(module: str, name: str) -> _Unknown:
    return _Unknown(name, (), {"__module__": module})


def _value(module: _Module, name: str) -> Any:
    """The value of a name: a real one of the standard library, an expression's, or an unknown class."""
    node = module.names[name]
    if isinstance(node, _Imported) and node.module.partition(".")[0] in sys.stdlib_module_names:
        imported = importlib.import_module(node.module)
        return imported if node.name is None else getattr(imported, node.name)
    if isinstance(node, _Imported) and (node.name is None or _module(node.module) is None):
        return _unknown(node.module, node.name or node.module)
    with contextlib.suppress(Unreadable):
        home, found = _follow(module, name)
        if isinstance(found, ast.expr):
            return home.evaluate(found)
        return _unknown(home.name, name)
    return _unknown(module.name, name)


@functools.cache
def _module(name: str) -> _Module | None:
    """The module of a dotted name, where it is one of this package."""
    path = _ROOT.joinpath(*name.split("."))
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if name.partition(".")[0] == _PACKAGE and file.is_file():
            return _Module(name, file)
    return None


def _find(target: str) -> tuple[_Module, ast.AST]:
    """The node that defines a target, and the module in which it stands; raises Unreadable."""
    parts = target.split(".")
    module = _module(parts[0])
    for depth, part in enumerate(parts[1:], start=2):
        if module is None:
            break
        if part in module.names:
            # What a package's own file binds hides a module of the same name, as it does in Python.
            if depth < len(parts):
                break
            return _follow(module, part)
        module = _module(".".join(parts[:depth]))
    raise Unreadable(target)


def _follow(module: _Module, name: str) -> tuple[_Module, ast.AST]:
    """The node that defines a name, through the imports of this package; raises Unreadable."""
    node = module.names.get(name)
    if isinstance(node, _Imported):
        home = _module(node.module) if node.name is not None else None
        if home is None:
            raise Unreadable(f"{module.name}.{name}")
        return _follow(home, str(node.name))
    if node is None:
        raise Unreadable(f"{module.name}.{name}")
    return module, node


def _with_bases(module: _Module, node: ast.ClassDef) -> Iterator[tuple[_Module, ast.ClassDef] | None]:
    """A class and its bases in the order in which Python looks; None for one of another package."""
    if node.keywords:
        raise Unreadable(node.name)
    yield module, node
    for base in node.bases:
        name = base.value if isinstance(base, ast.Subscript) else base
        if isinstance(name, ast.Name):
            if name.id in _BARE_BASES:
                continue
            with contextlib.suppress(Unreadable):
                home, found = _follow(module, name.id)
                if isinstance(found, ast.ClassDef):
                    yield from _with_bases(home, found)
                    continue
        yield None


def _of_class(classes: list[tuple[_Module, ast.ClassDef] | None]) -> tuple[tuple[Parameter, ...], bool]:
    """The parameters of a class, and whether it takes any key; raises Unreadable."""
    for found in classes:
        if found is None:
            # A base of another package may have an __init__ of its own.
            raise Unreadable
        module, node = found
        if _is_dataclass(node):
            fields: dict[str, _Field] = {}
            for base in reversed(classes):
                if base is not None and _is_dataclass(base[1]):
                    fields |= {one.parameter.name: one for one in _fields(*base)}
            taken = [one for one in fields.values() if one.init]
            return tuple(one.parameter for one in sorted(taken, key=lambda one: one.keyword_only)), False
        if node.decorator_list:
            raise Unreadable(node.name)
        methods = {one.name: one for one in node.body if isinstance(one, ast.FunctionDef)}
        if "__new__" in methods:
            raise Unreadable(node.name)
        if (init := methods.get("__init__")) is not None:
            return tuple(_arguments(module, init.args))[1:], init.args.kwarg is not None
    return (), False


def _attribute(classes: list[tuple[_Module, ast.ClassDef] | None], name: str, otherwise: Any) -> Any:
    """The value that the first of some classes gives to an attribute."""
    for module, node in [found for found in classes if found is not None]:
        for statement in node.body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=bound)], value=value) if bound == name:
                    return module.evaluate(value, type(otherwise))
                case ast.AnnAssign(target=ast.Name(id=bound), value=ast.expr() as value) if bound == name:
                    return module.evaluate(value, type(otherwise))
    return otherwise


def _is_dataclass(node: ast.ClassDef) -> bool:
    names = [ast.unparse(one).rpartition("dataclasses.")[2] for one in node.decorator_list]
    return len(names) == 1 and names[0].partition("(")[0] == "dataclass" and "kw_only" not in names[0]


def _arguments(module: _Module, arguments: ast.arguments) -> Iterator[Parameter]:
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [*zip(positional, defaults, strict=True)][len(arguments.posonlyargs) :]
    for argument, default in [*pairs, *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]:
        value = NO_DEFAULT if default is None else module.evaluate(default)
        yield Parameter(argument.arg, module.annotation(argument.annotation), value)


class _Field(NamedTuple):
    """A field of a dataclass; `init` says whether `__init__` takes it."""

    parameter: Parameter
    init: bool = True
    keyword_only: bool = False


def _fields(module: _Module, node: ast.ClassDef) -> Iterator[_Field]:
    """The fields that a dataclass adds to those of its bases, or puts in their place."""
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if "ClassVar" in ast.unparse(statement.annotation):
            continue
        default = NO_DEFAULT if statement.value is None else module.evaluate(statement.value)
        init, keyword_only = True, False
        if isinstance(default, dataclasses.Field):
            init, keyword_only = default.init, default.kw_only is True
            if default.default_factory is not dataclasses.MISSING:
                default = default.default_factory()
            else:
                default = NO_DEFAULT if default.default is dataclasses.MISSING else default.default
        annotation = module.annotation(statement.annotation)
        yield _Field(Parameter(statement.target.id, annotation, default), init, keyword_only)
