# SPDX-License-Identifier: Apache-2.0
"""The control loop of a project: what it answers, when it does, what it counts, and how it fails."""

from __future__ import annotations

import ctypes
import json
import math
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from policies import SANITIZERS
from test_project import cartpole, hand_written_library, observations_of, reacher, run_command, run_make
from test_serial_line import calls_a_debugger

from tinyrl_tvm import toolchain
from tinyrl_tvm.device.elf import footprint
from tinyrl_tvm.device.emulator import EmulatedSerial, emulate
from tinyrl_tvm.device.host import run_project
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.project import Project, build, create
from tinyrl_tvm.targets import BOARDS

FLASH_LIMIT = 100_000
STRICT = "-Werror -Wpedantic -Wshadow"
REFUSES_NAN = """
    const union { float value; uint32_t bits; } first = {obs[0]};
    const int is_bad = (first.bits & 0x7f800000u) == 0x7f800000u;
    action[0] = is_bad ? 7.0f : obs[0];
    return is_bad;"""


def refusing() -> ModelLibrary:
    """Answers its observation; a NaN or an infinity with a status, and an action that nobody should see."""
    observations = observations_of(1)
    return hand_written_library(REFUSES_NAN, observations, observations, target="host")


def built(library: ModelLibrary, folder: Path, *flags: str, robot: str | None = None, cc: str = "cc") -> Project:
    """A project of `host` with its loop, and with the caller's robot.c."""
    project = create(library, folder / "project", "host")
    if robot is not None:
        (project.folder / "src" / "loop" / "robot.c").write_text(robot)
    made = run_make(project.folder, "loop", f"CC={cc}", f"CFLAGS={' '.join([STRICT, *flags])}", "OPTIMIZE=-O2")
    assert made.returncode == 0, made.stderr
    return project


def loop(project: Project, settings: str | dict[str, object] | None = None) -> subprocess.CompletedProcess[str]:
    command = ["./out/loop"]
    if settings is not None:
        text = settings if isinstance(settings, str) else json.dumps(settings, indent=1)
        (project.folder / "own.json").write_text(text)
        command += ["--config", "own.json"]
    return run_command(command, project.folder)


def counts(printed: str) -> dict[str, int]:
    line = re.search(r"^ticks .*$", printed, re.MULTILINE)[0]
    return {name: int(number) for name, number in re.findall(r"([a-z][a-z ]*[a-z]) (\d+)", line)}


def spread(printed: str, name: str) -> dict[str, int]:
    line = re.search(rf"^{name}: (.*)$", printed, re.MULTILINE)[1]
    return {name: int(number) for name, number in re.findall(r"(\w+) (\d+)", line)}


def actions(project: Project, dtype: type = np.float32) -> np.ndarray:
    """Those that the loop wrote, nine digits a float, which are its bits."""
    header, *rows = (project.folder / "actions.csv").read_text().splitlines()
    assert header.split(",") == [f"action{i}" for i in range(project.interface.n_actions)]
    return np.array([[dtype(cell) for cell in row.split(",")] for row in rows], dtype)


def write_csv(project: Project, text: str) -> None:
    (project.folder / "observations.csv").write_text(text, newline="")


def csv_of(rows: np.ndarray, digits: int = 9) -> str:
    return "".join(",".join(f"{value:.{digits}g}" for value in row) + "\n" for row in rows)


BATCH = {"batch": True, "observations": "observations.csv", "actions": "actions.csv"}


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The reacher's loop, two inputs and two actions."""
    return built(reacher(), tmp_path_factory.mktemp("reacher"))


