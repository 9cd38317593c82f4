# SPDX-License-Identifier: Apache-2.0
"""A library becomes a folder that builds without us. These libraries are written by hand, so TVM is not needed."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import io
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tinyrl_tvm import project as projects
from tinyrl_tvm import toolchain
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.interface import MAX_BUILT_IN_VECTORS, Interface, Layer, Vectors
from tinyrl_tvm.library import ModelLibrary
from tinyrl_tvm.project import PLATFORMS, build, create, generate, load
from tinyrl_tvm.targets import BOARDS, TARGETS, Target

N_VECTORS = 64
MAKE_AND_CMAKE = [name for name, platform in PLATFORMS.items() if platform.command == ("make",)]


def hand_written_library(
    body: str,
    observations: np.ndarray,
    expected: np.ndarray,
    *,
    name: str = "toy",
    inputs: Mapping[str, int] | None = None,
    target: str = "cortex-m55",
    tolerance: float = 0.0,
    files: Mapping[str, str] | None = None,
    before: str = "",
) -> ModelLibrary:
    """A library whose `<name>_predict` has the given C body. `inputs` maps a tensor's name to its length."""
    inputs = inputs or {"obs": observations.shape[1]}
    c_names = ["_".join(re.findall(r"\w+", tensor)) for tensor in inputs]
    dtype, n_actions = str(expected.dtype), expected.shape[1]
    c_type = {"float32": "float", "int32": "int32_t"}[dtype]
    parameters = [f"const float {c}[{n}]" for c, n in zip(c_names, inputs.values(), strict=True)]
    signature = f"int {name}_predict({', '.join(parameters)}, {c_type} action[{n_actions}])"
    tinyrl = {
        "target": target,
        "precision": "float32",
        "inputs": [
            {"name": tensor, "c_name": c, "length": n, "shape": [n]}
            for c, (tensor, n) in zip(c_names, inputs.items(), strict=True)
        ],
        "action": {"name": "action", "c_name": "action", "length": n_actions, "dtype": dtype},
        "tolerance": tolerance,
        "test_vectors": len(observations),
    }
    vectors = io.BytesIO()
    np.savez(vectors, observations=observations, expected=expected, float_action=expected)
    guard = f"TVMGEN_{name.upper()}_H"
    in_cpp = '#ifdef __cplusplus\nextern "C"\n#endif\n'
    header = f"#ifndef {guard}\n#define {guard}\n#include <stdint.h>\n{in_cpp}{signature};\n#endif\n"
    texts = {
        "metadata.json": json.dumps({"version": 8, "modules": {name: {"tinyrl": tinyrl}}}),
        f"codegen/host/include/tvmgen_{name}.h": header,
        f"codegen/host/src/{name}_policy.c": f'#include "tvmgen_{name}.h"\n{before}\n{signature}\n{{\n{body}\n}}\n',
    } | dict(files or {})
    return ModelLibrary(
        {path: text.encode() for path, text in texts.items()} | {"test/vectors.npz": vectors.getvalue()}
    )


def observations_of(n_obs: int, n: int = N_VECTORS) -> np.ndarray:
    return np.random.default_rng(7).normal(size=(n, n_obs)).astype(np.float32)


def cartpole(**changes: object) -> ModelLibrary:
    """Discrete: int32_t action[1], bit for bit."""
    observations = observations_of(4)
    expected = (observations[:, 2] + observations[:, 3] > 0).astype(np.int32)[:, np.newaxis]
    return hand_written_library(
        "    action[0] = obs[2] + obs[3] > 0.0f;\n    return 0;", observations, expected, name="cartpole", **changes
    )


def pendulum(**changes: object) -> ModelLibrary:
    """Continuous: float action[1] with a tolerance, for numpy's sum and C's may round differently."""
    observations = observations_of(3)
    expected = (observations @ np.array([[-2.0], [0.5], [-0.3]], np.float32)).astype(np.float32)
    body = "    action[0] = -2.0f * obs[0] + 0.5f * obs[1] - 0.3f * obs[2];\n    return 0;"
    return hand_written_library(body, observations, expected, name="pendulum", tolerance=1e-5, **changes)


