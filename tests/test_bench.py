# SPDX-License-Identifier: Apache-2.0
"""`bench`: one policy on several devices, and the page that says it."""

from __future__ import annotations

import html
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from policies import arg_max, compile_model, dense_policy, multi_discrete, squashed
from test_cli import POLICIES, answered, done, tinyrl
from test_project import cartpole as hand_written_cartpole
from test_project import everything_below

from tinyrl_tvm import project as projects
from tinyrl_tvm.bench.answers import decisions, errors, outside
from tinyrl_tvm.bench.measure import device_named, measure
from tinyrl_tvm.bench.pedigree import Pedigree
from tinyrl_tvm.device.emulator import emulate
from tinyrl_tvm.errors import TinyrlError
from tinyrl_tvm.library import ModelLibrary

VOID = {"meta", "link", "br", "img", "input", "hr"}
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


class Page(HTMLParser):
    """What stands on a page, and whether it is well made."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.open = text, []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "svg"} & set(self.open):
            self.words.append(data)

    @property
    def said(self) -> str:
        return " ".join(" ".join(self.words).split()).replace("\u202f", " ")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(path: Path) -> Page:
    page = Page(path.read_text())
    check(page)
    return page


def check(page: Page) -> None:
    """Whole, alone, for every reader."""
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "link", "iframe", "object", "embed"}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("href", "src", "srcset", "action") or str(value).startswith("#"), (name, value)
    assert not re.search(r"https?:|url\((?!#)|@import", page.text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {str(a["href"])[1:] for a in page.all("use")} <= set(ids)
    assert set(re.findall(r"url\(#([^)]*)\)", page.text)) <= set(ids)
    assert len(page.all("table")) == len(page.all("caption"))
    assert all("scope" in attributes for attributes in page.all("th"))
    assert all(attributes.get("aria-label") for attributes in page.all("svg"))
    assert len(page.all("h1")) == 1


def library_at(path: Path, library: ModelLibrary) -> Path:
    library.save(path)
    return path


def with_interface(library: ModelLibrary, **changes: object) -> ModelLibrary:
    """Keys of what is ours in the metadata replaced, or taken away by None."""
    metadata = library.metadata
    interface = metadata["modules"][library.name]["tinyrl"]
    interface |= changes
    for key in [key for key, value in changes.items() if value is None]:
        del interface[key]
    return ModelLibrary({**library.files, "metadata.json": json.dumps(metadata).encode()})


def with_vectors(library: ModelLibrary, **arrays: np.ndarray | None) -> ModelLibrary:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array for name, array in (library.vectors() | arrays).items() if array is not None})
    return ModelLibrary({**library.files, "test/vectors.npz": buffer.getvalue()})


def refuses(arguments: tuple[str | Path, ...], words: str, folder: Path) -> None:
    """In one sentence, exit 1, nothing on stdout, nothing written or changed in `folder`."""
    before = everything_below(folder)
    result = tinyrl(*arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert words in result.stderr
    assert everything_below(folder) == before


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cartpole.tar and a built project of it."""
    folder = tmp_path_factory.mktemp("trained")
    policy = POLICIES / "cartpole"
    options = ("--target", "cortex-m55", "--calibration", policy.with_suffix(".npz"))
    done("compile", policy.with_suffix(".onnx"), *options, "-o", folder / "cartpole.tar")
    done("micro", "create", folder / "project", folder / "cartpole.tar", "baremetal")
    return folder


@pytest.fixture(scope="module")
def whole(trained: Path) -> tuple[dict, Page]:
    """Everything that a bench can measure, as JSON and as a page."""
    said = answered(
        *("bench", trained / "cartpole.tar", "--device", "cpu", "--device", f"micro:{trained / 'project'}"),
        *("--env", "CartPole-v1", "--episodes", "2", "--policy", POLICIES / "cartpole.onnx"),
        *("-o", trained / "report.html"),
    )
    return said, page_of(trained / "report.html")


# ---- what is measured ----


def test_a_bench_says_what_run_says_of_each_device(trained: Path, whole: tuple[dict, Page]) -> None:
    said, _ = whole
    run = answered("run", "--device", "micro", trained / "project")
    cpu, micro = said["devices"]
    assert said["parity"] == cpu["parity"] == micro["parity"] == "PASS"
    for key in (
        "parity",
        "vectors_right",
        "action_agreement",
        "instructions_per_inference",
        "flash_bytes",
        "stack_bytes",
    ):
        assert micro[key] == run[key]
    assert cpu["instructions_per_inference"] is None
    assert micro["wall_time_ns_median"] is None


