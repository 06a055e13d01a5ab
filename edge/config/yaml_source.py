"""A YAML file as plain values, each with its file and line.

The rules are the same for every hand-written file (profiles, fleets): a duplicate key is an error, an unknown key is an
error that suggests the nearest known one, and every error gives ``file:line: key.path``. Only this module parses YAML.
"""

from __future__ import annotations

import difflib
import functools
import re
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge.artifacts import masked_text
from edge.errors import ArtifactError, ProfileError

Key = tuple[str, ...]

_MAX_EXTENDS = 8
_MAX_NESTING = 100


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of YAML file: its name in messages, the hint if it is missing, and its keys that are paths.

    A path in ``paths`` is relative to its file, unless it is one of ``words``. ``convert`` may change the values of a
    file, such as their unit, before the file is merged over the one it extends.
    """

    name: str
    hint: str | None = None
    paths: frozenset[Key] = frozenset()
    words: frozenset[str] = frozenset()
    convert: Callable[[Document], None] | None = None


class Document:
    """A YAML file, perhaps merged over the file it extends, as plain values with the position of each key."""

    def __init__(self, path: Path, tree: dict[str, Any], places: dict[Key, tuple[Path, int]]) -> None:
        self.path = path
        self.tree = tree
        self.places = places

    @classmethod
    def read(cls, path: Path, kind: Kind, *, seen: tuple[Path, ...] = ()) -> Document:
        """Read ``path`` and merge it over the file of the same kind that it extends.

        Raises:
            ProfileError: the file is invalid; the error has ``file:line`` and, if known, the key.
        """
        document = cls.read_one(path, kind)
        parent_name = document.tree.pop("extends", None)
        document.tree.setdefault("name", path.stem)
        if parent_name is None:
            return document
        if not isinstance(parent_name, str):
            raise document.error(("extends",), f"must be the name of another {kind.name}")
        parent_path = path.parent / (parent_name if parent_name.endswith((".yaml", ".yml")) else f"{parent_name}.yaml")
        if not parent_path.is_file():
            known = [p.stem for p in sorted(path.parent.glob("*.yaml"))]
            raise document.error(("extends",), f"there is no {parent_path.name}{did_you_mean(parent_name, known)}")
        chain = (*seen, path)
        if parent_path.resolve() in {known.resolve() for known in chain}:
            names = " -> ".join(known.name for known in (*chain, parent_path))
            raise document.error(("extends",), f"extends itself in a cycle: {names}")
        if len(chain) > _MAX_EXTENDS:
            raise document.error(("extends",), f"more than {_MAX_EXTENDS} {kind.name}s deep")
        parent = cls.read(parent_path, kind, seen=chain)
        return cls(path, _merge(parent.tree, document.tree), {**parent.places, **document.places})

    @classmethod
    def read_one(cls, path: Path, kind: Kind) -> Document:
        """Read ``path`` without the file it extends.

        Raises:
            ProfileError: the file is invalid; the error has ``file:line`` and, if known, the key.
        """
        import yaml

        try:
            text = path.read_text(encoding="utf-8")
            root = yaml.compose(text, Loader=_loader(text))
        except FileNotFoundError as exc:
            raise ProfileError(f"there is no such {kind.name}", where=path, hint=kind.hint) from exc
        except (OSError, UnicodeDecodeError) as exc:
            raise ProfileError(f"cannot read: {exc}", where=path) from exc
        except yaml.YAMLError as exc:
            mark = getattr(exc, "problem_mark", None)
            line = f":{mark.line + 1}" if mark else ""
            problem = masked_text(str(getattr(exc, "problem", exc)))
            # The most common mistake; PyYAML's message for it does not mention tabs.
            hint = "indent with spaces: YAML does not allow tabs" if "'\\t'" in problem else None
            raise ProfileError(f"not YAML: {problem}", where=f"{path}{line}", hint=hint) from exc
        except RecursionError as exc:
            raise ProfileError("cannot parse YAML: nested too deeply", where=path) from exc
        if root is None:
            raise ProfileError("the file is empty", where=path)
        places: dict[Key, tuple[Path, int]] = {(): (path, root.start_mark.line + 1)}
        if not isinstance(root, yaml.MappingNode):
            raise ProfileError("must be a mapping of keys to values", where=f"{path}:1")
        # A second SafeLoader turns nodes into values, so that YAML's own type rules apply.
        try:
            value = _Values(path, kind, places, yaml.SafeLoader("")).of(root, ())
        except RecursionError as exc:
            raise ProfileError("an alias refers to the value that contains it", where=path) from exc
        document = cls(path, value, places)
        if kind.convert is not None:
            kind.convert(document)
        return document

    def error(self, key: Key, what: str, *, hint: str | None = None) -> ProfileError:
        """Make a ProfileError that points at ``key``, or at its nearest parent that is in a file."""
        at = key
        while at and at not in self.places:
            at = at[:-1]
        path, line = self.places.get(at, (self.path, 1))
        # A value in the wrong place is quoted, and may be a URL with a password.
        text = masked_text(f"{'.'.join(key)}: {what}" if key else what)
        return ProfileError(text, where=f"{path}:{line}", hint=hint)

    def error_from(self, exc: msgspec.ValidationError, struct: type[msgspec.Struct], *, at: Key = ()) -> ProfileError:
        """Translate msgspec's `` - at `$.a.b[0]` `` into file, line and key; ``struct`` is the type at ``at``."""
        text = str(exc)
        match = re.search(r" - at `\$([^`]*)`$", text)
        raw = match.group(1) if match else ""
        key = tuple(part for part in re.sub(r"\[[^\]]*\]", "", raw).split(".") if part)
        what = text[: match.start()] if match else text
        missing = re.match(r"Object missing required field `(\w+)`", what)
        if missing:
            return self.error((*at, *key, missing.group(1)), "is missing")
        choice = re.match(r"Invalid enum value '(.*)'", what)
        if choice:
            allowed = _choices(struct, key)
            what = f"{choice.group(1)!r} is not one of {', '.join(allowed)}{did_you_mean(choice.group(1), allowed)}"
        return self.error((*at, *key), what[0].lower() + what[1:])

    def reject_unknown(self, struct: type[msgspec.Struct], tree: dict[str, Any], at: Key = ()) -> None:
        """Raise an error for the first unknown key, with the nearest known one."""
        fields = _types_of_fields(struct)
        for name, value in tree.items():
            if name not in fields:
                raise self.error((*at, name), f"unknown key{did_you_mean(name, fields)}")
            section = fields[name]
            if isinstance(section, type) and issubclass(section, msgspec.Struct) and isinstance(value, dict):
                self.reject_unknown(section, value, (*at, name))


