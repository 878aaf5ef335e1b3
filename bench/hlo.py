"""Reads a compiled program's text (XLA's HLO): what its devices send, multiply and hold.

XLA's own cost analysis counts the body of a loop once, and towers are loops over their blocks.
Here everything is multiplied by how often it runs. Sizes in the text of a partitioned program are
those of one device.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_TYPE = r"\((?:[^()]|\([^()]*\))*\)|\S+"
_INSTRUCTION = re.compile(rf"^\s+(?:ROOT )?%?([\w.\-]+) = ({_TYPE}) ([\w\-]+)\(([^)]*)\)(.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.\-]+)")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_TABLE = re.compile(r"^(\d+) (?:\"(.*)\"|\{(.*)\})$")
_ARRAY = re.compile(r"(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
# How much of its result's size each of n devices sends in a collective, by the bandwidth-optimal
# algorithms (rings; Thakur et al., 2005, https://doi.org/10.1177/1094342005051521): a gather sends
# every other device's part once, a reduction that scatters as much (its result is one of n parts),
# and an all-reduce is the two in a row.
_SHARE_SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One communication of a program."""

    kind: str  # XLA's name of it, e.g. "all-reduce"
    size: int  # bytes of its result on each device
    devices: int  # that take part in one group
    times: int  # how often it runs in one execution of the program
    loops: int  # around it

    @property
    def sent(self) -> float:
        """Bytes that each device sends in all."""
        return self.times * self.size * _SHARE_SENT[self.kind](self.devices)


@dataclasses.dataclass(frozen=True)
class Operation:
    """One instruction of a program, with what is fused into it."""

    kinds: frozenset[str]  # XLA's names of what it computes, its own and those of the fused ones
    shape: tuple[int, ...]  # of its result, () of a tuple
    name: str  # JAX's primitives that it comes from, "jit(train_step)/transpose(jvp())/..."
    frames: tuple[str, ...]  # functions and files that called it, "FILE:FUNCTION", innermost first
    is_batched: bool  # a matrix product with batch dimensions
    flops: float  # of its matrix products


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    kind: str
    operands: tuple[str, ...]
    rest: str


