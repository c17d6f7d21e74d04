"""Accelerators by name: what their vendors publish, so that programs can be planned without them.

    target = Target.parse("tpu:v5e:2x4")  # eight chips of v5e
    target.chip.memory, target.devices

Names: `cpu`; `tpu:<chip>:<shape>`, the shape of a slice as Google names it (2x4, 2x2x1, 4x8);
`gpu:<chip>:<number>`.

Sources, read 2026-11: Google Cloud's pages on TPU v4, v5e, v5p and v6e ("System architecture"; the
interconnect there is given both ways together, here one way); NVIDIA's data sheets of A100, H100
and H200 (dense rates, half of those with sparsity; NVLink is given both ways together there too).
"""

from __future__ import annotations

import dataclasses
import math

from taskvec_jax.errors import TaskVecError

KINDS = ("cpu", "tpu", "gpu")
GPUS_A_HOST = 8
GIB = 1 << 30
SHARE = 0.9  # of a GPU's memory that is planned with; the rest goes to its runtime
RESERVED = GIB // 4  # of a TPU's memory, by its compiler


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
      kind: one of `KINDS`.
      memory: bytes.
      bandwidth: of that memory, bytes a second.
      link: bytes a second one way to the other devices of a slice or a host, all links together.
      peak: FLOP/s of products, by how they are computed: "bfloat16"; "high" and "highest" are
        float32 products at those precisions; "default" is what float32 becomes if nobody says.
      one_host: the most devices in one host.
      chips_a_host: how many each host has where there are several.
      names: parts of `device_kind`, by which JAX's devices are recognised.
      topology: what libtpu calls the chip.
      slice: what Google calls a slice, with {n} for the number of chips, {cores} for twice as many.
      gpu: fields of XLA's description of a GPU.
    """

    kind: str
    memory: float
    bandwidth: float
    link: float
    peak: dict[str, float]
    one_host: int = GPUS_A_HOST
    chips_a_host: int = GPUS_A_HOST
    names: tuple[str, ...] = ()
    topology: str = ""
    slice: str = ""
    gpu: dict[str, int | float] = dataclasses.field(default_factory=dict)

    @property
    def usable(self) -> float:
        """Bytes of memory that programs can be planned with."""
        return self.memory - RESERVED if self.kind == "tpu" else SHARE * self.memory


def _tpu(
    memory: float,
    bandwidth: float,
    link: float,
    bfloat16: float,
    topology: str,
    slice_name: str,
    *names: str,
) -> Chip:
    """A TPU, whose float32 products are sums of 1, 3 or 6 products of bfloat16."""
    peak = {"bfloat16": bfloat16, "default": bfloat16, "high": bfloat16 / 3}
    peak["highest"] = bfloat16 / 6
    one_host = 8 if topology in ("v5e", "v6e") else 4
    return Chip("tpu", memory, bandwidth, link, peak, one_host, 4, names, topology, slice_name)


def _gpu(
    memory: float,
    bandwidth: float,
    link: float,
    rates: tuple[float, float, float],
    gpu: dict[str, int | float],
    *names: str,
) -> Chip:
    """A GPU of NVIDIA; rates of bfloat16, TF32 and float32 in FLOP/s."""
    bfloat16, tf32, float32 = rates
    peak = {"bfloat16": bfloat16, "default": tf32, "high": tf32, "highest": float32}
    return Chip("gpu", memory, bandwidth, link, peak, names=names, gpu=gpu)


_AMPERE: dict[str, int | float] = {
    "major": 8,
    "minor": 0,
    "core_count": 108,
    "clock_rate_ghz": 1.41,
    "l2": 40 << 20,
}
_AMPERE |= {"shared": 167_936, "shared_block": 166_912, "fpus_per_core": 64}
_HOPPER: dict[str, int | float] = {
    "major": 9,
    "minor": 0,
    "core_count": 132,
    "clock_rate_ghz": 1.98,
    "l2": 50 << 20,
}
_HOPPER |= {"shared": 233_472, "shared_block": 232_448, "fpus_per_core": 128}
_A100 = (312e12, 156e12, 19.5e12)
_H100 = (989e12, 494.5e12, 67e12)
_PCIE = (756e12, 378e12, 51e12)

CHIPS: dict[str, dict[str, Chip]] = {
    "tpu": {
        "v4": _tpu(32 * GIB, 1228e9, 300e9, 275e12, "v4", "v4-{cores}", "TPU v4"),
        "v5e": _tpu(
            16 * GIB, 819e9, 200e9, 197e12, "v5e", "v5litepod-{n}", "TPU v5 lite", "TPU v5e"
        ),
        "v5p": _tpu(95 * GIB, 2765e9, 600e9, 459e12, "v5", "v5p-{cores}", "TPU v5"),
        "v6e": _tpu(32 * GIB, 1640e9, 400e9, 918e12, "v6e", "v6e-{n}", "TPU v6"),
    },
    "gpu": {
        "a100-40": _gpu(40 * GIB, 1555e9, 300e9, _A100, _AMPERE, "A100-SXM4-40GB"),
        "a100-80": _gpu(80 * GIB, 2039e9, 300e9, _A100, _AMPERE, "A100"),
        "h100-pcie": _gpu(
            80 * GIB, 2039e9, 32e9, _PCIE, _HOPPER | {"core_count": 114}, "H100 PCIe"
        ),
        "h100": _gpu(80 * GIB, 3352e9, 450e9, _H100, _HOPPER, "H100"),
        "h200": _gpu(141e9, 4800e9, 450e9, _H100, _HOPPER, "H200"),
    },
}
_CPU = Chip("cpu", math.inf, math.inf, math.inf, {})


@dataclasses.dataclass(frozen=True)
class Target:
    """Equal devices of a kind that programs are compiled for.

    Attributes:
      text: as it is named.
      name: of the chip.
      chip: one of them.
      shape: of the slice; of GPUs and CPUs, how many.
    """

    text: str
    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def devices(self) -> int:
        """How many there are."""
        return math.prod(self.shape)

    @property
    def hosts(self) -> int:
        """How many machines they stand in."""
        if self.devices <= self.chip.one_host:
            return 1
        return -(-self.devices // self.chip.chips_a_host)

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str) -> Target:
        """Reads `cpu`, `tpu:v5e:2x4` or `gpu:h100:8`.

        Raises:
          TaskVecError: anything else; it says what there is.
        """
        kind, _, rest = text.partition(":")
        name, _, size = rest.partition(":")
        if text == "cpu":
            return cls(text, "cpu", _CPU, (1,))
        if kind not in CHIPS or name not in CHIPS[kind]:
            known = [f"{kind}:{name}" for kind, chips in CHIPS.items() for name in chips]
            raise TaskVecError(
                f"target {text!r} is not known; allowed: cpu, {', '.join(known)}, each of tpu and"
                " gpu with a size, such as tpu:v5e:2x4 and gpu:h100:8"
            )
        words = size.split("x") if kind == "tpu" else [size]
        if not all(word.isdecimal() and int(word) > 0 for word in words) or len(words) > 3:
            example = "2x4, the shape of the slice" if kind == "tpu" else "8, how many there are"
            raise TaskVecError(
                f"target {text!r}: cannot read the size {size!r}; it is like {example}"
            )
        shape = tuple(map(int, words))
        if kind == "gpu" and shape[0] > GPUS_A_HOST and shape[0] % GPUS_A_HOST:
            raise TaskVecError(
                f"target {text!r}: more than {GPUS_A_HOST} GPUs are whole hosts of {GPUS_A_HOST}"
            )
        return cls(text, name, CHIPS[kind][name], shape)


def chip_of(device_kind: str) -> Chip | None:
    """The chip that JAX's name of a device stands for; None: it is not known here."""
    found = [
        (len(name), chip)
        for chips in CHIPS.values()
        for chip in chips.values()
        for name in chip.names
        if name in device_kind
    ]  # "TPU v5 lite" holds "TPU v5", the name of v5p, too: the longest counts
    return max(found, key=lambda one: one[0])[1] if found else None
