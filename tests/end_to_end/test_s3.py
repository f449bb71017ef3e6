"""A day whose landing zone, reference data and storage are S3: the same code, over real HTTP."""

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import boto3
import pytest
from home import Home
from moto.server import ThreadedMotoServer

from payments_pipeline.local.sample_data import write_sample_season

FIRST_DAY = date(2025, 8, 15)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, dict[str, str]]]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "eu-west-2",
        "AWS_DEFAULT_REGION": "eu-west-2",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="a-season", CreateBucketConfiguration={"LocationConstraint": "eu-west-2"})
    write_sample_season(tmp_path / "landing", tmp_path / "reference", first_day=FIRST_DAY, match_days=7, seed=9)
    for path in sorted(tmp_path.rglob("*")):
        if path.is_file():
            s3.put_object(Bucket="a-season", Key=path.relative_to(tmp_path).as_posix(), Body=path.read_bytes())
    yield "s3://a-season", environment
    server.stop()


def test_a_day_from_s3_to_s3_gives_the_same_as_from_folders(
    home: Home, bucket: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    url, environment = bucket
    home.environment |= environment | {
        "PAYMENTS_LANDING_URL": f"{url}/landing",
        "PAYMENTS_REFERENCE_URL": f"{url}/reference",
        "PAYMENTS_STORAGE_URL": f"{url}/storage",
    }
    (from_s3,) = home.rows("run", "--date", "2025-08-15")
    assert from_s3["entries_posted"] > 0
    shares = home.run("export", "participant_shares", "--date", "2025-08-15").stdout
    assert all(row["ok"] for row in home.rows("verify"))

    for name in ("PAYMENTS_LANDING_URL", "PAYMENTS_REFERENCE_URL", "PAYMENTS_STORAGE_URL", *environment):
        del home.environment[name]
    home.point_at(tmp_path)
    (from_folders,) = home.rows("run", "--date", "2025-08-15")
    # The same content from another place: everything is posted, nothing is paid again.
    assert (from_folders["entries_posted"], from_folders["instructions_created"]) == (0, 0)
    assert home.run("export", "participant_shares", "--date", "2025-08-15").stdout == shares