def test_references_are_of_the_same_run_and_the_kernels_are_worth_something(whole: tuple[dict, Page]) -> None:
    cpu, micro = whole[0]["devices"]
    ours, plain = micro["instructions_per_inference"], micro["portable_instructions_per_inference"]
    assert micro["portable_parity"] == "PASS"
    assert micro["instructions_ratio"] == ours / plain < 0.2
    assert cpu["time_ratio"] == cpu["wall_time_ns_median"] / cpu["onnxruntime_ns_median"] < 1


def test_returns_are_paired_with_the_float_policys(whole: tuple[dict, Page]) -> None:
    cpu, micro = whole[0]["devices"]
    assert micro["returns"] == micro["float_returns"] == [500.0, 500.0]
    assert cpu["returns"] is None


def test_firmware_and_its_reference_run_where_the_farm_says(trained: Path) -> None:
    boards = []

    def elsewhere(board, firmware, folder, timeout_s):
        boards.append(board.name)
        return emulate(board, firmware, folder, timeout_s)

    library = ModelLibrary.load(trained / "cartpole.tar")
    measure(library, [device_named(f"micro:{trained / 'project'}", library)], emulate=elsewhere)
    assert boards == ["mps3-an547"] * 3  # the firmware, layer by layer, and the reference


def test_a_firmware_on_a_serial_line_costs_what_it_does_beside_a_debugger(trained: Path, tmp_path: Path) -> None:
    library = ModelLibrary.load(trained / "cartpole.tar")
    projects.create(library, tmp_path / "serial", "baremetal", {"link": "uart"})
    devices = [device_named(f"micro:{folder}", library) for folder in (trained / "project", tmp_path / "serial")]
    by_debugger, by_uart = measure(library, devices).runs
    assert by_uart.measured.parity == "PASS"
    for serial, semihosting in (by_uart.measured, by_debugger.measured), (by_uart.portable, by_debugger.portable):
        # a tick of the board's counter, 31.25 instructions, over the inferences that one count takes
        assert serial.instructions_per_inference == pytest.approx(semihosting.instructions_per_inference, abs=0.5)


def test_a_firmware_on_a_serial_line_is_for_no_farm(trained: Path, tmp_path: Path) -> None:
    projects.create(ModelLibrary.load(trained / "cartpole.tar"), tmp_path / "serial", "baremetal", {"link": "uart"})
    farm = ("--rpc-tracker", "127.0.0.1:1", "--rpc-key", "m55", "--device", f"micro:{tmp_path / 'serial'}")
    sentence = "a project with link=uart does not run on a farm; create one with link=semihosting"
    refuses(("bench", trained / "cartpole.tar", *farm), sentence, tmp_path)


def test_a_project_for_another_core_stands_beside(trained: Path, tmp_path: Path) -> None:
    policy = POLICIES / "cartpole"
    options = ("--target", "cortex-m4", "--calibration", policy.with_suffix(".npz"))
    done("compile", policy.with_suffix(".onnx"), *options, "-o", tmp_path / "m4.tar", "--module-name", "cartpole")
    done("micro", "create", tmp_path / "m4", tmp_path / "m4.tar", "baremetal", "--project-option", "board=mps2-an386")
    devices = ("--device", f"micro:{tmp_path / 'm4'}", "--device", f"micro:{trained / 'project'}")
    said = answered("bench", trained / "cartpole.tar", *devices, "-o", tmp_path / "report.html")
    assert [device["target"] for device in said["devices"]] == ["cortex-m4", "cortex-m55"]
    assert said["devices"][0]["instructions_per_inference"] > said["devices"][1]["instructions_per_inference"]
    commands = page_of(tmp_path / "report.html").said
    assert (
        f"--target cortex-m4 --precision int8 --calibration cartpole.npz --module-name cartpole -o {tmp_path}/m4.tar"
        in commands
    )
    assert f"micro create {tmp_path}/m4 {tmp_path}/m4.tar baremetal --project-option board=mps2-an386" in commands


# ---- the page ----


