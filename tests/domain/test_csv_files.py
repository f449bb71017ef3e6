import csv
import io

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from payments_pipeline.domain import csv_files
from payments_pipeline.domain.errors import BadFileError
from payments_pipeline.domain.landing_files import LandingFile, read_file
from payments_pipeline.domain.records import Field, Layout, Records, RowFault

LAYOUT = Layout("t", (Field("a", salvaged=True), Field("b"), Field("c", required=False)))


def read(content: bytes) -> Records:
    return read_file(LandingFile.of("t/x.csv", content), LAYOUT)


def everything(records: Records) -> list[tuple]:
    rows = np.arange(len(records))
    columns = [records.columns[name].take(rows).to_pylist() for name in LAYOUT.names]
    return list(zip(records.line_number.tolist(), records.fault.tolist(), records.raw(rows), *columns, strict=True))


def values(content: bytes) -> list[tuple]:
    return [row[3:] for row in everything(read(content))]


def test_a_byte_order_mark_and_carriage_returns_are_dropped():
    assert values(b"\xef\xbb\xbfa,b\r\n1,2\r\n") == [("1", "2", None)]


def test_white_space_around_names_and_values_is_dropped_and_empty_is_null():
    assert values("\u00a0a , b\n 1\u2003,\t \n".encode()) == [("1", None, None)]


def test_white_space_around_quotes_is_dropped():
    assert values(b'a,b\n "1,5" , " 2 "\t\n') == [("1,5", "2", None)]


def test_columns_come_in_any_order_and_unknown_ones_are_named():
    records = read(b"z,c,b,a,A\n9,3,2,1,0\n")
    assert [row[3:] for row in everything(records)] == [("1", "2", "3")]
    assert records.unknown_columns == (("t/x.csv", "A"), ("t/x.csv", "z"))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r", b""])
def test_the_last_line_needs_no_ending(end):
    assert values(b"a,b\n1,2" + end) == [("1", "2", None)]


def test_a_header_alone_is_an_empty_file_and_fine():
    assert len(read(b"a,b")) == 0
    assert len(read(b'"a","b"\r\n\r\n')) == 0


def test_blank_lines_are_no_rows_and_count_as_lines():
    assert everything(read(b"\n \na,b\n\n1,2\n\t\n3,4\n")) == [
        (5, 0, "1,2", "1", "2", None),
        (7, 0, "3,4", "3", "4", None),
    ]


def test_a_record_has_the_number_of_its_first_line():
    assert everything(read(b'a,b,z\n1,2,"x\n\ny"\n\n3,4,\n')) == [
        (2, 0, '1,2,"x\n\ny"', "1", "2", None),
        (6, 0, "3,4,", "3", "4", None),
    ]


@pytest.mark.parametrize("quote", [b"", b',"x\ny"'])
def test_a_row_with_another_field_count_is_faulty_and_keeps_what_can_be_salvaged(quote):
    header, full = (b"a,b,z\n", b"5,6" + quote) if quote else (b"a,b\n", b"5,6")
    content = header + full + b"\n1\n1,2,3,4\n,2,3,4,5\n" + full + b"\n"
    rows = everything(read(content))
    assert [(fault, a) for _, fault, _, a, _, _ in rows] == [
        (RowFault.NONE, "5"),
        (RowFault.FIELD_COUNT, "1"),
        (RowFault.FIELD_COUNT, "1"),
        (RowFault.FIELD_COUNT, None),
        (RowFault.NONE, "5"),
    ]
    assert [raw for _, _, raw, *_ in rows][1:4] == ["1", "1,2,3,4", ",2,3,4,5"]


def test_a_row_of_nothing_but_commas_is_a_row():
    assert everything(read(b"a,b\n,\n")) == [(2, 0, ",", None, None, None)]


def test_a_quote_inside_a_value_is_a_fault_of_its_row_alone():
    rows = everything(read(b'a,b\n1,"x"y\n2,"p\nq"\n3,4\n'))
    assert [(line, fault, a) for line, fault, _, a, _, _ in rows] == [
        (2, RowFault.MISPLACED_QUOTE, "1"),
        (3, RowFault.NONE, "2"),
        (5, RowFault.NONE, "3"),
    ]


@pytest.mark.parametrize("content", [b'a,b\n1,"2\n', b'a,b\n1,2\n3,"', b'a,b\n"1"x,2\n3,"4\n5,6\n', b'a,"b\n1,2\n'])
def test_an_unclosed_quote_is_a_bad_file(content):
    with pytest.raises(
        BadFileError, match=r"t/x\.csv has a quote that is never closed.*Nothing of this day was posted"
    ):
        read(content)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "zero bytes"),
        (b"\xef\xbb\xbf", "no bytes but a byte order mark"),
        (b"\n\n", "no header"),
        (b'\n"\n"\n', "column a"),
        (b"a,b\n1,\xff\n", r"not UTF-8 \(line 2\)"),
        ("a,b\n1,2\n".encode("utf-16"), "not UTF-8"),
        (b"a,b,a\n1,2,3\n", "names column a more than once"),
        (b"a, a ,b\n1,2,3\n", "names column a more than once"),
        (b"a\n1\n", "no column b"),
        (b"A,b\n1,2\n", "no column a"),
        (b"a;b\n1;2\n", "no column a, b"),
    ],
)
def test_bad_files_name_the_fault_and_the_cure(content, fault):
    with pytest.raises(BadFileError, match=rf"t/x\.csv.*{fault}.*run the day again"):
        read(content)


def test_a_value_may_be_long_and_hold_nul():
    long = b"x" * 200_000
    assert values(b"a,b\n" + long + b",1\x002\n") == [(long.decode(), "1\x002", None)]
    assert values(b'a,b\n"' + long + b'\n",2\n') == [(long.decode(), "2", None)]


_field = st.text(st.sampled_from("ab1 ,\"'\t\x00é日\u2028\x0b\x1c\ufeff"), max_size=6)
_line_end = st.sampled_from(["\n", "\r\n"])


@st.composite
def _files(draw) -> bytes:
    """CSV of any shape; what the two readers may disagree on is all in here."""
    parts = ["a,b,z", draw(_line_end)]
    for _ in range(draw(st.integers(0, 6))):
        fields = draw(st.lists(_field, min_size=0, max_size=5))
        quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, None]))
        if quoting is None:
            parts.append(",".join(fields))
        else:
            text = io.StringIO(newline="")
            csv.writer(text, quoting=quoting, lineterminator="").writerow(fields)
            parts.append(text.getvalue())
        parts.append(draw(_line_end))
    return "".join(parts).encode()


@given(_files())
@example(b'a,b,z\n"x","y","z"\n')
@example(b'a,b,z\n"",,"p,q"\r\n')
@example(b'a,b,z\n"a\n","b\n"\n')
def test_both_readers_give_the_same_records(content):
    lines = csv_files._plain_lines(content)
    if lines is None:
        return
    plain = csv_files.read_plain("t/x.csv", content, LAYOUT, lines)
    any_ = csv_files.read_any("t/x.csv", content, LAYOUT)
    assert everything(plain) == everything(any_)
    assert plain.unknown_columns == any_.unknown_columns


@given(st.lists(st.tuples(_field, _field), max_size=8))
def test_what_the_csv_module_writes_is_read_back(rows):
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("a", "b"), *rows])
    expected = [tuple(value.strip() or None for value in row) for row in rows]
    assert [row[:2] for row in values(text.getvalue().encode())] == expected