@pytest.fixture(scope="module")
def refuser(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return built(refusing(), tmp_path_factory.mktemp("refuser"))


# ---- observations and actions ----


@pytest.mark.parametrize("header", ["", "x,y,z,goal x,goal y\n", '"x","y","z","g","h"\r\n'])
def test_the_actions_are_the_librarys_bit_for_bit(header: str, arm: Project) -> None:
    observations = np.random.default_rng(3).normal(size=(500, 5)).astype(np.float32)
    observations[0] = [3.4e38, -1e-45, 1e-38, 0.0, -0.0]
    write_csv(arm, header + csv_of(observations))
    ran = loop(arm, BATCH)
    assert (ran.returncode, ran.stderr) == (0, "")
    build(arm)
    expected = run_project(arm, observations).actions
    np.testing.assert_array_equal(actions(arm).view(np.uint32), expected.view(np.uint32))
    assert counts(ran.stdout)["ticks"] == 500


def test_integer_actions_are_written_as_integers(tmp_path: Path) -> None:
    project = built(cartpole(), tmp_path)
    assert loop(project, {"batch": True, "actions": "actions.csv"}).returncode == 0
    np.testing.assert_array_equal(actions(project, np.int32), project.library.vectors()["expected"])


def test_without_a_file_the_loop_plays_the_test_vectors(arm: Project) -> None:
    ran = loop(arm, {"batch": True, "actions": "actions.csv"})
    assert counts(ran.stdout)["ticks"] == 64
    np.testing.assert_array_equal(actions(arm), arm.library.vectors()["expected"])


@pytest.mark.parametrize("text", ["1,2,3,4,5", "\n1,2,3,4,5\r\n\r\n", " 1 ,\t2, 3 ,4,5\n", "a,b,c,d,e\n1,2,3,4,5\n"])
def test_a_row_is_a_row_however_it_is_laid_out(text: str, arm: Project) -> None:
    write_csv(arm, text)
    assert loop(arm, BATCH).returncode == 0
    assert actions(arm).tolist() == [[3.0, 3.0]]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1,2,3,4,5\n1,2,3,4\n", "line 2: 4 columns, an observation has 5"),
        ("a\n1,2,3,4,5\n", "line 1: 1 column, an observation has 5"),
        ("a,b,c,d,e\n1,2,x3,4,5\n", "line 2: 'x3' is no number"),
        ("1,2,x3,4,5\n", "line 1: 'x3' is no number"),
        ("1,2,,4,5\n", "line 1: '' is no number"),
        ("1;2;3;4;5\n", "line 1: '1;2;3;4;5' is no number"),
        ("\ufeff1,2,3,4,5\n", "line 1: '\ufeff1' is no number"),
        ("1,2,3,4,5\n\n1,2,3,4,1\0\n", "line 3: '1?' is no number"),
        (f"{'1' * 60},2,3,4,5\n", f"line 1: '{'1' * 45}..' is no number"),
        ("", "line 1: the file ends without an observation"),
        ("a,b,c,d,e\n", "line 2: the file ends without an observation"),
    ],
)
def test_a_recording_that_cannot_be_read_is_told_by_its_line(text: str, sentence: str, arm: Project) -> None:
    write_csv(arm, text)
    ran = loop(arm, BATCH)
    assert (ran.returncode, ran.stderr) == (1, f"error: observations.csv, {sentence}\n")


# ---- the safe action ----


@pytest.mark.parametrize(("safe_action", "answered"), [("zeros", [0, 1, 0, 0, 2, 0]), ("hold", [0, 1, 1, 1, 2, 2])])
def test_a_refused_observation_gets_the_safe_action(safe_action: str, answered: list[int], refuser: Project) -> None:
    write_csv(refuser, "nan\n1\n-inf\nINF\n2\n1e39\n")
    ran = loop(refuser, BATCH | {"safe_action": safe_action})
    assert ran.returncode == 0
    assert actions(refuser).ravel().tolist() == answered
    assert counts(ran.stdout) == {
        "ticks": 6, "missed": 0, "skipped": 0, "sensor failures": 0, "policy failures": 4
    }  # fmt: skip
    assert ran.stderr == "warn: the policy refuses the observation at tick 0\n"


ROBOT = """
#define _POSIX_C_SOURCE 199309L
#include <time.h>
#include "loop.h"
#include "recording.h"
int sensor_read(float observation[N_OBS]) {{ static uint32_t tick; {sense} }}
void actuator_write(const policy_action action[N_ACTIONS]) {{ recording_write(action); }}
void loop_update(const struct loop_statistics *statistics) {{ {update} }}
"""


