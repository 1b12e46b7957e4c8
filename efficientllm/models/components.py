"""Looks a decoder's components up by the name of their module, and imports no other's.

Each module of `components/{blocks,mixers,positions,feedforwards}` exposes its class as `COMPONENT`.
"""

import importlib
from typing import Any

from efficientllm.config.load import ComponentKind, components
from efficientllm.errors import unknown_name


def component(kind: ComponentKind, name: str) -> Any:
    """Imports a component.

    Args:
        kind: Its place in the decoder.
        name: Its module's name.

    Returns:
        The class that the module exposes as `COMPONENT`.

    Raises:
        ParameterError: There is no such component.
    """
    known = components(kind)
    if name not in known:
        raise unknown_name(kind, name, known)
    return importlib.import_module(f"efficientllm.components.{kind}s.{name}").COMPONENT
