import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtlops.data.normalisation import fingerprint, normalise

ENTITIES = st.sampled_from(
    ["&amp;", "&amp;lt;", "&", "am", "p;", "&#0;", "&nbsp", "\ufeff", "\u037e", "\ud800", "e\u0301"]
)


@pytest.mark.parametrize(
    "raw, clean",
    [
        ("\ufefffirst cell", "first cell"),
        ("good &amp; bad &#39;film&#39;", "good & bad 'film'"),
        ("escaped &amp;amp;lt; twice", "escaped < twice"),
        (" tabs\tand\r\nlines\u2028and\xa0spaces ", "tabs and lines and spaces"),
        ("cafe\u0301", "caf\u00e9"),
        ("half \ud83d a smile, a whole \ud83d\ude00", "half \ufffd a smile, a whole \U0001f600"),
        ("", ""),
    ],
)
def test_texts_are_normalised(raw, clean):
    assert normalise(raw) == clean


@given(st.one_of(st.text(st.characters(codec=None)), st.lists(ENTITIES | st.text(max_size=3)).map("".join)))
def test_any_string_gives_clean_text_and_twice_is_once(text):
    clean = normalise(text)
    assert normalise(clean) == clean
    assert clean.encode("utf-8").decode("utf-8") == clean
    assert clean == " ".join(clean.split())
    assert "\ufeff" not in clean
    assert unicodedata.is_normalized("NFC", clean)


def test_the_fingerprint_is_sixteen_hex_digits():
    assert len(fingerprint()) == 16
    assert int(fingerprint(), 16)


def test_normalising_needs_only_the_standard_library():
    code = (
        "import sys, mtlops.data.normalisation\n"
        "print([n for n in ('numpy', 'pyarrow', 'torch', 'tokenizers', 'pydantic') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
