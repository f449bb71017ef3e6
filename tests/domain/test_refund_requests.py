"""Requests for refunds: which rows can be read, and why the others cannot."""

import io

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from payments_pipeline.domain.errors import BadFileError, ConfigurationError
from payments_pipeline.domain.landing_files import LandingFile
from payments_pipeline.domain.refund_requests import read_refund_requests, request_frame

HEADER = "refund_id,match_id,party_id,amount_minor,reason\n"


def csv(*lines: str, name: str = "a.csv", header: str = HEADER) -> LandingFile:
    return LandingFile.of(f"refund_requests/date=2024-08-18/{name}", (header + "\n".join(lines) + "\n").encode())


def reasons(*lines: str) -> list[str]:
    found = read_refund_requests([csv(*lines)])
    assert len(found.frame) + len(found.rejected) == found.read == len(lines)
    return found.rejected.sort_values("line_number")["reason"].astype(str).tolist()


def test_a_row_says_what_whom_how_much_and_why():
    frame = read_refund_requests([csv("r1,m,p,0100,rained off", "r2,m,p,,half time")]).frame
    assert frame.drop(columns="source").to_dict("records") == [
        {
            "refund_id": "r1",
            "match_id": "m",
            "party_id": "p",
            "amount_minor": 100,
            "reason": "rained off",
            "requester": None,
            "line_number": 2,
        },
        {
            "refund_id": "r2",
            "match_id": "m",
            "party_id": "p",
            "amount_minor": None,
            "reason": "half time",
            "requester": None,
            "line_number": 3,
        },
    ]


@pytest.mark.parametrize("amount", ["0", "-1", "1.0", "1e3", "+1", "1_000", "NaN", "1000000000000001"])
def test_an_amount_is_a_whole_number_from_1(amount):
    assert reasons(f"r1,m,p,{amount},x") == ["amount_invalid"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("r 1,m,p,1,x", "refund_id_invalid"),
        (",m,p,1,x", "refund_id_invalid"),
        ("r1,m 1,p,1,x", "match_id_invalid"),
        ("r1,m,,1,x", "party_id_invalid"),
        ("r1,m,p,1,", "refund_reason_missing"),
        ("r1,m,p,1", "field_count"),
        ('r1,m,"p"q,1,x', "misplaced_quote"),
    ],
)
def test_a_row_that_cannot_be_read_is_rejected_with_its_reason_and_nothing_else_is(line, reason):
    found = read_refund_requests([csv(line, "r9,m,p,1,x")])
    assert found.rejected["reason"].astype(str).tolist() == [reason]
    assert found.rejected["line_number"].tolist() == [2]
    assert found.frame["refund_id"].tolist() == ["r9"]


def test_a_row_may_name_who_asks_and_an_empty_one_names_nobody():
    header = HEADER.replace("reason", "reason,requester")
    frame = read_refund_requests([csv("r1,m,p,1,x, jane ", "r2,m,p,1,x,  ", header=header)]).frame
    assert frame["requester"].tolist() == ["jane", None]


@pytest.mark.parametrize("requester", ["jane doe", "jane\u200b", "\u200b", "j\u0430ne", "x" * 129, "ja\x07ne"])
def test_a_requester_that_no_login_could_be_equal_to_is_rejected(requester):
    found = read_refund_requests([csv(f"r1,m,p,1,x,{requester}", header=HEADER.replace("reason", "reason,requester"))])
    assert found.rejected["reason"].astype(str).tolist() == ["requester_invalid"]


def test_rows_of_one_refund_that_name_different_requesters_are_no_request():
    lines = ("r1,m,p,1,x,jane", "r1,m,p,1,x,joe", "r2,m,p,1,x,jane", "r2,m,p,1,x,jane")
    found = read_refund_requests([csv(*lines, header=HEADER.replace("reason", "reason,requester"))])
    assert found.rejected["reason"].astype(str).tolist() == ["rows_differ", "rows_differ", "duplicate"]


def test_equal_rows_of_one_refund_are_one_request_and_differing_ones_none():
    assert reasons("r1,m,p,1,x", "r1,m,p,01,x") == ["duplicate"]
    assert reasons("r1,m,p,1,x", "r1,m,p,2,x", "r1,m,p,1,x") == ["rows_differ"] * 3
    assert reasons("r1,m,p,,x", "r1,m,p,1,x") == ["rows_differ"] * 2
    assert reasons("r1,m,p,1,x", "r1,m,q,1,x", "r2,m,q,1,x") == ["rows_differ"] * 2
    assert reasons("r1,m,p,1.0,x", "r1,m,p,1.0,x") == ["amount_invalid"] * 2


def test_the_same_files_give_the_same_requests_whatever_their_order():
    files = [csv("r1,m,p,1,x", name="b.csv"), csv("r2,m,p,1,x", name="a.csv")]
    first, second = (read_refund_requests(order).frame for order in (files, files[::-1]))
    pd.testing.assert_frame_equal(first, second)
    assert first["refund_id"].tolist() == ["r2", "r1"]


def test_the_amount_column_may_be_left_out():
    found = read_refund_requests([csv("r1,m,p,x", header="refund_id,match_id,party_id,reason\n")])
    assert found.frame["amount_minor"].isna().all()


def test_json_lines_and_parquet_say_the_same():
    rows = [("r1", "m", "p", 100, "x"), ("r2", "m", "p", None, "x")]
    names = HEADER.strip().split(",")
    table = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    lines = b'{"refund_id":"r1","match_id":"m","party_id":"p","amount_minor":100,"reason":"x"}\n'
    lines += b'{"refund_id":"r2","match_id":"m","party_id":"p","reason":"x"}\n'
    found = [
        read_refund_requests([LandingFile.of(f"refund_requests/date=2024-08-18/a.{suffix}", content)]).frame
        for suffix, content in (("parquet", buffer.getvalue()), ("jsonl", lines))
    ]
    left, right = (frame.drop(columns="source") for frame in found)
    pd.testing.assert_frame_equal(left, right)


@pytest.mark.rule("always/no-float")
def test_a_parquet_float_is_no_amount():
    table = pa.table(
        {"refund_id": ["r1"], "match_id": ["m"], "party_id": ["p"], "amount_minor": [1.0], "reason": ["x"]}
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    found = read_refund_requests([LandingFile.of("refund_requests/date=2024-08-18/a.parquet", buffer.getvalue())])
    assert found.rejected["reason"].astype(str).tolist() == ["amount_invalid"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"refund_id,match_id\n", b'refund_id,"\n'])
def test_a_file_that_cannot_be_read_is_an_error_that_names_it(content):
    with pytest.raises(BadFileError, match=r"a\.csv"):
        read_refund_requests([LandingFile.of("refund_requests/date=2024-08-18/a.csv", content)])


def test_a_request_by_hand_keeps_the_same_rules():
    frame = request_frame("r1", "m", "p", None, " rained off ", "command line")
    assert frame["reason"].tolist() == ["rained off"]
    for ids in (("r 1", "m", "p"), ("r1", "", "p"), ("r1", "m", "p" * 129)):
        with pytest.raises(ConfigurationError, match="is no id"):
            request_frame(*ids, None, "x", "command line")
    with pytest.raises(ConfigurationError, match="reason is empty"):
        request_frame("r1", "m", "p", 1, "  ", "command line")
