import numpy as np
import pytest

from payments_pipeline.domain.errors import BadFileError
from payments_pipeline.domain.landing_files import LandingFile, extension, input_hash, read_file, read_files
from payments_pipeline.domain.records import Field, Layout

LAYOUT = Layout("t", (Field("a", salvaged=True), Field("b")))


@pytest.mark.parametrize(("name", "format_"), [("a.csv", "csv"), ("a.b.jsonl", "jsonl"), ("é .parquet", "parquet")])
def test_a_name_says_its_format(name, format_):
    assert extension(name) == format_


@pytest.mark.parametrize(
    "name", ["a.CSV", "a.csv.gz", "csv", ".csv", ".a.csv", "._a.csv", "_SUCCESS", "a.csv~", "", "a.json"]
)
def test_other_names_are_no_input(name):
    assert extension(name) is None


def test_a_file_that_is_no_input_is_refused():
    with pytest.raises(BadFileError, match=r"neither \.csv nor"):
        read_file(LandingFile.of("t/x.txt", b"a,b\n"), LAYOUT)


def test_the_hash_of_files_depends_on_names_and_contents_and_not_on_order():
    one, two = LandingFile.of("a.csv", b"1"), LandingFile.of("b.csv", b"2")
    assert input_hash([one, two]) == input_hash([two, one])
    others = [
        [],
        [one],
        [two],
        [LandingFile.of("a.csv", b"2"), LandingFile.of("b.csv", b"1")],
        [LandingFile.of("c.csv", b"1"), two],
    ]
    assert len({input_hash(files) for files in ([one, two], *others)}) == 6


def test_files_are_read_in_the_order_of_their_names_whatever_order_they_come_in():
    files = [
        LandingFile.of("t/b.jsonl", b'{"a":"3","b":"x"}\n{\n'),
        LandingFile.of("t/a.csv", b"b,a\ny,1\nz\nx,2\n"),
        LandingFile.of("t/c.csv", b"a,b\n"),
    ]
    for given in (files, files[::-1]):
        records = read_files(given, LAYOUT)
        rows = np.arange(len(records))
        assert records.sources == ("t/a.csv", "t/b.jsonl", "t/c.csv")
        assert records.source_no.tolist() == [0, 0, 0, 1, 1]
        assert records.line_number.tolist() == [2, 3, 4, 1, 2]
        assert records.columns["a"].take(rows).to_pylist() == ["1", None, "2", "3", None]
        assert records.columns["b"].take(rows).to_pylist() == ["y", None, "x", "x", None]
        assert records.raw(rows[::-1]) == ["{", '{"a":"3","b":"x"}', "x,2", "z", "y,1"]


def test_no_files_are_no_rows():
    assert len(read_files([], LAYOUT)) == 0
    assert len(read_files([LandingFile.of("t/a.csv", b"a,b\n"), LandingFile.of("t/b.csv", b"a,b\n")], LAYOUT)) == 0


def test_one_bad_file_stops_the_day():
    with pytest.raises(BadFileError, match=r"t/b\.csv"):
        read_files([LandingFile.of("t/a.csv", b"a,b\n"), LandingFile.of("t/b.csv", b"a\n")], LAYOUT)


def test_a_name_that_is_not_utf_8_is_shown_with_escapes():
    assert LandingFile.of("t/\udcff.csv", b"").source == "t/\\xff.csv"