def reacher(**changes: object) -> ModelLibrary:
    """Two inputs; the first one's name is not a C identifier."""
    observations = observations_of(5)
    expected = np.ascontiguousarray(observations[:, 3:5] - observations[:, 0:2])
    body = "    action[0] = goal[0] - arm_pose[0];\n    action[1] = goal[1] - arm_pose[1];\n    return 0;"
    return hand_written_library(
        body, observations, expected, name="reacher", inputs={"arm/pose": 3, "goal": 2}, **changes
    )


def echo(values: Sequence[float]) -> ModelLibrary:
    """Answers its observation: whatever the project prints into its sources must come back with the same bits."""
    column = np.array(values, np.float32)[:, np.newaxis]
    return hand_written_library("    action[0] = obs[0];\n    return 0;", column, column)


POLICIES = {"cartpole": cartpole, "pendulum": pendulum, "reacher": reacher}


def run_make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command(["make", *arguments], folder)


def run_command(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = toolchain.build_environment()
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )


def everything_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_project_loads_as_it_was_created(platform: str, tmp_path: Path) -> None:
    library = reacher(target="host")
    created = create(library, tmp_path / "build" / "reacher", platform)
    loaded = load(tmp_path / "build" / "reacher")
    assert loaded == created
    assert loaded.library.files == library.files
    assert loaded.interface == Interface.of(library)
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.platform = "other"  # type: ignore[misc]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_same_library_gives_the_same_project(platform: str, tmp_path: Path) -> None:
    create(pendulum(target="host"), tmp_path / "one", platform)
    create(pendulum(target="host"), tmp_path / "two", platform)
    assert everything_below(tmp_path / "one") == everything_below(tmp_path / "two")


def test_no_verb_asks_again_for_an_option(tmp_path: Path) -> None:
    create(cartpole(), tmp_path / "project", "baremetal", {"board": "mps3-an547"})
    assert load(tmp_path / "project").options == {"board": "mps3-an547", "link": "semihosting", "flash_command": ""}


def test_creating_leaves_nothing_beside_the_project(tmp_path: Path) -> None:
    create(cartpole(), tmp_path / "project", "host")
    create(cartpole(), tmp_path / "project", "host", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["project"]


def test_a_folder_that_exists_is_refused(tmp_path: Path) -> None:
    create(cartpole(), tmp_path / "project", "host")
    before = everything_below(tmp_path)
    with pytest.raises(TinyrlError, match=r"project' already exists; -f replaces it"):
        create(pendulum(), tmp_path / "project", "host")
    assert everything_below(tmp_path) == before


def test_force_replaces_an_earlier_project_whole(tmp_path: Path) -> None:
    create(cartpole(), tmp_path / "project", "host")
    (tmp_path / "project" / "left-over.txt").write_text("of the first project")
    create(pendulum(), tmp_path / "project", "baremetal", force=True)
    assert load(tmp_path / "project").library.name == "pendulum"
    assert not (tmp_path / "project" / "left-over.txt").exists()


def test_force_does_not_replace_a_folder_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(TinyrlError, match=r"thesis' is not a project of ours .* so -f does not replace it"):
        create(cartpole(), tmp_path / "thesis", "host", force=True)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"


def test_force_does_not_replace_a_file(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("keep me")
    with pytest.raises(TinyrlError, match=r"is not a project of ours"):
        create(cartpole(), tmp_path / "notes", "host", force=True)
    assert (tmp_path / "notes").read_text() == "keep me"


def test_force_fills_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert create(cartpole(), tmp_path / "empty", "host", force=True).library.name == "cartpole"


def test_force_replaces_what_a_link_points_to(tmp_path: Path) -> None:
    create(cartpole(), tmp_path / "project", "host")
    (tmp_path / "link").symlink_to("project")
    create(pendulum(), tmp_path / "link", "host", force=True)
    assert (tmp_path / "link").is_symlink()
    assert load(tmp_path / "project").library.name == "pendulum"


def test_an_interrupted_create_leaves_the_earlier_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create(cartpole(), tmp_path / "project", "host")
    before = everything_below(tmp_path)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(generate, "_write_tree", full_disk)
    with pytest.raises(TinyrlError, match=r"cannot write '.*project': No space left on device; choose another folder"):
        create(pendulum(), tmp_path / "project", "host", force=True)
    assert everything_below(tmp_path) == before


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TinyrlError, match=r"cannot write '.*project': .*; choose another folder"):
        create(cartpole(), tmp_path / "file" / "project", "host")


def test_an_unknown_platform_is_refused_with_a_guess(tmp_path: Path) -> None:
    with pytest.raises(
        TinyrlError,
        match=r"no platform 'bare-metal'; have: arduino, baremetal, .*wasm, zephyr. Did you mean 'baremetal'\?",
    ):
        create(cartpole(), tmp_path / "project", "bare-metal")


def test_an_unknown_board_is_refused_with_a_guess(tmp_path: Path) -> None:
    with pytest.raises(TinyrlError, match=r"no board 'mps3-an574'; have: .*mps3-an547.*. Did you mean 'mps3-an547'\?"):
        create(cartpole(), tmp_path / "project", "baremetal", {"board": "mps3-an574"})
    assert not (tmp_path / "project").exists()


def test_an_unknown_option_is_refused_with_the_list(tmp_path: Path) -> None:
    with pytest.raises(
        TinyrlError, match=r"no option of 'baremetal' 'bord'; have: board, flash_command, link. Did you mean 'board'\?"
    ):
        create(cartpole(), tmp_path / "project", "baremetal", {"bord": "mps3-an547"})
    with pytest.raises(TinyrlError, match=r"no option 'board'; the platform 'host' has none"):
        create(cartpole(), tmp_path / "project", "host", {"board": "mps3-an547"})


def test_every_option_has_a_default_among_its_choices() -> None:
    for platform in PLATFORMS.values():
        for option in platform.options:
            assert option.default in (option.choices or ("",))


def test_a_library_for_another_core_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "cortex-m4", Target("cortex-m4", "Arm Cortex-M4", kernels="dsp", guard="1"))
    sentence = (
        r"compiled for 'cortex-m4', the board 'mps3-an547' has a 'cortex-m55'; "
        r"choose --project-option board=mps2-an386, or compile the policy with --target cortex-m55$"
    )
    with pytest.raises(TinyrlError, match=sentence):
        create(cartpole(target="cortex-m4"), tmp_path / "project", "baremetal")