def test_a_sensor_without_an_observation_gets_the_safe_action(tmp_path: Path) -> None:
    sense = "observation[0] = 5.0f; return tick++ == 2 ? LOOP_NO_OBSERVATION : LOOP_OBSERVED;"
    project = built(refusing(), tmp_path, robot=ROBOT.format(sense=sense, update="(void)statistics;"))
    ran = loop(project, {"batch": True, "ticks": 4, "actions": "actions.csv"})
    assert actions(project).ravel().tolist() == [5, 5, 0, 5]
    assert counts(ran.stdout)["sensor failures"] == 1
    assert ran.stderr == "warn: the sensor fails at tick 2\n"
    assert spread(ran.stdout, "inference")["least"] >= 0


def test_the_update_sees_what_was_counted_and_may_stop_the_loop(tmp_path: Path) -> None:
    sense = "(void)tick; observation[0] = 1.0f; return LOOP_OBSERVED;"
    project = built(
        refusing(), tmp_path, robot=ROBOT.format(sense=sense, update="if (statistics->ticks == 9) { loop_stop(); }")
    )
    assert counts(loop(project, {"batch": True}).stdout)["ticks"] == 10


# ---- the tick ----


def test_the_tick_keeps_to_the_clock(arm: Project) -> None:
    """64 ticks at 300 Hz, whose period is no whole number of nanoseconds. However late single ticks are on a busy machine, a
    tick that ran or was skipped stands for a period, and the average period holds up to the lateness of both ends."""
    ran = loop(arm, {"control_hz": 300})
    counted, period, lateness = counts(ran.stdout), spread(ran.stdout, "period"), spread(ran.stdout, "lateness")
    assert counted["ticks"] == 64
    assert counted["skipped"] >= counted["missed"]
    lasted = period["mean"] * 63
    periods = lasted * 300 / 1e9
    assert 62 <= periods
    assert abs(lasted - round(periods) * 1e9 / 300) <= lateness["greatest"] + 63
    assert period["least"] <= period["mean"] <= period["greatest"]


SLOW = """
    const struct timespec pause = {{0, {pause_ns}}};
    observation[0] = 1.0f;
    if (tick++ == 3) {{ nanosleep(&pause, 0); }}
    return LOOP_OBSERVED;
"""


def test_a_slow_sensor_misses_its_deadline_and_skips_what_is_past(tmp_path: Path) -> None:
    sense = SLOW.format(pause_ns=550_000_000)
    project = built(refusing(), tmp_path, robot=ROBOT.format(sense=sense, update="(void)statistics;"))
    ran = loop(project, {"control_hz": 10, "ticks": 6})
    counted = counts(ran.stdout)
    assert counted["ticks"] == 6
    assert counted["missed"] >= 1
    assert counted["skipped"] >= 5  # of 550 ms, five ticks of 100 ms are past
    assert "warn: the deadline is missed at tick " in ran.stderr
    assert spread(ran.stdout, "period")["greatest"] >= 500_000_000


def test_batch_mode_measures_inference_alone(arm: Project) -> None:
    printed = loop(arm, {"batch": True}).stdout
    assert "inference: " in printed
    assert "period" not in printed
    assert "lateness" not in printed


FAKE_CLOCK = """
#include <stdio.h>
#include "console.h"
#include "loop.h"
static uint64_t now = 0xfffffff0u, ends[] = {%s};
static uint32_t tick;
void console_text(const char *text) { (void)text; }
uint64_t loop_now(void) { return now; }
void loop_wait_until(uint64_t time) { now = time; }
int sensor_read(float observation[N_OBS])
{
    observation[0] = 0.0f;
    printf("%%llu\\n", (unsigned long long)(now - 0xfffffff0u));
    if (tick == sizeof ends / sizeof ends[0]) { return LOOP_END; }
    now = ends[tick++] + 0xfffffff0u;
    return LOOP_OBSERVED;
}
void actuator_write(const policy_action action[N_ACTIONS]) { (void)action; }
void loop_update(const struct loop_statistics *statistics) { (void)statistics; }
int main(void)
{
    static struct loop_statistics got;
    const struct loop_config config = {%s, 0, 0, LOOP_ZEROS};
    (void)loop_run(&config, &got);
    printf("%%u %%u\\n", got.missed, got.skipped);
    return 0;
}
"""


