"""Which layers of a backbone adapters go on."""

from __future__ import annotations

import re
from difflib import get_close_matches

from torch import nn

from medseqft_kit.errors import AdapterError
from medseqft_kit.lora.layers import ADAPTERS


def targeted(backbone: nn.Module, targets: str | tuple[str, ...]) -> dict[str, nn.Module]:
    """The plain convolution and linear layers of `backbone` that `targets` names, by their names in it.

    Raises
    ------
    AdapterError
        If a target matches nothing; the nearest names are listed.
    """
    found = {name: module for name, module in backbone.named_modules() if type(module) in ADAPTERS}
    return {name: found[name] for name in match_targets(tuple(found), targets)}


def match_targets(names: tuple[str, ...], targets: str | tuple[str, ...]) -> tuple[str, ...]:
    """Those of `names` that a target matches, in the order of `names`.

    >>> match_targets(("net.qkv", "net.proj"), ("qkv",))
    ('net.qkv',)
    """
    matched = {"all": set(names)} if targets == "all" else {target: _matches(names, target) for target in targets}
    unmatched = [target for target, hits in matched.items() if not hits]
    if unmatched:
        raise AdapterError(
            "a LoRA target matches no convolution or linear layer of the backbone.",
            found=", ".join(map(repr, unmatched)),
            expected="; ".join(f"{target!r}: one of {', '.join(_nearest(names, target))}" for target in unmatched),
            next_step="correct `lora.targets`; 'all' takes every such layer",
        )
    chosen = set().union(*matched.values())
    return tuple(name for name in names if name in chosen)


def _matches(names: tuple[str, ...], target: str) -> set[str]:
    if target in names:
        return {target}
    try:
        pattern = re.compile(target)
    except re.error as problem:
        raise AdapterError(
            f"the LoRA target {target!r} is no regular expression.", found=str(problem), expected="a name or a pattern"
        ) from problem
    return {name for name in names if name.endswith(f".{target}") or pattern.fullmatch(name)}


def _nearest(names: tuple[str, ...], target: str) -> list[str]:
    """Full names and endings that look like `target`; the first few names if none does."""
    length = target.count(".") + 1
    endings = {".".join(name.split(".")[-parts:]) for name in names for parts in (length, length + 1)}
    containing = [name for name in names if target in name]
    close = get_close_matches(target, sorted(endings | set(names)), n=3, cutoff=0.5)
    return list(dict.fromkeys([*close, *containing]))[:4] or [*names[:4]] or ["(the backbone has no such layer)"]