@functools.cache
def _types_of_fields(struct: type[msgspec.Struct]) -> dict[str, Any]:
    return {field.encode_name: field.type for field in msgspec.structs.fields(struct)}


class _Values:
    """Turns nodes into plain values: records the line of each key, refuses duplicates, resolves paths."""

    def __init__(self, path: Path, kind: Kind, places: dict[Key, tuple[Path, int]], loader: Any) -> None:  # noqa: ANN401
        self._path = path
        self._paths, self._words = kind.paths, kind.words
        self._places = places
        self._loader = loader

    def of(self, node: Any, at: Key) -> Any:  # noqa: ANN401
        """Return the plain value of the node at the key ``at``."""
        import yaml

        if not isinstance(node, yaml.MappingNode):
            return self._scalar(node, at)
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ProfileError("a key must be a string", where=f"{self._path}:{line}")
            if key_node.tag == "tag:yaml.org,2002:merge":
                for part in value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]:
                    found = self.of(part, at)
                    if not isinstance(found, dict):
                        raise ProfileError("<< merges mappings only", where=f"{self._path}:{line}")
                    merged = {**found, **merged}
                continue
            name = str(key_node.value)
            key = (*at, name)
            if name in result:
                raise ProfileError(f"{masked_text('.'.join(key))}: duplicate key", where=f"{self._path}:{line}")
            self._places[key] = (self._path, line)
            result[name] = self.of(value_node, key)
        return {**merged, **result}

    def _scalar(self, node: Any, at: Key) -> Any:  # noqa: ANN401
        import yaml

        try:
            value = self._loader.construct_object(node, deep=True)
            if at in self._paths and isinstance(value, str) and value not in self._words:
                return str((self._path.parent / Path(value).expanduser()).resolve())
        except (yaml.YAMLError, ValueError, OverflowError, RuntimeError) as exc:
            # An unknown tag, an invalid date or number, the ~home of an unknown user, a path with NUL.
            what = masked_text(f"{'.'.join(at)}: {getattr(exc, 'problem', exc)}")
            raise ProfileError(what, where=f"{self._path}:{node.start_mark.line + 1}") from exc
        return value


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for name, value in over.items():
        below = merged.get(name)
        merged[name] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _choices(struct: type[msgspec.Struct], key: Key) -> list[str]:
    """Return the allowed words at ``key``: the Literal in the field's type."""
    kind: Any = struct
    for name in key:
        while not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
            # One of several: the last type of dict[str, X] and the first of tuple[X, ...].
            arguments = typing.get_args(kind)
            if not arguments:
                return []
            kind = arguments[-1] if typing.get_origin(kind) is dict else arguments[0]
        kind = next((field.type for field in msgspec.structs.fields(kind) if field.encode_name == name), None)
    return [str(word) for word in _literals(kind)]


