"""What the servers that speak S3 have in common."""

from __future__ import annotations

from typing import Any, Final

BUCKET: Final = "test-bucket"
ROOT: Final = f"s3://{BUCKET}"


def options(port: int, key: str, secret: str) -> dict[str, Any]:
    """Return the storage options of s3fs for a server on loopback."""
    return {
        "key": key,
        "secret": secret,
        "endpoint_url": f"http://127.0.0.1:{port}",
        "client_kwargs": {"region_name": "us-east-1"},
        "config_kwargs": {"s3": {"addressing_style": "path"}},
    }


def make_bucket(port: int, key: str, secret: str) -> None:
    """Create the bucket that all stores of a session lie in."""
    import s3fs

    client = s3fs.S3FileSystem(**options(port, key, secret), skip_instance_cache=True)
    client.call_s3("create_bucket", Bucket=BUCKET)  # `mkdir` names a region: not known to all
