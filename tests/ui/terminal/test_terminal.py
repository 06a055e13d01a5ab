"""What the terminal lets through: text from a bundle, a file name or a device never moves the cursor."""

from __future__ import annotations

import pytest

from edge.errors import DataError
from edge.ui.terminal import Terminal

HOSTILE = "a\x1b[31mb\x07\x9b2J\u202ec\r\u2066d"


def test_control_characters_are_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    terminal.show(HOSTILE)
    terminal.table(("picture", "label"), [(HOSTILE, "ä\u00a0日\u200d本")])
    terminal.marked("ok ", HOSTILE, style="green")
    terminal.info(HOSTILE)
    terminal.warn(HOSTILE)
    terminal.error(DataError(HOSTILE, where="x", hint="two\nlines"))
    out, err = capsys.readouterr()
    for text in (out, err):
        assert not set(text) & set("\x1b\x07\x9b\u202e\r\u2066")
        assert text.count(r"a\x1b[31mb\x07\x9b2J\u202ec\r\u2066d") == 3
    assert "ä\u00a0日\u200d本" in out
    assert "two\nlines" in err