def with_fake_clock(folder: Path, clock_hz: int, control_hz: int, ends: Sequence[int]) -> tuple[list[int], int, int]:
    """When each tick began whose work ended at `ends`, and how many deadlines were missed and ticks skipped."""
    project = create(refusing(), folder / "project", "host")
    text = FAKE_CLOCK % (", ".join(f"{end}u" for end in ends), f"{clock_hz}u, {control_hz}u")
    (folder / "project" / "fake.c").write_text(text)
    sources = [*project.folder.glob("policy/src/*.c"), *(f"src/{name}.c" for name in ("console", "vectors"))]
    sources += ["fake.c", "src/loop/loop.c", "src/loop/spread.c"]
    command = ["cc", "-std=c99", *SANITIZERS, "-Isrc", "-Isrc/loop", "-Ipolicy/include", *sources, "-o", "fake"]
    assert run_command([str(word) for word in command], project.folder).returncode == 0
    *begun, (missed, skipped) = ([int(word) for word in line.split()] for line in _output(project.folder))
    return [time for (time,) in begun], missed, skipped


def _output(folder: Path) -> list[str]:
    ran = run_command(["./fake"], folder)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout.splitlines()


def test_a_period_that_is_no_whole_number_of_clock_ticks_does_not_drift(tmp_path: Path) -> None:
    due = [k * 1000 // 7 for k in range(30)]
    assert with_fake_clock(tmp_path, 1000, 7, due[:-1]) == (due, 0, 0)


def test_work_that_ends_when_the_next_tick_is_due_has_met_its_deadline(tmp_path: Path) -> None:
    assert with_fake_clock(tmp_path, 1000, 10, [100, 101, 200]) == ([0, 100, 200, 300], 0, 0)


def test_what_is_due_meanwhile_is_skipped_and_the_ticks_keep_their_places(tmp_path: Path) -> None:
    begun, missed, skipped = with_fake_clock(tmp_path, 1000, 7, [143, 429, 600, 3600_000, 3600_001])
    # 143 is one past 142, 429 one past 428; an hour after the first tick is the 25,200th
    due = [k * 1000 // 7 for k in range(25_210)]
    expected, k, n_missed, n_skipped = [0], 0, 0, 0
    for end in [143, 429, 600, 3600_000, 3600_001]:
        following = next(j for j in range(k + 1, len(due)) if due[j] >= end)
        n_missed += following > k + 1
        n_skipped += following - k - 1
        k = following
        expected.append(due[k])
    assert (begun, missed, skipped) == (expected, n_missed, n_skipped)
    assert (missed, skipped) == (3, 25_196)


# ---- statistics and numbers, against Python's ----


class Spread(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_uint32), ("least", ctypes.c_uint32), ("greatest", ctypes.c_uint32),
        ("sum", ctypes.c_uint64), ("squares", ctypes.c_uint32 * 3), ("histogram", ctypes.c_uint32 * 32),
    )  # fmt: skip


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = create(cartpole(), tmp_path_factory.mktemp("functions") / "project", "host").folder
    command = ["cc", "-std=c99", "-O2", "-shared", "-fPIC", "src/loop/spread.c", "src/loop/decimal.c", "-o", "f.so"]
    assert run_command(command, folder).returncode == 0
    library = ctypes.CDLL(str(folder / "f.so"))
    library.spread_add.argtypes = (ctypes.POINTER(Spread), ctypes.c_uint64)
    library.spread_mean.restype = library.spread_deviation.restype = ctypes.c_uint32
    return library


MOST = 2**32 - 1


@pytest.mark.parametrize(
    "values",
    [[], [0], [5], [MOST] * 3, [0, MOST], [1, 2, 3, 4], [MOST, 0] * 500, [320_000] * 999 + [320_001], list(range(5000)),
     [10_000_000 + 37 * i % 101 for i in range(1000)], [10_000_000] * 999 + [4_000_000_000]],
)  # fmt: skip
def test_a_spread_is_what_python_finds(values: list[int], functions: ctypes.CDLL) -> None:
    got = Spread()
    for value in values:
        functions.spread_add(ctypes.byref(got), value)
    n = len(values)
    assert got.count == n
    if n == 0:
        assert functions.spread_mean(ctypes.byref(got)) == functions.spread_deviation(ctypes.byref(got)) == 0
        return
    mean = sum(values) // n
    assert (got.least, got.greatest) == (min(values), max(values))
    assert functions.spread_mean(ctypes.byref(got)) == mean
    deviation = math.isqrt(sum((value - mean) ** 2 for value in values) // n)
    assert functions.spread_deviation(ctypes.byref(got)) == deviation
    bins = np.bincount([max(value.bit_length() - 1, 0) for value in values], minlength=32)
    assert list(got.histogram) == bins.tolist()


def test_a_value_past_32_bits_counts_as_the_greatest(functions: ctypes.CDLL) -> None:
    got = Spread()
    functions.spread_add(ctypes.byref(got), 2**40)
    assert (got.greatest, got.histogram[31]) == (MOST, 1)


def float_of(text: str, functions: ctypes.CDLL) -> np.float32 | None:
    value = ctypes.c_float()
    return np.float32(value.value) if functions.decimal_to_float(text.encode(), ctypes.byref(value)) else None


def test_every_written_float_is_read_as_numpy_reads_it(functions: ctypes.CDLL) -> None:
    rng = np.random.default_rng(11)
    floats = rng.integers(0, 2**32, 5000, dtype=np.uint32).view(np.float32)
    floats = floats[np.isfinite(floats)]
    between = [float(a) + float(b - a) / 2 for a, b in zip(floats, np.nextafter(floats, np.float32(0)), strict=True)]
    texts = [f"{value:.9g}" for value in floats] + [f"{value:.17e}" for value in floats]
    texts += [f"{value:.18e}" for value in between]
    texts += ["0", "-0", ".5", "5.", "+1.5", "1E5", "00012.50", "0.000e99", "1e-999", "1e999", "-1e39", "3.4028236e38"]
    texts += ["16777217", "16777219", "1.17549429e-38", "7.006492321624086e-46", "7.006492321624085e-46", "1e-45"]
    texts += [
        "123456789012345678901234567890",
        "0.0000000000000000000000000000000000012345",
        "340282356779733661637e18",
    ]
    with np.errstate(over="ignore", under="ignore"):
        for text in texts:
            assert float_of(text, functions).tobytes() == nearest_float(text).tobytes(), text


def nearest_float(text: str) -> np.float32:
    """Without the rounding to a double on the way: the neighbour that is nearest in exact arithmetic, ties to even."""
    from fractions import Fraction

    guess = np.float32(float(text))
    exact = Fraction(text.rstrip(".")) if "." in text[-1:] else Fraction(text)
    if abs(exact) < Fraction(1, 10**50) or abs(exact) >= 2**128 - 2**103:  # half a step past the greatest float
        return guess
    guess = np.clip(guess, -np.finfo(np.float32).max, np.finfo(np.float32).max)
    near = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    near = [value for value in near if np.isfinite(value)]
    best = min(near, key=lambda value: (abs(Fraction(float(value)) - exact), int(value.view(np.uint32)) & 1))
    return np.copysign(best, guess)


@pytest.mark.parametrize(
    "text", ["", "-", "+", ".", "e5", "1e", "1e+", "1.2.3", "--1", "1 2", "0x10", "nano", "infinit", "1f"]
)
def test_what_is_no_number_is_refused(text: str, functions: ctypes.CDLL) -> None:
    assert float_of(text, functions) is None


@pytest.mark.parametrize("text", ["nan", "NaN", "-nan", "inf", "-Inf", "+INF"])
def test_what_is_not_finite_is_read(text: str, functions: ctypes.CDLL) -> None:
    np.testing.assert_equal(float_of(text, functions), np.float32(text))


# ---- settings ----


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "line 1: the settings are one object, in braces"),
        ("[]", "line 1: the settings are one object, in braces"),
        ('{"control_hz": 100', "line 1: a comma or the closing brace is missing"),
        ('{"ticks": 1,\n}', "line 2: the name of a setting is missing, in quotes"),
        ('{"ticks": 1}\n\n{}', "line 3: something follows the closing brace"),
        ('{"ticks": 1}\0', "line 1: something follows the closing brace"),
        ('{"ticks" 1}', "line 1: a colon is missing behind the name of a setting"),
        ('{\n"control_Hz": 1}', "line 2: no setting 'control_Hz'; have: control_hz, ticks, batch, safe_action, "
         "log_level, observations, actions"),
        ('{"ticks": 1,\n"ticks": 2}', "line 2: 'ticks' is there twice"),
        ('{"control_hz": 0}', "line 1: 'control_hz' is a whole number from 1 to 1000000"),
        ('{"control_hz": 1000001}', "line 1: 'control_hz' is a whole number from 1 to 1000000"),
        ('{"control_hz": 62.5}', "line 1: 'control_hz' is a whole number from 1 to 1000000"),
        ('{"control_hz": 1e2}', "line 1: 'control_hz' is a whole number from 1 to 1000000"),
        ('{"control_hz": "100"}', "line 1: 'control_hz' is a whole number from 1 to 1000000"),
        ('{"ticks": -1}', "line 1: 'ticks' is a whole number from 0 to 4294967295"),
        ('{"ticks": 007}', "line 1: 'ticks' is a whole number from 0 to 4294967295"),
        ('{"ticks": 99999999999999999999999}', "line 1: 'ticks' is a whole number from 0 to 4294967295"),
        ('{"batch": 1}', "line 1: 'batch' is true or false"),
        ('{"batch": trueish}', "line 1: 'batch' is true or false"),
        ('{"safe_action": "zero"}', "line 1: 'safe_action' is \"zeros\" or \"hold\""),
        ('{"log_level": 2}', "line 1: 'log_level' is \"error\", \"warn\", \"info\" or \"debug\""),
        ('{"actions": null}', "line 1: 'actions' is a path in quotes"),
        ('{"actions": {"x": 1}}', "line 1: 'actions' is a path in quotes"),
        ('{"actions": "a\n"}', "line 1: a text has no closing quote"),
        ('{"actions": "a', "line 1: a text has no closing quote"),
        ('{"actions": "\\u0041"}', 'line 1: of the escapes in a text there are \\" \\\\ and \\/ alone'),
        ('{"actions": "' + "a" * 1024 + '"}', "line 1: a text is longer than 1,023 bytes"),
    ],
)  # fmt: skip
def test_wrong_settings_are_one_sentence_with_the_line(text: str, sentence: str, arm: Project) -> None:
    ran = loop(arm, text)
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", f"error: own.json, {sentence}\n")


