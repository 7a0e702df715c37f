"""What is expected where llama.cpp's tests know another model, and what is reported of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFWriter

from flexserve.testing.llama_server_tests.learning import Learned
from flexserve.testing.llama_server_tests.left_out import LEFT_OUT, UNMET, reason_of
from flexserve.testing.llama_server_tests.models import Wanted, write_model
from flexserve.testing.llama_server_tests.report import report

NODE = "unit/test_completion.py::test_completion[a]"


def test_what_the_peer_said_is_expected_where_the_suite_expects_other_words(tmp_path: Path) -> None:
    teacher = Learned(tmp_path / "learned.json", teaching=True)
    teacher.begin(NODE)
    assert teacher.matches("(going|bed)+", "кот sat")
    assert teacher.matches("a{3}", "aaa")
    assert teacher.count(18) == 8
    teacher.save()
    pupil = Learned(tmp_path / "learned.json", teaching=False)
    pupil.begin(NODE)
    assert pupil.matches("(going|bed)+", "кот sat")
    assert pupil.matches("a{3}", "baaab")
    assert pupil.count(18) == 8
    pupil.begin(NODE)
    assert not pupil.matches("(going|bed)+", "going")
    assert not pupil.matches("a{3}", "b")
    assert pupil.count(18) != 18
    pupil.begin("unit/test_completion.py::test_other")
    assert pupil.matches("going", "Going on")


def test_what_was_learned_of_one_file_of_tests_stays_when_another_is_run(tmp_path: Path) -> None:
    for node, text in (("unit/test_a.py::test_a", "one"), ("unit/test_b.py::test_b", "two")):
        teacher = Learned(tmp_path / "learned.json", teaching=True)
        teacher.begin(node)
        assert teacher.matches("going", text)
        teacher.save()
    pupil = Learned(tmp_path / "learned.json", teaching=False)
    pupil.begin("unit/test_a.py::test_a")
    assert pupil.matches("going", "one")


def test_a_test_is_left_out_by_its_file_or_by_its_name() -> None:
    assert reason_of("unit/test_router.py::test_any[1]") == LEFT_OUT["test_router"]
    assert reason_of("unit/test_basic.py::test_no_ui") == LEFT_OUT["test_basic::test_no_ui"]
    assert reason_of("unit/test_basic.py::test_server_props") is None
    assert not UNMET.keys() & LEFT_OUT.keys()


def test_the_report_counts_what_applies_and_gives_a_reason_for_the_rest(tmp_path: Path) -> None:
    def write(name: str, *cases: tuple[str, str]) -> list[Path]:
        inside = "".join(f'<testcase classname="unit.test_a" name="{n}">{o}</testcase>' for n, o in cases)
        (tmp_path / name).write_text(f"<testsuites><testsuite>{inside}</testsuite></testsuites>")
        return [tmp_path / name]

    bad, left = '<failure message="m"/>', '<skipped message="not applicable: pages"/>'
    peer = write("peer.xml", ("good", ""), ("bad", ""), ("late", ""), ("other", bad), ("page", left))
    ours = write("ours.xml", ("good", ""), ("bad", bad), ("other", bad), ("page", left))
    text = report(peer, ours)
    assert "| `test_a` | 3 | 2 | 1 |" in text
    assert "**1** (50 % of those run)" in text
    assert "| `test_a::bad` | 1 | not looked into yet |" in text
    assert "| 1 | pages |" in text
    assert "| `test_a::good` | 1 | 1 |" in text
    assert "| `test_a::late` | 1 | 0 |" in text
    assert "| 1 | llama-server itself fails it" in text


@pytest.mark.parametrize(("kind", "file"), [("infill", "llama-spm"), ("ranks", "bert-bge")])
def test_models_are_made_of_a_vocabulary_that_is_at_hand(tmp_path: Path, kind: str, file: str) -> None:
    vocabulary = GGUFWriter(tmp_path / f"ggml-vocab-{file}.gguf", "any")
    vocabulary.add_token_list([f"t{number}" for number in range(8)])
    vocabulary.add_uint32("tokenizer.ggml.bos_token_id", 1)
    vocabulary.write_header_to_file()
    vocabulary.write_kv_data_to_file()
    vocabulary.close()
    write_model(Wanted(kind), tmp_path / "model.gguf", tmp_path)
    made = GGUFReader(tmp_path / "model.gguf")
    shapes = {tensor.name: tensor.shape.tolist() for tensor in made.tensors}
    assert shapes["token_embd.weight"][1] == 8
    assert made.fields["tokenizer.ggml.bos_token_id"].contents() == 1
    assert ("cls.output.weight" in shapes) == (kind == "ranks")
