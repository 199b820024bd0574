"""What a pickle would build, told from its instructions without following one of them. Light: the standard library.

A tuple is hashed through and through whenever it is a key, so forty of them, each of twice the one before, take hours
in one call that no other thread gets a turn in. No list of what may be rebuilt keeps them out.
"""

from __future__ import annotations

import pickletools

_MARK = -1
_TUPLES = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"})
_MADE_OF = frozenset({"REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST", "BINPERSID"})
"""Whatever these make may be as deep as what they make it of; lists and dicts are no keys."""


def deepest_tuple(text: bytes) -> int:
    """How many tuples lie in one another at most.

    Raises:
        ValueError, LookupError: this is no pickle.
    """
    stack: list[int] = []
    memo: dict[int, int] = {}
    deepest = 0
    for code, argument, _ in pickletools.genops(text):
        if code.name == "MARK":
            stack.append(_MARK)
        elif code.name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[int(str(argument))])
        elif code.name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[int(str(argument))] = stack[-1]
        elif code.name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        else:
            within = max(_take(stack, code), default=0)
            depth = within + 1 if code.name in _TUPLES else within if code.name in (*_MADE_OF, "DUP") else 0
            deepest = max(deepest, depth)
            stack.extend([depth] * len(code.stack_after))
    return deepest


def _take(stack: list[int], code: pickletools.OpcodeInfo) -> list[int]:
    """The depths of what an instruction takes from the stack."""
    taken: list[int] = []
    num_more = len(code.stack_before)
    if pickletools.markobject in code.stack_before:
        num_more = code.stack_before.index(pickletools.markobject)
        while (depth := stack.pop()) != _MARK:
            taken.append(depth)
    taken.extend(stack.pop() for _ in range(num_more))
    return taken
