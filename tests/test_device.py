# SPDX-License-Identifier: Apache-2.0
"""The same policies on every device: what they answer, what they cost, and how a device fails."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_project import POLICIES, hand_written_library, observations_of, only_on_path

from tinyrl_tvm.device import host, micro, qemu
from tinyrl_tvm.device.measurement import Measurement, judge
from tinyrl_tvm.device.observations import joined, observation_rows, read_observations
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.interface import Interface, Vectors
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.project import Project, build, create

ASK_FIRST_ROW = "    action[0] = obs[0];\n    return 0;"


def built(library: ModelLibrary, folder: Path, platform: str = "baremetal") -> Project:
    project = create(library, folder / "project", platform)
    build(project)
    return project


def on_host(library: ModelLibrary, folder: Path, observations: np.ndarray | None = None) -> Measurement:
    return host.run(library, observations)


def on_host_project(library: ModelLibrary, folder: Path, observations: np.ndarray | None = None) -> Measurement:
    return micro.run(built(library, folder, "host"), observations)


def on_qemu(library: ModelLibrary, folder: Path, observations: np.ndarray | None = None) -> Measurement:
    return micro.run(built(library, folder), observations)


def on_node(library: ModelLibrary, folder: Path, observations: np.ndarray | None = None) -> Measurement:
    return micro.run(built(library, folder, "wasm"), observations)


DEVICES = {"host": on_host, "host project": on_host_project, "qemu": on_qemu, "node": on_node}
on_every_device = pytest.mark.parametrize("run", DEVICES.values(), ids=DEVICES)
with_every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


@on_every_device
@with_every_policy
def test_a_right_policy_passes_parity(policy, run, tmp_path: Path) -> None:
    library = policy()
    measured = run(library, tmp_path)
    expected = Vectors.of(library).answers
    assert measured.parity == "PASS"
    assert (measured.vectors.right, measured.vectors.total) == (64, 64)
    assert measured.actions.dtype == expected.dtype
    np.testing.assert_allclose(measured.actions, expected, rtol=0, atol=Interface.of(library).tolerance)
    assert not measured.statuses.any()


@with_every_policy
def test_host_and_qemu_answer_alike(policy, tmp_path: Path) -> None:
    library = policy()
    np.testing.assert_array_equal(on_host(library, tmp_path).actions, on_qemu(library, tmp_path).actions)


@on_every_device
def test_one_wrong_bit_fails_parity(run, tmp_path: Path) -> None:
    observations = observations_of(1)
    expected = observations.copy()
    expected[3] = np.nextafter(expected[3], np.float32(np.inf))
    measured = run(hand_written_library(ASK_FIRST_ROW, observations, expected), tmp_path)
    assert measured.parity == "FAIL"
    assert (measured.vectors.right, measured.vectors.total) == (63, 64)
    assert measured.vectors.max_abs_error == float(expected[3, 0]) - float(observations[3, 0])


@on_every_device
def test_a_wrong_integer_fails_parity_whatever_the_tolerance(run, tmp_path: Path) -> None:
    observations = observations_of(1)
    library = hand_written_library(
        "    action[0] = obs[0] > 9.0f;\n    return 0;", observations, np.ones((64, 1), np.int32), tolerance=10.0
    )
    assert (run(library, tmp_path).vectors.right, run(library, tmp_path / "again").parity) == (0, "FAIL")


@on_every_device
def test_minus_zero_is_not_zero_bit_for_bit(run, tmp_path: Path) -> None:
    zeros = np.zeros((2, 1), np.float32)
    library = hand_written_library(ASK_FIRST_ROW, np.array([[0.0], [-0.0]], np.float32), zeros)
    assert run(library, tmp_path).vectors.right == 1


@on_every_device
def test_an_answer_that_is_not_finite_is_never_right(run, tmp_path: Path) -> None:
    observations = np.array([[0.0], [1.0], [2.0], [3.0]], np.float32)
    body = """
    const union { uint32_t bits[4]; float value[4]; } answers = {{0x3f800000u, 0x7fc00000u, 0x7f800000u, 0xff800000u}};
    action[0] = answers.value[(int)obs[0]];
    return 0;"""
    library = hand_written_library(body, observations, np.ones((4, 1), np.float32), tolerance=1e30)
    measured = run(library, tmp_path)
    assert measured.vectors.right == 1
    assert json.loads(json.dumps(measured.to_json(), allow_nan=False))["max_abs_error"] is None


@on_every_device
def test_a_right_answer_with_a_bad_status_fails_parity(run, tmp_path: Path) -> None:
    observations = np.abs(observations_of(1))
    observations[:10] *= -1
    body = "    action[0] = obs[0];\n    return obs[0] < 0.0f ? -3 : 0;"
    measured = run(hand_written_library(body, observations, observations), tmp_path)
    assert (measured.parity, measured.vectors.right) == ("FAIL", 54)
    assert measured.statuses.tolist() == [-3] * 10 + [0] * 54
    assert measured.to_json()["nonzero_statuses"] == 10


@on_every_device
def test_the_tolerance_is_met_at_its_edge_alike(run, tmp_path: Path) -> None:
    observations = np.float32(1) + np.float32(2**-20) * np.arange(8, dtype=np.float32)[:, np.newaxis]
    library = hand_written_library(ASK_FIRST_ROW, observations, np.ones((8, 1), np.float32), tolerance=3 * 2.0**-20)
    assert run(library, tmp_path).vectors.right == 4


@on_every_device
def test_observations_are_answered_and_the_vectors_replayed(run, tmp_path: Path) -> None:
    observations = np.random.default_rng(1).normal(size=(1000, 5)).astype(np.float32)
    measured = run(POLICIES["reacher"](), tmp_path, observations)
    np.testing.assert_array_equal(measured.actions, observations[:, 3:5] - observations[:, 0:2])
    assert measured.statuses.shape == (1000,)
    assert (measured.parity, measured.vectors.total) == ("PASS", 64)


@on_every_device
def test_a_single_observation_needs_no_axis(run, tmp_path: Path) -> None:
    measured = run(POLICIES["reacher"](), tmp_path, np.array([0.0, 0.0, 0.0, 2.0, 3.0]))
    assert measured.actions.tolist() == [[2.0, 3.0]]


@on_every_device
def test_a_bad_observation_keeps_its_status_and_row(run, tmp_path: Path) -> None:
    observations = observations_of(1)
    body = """
    const union { float value; uint32_t bits; } first = {obs[0]};
    action[0] = (first.bits & 0x7f800000u) == 0x7f800000u ? 0.0f : obs[0];
    return (first.bits & 0x7f800000u) == 0x7f800000u;"""
    library = hand_written_library(body, observations, observations)
    given = np.array([[1.0], [np.nan], [2.0], [np.inf], [-np.inf], [1e300]])
    measured = run(library, tmp_path, given)
    assert measured.actions.ravel().tolist() == [1.0, 0.0, 2.0, 0.0, 0.0, 0.0]
    assert measured.statuses.tolist() == [0, 1, 0, 1, 1, 1]


@on_every_device
def test_all_vectors_of_a_long_recording_are_judged(run, tmp_path: Path) -> None:
    observations = observations_of(1, 300)
    expected = observations.copy()
    expected[[1, 2, 299]] += 1  # row 299 is carried by the firmware, rows 1 and 2 are streamed
    measured = run(hand_written_library(ASK_FIRST_ROW, observations, expected), tmp_path, np.array([[7.0], [8.0]]))
    assert (measured.parity, measured.vectors.right, measured.vectors.total) == ("FAIL", 297, 300)
    assert measured.actions.tolist() == [[7.0], [8.0]]


def test_a_streamed_vector_alone_can_fail_parity(tmp_path: Path) -> None:
    observations = observations_of(1, 300)
    expected = observations.copy()
    expected[1] += 1
    measured = on_qemu(hand_written_library(ASK_FIRST_ROW, observations, expected), tmp_path)
    assert (measured.parity, measured.vectors.right) == ("FAIL", 299)
    assert len(measured.actions) == 300


ARM_ONLY = "#if defined(__arm__)\n{}#endif\n"
PREDICT_IN_ASSEMBLY = """
    .syntax unified
    .thumb
    .text
    .global toy_predict
    .type toy_predict, %function
    .thumb_func