def test_the_page_has_the_numbers_that_were_measured(whole: tuple[dict, Page]) -> None:
    said, page = whole
    cpu, micro = said["devices"]
    for number in (
        *(micro["instructions_per_inference"], micro["portable_instructions_per_inference"]),
        *(micro["flash_bytes"], micro["ram_bytes"], micro["stack_bytes"]),
        *(cpu["wall_time_ns_median"], cpu["onnxruntime_ns_median"]),
    ):
        assert re.search(rf"(?<![\d,.]){number:,.0f}(?![\d,])", page.said), number
    assert f"{100 * micro['action_agreement']:.1f} %" in page.said
    assert "256 of 256 test vectors, on 2 devices" in page.said
    assert "mean return 500" in page.said


def test_the_page_has_what_each_layer_and_each_part_of_memory_takes(whole: tuple[dict, Page]) -> None:
    _, micro = whole[0]["devices"]
    page = whole[1].said
    assert len(micro["profile"]["layers"]) == 4
    for layer in micro["profile"]["layers"]:
        cost = f"{layer['cost']:,.0f}"
        assert re.search(rf"{re.escape(layer['function'])} {cost} \S+ % {layer['parameter_bytes']:,} ", page), layer
    memory = micro["memory"]
    assert memory["flash"]["measured_bytes"] == micro["flash_bytes"]
    assert (
        f"flash {memory['flash']['predicted_bytes']:,} ± {memory['flash']['margin_bytes']:,} {micro['flash_bytes']:,}"
        in page
    )
    assert "The memory contract holds" in page


@pytest.mark.parametrize("budget_bytes", [32768, None])
def test_a_memory_contract_that_does_not_hold_is_exit_1_where_there_is_a_budget_and_on_the_page(
    budget_bytes: int | None, trained: Path, tmp_path: Path
) -> None:
    library = ModelLibrary.load(trained / "cartpole.tar")
    memory = library.interface["memory"]
    memory["ram"] |= {"predicted_bytes": 64, "contributors": [{"name": "workspace", "bytes": 64, "margin_bytes": 0}]}
    memory["ram"]["budget_bytes"] = budget_bytes
    path = library_at(tmp_path / "cartpole.tar", with_interface(library, memory=memory))
    done("micro", "create", tmp_path / "project", path, "baremetal")
    result = tinyrl("bench", path, "--device", f"micro:{tmp_path / 'project'}", "-o", tmp_path / "report.html")
    sentence = "the policy takes 128 B of RAM, 64 B were predicted with a margin of 0 B"
    assert result.exit_code == (1 if budget_bytes else 0)
    note, title = (
        ("", "The memory contract does not hold")
        if budget_bytes
        else ("note: ", "The memory is not what was predicted")
    )
    assert f"{note}micro:{tmp_path / 'project'}: {sentence}" in result.stderr
    assert f"{title}: {sentence}" in page_of(tmp_path / "report.html").said


def test_the_page_says_how_to_do_it_again(trained: Path, whole: tuple[dict, Page]) -> None:
    _, page = whole
    library, project = trained / "cartpole.tar", trained / "project"
    assert (
        "tinyrl-tvm compile cartpole.onnx --target cortex-m55 --precision int8 --calibration cartpole.npz "
        f"--module-name cartpole -o {library} "
        f"tinyrl-tvm micro create {project} {library} baremetal --project-option board=mps3-an547 "
        f"tinyrl-tvm bench {library} --device cpu --device micro:{project} --env CartPole-v1 --episodes 2 --policy"
    ) in page.said
    for words in ("arm-none-eabi-gcc", "QEMU counts instructions, not time", "0BSD", "Apache-2.0"):
        assert words in page.said