def test_a_portable_library_fits_every_board(tmp_path: Path) -> None:
    assert create(cartpole(target="host"), tmp_path / "project", "baremetal").interface.target == "host"


SIZES = {"parameter_bytes": 8, "output_length": 2}
WORDS = {"function": "tvmgen_cartpole_dense0", "summary": "dense 4 -> 2", "place": "mve", "reason": "it is"}
LAYER = {**WORDS, **SIZES}


def damaged(**changes: object) -> ModelLibrary:
    """Cartpole's library with keys of its interface replaced, or taken away by None."""
    library = cartpole()
    metadata = library.metadata
    interface = metadata["modules"]["cartpole"]["tinyrl"]
    for key, value in changes.items():
        interface[key] = value
        if value is None:
            del interface[key]
    return ModelLibrary(dict(library.files) | {"metadata.json": json.dumps(metadata).encode()})


@pytest.mark.parametrize(
    "library",
    [
        damaged(action=None),
        damaged(tolerance=-1.0),
        damaged(tolerance=float("nan")),
        damaged(target="z80"),
        damaged(inputs=[]),
        damaged(inputs="obs"),
        damaged(inputs=[{"name": "obs", "c_name": "obs", "length": -4}]),
        damaged(inputs=[{"name": "obs", "c_name": "obs", "length": "4"}]),
        damaged(inputs=[{"name": 4, "c_name": "obs", "length": 4}]),
        damaged(inputs=[{"name": "obs", "c_name": "obs[4]); system(", "length": 4}]),
        damaged(action={"name": "action", "c_name": "action", "length": 1, "dtype": "complex64"}),
        damaged(layers=4),
        damaged(layers=["dense"]),
        damaged(layers=[LAYER, LAYER]),
        damaged(layers=[LAYER | {"more": 1}]),
        damaged(layers=[LAYER | {"function": "system(1); x"}]),
        damaged(layers=[LAYER | {"place": "elsewhere"}]),
        damaged(layers=[LAYER | {"place": []}]),
        damaged(layers=[LAYER | {"summary": "\x1b[2J"}]),
        damaged(layers=[LAYER | {"reason": 10_000 * "x"}]),
        damaged(layers=[LAYER | {"reason": None}]),
        damaged(layers=[LAYER | {"parameter_bytes": "4"}]),
        damaged(layers=[LAYER | {"output_length": -1}]),
    ],
)
def test_a_library_that_describes_no_policy_is_refused(library: ModelLibrary, tmp_path: Path) -> None:
    with pytest.raises(TinyrlError, match=r"does not describe a policy .*; compile the policy again"):
        create(library, tmp_path / "project", "host")
    assert not any(tmp_path.iterdir())


