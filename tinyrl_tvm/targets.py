# SPDX-License-Identifier: Apache-2.0
"""The cores a policy can be compiled for, and the boards a project can be generated for: one table each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tinyrl_tvm.errors import TinyrlError, unknown_name

if TYPE_CHECKING:
    from tvm.target import Target as TvmTarget

    from schedules import LlvmOptions


@dataclass(frozen=True)
class Target:
    """A core: how TVM's LLVM is told of it, and how a stock C compiler is.

    `kernels` names the schedule rules in `schedules.RULES`; what they give is printed as assembly under `guard`, the
    preprocessor condition for which it takes the place of the C twin; without a guard they are printed as C. Assembly is
    for int8 policies alone where a core has no `float_unit`: the C twin does as well there, and needs no libm.
    A triple in `llvm` has all four parts: of three LLVM takes "eabi" for the system, and then calls soft floats by
    names that libgcc does not have for Armv6-M.
    """

    name: str
    summary: str
    kernels: str
    guard: str | None = None
    float_unit: bool = True
    cflags: tuple[str, ...] = ()
    llvm: Mapping[str, object] = field(default_factory=dict)

    def tvm(self, options: LlvmOptions | None = None) -> TvmTarget:
        """The target as TVM's LLVM knows it, with what a kernel asks for beyond it."""
        from tvm.target import Target as TvmTarget

        # of the width TVM warns where it has to guess; no kernel's code depends on it
        told: dict[str, Any] = {"kind": "llvm", "num-cores": 1, "vector-width": 128, **self.llvm}
        if options and options.attributes:
            told["mattr"] = [*told.get("mattr", []), *options.attributes]
        if options and options.flags:
            told["cl-opt"] = list(options.flags)
        return TvmTarget(told)


@dataclass(frozen=True)
class Architecture:
    """What the boards of one instruction set share.

    `name` is the folder of the template `baremetal` with their start-up code, `compiler` and `emulator` are in
    `toolchain.TOOLS`; `c_library` tells the compiler of a C library that is not its own.
    """

    name: str
    compiler: str
    emulator: str
    emulator_options: tuple[str, ...] = ()
    c_library: str = ""

    @property
    def compiler_prefix(self) -> str:
        return self.compiler.removesuffix("gcc")


@dataclass(frozen=True)
class Uart:
    """A serial line: `driver` is a file of the template baremetal/uart, `clock_hz` what its baud rate is divided from,
    `pins` those of transmitter and receiver where they can be chosen."""

    driver: str
    address: int
    clock_hz: int
    pins: tuple[int, int] | None = None


@dataclass(frozen=True)
class Board:
    """A board QEMU can emulate. Sizes in bytes; `tick_hz` is the rate of its tick counter under `-icount shift=0`,
    where an instruction takes a nanosecond."""

    name: str
    summary: str
    target: str
    architecture: Architecture
    machine: str
    flash_origin: int
    flash_bytes: int
    ram_origin: int
    ram_bytes: int
    tick_hz: int
    uart: Uart

    def __post_init__(self) -> None:
        assert self.target in TARGETS
        assert 100 * INSTRUCTIONS_HZ % self.tick_hz == 0

    @property
    def emulator_arguments(self) -> tuple[str, ...]:
        """Of the emulator, less the firmware: an instruction a nanosecond, console and files by semihosting."""
        return (
            *self._machine_arguments,
            *("-serial", "none"),
            *("-chardev", "stdio,id=console", "-semihosting-config", "enable=on,target=native,chardev=console"),
        )

    @property
    def clock_hz(self) -> int | None:
        """Of the core, by which its ticks go; None where ticks are instructions, and the machine has no clock to speak of."""
        return None if self.tick_hz == INSTRUCTIONS_HZ else self.tick_hz

    @property
    def serial_emulator_arguments(self) -> tuple[str, ...]:
        """Likewise, with the serial line as console and no debugger."""
        return (*self._machine_arguments, "-serial", "stdio")

    @property
    def _machine_arguments(self) -> tuple[str, ...]:
        return (
            *("-M", self.machine, *self.architecture.emulator_options, "-icount", "shift=0"),
            *("-display", "none", "-monitor", "none"),
        )

    @property
    def instructions_per_100_ticks(self) -> int:
        return 100 * INSTRUCTIONS_HZ // self.tick_hz


INSTRUCTIONS_HZ = 1_000_000_000  # of virtual time