toy_predict:
{}
    ldr r2, [r0]
    str r2, [r1]
    movs r0, #0
    bx lr
"""
ASSEMBLY_INSTRUCTIONS = 2  # the empty function has the other two, movs and bx


def in_assembly(code: str) -> ModelLibrary:
    """toy_predict answers its observation and runs `code` first; in C on other cores."""
    observations = observations_of(1)
    library = hand_written_library(ASK_FIRST_ROW, observations, observations)
    files = dict(library.files)
    source = files["codegen/host/src/toy_policy.c"].decode()
    files["codegen/host/src/toy_policy.c"] = (
        f"#if !defined(__arm__)\n{source}#else\ntypedef int nothing;\n#endif\n".encode()
    )
    files["codegen/host/src/toy_kernel.S"] = ARM_ONLY.format(PREDICT_IN_ASSEMBLY.format(code)).encode()
    return ModelLibrary(files)


@pytest.mark.parametrize("n", [0, 1, 1000, 20000])
def test_instructions_are_counted_to_a_hundredth(n: int, tmp_path: Path) -> None:
    measured = on_qemu(in_assembly(f"    .rept {n}\n    nop\n    .endr"), tmp_path)
    assert measured.parity == "PASS"
    assert measured.instructions_per_inference == pytest.approx(
        n + ASSEMBLY_INSTRUCTIONS, abs=0.07
    )  # two ticks of 31.25


def test_a_count_beyond_24_bits_of_ticks_is_right(tmp_path: Path) -> None:
    loop = "    movw r3, #50000\n    movt r3, #4\n1:  subs r3, r3, #1\n    bne 1b"
    n = 2 + 2 * (4 * 65536 + 50000) + ASSEMBLY_INSTRUCTIONS
    measured = on_qemu(in_assembly(loop), tmp_path)
    assert n * 1024 / 31.25 > 2**24
    # the counter's interrupt takes some instructions of its own, once in 500 million
    assert measured.instructions_per_inference == pytest.approx(n, abs=1)


def test_an_assembly_kernel_is_empty_on_other_cores(tmp_path: Path) -> None:
    assert on_host(in_assembly("    nop"), tmp_path).parity == "PASS"


@pytest.mark.parametrize("depth", [8, 128, 4096])
def test_the_painted_stack_is_what_the_policy_uses(depth: int, tmp_path: Path) -> None:
    code = f"    sub sp, sp, #{depth}\n    str r0, [sp]\n    add sp, sp, #{depth}"
    assert on_qemu(in_assembly(code), tmp_path).stack_bytes == depth


def test_flash_and_ram_are_those_of_the_policy_alone(tmp_path: Path) -> None:
    observations = observations_of(1)
    zeroed = "static float workspace[32] __attribute__((aligned(16)));"
    initialised = "static volatile float gain[4] __attribute__((aligned(16))) = {1.0f, 2.0f, 3.0f, 4.0f};"
    weights = "static const float weights[256] __attribute__((aligned(16))) = {0.0f, 1.0f};"
    body = """
    static volatile float *const place = workspace;
    place[31] = obs[0];
    action[0] = place[31] * gain[0] * weights[1 + (int)(obs[0] * 0.0f)];
    return 0;"""
    before = "\n".join((zeroed, initialised, weights))
    measured = on_qemu(hand_written_library(body, observations, observations, before=before), tmp_path)
    assert measured.parity == "PASS"
    assert measured.ram_bytes == 128 + 16
    assert 1024 + 16 <= measured.flash_bytes <= 1024 + 16 + 112  # weights, initial values, code to the next 16


def test_a_policy_that_does_nothing_costs_next_to_nothing(tmp_path: Path) -> None:
    zeros = np.zeros((64, 1), np.float32)
    measured = on_qemu(
        hand_written_library("    (void)obs;\n    action[0] = 0.0f;\n    return 0;", zeros, zeros), tmp_path
    )
    assert measured.instructions_per_inference <= 3
    assert measured.flash_bytes <= 48
    assert (measured.ram_bytes, measured.stack_bytes) == (0, 0)


def test_what_a_device_does_not_measure_is_none(tmp_path: Path) -> None:
    library = POLICIES["cartpole"]()
    measured = on_host(library, tmp_path).to_json()
    for key in ("instructions_per_inference", "flash_bytes", "ram_bytes", "stack_bytes", "wall_time_ns_median"):
        assert measured[key] is None
    assert on_qemu(library, tmp_path).to_json()["wall_time_ns_median"] is None


def test_wall_time_comes_with_its_spread(tmp_path: Path) -> None:
    wall_time = host.run(POLICIES["pendulum"](), timed=True).wall_time
    assert 0 < wall_time.low_ns <= wall_time.median_ns <= wall_time.high_ns
    assert wall_time.batches == host.BATCHES


def test_a_measurement_is_json() -> None:
    measured = host.run(POLICIES["pendulum"](), timed=True)
    assert json.loads(json.dumps(measured.to_json(), allow_nan=False)) == measured.to_json()


@with_every_policy
def test_a_portable_library_runs_on_the_emulated_board(policy, tmp_path: Path) -> None:
    assert on_qemu(policy(target="host"), tmp_path).parity == "PASS"


def crashing(statement: str, condition: str = "1") -> ModelLibrary:
    observations = observations_of(1)
    body = f"    if ({condition}) {{\n        {statement}\n    }}\n    action[0] = obs[0];\n    return 0;"
    return hand_written_library(body, observations, observations)


def test_a_firmware_that_hangs_is_stopped(tmp_path: Path) -> None:
    project = built(crashing("for (volatile int wait = 1; wait;) { }"), tmp_path)
    with pytest.raises(
        TinyrlError, match=r"'.*project/out/firmware.elf' did not end within 2 s on mps3-an547; it hangs, or"
    ):
        qemu.run(project, timeout_s=2)


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ('__asm__ volatile("udf #0");', "undefined instruction, exception 3, pc 0x0000[0-9a-f]{4}"),
        ("*(volatile int *)0x08000000u = 1;", "bus error"),
        ("((void (*)(void))0x20000000u)();", "invalid execution state"),
        ('__asm__ volatile("1: push {r0-r7}\\n b 1b");', "stack overflow, exception 3"),
        ('__asm__ volatile("svc #0");', "unexpected exception, exception 11"),
    ],
)
def test_a_firmware_that_faults_names_the_cause(statement: str, fault: str, tmp_path: Path) -> None:
    project = built(crashing(statement), tmp_path)
    with pytest.raises(TinyrlError, match=f"'.*project/out/firmware.elf' faulted on mps3-an547: {fault}"):
        qemu.run(project)


def test_a_fault_on_the_users_observation_is_told(tmp_path: Path) -> None:
    project = built(crashing('__asm__ volatile("udf #0");', condition="obs[0] > 100.0f"), tmp_path)
    assert qemu.run(project).parity == "PASS"
    with pytest.raises(TinyrlError, match="undefined instruction"):
        qemu.run(project, np.array([[1.0], [101.0]]))


def test_a_firmware_that_leaves_early_is_told(tmp_path: Path) -> None:
    library = crashing("void semihosting_exit(int); semihosting_exit(0);", condition="obs[0] > 1.0f")
    with pytest.raises(
        TinyrlError, match=r"'.*project/out/firmware.elf' stopped early on mps3-an547: answer \d+ status 0"
    ):
        qemu.run(built(library, tmp_path))


def test_a_missing_emulator_comes_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = built(POLICIES["cartpole"](), tmp_path)
    only_on_path(tmp_path / "bin", ["make"], monkeypatch)
    with pytest.raises(TinyrlError, match=r"no 'qemu-system-arm' on PATH; .*apt-get install qemu-system-arm"):
        qemu.run(project)


def test_no_compiler_for_the_host_comes_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_on_path(tmp_path / "bin", ["make"], monkeypatch)
    with pytest.raises(TinyrlError, match=r"no 'cc' on PATH; .*apt-get install gcc"):
        host.run(POLICIES["cartpole"]())


@pytest.mark.parametrize("platform", micro.RUNS)
def test_a_project_that_was_not_built_is_not_run(platform: str, tmp_path: Path) -> None:
    project = create(POLICIES["cartpole"](), tmp_path / "project", platform)
    with pytest.raises(TinyrlError, match=r"is not built; run 'tinyrl-tvm micro build"):
        micro.run(project)


def test_a_shared_library_that_is_none_is_told(tmp_path: Path) -> None:
    project = built(POLICIES["cartpole"](), tmp_path, "host")
    (project.folder / "out" / "libpolicy.so").write_text("not a library")
    with pytest.raises(TinyrlError, match=r"cannot load '.*libpolicy.so': .*; build the project again"):
        micro.run(project)


@on_every_device
@pytest.mark.parametrize(
    ("observations", "sentence"),
    [
        (np.zeros((3, 4)), r"observations of shape \(3, 4\); 'reacher' takes \(n, 5\): arm/pose 3 \+ goal 2"),
        (np.zeros((0, 5)), r"observations of shape \(0, 5\)"),
        (np.zeros((2, 2, 5)), r"observations of shape \(2, 2, 5\)"),
        (np.array([["a"] * 5]), "observations are numbers, not '<U1'"),
    ],
)
def test_observations_of_the_wrong_shape_are_refused(run, observations, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(TinyrlError, match=sentence):
        run(POLICIES["reacher"](), tmp_path, observations)


REACHER = Interface.of(POLICIES["reacher"]())
PENDULUM = Interface.of(POLICIES["pendulum"]())


def saved(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path / "observations.npz", **arrays)
    return path / "observations.npz"


def test_observations_are_read_by_the_names_of_the_inputs(tmp_path: Path) -> None:
    rows = np.arange(10, dtype=np.float32).reshape(2, 5)
    path = saved(tmp_path, **{"goal": rows[:, 3:], "arm/pose": rows[:, :3]})
    np.testing.assert_array_equal(read_observations(path, REACHER), rows)


def test_a_single_input_takes_a_single_array_of_any_name(tmp_path: Path) -> None:
    assert read_observations(saved(tmp_path, whatever=np.zeros((4, 3))), PENDULUM).shape == (4, 3)


def test_images_are_flattened() -> None:
    assert joined(PENDULUM, {"obs": np.zeros((4, 1, 3))}).shape == (4, 3)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        (
            {"goal": np.zeros((2, 2))},
            "^no observations for 'arm/pose'; 'reacher' takes 'arm/pose', 'goal', given: 'goal'; name the arrays as the ",
        ),
        ({"goal": np.zeros((2, 2)), "arm/pose": np.zeros((2, 4))}, r"'arm/pose' of shape \(2, 4\); 'reacher' takes 3"),
        ({"goal": np.zeros((2, 2)), "arm/pose": np.zeros((3, 3))}, r"'goal' of shape \(2, 2\); .* as many samples"),
        ({"goal": np.zeros(()), "arm/pose": np.zeros((3, 3))}, r"'goal' of shape \(\)"),
        ({"goal": np.full((2, 2), "x"), "arm/pose": np.zeros((2, 3))}, "observations are numbers"),
    ],
)
def test_arrays_that_do_not_make_rows_are_refused(arrays, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(TinyrlError, match=sentence):
        read_observations(saved(tmp_path, **arrays), REACHER)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut short"])
def test_a_file_that_is_no_npz_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "observations.npz").write_bytes(content)
    with pytest.raises(TinyrlError, match=r"observations.npz' is not a .npz of numbers"):
        read_observations(tmp_path / "observations.npz", PENDULUM)


def test_pickled_observations_are_never_loaded(tmp_path: Path) -> None:
    path = saved(tmp_path, obs=np.array([{"a": "pickle"}], dtype=object))
    with pytest.raises(TinyrlError, match=r"is not a .npz of numbers"):
        read_observations(path, PENDULUM)


def test_a_single_npy_array_is_named_as_no_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "observations.npy", np.zeros((2, 3)))
    with pytest.raises(TinyrlError, match=r"observations.npy' is not a .npz of numbers: File is not a zip file"):
        read_observations(tmp_path / "observations.npy", PENDULUM)


def test_no_file_of_observations_is_told(tmp_path: Path) -> None:
    with pytest.raises(TinyrlError, match=r"no observations at '.*nowhere.npz'"):
        read_observations(tmp_path / "nowhere.npz", PENDULUM)


def test_rows_become_float32() -> None:
    assert observation_rows(PENDULUM, np.array([[1, 2, 3]], np.uint8)).dtype == np.float32


def test_the_judge_counts_a_row_once() -> None:
    library = POLICIES["reacher"]()
    vectors = Vectors.of(library)
    actions = vectors.answers.copy()
    actions[0] += 1  # both numbers of the row
    parity = judge(REACHER, vectors, actions, np.zeros(64, np.int32))
    assert (parity.right, parity.total, parity.verdict) == (63, 64, "FAIL")
    assert parity.max_abs_error == pytest.approx(1, abs=1e-6)