def _literals(kind: Any) -> Iterator[Any]:  # noqa: ANN401
    if typing.get_origin(kind) is Literal:
        yield from typing.get_args(kind)
    elif typing.get_origin(kind) in {typing.Union, types.UnionType}:
        for member in typing.get_args(kind):
            yield from _literals(member)


def parse_plain_yaml(data: bytes, *, where: str) -> dict[str, Any]:
    """Parse a YAML file from another tool; aliases, which may expand to gigabytes, and tags are refused.

    Raises:
        ArtifactError: the file is not such YAML, or not a mapping.
    """
    import yaml

    try:
        text = data.decode()
        if _nesting(text) > _MAX_NESTING:
            # PyYAML takes time with the square of it.
            raise ArtifactError("cannot parse YAML: nested too deeply", where=where)
        loader = _loader(text)
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
                line = event.start_mark.line + 1 if event.start_mark is not None else 1
                raise ArtifactError("aliases and tags are not supported here", where=f"{where}:{line}")
        content = yaml.load(text, Loader=loader)  # noqa: S506
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise ArtifactError("cannot parse YAML", where=where) from exc
    if not isinstance(content, dict):
        raise ArtifactError("not a mapping of keys to values", where=where)
    return content


def _loader(text: str) -> Any:  # noqa: ANN401
    """Return the safe loader of libyaml, which is several times as fast, or PyYAML's own.

    PyYAML's own is for texts that libyaml refuses, because its messages say more, and for deep ones, because libyaml's
    has no limit to its recursion.
    """
    import yaml

    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = documents = 0
    try:
        for event in yaml.parse(text, Loader=fast):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            documents += isinstance(event, yaml.DocumentStartEvent)
            if depth > _MAX_NESTING or documents > 1 or isinstance(event, yaml.AliasEvent):
                return yaml.SafeLoader
    except yaml.YAMLError:
        return yaml.SafeLoader
    return fast


def _nesting(text: str) -> int:
    """Return the deepest nesting of brackets and of ``- `` in one line, at least; brackets in texts count as well."""
    deepest = depth = 0
    for sign in text:
        depth += (sign in "[{") - (sign in "]}")
        deepest = max(deepest, depth)
    return max(deepest, *(line.count("- ") for line in text.splitlines()), 0)


def did_you_mean(word: str, known: typing.Iterable[str]) -> str:
    """Return `` (did you mean …?)`` with the nearest of the ``known`` words, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