TARGETS = {
    target.name: target
    for target in (
        Target(
            "cortex-m55",
            "Arm Cortex-M55 with Helium (MVE integer and float)",
            kernels="mve",
            guard="defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 2)",
            cflags=("-mcpu=cortex-m55", "-mthumb", "-mfloat-abi=hard"),
            llvm={
                "mtriple": "thumbv8.1m.main-none-eabihf",
                "mcpu": "cortex-m55",
                "mattr": ["+mve.fp"],
                "mfloat-abi": "hard",
            },
        ),
        Target(
            "cortex-m33",
            "Arm Cortex-M33 with DSP and single-precision FPU",
            kernels="dsp",
            guard="defined(__ARM_ARCH_8M_MAIN__) && defined(__ARM_FEATURE_DSP) && defined(__ARM_FP)",
            cflags=("-mcpu=cortex-m33", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv5-sp-d16"),
            llvm={
                "mtriple": "thumbv8m.main-unknown-none-eabihf",
                "mcpu": "cortex-m33",
                "mfloat-abi": "hard",
            },
        ),
        Target(
            "cortex-m7",
            "Arm Cortex-M7 with double-precision FPU",
            kernels="dsp",
            guard="defined(__ARM_ARCH_7EM__) && defined(__ARM_FP) && (__ARM_FP & 8)",
            cflags=("-mcpu=cortex-m7", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv5-d16"),
            llvm={
                "mtriple": "thumbv7em-unknown-none-eabihf",
                "mcpu": "cortex-m7",
                "mfloat-abi": "hard",
            },
        ),
        Target(
            "cortex-m4",
            "Arm Cortex-M4 with single-precision FPU",
            kernels="dsp",
            guard="defined(__ARM_ARCH_7EM__) && defined(__ARM_FP)",
            cflags=("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"),
            llvm={
                "mtriple": "thumbv7em-unknown-none-eabihf",
                "mcpu": "cortex-m4",
                "mfloat-abi": "hard",
            },
        ),
        Target(
            "cortex-m3",
            "Arm Cortex-M3, without FPU",
            kernels="scalar",
            guard="defined(__thumb2__)",
            float_unit=False,
            cflags=("-mcpu=cortex-m3", "-mthumb", "-mfloat-abi=soft"),
            llvm={
                "mtriple": "thumbv7m-unknown-none-eabi",
                "mcpu": "cortex-m3",
                "mfloat-abi": "soft",
            },
        ),
        Target(
            "cortex-m0",
            "Arm Cortex-M0, without FPU",
            kernels="thumb1",
            guard="defined(__thumb__)",
            float_unit=False,
            cflags=("-mcpu=cortex-m0", "-mthumb", "-mfloat-abi=soft"),
            llvm={
                "mtriple": "thumbv6m-unknown-none-eabi",
                "mcpu": "cortex-m0",
                "mfloat-abi": "soft",
            },
        ),
        Target(
            "rv32imc",
            "RISC-V, 32 bits with multiplication and compressed instructions, without FPU, as in the ESP32-C3",
            kernels="rv32",
            guard="__riscv_xlen == 32 && defined(__riscv_mul) && defined(__riscv_compressed) "
            "&& defined(__riscv_float_abi_soft) && !defined(__riscv_32e)",
            float_unit=False,
            cflags=("-march=rv32imc", "-mabi=ilp32"),
            llvm={
                "mtriple": "riscv32-unknown-none-elf",
                "mcpu": "generic-rv32",
                "mattr": ["+m", "+c"],
                "mabi": "ilp32",
            },
        ),
        Target("host", "C99 laid out so that a C compiler finds this machine's vectors", kernels="simd"),
        Target("wasm32", "WebAssembly with SIMD (simd128): C99 for clang, runs on any core", kernels="wasm"),
        Target("portable", "portable C99 for any core with a C compiler, one output at a time", kernels="portable"),
    )
}

ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("cortex-m", compiler="arm-none-eabi-gcc", emulator="qemu-system-arm"),
        Architecture(
            "riscv",
            compiler="riscv64-unknown-elf-gcc",
            emulator="qemu-system-riscv32",
            emulator_options=("-bios", "none"),
            c_library="--specs=picolibc.specs",
        ),
    )
}
_CORTEX_M, _RISCV = ARCHITECTURES["cortex-m"], ARCHITECTURES["riscv"]