def test_a_library_of_an_earlier_release_names_no_layers() -> None:
    assert "layers" not in cartpole().interface
    assert Interface.of(cartpole()).layers == ()
    assert Interface.of(damaged(layers=[LAYER])).layers == (Layer(**WORDS, **SIZES),)


@pytest.mark.parametrize("path", ["src/$(rm -rf x).c", "src/a b.c", "../../escaped.c", "src/-o.c", "src/a;b.c"])
def test_a_source_whose_name_make_could_misread_is_refused(path: str, tmp_path: Path) -> None:
    library = cartpole(files={f"codegen/host/{path}": ""})
    with pytest.raises(TinyrlError, match=r"the library holds a source called"):
        create(library, tmp_path / "project", "host")


def test_a_library_without_code_is_refused(tmp_path: Path) -> None:
    files = {path: data for path, data in cartpole().files.items() if not path.endswith(".c")}
    with pytest.raises(TinyrlError, match=r"the library holds no C code for 'cartpole'"):
        create(ModelLibrary(files), tmp_path / "project", "host")


@pytest.mark.parametrize("bad", [np.zeros((0, 1)), np.full((4, 1), np.nan), np.zeros((4, 2))])
def test_vectors_that_cannot_be_used_are_refused(bad: np.ndarray) -> None:
    good = np.zeros((len(bad), 1), np.float32)
    with pytest.raises(TinyrlError, match=r"the library's test vectors cannot be used"):
        Vectors.of(hand_written_library("return 0;", bad.astype(np.float32), good, inputs={"obs": 1}))


def test_a_long_recording_is_carried_in_part_evenly() -> None:
    observations = observations_of(2, 1000)
    built_in = Vectors.of(hand_written_library("return 0;", observations, observations)).built_in
    assert len(built_in) == MAX_BUILT_IN_VECTORS
    assert built_in[0] == 0
    assert built_in[-1] == 999
    assert set(np.diff(built_in)) <= {15, 16}


def test_wide_observations_do_not_fill_the_flash() -> None:
    observations = observations_of(3 * 84 * 84, 4)
    library = hand_written_library("return 0;", observations, observations[:, :1].copy())
    assert len(Vectors.of(library).built_in) == 1


def test_a_tensor_name_cannot_break_out_of_the_readme(tmp_path: Path) -> None:
    observations = observations_of(2)
    library = hand_written_library(
        "    action[0] = a_b_c[0];\n    return 0;",
        observations,
        np.ascontiguousarray(observations[:, :1]),
        inputs={"a`b\n# c": 1, "goal": 1},
    )
    create(library, tmp_path / "project", "host")
    assert "`` a`b\N{REPLACEMENT CHARACTER}# c ``" in (tmp_path / "project" / "README.md").read_text()


def test_load_refuses_what_is_no_project(tmp_path: Path) -> None:
    with pytest.raises(TinyrlError, match=r"no project in '.*'; 'tinyrl-tvm micro create' makes one"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "platform": "host", "options": 3}', "\xff"])
def test_load_refuses_a_damaged_project(text: str, tmp_path: Path) -> None:
    create(cartpole(), tmp_path / "project", "host")
    (tmp_path / "project" / projects.PROJECT_FILE).write_text(text, encoding="latin-1")
    with pytest.raises(TinyrlError, match=r"is damaged \([^()]*(\(char \d+\))?\); create the project again with -f"):
        load(tmp_path / "project")


def test_load_refuses_a_project_of_another_format(tmp_path: Path) -> None:
    create(cartpole(), tmp_path / "project", "host")
    path = tmp_path / "project" / projects.PROJECT_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(
        TinyrlError, match=r"is of format 99, this tinyrl-tvm reads 1; create the project again with -f"
    ):
        load(tmp_path / "project")


def test_a_project_that_was_not_built_says_so(tmp_path: Path) -> None:
    with pytest.raises(TinyrlError, match=r"is not built; run 'tinyrl-tvm micro build .*project' first"):
        projects.built(create(cartpole(), tmp_path / "project", "host"))


