"""What a run folder or checkpoint from elsewhere may make this process do: build known classes, nothing else.

A config that a person composed may name any target. One that was read from a file may name classes only, and
only classes whose resolved identity (module and qualified name, not the path that led there) lies in a trusted
package. Functions of trusted packages are out too: torch.hub.load and its like run what they fetch.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ssl_runner.errors import RequestError

LONGEST = 200  # characters of a class's path
PACKAGES = ("ssl_runner", "torch.nn", "torch.optim", "timm.models", "transformers.models")


def check_trust(config: Any, origin: str, also: Sequence[str] = ()) -> None:
    """Raises RequestError if a config read from `origin` names a target that it may not.

    also: top-level packages that the person at the command line named with trust=[...].
    """
    faults = [f"  {path}: {fault}" for path, fault in _faults(config, "", (*PACKAGES, *also))]
    if faults:
        raise RequestError(
            f"{origin}: its config asks for what a config from a file may not, so nothing of it was run:\n"
            + "\n".join(faults)
            + "\nIf these are your own classes, say so with trust=[your_package]"
        )


def _faults(node: Any, path: str, packages: Sequence[str]) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            here = f"{path}.{key}".lstrip(".")
            if key == "_target_":
                fault = _untrusted(value, packages)
                if fault:
                    yield here, fault
            else:
                yield from _faults(value, here, packages)
    elif isinstance(node, (list, tuple)):
        for n, value in enumerate(node):
            yield from _faults(value, f"{path}[{n}]", packages)
    elif isinstance(node, str) and "${" in node:
        yield path, f"interpolation {node!r}; a stored config holds plain values"


def _untrusted(target: Any, packages: Sequence[str]) -> str | None:
    if not isinstance(target, str) or len(target) > LONGEST or not _inside(target, packages):
        return f"{str(target)[:LONGEST]!r} is not in {', '.join(packages)}"
    found = _resolve(target, packages)
    if not inspect.isclass(found):
        return f"{target!r} is no class of a trusted package"
    identity = f"{found.__module__}.{found.__qualname__}"
    if not _inside(identity, packages):
        return f"{target!r} is really {identity!r}"
    if identity.startswith(("torch.", "timm.", "transformers.")):
        from torch import nn, optim

        if not issubclass(found, (nn.Module, optim.Optimizer)):
            return f"{target!r} is neither a module nor an optimiser"
    return None


def _inside(name: str, packages: Sequence[str]) -> bool:
    return any(name.startswith(package + ".") for package in packages)


def _resolve(target: str, packages: Sequence[str]) -> Any:
    """The object a dotted path leads to, importing modules of trusted packages only; None if there is none."""
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:cut])
        if not any(module == p or module.startswith(p + ".") for p in packages):
            return None
        try:
            found: Any = importlib.import_module(module)
        except (ModuleNotFoundError, ValueError):  # no such module, or no name that one could have
            continue
        for part in parts[cut:]:
            found = getattr(found, part, None)
        return found
    return None


# -- secrets ---------------------------------------------------------------------------------------------------------

SECRET = re.compile(r"(?i)(^|[._-])((api|access|secret|private)_?key|secret|(auth|access|api)_?token|passw(or)?d)$")
VARIABLE = re.compile(r"(?i)(key|token|secret|passw(or)?d|credentials?)(_id)?$")
ADDRESS = re.compile(r"(://[^/@\s:]+):[^/@\s]+@")
SHORTEST = 8  # characters of a secret; less may stand anywhere by chance


def check_secrets(config: Any) -> None:
    """Raises RequestError if a composed config holds a secret: it would be written to the run folder, into every
    checkpoint and to loggers, and be handed on with them. Nothing here needs one: libraries read their own from the
    environment.

    A secret is the value of an environment variable called so, a password in an address, or a value under a key that
    is called so. The message does not repeat it.
    """
    faults = [f"  {path}: {fault}" for path, fault in _secrets(config, "", _known_secrets())]
    if faults:
        raise RequestError(
            "a config is stored and handed on, and this one holds a secret:\n"
            + "\n".join(dict.fromkeys(faults))
            + "\nLeave it to the environment, where the library that needs it looks for it"
        )


def masked(text: str) -> str:
    """What may be stored of a text that a person typed: without the secrets that `check_secrets` knows."""
    key, equals, _ = text.partition("=")
    if equals and SECRET.search(key):
        return f"{key}=***"
    for value in _known_secrets().values():
        text = text.replace(value, "***")
    return ADDRESS.sub(r"\1:***@", text)


def _known_secrets() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if VARIABLE.search(name) and len(value) >= SHORTEST}


def _secrets(node: Any, path: str, known: dict[str, str]) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            here = f"{path}.{key}".lstrip(".")
            if SECRET.search(str(key)) and isinstance(value, str) and value:
                yield here, "is called like one"
            yield from _secrets(value, here, known)
    elif isinstance(node, (list, tuple)):
        for n, value in enumerate(node):
            yield from _secrets(value, f"{path}[{n}]", known)
    elif isinstance(node, str):
        for name, value in known.items():
            if value in node:
                yield path, f"has the value of the environment variable {name}"
        if ADDRESS.search(node):
            yield path, "has a password in an address"