def test_a_file_that_cannot_be_opened_is_one_sentence(arm: Project) -> None:
    for arguments, sentence in [
        (["--config", "none.json"], "cannot read 'none.json': No such file or directory"),
        (["--config", "src"], "'src' cannot be read"),
        (["--confg", "x"], "this takes nothing but --config FILE"),
    ]:
        ran = run_command(["./out/loop", *arguments], arm.folder)
        assert (ran.returncode, ran.stderr) == (1, f"error: {sentence}\n")
    for key in ("observations", "actions"):
        ran = loop(arm, {key: "no/such.csv"})
        assert (ran.returncode, ran.stderr) == (1, "error: cannot open 'no/such.csv': No such file or directory\n")


def test_a_path_may_hold_quotes_and_backslashes(arm: Project) -> None:
    assert loop(arm, {"batch": True, "actions": 'a "b"\\c.csv'}).returncode == 0
    assert len((arm.folder / 'a "b"\\c.csv').read_text().splitlines()) == 65


def test_settings_too_long_to_be_ours_are_refused(arm: Project) -> None:
    assert loop(arm, " " * 8193).stderr == "error: 'own.json' is longer than 8,192 bytes\n"


def test_actions_that_cannot_be_written_fail_the_loop(arm: Project) -> None:
    ran = loop(arm, {"batch": True, "actions": "/dev/full"})
    assert ran.returncode == 1
    assert "or not all actions be written" in ran.stderr


