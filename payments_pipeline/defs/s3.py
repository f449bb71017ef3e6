"""S3 by dagster-aws: whose resource says which region, endpoint, profile and credentials.

Belongs here: what needs dagster-aws, so that a folder needs no import of it. Does not belong here: reading and writing
of objects (`storage.objects`).
"""

from typing import Any

from dagster_aws.s3 import S3Resource
from pydantic import Field

from payments_pipeline.defs.io_managers import ParquetIOManager
from payments_pipeline.storage.objects import make_s3_client


class PatientS3Resource(S3Resource):
    """dagster-aws's own resource, with a client that gives up in time and speaks to other servers than AWS by path."""

    def get_client(self) -> Any:
        """Make the boto3 client."""
        client = make_s3_client(
            profile_name=self.profile_name,
            max_attempts=self.max_attempts,
            region_name=self.region_name,
            endpoint_url=self.endpoint_url,
            use_ssl=self.use_ssl,
            verify=self.verify,
            aws_access_key_id=self.aws_access_key_id,
            aws_secret_access_key=self.aws_secret_access_key,
            aws_session_token=self.aws_session_token,
        )
        if self.use_unsigned_session:
            from botocore.handlers import disable_signing

            client.meta.events.register("choose-signer.s3.*", disable_signing)
        return client


class S3ParquetIOManager(ParquetIOManager):
    """`ParquetIOManager` in a bucket that a dagster-aws `S3Resource` opens."""

    s3: S3Resource = Field(description="Region, endpoint, profile and credentials; by default the AWS environment's.")

    def _make_client(self) -> Any:
        return self.s3.get_client()