def test_the_command_of_a_library_compiles_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    """From beside the policy, whose folder no library names."""
    library = ModelLibrary.load(trained / "cartpole.tar")
    for suffix in (".onnx", ".npz"):
        shutil.copy(POLICIES / f"cartpole{suffix}", tmp_path)
    _, *words = Pedigree.of(library).command
    subprocess.run([sys.executable, "-m", "tinyrl_tvm", *words], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "cartpole.tar").read_bytes() == (trained / "cartpole.tar").read_bytes()


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_no_wider_than_its_window(
    width: int, trained: Path, whole: tuple[dict, Page], tmp_path: Path
) -> None:
    """In a frame, for no window of Chromium's is as narrow as a telephone. What is wider scrolls in a box of its own."""
    chromium = shutil.which("chromium")
    assert chromium, "apt-get install chromium"
    page = html.escape((trained / "report.html").read_text())
    root = "f.contentDocument.documentElement"
    measured = f"document.title = [{root}.clientWidth, {root}.scrollWidth, f.contentDocument.title].join(' | ')"
    frame = (
        f'<iframe id="f" style="border: 0" width="{width}" height="800" srcdoc="{page}" onload="{measured}"></iframe>'
    )
    (tmp_path / "frame.html").write_text(f"<!DOCTYPE html><title>nothing</title><body>{frame}")
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'user'}", "--dump-dom")
    address = (tmp_path / "frame.html").as_uri()
    dom = subprocess.run([chromium, *options, address], capture_output=True, text=True, check=True, timeout=120).stdout
    found = re.search(r"<title>(\d+) \| (\d+) \| cartpole: PASS, int8 on cortex-m55</title>", dom)
    assert found, dom[:200]
    assert width - 20 <= int(found[1]) == int(found[2])  # less the scrollbar of the frame


@pytest.mark.parametrize(
    ("sizes", "options", "precision"),
    [
        ((4, 8, 2), {}, "float32"),
        ((4, 8, 3), {"head": squashed(), "activation": "Tanh"}, "int8"),
        ((4, 8, 5), {"head": multi_discrete(2, 3)}, "int8"),
        ((4, 8, 20), {"head": arg_max}, "int8"),
        ((70, 8, 8), {"inputs": {"pose": (35,), "goal": (35,)}}, "int8"),
    ],
)
def test_every_kind_of_policy_has_a_page(sizes, options: dict, precision: str, tmp_path: Path) -> None:
    library = compile_model(dense_policy(sizes, **options), tmp_path, precision=precision).library
    path = library_at(tmp_path / "policy.tar", library)
    done("bench", path, "-o", tmp_path / "report.html")
    page = page_of(tmp_path / "report.html")
    assert "device and oracle 64 of 64" in page.said
    assert (precision == "float32") == ("A float32 policy has no codes" in page.said)
    assert len(page.all("svg")) == (0 if library.interface["action"]["dtype"] == "int32" else 2 * min(sizes[-1], 6))


def test_what_an_older_library_lacks_is_said_to_be_missing(tmp_path: Path) -> None:
    library = compile_model(dense_policy((4, 8, 2)), tmp_path).library
    older = with_vectors(library, float_action=None)
    older = with_interface(older, layers=None, clipped=None, observed=None, command=None)
    done("bench", library_at(tmp_path / "older.tar", older), "-o", tmp_path / "report.html")
    page = page_of(tmp_path / "report.html")
    for words in ("carries no answers of the float policy", "does not name its layers", "does not say which codes"):
        assert words in page.said
    assert "float policy</th>" not in page.text


def test_names_of_strangers_are_text_on_the_page(tmp_path: Path) -> None:
    model = dense_policy((4, 8, 2), inputs={HOSTILE: (4,)}, action_name=HOSTILE + "a")
    library = compile_model(model, tmp_path).library
    library = with_interface(
        library,
        **{"source": HOSTILE, "sha256": HOSTILE, "generator": HOSTILE, "precision": HOSTILE, "command": ["x", HOSTILE]},
        clipped=[{**library.interface["clipped"][0], "layer": HOSTILE}],
    )
    done("bench", library_at(tmp_path / "policy.tar", library), "-o", tmp_path / "report.html")
    page = page_of(tmp_path / "report.html")
    assert page.said.count("<script>alert(1)</script>") >= 6


def test_wrong_answers_are_a_page_that_says_so_and_exit_1(tmp_path: Path) -> None:
    library = compile_model(dense_policy((4, 8, 2)), tmp_path).library
    wrong = library.vectors()["expected"].copy()
    wrong[:3] += 1
    path = library_at(tmp_path / "policy.tar", with_vectors(library, expected=wrong))
    result = tinyrl("bench", path, "-o", tmp_path / "report.html")
    assert result.exit_code == 1
    page = page_of(tmp_path / "report.html")
    assert "FAIL" in page.said
    assert "61 of 64. Do not ship this." in page.said
    assert "bit for bit: " not in page.said


# ---- numbers of the page ----