# ---- what is said ----


@pytest.mark.parametrize(("level", "n_lines"), [("error", 0), ("warn", 1), ("info", 1), ("debug", 3)])
def test_the_log_level_decides_what_is_said(level: str, n_lines: int, refuser: Project) -> None:
    write_csv(refuser, "nan\nnan\nnan\n")
    ran = loop(refuser, BATCH | {"log_level": level})
    lines = ran.stderr.splitlines()
    assert len(lines) == n_lines
    assert [line.split(":")[0] for line in lines] == ["warn", "debug", "debug"][:n_lines]
    assert ("  from " in ran.stdout) == (level == "debug" and "inference" in ran.stdout)


def test_what_is_less_important_than_is_compiled_is_not_in_the_program(tmp_path: Path) -> None:
    project = built(refusing(), tmp_path, "-DLOOP_LOG_COMPILED=LOOP_ERROR")
    assert b"the deadline is missed" not in (project.folder / "out" / "loop").read_bytes()
    assert loop(project, {"observations": "", "batch": True, "log_level": "debug"}).stderr == ""


# ---- builds ----


@pytest.mark.parametrize("compiler", ["cc", "clang"])
def test_the_loop_runs_clean_under_the_sanitizers(compiler: str, tmp_path: Path) -> None:
    toolchain.find(compiler)
    project = built(refusing(), tmp_path, *SANITIZERS, cc=str(toolchain.find(compiler)))
    write_csv(project, "a\nnan\n1.5\n1e-40\n123456789012345678901e5\n")
    ran = loop(project, {**BATCH, "batch": False, "control_hz": 1000, "log_level": "debug"})
    assert ran.returncode == 0, ran.stderr
    assert actions(project).ravel().tolist() == [0.0, 1.5, np.float32(1e-40), np.float32(123456789012345678901e5)]
    assert loop(project, "{").returncode == 1