class Program:
    """The text of a compiled program, `jax.stages.Compiled.as_text()`."""

    def __init__(self, text: str, devices: int):
        """`devices` is how many run it: groups of a collective that are not named are all."""
        self._devices = devices
        self._computations: dict[str, list[_Instruction]] = {}
        self._tables: dict[str, dict[str, str]] = {}
        self._entry, current, table = "", [], {}
        for line in text.splitlines():
            if line.isalpha():  # FileNames, FunctionNames, FileLocations, StackFrames
                table = self._tables.setdefault(line, {})
            elif row := _TABLE.match(line):
                table[row[1]] = row[2] or row[3]
            elif begin := _COMPUTATION.match(line):
                current = self._computations.setdefault(begin[2], [])
                self._entry = begin[2] if begin[1] else self._entry
            elif match := _INSTRUCTION.match(line):
                name, type_, kind, operands, rest = match.groups()
                names = tuple(re.findall(r"%([\w.\-]+)", operands))
                current.append(_Instruction(name, type_, kind, names, rest))
        if not self._entry:
            raise ValueError("this is not the text of a compiled program: it has no entry")

    @functools.cached_property
    def collectives(self) -> list[Collective]:
        """Every communication, in no order."""
        found = []
        for name, times, loops in self._runs():
            for instruction in self._computations[name]:
                kind = instruction.kind.removesuffix("-start")
                if kind not in _SHARE_SENT:
                    continue
                if kind != instruction.kind:
                    raise ValueError(f"{instruction.name} is asynchronous, which this cannot read")
                size = sum(int(width * math.prod(n)) for width, n in _arrays(instruction.type))
                group = _group_size(instruction.rest, self._devices)
                found.append(Collective(kind, size, group, times, loops))
        return found

    @functools.cached_property
    def matmul_flops(self) -> float:
        """Floating-point operations of all matrix products: two for each multiplication."""
        return sum(times * _flops(self._computations[name]) for name, times, _ in self._runs())

    def operations(self) -> dict[str, Operation]:
        """Every instruction by its name."""
        return {i.name: self._operation(i, c) for c in self._computations.values() for i in c}

    def _operation(self, instruction: _Instruction, beside: list[_Instruction]) -> Operation:
        inside, flops = [instruction], 0.0
        for called in _CALLED.findall(instruction.rest) if instruction.kind == "fusion" else ():
            inside += self._computations[called]
            flops += _flops(self._computations[called])
        if instruction.kind == "dot":
            flops = _flops(beside, instruction)
        found = re.search(r'op_name="([^"]*)"', instruction.rest)
        frame = re.search(r"stack_frame_id=(\d+)", instruction.rest)
        shapes = [shape for _, shape in _arrays(instruction.type)]
        return Operation(
            kinds=frozenset(i.kind for i in inside) - {"fusion", "parameter", "constant"},
            shape=shapes[0] if len(shapes) == 1 else (),
            name=found[1] if found else "",
            frames=tuple(self._frames(frame[1])) if frame else (),
            is_batched=any(i.kind == "dot" and "lhs_batch_dims={" in i.rest for i in inside),
            flops=flops,
        )

    def _frames(self, number: str) -> Iterator[str]:
        """The stack of calls; `parent_frame_id` is one more than the row's number, 1 has none."""
        while row := self._tables.get("StackFrames", {}).get(number):
            location, parent = re.findall(r"=(\d+)", row)
            fields = dict(re.findall(r"(\w+)=(\d+)", self._tables["FileLocations"][location]))
            file = self._tables["FileNames"][fields["file_name_id"]]
            name = self._tables["FunctionNames"][fields["function_name_id"]]
            yield f"{file}:{name}"
            number = str(int(parent) - 1)

    @functools.cached_property
    def largest_array(self) -> int:
        """Elements of the largest array that any instruction reads or writes on one device."""
        types = [i.type for instructions in self._computations.values() for i in instructions]
        return max(math.prod(shape) for type_ in types for _, shape in _arrays(type_))

    def _runs(self) -> Iterator[tuple[str, int, int]]:
        """Each call of a computation: its name, how often it runs, and the loops around it."""
        waiting = [(self._entry, 1, 0)]
        while waiting:
            name, times, loops = waiting.pop()
            yield name, times, loops
            for instruction in self._computations[name]:
                rounds, is_loop = 1, instruction.kind == "while"
                if is_loop:
                    if (turns := _TURNS.search(instruction.rest)) is None:
                        name = instruction.name
                        raise ValueError(f"the compiler does not know how often {name} runs")
                    rounds = int(turns[1])
                for called in _CALLED.findall(instruction.rest):
                    waiting.append((called, times * rounds, loops + is_loop))


def _flops(instructions: list[_Instruction], only: _Instruction | None = None) -> float:
    """Operations of the matrix products of a computation, or of one of them."""
    types, total = {i.name: i.type for i in instructions}, 0.0
    for dot in [i for i in instructions if i.kind == "dot"] if only is None else [only]:
        (_, left), (_, result) = _arrays(types[dot.operands[0]])[0], _arrays(dot.type)[0]
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.rest)
        contracted = [left[int(axis)] for axis in axes[1].split(",") if axis]
        total += 2.0 * math.prod(result) * math.prod(contracted)
    return total


def _arrays(type_: str) -> list[tuple[float, tuple[int, ...]]]:
    """Bytes an element and shape of each array of a type; a tuple has several."""
    return [
        (1 if name == "pred" else int(bits) / 8, tuple(int(n) for n in dims.split(",") if n))
        for name, bits, dims in _ARRAY.findall(type_)
    ]


def _group_size(attributes: str, devices: int) -> int:
    """Devices in each group of a collective, from any of the ways in which XLA writes them."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(listed[1].split(","))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(
            int(part or sizes[name])
            for name, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        )
    return devices