def test_errors_and_decisions_are_counted_by_action() -> None:
    of_float = np.array([[0.0, 1.0], [2.0, 1.0]], np.float32)
    first, second = errors(of_float + np.array([[0.5, 0.0], [-0.25, 0.0]], np.float32), of_float)
    assert (first.mean_abs, first.max_abs, first.spread, first.relative) == (0.375, 0.5, 2.0, 0.25)
    assert (second.max_abs, second.relative) == (0.0, None)
    chosen = np.array([[0], [1], [1]], np.int32)
    (action,) = decisions(np.array([[0], [1], [0]], np.int32), chosen)
    assert action.agreement == pytest.approx(2 / 3)
    assert action.choices is not None
    assert action.choices.tolist() == [[1, 0], [1, 1]]
    (many,) = decisions(np.array([[40]], np.int32), np.array([[3]], np.int32))
    assert many.choices is None


def test_an_observation_at_the_limit_is_not_outside() -> None:
    observed = np.array([[-1.0, 0.0], [1.0, 0.0]], np.float32)
    rows = np.array([[1.0, 0.0], [1.5, -0.1], [-1.0, 0.1]], np.float32)
    assert outside(rows, observed).tolist() == [1, 2]


@pytest.mark.parametrize(
    "changes",
    [
        {"clipped": [{"layer": "x", "n_codes": 1, "at_low": 1, "at_high": 1, "level_low": False, "level_high": False}]},
        {"clipped": [{"layer": "x"}]},
        {"clipped": 5},
        {"observed": {"low": [0.0], "high": [1.0]}},
        {"observed": {"low": [1.0] * 4, "high": [0.0] * 4}},
        {"observed": {"low": [float("nan")] * 4, "high": [0.0] * 4}},
        {"command": [1]},
        {"source": 7},
    ],
)
def test_a_library_that_describes_its_making_wrongly_is_refused(changes: dict, tmp_path: Path) -> None:
    with pytest.raises(TinyrlError, match=r"does not describe its making .*compile the policy again"):
        Pedigree.of(with_interface(hand_written_cartpole(), **changes))


# ---- what is refused, before anything is measured ----


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--device", "gpu"), "no device 'gpu'; have: cpu, and micro:DIR"),
        (("--device", "micro:"), "no device 'micro:'"),
        (("--device", "micro:nowhere"), "no project in"),
        (("--episodes", "3"), "--episodes goes with --env"),
        (("--env", "CartPole-v1"), "--env needs a device that answers one observation at a time"),
        (("--policy", "nowhere.onnx"), "no policy at 'nowhere.onnx'"),
        (("--policy", POLICIES / "P1.onnx"), "is not the policy that the library 'cartpole' was compiled from"),
        (("--rpc-tracker", "127.0.0.1:9190"), "a farm takes both"),
        (("--rpc-tracker", "127.0.0.1:9190", "--rpc-key", "m55"), "give a project, --device micro:DIR"),
        (("-o", "nowhere/report.html"), "cannot write 'nowhere/report.html'"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(options, sentence: str, trained: Path, tmp_path: Path) -> None:
    shutil.copy(trained / "cartpole.tar", tmp_path)
    refuses(("bench", tmp_path / "cartpole.tar", *options), sentence, tmp_path)


def test_a_project_of_another_policy_is_refused(trained: Path, tmp_path: Path) -> None:
    other = with_interface(hand_written_cartpole(), sha256="0" * 64)
    projects.create(other, tmp_path / "other", "baremetal")
    sentence = (
        "is of 'cartpole' from 'cartpole', which is not the policy of the library, 'cartpole' from 'cartpole.onnx'"
    )
    arguments = ("bench", trained / "cartpole.tar", "--device", f"micro:{tmp_path / 'other'}")
    refuses((*arguments, "-o", tmp_path / "report.html"), sentence, tmp_path)


def test_no_tracker_is_one_sentence(trained: Path, tmp_path: Path) -> None:
    device = ("--device", f"micro:{trained / 'project'}", "--rpc-tracker", "127.0.0.1:1", "--rpc-key", "m55")
    refuses(("bench", trained / "cartpole.tar", *device), "no RPC tracker at 127.0.0.1:1", tmp_path)


def test_no_matplotlib_comes_with_the_line_that_installs_it(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arguments = ("bench", trained / "cartpole.tar", "-o", tmp_path / "report.html")
    refuses(arguments, "no matplotlib to draw a report with; pip install 'tinyrl-tvm[report]'", tmp_path)
    assert answered("bench", trained / "cartpole.tar")["report"] is None