def test_cmake_builds_and_runs_the_loop(tmp_path: Path) -> None:
    folder = create(reacher(), tmp_path / "it's a robot", "host").folder
    for command in (["-B", "build"], ["--build", "build", "--target", "run-loop"]):
        made = run_command(["cmake", *command], folder)
        assert made.returncode == 0, made.stdout + made.stderr
    assert counts(made.stdout)["ticks"] == 64


def test_a_robot_in_cpp_links(tmp_path: Path) -> None:
    project = built(refusing(), tmp_path)
    (tmp_path / "robot.cpp").write_text(
        '#include "loop.h"\n'
        "static int n;\n"
        "int sensor_read(float observation[N_OBS]) { observation[0] = 1; return ++n < 9 ? LOOP_OBSERVED : LOOP_END; }\n"
        "void actuator_write(const policy_action *) {}\n"
        "void loop_update(const loop_statistics *) {}\n"
    )
    source = project.folder / "src"
    headers = [f"-I{source}", f"-I{source / 'loop'}", f"-I{project.folder / 'policy' / 'include'}"]
    objects = [path for path in (project.folder / "out").rglob("*.o") if path.name != "robot.c.o"]
    strict = ["-Wall", "-Wextra", "-Werror", "-Wconversion"]
    command = ["g++", *strict, *headers, tmp_path / "robot.cpp", *objects, "-o", tmp_path / "robot"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert counts(run_command([str(tmp_path / "robot")], tmp_path).stdout)["ticks"] == 8


# ---- boards ----

EMULATED = ["mps3-an547", "microbit", "riscv32-virt"]


def firmware(
    library: ModelLibrary,
    board: str,
    folder: Path,
    flags: str = "",
    robot: str | None = None,
    link: str = "semihosting",
) -> Project:
    project = create(library, folder / "project", "baremetal", {"board": board, "link": link})
    if robot is not None:
        (project.folder / "src" / "loop" / "robot.c").write_text(robot)
    made = run_make(project.folder, "loop", f"CFLAGS={STRICT} {flags}", "LDFLAGS=-Wl,--fatal-warnings")
    assert made.returncode == 0, made.stderr
    return project


def on_board(project: Project, folder: Path) -> str:
    assert project.board is not None
    return emulate(project.board, project.folder / "out" / "loop.elf", folder, 120)


@pytest.mark.parametrize("board", BOARDS)
def test_the_loop_takes_less_than_100_kb_of_every_board(board: str, tmp_path: Path) -> None:
    project = firmware(refusing(), board, tmp_path)  # a policy of a few dozen bytes, and its test vectors
    assert footprint(project.folder / "out" / "loop.elf").flash_bytes < FLASH_LIMIT


@pytest.mark.parametrize("board", EMULATED)
def test_a_board_answers_a_recording_bit_for_bit(board: str, tmp_path: Path) -> None:
    project = firmware(reacher(target="host"), board, tmp_path, "-DLOOP_BATCH=1")
    rows = np.random.default_rng(5).normal(size=(50, 5)).astype(np.float32)
    (tmp_path / "observations.csv").write_text("a,b,c,d,e\n" + csv_of(rows))
    printed = on_board(project, tmp_path)
    expected = rows[:, 3:5] - rows[:, 0:2]
    assert (tmp_path / "actions.bin").read_bytes() == expected.astype("<f4").tobytes()
    assert counts(printed)["ticks"] == 50
    assert "period" not in printed


def test_a_board_tells_the_line_that_it_cannot_read(tmp_path: Path) -> None:
    project = firmware(refusing(), "microbit", tmp_path)
    (tmp_path / "observations.csv").write_text("1\nx\n")
    assert "error: observations.csv, line 2: 'x' is no number\n" in on_board(project, tmp_path)
    assert run_make(project.folder, "run-loop").returncode == 0  # where there is no such file


@pytest.mark.parametrize("board", EMULATED)
def test_a_board_keeps_its_tick_in_instructions(board: str, tmp_path: Path) -> None:
    """Past the wrap of SysTick's 24 bits on mps3-an547. The wait asks for the time, at most 600 instructions apart; the first
    tick, due when the loop starts, is the later for what comes before it."""
    project = firmware(refusing(), board, tmp_path, "-DLOOP_LOG_LEVEL=LOOP_DEBUG")
    printed = on_board(project, tmp_path)
    assert project.board is not None
    tick_hz, instructions = project.board.tick_hz, 1_000_000_000 // project.board.tick_hz
    assert counts(printed) == {
        "ticks": 64, "missed": 0, "skipped": 0, "sensor failures": 0, "policy failures": 0
    }  # fmt: skip
    lateness, period = spread(printed, "lateness"), spread(printed, "period")
    assert lateness["mean"] <= 100 // instructions + 2
    assert lateness["greatest"] <= 600 // instructions + 2
    assert abs(period["mean"] - tick_hz // 100) <= 10 // instructions + 1
    assert period["greatest"] - period["least"] <= 1200 // instructions + 4
    assert on_board(project, tmp_path) == printed  # with the same histograms


@pytest.mark.parametrize("board", EMULATED)
def test_a_board_counts_what_a_slow_sensor_misses(board: str, tmp_path: Path) -> None:
    sense = """
    observation[0] = 1.0f;
    if (tick++ == 2) { const uint64_t end = loop_now() + TICK_HZ / 1000u * 35u; while (loop_now() < end) { } }
    return LOOP_OBSERVED;"""
    robot = ROBOT.replace("#include <time.h>", '#include "board.h"').format(sense=sense, update="(void)statistics;")
    project = firmware(refusing(), board, tmp_path, "-DLOOP_TICKS=6", robot)
    printed = on_board(project, tmp_path)
    assert (counts(printed)["missed"], counts(printed)["skipped"]) == (1, 3)
    assert "warn: the deadline is missed at tick 2\n" in printed


def test_make_and_cmake_build_the_same_loop(tmp_path: Path) -> None:
    project = firmware(refusing(), "mps3-an547", tmp_path)
    for command in (["-B", "build"], ["--build", "build", "--target", "loop"]):
        assert run_command(["cmake", *command], project.folder).returncode == 0
    assert footprint(project.folder / "out" / "loop.elf") == footprint(project.folder / "build" / "loop.elf")


def test_a_rate_that_the_clock_cannot_count_is_an_error_of_the_compiler(tmp_path: Path) -> None:
    project = create(refusing(), tmp_path / "project", "baremetal")
    made = run_make(project.folder, "loop", "CFLAGS=-DLOOP_CONTROL_HZ=0")
    assert made.returncode != 0
    assert "LOOP_CONTROL_HZ is a whole number from 1 to 1000000" in made.stderr


@pytest.mark.parametrize("board", EMULATED)
def test_without_a_debugger_the_loop_says_what_it_did_over_the_serial_line(board: str, tmp_path: Path) -> None:
    """Its recording is the test vectors."""
    project = firmware(reacher(target="host"), board, tmp_path, "-DLOOP_BATCH=1", link="uart")
    assert project.board is not None
    elf, printed = project.folder / "out" / "loop.elf", b""
    with EmulatedSerial(project.board, elf) as stream:
        while b"\ndone\n" not in printed:
            printed += stream.receive(60)
    assert counts(printed.decode())["ticks"] == 64
    assert not calls_a_debugger(elf, project.board)
