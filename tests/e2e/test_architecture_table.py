"""What the table of architectures says of a model is what becomes of it in a real secure world."""

from __future__ import annotations

from flexserve.testing.architecture_table import outcomes


def test_models_make_right_text_or_vectors_or_are_refused_with_the_reason() -> None:
    [llama, bert, chameleon, clip] = [what for _, what in outcomes(("llama", "bert", "chameleon", "clip"))]
    assert llama == "right text, vectors"
    assert bert == "vectors"
    assert chameleon.startswith("refused: ")
    assert clip.startswith("refused: no model can be made")