MEMORY_REGION = r"(FLASH|RAM)\s.*ORIGIN = (\w+), LENGTH = (\d+)K"


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_linker_script_and_board_table_agree(board, tmp_path: Path) -> None:
    create(cartpole(target=board.target), tmp_path / "project", "baremetal", {"board": board.name})
    script = (tmp_path / "project" / board.architecture.name / "link.ld").read_text()
    regions = {name: (int(origin, 16), int(kib) * 1024) for name, origin, kib in re.findall(MEMORY_REGION, script)}
    assert regions == {"FLASH": (board.flash_origin, board.flash_bytes), "RAM": (board.ram_origin, board.ram_bytes)}


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_instructions_a_tick_and_board_table_agree(board, tmp_path: Path) -> None:
    create(cartpole(target=board.target), tmp_path / "project", "baremetal", {"board": board.name})
    header = (tmp_path / "project" / "src" / "board.h").read_text()
    assert int(re.search(r"INSTRUCTIONS_PER_100_TICKS (\d+)u", header)[1]) * board.tick_hz == 100 * 1_000_000_000


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("compiler", ["cc", "clang"])
def test_the_host_project_is_clean_under_strict_warnings(policy: str, compiler: str, tmp_path: Path) -> None:
    toolchain.find(compiler)
    project = create(POLICIES[policy](), tmp_path / "project", "host")
    made = run_make(project.folder, f"CC={compiler}", "CFLAGS=-Werror -Wpedantic", "run")
    assert made.returncode == 0, made.stderr
    assert "PARITY PASS (64 of 64)" in made.stdout


@pytest.mark.parametrize("link", ["semihosting", "uart"])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_firmware_is_clean_under_strict_warnings_of_gcc(policy: str, link: str, tmp_path: Path) -> None:
    project = create(POLICIES[policy](), tmp_path / "project", "baremetal", {"link": link})
    made = run_make(project.folder, "CFLAGS=-Werror -Wpedantic")
    assert made.returncode == 0, made.stderr
    assert "warning" not in made.stderr


@pytest.mark.parametrize("link", ["semihosting", "uart"])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_firmware_is_clean_under_strict_warnings_of_clang(policy: str, link: str, tmp_path: Path) -> None:
    clang = toolchain.find("clang")
    project = create(POLICIES[policy](), tmp_path / "project", "baremetal", {"link": link})
    sources = [path.relative_to(project.folder) for path in project.folder.rglob("*.c")]
    objects = [f"out/{path}.o" for path in sources] + [f"out/empty/{path}.o" for path in sources]
    flags = "CFLAGS=-Werror -ffreestanding"  # clang comes without a C library for Arm
    made = run_make(project.folder, f"CC={clang} --target=arm-none-eabi", flags, *objects)
    assert made.returncode == 0, made.stderr


@pytest.mark.parametrize("platform", MAKE_AND_CMAKE)
def test_make_builds_and_runs_where_the_path_has_spaces_and_quotes(platform: str, tmp_path: Path) -> None:
    project = create(pendulum(), tmp_path / 'it\'s a "robot" $HOME' / "p", platform)
    build(project)
    ran = run_make(project.folder, "run")
    assert ran.returncode == 0, ran.stderr
    assert "PARITY PASS (64 of 64)" in ran.stdout


@pytest.mark.parametrize("platform", MAKE_AND_CMAKE)
def test_cmake_builds_and_runs_where_the_path_has_spaces_and_a_quote(platform: str, tmp_path: Path) -> None:
    toolchain.find("cmake")
    folder = create(reacher(), tmp_path / "it's a robot" / "p", platform).folder
    for command in (["-B", "build"], ["--build", "build"], ["--build", "build", "--target", "run"]):
        made = run_command(["cmake", *command], folder)
        assert made.returncode == 0, made.stdout + made.stderr
        assert "warning" not in made.stderr.lower()
    assert "PARITY PASS (64 of 64)" in made.stdout


@pytest.mark.parametrize("link", ["semihosting", "uart"])
def test_make_and_cmake_build_the_same_firmware(link: str, tmp_path: Path) -> None:
    from tinyrl_tvm.device.elf import footprint

    project = create(pendulum(), tmp_path / "project", "baremetal", {"link": link})
    build(project)
    for command in (["-B", "build"], ["--build", "build"]):
        assert run_command(["cmake", *command], project.folder).returncode == 0
    for program in ("firmware.elf", "firmware_empty.elf"):
        assert footprint(project.folder / "out" / program) == footprint(project.folder / "build" / program)


