import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments_pipeline.domain.errors import BadFileError
from payments_pipeline.domain.landing_files import LandingFile, read_file
from payments_pipeline.domain.records import Field, Kind, Layout, Records, RowFault
from payments_pipeline.domain.values import WRONG_TYPE, whole_numbers

LAYOUT = Layout("t", (Field("a", salvaged=True), Field("n", Kind.COUNT)))


def read(content: bytes) -> Records:
    return read_file(LandingFile.of("t/x.jsonl", content), LAYOUT)


def column(content: bytes, name: str) -> list[str | None]:
    records = read(content)
    return records.columns[name].take(np.arange(len(records))).to_pylist()


def test_a_missing_key_null_and_blank_text_are_empty():
    assert column(b'{}\n{"a":null}\n{"a":"  "}\n{"a":" x "}', "a") == [None, None, None, "x"]


def test_blank_lines_are_no_rows_and_count_as_lines():
    records = read(b'\xef\xbb\xbf\n{"a":"1"}\r\n \r\n{"a":"2"}\n\n')
    assert records.line_number.tolist() == [2, 4]
    assert records.raw(np.arange(2)) == ['{"a":"1"}', '{"a":"2"}']


def test_no_line_at_all_is_fine_and_no_byte_at_all_is_not():
    assert len(read(b"\n")) == 0
    with pytest.raises(BadFileError, match="zero bytes"):
        read(b"")


def test_text_that_is_not_utf_8_is_a_bad_file():
    with pytest.raises(BadFileError, match=r"not UTF-8 \(line 2\)"):
        read(b'{"a":"1"}\n{"a":"\xe9"}\n')


@pytest.mark.parametrize(
    "line",
    [b'{"a":"1"', b'{"a":NaN}', b"[]", b"5", b'"x"', b"null", b"{'a':1}", b'{"a":01}', b'{"a":"\\ud800"}', b"[" * 5000],
)
def test_a_broken_line_is_a_fault_of_its_row_alone(line):
    records = read(b'{"a":"1"}\n' + line + b'\n{"a":"3"}\n')
    assert records.fault.tolist() == [RowFault.NONE, RowFault.BROKEN_JSON_LINE, RowFault.NONE]
    assert records.columns["a"].take(np.arange(3)).to_pylist() == ["1", None, "3"]
    assert records.raw(np.array([1])) == [line.decode()]


@pytest.mark.parametrize("value", ["true", "false", "[1]", "{}", '{"b":1}', "1.0", "1e3", "1.5", "[]"])
@pytest.mark.parametrize("name", ["a", "n"])
def test_a_value_of_the_wrong_type_becomes_text_that_no_check_lets_pass(name, value):
    (read_,) = column(f'{{"{name}":{value}}}'.encode(), name)
    assert read_ is not None
    assert read_.startswith(WRONG_TYPE)


@pytest.mark.parametrize(
    ("value", "text"), [("0", "0"), ("-0", "0"), ("12", "12"), ("-3", "-3"), (str(2**64 - 1), str(2**64 - 1))]
)
def test_integers_are_their_decimal_text_in_number_and_text_columns(value, text):
    assert column(f'{{"a":{value},"n":{value}}}'.encode(), "a") == [text]
    assert column(f'{{"a":{value},"n":{value}}}'.encode(), "n") == [text]


@pytest.mark.parametrize("value", ['"2"', '"NaN"', '"1,000"', str(2**63), str(2**64), str(10**30), "-1"])
def test_what_is_no_integer_in_range_is_no_whole_number(value):
    (text,) = read(f'{{"n":{value}}}'.encode()).columns["n"].distinct.to_pylist()
    assert not whole_numbers(read(f'{{"n":{value}}}'.encode()).columns["n"].distinct).valid.any(), text


@pytest.mark.parametrize(
    "line",
    [
        '{"a":"1","a":"2"}',
        '{"a":"1","a":"1"}',
        '{"a" :"1", "a":"2"}',
        '{"a" : "1", "a" : "2"}',
        '{"\\u0061":"1","a":"2"}',
        '{" a":"1","a ":"2"}',
        '{"a":null,"a":"2"}',
    ],
)
def test_a_repeated_key_leaves_open_what_holds(line):
    (text,) = column(line.encode(), "a")
    assert text is not None
    assert text.startswith(WRONG_TYPE)


def test_a_repeated_unknown_key_or_one_inside_a_left_out_value_changes_nothing():
    assert column(b'{"a":"1","z":1,"z":2,"y":{"a":1,"a":2}}', "a") == ["1"]
    assert read(b'{"a":"1","z":1}\n{"y":1," n ":2}').unknown_columns == (("t/x.jsonl", "y"), ("t/x.jsonl", "z"))


def test_white_space_around_keys_is_dropped():
    assert column(b'{" a ":"1"}\n{"a":"2"}', "a") == ["1", "2"]


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["a", "n", " a", "z"]),
            st.one_of(st.none(), st.text(max_size=4), st.integers(0, 9)),
            max_size=4,
        ),
        max_size=6,
    ),
    st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : ")]),
)
def test_every_object_is_a_row_however_it_is_spaced(objects, separators):
    content = "\n".join(json.dumps(each, separators=separators) for each in objects).encode() + b"\n"
    assert len(read(content)) == len(objects)
    for each, text in zip(objects, column(content, "a"), strict=True):
        given_ = [value for name, value in each.items() if name.strip() == "a"]
        if len(given_) == 2:
            assert text is not None
            assert text.startswith(WRONG_TYPE)
        else:
            assert text == (str(given_[0]).strip() or None if given_ and given_[0] is not None else None)
