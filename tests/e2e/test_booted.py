"""A secure world on a real machine, with a monitor and a stock Linux: the same tokens, and memory for all."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from library import PROMPTS, Library

from flexserve.attestation.policy import Policy
from flexserve.attestation.verification import verify
from flexserve.bench.demo import DEFAULT_MODEL
from flexserve.emulator.boot_rom import reference_layers
from flexserve.emulator.machine import Machine
from flexserve.harness.shapes import SHAPES
from flexserve.harness.worlds import DrivenWorld
from flexserve.platforms.trustzone.secure_memory import DEFAULT_CHUNK
from flexserve.testing.machines import booted, images_of
from flexserve.testing.trustzone import eventually
from flexserve.units import MIB

pytestmark = [pytest.mark.vm, pytest.mark.engine]

RAM = 512 * MIB
# Weights of half the machine's RAM.
HALF = dataclasses.replace(
    SHAPES["small-llama"], name="half-llama", layers=8, width=1024, ffn=4096, heads=8, kv_heads=4
)


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with booted(RAM) as machine:
        yield machine


@contextlib.contextmanager
def world_on(library: Library, machine: Machine) -> Iterator[DrivenWorld]:
    with DrivenWorld(machine.secure_options(library.options(chunk=DEFAULT_CHUNK))) as world:
        yield world
    machine.reset_secure_core()
    assert eventually(lambda: held(machine) == 0), "the machine did not get back what a dead world held"


def test_it_attests_the_firmware_that_was_verified_and_the_el2_that_protects(
    library: Library, machine: Machine
) -> None:
    images = images_of(RAM, 2)
    with world_on(library, machine) as world:
        said = world.attest(b"n" * 32)
    verified = verify(said.chain, said.token, b"n" * 32, Policy(emulated="allow"))
    reference = reference_layers(images.firmware, images.el2)
    assert {layer.name: layer.code for layer in verified.layers[:-1]} == reference
    assert [layer.name for layer in verified.layers] == ["el3", "el2", "world"]
    assert verified.hardware == "qemu-virt"


def held(machine: Machine) -> int:
    """Return the bytes that the machine's kernel counts as handed over."""
    return machine.memory().charged(0)


def hog(machine: Machine, percent: int, seconds: int) -> None:
    """Have a program of the machine fill so much of its memory, and find it unharmed."""
    done = machine.agent.ask("run", "hog", str(percent), str(seconds), seconds=120)
    assert (done["status"], done["result"]["wrong"]) == (0, 0), done
    assert not any("Out of memory" in line for line in machine.console()), machine.console()


def test_output_is_that_of_plain_llama_cpp_whatever_is_recalled(library: Library, machine: Machine):
    source = library.file("small-qwen2", "q8_0")
    name, expected = library.add(source, "machine-qwen2"), library.answer(source, PROMPTS[0], 16)
    with world_on(library, machine) as world:
        assert world.welcome.protection == "trustzone-emulated"
        for recalled in (None, MIB, None):
            assert world.generate(name, PROMPTS[0], 16).text == expected
            assert held(machine) >= world.status().memory.os_secure > 0
            world.recall(recalled)
        assert eventually(lambda: held(machine) <= DEFAULT_CHUNK)


def test_a_program_that_fills_the_machine_gets_the_memory_of_idle_models(
    own_library: Library, machine: Machine
):
    source = own_library.file(HALF, "f16")  # its quarter of a GiB goes with the test
    name, expected = own_library.add(source, "machine-half"), own_library.answer(source, PROMPTS[1], 3)
    with world_on(own_library, machine) as world:
        assert world.generate(name, PROMPTS[1], 3).text == expected
        before = held(machine)
        assert before > RAM * 0.4
        hog(machine, percent=80, seconds=1)
        assert held(machine) < before // 2
        assert world.generate(name, PROMPTS[1], 3).text == expected


def test_a_driver_that_is_unloaded_gets_everything_back_and_may_come_again(
    library: Library, machine: Machine
):
    source = library.file("small-llama", "q8_0")
    name, expected = library.add(source, "machine-llama"), library.answer(source, PROMPTS[1], 8)
    with world_on(library, machine) as world:
        assert world.generate(name, PROMPTS[1], 8).text == expected
        machine.agent.ask("unload", "flexmem", seconds=60)
        assert machine.monitor().pages["SECURE"] == 0
        machine.agent.ask("load", "flexmem")
        assert world.generate(name, PROMPTS[1], 8).text == expected


def test_boot_shows_the_machine_and_ends_it_with_ctrl_c(machine: Machine):
    del machine  # where that one can be had, this one can
    words = [sys.executable, "-m", "flexserve.cli", "boot", "--guest-memory", "256M", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as boot:
        assert boot.stdout is not None
        lines = iter(boot.stdout.readline, "}\n")
        state = json.loads("".join(lines) + "}")
        assert sum(state["monitor"]["pages"].values()) == state["memory"] == 256 * MIB
        boot.send_signal(signal.SIGINT)
        assert boot.wait(timeout=20) == 0
    assert not Path(f"/proc/{state['emulator_pid']}").exists()


def test_one_command_answers_from_the_machine_as_it_does_without(tmp_path: Path, machine: Machine):
    del machine
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    environment["FLEXSERVE_PORT"] = "1"  # where nobody listens

    def run(*arguments: str) -> str:
        words = [sys.executable, "-m", "flexserve.cli", *arguments]
        return subprocess.run(
            words, env=environment, capture_output=True, text=True, timeout=120, check=True
        ).stdout

    run("add", str(DEFAULT_MODEL), "--name", "tiny")
    question = ("run", "tiny", "What is FlexServe?", "--temperature", "0", "--threads", "1")
    booted = ("--platform", "trustzone", "--secure-world", "host", "--guest-memory", "256M")
    assert run(*question, *booted) == run(*question) != ""