def test_the_readme_names_the_command_that_make_runs(tmp_path: Path) -> None:
    project = create(cartpole(), tmp_path / "project", "baremetal")
    build(project)
    readme = (project.folder / "README.md").read_text()
    command = next(line for line in readme.splitlines() if line.startswith("qemu-system-arm"))
    assert command in re.sub(r"\s*\\\n\s*", " ", run_make(project.folder, "-n", "run").stdout)
    assert "PARITY PASS (64 of 64)" in run_command(command.split(), project.folder).stdout


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_call_in_the_readme_compiles(platform: str, tmp_path: Path) -> None:
    project = create(reacher(target="host"), tmp_path / "project", platform)
    code = re.search(r"```c\n(.*?)```", (project.folder / "README.md").read_text(), re.DOTALL)[1]
    includes, statements = code.split("\n\n", 1)
    (tmp_path / "own.c").write_text(f"{includes}\nint main(void)\n{{\n{statements}\nreturn status;\n}}\n")
    headers = project.folder / Path(PLATFORMS[platform].layout.place_of("include/tvmgen_reacher.h", "reacher")).parent
    command = ["cc", "-std=c99", "-Wall", "-Wextra", "-I", headers, "-c", "own.c"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stderr == b""


@pytest.mark.parametrize("platform", MAKE_AND_CMAKE)
def test_floats_reach_the_sources_bit_for_bit(platform: str, tmp_path: Path) -> None:
    limits = np.finfo(np.float32)
    values = [0.0, -0.0, 0.1, 1 / 3, 16777217.0, 1e10, 123456789.0, limits.max, limits.min, limits.tiny, 1e-45, -1e-40]
    project = create(echo(values), tmp_path / "project", platform)
    build(project)
    ran = run_make(project.folder, "run")
    assert f"PARITY PASS ({len(values)} of {len(values)})" in ran.stdout
    printed = [bytes.fromhex(word) for word in re.findall(r"^answer .* action ([0-9a-f]+)$", ran.stdout, re.MULTILINE)]
    assert b"".join(printed) == np.array(values, "<f4").tobytes()


@pytest.mark.parametrize("platform", MAKE_AND_CMAKE)
def test_integers_reach_the_sources_at_both_ends(platform: str, tmp_path: Path) -> None:
    observations = np.array([[0.0], [1.0]], np.float32)
    expected = np.array([[-(2**31)], [2**31 - 1]], np.int32)
    library = hand_written_library(
        "    action[0] = *obs > 0.0f ? INT32_MAX : INT32_MIN;\n    return 0;", observations, expected
    )
    project = create(library, tmp_path / "project", platform)
    made = run_make(project.folder, "CFLAGS=-Werror -Wpedantic", "run")
    assert "PARITY PASS (2 of 2)" in made.stdout, made.stderr


@pytest.mark.parametrize("platform", MAKE_AND_CMAKE)
def test_a_failed_parity_fails_make_run(platform: str, tmp_path: Path) -> None:
    observations = observations_of(1)
    wrong = observations.copy()
    wrong[5] = np.nextafter(wrong[5], np.float32(9))
    library = hand_written_library("    action[0] = obs[0];\n    return 0;", observations, wrong)
    project = create(library, tmp_path / "project", platform)
    build(project)
    ran = run_make(project.folder, "run")
    assert "PARITY FAIL (63 of 64)" in ran.stdout
    assert ran.returncode != 0


@pytest.mark.parametrize("platform", MAKE_AND_CMAKE)
def test_two_builds_of_one_folder_do_not_disturb_each_other(platform: str, tmp_path: Path) -> None:
    project = create(pendulum(), tmp_path / "project", platform)
    with ThreadPoolExecutor(4) as pool:
        for built in pool.map(build, [project] * 4):
            assert all(product.is_file() for product in built.products)
    assert "PARITY PASS (64 of 64)" in run_make(project.folder, "run").stdout


def test_flags_of_the_callers_shell_do_not_reach_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("CFLAGS", "LDFLAGS", "MAKEFLAGS", "OPTIMIZE"):
        monkeypatch.setenv(variable, "--nonsense")
    build(create(cartpole(), tmp_path / "project", "baremetal"))


def test_a_changed_source_is_built_again(tmp_path: Path) -> None:
    project = create(cartpole(), tmp_path / "project", "baremetal")
    firmware = build(project).products[0]
    before = firmware.read_bytes()
    main = project.folder / "src" / "main.c"
    main.write_text(main.read_text().replace("policy ", "our policy "))
    assert build(project).products[0].read_bytes() != before


def test_a_policy_too_large_for_the_board_is_one_sentence(tmp_path: Path) -> None:
    library = cartpole(before="volatile const float cartpole_weights[150000] = {1.0f};", files={})
    files = dict(library.files)
    source = "codegen/host/src/cartpole_policy.c"
    files[source] = files[source].replace(b"action[0] =", b"action[0] = cartpole_weights[7] > 0.0f &&")
    sentence = (
        r"the policy does not fit 'mps3-an547': its firmware needs 60\d,\d{3} B of flash and 600,\d{3} B of RAM, "
        r"the board has 524,288 B of flash and 524,288 B of RAM; try --precision int8 or a smaller network"
    )
    with pytest.raises(TinyrlError, match=sentence):
        build(create(ModelLibrary(files), tmp_path / "project", "baremetal"))


@pytest.mark.parametrize("platform", MAKE_AND_CMAKE)
def test_code_that_does_not_compile_is_one_sentence(platform: str, tmp_path: Path) -> None:
    project = create(cartpole(before="this is no C"), tmp_path / "project", platform)
    with pytest.raises(
        TinyrlError, match=r"the build failed: policy/src/cartpole_policy.c:2:\d+: error: .*; run 'make' in"
    ):
        build(project)


def test_a_second_build_says_that_it_waits_for_the_first(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    project = create(cartpole(), tmp_path / "project", "host")
    with ThreadPoolExecutor() as pool, held(project.folder):
        second = pool.submit(build, project)
        said = ""
        while not (said := said + capfd.readouterr().err):
            assert not second.done()
            time.sleep(0.01)
    assert said == f"another build is at work in '{project.folder}'; this one waits for it\n"
    assert all(product.is_file() for product in second.result().products)
    build(project)
    assert capfd.readouterr().err == ""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """As long as another build of it would take."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def only_on_path(folder: Path, programs: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATH that holds these programs and nothing else."""
    folder.mkdir()
    for program in programs:
        (folder / program).symlink_to(shutil.which(program))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CROSS_COMPILE", raising=False)


@pytest.mark.parametrize(
    ("platform", "present", "sentence"),
    [
        ("host", [], "no 'make' on PATH; it builds a project. Install it: .*apt-get install make"),
        ("host", ["make"], "no 'cc' on PATH; .* Install it: .*apt-get install gcc libc6-dev"),
        (
            "baremetal",
            ["make", "cc"],
            "no 'arm-none-eabi-gcc' on PATH; .* apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi",
        ),
    ],
)
def test_a_missing_build_tool_comes_with_the_line_that_installs_it(
    platform: str, present: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = create(cartpole(), tmp_path / "project", platform)
    only_on_path(tmp_path / "bin", present, monkeypatch)
    with pytest.raises(TinyrlError, match=sentence):
        build(project)


def test_a_cross_compiler_elsewhere_is_named_as_the_user_named_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSS_COMPILE", "/opt/nowhere/arm-none-eabi-")
    with pytest.raises(TinyrlError, match=r"no '/opt/nowhere/arm-none-eabi-gcc' on PATH"):
        toolchain.find("arm-none-eabi-gcc")


def test_a_cross_compiler_without_its_c_library_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "bare-gcc"
    compiler.write_text("#!/bin/sh\necho libc.a\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CROSS_COMPILE", str(tmp_path / "bare-"))
    with pytest.raises(TinyrlError, match=r"has no C library \(libc.a\). Install it: .* libnewlib-arm-none-eabi"):
        toolchain.find("arm-none-eabi-gcc")


def test_doctor_reports_every_tool_found_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {report.tool.name: report for report in toolchain.doctor()}
    assert set(found) == set(toolchain.TOOLS)
    assert "GNU Make" in found["make"].version
    only_on_path(tmp_path / "bin", ["make"], monkeypatch)
    found = {report.tool.name: report for report in toolchain.doctor()}
    assert found["make"].path is not None
    assert found["qemu-system-arm"].path is None
    assert found["qemu-system-arm"].version is None