KIB = 1024
BOARDS = {
    board.name: board
    for board in (
        Board(
            "mps3-an547",
            "Arm MPS3 with the AN547 image: Cortex-M55",
            target="cortex-m55",
            architecture=_CORTEX_M,
            machine="mps3-an547",
            flash_origin=0x0000_0000,  # ITCM
            flash_bytes=512 * KIB,
            ram_origin=0x2000_0000,  # DTCM
            ram_bytes=512 * KIB,
            tick_hz=32_000_000,
            uart=Uart("cmsdk", 0x5930_3000, 25_000_000),  # as the secure state sees UART0
        ),
        Board(
            "mps2-an505",
            "Arm MPS2+ with the AN505 image: Cortex-M33",
            target="cortex-m33",
            architecture=_CORTEX_M,
            machine="mps2-an505",
            flash_origin=0x1000_0000,  # the core starts in the secure state, which sees SSRAM1 here
            flash_bytes=4096 * KIB,
            ram_origin=0x3800_0000,  # SSRAM2 and 3, likewise
            ram_bytes=4096 * KIB,
            tick_hz=20_000_000,
            uart=Uart("cmsdk", 0x5020_0000, 20_000_000),  # likewise
        ),
        Board(
            "mps2-an500",
            "Arm MPS2+ with the AN500 image: Cortex-M7",
            target="cortex-m7",
            architecture=_CORTEX_M,
            machine="mps2-an500",
            flash_origin=0x0000_0000,
            flash_bytes=4096 * KIB,
            ram_origin=0x2000_0000,
            ram_bytes=4096 * KIB,
            tick_hz=25_000_000,
            uart=Uart("cmsdk", 0x4000_4000, 25_000_000),
        ),
        Board(
            "mps2-an386",
            "Arm MPS2 with the AN386 image: Cortex-M4",
            target="cortex-m4",
            architecture=_CORTEX_M,
            machine="mps2-an386",
            flash_origin=0x0000_0000,
            flash_bytes=4096 * KIB,
            ram_origin=0x2000_0000,
            ram_bytes=4096 * KIB,
            tick_hz=25_000_000,
            uart=Uart("cmsdk", 0x4000_4000, 25_000_000),
        ),
        Board(
            "mps2-an385",
            "Arm MPS2 with the AN385 image: Cortex-M3",
            target="cortex-m3",
            architecture=_CORTEX_M,
            machine="mps2-an385",
            flash_origin=0x0000_0000,
            flash_bytes=4096 * KIB,
            ram_origin=0x2000_0000,
            ram_bytes=4096 * KIB,
            tick_hz=25_000_000,
            uart=Uart("cmsdk", 0x4000_4000, 25_000_000),
        ),
        Board(
            "microbit",
            "BBC micro:bit: Nordic nRF51822, Cortex-M0",
            target="cortex-m0",
            architecture=_CORTEX_M,
            machine="microbit",
            flash_origin=0x0000_0000,
            flash_bytes=256 * KIB,
            ram_origin=0x2000_0000,
            ram_bytes=16 * KIB,
            tick_hz=16_000_000,
            uart=Uart("nrf51", 0x4000_2000, 16_000_000, pins=(24, 25)),  # to the interface chip on USB
        ),
        Board(
            "riscv32-virt",
            "virt machine of QEMU with the memory of an ESP32-C3: RV32IMC",
            target="rv32imc",
            architecture=_RISCV,
            machine="virt",
            flash_origin=0x8000_0000,  # where the machine begins to run; all of it is RAM, the start-up code locks it
            flash_bytes=4096 * KIB,
            ram_origin=0x8040_0000,
            ram_bytes=400 * KIB,
            tick_hz=INSTRUCTIONS_HZ,  # minstret counts instructions themselves
            uart=Uart("ns16550", 0x1000_0000, 3_686_400),
        ),
    )
}


# Chips and compilers that are no targets by name, and the target of each.
_OTHER_NAMES = {
    **dict.fromkeys(
        ("esp32", "esp32s2", "esp32s3", "esp8266", "avr", "atmega328p", "atmega2560", "arduino"), "portable"
    ),
    **dict.fromkeys(("esp32c3", "esp32c6", "esp32h2", "riscv32"), "rv32imc"),
    **dict.fromkeys(("llvm", "x86-64", "x86_64", "aarch64", "native"), "host"),
    **dict.fromkeys(("cortex-m0plus", "cortex-m0+", "cortex-m23", "rp2040"), "cortex-m0"),
    "cortex-m85": "cortex-m55",
    "rp2350": "cortex-m33",
}


def target_named(name: str) -> Target:
    """Raises TinyrlError for a name that is none, with the one that was probably meant."""
    if meant := _OTHER_NAMES.get(name.lower().replace("esp32-", "esp32")):
        raise TinyrlError(f"no target '{name}'; compile for '{meant}', which runs there")
    if name not in TARGETS:
        raise unknown_name("target", name, TARGETS)
    return TARGETS[name]


def board_named(name: str) -> Board:
    if name not in BOARDS:
        raise unknown_name("board", name, BOARDS)
    return BOARDS[name]
